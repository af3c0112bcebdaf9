"""`Past`: a revision that memory does not hold any more, built again from the journal. It answers as a `Pin` does.

Every entity has one place, which is its address: (kind << 32 | slot) + 1; slots are those that the engine gave: those
of the checkpoint with which it begins, then one after the other, but for used ones, which the journal names. It takes
one pass over the journal from that checkpoint on, some 5 us for each change, and the memory of everything that lived
then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

from solewriter.shared import record
from solewriter.shared.journal.chain import check_history, checkpoint_to
from solewriter.shared.journal.checkpoint import Checkpoint
from solewriter.shared.journal.entry import Entry
from solewriter.shared.journal.walk import entries_between
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.root import Root, root_of_files
from solewriter.shared.memory.table import TableReader


class Identified(Protocol):
    """Whose a state is: its history, and the engine that published it, 0 where it was found without one; and whether
    that engine was stopped, or followed by another one.
    """

    @property
    def history(self) -> bytes: ...
    @property
    def pid(self) -> int: ...
    @property
    def successor(self) -> int: ...


class Viewed(Protocol):
    """An engine's memory, or what stands for it where there is none."""

    @property
    def root(self) -> Identified: ...


class Beside(Protocol):
    """A newest state: that of a pin, or of a folder."""

    @property
    def view(self) -> Viewed: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def root(self) -> Root: ...


def check_own_history(folder: Path, now: Beside) -> None:
    """Raises Compacted where the journal is not what this state was made of. As long as its engine serves, nobody cuts
    it.
    """
    root = now.view.root
    check_history(folder, root.history, now.root.entry if root.successor else None)


