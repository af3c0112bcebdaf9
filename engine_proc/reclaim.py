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
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from zlib_ng.zlib_ng import crc32

from solewriter.shared import record
from solewriter.shared.config import (
    EXPIRY_GRACE_S,
    HEAP_LAST_SHARE,
    RECLAIM_ABOVE,
    RECLAIM_LOOK,
    RECLAIM_LOOK_LEAST,
    RECLAIM_SHORT_ABOVE,
    RECLAIM_SHORT_LEAST,
    RECLAIM_SHORT_LOOK,
    RECLAIM_SPARE,
    Limits,
)
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.heap import END, OFFSET_MASK, PREFIX_BYTES, START, HeapWriter, address_of, padded
from solewriter.shared.memory.segment import Segment, is_mapped, open_segment, punch
from solewriter.shared.memory.table import TableWriter
from solewriter.shared.record import Flags

if TYPE_CHECKING:
    from solewriter.engine_proc.publisher import Installed


class Moved(NamedTuple):
    """A slot's newest record at its new address."""

    kind: int
    slot: int
    address: int


_LOOKED: Final = struct.Struct("<IIQ8xH3xB2xQ")
"""Of a record in the heap: length of its body, slot, the record before it; of the body: kind, flags, revision"""
_look: Final = _LOOKED.unpack_from


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


class Usage:
    """Bytes of the heap's records: how many are used, and how many of these live; the others are dead."""

    def __init__(self) -> None:
        self.used = 0  # by all records in the heap
        self._live = 0  # by those that are their slots' newest, and no tombstones
        self.tombstones = 0  # by those that are tombstones
        self.keeps_tombstones = False  # they are moved as well

    def count_installed(self, records: Iterable[Installed]) -> None:
        """Count records that become their slots' newest. What a request overtakes itself is dead from the start, but
        its bytes were used.
        """
        used = live = tombstones = 0
        for one in records:
            used += one.size
            if one.alive:
                live += one.size
            else:
                tombstones += one.size
            if one.overtaken_alive:
                live -= one.overtaken
            else:
                tombstones -= one.overtaken
        self.used += used
        self._live += live
        self.tombstones += tombstones

    def add(self, live: int, tombstones: int) -> None:
        """During recovery: count so many bytes of records that are their slots' newest."""
        self.used += live + tombstones
        self._live += live
        self.tombstones += tombstones

    def count_overtaken(self, size: int, alive: bool) -> None:
        """Count a record that is its slot's newest no more."""
        if alive:
            self._live -= size
        else:
            self.tombstones -= size

    def live(self) -> int:
        """Bytes of the records that reclaim would move: those that are their slots' newest."""
        return self._live + (self.tombstones if self.keeps_tombstones else 0)


class Reclaimer:
    """Moves what is live where most is dead. `tables`, of all kinds, tell a slot's newest record."""

    def __init__(self, heap: HeapWriter, usage: Usage, limits: Limits, tables: Sequence[TableWriter]) -> None:
        self._heap = heap
        self._usage = usage
        self._tables = tables
        self._age_max_s = limits.snapshot_age_max_s
        self._cursor = address_of(heap.first, START)
        self._moving = False
        self.looked = 0  # bytes of records, so far
        self._newest_revision = 0  # met in the segment that is being emptied
        self.condemned: list[Condemned] = []
        self.oldest = 0  # the oldest revision of which, and behind which, all records are in memory
        self.whole = 0  # the oldest revision of which all entities are

    def begin_behind(self, revision: int) -> None:
        """During recovery: memory has no records that were overtaken up to this revision."""
        self.oldest, self.whole = revision + 1, revision

    @contextmanager
    def keeping_tombstones(self) -> Iterator[None]:
        """During recovery tombstones are moved as well: the journal says which of them were forgotten, and when."""
        self._usage.keeps_tombstones = True
        try:
            yield
        finally:
            self._usage.keeps_tombstones = False

    # --- moving ------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether there is something to do: a segment is being emptied, or most of the heap is dead. Where memory is
        short a tenth of it is enough, but not while what was emptied last is held by readers: the copies need room.
        """
        heap, usage = self._heap, self._usage
        if self._moving or heap.first == heap.last:
            return self._moving
        used, live = usage.used, usage.live()
        if heap.short and not self.condemned:
            if heap.spent:
                return used > live + heap.spent // (2 * HEAP_LAST_SHARE)
            return used > RECLAIM_SHORT_ABOVE * live
        return used > RECLAIM_ABOVE * live + min(live, RECLAIM_SPARE)

    def move(self, budget: int) -> tuple[list[Moved], list[Dropped]]:
        """Copy live records of the oldest segment behind the tail, until so many of its bytes were looked at. Their
        slots point to the copies, and those of dropped tombstones nowhere, before the next call.
        """
        self._moving = True
        moved: list[Moved] = []
        dropped: list[Dropped] = []
        heap, tables, usage = self._heap, self._tables, self._usage
        took_all, heap.takes_all = heap.takes_all, True
        segment, number = heap.segments[heap.first], heap.first << 32
        first = place = self._cursor & OFFSET_MASK
        last, stop, newest_revision = segment.size - _LOOKED.size, place + budget, self._newest_revision
        while place < stop:
            length = END
            if place <= last:
                length, slot, previous, kind, flags, revision = _look(segment.map, place)
            if length == END:
                self._cursor = address_of(heap.first + 1, START)
                break
            size = padded(length)
            if tables[kind].head(slot) == number | place:
                if flags & Flags.DELETE and not usage.keeps_tombstones:
                    dropped.append(self.drop(kind, slot))
                    usage.used -= size
                else:
                    body = segment.map[place + PREFIX_BYTES : place + PREFIX_BYTES + length]
                    if not flags & Flags.RELOCATED:
                        body = relocated(body)
                    try:
                        moved.append(Moved(kind, slot, heap.append(body, slot, previous)))
                    except MemoryFull:
                        self._cursor = number | place  # goes on from here when there is room
                        break
            else:
                usage.used -= size
            if revision > newest_revision and not flags & Flags.RELOCATED:
                newest_revision = revision
            place += size
        else:
            self._cursor = number | place
        heap.takes_all = took_all
        self.looked += place - first
        self._newest_revision = newest_revision
        return moved, dropped

    def drop(self, kind: int, slot: int) -> Dropped:
        """A slot's newest record, a tombstone, counts for nothing from now on."""
        address = self._tables[kind].head(slot)
        buffer, body = self._heap.segments[address >> 32].bytes, (address & OFFSET_MASK) + PREFIX_BYTES
        self._usage.tombstones -= padded(record.length_at(buffer, body))
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
        fd = open_segment(segment.path, writable=True)  # its bytes may be taken away later: not those of anything else
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
    def held_bytes(self) -> int:
        """Bytes that only readers' older snapshots keep."""
        return sum(one.size for one in self.condemned)

    def budget(self, written: int) -> int:
        """Bytes to be looked at behind so many that were written: memory is given back as fast as it is used."""
        if self._heap.short:
            return RECLAIM_SHORT_LOOK * written + RECLAIM_SHORT_LEAST
        return RECLAIM_LOOK * written + RECLAIM_LOOK_LEAST


def relocated(body: bytes) -> bytes:
    """The same body, flagged as a copy."""
    copy = bytearray(body)
    copy[record.FLAGS_OFFSET] |= Flags.RELOCATED
    copy[: record.CRC_BYTES] = crc32(copy[record.CRC_BYTES :]).to_bytes(record.CRC_BYTES, "little")
    return bytes(copy)
