"""The index of a kind: key -> slot, in shared memory.

256 words, each naming an open-addressing region (arena segment u16 << 48 | first entry u40 << 8 | log2 of its entries
u8; 0 = no keys yet). A region's entry is `crc32 of the key << 32 | slot + 1`; two keys with one crc are told apart by
the key in the record, so a reader is handed every slot that may be it. An insertion is one store. A region more than
two thirds full is refilled twice as large behind the arena's tail, and its word replaced by one store; the old one
stays as it is for whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from zlib import crc32

from solewriter.shared.config import INDEX_ARENA_BYTES_FIRST, INDEX_ARENA_BYTES_MAX, INDEX_WORDS
from solewriter.shared.memory.segment import Segment

FIRST_LOG2 = 4  # entries of a region's first shape
_START = INDEX_WORDS  # entries: the words come first in arena segment 0


def key_hash(key: bytes) -> int:
    return crc32(key)


def _region(word: int) -> tuple[int, int, int]:
    """Arena segment, first entry, mask."""
    return word >> 48, word >> 8 & 0xFFFFFFFFFF, (1 << (word & 0xFF)) - 1


class IndexWriter:
    """Inserts keys. `reserve` before a commit makes sure that the insertions behind it cannot fail."""

    def __init__(self, make: Callable[[int, int], Segment]) -> None:
        self._make = make  # (arena segment number, bytes) -> segment
        self._bytes_next = INDEX_ARENA_BYTES_FIRST
        self._arena: list[Segment] = []
        self._used = 0  # entries of the last arena segment
        self._counts = [0] * INDEX_WORDS
        self._grow(_START)
        self._used = _START
        self._words = self._arena[0].words

    def reserve(self, hashes: list[int]) -> None:
        """Enlarge the regions that these insertions would overfill. Raises MemoryFull; nothing visible has changed
        then.
        """
        coming: dict[int, int] = {}
        for hashed in hashes:
            coming[hashed & 0xFF] = coming.get(hashed & 0xFF, 0) + 1
        for number, count in coming.items():
            needed = self._counts[number] + count
            word = self._words[number]
            log2 = word & 0xFF or FIRST_LOG2
            while needed * 3 > 2 << log2:
                log2 += 1
            if not word or log2 != word & 0xFF:
                self._refill(number, log2)

    def insert(self, hashed: int, slot: int) -> None:
        """Add a key that is not there yet, after `reserve`."""
        segment, base, mask = _region(self._words[hashed & 0xFF])
        _put(self._arena[segment].words, base, mask, hashed << 32 | slot + 1)
        self._counts[hashed & 0xFF] += 1

    def _refill(self, number: int, log2: int) -> None:
        entries = 1 << log2
        if self._used + entries > len(self._arena[-1].words):
            self._grow(entries)
        words, base = self._arena[-1].words, self._used
        old = self._words[number]
        if old:
            segment, first, mask = _region(old)
            for entry in self._arena[segment].words[first : first + mask + 1]:
                if entry:
                    _put(words, base, entries - 1, entry)
        self._used += entries
        self._words[number] = (len(self._arena) - 1) << 48 | base << 8 | log2

    def _grow(self, entries: int) -> None:
        size = max(self._bytes_next, entries * 8)
        self._arena.append(self._make(len(self._arena), size))
        self._bytes_next = min(size * 2, INDEX_ARENA_BYTES_MAX)
        self._used = 0


def _put(words: memoryview[int], base: int, mask: int, entry: int) -> None:
    place = entry >> 40 & mask
    while words[base + place]:
        place = place + 1 & mask
    words[base + place] = entry


class IndexReader:
    """Finds the slots that a key may have; maps arena segments when first met."""

    def __init__(self, attach: Callable[[int], Segment]) -> None:
        self._attach = attach  # arena segment number -> segment
        self._arena: dict[int, memoryview[int]] = {0: attach(0).words}
        self._words = self._arena[0]

    def candidates(self, hashed: int) -> Iterator[int]:
        word = self._words[hashed & 0xFF]
        if not word:
            return
        segment, base, mask = _region(word)
        words = self._arena.get(segment)
        if words is None:
            words = self._arena[segment] = self._attach(segment).words
        place = hashed >> 8 & mask
        while entry := words[base + place]:
            if entry >> 32 == hashed:
                yield (entry & 0xFFFFFFFF) - 1
            place = place + 1 & mask
