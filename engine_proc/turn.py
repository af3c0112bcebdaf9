"""What a turn changes, until its commit: an overlay over the state, dropped whole if the commit fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from solewriter.engine_proc.coordination.leases import Place, ended
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Installed
from solewriter.engine_proc.sessions import NEVER, Told
from solewriter.shared.columns import from_us
from solewriter.shared.entry import Lease, Private, SessionChange
from solewriter.shared.request_ids import own_id

if TYPE_CHECKING:
    from solewriter.engine_proc.state import State

NO_SLOT = -1


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The newest state of one key, in the form of the kind's current schema."""

    slot: int  # NO_SLOT: it was deleted so long ago that there is no record of it any more
    version: int
    address: int
    size: int  # of its record in the heap, in bytes
    alive: bool  # False for a tombstone, which has neither payload nor block
    payload: bytes
    block: bytes


Key = tuple[int, str]  # kind code, id


class Turn:
    """What a turn changes, until its commit."""

    def __init__(self, state: State, tail: int, now_us: int) -> None:
        self.named = state.named
        self._find = state.find
        self.author = state.author
        self.kinds = state.kinds
        self.coordination = state.coordination
        self._leases = state.coordination.leases
        self.leases: dict[Place, Lease | None] = {}
        self.cascades: set[int] = set()  # kinds that had none before
        self.waiting: list[tuple[int, int]] = []  # session and sequence of claims that were taken, and wait
        self.uptime_us = 0  # on CLOCK_MONOTONIC
        self.revision = state.revision
        self.tail = tail  # of the heap, before the turn
        self.at(now_us)
        self.changed: dict[Key, Stored] = {}
        self.new_keys: dict[int, list[tuple[bytes, int]]] = {}  # with their slots, in the order of taking
        self._free: dict[int, Iterator[int]] = {}  # by kind: used slots that nobody has, and this turn did not take
        self.used_slots: dict[int, int] = {}  # of them, by the position of the record, those that others had before
        self.alive: dict[int, int] = {}  # kind -> change of its count
        self.bodies: list[bytes] = []
        self.installed: list[Installed] = []
        self.outcomes: dict[tuple[int, int], Told] = {}  # by session and sequence
        self.by_request_id: dict[str, Told] = {}
        self.sessions: dict[int, SessionChange] = {}
        self.forgotten_sessions: list[int] = []
        self.fenced_ids: list[str] = []
        self.fenced: set[tuple[int, int]] = set()  # session and sequence of those that are clients' own numbers
        self.bytes = 0

    def at(self, now_us: int) -> None:
        """From now on this is the time: nothing that comes in mid-turn is stored as older than it is."""
        self.now_us = now_us
        self.now = from_us(now_us)

    def last_of(self, session: int) -> int:
        """The highest sequence number of a session that this turn consumed; -1 if none."""
        consumed = (sequence for number, sequence in (*self.outcomes, *self.waiting) if number == session)
        return max(consumed, default=-1)

    @property
    def claims(self) -> bool:
        """Whether anybody holds a task."""
        return bool(self._leases or self.leases)

    def lease(self, place: Place) -> Lease | None:
        """Who holds a task, after the earlier requests of this turn."""
        return self.leases[place] if place in self.leases else self._leases.get(place)

    def note(self, session: int, sequence: int, told: Told) -> None:
        """A decided outcome."""
        self.outcomes[session, sequence] = told
        if self.waiting and (session, sequence) in self.waiting:
            self.waiting.remove((session, sequence))
        if told.request_id is not None:
            self.by_request_id[told.request_id] = told

    def fence(self, request_id: str) -> None:
        """Nothing under this id will be applied any more, in this turn or later."""
        self.fenced_ids.append(request_id)
        own = own_id(request_id)
        if own is None:
            self.by_request_id[request_id] = NEVER
        else:
            self.fenced.add(own)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to journal."""
        return not (
            self.outcomes or self.sessions or self.fenced_ids or self.forgotten_sessions or self.waiting or self.leases
        )

    def find(self, kind: KindState, key: str) -> Stored | None:
        """What is stored under a key, after the earlier requests of this turn."""
        return self.changed.get((kind.code, key)) or self._find(kind, key)

    def take_slot(self, kind: KindState, key: bytes) -> int:
        """The next free slot of a kind, for a key that has none."""
        keys = self.new_keys.get(kind.code)
        if keys is None:
            keys, self._free[kind.code] = self.new_keys.setdefault(kind.code, []), reversed(kind.free)
        slot = next(self._free[kind.code], -1)
        if slot >= 0:
            self.used_slots[len(self.bodies)] = slot
        else:
            slot = kind.places + len(keys) - len(kind.free)
        keys.append((key, slot))
        return slot

    def slots(self, kind: KindState) -> int:
        """Slots of a kind after this turn."""
        return kind.places + max(0, len(self.new_keys.get(kind.code, ())) - len(kind.free))

    def private(self) -> Private:
        return Private(
            outcomes=[
                (number, sequence, told.status, told.revision, told.detail, told.request_id, told.digest)
                for (number, sequence), told in self.outcomes.items()
            ],
            sessions=list(self.sessions.values()),
            forgotten_sessions=self.forgotten_sessions,
            fenced_ids=self.fenced_ids,
            slots=self.used_slots,
            waiting=self.waiting,
            leases=[lease or ended(place) for place, lease in self.leases.items()],
            cascades=sorted(self.cascades),
        )
