"""The heap: records one behind another in numbered segments, never changed once published.

A record lies at an address (segment number << 32 | offset) as a volatile prefix and a stable body:

    body length u32 | slot u32 | address of the same entity's previous record u64 | body ... | padding to 8

A record never spans two segments: END in place of a length says that the next one begins the next segment. Nothing
points at what lies behind the published tail, so a failed commit just moves the writer back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from solewriter.shared.config import (
    ALIGNMENT,
    HEAP_AHEAD,
    HEAP_LAST_BYTES,
    HEAP_LAST_SHARE,
    HEAP_RUN_BYTES,
    HEAP_SEGMENT_SHARE,
    Limits,
)
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.successor import Successor

PREFIX: Final = struct.Struct("<IIQ")
PREFIX_BYTES: Final = PREFIX.size
START: Final = 64  # offset of the first record in a segment
END: Final = 0xFFFFFFFF
OFFSET_MASK: Final = 0xFFFFFFFF
PADDING: Final = [bytes(count) for count in range(ALIGNMENT)]


def address_of(segment: int, offset: int) -> int:
    return segment << 32 | offset


def padded(body_length: int) -> int:
    """The bytes that a record takes in the heap: prefix, body, and what aligns the next one."""
    return (PREFIX_BYTES + body_length + ALIGNMENT - 1) & -ALIGNMENT


class HeapWriter:
    """Appends. `reserve` makes room, and is the only one to raise MemoryFull; what is there stays whole.

    Where memory is short, as much as a segment is spared for what makes room: tombstones, and copies of what lives,
    which may take all of it (`takes_all`). What they leave of the segment that they took is nobody else's until as much
    is free again. While there is but one segment nothing can be copied, and a small one is spared (`_spared_bytes`).
    """

    def __init__(
        self,
        make: Callable[[int, int, int], Segment],
        limits: Limits,
        beside: Executor,
        *,
        live_bytes: Callable[[], int],  # of all records that are their slots' newest
        has_free: Callable[[int], bool],  # so many bytes of memory
    ) -> None:
        self._make = make  # (segment number, bytes, those that have to stay free besides) -> segment
        self._next = Successor(self._make_sparing, beside)
        self.takes_all = True  # of the memory that there is: whoever starts does, too
        self.short = False  # of memory: there is no room for the next segment
        self._bytes_max = limits.heap_segment_bytes_max
        self._bytes_first = limits.heap_segment_bytes_first
        self._live_bytes = live_bytes
        self._has_free = has_free
        self.segments: dict[int, Segment] = {}
        self.first = 1
        self._number = 0
        self._offset = 0
        self._size = 0
        self._room = 0  # up to which everybody may append; less than the size where the segment is of what was spared
        self._map: Any = None
        self._parts: list[bytes] = []  # of the records behind `_copied`, which are not there yet
        self._copied = 0
        self._begin_segment(0)

    def make_way(self) -> None:
        """Give up the first segment, which is empty: `restore` brings others in its place."""
        self.segments.pop(self._number).path.unlink()

    def restore(self, segments: Sequence[tuple[Segment, int]]) -> None:
        """Segments, each with so many bytes of records, and room for a prefix behind them. Nothing goes into them any
        more.
        """
        for number, (segment, size) in enumerate(segments, 1):
            self.segments[number] = segment
            PREFIX.pack_into(segment.map, size, END, 0, 0)
            self._number, self._size, self._map = number, size + PREFIX_BYTES, segment.map
            self._room = self._size
            self._offset = self._copied = size

    @property
    def tail(self) -> int:
        return address_of(self._number, self._offset)

    @property
    def last(self) -> int:
        return self._number

    def reserve(self, bodies: int, records: int) -> None:
        """Room for so many records with so many bytes of bodies in all, in one segment. Raises MemoryFull."""
        needed = padded(bodies) if records == 1 else bodies + records * (PREFIX_BYTES + ALIGNMENT)
        if self._offset + needed > self._room:
            self._make_room(needed)

    def reserve_last(self, bodies: int, records: int) -> None:
        """As `reserve`, but if need be of what is spared for what makes room (see the class). Raises MemoryFull."""
        took_all, self.takes_all = self.takes_all, True
        try:
            self.reserve(bodies, records)
        finally:
            self.takes_all = took_all

    def append(self, body: bytes, slot: int, previous: int) -> int:
        """A record behind the tail; its address. It is there after `flush`. Raises MemoryFull if none was reserved."""
        offset, length = self._offset, len(body)
        end = offset + PREFIX_BYTES + length
        behind = (end + ALIGNMENT - 1) & -ALIGNMENT
        if behind > self._room:
            self._make_room(behind - offset)
            return self.append(body, slot, previous)
        self._offset = behind
        self._parts += (PREFIX.pack(length, slot, previous), body, PADDING[behind - end])
        return self._number << 32 | offset

    def flush(self) -> None:
        """Copy what was appended to its place, all by one copy; and have the next segment made in time."""
        self._copy()
        if self._offset > self._size * HEAP_AHEAD:
            if self._next.due:
                self._next.prepare(self._number + 1, self._grown())
            else:
                self.short = self._next.missed or self._room < self._size

    def look_again(self) -> None:
        """Memory was given back."""
        if self._next.missed:
            self._next.take()

    def _copy(self) -> None:
        self._map[self._copied : self._offset] = b"".join(self._parts)
        self._copied = self._offset
        self._parts.clear()

    def append_all(self, bodies: Sequence[bytes], slots: Sequence[int]) -> list[int]:
        """Copy many records behind the tail, making room on the way, as if each had been reserved and appended by
        itself, without a previous one; their addresses. For a start: raises MemoryFull, with a part of them there.
        """
        addresses: list[int] = []
        parts = self._parts
        pack, offset, base, limit = PREFIX.pack, self._offset, self._number << 32, 0
        for body, slot in zip(bodies, slots, strict=True):
            length = len(body)
            size = (PREFIX_BYTES + length + ALIGNMENT - 1) & -ALIGNMENT
            if offset + size > limit:
                self._offset = offset
                self.flush()
                if offset + size > self._size:
                    self._begin_segment(size)
                offset, base = self._offset, self._number << 32
                limit = min(self._size, offset + max(HEAP_RUN_BYTES, size))
            parts += (pack(length, slot, 0), body, PADDING[size - PREFIX_BYTES - length])
            addresses.append(base | offset)
            offset += size
        self._offset = offset
        self.flush()
        return addresses

    def reset(self, tail: int) -> None:
        """Move back to an earlier tail: what lies behind it was never published."""
        for number in range((tail >> 32) + 1, self._number + 1):
            self.segments.pop(number).path.unlink()
        if self._number != tail >> 32 and (made := self._next.take()) is not None:
            made.path.unlink()
        self._parts.clear()
        if self._number != tail >> 32:
            self._room = 0  # it is looked at again whether it is everybody's
        self._number = tail >> 32
        self._offset = self._copied = tail & OFFSET_MASK
        self._size = self.segments[self._number].size
        self._map = self.segments[self._number].map

    def _grown(self) -> int:
        return min(max(self._bytes_first, self._live_bytes() // HEAP_SEGMENT_SHARE), self._bytes_max)

    def _make_room(self, needed: int) -> None:
        """Beyond what is everybody's: in another segment, or of what was spared."""
        if self._offset + needed > self._size:
            self._begin_segment(needed)
        if self._offset + needed <= self._room:
            return
        if self.takes_all:
            self._room = self._offset + needed
        elif self._has_free(self._spared_bytes(self._grown())):
            self._room = self._size
        else:
            self.short = True
            raise MemoryFull(
                "what is left of the memory is for what makes room again: delete what is not needed, free space in "
                "memory_dir, or set another one (`solewriter serve --memory-dir`)"
            )

    def _begin_segment(self, needed: int) -> None:
        number = self._number + 1
        if self._parts:
            self._copy()
        made, is_spared = self._next.take(), False
        if made is not None and made.size < START + needed:
            made.path.unlink()
            made = None
        if made is None:
            made, is_spared = self._make_now(number, START + needed)
        if self._number and self._offset + PREFIX_BYTES <= self._size:
            PREFIX.pack_into(self.segments[self._number].map, self._offset, END, 0, 0)
        self.segments[number] = made
        self._number, self._size, self._map = number, made.size, made.map
        self._offset = self._copied = START
        self._room = 0 if is_spared else made.size

    def _make_now(self, number: int, least: int) -> tuple[Segment, bool]:
        """One that was not made ahead, the largest that fits, and whether it is of what was spared."""
        large = max(self._grown(), least)
        small = max(least, min(large, HEAP_LAST_BYTES))
        spared = self._spared_bytes(large)
        ways = [(large, spared), (small, spared)]
        if self.takes_all:
            ways += [(max(large, spared), 0), (large, 0), (small, 0)]
        self.short = False
        for size, spare in ways[:-1]:
            try:
                return self._make(number, size, spare), not spare
            except MemoryFull:
                self.short = True
        size, spare = ways[-1]
        return self._make(number, size, spare), not spare

    def _spared_bytes(self, large: int) -> int:
        """Bytes that stay free for what makes room: a segment for copies, and a share of it for tombstones; beside a
        segment that is alone, a small one.
        """
        return large + large // HEAP_LAST_SHARE if self.first < self._number else min(large, HEAP_LAST_BYTES)

    @property
    def spent(self) -> int:
        """The bytes of the segment that was spared, where it is in use by now; else 0."""
        return self._size if self._room < self._size else 0

    def _make_sparing(self, number: int, size: int) -> Segment:
        return self._make(number, size, self._spared_bytes(size))


def walk(segment_of: Callable[[int], Segment], start: int, end: int) -> Iterator[tuple[int, Segment, int]]:
    """(address, segment, offset of the prefix) of every record from address `start` up to address `end`."""
    number, offset = start >> 32, start & OFFSET_MASK
    while address_of(number, offset) < end:
        segment = segment_of(number)
        length = END
        if offset + PREFIX_BYTES <= segment.size:
            (length,) = struct.unpack_from("<I", segment.map, offset)
        if length == END:
            number, offset = number + 1, START
            continue
        yield address_of(number, offset), segment, offset
        offset += padded(length)
