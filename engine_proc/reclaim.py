"""Reclaim: memory of records that were overtaken is given back, in bounded slices, without anybody waiting.

When too many of the heap's bytes are dead, the live records of its oldest segment are copied to the tail, same
body but for the flag, and their slots pointed there; then the segment leaves the root and its file is unlinked.
Tombstones are not copied: their keys are forgotten, and their slots used again. Who has a segment mapped keeps it:
snapshots stay whole. A descriptor stays here, too, so that a reader which is stopped, or holds a snapshot past its
maximum age, cannot hold memory for ever: then `readable_from` moves on first, and the segment's bytes are punched out.
Readers hold a shared flock on what they map, so what nobody maps any more is let go at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from solewriter.shared import record
from solewriter.shared.config import EXPIRY_GRACE_S, RECLAIM_ABOVE, Limits
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX, PREFIX_BYTES, START, HeapWriter, address_of, padded, walk
from solewriter.shared.memory.segment import Segment, is_mapped, punch
from solewriter.shared.record import Flags


class Moved(NamedTuple):
    """A live record at its new address."""

    kind: int
    slot: int
    address: int
    alive: bool  # False for a tombstone


class Dropped(NamedTuple):
    """A tombstone that was a slot's newest record, and was not copied."""

    kind: int
    slot: int
    key: bytes
    version: int
    revision: int


class Condemned(NamedTuple):
    """A segment that no root lists: it waits for those who still map it."""

    number: int
    fd: int
    size: int
    since: float  # CLOCK_MONOTONIC
    expired: float | None = None  # since when readers are told that it is not readable


