"""Messages between a process and its child arrive whole and once, whatever interrupts whoever sends them."""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest

from solewriter.engine_proc.channel import Channel


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("error", [Interrupted, TimeoutError])
def test_a_signal_handler_that_raises_in_the_middle_of_messages_doubles_and_loses_none(error):
    reading, writing = os.pipe()
    here, there = Channel(-1, writing), Channel(reading, -1)
    received, sent, interrupted, pad = [], [], 0, "x" * 50_000

    def receive() -> None:
        while (message := there.receive(tuple)) is not None:
            received.append(message)

    def interrupt(*_: object) -> None:
        raise error

    receiving = threading.Thread(target=receive)
    receiving.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 5e-4))
                here.send((number, pad), 10)
                signal.setitimer(signal.ITIMER_REAL, 0)
                sent.append(number)
            except error:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        here.send((400, pad))
        here.close()
        receiving.join()
        there.close()
    numbers = [number for number, padding in received if padding == pad]
    assert numbers == sorted(set(numbers))
    assert {*sent, 400} <= {*numbers}
    assert interrupted
