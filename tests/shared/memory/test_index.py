"""The index finds every slot that a key may have, and no other, also while it is enlarged."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.index import IndexReader, IndexWriter, key_hash
from solewriter.shared.memory.segment import Segment


class Index:
    """An index in a folder, its writer and a reader, and what must be in it."""

    def __init__(self, folder, beside=None):
        self.folder = folder
        self.room = True
        self.made = []  # numbers, and whether here
        self.writer = IndexWriter(self.make, lambda number: (folder / f"index-{number}").unlink(), beside)
        self.reader = IndexReader(lambda number: Segment.attach(folder / f"index-{number}"))
        self.slots = {}
        self.count = 0

    def make(self, number, size):
        if not self.room:
            raise MemoryFull("no room")
        self.made.append((number, threading.current_thread() is threading.main_thread()))
        return Segment.create(self.folder / f"index-{number}", size)

    def insert(self, hashes):
        self.writer.reserve([*hashes])
        for hashed in hashes:
            self.writer.insert(hashed, self.count)
            self.slots.setdefault(hashed, []).append(self.count)
            self.count += 1

    def leave(self, hashed):
        """Forget the oldest key with this hash; its slot may be found until the region is refilled."""
        self.writer.leave(hashed, self.slots[hashed].pop(0))

    def check(self, hashes=None):
        for hashed in hashes or self.slots:
            assert sorted(self.reader.candidates(hashed)) == self.slots.get(hashed, [])

    def bytes(self):
        return sum(path.stat().st_size for path in self.folder.glob("index-*"))


@pytest.fixture
def index(tmp_path):
    return Index(tmp_path)


HASHES = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1, 256, 512, 0x01000000, 0xFF0000FF])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(HASHES, max_size=30), max_size=12), st.lists(HASHES, max_size=10))
def test_every_insertion_is_found_and_nothing_else(tmp_path_factory, batches, strangers):
    index = Index(tmp_path_factory.mktemp("index"))
    for batch in batches:
        index.insert(batch)
        index.check()
        index.check(strangers)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(HASHES, max_size=60), max_size=6), st.booleans())
def test_many_keys_at_once_are_where_each_by_itself_would_be(tmp_path_factory, batches, first):
    """Whatever was there before, and whatever comes afterwards."""
    one_by_one, at_once = (Index(tmp_path_factory.mktemp("index")) for _ in range(2))
    for number, batch in enumerate(batches, first):
        slots = range(one_by_one.count, one_by_one.count + len(batch))
        one_by_one.insert(batch)
        if number % 2:
            at_once.insert(batch)
        else:
            at_once.writer.add_all(batch, slots)
            at_once.count += len(batch)
        assert [bytes(part) for part in at_once.writer.image[2]] == [bytes(part) for part in one_by_one.writer.image[2]]
        assert at_once.writer.image[:2] == one_by_one.writer.image[:2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**24 - 1), max_size=60), st.integers(1, 60))
def test_a_region_in_which_everything_collides_is_found_too(tmp_path_factory, hashed, others, same):
    index = Index(tmp_path_factory.mktemp("index"))
    index.insert([hashed] * same + [other << 8 | hashed & 0xFF for other in others])
    index.check()
    assert list(index.reader.candidates(hashed))[:same] == list(range(same))


def test_ten_thousand_keys_are_found_while_the_index_grows(index):
    choose = random.Random(7)
    hashes = [choose.randrange(2**32) for _ in range(10_000)]
    for start in range(0, 10_000, 500):
        index.insert(hashes[start : start + 500])
        index.check(choose.sample(hashes, 50))
    index.check()
    assert len(list(index.folder.iterdir())) > 1


def test_real_keys_of_one_crc_are_two_slots(index):
    seen = {}
    for number in range(1_000_000):
        key = blake2b(number.to_bytes(4, "little"), digest_size=8).hexdigest().encode()
        if key_hash(key) in seen:
            break
        seen[key_hash(key)] = key
    other = seen[key_hash(key)]
    assert key != other
    index.insert([key_hash(other), key_hash(b"between"), key_hash(key)])
    assert list(index.reader.candidates(key_hash(key))) == [0, 2]
    assert list(index.reader.candidates(key_hash(b"between"))) == [1]


def test_an_empty_index_finds_nothing(index):
    index.check([0, 1, 255, 2**32 - 1])


def test_a_slot_may_be_as_large_as_32_bits_allow(index):
    index.writer.reserve([5, 5])
    index.writer.insert(5, 0)
    index.writer.insert(5, 2**32 - 2)
    assert list(index.reader.candidates(5)) == [0, 2**32 - 2]


def test_room_that_was_reserved_and_not_used_changes_nothing(index):
    index.insert([1, 2, 257])
    for _ in range(5):
        index.writer.reserve([1] * 300 + list(range(0, 25_600, 256)))
        index.check()
        index.check([3, 256, 512])
    index.insert([1] * 50)
    index.check()


def test_without_room_nothing_visible_changes_and_later_it_goes_on(index):
    index.insert(range(500))
    index.room = False
    with pytest.raises(MemoryFull):
        for _ in range(100):
            index.writer.reserve(list(range(100_000)))
    index.check()
    index.check([501, 70_000])
    index.room = True
    index.insert(range(100, 20_100))
    index.check(range(0, 20_100, 37))


def test_without_room_for_many_keys_at_once_nobody_finds_one_that_is_not_there(index):
    index.room = False
    with pytest.raises(MemoryFull):
        index.writer.add_all([number << 8 for number in range(10_000)], range(10_000))
    index.check([256])


def test_a_segment_is_made_beside_before_a_region_has_no_room(tmp_path):
    choose = random.Random(3)
    with ThreadPoolExecutor(1) as beside:
        index = Index(tmp_path, beside)
        for _ in range(500):
            index.insert([choose.randrange(2**32) for _ in range(20)])
            index.writer.tidy()
            beside.submit(int).result()
    assert len(index.made) > 3
    assert index.made == [(number, not number) for number in range(len(index.made))]
    index.check()


def test_a_region_larger_than_the_segment_made_beside_gets_one_of_its_own(tmp_path):
    choose = random.Random(3)
    with ThreadPoolExecutor(1) as beside:
        index = Index(tmp_path, beside)
        while len(index.made) < 2:
            index.insert([choose.randrange(2**32) for _ in range(20)])
            beside.submit(int).result()
        index.insert([number << 8 for number in range(5_000)])
    assert index.made[:3] == [(0, True), (1, False), (1, True)]
    index.check([number << 8 for number in range(0, 5_000, 37)])


def test_a_reader_maps_each_arena_once(index):
    asked = []

    def attach(number):
        asked.append(number)
        return Segment.attach(index.folder / f"index-{number}")

    reader = IndexReader(attach)
    index.insert(range(20_000))
    for hashed in range(0, 20_000, 7):
        assert list(reader.candidates(hashed)) == [hashed]
    assert len(asked) == len(set(asked)) > 1


def test_forgotten_keys_leave_with_the_next_refill_and_the_arena_stays_bounded(index):
    """Ten thousand keys at a time, two hundred thousand in all."""
    waiting, largest = [], 0
    choose = random.Random(5)
    for turn in range(400):
        hashes = [choose.randrange(2**32) for _ in range(500)]
        index.insert(hashes)
        index.writer.tidy()
        waiting += hashes
        if len(waiting) > 10_000:
            for hashed in waiting[:500]:
                index.leave(hashed)
            del waiting[:500]
        if turn > 100:
            largest = max(largest, index.bytes())
        if turn % 50 == 0:
            for hashed in waiting[::37]:
                assert index.slots[hashed][0] in index.reader.candidates(hashed)
    whole = 10_000 * 2 * 8 * 2  # entries at most half full after a refill, by powers of two
    assert largest < 5 * whole
    assert len(list(index.folder.iterdir())) < 20
    for hashed in waiting:
        assert set(index.slots[hashed]) <= set(index.reader.candidates(hashed))


def test_a_forgotten_key_that_comes_back_into_its_slot_is_there_once(index):
    index.insert([7, 7 + 256])
    index.writer.leave(7, 0)
    index.writer.reserve([7])
    index.writer.insert(7, 0)
    index.check()
    index.writer.reserve([256 * n + 7 for n in range(2, 100)])
    index.check()


def test_a_forgotten_key_that_comes_back_among_many_is_there_once_and_stays(index):
    """Also behind a refill, which leaves out what was forgotten."""
    index.insert([7, 263])
    index.leave(7)
    index.writer.add_all([519, 7], [2, 0])
    index.slots, index.count = {7: [0], 263: [1], 519: [2]}, 3
    index.check()
    index.insert([number << 8 | 7 for number in range(10, 100)])
    index.check()


def test_a_segment_whose_last_region_went_while_it_was_the_newest_goes_later(index):
    choose = random.Random(9)
    for _ in range(300):
        hashes = [choose.randrange(2**32) for _ in range(200)]
        index.insert(hashes)
        for hashed in hashes:
            index.leave(hashed)
        index.writer.tidy()
    assert len(list(index.folder.iterdir())) < 8


def test_whoever_comes_too_late_for_an_index_that_is_gone_is_told(index):
    """As where an engine went with all its memory: there is no other place to look again."""
    index.insert(range(40_000))
    index.reader.candidates(0)
    for path in index.folder.glob("index-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        index.check()


def test_regions_that_fill_evenly_are_not_refilled_by_one_turn(index):
    """As keys that are numbered: their hashes are spread more evenly than by chance."""
    words, largest = Segment.attach(index.folder / "index-0").words, 0
    for number in range(1_500):
        before = words[:16].tolist()
        index.insert([number << 8 | region for region in range(16)])
        index.writer.tidy()
        if number > 700:  # by now a region is large enough to be felt
            largest = max(largest, sum(old != new for old, new in zip(before, words[:16], strict=True)))
    assert largest == 1
    assert {word & 0xFF for word in words[:16]} == {12}
    index.check(range(0, 1_500 << 8, 3 << 8))


WRITING = """
import random, sys
from pathlib import Path
from solewriter.shared.memory.index import IndexWriter
from solewriter.shared.memory.segment import Segment
folder, choose = Path(sys.argv[1]), random.Random(11)
index = IndexWriter(
    lambda number, size: Segment.create(folder / f"index-{number}", size),
    lambda number: (folder / f"index-{number}").unlink(),
)
progress = Segment.create(folder / "progress", 8)
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 40_000, 50):
    hashes = [choose.randrange(2**32) for _ in range(50)]
    index.reserve(hashes)
    for slot, hashed in enumerate(hashes, start):
        index.insert(hashed, slot)
    index.tidy()
    progress.words[0] = start + 50
print("done")
"""


@pytest.fixture
def writing(tmp_path):
    """A process that waits for a word to write an index; killed after the test, if it still runs."""
    command = [sys.executable, "-P", "-c", WRITING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_what_was_there_stays_findable_while_another_process_enlarges_the_index(tmp_path, writing):
    choose = random.Random(11)
    hashes = [choose.randrange(2**32) for _ in range(40_000)]
    reader = IndexReader(lambda number: Segment.attach(tmp_path / f"index-{number}"))
    progress = Segment.attach(tmp_path / "progress").words
    writing.stdin.write("go\n")
    writing.stdin.flush()
    there, probe = 0, random.Random(3)
    while there < 40_000:
        there = progress[0]
        for slot in [probe.randrange(there) for _ in range(20)] if there else ():
            assert slot in reader.candidates(hashes[slot])
        assert writing.poll() in (None, 0)
    assert writing.communicate()[0] == "done\n"
