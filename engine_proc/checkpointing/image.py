"""Memory as a checkpoint holds it, built in this process: heap segments, and of each kind its table and index."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from solewriter.shared.config import ALIGNMENT, CHUNK_SLOTS
from solewriter.shared.journal.checkpoint import IndexImage, Section, TableImage
from solewriter.shared.kinds.columns import Column
from solewriter.shared.memory.heap import PADDING, PREFIX, PREFIX_BYTES, START, address_of
from solewriter.shared.memory.index import IndexWriter, key_hash
from solewriter.shared.memory.table import columns_of, places_of, store_all


class NoCells(enum.Enum):
    """Why a record brings no cells: it is a tombstone; or whoever puts the image back has to make them."""

    DEAD = enum.auto()
    UNKNOWN = enum.auto()


DEAD, UNKNOWN = NoCells.DEAD, NoCells.UNKNOWN
CellBlock = bytes | NoCells
"""The cells of a record as one block, or why there is none"""

Add = Callable[[bytes | bytearray | memoryview], Section]
"""Takes a section's bytes, and says where they went"""


class HeapImage:
    """Segments, one at a time: each is handed on when it is full."""

    def __init__(self, add: Add, segment_bytes: int) -> None:
        self._add = add
        self._segment_bytes = segment_bytes
        self._sections: list[Section] = []
        self._segment = bytearray(START)

    def append_all(self, bodies: Sequence[bytes], slots: Sequence[int]) -> list[int]:
        """The addresses of more records."""
        addresses, parts, pack = list[int](), list[bytes](), PREFIX.pack
        offset, base = len(self._segment), address_of(len(self._sections) + 1, 0)
        for body, slot in zip(bodies, slots, strict=True):
            length = len(body)
            size = (PREFIX_BYTES + length + ALIGNMENT - 1) & -ALIGNMENT
            if offset + size > self._segment_bytes and offset > START:
                self._segment += b"".join(parts)
                self._hand_on()
                parts, offset, base = [], START, address_of(len(self._sections) + 1, 0)
            parts += (pack(length, slot, 0), body, PADDING[size - PREFIX_BYTES - length])
            addresses.append(base | offset)
            offset += size
        self._segment += b"".join(parts)
        return addresses

    def _hand_on(self) -> None:
        self._sections.append(self._add(self._segment))
        self._segment = bytearray(START)

    def finish(self) -> list[Section]:
        self._hand_on()
        return self._sections


class KindImage:
    """The table and the index of one kind."""

    def __init__(self, columns: Sequence[Column], places: int) -> None:
        self._columns = tuple(columns)
        self._places = places
        self._keys: list[str | None] = [None] * places
        self._hashes: list[int] = []
        self._slots: list[int] = []
        self._anew: list[int] = []
        self._chunks = [self._chunk(min(CHUNK_SLOTS, places - start)) for start in range(0, places, CHUNK_SLOTS)]

    def _chunk(self, slots: int) -> list[memoryview[Any]]:
        codes = ["Q", *(column.code for column in self._columns), "B"]
        return [memoryview(array(code, bytes(array(code).itemsize * slots))) for code in codes]

    def put_all(
        self, slots: Sequence[int], keys: Sequence[bytes], addresses: Sequence[int], cells: Sequence[CellBlock]
    ) -> None:
        """The newest records of ascending slots of one chunk."""
        for slot, key in zip(slots, keys, strict=True):
            self._keys[slot] = key.decode()
        self._hashes += map(key_hash, keys)
        self._slots += slots
        chunk, places = places_of(slots)
        heads, *columns, alive = self._chunks[chunk]
        store_all(heads, places, array("Q", addresses))
        store_all(alive, places, bytes([one is not DEAD for one in cells]))
        blocks = {slot: one for slot, one in zip(slots, cells, strict=True) if isinstance(one, bytes)}
        self._anew += [slot for slot, one in zip(slots, cells, strict=True) if one is UNKNOWN]
        if blocks:
            _, places = places_of(list(blocks))
            for target, column in zip(columns, columns_of(self._columns, [*blocks.values()]), strict=True):
                store_all(target, places, column)

    def finish(self, add: Add, alive: int) -> TableImage:
        keys = add(msgspec.msgpack.encode(self._keys))
        chunks = [[add(part) for part in chunk] for chunk in self._chunks]
        return TableImage(self._columns, self._places, alive, keys, chunks, self._index(add), self._anew)

    def _index(self, add: Add) -> IndexImage:
        index = IndexWriter(lambda number, size: Words(size), lambda number: None)
        index.add_all(self._hashes, self._slots)
        counts, used, segments = index.image
        return IndexImage(counts, used, [add(words) for words in segments])


class Words:
    """The words of an index that is in this process alone."""

    def __init__(self, size: int) -> None:
        self.words: memoryview[int] = memoryview(bytearray(size)).cast("Q")