class Reclaimer:
    """Counts what is dead, and moves what is live. `newest` tells the address of a slot's newest record."""

    def __init__(self, heap: HeapWriter, limits: Limits, newest: Callable[[int, int], int]) -> None:
        self._heap = heap
        self._newest = newest
        self._age_max_s = limits.snapshot_age_max_s
        self._used = 0  # bytes of all records in the heap
        self._live = 0  # of those that are their slots' newest, and no tombstones
        self._tombstones = 0  # of those that are tombstones
        self.keeps_tombstones = False  # moves them as well
        self._cursor = address_of(heap.first, START)
        self._moving = False
        self.looked = 0  # bytes of records, so far
        self._newest_revision = 0  # met in the segment that is being emptied
        self.condemned: list[Condemned] = []
        self.oldest = 0  # the oldest revision of which, and behind which, all records are in memory
        self.whole = 0  # the oldest revision of which all entities are

    def resume(self, revision: int, live: int, tombstones: int) -> None:
        """Count on from a checkpoint that was put back: nothing in it is dead, and nothing is older."""
        self._used, self._live, self._tombstones = live + tombstones, live, tombstones
        self.begin_behind(revision)

    def begin_behind(self, revision: int) -> None:
        """During recovery: of what was overtaken up to this revision, memory has nothing."""
        self.oldest, self.whole = revision + 1, revision

    # --- counting ----------------------------------------------------------------------------------------------------

    def installed(self, address: int, replaced: int) -> None:
        """A record becomes its slot's newest, in place of another one or of none (0). What a request overtakes itself
        is dead from the start, but its bytes were used.
        """
        self._used += self._count(address, 1)
        if replaced:
            self._count(replaced, -1)

    def add(self, live: int, tombstones: int) -> None:
        """During recovery: so many bytes of records that are their slots' newest."""
        self._used += live + tombstones
        self._live += live
        self._tombstones += tombstones

    def overtaken(self, address: int) -> None:
        """A record is about to be its slot's newest no more."""
        self._count(address, -1)

    def _count(self, address: int, sign: int) -> int:
        """A record becomes its slot's newest, or is it no more; its bytes."""
        size, alive = self._size(address)
        if alive:
            self._live += sign * size
        else:
            self._tombstones += sign * size
        return size

    def _size(self, address: int) -> tuple[int, bool]:
        """Bytes of a record, and whether it is no tombstone."""
        segment, place = self._heap.segments[address >> 32], address & 0xFFFFFFFF
        length: int = PREFIX.unpack_from(segment.map, place)[0]
        return padded(length), not record.deleted_at(segment.bytes, place + PREFIX_BYTES)

    @property
    def live(self) -> int:
        """Bytes of the records that are moved: their slots' newest."""
        return self._live + (self._tombstones if self.keeps_tombstones else 0)

    @property
    def due(self) -> bool:
        """Whether there is something to do: a segment is being emptied, or most of the heap is dead."""
        return self._moving or (self._used > RECLAIM_ABOVE * self.live and self._heap.first < self._heap.last)

    # --- moving ------------------------------------------------------------------------------------------------------

    def move(self, budget: int) -> tuple[list[Moved], list[Dropped]]:
        """Copy live records of the oldest segment behind the tail, until so many of its bytes were looked at. Their
        slots point to the copies, and those of dropped tombstones nowhere, before the next call.
        """
        self._moving = True
        moved: list[Moved] = []
        dropped: list[Dropped] = []
        end = address_of(self._heap.first + 1, START)
        stop = min(self._cursor + budget, end)
        for address, segment, place in walk(self._heap.segments.__getitem__, self._cursor, end):
            if address >= stop:
                return moved, dropped
            body = place + PREFIX_BYTES
            length, slot, previous = PREFIX.unpack_from(segment.map, place)
            kind = record.kind_at(segment.bytes, body)
            if self._newest(kind, slot) != address:
                pass
            elif (deleted := record.deleted_at(segment.bytes, body)) and not self.keeps_tombstones:
                dropped.append(self.drop(kind, slot))
            else:
                try:
                    self._heap.reserve(length)
                except MemoryFull:
                    return moved, dropped  # goes on from here when there is room
                copy = relocated(segment.map[body : body + length])
                moved.append(Moved(kind, slot, self._heap.append(copy, slot, previous), not deleted))
            self._used -= padded(length)
            self.looked += padded(length)
            if not record.flags_at(segment.bytes, body) & Flags.RELOCATED:
                self._newest_revision = max(self._newest_revision, record.revision_at(segment.bytes, body))
            self._cursor = address + padded(length)
        self._cursor = end
        return moved, dropped

    def drop(self, kind: int, slot: int) -> Dropped:
        """A slot's newest record, a tombstone, counts for nothing from now on."""
        address = self._newest(kind, slot)
        self._count(address, -1)
        buffer, body = self._heap.segments[address >> 32].bytes, (address & OFFSET_MASK) + PREFIX_BYTES
        version, revision = record.version_at(buffer, body), record.revision_at(buffer, body)
        return Dropped(kind, slot, record.key_at(buffer, body), version, revision)

    @property
    def emptied(self) -> bool:
        """Whether everything live left the oldest segment."""
        return self._cursor >= address_of(self._heap.first + 1, START)

    def condemn(self, revision: int) -> Segment:
        """The oldest segment leaves the heap: the next root, of this revision, does not list it, and then `bury` it."""
        segment = self._heap.segments.pop(self._heap.first)
        self._heap.first += 1
        self._moving = False
        self.oldest = max(self.oldest, self._newest_revision + 1)
        self.whole = revision
        return segment

    # --- giving back -------------------------------------------------------------------------------------------------

    def bury(self, segment: Segment) -> None:
        """Unlink a segment that no root lists any more; its bytes stay as long as somebody may read them."""
        fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        segment.path.unlink()
        number = int(segment.path.name.rpartition("-")[2])
        self.condemned.append(Condemned(number, fd, segment.size, time.monotonic()))

    def let_go(self, expire: Callable[[int], None]) -> None:
        """Give back what nobody maps any more, and what was held for too long: `expire` first tells all readers that
        segments below a number are not readable, and a moment later no look is under way any more.
        """
        now = time.monotonic()
        kept = []
        for one in self.condemned:
            if not is_mapped(one.fd):
                os.close(one.fd)
            elif now - one.since <= self._age_max_s:
                kept.append(one)
            elif one.expired is None:
                expire(one.number + 1)
                kept.append(one._replace(expired=now))
            elif now - one.expired < EXPIRY_GRACE_S:
                kept.append(one)
            else:
                punch(one.fd, one.size)
                os.close(one.fd)
        self.condemned = kept

    @property
    def held(self) -> int:
        """Bytes that only readers' older snapshots keep."""
        return sum(one.size for one in self.condemned)


def relocated(body: bytes) -> bytes:
    """The same body, flagged as a copy."""
    copy = bytearray(body)
    copy[record.FLAGS_OFFSET] |= Flags.RELOCATED
    copy[: record.CRC_BYTES] = crc32(copy[record.CRC_BYTES :]).to_bytes(record.CRC_BYTES, "little")
    return bytes(copy)
