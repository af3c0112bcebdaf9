"""A sleeper on a word is never missed: it is woken, or it never fell asleep."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from solewriter.shared.memory import futex
from solewriter.shared.memory.futex import Word
from solewriter.shared.memory.segment import Segment

FOR_EVER_S = 3600.0  # a test that really sleeps that long fails by its time-out

SLEEPING = """
import sys
from pathlib import Path
from solewriter.shared.memory.futex import Word
from solewriter.shared.memory.segment import Segment
segment = Segment.attach(Path(sys.argv[1]))
word = Word(segment.map, 64)
print("ready", flush=True)
word.wait(int(sys.argv[2]), 3600.0)
print(segment.words[8], flush=True)
"""


@pytest.fixture
def segment(tmp_path):
    return Segment.create(tmp_path / "words", 4096)


@pytest.fixture
def sleeper(segment, wait_until):
    """`sleeper(expected)`: a process that is asleep on the word while it is `expected`."""
    started = []

    def start(expected):
        command = [sys.executable, "-P", "-c", SLEEPING, str(segment.path), str(expected)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: asleep(process.pid), 30, "the sleeper falls asleep")
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def asleep(pid):
    """Whether the process is in futex(2), as far as we may look; else, whether it sleeps at all."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(futex._SYSCALL)
    except PermissionError:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"


def test_waking_wakes_every_sleeper_in_other_processes(segment, sleeper):
    sleepers = [sleeper(0) for _ in range(3)]
    segment.words[8] = 7
    Word(segment.map, 64).wake()
    assert [process.communicate()[0] for process in sleepers] == ["7\n"] * 3


def test_waking_is_enough_without_a_change(segment, sleeper):
    process = sleeper(0)
    Word(segment.map, 64).wake()
    assert process.communicate()[0] == "0\n"


def test_a_store_alone_wakes_nobody_and_a_wake_on_another_word_neither(segment, sleeper):
    process = sleeper(0)
    segment.words[8] = 1
    Word(segment.map, 128).wake()
    assert asleep(process.pid)
    Word(segment.map, 64).wake()
    assert process.communicate()[0] == "1\n"


def test_a_word_that_is_not_what_was_expected_is_not_slept_on(segment):
    segment.words[8] = 5
    Word(segment.map, 64).wait(4, FOR_EVER_S)
    Word(Segment.attach(segment.path).map, 64).wait(0, FOR_EVER_S)


def test_only_the_low_half_of_a_word_is_compared(segment):
    segment.words[8] = 9 << 32 | 5
    word = Word(segment.map, 64)
    word.wait(9, FOR_EVER_S)
    word.wait(5, 0.0)


@pytest.mark.parametrize("timeout_s", [0.0, 0.000_000_001, 0.001, 1e-12, -1.0])
def test_a_wait_ends_at_its_time_out(segment, timeout_s):
    Word(segment.map, 64).wait(0, timeout_s)


def test_a_waiting_thread_does_not_hold_up_the_others(segment):
    woken = threading.Event()
    word = Word(segment.map, 64)

    def wait():
        while segment.words[8] == 0:
            word.wait(0, FOR_EVER_S)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    segment.words[8] = 1
    word.wake()
    thread.join()
    assert woken.is_set()


def test_the_address_is_that_of_the_byte_whoever_maps_it(segment):
    segment.map[64:72] = b"solewrit"
    for mapped in (segment.map, Segment.attach(segment.path).map):
        assert ctypes.string_at(futex._address(mapped, 64), 8) == b"solewrit"


def test_a_word_keeps_its_mapping_alive(tmp_path):
    path = tmp_path / "alone"
    word = Word(Segment.create(path, 4096).map, 0)
    os.unlink(path)
    word.wake()
    word.wait(1, FOR_EVER_S)
