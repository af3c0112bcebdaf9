"""One agent's identity, and how its requests ended.

A session outlives its lanes and the engine: its outcomes are in the journal. It is what makes a resend harmless: a
sequence number that was consumed gets its first reply again, and this is looked at before anything else. An epoch
counts the lanes of a session; only the newest one is read. Outcomes are bounded to the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from solewriter.shared.config import GAPS_MAX, RESULTS_UNPACKED
from solewriter.shared.errors import Refusal
from solewriter.shared.journal.entry import Outcome, SessionChange, SessionState
from solewriter.shared.wire import Status


def _of_nobody(status: int, name: str, message: str) -> Outcome:
    return Outcome(0, 0, status, 0, (name, message, {}))


FORGOTTEN = _of_nobody(Status.UNAVAILABLE, "Forgotten", "this outcome is older than the engine remembers")
NEVER = _of_nobody(
    Status.REFUSED,
    "Fenced",
    "its outcome was asked for before it arrived: it never will be applied; send it anew, under another id",
)
QUARANTINED: Refusal = (
    "Quarantined",
    "two engines died while they were deciding this request, one after the other: it is not decided any more, and was "
    "not applied. Look for what its model's validators do with it",
    {},
)


def recovered(outcome: Outcome) -> Outcome:
    """As it was, without addresses: the records lie elsewhere in an engine that recovered."""
    if outcome.status != Status.APPLIED:
        return outcome
    return kept(msgspec.structs.replace(outcome, detail=[(place[0], 0, *place[2:]) for place in outcome.detail]))


def kept(outcome: Outcome) -> Outcome:
    """The same; the results of a large request take a fifth of the memory as the bytes that they are written as."""
    detail = outcome.detail
    if detail.__class__ is not list or len(detail) <= RESULTS_UNPACKED:
        return outcome
    return msgspec.structs.replace(outcome, detail=msgspec.Raw(msgspec.msgpack.encode(detail)))


class Outcomes:
    """The newest outcomes of a session, in the order in which they were committed. To add some costs next to nothing;
    an index is made when one is looked for, which only happens where something was sent again, or asked for.
    """

    __slots__ = ("_index", "_outcomes")

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._outcomes = deque(outcomes)
        self._index: dict[int, Outcome] | None = None

    def add(self, outcomes: Iterable[Outcome], most: int) -> None:
        """Some more, of which and of the earlier ones the newest so many stay."""
        if self._outcomes.maxlen != most:
            self._outcomes = deque(self._outcomes, most)
        self._outcomes.extend(outcomes)
        self._index = None

    def get(self, sequence: int) -> Outcome | None:
        """How the request with this number ended, if that is still known."""
        if self._index is None:
            self._index = {outcome.sequence: outcome for outcome in self._outcomes}
        return self._index.get(sequence)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)


class Session:
    """One agent's identity. `last` is the highest sequence number consumed."""

    __slots__ = (
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
        "outcomes",
        "pid",
        "quarantined",
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
        self.outcomes = Outcomes()
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
        gaps, fenced, waiting = list(self.gaps), list(self.fenced), sorted(self.waiting)
        return SessionState(self.change, self.floor, gaps, fenced, list(self.outcomes), waiting)

    @classmethod
    def of(cls, state: SessionState) -> Session:
        """As it was written behind a checkpoint."""
        change = state.change
        session = cls(change.session, change.client_id, change.name)
        session.epoch, session.instance, session.last = change.epoch, change.instance, change.last_sequence
        session.pid, session.born = change.pid, change.born
        session.floor, session.fenced, session.waiting = state.floor, set(state.fenced), set(state.waiting)
        session.gaps.extend(state.gaps)
        session.outcomes = Outcomes(map(recovered, state.outcomes))
        return session

    def remember(self, outcomes: list[Outcome], window: int) -> None:
        """The outcomes of some requests, at least one, and those before them up to the window."""
        sequences = [outcome.sequence for outcome in outcomes]
        if min(sequences) <= self.last:
            outcomes = [outcome for outcome in outcomes if self.outcomes.get(outcome.sequence) is None]
        self.last = max(self.last, *sequences)
        if self.waiting:
            self.waiting.difference_update(sequences)
        self.outcomes.add(outcomes, window)

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

    def outcome_of(self, sequence: int) -> Outcome | None:
        """How a request with a number that was consumed or passed over ended."""
        if sequence < self.floor:
            return FORGOTTEN
        outcome = self.outcomes.get(sequence) or self.quarantined.get(sequence)
        if outcome is None:
            return NEVER if any(low <= sequence <= high for low, high in self.gaps) else FORGOTTEN
        return outcome

    def may_fence(self, window: int) -> bool:
        """Whether there is room for one more fenced number. Those that were passed need no fence any more."""
        self.fenced = {sequence for sequence in self.fenced if sequence > self.last}
        return len(self.fenced) < window
