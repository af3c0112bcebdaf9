"""The heap holds exactly the records that were appended and not taken back, in order, whatever segments they lie in."""

from __future__ import annotations

import itertools
import mmap
import shutil
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from solewriter.shared.config import HEAP_LAST_BYTES, KIB, Limits
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory import heap as heaps
from solewriter.shared.memory.heap import (
    OFFSET_MASK,
    PREFIX,
    PREFIX_BYTES,
    START,
    HeapWriter,
    address_of,
    padded,
    walk,
)
from solewriter.shared.memory.segment import Segment

SMALL = Limits(heap_segment_bytes_first=4 * KIB, heap_segment_bytes_max=16 * KIB)
BEGINNING = address_of(1, START)


class Heap:
    """A heap in a folder, and what must be in it."""

    def __init__(self, folder, limits=SMALL):
        self.folder = folder
        self.beside = ThreadPoolExecutor(1)
        self.room = True
        self.free = 1 << 40  # bytes
        self.records = []
        self.live_bytes = 0
        self.writer = HeapWriter(
            self.make,
            limits,
            self.beside,
            live_bytes=lambda: self.live_bytes,
            has_free=lambda size: self.free >= size,
        )

    def make(self, number, size, spare):
        if not self.room or self.free < size + spare:
            raise MemoryFull("no room")
        self.free -= size
        return Segment.create(self.folder / f"heap-{number}", size)

    def append(self, body, slot=0, previous=0):
        address = self.writer.append(body, slot, previous)
        self.writer.flush()
        self.records.append((address, body, slot, previous))
        return address

    def reset(self, tail):
        self.writer.reset(tail)
        self.records = [record for record in self.records if record[0] < tail]

    def read(self, start=BEGINNING, end=None):
        """What a reader finds, who maps segments by their names."""
        mapped = {}

        def segment_of(number):
            if number not in mapped:
                mapped[number] = Segment.attach(self.folder / f"heap-{number}")
            return mapped[number]

        found = []
        for address, segment, offset in walk(segment_of, start, self.writer.tail if end is None else end):
            length, slot, previous = PREFIX.unpack_from(segment.map, offset)
            body = segment.map[offset + PREFIX_BYTES : offset + PREFIX_BYTES + length]
            assert (address >> 32, address & OFFSET_MASK) == (int(segment.path.name[5:]), offset)
            found.append((address, body, slot, previous))
        return found

    def settle(self):
        """Wait for what is made beside; the numbers of the segments that exist then."""
        self.beside.submit(int).result()
        return sorted(int(path.name[5:]) for path in self.folder.iterdir())

    def close(self):
        self.beside.shutdown()


@pytest.fixture
def heap(tmp_path):
    made = Heap(tmp_path)
    yield made
    made.close()


# --- against a list ---------------------------------------------------------------------------------------------------


