"""Whoever pins sees one root, whole: the newest, never a mixture, and never one that was not shown yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared.config import KINDS_MAX, MEMORY_VERSION, ROOT_RING
from solewriter.shared.errors import LayoutMismatch
from solewriter.shared.memory import futex
from solewriter.shared.memory.root import ROOT_BYTES, STOPPED, SUPERSEDED, Root, RootReader, RootWriter, succeed
from solewriter.shared.memory.segment import Segment

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
ROOTS = st.builds(
    Root,
    number=st.just(0),
    revision=U64,
    entry=U64,
    oldest=U64,
    whole=U64,
    tail=U64,
    first_segment=U32,
    last_segment=U32,
    catalog=U32,
    log_first=U32,
    log_points=U64,
    kinds=st.lists(st.tuples(U32, U32), max_size=KINDS_MAX).map(tuple),
)
FOR_EVER_S = 3600.0  # a test that really sleeps that long fails by its time-out


@pytest.fixture
def segment(tmp_path):
    return Segment.create(tmp_path / "root", ROOT_BYTES)


@pytest.fixture
def writer(segment):
    return RootWriter(segment, epoch=3, pid=os.getpid(), start_time=12345, durability="process")


@pytest.fixture
def reader(writer, segment):
    return RootReader(Segment.attach(segment.path))


@pytest.fixture
def spawn():
    """`spawn(code, *args)`: a Python process that said "ready"; killed after the test, if it still runs."""
    started = []

    def start(code, *args):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-P", "-c", code, *map(str, args)], **pipes)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def numbered(number, kinds=2):
    """A root in which everything follows from one number."""
    return Root(
        0,
        number,
        number + 1,
        number // 2,
        number // 2 + 1,
        number * 8,
        1,
        2,
        3,
        0,
        number % 7,
        ((number % 2**32, number % 1000),) * kinds,
    )


def publish(writer, root):
    writer.move_tail(root.tail)
    writer.fill(root)
    writer.show()


# --- one root ---------------------------------------------------------------------------------------------------------


def test_a_reader_learns_whose_root_it_is(writer, segment):
    writer.remember(b"0123456789abcdef")
    reader = RootReader(Segment.attach(segment.path))
    assert (reader.epoch, reader.pid, reader.start_time, reader.durability) == (3, os.getpid(), 12345, "process")
    assert reader.history == b"0123456789abcdef"
    assert (reader.successor, reader.readable_from, reader.head, reader.live_tail) == (0, 1, 0, 0)
    assert (reader.deciding, reader.died_deciding) == ((0, 0), None)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROOTS, min_size=1, max_size=4))
def test_the_newest_root_reads_back_as_it_was(tmp_path_factory, roots):
    segment = Segment.create(tmp_path_factory.mktemp("roots") / "root", ROOT_BYTES)
    writer, reader = RootWriter(segment, 1, 2, 3, "power"), RootReader(segment)
    for number, root in enumerate(roots, 1):
        publish(writer, root)
        assert reader.head == number
        assert reader.current() == root._replace(number=number)


def test_nothing_is_seen_before_it_is_shown(writer, reader):
    publish(writer, numbered(1))
    writer.move_tail(999)
    writer.fill(numbered(2))
    assert reader.current().revision == 1
    assert reader.live_tail == 999
    writer.show()
    assert reader.current().revision == 2


def test_before_the_first_publish_there_is_no_root(reader):
    assert reader.head == 0
    with pytest.raises(LayoutMismatch, match="checksum"):
        reader.current()


def test_the_ring_comes_round(writer, reader):
    for number in range(1, 5 * ROOT_RING + 3):
        publish(writer, numbered(number))
        assert reader.current() == numbered(number)._replace(number=number)


def test_the_other_words_reach_readers(writer, reader):
    before = reader.heartbeat_us
    assert (reader.sessions, reader.connected, reader.heartbeat_period_us) == (0, 0, 0)
    writer.beat(2**64 - 1, 7, 2**40)
    assert reader.heartbeat_us >= before > 0
    assert (reader.sessions, reader.connected, reader.heartbeat_period_us) == (2**64 - 1, 7, 2**40)
    writer.begin_deciding(2**64 - 1, 7)
    assert reader.deciding == reader.died_deciding == (2**64 - 1, 7)
    writer.end_deciding()
    assert (reader.deciding, reader.died_deciding) == ((2**64 - 1, 7), None)
    writer.succeed(STOPPED)
    assert reader.successor == STOPPED


def test_a_beat_touches_its_own_words_and_nothing_else(writer, segment):
    publish(writer, numbered(1))
    writer.begin_deciding(5, 6)
    before = bytes(segment.map)
    writer.beat(1, 2, 3)
    after = bytes(segment.map)
    assert {offset // 8 for offset in range(ROOT_BYTES) if before[offset] != after[offset]} <= {18, 23, 24, 25}
    assert after[184:208] == b"".join(word.to_bytes(8, "little") for word in (1, 2, 3))


def test_a_superseded_root_says_so(writer, reader, segment):
    succeed(Segment.attach(segment.path, writable=True), SUPERSEDED)
    assert reader.successor == SUPERSEDED


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_damaged_byte_of_the_current_root_is_noticed(writer, reader, segment):
    publish(writer, numbered(1, kinds=1))
    place = 256 + 640
    used = 80 + 8
    for offset in range(used):
        before = segment.map[place + offset]
        segment.map[place + offset] = before ^ 0x10
        with pytest.raises(LayoutMismatch, match="checksum"):
            reader.current()
        segment.map[place + offset] = before
    assert reader.current() == numbered(1, kinds=1)._replace(number=1)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, b"x"), (8, bytes([MEMORY_VERSION + 1])), (8, b"\0"), (12, bytes([ROOT_RING + 1])), (176, b"\3")],
)
def test_another_layout_is_refused(writer, segment, offset, value):
    segment.map[offset : offset + 1] = value
    with pytest.raises(LayoutMismatch, match="use the same version"):
        RootReader(Segment.attach(segment.path))


# --- races ------------------------------------------------------------------------------------------------------------


class Interrupted:
    """A map during whose every copy a writer gets ahead: the first half is copied before, the second half after it."""

    def __init__(self, mapped, meanwhile):
        self.mapped = mapped
        self.meanwhile = meanwhile

    def __getitem__(self, place):
        first = self.mapped[place]
        self.meanwhile()
        return first[: len(first) // 8] + self.mapped[place][len(first) // 8 :]


@pytest.mark.parametrize("ahead", [1, ROOT_RING - 2, ROOT_RING - 1, ROOT_RING, 2 * ROOT_RING, 3 * ROOT_RING + 1])
def test_a_reader_that_is_lapped_in_mid_copy_looks_again(writer, reader, ahead):
    shown = 100
    publish(writer, numbered(shown))
    interruptions = 3

    def meanwhile():
        nonlocal interruptions, shown
        interruptions -= 1
        for _ in range(ahead if interruptions > 0 else 0):
            shown += 1
            publish(writer, numbered(shown))

    reader._map = Interrupted(reader._map, meanwhile)
    root = reader.current()
    assert root == numbered(root.revision)._replace(number=root.number)
    if ahead >= ROOT_RING:
        assert root.revision == shown


WRITING = """
import os, sys, time
from pathlib import Path
from solewriter.shared.memory.root import ROOT_BYTES, STOPPED, Root, RootWriter
from solewriter.shared.memory.segment import Segment
segment = Segment.create(Path(sys.argv[1]), ROOT_BYTES)
writer = RootWriter(segment, 1, os.getpid(), 0, "memory")
number, end = 0, float("inf")
while number < 5_000 or time.monotonic() < end:
    number += 1
    pair = (number % 2**32, number % 1000)
    writer.move_tail(number * 8)
    writer.fill(Root(0, number, number + 1, number // 2, number // 2, number * 8, 1, 2, 3, 0, number % 7, (pair,) * 20))
    writer.show()
    if number == 1:
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + 0.7
writer.succeed(STOPPED)
print(number)
"""
READING = """
import sys
from pathlib import Path
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.segment import Segment
reader, seen, last = RootReader(Segment.attach(Path(sys.argv[1]))), 0, 0
print("ready", flush=True)
while True:
    stopped = reader.successor
    tail_before = reader.live_tail
    root = reader.current()
    number = root.revision
    pair = (number % 2**32, number % 1000)
    half = number // 2
    assert root == (number, number, number + 1, half, half, number * 8, 1, 2, 3, 0, number % 7, (pair,) * 20), root
    assert number >= last, (number, last)
    assert reader.live_tail >= number * 8
    assert number * 8 >= tail_before - 8
    seen += number > last
    last = number
    if stopped:
        break
print(seen, last)
"""


def test_readers_beside_a_writer_at_full_speed_see_whole_roots_only_and_none_goes_back(tmp_path, spawn):
    writing = spawn(WRITING, tmp_path / "root")
    readers = [spawn(READING, tmp_path / "root") for _ in range(2)]
    last = int(writing.communicate("go\n")[0])
    for process in readers:
        seen, newest = map(int, process.communicate()[0].split())
        assert process.returncode == 0
        assert newest == last
        assert seen > 1


# --- waiting ----------------------------------------------------------------------------------------------------------

SLEEPING = """
import sys
from pathlib import Path
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.segment import Segment
reader = RootReader(Segment.attach(Path(sys.argv[1])))
print("ready", flush=True)
while reader.head == 1 and not reader.successor:
    reader.sleep(1, 3600.0)
print(reader.head, reader.successor)
"""


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (lambda writer, segment: (publish(writer, numbered(2)), writer.wake()), "2 0"),
        (lambda writer, segment: writer.succeed(STOPPED), f"1 {STOPPED}"),
        (lambda writer, segment: succeed(segment, SUPERSEDED), f"1 {SUPERSEDED}"),
    ],
    ids=["publish", "stop", "supersede"],
)
def test_a_sleeper_in_another_process_is_woken(writer, segment, spawn, wait_until, act, seen):
    publish(writer, numbered(1))
    sleeper = spawn(SLEEPING, segment.path)
    call = Path(f"/proc/{sleeper.pid}/syscall")
    sleeps = f"{futex._SYSCALL} "
    wait_until(lambda: call.read_text().startswith(sleeps), 30, "it sleeps: a successor alone moves no word")
    act(writer, segment)
    assert sleeper.communicate()[0].split() == seen.split()


def test_who_expects_an_older_head_does_not_sleep(writer, reader):
    publish(writer, numbered(1))
    publish(writer, numbered(2))
    reader.sleep(1, FOR_EVER_S)
    reader.sleep(0, FOR_EVER_S)
    reader.sleep(2, 0.001)
