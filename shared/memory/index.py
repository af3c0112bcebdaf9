"""The index of a kind: key -> slot, in shared memory.

256 words, each naming an open-addressing region (arena segment u32 << 32 | first entry u24 << 8 | log2 of its entries
u8; 0 = no keys yet). A region's entry is `crc32 of the key << 32 | slot + 1`; two keys with one crc are told apart by
the key in the record, so a reader is handed every slot that may be it. An insertion is one store. A region that would
be more than two thirds full, or soon will be, is refilled behind the arena's tail, without the keys that were forgotten
meanwhile, and its word replaced by one store; the old one stays as it is for whoever reads it. When most of the arena
is such old regions, the oldest segment's are refilled one by one, and a segment that no word names any more is
unlinked: a reader that comes too late for it reads the word again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final, Generic, Protocol, TypeVar

from zlib_ng.zlib_ng import crc32

from solewriter.shared.config import (
    INDEX_AHEAD,
    INDEX_AHEAD_LEAST,
    INDEX_ARENA_BYTES_FIRST,
    INDEX_ARENA_BYTES_MAX,
    INDEX_TIDY_ABOVE,
    INDEX_WORDS,
    SEGMENT_AHEAD,
)
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.successor import Successor

FIRST_LOG2: Final = 4  # entries of a region's first shape
_START: Final = INDEX_WORDS  # entries: the words come first in arena segment 0


def key_hash(key: bytes) -> int:
    return crc32(key)


def _region(word: int) -> tuple[int, int, int]:
    """Arena segment, first entry, mask."""
    return word >> 32, word >> 8 & 0xFFFFFF, (1 << (word & 0xFF)) - 1


class Words(Protocol):
    """Where a part of the arena lies: a segment, as a rule."""

    @property
    def words(self) -> memoryview[int]: ...


W = TypeVar("W", bound=Words)


class IndexWriter(Generic[W]):
    """Inserts keys. `reserve` before a commit makes sure that the insertions behind it cannot fail."""

    def __init__(
        self, make: Callable[[int, int], W], remove: Callable[[int], None], beside: Executor | None = None
    ) -> None:
        self._make = make  # (arena segment number, bytes) -> segment
        self._remove = remove  # (arena segment number)
        self._next = Successor(make, beside)
        self._arena: dict[int, W] = {}
        self._named: dict[int, int] = {}  # entries of the regions that words name, by arena segment
        self._newest = -1  # arena segment
        self._used = 0  # entries of it
        self._counts = [0] * INDEX_WORDS  # entries in each region, forgotten keys' included
        self._soon: set[int] = set()  # regions that will be refilled before long
        self._left: list[set[int]] = [set() for _ in range(INDEX_WORDS)]  # entries of forgotten keys
        self._grow(_START)
        self._used = _START
        self._words = self._arena[0].words

    @property
    def image(self) -> tuple[list[int], int, list[memoryview[int]]]:
        """(keys in each region, entries used of the last segment, the segments) of an index that only grew."""
        assert len(self._arena) == self._newest + 1, "no segment has left it"
        return self._counts, self._used, [segment.words for segment in self._arena.values()]

    def make_way(self) -> None:
        """Give up the first segment, which is empty: `restore` brings others in its place."""
        self._remove(0)

    def restore(self, counts: list[int], used: int, segments: Sequence[W]) -> None:
        """Such an image, in these segments."""
        self._arena = dict(enumerate(segments))
        self._newest, self._used, self._counts, self._words = len(segments) - 1, used, counts, self._arena[0].words
        self._named = dict.fromkeys(self._arena, 0)
        for word in self._words[:INDEX_WORDS]:
            if word:
                self._named[word >> 32] += 1 << (word & 0xFF)

    def reserve(self, hashes: list[int]) -> None:
        """Enlarge the regions that these insertions would overfill. Raises MemoryFull; nothing visible has changed
        then.
        """
        coming: dict[int, int] = {}
        for hashed in hashes:
            coming[hashed & 0xFF] = coming.get(hashed & 0xFF, 0) + 1
        for number, count in coming.items():
            self._make_room(number, count)

    def insert(self, hashed: int, slot: int) -> None:
        """Add a key that is not there yet, after `reserve`."""
        number, entry = hashed & 0xFF, hashed << 32 | slot + 1
        if entry in self._left[number]:  # forgotten, and now again in the slot that it had
            self._left[number].remove(entry)
            return
        segment, base, mask = _region(self._words[number])
        _put(self._arena[segment].words, base, mask, entry)
        self._counts[number] += 1

    def add_all(self, hashes: Iterable[int], slots: Iterable[int]) -> None:
        """Add many keys that are not there yet, making room on the way. Raises MemoryFull, a part of them added."""
        coming: dict[int, list[int]] = {}
        for hashed, slot in zip(hashes, slots, strict=True):
            coming.setdefault(hashed & 0xFF, []).append(hashed << 32 | slot + 1)
        for number, entries in coming.items():
            if left := self._left[number]:  # forgotten, and now again in the slots that they had
                again = left.intersection(entries)
                left -= again
                entries = [entry for entry in entries if entry not in again]
            self._make_room(number, len(entries))
            segment, base, mask = _region(self._words[number])
            _put_all(self._arena[segment].words[base : base + mask + 1], entries)
            self._counts[number] += len(entries)

    def leave(self, hashed: int, slot: int) -> None:
        """A key was forgotten: its entry goes when its region is refilled."""
        self._left[hashed & 0xFF].add(hashed << 32 | slot + 1)

    def tidy(self) -> None:
        """Refill one region: one that will be full soon, or one of the oldest segment, where most of the arena is named
        by no word any more. Raises MemoryFull; nothing visible has changed then.
        """
        if self._soon:
            self._refill(self._soon.pop(), 0)
            return
        entries = sum([len(segment.words) for segment in self._arena.values()])
        if len(self._arena) < 3 or entries <= INDEX_TIDY_ABOVE * sum(self._named.values()):
            return
        oldest = min(number for number in self._arena if number)  # segment 0 has the words: it stays
        for number in range(INDEX_WORDS):
            if self._words[number] and self._words[number] >> 32 == oldest:
                self._refill(number, 0)
                return
        self._unname(oldest, 0)  # its last region went while it was the newest

    def _make_room(self, number: int, count: int) -> None:
        """Make room for so many more keys in one region."""
        word, filled = self._words[number], self._counts[number] + count
        entries = 1 << (word & 0xFF)
        if not word or filled * 3 > 2 * entries:
            self._refill(number, count)
        elif entries >= INDEX_AHEAD_LEAST and filled > entries * INDEX_AHEAD:
            self._soon.add(number)

    def _refill(self, number: int, coming: int) -> None:
        """A region anew, with room for so many more keys, half full at most."""
        old, kept = self._words[number], []
        if old:
            segment, first, mask = _region(old)
            left = self._left[number]
            kept = [entry for entry in self._arena[segment].words[first : first + mask + 1] if entry not in left]
            kept = [entry for entry in kept if entry]
        log2 = max(FIRST_LOG2, (2 * (len(kept) + coming) - 1).bit_length())
        entries = 1 << log2
        if self._used + entries > len(self._arena[self._newest].words):
            self._grow(entries)
        base = self._used
        _put_all(self._arena[self._newest].words[base : base + entries], kept)
        self._used += entries
        self._words[number] = self._newest << 32 | base << 8 | log2
        self._counts[number] = len(kept)
        self._left[number].clear()
        self._soon.discard(number)
        self._named[self._newest] += entries
        if self._next.due and self._used > len(self._arena[self._newest].words) * SEGMENT_AHEAD:
            self._next.prepare(self._newest + 1, self._grown())
        if old:
            self._unname(segment, mask + 1)

    def _unname(self, segment: int, entries: int) -> None:
        """A region is old; with its last one, so is its segment."""
        self._named[segment] -= entries
        if not self._named[segment] and segment and segment != self._newest:
            del self._arena[segment], self._named[segment]
            self._remove(segment)

    def _grown(self) -> int:
        """Bytes of another arena segment: half of what the regions take now."""
        return max(INDEX_ARENA_BYTES_FIRST, min(sum(self._named.values()) * 8 // 2, INDEX_ARENA_BYTES_MAX))

    def _grow(self, entries: int) -> None:
        """Another arena segment, of so many entries or more."""
        made = self._next.take()
        if made is not None and len(made.words) < entries:
            self._remove(self._newest + 1)
            made = None
        if made is None:
            made = self._make(self._newest + 1, max(self._grown(), entries * 8))
        self._newest += 1
        self._arena[self._newest], self._named[self._newest] = made, 0
        self._used = 0


def _put(words: memoryview[int], base: int, mask: int, entry: int) -> None:
    """Store an entry in the first empty place of its region, from its own place on."""
    place = entry >> 40 & mask
    while words[base + place]:
        place = place + 1 & mask
    words[base + place] = entry


def _put_all(region: memoryview[int], entries: Iterable[int]) -> None:
    """As `_put`, of many entries, without a call for each."""
    mask = len(region) - 1
    for entry in entries:
        place = entry >> 40 & mask
        while region[place]:
            place = place + 1 & mask
        region[place] = entry


class IndexReader:
    """Finds the slots that a key may have; maps arena segments when first met."""

    def __init__(self, attach: Callable[[int], Segment]) -> None:
        self._attach = attach  # arena segment number -> segment
        self._arena: dict[int, memoryview[int]] = {0: attach(0).words}
        self._words = self._arena[0]

    def candidates(self, hashed: int) -> list[int]:
        """Every slot that a key with this hash may have. Raises FileNotFoundError if the index is gone."""
        found: list[int] = []
        word = self._words[hashed & 0xFF]
        if not word:
            return found
        words = self._arena.get(word >> 32)
        if words is None:
            word, words = self._map_region(hashed & 0xFF)
        base, mask = word >> 8 & 0xFFFFFF, (1 << (word & 0xFF)) - 1
        place = hashed >> 8 & mask
        while entry := words[base + place]:
            if entry >> 32 == hashed:
                found.append((entry & 0xFFFFFFFF) - 1)
            place = place + 1 & mask
        return found

    def _map_region(self, number: int) -> tuple[int, memoryview[int]]:
        """A region's word, and the segment that it names. Those that no word names any more are let go."""
        while True:
            word = self._words[number]
            try:
                words = self._arena.get(word >> 32) or self._attach(word >> 32).words
            except FileNotFoundError:
                if word == self._words[number]:
                    raise
                continue  # it was refilled elsewhere meanwhile
            named = {0, word >> 32, *(one >> 32 for one in self._words[:INDEX_WORDS])}
            self._arena = {**{old: kept for old, kept in self._arena.items() if old in named}, word >> 32: words}
            return word, words
