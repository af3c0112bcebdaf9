"""Forks that wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from solewriter.shared.system.forks import forks_held_off


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_who_holds_it_off_and_holds_nothing_in_its_child(elsewhere):
    """But for one from within, of a signal's handler say."""
    forked = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0 if not forks_held_off._is_owned() and forks_held_off.acquire(timeout=10) else 1)
        forked.append(child)

    with forks_held_off:
        forking = elsewhere(fork)
        assert not forked
        fork()
        assert len(forked) == 1
    forking.join()
    assert len(forked) == 2
    for child in forked:
        assert os.waitpid(child, 0)[1] == 0
    assert not forks_held_off._is_owned()


HELD_OFF = """
import os, sys, threading
from solewriter.shared.system.forks import forks_held_off
import logging
from concurrent.futures import ThreadPoolExecutor

sys.setswitchinterval(1000.0)  # a thread that is started runs until it waits
workers = ThreadPoolExecutor(1)
with forks_held_off:
    forking = threading.Thread(target=lambda: os.fork() or os._exit(0))
    forking.start()
    assert workers.submit(int).result(timeout=20) == 0
    logging.getLogger("somebody").setLevel("INFO")
forking.join()
"""


def test_a_fork_that_waits_keeps_nothing_of_the_library_from_who_holds_it_off():
    """Its locks for threads and for logging are taken at a fork, too: whoever needs one would wait for the fork, which
    waits for him.
    """
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore:This process:DeprecationWarning", "-c", HELD_OFF],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
