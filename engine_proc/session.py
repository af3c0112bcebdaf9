"""One agent's identity, and what it was told.

A session outlives its lanes and the engine: its outcomes are in the journal. It is what makes a resend harmless: a
sequence number that was consumed gets its first reply again, and this is looked at before anything else. An epoch
counts the lanes of a session; only the newest one is read. Outcomes are bounded to the window.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from solewriter.shared.config import GAPS_MAX, RESULTS_UNPACKED
from solewriter.shared.entry import Outcome, SessionChange, SessionState
from solewriter.shared.wire import Status


def _of_nobody(status: int, name: str, message: str) -> Outcome:
    return Outcome(0, 0, status, 0, (name, message, {}))


FORGOTTEN = _of_nobody(Status.UNAVAILABLE, "Forgotten", "this outcome is older than the engine remembers")
NEVER = _of_nobody(
    Status.REFUSED,
    "Fenced",
    "its outcome was asked for before it arrived: it never will be applied; send it anew, under another id",
)
QUARANTINED: tuple[str, str, dict[str, Any]] = (
    "Quarantined",
    "two engines died while they were deciding this request, one after the other: it is not decided any more, and was "
    "not applied. Look for what its model's validators do with it",
    {},
)


def recovered(outcome: Outcome) -> Outcome:
    """As it was told, without addresses: the records lie elsewhere in an engine that recovered."""
    if outcome.status != Status.APPLIED:
        return outcome
    return kept(msgspec.structs.replace(outcome, detail=[(place[0], 0, *place[2:]) for place in outcome.detail]))


def kept(outcome: Outcome) -> Outcome:
    """The same; the results of a large request take a fifth of the memory as the bytes that they are written as."""
    detail = outcome.detail
    if detail.__class__ is not list or len(detail) <= RESULTS_UNPACKED:
        return outcome
    return msgspec.structs.replace(outcome, detail=msgspec.Raw(msgspec.msgpack.encode(detail)))


class Session:
    """One agent's identity. `last` is the highest sequence number consumed."""

    __slots__ = (
        "_order",
        "actor",
        "born",
        "client_id",
        "epoch",
        "fenced",
        "floor",
        "gaps",
        "instance",
        "last",
        "name",
        "number",
        "pid",
        "quarantined",
        "told",
        "waiting",
    )

    def __init__(self, number: int, client_id: str, name: str) -> None:
        self.number = number
        self.client_id = client_id
        self.name = name
        self.actor = name.encode(errors="surrogatepass")
        self.epoch = 0
        self.instance = ""
        self.pid = self.born = 0  # of the process that speaks for it, see SessionChange
        self.last = -1
        self.floor = 0  # numbers below it may be of an earlier life of this session, which was forgotten
        self.told: dict[int, Outcome] = {}
        self._order: deque[int] = deque()
        self.gaps: deque[tuple[int, int]] = deque(maxlen=GAPS_MAX)  # numbers that were passed over unread
        self.fenced: set[int] = set()  # sequences that were answered NotApplied and must stay so
        self.quarantined: dict[int, Outcome] = {}  # those that are refused when they come, and how
        self.waiting: set[int] = set()  # claims that were taken, and are not answered yet

    @property
    def change(self) -> SessionChange:
        return SessionChange(
            self.number, self.client_id, self.name, self.epoch, self.last, self.instance, self.pid, self.born
        )

    @property
    def state(self) -> SessionState:
        outcomes = [self.told[sequence] for sequence in self._order]
        return SessionState(self.change, self.floor, list(self.gaps), list(self.fenced), outcomes, sorted(self.waiting))

    @classmethod
    def of(cls, state: SessionState) -> Session:
        """As it was written behind a checkpoint."""
        change = state.change
        session = cls(change.session, change.client_id, change.name)
        session.epoch, session.instance, session.last = change.epoch, change.instance, change.last_sequence
        session.pid, session.born = change.pid, change.born
        session.floor, session.fenced, session.waiting = state.floor, set(state.fenced), set(state.waiting)
        session.gaps.extend(state.gaps)
        session.told = {outcome.sequence: recovered(outcome) for outcome in state.outcomes}
        session._order.extend(session.told)
        return session

    def remember(self, outcomes: list[Outcome], window: int) -> None:
        """The outcomes of some requests, at least one, and those before them up to the window."""
        order, told = self._order, self.told
        newest = {outcome.sequence: outcome for outcome in outcomes}
        self.last = max(self.last, *newest)
        if self.waiting:
            self.waiting.difference_update(newest)
        order.extend([sequence for sequence in newest if sequence not in told])
        told.update(newest)
        for _ in range(len(order) - window):
            del told[order.popleft()]

    def is_done_with(self, sequence: int) -> bool:
        """Whether this number was consumed, or passed over, and its request does not wait to be decided again."""
        return sequence <= self.last and sequence not in self.waiting

    def pass_over(self, last: int) -> None:
        """Go on behind this number. Those in between were never consumed, and the lanes that may hold them are not
        read any more.
        """
        if last > self.last:
            self.gaps.append((self.last + 1, last))
            self.last = last

    def told_of(self, sequence: int) -> Outcome | None:
        """How a request with a number that was consumed or passed over ended."""
        told = self.told.get(sequence) or self.quarantined.get(sequence)
        if sequence < self.floor:
            told = FORGOTTEN
        elif told is None:
            told = NEVER if any(low <= sequence <= high for low, high in self.gaps) else FORGOTTEN
        return told

    def may_fence(self, window: int) -> bool:
        """Whether there is room for one more fenced number. Those that were passed need no fence any more."""
        self.fenced = {sequence for sequence in self.fenced if sequence > self.last}
        return len(self.fenced) < window