class HeapMachine(RuleBasedStateMachine):
    """Appends and takes back at random, beside a list."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="heap-test-"))
        self.heap = Heap(self.folder)
        self.tails = [self.heap.writer.tail]
        self.published = 0

    @rule(
        sizes=st.lists(st.integers(0, 200) | st.sampled_from([1_000, 3_000, 4_000, 5_000, 20_000]), max_size=8),
        slot=st.integers(0, 2**32 - 1),
    )
    def append(self, sizes, slot):
        for size in sizes:
            mark = len(self.heap.records) % 256
            self.heap.append(bytes([mark]) * size, slot, self.heap.records[-1][0] if self.heap.records else 0)
            self.tails.append(self.heap.writer.tail)

    @rule()
    def publish(self):
        self.published = len(self.tails) - 1

    @precondition(lambda self: len(self.tails) > self.published + 1)
    @rule(data=st.data())
    def take_back(self, data):
        place = data.draw(st.integers(self.published, len(self.tails) - 1))
        self.heap.reset(self.tails[place])
        assert self.heap.writer.tail == self.tails[place]
        del self.tails[place + 1 :]

    @invariant()
    def everything_is_there_and_nothing_else(self):
        assert self.heap.read() == self.heap.records
        assert self.heap.read(self.tails[self.published]) == [
            record for record in self.heap.records if record[0] >= self.tails[self.published]
        ]

    @invariant()
    def no_segment_is_left_over(self):
        last = self.heap.writer.last
        assert self.heap.settle() in (list(range(1, last + 1)), list(range(1, last + 2)))

    def teardown(self):
        self.heap.close()
        shutil.rmtree(self.folder)


TestHeapAgainstAList = HeapMachine.TestCase
TestHeapAgainstAList.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


# --- appending --------------------------------------------------------------------------------------------------------


def test_an_empty_heap_has_no_records(heap):
    assert heap.writer.tail == BEGINNING
    assert heap.read() == []


def test_records_are_aligned_and_never_span_two_segments(heap):
    for size in itertools.islice(itertools.cycle([0, 1, 7, 8, 9, 900, 3_000]), 200):
        address = heap.append(b"x" * size)
        offset = address & OFFSET_MASK
        assert offset % 8 == 0
        assert offset >= START
        assert offset + padded(size) <= heap.writer.segments[address >> 32].size
    assert heap.writer.last > 3
    assert heap.read() == heap.records


@pytest.mark.parametrize("run", [1, 200, 64 * KIB])
def test_many_records_at_once_are_what_each_by_itself_would_be(tmp_path, monkeypatch, run):
    """Also where they begin other segments, or one is larger than any segment, or than what is copied at once."""
    monkeypatch.setattr(heaps, "HEAP_RUN_BYTES", run)
    (tmp_path / "one").mkdir()
    (tmp_path / "all").mkdir()
    one_by_one, at_once = Heap(tmp_path / "one"), Heap(tmp_path / "all")
    sizes = [*range(100, 140), 5_000, 20_000, 10, *range(900, 1_000)]
    bodies = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    for heap in (one_by_one, at_once):
        heap.append(b"before")
    expected = [one_by_one.append(body, slot) for slot, body in enumerate(bodies)]
    assert at_once.writer.append_all(bodies[:50], range(50)) == expected[:50]
    assert at_once.writer.append_all([], []) == []
    assert at_once.writer.append_all(bodies[50:], range(50, len(bodies))) == expected[50:]
    assert at_once.read() == one_by_one.read()
    assert at_once.writer.tail == one_by_one.writer.tail
    for heap in (one_by_one, at_once):
        heap.append(b"behind")
    assert at_once.read() == one_by_one.read()
    at_once.close()
    one_by_one.close()


def test_without_room_for_many_records_at_once_that_is_said(heap):
    heap.append(b"before")
    heap.settle()
    heap.room = False
    with pytest.raises(MemoryFull):
        heap.writer.append_all([bytes(1_000)] * 100, range(100))


def test_addresses_grow(heap):
    addresses = [heap.append(b"x" * 500) for _ in range(100)]
    assert addresses == sorted(set(addresses))
    assert heap.writer.tail > addresses[-1]


def test_a_record_that_fills_a_segment_to_its_last_byte(heap):
    room = heap.writer.segments[1].size - START - PREFIX_BYTES
    heap.append(b"a" * room)
    assert heap.writer.tail == address_of(1, heap.writer.segments[1].size)
    assert heap.append(b"b") == address_of(2, START)
    assert heap.read() == heap.records


@pytest.mark.parametrize("left", [0, 8, 16, 24])
def test_whatever_is_left_of_a_segment_readers_go_on_in_the_next(heap, left):
    heap.append(b"a" * (heap.writer.segments[1].size - START - PREFIX_BYTES - left))
    heap.append(b"b" * 100)
    heap.append(b"c")
    assert [record[0] >> 32 for record in heap.read()] == [1, 2, 2]
    assert heap.read() == heap.records


def test_a_record_larger_than_any_segment_gets_one_of_its_own(heap):
    heap.append(b"a")
    heap.append(b"b" * 100_000)
    heap.append(b"c")
    assert heap.read() == heap.records
    assert heap.writer.segments[2].size >= 100_000


def test_segments_grow_with_what_is_live_to_their_maximum(heap):
    while heap.writer.segments[heap.writer.last].size < 16 * KIB:
        heap.append(b"x" * 1_000)
        heap.live_bytes += 1_000
    sizes = [heap.writer.segments[number].size // KIB for number in range(1, heap.writer.last + 1)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (4, 16)
    before = heap.writer.last
    while heap.writer.last < before + 3:
        heap.append(b"x" * 1_000)
    assert heap.writer.segments[heap.writer.last].size == 16 * KIB


def test_readers_stop_where_they_are_told_to(heap):
    tails = [heap.writer.tail]
    for number in range(50):
        heap.append(b"%d" % number * 60)
        tails.append(heap.writer.tail)
    for place in range(0, 51, 7):
        assert heap.read(end=tails[place]) == heap.records[:place]
        assert heap.read(start=tails[place]) == heap.records[place:]


def test_what_lies_behind_the_tail_is_not_seen(heap):
    heap.append(b"a")
    tail = heap.writer.tail
    heap.append(b"b")
    heap.append(b"c" * 5_000)
    assert heap.read(end=tail) == heap.records[:1]


# --- taking back ------------------------------------------------------------------------------------------------------


def test_taking_back_over_several_segments_removes_them(heap):
    heap.append(b"a" * 2_500)
    tail = heap.writer.tail
    for _ in range(30):
        heap.append(b"b" * 1_500)
    assert heap.writer.last >= 4
    heap.reset(tail)
    assert heap.settle() in ([1], [1, 2])
    heap.append(b"c" * 1_000)
    for _ in range(30):
        heap.append(b"d" * 900)
    assert heap.read() == heap.records
    assert [record[1][:1] for record in heap.records[:2]] == [b"a", b"c"]


def test_what_was_written_before_and_taken_back_is_never_met_again(heap):
    for size in (3_000, 10, 2_000, 700, 0, 5_000):
        tail = heap.writer.tail
        for number in range(4):
            heap.append(bytes([number]) * size)
        heap.reset(tail)
        heap.append(b"kept" * (size // 8))
        assert heap.read() == heap.records


# --- no room ----------------------------------------------------------------------------------------------------------


def test_without_room_an_append_fails_and_what_was_there_stays(heap):
    heap.append(b"a" * 1_000)
    heap.room = False
    with pytest.raises(MemoryFull):
        for _ in range(100):
            heap.append(b"b" * 1_000)
    before = list(heap.records)
    tail = heap.writer.tail
    assert heap.read() == before
    for _ in range(3):
        with pytest.raises(MemoryFull):
            heap.append(b"c" * 5_000)
    assert heap.writer.tail == tail
    heap.append(b"d")
    heap.room = True
    heap.append(b"e" * 5_000)
    heap.append(b"f")
    assert heap.read() == heap.records
    assert [record[1][:1] for record in heap.records[len(before) :]] == [b"d", b"e", b"f"]


def test_room_that_was_missing_ahead_is_looked_for_again(heap):
    heap.room = False
    heap.append(b"a" * 3_000)
    heap.settle()
    heap.room = True
    heap.append(b"b" * 3_000)
    assert heap.read() == heap.records


def test_without_room_everything_can_still_be_taken_back(heap):
    tail = heap.writer.tail
    with pytest.raises(MemoryFull):
        for number in range(100):
            heap.room = number < 12
            heap.append(b"b" * 1_000)
    heap.reset(tail)
    assert heap.read() == []
    heap.room = True
    for _ in range(20):
        heap.append(b"c" * 1_000)
    assert heap.read() == heap.records


# --- memory that is short ---------------------------------------------------------------------------------------------


def fill(heap):
    """Append until that is refused."""
    with pytest.raises(MemoryFull):
        for _ in range(1_000):
            heap.append(b"a" * 500)


def test_as_much_as_a_segment_stays_free_for_what_makes_room(heap):
    heap.writer.takes_all = False
    heap.free = 20 * KIB
    fill(heap)
    assert 4 * KIB <= heap.free < 9 * KIB
    assert heap.writer.short
    tail = heap.writer.tail
    with pytest.raises(MemoryFull):
        heap.writer.reserve(500, 1)
    assert heap.writer.tail == tail
    heap.writer.reserve_last(500, 1)
    heap.append(b"tombstone")
    assert heap.read() == heap.records
    with pytest.raises(MemoryFull):
        heap.writer.reserve(5_000, 1)
    assert not heap.writer.takes_all


def test_what_is_left_of_the_last_segment_is_for_what_makes_room(heap):
    """Or there would be no room for the copies, and nothing would ever be given back."""
    heap.writer.takes_all = False
    heap.free = 20 * KIB
    fill(heap)
    heap.writer.reserve_last(500, 1)
    heap.append(b"t" * 500)
    assert heap.free < 4 * KIB
    number = heap.writer.last
    with pytest.raises(MemoryFull):
        heap.append(b"a" * 500)
    with pytest.raises(MemoryFull):
        heap.writer.reserve(500, 1)
    heap.writer.reserve_last(500, 1)
    heap.append(b"t" * 500)
    heap.writer.takes_all = True
    heap.append(b"copy")
    heap.writer.takes_all = False
    with pytest.raises(MemoryFull):
        heap.append(b"a" * 500)
    assert heap.writer.short
    heap.free = 5 * KIB
    heap.append(b"a" * 500)
    assert heap.writer.last == number
    assert heap.read() == heap.records


def test_a_last_segment_that_was_left_and_taken_back_is_still_the_last(heap):
    heap.writer.takes_all = False
    heap.free = 20 * KIB
    fill(heap)
    heap.writer.reserve_last(3_000, 1)
    heap.append(b"t" * 3_000)
    tail, left, heap.free = heap.writer.tail, heap.free, 7 * KIB
    heap.writer.reserve_last(6_000, 1)
    heap.append(b"t" * 6_000)
    heap.reset(tail)
    heap.free = left
    with pytest.raises(MemoryFull):
        heap.append(b"a" * 100)
    assert heap.read() == heap.records


def test_what_makes_room_takes_a_smaller_segment_where_a_large_one_does_not_fit(tmp_path):
    heap = Heap(tmp_path, Limits(heap_segment_bytes_first=4 * HEAP_LAST_BYTES))
    heap.writer.takes_all = False
    heap.free = HEAP_LAST_BYTES + 4 * KIB
    heap.append(b"a" * (4 * HEAP_LAST_BYTES - 1_000))
    heap.writer.reserve_last(1_000, 1)
    heap.append(b"tombstone")
    assert heap.free == 4 * KIB
    assert heap.read() == heap.records
    heap.close()


def test_a_segment_that_is_alone_is_followed_by_a_small_one(tmp_path):
    """Of it nothing can be copied, whatever of it is dead."""
    heap = Heap(tmp_path, Limits(heap_segment_bytes_first=4 * HEAP_LAST_BYTES))
    heap.writer.takes_all = False
    heap.free = 3 * HEAP_LAST_BYTES
    heap.append(b"a" * (4 * HEAP_LAST_BYTES - 1_000))
    heap.append(b"b" * (HEAP_LAST_BYTES - 1_000))
    with pytest.raises(MemoryFull):
        heap.append(b"c" * 1_000)
    assert (heap.writer.last, heap.free) == (2, 2 * HEAP_LAST_BYTES)
    assert heap.read() == heap.records
    heap.close()


def test_memory_is_short_no_longer_when_the_next_segment_was_found_room_for(heap):
    heap.writer.takes_all = False
    heap.free = 6 * KIB
    heap.append(b"a" * 3_000)
    heap.settle()
    heap.append(b"b")
    assert heap.writer.short
    heap.free = 100 * KIB
    heap.writer.look_again()
    heap.append(b"c")
    heap.settle()
    heap.append(b"d")
    assert not heap.writer.short
    assert heap.settle() == [1, 2]
    fill_up = heap.writer.last
    while heap.writer.last == fill_up:
        heap.append(b"e" * 500)
    assert heap.read() == heap.records


def test_the_prefix_is_the_one_that_is_written_down(heap):
    first = heap.append(b"body-one", 7, 0)
    second = heap.append(b"body-two!", 2**32 - 1, first)
    mapped = Segment.attach(heap.folder / "heap-1").map
    assert struct.unpack_from("<IIQ", mapped, first & OFFSET_MASK) == (8, 7, 0)
    assert struct.unpack_from("<IIQ", mapped, second & OFFSET_MASK) == (9, 2**32 - 1, first)
    assert second - first == PREFIX_BYTES + 8
    assert heap.writer.tail - second == PREFIX_BYTES + 16
    assert heap.writer.segments[1].size % mmap.PAGESIZE == 0
