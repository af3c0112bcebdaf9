"""The table of a kind: chunks of 65,536 slots that never move.

A slot is handed out again when its key was forgotten: deleted so long ago that no record says so any more.

A chunk is one segment: `head[slot]`, the address of the entity's newest record (u64), then one array for each
declared column, in order, of the column's width, then one byte for each slot: whether its entity is alive. Every cell
is stored by one aligned store; a slot's cells are only a hint that readers check against the heap behind their
snapshot's tail.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from solewriter.shared.config import CHUNK_SLOTS, SEGMENT_AHEAD
from solewriter.shared.kinds.columns import Cell, Cells, Column
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.successor import Successor

WIDTHS = {"B": 1, "q": 8, "d": 8, "Q": 8}
_SHIFT: Final = CHUNK_SLOTS.bit_length() - 1
_MASK: Final = CHUNK_SLOTS - 1


def offsets(columns: Sequence[Column]) -> list[int]:
    """Where each column begins in a chunk, then where the alive bytes begin, then the chunk's size."""
    places = [CHUNK_SLOTS * 8]
    for column in columns:
        places.append(places[-1] + CHUNK_SLOTS * WIDTHS[column.code])
    return [*places, places[-1] + CHUNK_SLOTS]


def views(segment: Segment, columns: Sequence[Column]) -> list[Any]:
    """The columns of a chunk as typed memory views; the alive bytes are the last."""
    places = offsets(columns)
    whole: Any = memoryview(segment.map)
    codes = [*(column.code for column in columns), "B"]
    return [whole[start:end].cast(code) for code, start, end in zip(codes, places[:-1], places[1:], strict=True)]


class TableWriter:
    """Hands out slots in order and installs heads and cells."""

    def __init__(
        self,
        generation: int,
        columns: Sequence[Column],
        make: Callable[[int, int], Segment],
        beside: Executor | None = None,
    ) -> None:
        self.generation = generation  # tables of one kind follow each other when its columns change
        self.columns = tuple(columns)
        self._make = make  # (chunk number, bytes) -> segment
        self._next = Successor(make, beside)
        self._heads: list[memoryview[int]] = []
        self._cells: list[list[Any]] = []
        self._size = offsets(columns)[-1]

    def reserve(self, slots: int) -> None:
        """Make room for slots below `slots`. Raises MemoryFull."""
        while len(self._heads) * CHUNK_SLOTS < slots:
            self._add(self._next.take() or self._make(len(self._heads), self._size))
        if slots & _MASK > CHUNK_SLOTS * SEGMENT_AHEAD:
            self._next.prepare(len(self._heads), self._size)

    def end(self) -> None:
        """No chunk is made any more: those that are there may be removed."""
        self._next.take()

    def restore(self, chunks: Sequence[Segment]) -> None:
        """Chunks as they were, in place of none."""
        for chunk in chunks:
            self._add(chunk)

    def _add(self, chunk: Segment) -> None:
        self._cells.append(views(chunk, self.columns))
        self._heads.append(chunk.words)

    def install(self, slot: int, address: int, cells: Cells, alive: bool) -> None:
        """Point the slot at its newest record and store the cells that are new."""
        chunk, place = slot >> _SHIFT, slot & _MASK
        self._heads[chunk][place] = address
        arrays = self._cells[chunk]
        arrays[-1][place] = alive
        for column, cell in cells:
            arrays[column][place] = cell

    def point(self, slot: int, address: int) -> None:
        """Point the slot at a copy of its newest record."""
        self._heads[slot >> _SHIFT][slot & _MASK] = address

    def point_all(self, slots: Sequence[int], addresses: Sequence[int], alive: Sequence[bool]) -> None:
        """Point slots at their newest records: ascending ones of one chunk, which nobody reads yet."""
        chunk, places = places_of(slots)
        store_all(self._heads[chunk], places, array("Q", addresses))
        store_all(self._cells[chunk][-1], places, bytes(alive))

    def fill_all(self, slots: Sequence[int], blocks: Sequence[bytes]) -> None:
        """Store all cells of such slots, from blocks that have them in the columns' order."""
        if slots:
            chunk, places = places_of(slots)
            for target, cells in zip(self._cells[chunk][:-1], columns_of(self.columns, blocks), strict=True):
                store_all(target, places, cells)

    def vacate(self, slot: int) -> None:
        """The slot's key was forgotten: there is no record any more."""
        self._heads[slot >> _SHIFT][slot & _MASK] = 0

    def head(self, slot: int) -> int:
        return self._heads[slot >> _SHIFT][slot & _MASK]


# --- many at once ----------------------------------------------------------------------------------------------------


def places_of(slots: Sequence[int]) -> tuple[int, slice | list[int]]:
    """Chunk and places of ascending slots of one chunk: a slice where none is left out."""
    chunk, first = slots[0] >> _SHIFT, slots[0] & _MASK
    if slots[-1] - slots[0] == len(slots) - 1:
        return chunk, slice(first, first + len(slots))
    return chunk, [slot & _MASK for slot in slots]


def columns_of(columns: Sequence[Column], blocks: Sequence[bytes]) -> Iterator[Any]:
    """Each column's cells, of blocks that have one of each: cut by strides, which is quicker than block by block."""
    joined, start, width = b"".join(blocks), 0, sum([WIDTHS[column.code] for column in columns])
    for column in columns:
        size = WIDTHS[column.code]
        cells = bytearray(size * len(blocks))
        for byte in range(size):
            cells[byte::size] = joined[start + byte :: width]
        whole: Any = memoryview(cells)
        yield whole.cast(column.code)
        start += size


def store_all(target: Any, places: slice | list[int], cells: Any) -> None:
    """Cells of the target's own type, each in its place."""
    if isinstance(places, slice):
        target[places] = cells
    else:
        for place, cell in zip(places, cells, strict=True):
            target[place] = cell


class TableReader:
    """Loads heads and cells; maps chunks when first asked for."""

    def __init__(self, columns: Sequence[Column], attach: Callable[[int], Segment]) -> None:
        self.columns = tuple(columns)
        self._attach = attach  # chunk number -> segment
        self._heads: dict[int, memoryview[int]] = {}
        self._cells: dict[int, list[Any]] = {}

    def head(self, slot: int) -> int:
        try:
            return self._heads[slot >> _SHIFT][slot & _MASK]
        except KeyError:
            self._map(slot >> _SHIFT)
            return self.head(slot)

    def heads(self, slots: range) -> list[int]:
        """The heads of slots of one chunk, in their order."""
        chunk, first = slots[0] >> _SHIFT, slots[0] & _MASK
        if chunk not in self._heads:
            self._map(chunk)
        return self._heads[chunk][first : first + len(slots)].tolist()

    def place(self, slot: int) -> tuple[memoryview[int], int]:
        """Where the head of a slot of a mapped chunk lies: for whoever looks at it again and again."""
        return self._heads[slot >> _SHIFT], slot & _MASK

    def cell(self, slot: int, column: int) -> Cell:
        if slot >> _SHIFT not in self._cells:
            self._map(slot >> _SHIFT)
        value: Cell = self._cells[slot >> _SHIFT][column][slot & _MASK]
        return value

    def chunk(self, number: int) -> list[Any]:
        """The columns of one chunk as memory views; the alive bytes are the last. Raises FileNotFoundError."""
        if number not in self._cells:
            self._map(number)
        return self._cells[number]

    def _map(self, chunk: int) -> None:
        segment = self._attach(chunk)
        self._cells[chunk] = views(segment, self.columns)
        self._heads[chunk] = segment.words
