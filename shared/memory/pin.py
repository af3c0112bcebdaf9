"""A pin: one revision of one epoch's memory, held. Get by key, iterate a kind, look back. No lock, no message, no wait.

A pin is a copy of the current root and the heap segments it lists. The version of an entity visible at revision S is
found from its slot's head by following `previous` while a record is younger than S; it always lies inside the root's
own range. Where the way there is gone - the engine's tables, segments that were never mapped, a key that was forgotten
after S - the pin walks its own segments once, and answers from that.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from solewriter.shared import record
from solewriter.shared.errors import JournalCorrupt, SnapshotExpired
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX, PREFIX_BYTES, START, address_of, walk
from solewriter.shared.memory.index import key_hash
from solewriter.shared.memory.root import FORGOTTEN, READABLE, Root
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.table import TableReader

if TYPE_CHECKING:
    from solewriter.shared.memory.view import View

LOADS_IN_ORDER = platform.machine() in ("x86_64", "AMD64")
_NOWHERE = (0, -1)
_NEAR = range(32)  # records of one entity that are looked at each time
_NONE: frozenset[int] = frozenset()
_REVISION = (PREFIX_BYTES + record.REVISION_OFFSET) // 8  # words from a record's prefix; all records are aligned
_PREVIOUS = 1
_LENGTH_MASK = 0xFFFFFFFF  # of a prefix's first word: the length lies in its lower half
_KEY = PREFIX_BYTES + record.HEADER_BYTES
_KEY_LENGTH = PREFIX_BYTES + record.KEY_LENGTH_OFFSET


class Tables:
    """What all pins under one catalog share: the kinds, their tables, and `found`, in which their reader remembers what
    it found where.
    """

    __slots__ = ("by_kind", "catalog", "found")

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.by_kind: dict[int, TableReader] = {}
        # By kind, then id: where the head of its slot lies (words, place), the record's address that was there, its
        # revision, and the entity. As long as the address is there, the entity is the newest one.
        self.found: dict[Any, dict[str, tuple[memoryview[int], int, int, int, Any]]] = {}


class Pin:
    """One revision, held: an immutable root and the mappings of its records, which live as long as the pin does."""

    __slots__ = (
        "_changed",
        "_far",
        "_live",
        "_own",
        "_tables",
        "_tail",
        "_walked_to",
        "aside",
        "catalog",
        "found",
        "heap",
        "root",
        "view",
    )

    def __init__(self, view: View, root: Root, heap: dict[int, Segment], tables: Tables) -> None:
        self.view = view
        self.root = root
        self.heap = heap
        self.catalog = tables.catalog
        self.found = tables.found
        self._tables = tables
        self._live = view.root.words
        self._tail = root.tail  # of the records that are mapped
        self._own: tuple[dict[tuple[int, int], int], dict[tuple[int, bytes], int]] | None = None
        self._far: dict[int, int] = {}  # see `_visible_far`
        self._changed: dict[int, set[int]] = {}
        self._walked_to = root.tail
        self.aside: dict[Any, Any] = {}  # what its reader's scans looked up singly

    def slots(self, kind: int) -> int:
        """Slots of a kind that this revision knows."""
        kinds = self.root.kinds
        return kinds[kind][0] if kind < len(kinds) else 0

    def find(self, kind: int, key: str) -> int:
        """Address of the record of a key at this revision; 0 if it had none. A tombstone is a record."""
        return self.place(kind, key)[0]

    def place(self, kind: int, key: str) -> tuple[int, int]:
        """As `find`, and the slot of the key; (0, -1) if there was none, (address, -1) where its slot is not known."""
        slots = self.slots(kind)
        if not slots:
            return _NOWHERE
        wanted = key.encode("utf-8", "surrogatepass")
        if self._own is not None:
            return self._own_addresses()[1].get((kind, wanted), 0), -1
        try:
            head = self.live_table(kind).head
            for slot in self.view.index(kind).candidates(key_hash(wanted)):
                if slot < slots and (address := self._visible(head(slot))) and self._is_of(address, wanted):
                    return address, slot
        except FileNotFoundError:
            pass
        else:
            if not self.outdated:
                return _NOWHERE
        return self._own_addresses()[1].get((kind, wanted), 0), -1

    def find_again(self, words: memoryview[int], place: int, key: str) -> int:
        """Address of the record of a key whose slot's head was found in this place before; 0 where it has to be looked
        for: the slot may be another key's by now.
        """
        if self._own is not None:
            return 0
        try:
            address = self._visible(words[place])
            return address if address and self._is_of(address, key.encode("utf-8", "surrogatepass")) else 0
        except FileNotFoundError:  # a younger segment that was never mapped, and is gone
            return 0

    def _is_of(self, address: int, key: bytes) -> bool:
        mapped, place, length = self.segment(address >> 32).map, address & OFFSET_MASK, len(key)
        same: bool = mapped[place + _KEY_LENGTH] == length and mapped[place + _KEY : place + _KEY + length] == key
        if address >> 32 < self._live[READABLE]:
            raise _snapshot_expired()
        return same

    def at(self, kind: int, slot: int) -> int:
        """Address of a slot's record at this revision; 0 if there was none yet."""
        if self._own is not None:
            return self._own_addresses()[0].get((kind, slot), 0)
        try:
            address = self._visible(self.live_table(kind).head(slot))
        except FileNotFoundError:
            address = 0
        else:
            if not address and not self.outdated:
                return 0
        return address or self._own_addresses()[0].get((kind, slot), 0)

    def at_all(self, kind: int, slots: range) -> list[int]:
        """As `at`, of many slots of one chunk, in their order."""
        if self._own is None:
            try:
                found = list(map(self._visible, self.live_table(kind).heads(slots)))
            except FileNotFoundError:
                pass
            else:
                if all(found) or not self.outdated:
                    return found
        return [self.at(kind, slot) for slot in slots]

    @property
    def outdated(self) -> bool:
        """Whether keys were forgotten that this revision may still have had: where nothing is found now, there may
        have been something. To be asked after the look.
        """
        return self._live[FORGOTTEN] > self.root.revision

    def table(self, kind: int) -> TableReader:
        """The live columns of a kind. Raises FileNotFoundError where they may lack what this revision had."""
        if self.outdated:
            raise FileNotFoundError
        return self.live_table(kind)

    def live_table(self, kind: int) -> TableReader:
        """The heads and columns of a kind, whatever revision they are of. Raises FileNotFoundError."""
        try:
            return self._tables.by_kind[kind]
        except KeyError:
            found = self._tables.by_kind[kind] = self.view.table(kind, self.catalog)
            return found

    def earlier(self, revision: int) -> Pin:
        """An earlier revision, in the same memory, which must hold it whole (`root.whole`)."""
        begin = self.view.begin_of(revision, self.root)
        tail, touched = 0, set()
        for address, segment, place in self.walk(begin, self._tail):
            body = place + PREFIX_BYTES
            if record.revision_at(segment.bytes, body) > revision:
                tail = tail or address
                touched.add((record.kind_at(segment.bytes, body), PREFIX.unpack_from(segment.map, place)[1]))
        earlier = Pin(
            self.view, self.root._replace(revision=revision, tail=tail or self._tail), self.heap, self._tables
        )
        earlier._tail = self._tail
        alive = [alive for _, alive in self.root.kinds]
        for kind, slot in touched:
            alive[kind] += earlier._is_alive(kind, slot) - self._is_alive(kind, slot)
        kinds = tuple((slots, count) for (slots, _), count in zip(self.root.kinds, alive, strict=True))
        earlier.root = earlier.root._replace(kinds=kinds)
        return earlier

    def _is_alive(self, kind: int, slot: int) -> bool:
        address = self.at(kind, slot)
        return address != 0 and not self.content(address).deleted

    def _visible(self, address: int) -> int:
        """The newest record of this revision, from a newer one back; 0 if there was none yet."""
        revision, live = self.root.revision, self._live
        for _ in _NEAR:
            if not address:
                return 0
            words, place = self.segment(address >> 32).words, (address & OFFSET_MASK) >> 3
            found, before = words[place + _REVISION], words[place + _PREVIOUS]
            if address >> 32 < live[READABLE]:  # after the look: bytes that were taken away read as revision 0
                raise _snapshot_expired()
            if found <= revision:
                return address
            address = before
        return self._visible_far(address)

    def _visible_far(self, begun: int) -> int:
        """As `_visible`, of an entity that was changed often since. Where such a look ended is remembered: the next
        one, from a newer record, comes by where this one began.
        """
        revision, live, known = self.root.revision, self._live, self._far
        address, steps, visible = begun, 0, None
        while address and (visible := known.get(address)) is None:
            words, place = self.segment(address >> 32).words, (address & OFFSET_MASK) >> 3
            found, before = words[place + _REVISION], words[place + _PREVIOUS]
            if address >> 32 < live[READABLE]:
                raise _snapshot_expired()
            if found <= revision:
                break
            address, steps = before, steps + 1
        if visible is None:
            visible = address
        if steps >= len(_NEAR):  # fewer are soon walked
            known.pop(address, None)
            known[begun] = visible
        return visible

    def previous(self, address: int) -> int:
        """Address of the same entity's record before this one; 0 if it was the first."""
        before: int = PREFIX.unpack_from(self.segment(address >> 32).map, address & OFFSET_MASK)[2]
        self._check_readable(address)
        return before

    def addresses(self, kind: int) -> Iterator[int]:
        """Every record of a kind at this revision, tombstones included, in the order of the slots."""
        for slot in range(self.slots(kind)):
            if address := self.at(kind, slot):
                yield address

    def changed_slots(self, kind: int) -> AbstractSet[int]:
        """Slots of a kind whose head and cells may be newer than this revision, or were while they were read before
        this call: those of all records behind this revision's tail. Each call goes on where the last one ended. Raises
        FileNotFoundError where such records are gone.
        """
        missed = True
        while missed:  # what was moved out of a missing segment lies behind a tail that is read after it was missed
            missed, end = False, self.view.root.live_tail
            for number in range(self._walked_to >> 32, (end >> 32) + 1):
                begin = max(self._walked_to, address_of(number, START))
                found = self._slots_in(number, begin, min(end, address_of(number + 1, START)))
                if found is None and number >= self.view.root.current().first_segment:
                    raise FileNotFoundError  # it was not reclaimed: it went with its engine
                missed = missed or found is None
                for code, slot in found or ():
                    self._changed.setdefault(code, set()).add(slot)
            self._walked_to = max(self._walked_to, end)
        return self._changed.get(kind, _NONE)

    def _slots_in(self, number: int, begin: int, end: int) -> list[tuple[int, int]] | None:
        """Kind and slot of the records in a part of one segment; None if it was reclaimed: what was newest in it was
        written again behind it, and is met there.
        """
        try:
            found = [
                (record.kind_at(segment.bytes, place + PREFIX_BYTES), PREFIX.unpack_from(segment.map, place)[1])
                for _, segment, place in walk(self.segment, begin, end)
            ]
        except (FileNotFoundError, SnapshotExpired, IndexError, struct.error):
            return None
        return found if number >= self.view.root.readable_from else None

    def key_at(self, address: int) -> str:
        """The key of the record at an address."""
        return self.content(address).key

    def walk(self, begin: int, end: int) -> Iterator[tuple[int, Segment, int]]:
        """(address, segment, offset of the prefix) of every record from one address to another. Raises SnapshotExpired,
        perhaps only behind the last one, where some of it was taken away meanwhile.
        """
        yield from walk(self.segment, begin, end)
        self._check_readable(begin)

    def slot_at(self, address: int) -> int:
        """The slot of the record at an address."""
        slot: int = PREFIX.unpack_from(self.segment(address >> 32).map, address & OFFSET_MASK)[1]
        self._check_readable(address)
        return slot

    def whole(self, address: int) -> record.Record:
        """All of the record at an address, its checksum verified. Raises SnapshotExpired as `content` does."""
        try:
            found = record.unpack(self.segment(address >> 32).bytes, (address & OFFSET_MASK) + PREFIX_BYTES)
        except JournalCorrupt:
            self._check_readable(address)
            raise
        self._check_readable(address)
        return found

    def _check_readable(self, address: int) -> None:
        if address >> 32 < self._live[READABLE]:
            raise _snapshot_expired()

    def _own_addresses(self) -> tuple[dict[tuple[int, int], int], dict[tuple[int, bytes], int]]:
        """This revision by its own records alone: (kind, slot) -> address and (kind, key) -> address. For a snapshot
        that outlived its engine, whose tables, indexes or younger segments went before they were mapped.
        """
        if self._own is None:
            begin = address_of(self.root.first_segment, START)
            try:
                own = self._walked_from(begin)
            except (IndexError, struct.error):
                self._check_readable(begin)
                raise
            self._check_readable(begin)  # after the look, as always
            self._own = own
        return self._own

    def _walked_from(self, begin: int) -> tuple[dict[tuple[int, int], int], dict[tuple[int, bytes], int]]:
        by_slot: dict[tuple[int, int], int] = {}
        by_key: dict[tuple[int, bytes], int] = {}
        for address, segment, place in walk(self.segment, begin, self._tail):
            body = place + PREFIX_BYTES
            if record.revision_at(segment.bytes, body) > self.root.revision:
                continue
            kind = record.kind_at(segment.bytes, body)
            by_slot[kind, PREFIX.unpack_from(segment.map, place)[1]] = address
            by_key[kind, record.key_at(segment.bytes, body)] = address
        return by_slot, by_key

    def body(self, address: int) -> bytes:
        """The body of the record at an address, its checksum verified. Raises SnapshotExpired as `content` does."""
        segment, place = self.segment(address >> 32), address & OFFSET_MASK
        start = place + PREFIX_BYTES
        body = segment.map[start : start + (segment.words[place >> 3] & _LENGTH_MASK)]
        if not record.is_whole(body):
            self.content(address)  # says why: it was taken away, or is damaged
        return body

    def read(self, address: int) -> record.Content:
        """The record at an address. Where loads come in their order nothing stale can be seen, and its checksum is not
        looked at. Raises SnapshotExpired if its memory was given back.
        """
        if not LOADS_IN_ORDER:
            return self.content(address)
        found = record.content_at(self.segment(address >> 32).bytes, (address & OFFSET_MASK) + PREFIX_BYTES)
        if address >> 32 < self._live[READABLE]:
            raise _snapshot_expired()
        return found

    def content(self, address: int) -> record.Content:
        """The record at an address, its checksum verified. Raises JournalCorrupt for a damaged one, SnapshotExpired if
        its memory was given back.
        """
        try:
            found = record.unpack_content(self.segment(address >> 32).bytes, (address & OFFSET_MASK) + PREFIX_BYTES)
        except JournalCorrupt:
            self._check_readable(address)
            raise
        if address >> 32 < self._live[READABLE]:
            raise _snapshot_expired()
        return found

    def segment(self, number: int) -> Segment:
        """Raises SnapshotExpired before anything is read that was taken away: in a full memory file system, that would
        be SIGBUS; FileNotFoundError for one that was never mapped, and is gone.
        """
        if number < self._live[READABLE]:
            raise _snapshot_expired()
        try:
            return self.heap[number]
        except KeyError:
            return self.view.heap_segment(number)


def _snapshot_expired() -> SnapshotExpired:
    return SnapshotExpired("this snapshot was held past snapshot_age_max_s: take a new one")
