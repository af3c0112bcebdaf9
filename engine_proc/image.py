"""Memory as a checkpoint holds it, built in this process: heap segments, and of each kind its table and index."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from solewriter.shared.checkpoint import IndexImage, Section, TableImage
from solewriter.shared.columns import Cell, Column
from solewriter.shared.config import CHUNK_SLOTS
from solewriter.shared.memory.heap import PREFIX, START, address_of, padded
from solewriter.shared.memory.index import IndexWriter, key_hash

Add = Callable[[bytes | bytearray | memoryview], Section]
"""Takes a section's bytes, and says where they went"""


class HeapImage:
    """Segments, one at a time: each is handed on when it is full."""

    def __init__(self, add: Add, segment_bytes: int) -> None:
        self._add = add
        self._segment_bytes = segment_bytes
        self._sections: list[Section] = []
        self._segment = bytearray(START)

    def append(self, body: bytes, slot: int) -> int:
        """The address of one more record."""
        size = padded(len(body))
        if len(self._segment) + size > self._segment_bytes and len(self._segment) > START:
            self._hand_on()
        offset = len(self._segment)
        self._segment += PREFIX.pack(len(body), slot, 0)
        self._segment += body
        self._segment += bytes(offset + size - len(self._segment))
        return address_of(len(self._sections) + 1, offset)

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
        self._hashes: list[tuple[int, int]] = []
        self._anew: list[int] = []
        self._chunks = [self._chunk(min(CHUNK_SLOTS, places - start)) for start in range(0, places, CHUNK_SLOTS)]

    def _chunk(self, slots: int) -> list[array[Any]]:
        codes = ["Q", *(column.code for column in self._columns), "B"]
        return [array(code, bytes(array(code).itemsize * slots)) for code in codes]

    def put(self, slot: int, key: bytes, address: int, cells: Sequence[Cell] | None, alive: bool) -> None:
        """A slot's newest record. Cells None: whoever puts the image back has to make them."""
        self._keys[slot] = key.decode()
        self._hashes.append((key_hash(key), slot))
        chunk, place = self._chunks[slot // CHUNK_SLOTS], slot % CHUNK_SLOTS
        chunk[0][place] = address
        chunk[-1][place] = alive
        if cells is None:
            self._anew.append(slot)
        else:
            for number, cell in enumerate(cells, 1):
                chunk[number][place] = cell

    def finish(self, add: Add, alive: int) -> TableImage:
        keys = add(msgspec.msgpack.encode(self._keys))
        chunks = [[add(memoryview(part)) for part in chunk] for chunk in self._chunks]
        return TableImage(self._columns, self._places, alive, keys, chunks, self._index(add), self._anew)

    def _index(self, add: Add) -> IndexImage:
        index = IndexWriter(lambda number, size: Words(size), lambda number: None)
        index.reserve([hashed for hashed, _ in self._hashes])
        for hashed, slot in self._hashes:
            index.insert(hashed, slot)
        counts, used, segments = index.image
        return IndexImage(counts, used, [add(words) for words in segments])


class Words:
    """The words of an index that is in this process alone."""

    def __init__(self, size: int) -> None:
        self.words: memoryview[int] = memoryview(bytearray(size)).cast("Q")