class Past:
    """Everything at one revision, by its newest records: at first, at most the one given. `advance` moves it on; a
    snapshot's never does.

    `now` is the newest state, beside which it is made: it says how far the journal may be read, and what kinds and
    columns there are. Raises Compacted, JournalCorrupt.
    """

    def __init__(self, now: Beside, folder: Path, revision: int) -> None:
        self.view = now.view
        self._entry = now.root.entry
        self.catalog = now.catalog
        self.found: dict[Any, Any] = {}  # nothing, as no slot has a head here
        self.aside: dict[Any, Any] = {}  # as a pin's; of a revision that nobody moves on from
        self.revision = 0
        self._coming: tuple[bytes, int | None] | None = None  # read, and of a later revision
        self._slots: list[dict[str, int]] = [{} for _ in now.catalog.kinds]
        self._newest: list[list[bytes]] = [[] for _ in now.catalog.kinds]  # b"" in a slot that nobody has
        self._begun: dict[tuple[int, str], int] = {}  # see `begun`
        self._alive = [0] * len(now.catalog.kinds)
        begin = 1
        check_own_history(folder, now)
        if (checkpoint := checkpoint_to(folder, revision)) is not None:
            with checkpoint:
                self._begin_with(checkpoint)
            begin = checkpoint.entry + 1
        self._bodies = _bodies_in(entries_between(folder, begin, now.root.entry))

    def _begin_with(self, checkpoint: Checkpoint) -> None:
        directory = checkpoint.directory
        self.revision = directory.revision
        for kind, image in enumerate(directory.tables[: len(self._slots)]):
            self._slots[kind] = {key: slot for slot, key in enumerate(checkpoint.keys(kind)) if key is not None}
            self._newest[kind] = [b""] * image.places
            self._alive[kind] = image.alive
        for slot, body in checkpoint.records():
            self._newest[record.kind_at(body, 0)][slot] = body

    # --- moving on ---------------------------------------------------------------------------------------------------

    def advance(self, revision: int) -> None:
        """Move on to the end of a revision, or of what may be read of the journal. Raises Compacted, JournalCorrupt."""
        for _ in self.changes(revision):
            pass

    def changes(self, revision: int) -> Iterator[tuple[record.Record, record.Record | None]]:
        """Move on as `advance`, and yield each record with that of its entity before it."""
        while (coming := self._coming or next(self._bodies, None)) is not None:
            self._coming = coming
            body, used_slot = coming
            found = record.unpack(body)
            if found.revision > revision:
                return
            self._coming = None
            yield found, self._install(body, found, used_slot)
        self.revision = max(self.revision, revision)

    def _install(self, body: bytes, found: record.Record, used_slot: int | None) -> record.Record | None:
        slots, newest = self._slots[found.kind], self._newest[found.kind]
        if used_slot is not None:
            for place in {used_slot, slots.get(found.key, used_slot)}:
                self._forget(found.kind, place)
        slot = slots.get(found.key)
        if slot is None:
            slot = slots[found.key] = len(newest) if used_slot is None else used_slot
            if found.version > 1:
                self._begun[found.kind, found.key] = found.version
        before = None
        if slot == len(newest):
            newest.append(body)
        else:
            before = record.unpack(newest[slot]) if newest[slot] else None
            newest[slot] = body
        self._alive[found.kind] += (not found.deleted) - (before is not None and not before.deleted)
        self.revision = found.revision
        return before

    def _forget(self, kind: int, slot: int) -> None:
        """Drop the tombstone in a slot, if any, before the slot goes to another key, or its key to another slot."""
        newest = self._newest[kind]
        if newest[slot]:
            del self._slots[kind][record.key_at(newest[slot], 0).decode()]
            newest[slot] = b""

    # --- reading, as a pin does --------------------------------------------------------------------------------------

    @property
    def root(self) -> Root:
        kinds = tuple(zip([len(newest) for newest in self._newest], self._alive, strict=True))
        return root_of_files(self.revision, self._entry, oldest=self.revision, kinds=kinds)

    def slots(self, kind: int) -> int:
        return len(self._newest[kind]) if kind < len(self._newest) else 0

    def find(self, kind: int, key: str) -> int:
        return self.place(kind, key)[0]

    def place(self, kind: int, key: str) -> tuple[int, int]:
        slot = self._slots[kind].get(key, -1) if kind < len(self._slots) else -1
        return (0 if slot < 0 else self.at(kind, slot)), -1

    def begun(self, kind: int, key: str) -> int:
        """The version with which a key came to its place, as far as that was seen: what it was before had another."""
        return self._begun.get((kind, key), 0)

    def at(self, kind: int, slot: int) -> int:
        return (kind << 32 | slot) + 1 if self._newest[kind][slot] else 0

    def addresses(self, kind: int) -> Iterator[int]:
        return filter(None, (self.at(kind, slot) for slot in range(self.slots(kind))))

    def slot_at(self, address: int) -> int:
        return address - 1 & 0xFFFFFFFF

    def previous(self, address: int) -> NoReturn:
        """Raises FileNotFoundError: what was before is not kept."""
        raise FileNotFoundError

    def key_at(self, address: int) -> str:
        return self.content(address).key

    def read(self, address: int) -> record.Content:
        return self.content(address)

    def content(self, address: int) -> record.Content:
        return record.content_at(self._body(address), 0)

    def whole(self, address: int) -> record.Record:
        return record.unpack(self._body(address))

    def table(self, kind: int) -> NoReturn:
        """Raises FileNotFoundError, for there are no columns: whoever scans looks everything up singly."""
        raise FileNotFoundError

    def live_table(self, kind: int) -> TableReader:
        raise FileNotFoundError  # pragma: no cover  # who asks has a slot of `place`, which gives none here

    def changed_slots(self, kind: int) -> frozenset[int]:
        return frozenset()  # pragma: no cover  # who asks has read from `table`, and there is none

    def _body(self, address: int) -> bytes:
        return self._newest[address - 1 >> 32][self.slot_at(address)]


def _bodies_in(entries: Iterable[Entry]) -> Iterator[tuple[bytes, int | None]]:
    """(body, slot) of each record; the slot is a used one that its new key took, None where it took none."""
    for entry in entries:
        slots = entry.changes.slots
        for position, body in enumerate(entry.records()):
            yield body, slots.get(position)


Held = Pin | Past
"""What a snapshot reads from"""
