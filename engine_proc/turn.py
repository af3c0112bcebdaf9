"""What a turn changes, until its commit: an overlay over the state, dropped whole if the commit fails."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from solewriter.engine_proc.coordination.leases import Place, ended_lease
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Installed
from solewriter.engine_proc.session import NEVER, Session
from solewriter.shared.journal.entry import Lease, Outcome, Private, SessionChange, Slots
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.request_ids import own_id

if TYPE_CHECKING:
    from solewriter.engine_proc.state import State

NO_SLOT: Final = -1


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The newest state of one key, in the form of the kind's current schema."""

    slot: int  # NO_SLOT: it was deleted so long ago that there is no record of it any more
    version: int
    address: int
    size: int  # of its record in the heap, in bytes
    alive: bool  # False for a tombstone, which has neither payload nor block
    payload: bytes
    block: bytes


Key = tuple[str, str]  # kind, id


class Turn:
    """What a turn changes, until its commit."""

    def __init__(self, state: State, tail: int, now_us: int, uptime_us: int) -> None:
        self.named = state.named
        self._find = state.find
        self._find_safely = state.find_safely
        self.record_at = state.record_at
        self.kinds = state.kinds
        self.coordination = state.coordination
        self._leases = state.coordination.leases
        self.leases: dict[Place, Lease | None] = {}
        self.cascades: set[int] = set()  # kinds that had none before
        self.waiting: list[tuple[int, int]] = []  # session and sequence of claims that were taken, and wait
        self.uptime_us = uptime_us  # on CLOCK_MONOTONIC
        self.revision = state.revision
        self.tail = tail  # of the heap, before the turn
        self.set_time(now_us)
        self.changed: dict[Key, Stored] = {}
        self.new_keys: dict[int, list[tuple[bytes, int]]] = {}  # with their slots, in the order of taking
        self._free: dict[int, Iterator[int]] = {}  # by kind: used slots that nobody has, and this turn did not take
        self.used_slots: dict[int, int] = {}  # of them, by the position of the record, those that others had before
        self.alive: dict[int, int] = {}  # kind -> change of its count
        self.bodies: list[bytes] = []
        self.installed: list[Installed] = []
        self.outcomes: list[Outcome] = []  # of what was decided, at most one for each request
        self.by_request_id: dict[str, Outcome] = {}
        self.sessions: dict[int, SessionChange] = {}
        self.forgotten_sessions: list[int] = []
        self.fenced_ids: list[str] = []
        self.fenced: set[tuple[int, int]] = set()  # session and sequence of those that are clients' own numbers
        self.bytes = 0
        self.cut = False  # who waits for what became ready had as long as they may have in it

    def set_time(self, now_us: int) -> None:
        """From now on this is the time: nothing that comes in mid-turn is stored as older than it is."""
        self.now_us = now_us
        self._now: datetime | None = None

    @property
    def now(self) -> datetime:
        """The turn's time as a datetime, made on demand: most turns need none."""
        if self._now is None:
            self._now = from_us(self.now_us)
        return self._now

    def last_of(self, session: int) -> int:
        """The highest sequence number of a session that this turn consumed; -1 if none."""
        consumed = [outcome.sequence for outcome in self.outcomes if outcome.session == session]
        return max([*consumed, *(sequence for number, sequence in self.waiting if number == session)], default=-1)

    def outcome_of(self, session: int, sequence: int) -> Outcome | None:
        """How a request of this turn ended."""
        for one in self.outcomes:
            if one.sequence == sequence and one.session == session:
                return one
        return None

    @property
    def has_claims(self) -> bool:
        """Whether anybody holds a task."""
        return bool(self._leases or self.leases)

    def lease(self, place: Place) -> Lease | None:
        """Who holds a task, after the earlier requests of this turn."""
        return self.leases[place] if place in self.leases else self._leases.get(place)

    def note(self, outcome: Outcome) -> None:
        """Add the outcome of a decided request."""
        self.outcomes.append(outcome)
        if self.waiting and (outcome.session, outcome.sequence) in self.waiting:
            self.waiting.remove((outcome.session, outcome.sequence))
        if outcome.request_id is not None:
            self.by_request_id[outcome.request_id] = outcome

    def leave(self, session: Session | None) -> None:
        """Its lane is gone, and nobody died: the next engine goes by its silence, not by its process."""
        if session is not None and session.number not in {*self.sessions, *self.forgotten_sessions}:
            self.sessions[session.number] = msgspec.structs.replace(session.change, pid=0, born=0)

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

    @property
    def binds(self) -> bool:
        """Whether it tells what has to hold for whoever comes later: that a request never will be applied, or how one
        ended that anybody may repeat, under an id of the user's own. Any other refusal may be lost with its client.
        """
        return bool(self.fenced_ids or self.by_request_id)

    def find(self, kind: KindState, key: Key, *, anew: bool = True) -> Stored | None:
        """What is stored under a key of this kind, after the earlier requests of this turn. `anew` as in `State`."""
        return self.changed.get(key) or self._find(kind, key[1], anew)

    def find_safely(self, kind: KindState, key: Key) -> Stored | None:
        """What is stored under a key, for the engine itself: see `State.find_safely`."""
        return self.changed.get(key) or self._find_safely(kind, key[1])

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

    def slots(self) -> dict[int, int]:
        """How many slots each kind that has new keys needs after this turn."""
        kinds = self.kinds
        return {
            code: kinds[code].places + max(0, len(keys) - len(kinds[code].free)) for code, keys in self.new_keys.items()
        }

    def known_slots(self) -> Slots | None:
        """The slots of all records, if these are of one kind and no key is new."""
        if self.new_keys or not self.installed:
            return None
        kind = self.installed[0].kind
        slots = [one.slot for one in self.installed if one.kind == kind]
        return Slots.of(kind, slots, map(len, self.bodies)) if len(slots) == len(self.bodies) else None

    def private(self) -> Private:
        return Private(
            outcomes=self.outcomes,
            sessions=list(self.sessions.values()),
            forgotten_sessions=self.forgotten_sessions,
            fenced_ids=self.fenced_ids,
            slots=self.used_slots,
            known=self.known_slots(),
            waiting=self.waiting,
            leases=[lease or ended_lease(place) for place, lease in self.leases.items()],
            cascades=sorted(self.cascades),
        )
