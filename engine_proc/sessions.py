"""All that is known of those who connect: every `Session`, and the outcomes of user-given ids.

What a hello makes of its session is said before it is journaled, and is so after the commit, as outcomes are. All is
bounded: sessions and user-given ids to their maxima, beyond which the longest silent and the oldest are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from itertools import groupby
from operator import attrgetter

import msgspec

from solewriter.engine_proc.session import FORGOTTEN, NEVER, QUARANTINED, Session, kept, recovered
from solewriter.shared.config import (
    ASKED_AHEAD_MAX,
    FRAME_REQUESTS_MAX,
    NAME_MAX,
    RESULTS_UNPACKED,
    SESSION_FRAMES_MAX,
    Limits,
)
from solewriter.shared.handshake import Hello
from solewriter.shared.journal.entry import Outcome, PrivateState, SessionChange, SessionState
from solewriter.shared.request_ids import own_id, session_number
from solewriter.shared.wire import Status

ENGINE_ID = "engine"  # the client id of the engine's own requests
ENGINE = session_number(ENGINE_ID)
_session_of = attrgetter("session")


class HelloRefused(Exception):
    """A hello that cannot be served; the message is for the caller, the refusal for its client (see Welcome)."""

    def __init__(self, message: str, refusal: str = "final") -> None:
        super().__init__(message)
        self.refusal = refusal


def _check_hello(hello: Hello) -> None:
    if not hello.client_id or len(hello.client_id) > NAME_MAX or len(hello.name) > NAME_MAX:
        raise HelloRefused(f"client_id and name are at most {NAME_MAX} characters, and client_id is not empty")
    if not 0 <= hello.first < SESSION_FRAMES_MAX:
        raise HelloRefused(f"a lane's first frame is numbered 0 to {SESSION_FRAMES_MAX - 1}")
    if hello.client_id == ENGINE_ID:
        raise HelloRefused("this client_id is the engine's own")


class Sessions:
    """All sessions, from the longest silent to the newest heard."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_number: dict[int, Session] = {}
        self.by_request_id: OrderedDict[str, Outcome] = OrderedDict()
        self._ids_forgotten = False
        self._forgotten_last = -1  # the highest sequence of any session that was forgotten

    def __len__(self) -> int:
        return len(self._by_number)

    def states(self) -> list[SessionState]:
        """For a checkpoint; the longest silent first."""
        return [session.state for session in self._by_number.values()]

    def begin_anew(self) -> None:
        """The processes of before are gone with their boot, whoever has their numbers now."""
        for session in self._by_number.values():
            session.pid = -1 if session.pid else 0

    def request_ids(self) -> list[tuple[str, Outcome]]:
        """Outcomes by the users' own ids, for a checkpoint; the oldest first."""
        return list(self.by_request_id.items())

    @property
    def forgotten(self) -> tuple[bool, int]:
        """Whether user-given ids were forgotten; the highest sequence of any session that was, or -1."""
        return self._ids_forgotten, self._forgotten_last

    def restore(self, whole: PrivateState) -> None:
        """All of it as it was written behind a checkpoint, in place of what is known so far."""
        self._by_number = {state.change.session: Session.of(state) for state in whole.sessions}
        self.by_request_id = OrderedDict((request_id, recovered(outcome)) for request_id, outcome in whole.request_ids)
        self._ids_forgotten, self._forgotten_last = whole.request_ids_forgotten, whole.sequence_forgotten
        self._forget_ids()

    def get(self, number: int) -> Session | None:
        return self._by_number.get(number)

    def greet(
        self, hello: Hello, pending: SessionChange | None, consumed: Callable[[int], int]
    ) -> tuple[SessionChange, int]:
        """What this hello makes of its session, before it is journaled, and the number of its lane's first frame.

        A client that sends again begins where it must; any other one behind everything that this session ever sent,
        read or not, so that nobody's requests are taken for an earlier client's. In the turn that is not committed yet,
        `pending` is what an earlier hello made of the session, `consumed` tells its highest sequence. Raises
        HelloRefused.
        """
        _check_hello(hello)
        number = session_number(hello.client_id)
        known = self._by_number.get(number)
        newest = pending or known
        if newest is None:
            if hello.resends:
                raise HelloRefused("this session is not remembered: what was sent may or may not be applied", "unknown")
            first, epoch = self._first_of_a_new_one(hello.first), 1
        else:
            if newest.client_id != hello.client_id:
                raise HelloRefused("another client_id has this session number: choose another one")
            if (hello.resends or hello.again) and hello.instance != newest.instance:
                raise HelloRefused("another client took over this client_id", "fenced")
            epoch = newest.epoch + 1
            if hello.resends:
                last = known.last if known is not None else -1
                return SessionChange(number, hello.client_id, hello.name, epoch, last, hello.instance), hello.first
            same = hello.instance == newest.instance  # and it has nothing on its way
            unread = 0 if same else self._limits.window_max  # frames at most that an older client sent, not read
            last = max(known.last if known else -1, pending.last_sequence if pending else -1, consumed(number))
            first = max(hello.first, last // FRAME_REQUESTS_MAX + 1 + unread)
        last = first * FRAME_REQUESTS_MAX - 1
        return SessionChange(number, hello.client_id, hello.name, epoch, last, hello.instance), first

    def _first_of_a_new_one(self, wanted: int) -> int:
        """It may have been one that was forgotten: no number that such a one could have used is used again."""
        if self._forgotten_last < 0:
            return wanted
        return max(wanted, self._forgotten_last // FRAME_REQUESTS_MAX + 1 + self._limits.window_max)

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def outcome_of(self, number: int, sequence: int, pending: int = 0) -> Outcome | None:
        """How a request of this session ended; None if it never arrived, and so can be fenced beside so many others of
        this turn. One so far ahead that it cannot be on its way is not: all who come later would have to begin behind.
        """
        session = self._by_number.get(number)
        if session is None:
            return FORGOTTEN
        if sequence in session.waiting:
            return session.quarantined.get(sequence)
        if sequence <= session.last:
            return session.outcome_of(sequence)
        if sequence in session.fenced:
            return NEVER
        if sequence in session.quarantined:
            return session.quarantined[sequence]
        ahead = sequence - session.last > ASKED_AHEAD_MAX
        return FORGOTTEN if ahead or not session.may_fence(self._limits.window_max - pending) else None

    def outcome_of_id(self, request_id: str) -> Outcome | None:
        """The same for a user-given id. Once ids were forgotten, an unknown one may be one of those."""
        outcome = self.by_request_id.get(request_id)
        return FORGOTTEN if outcome is None and self._ids_forgotten else outcome

    # --- after the commit, and during recovery ------------------------------------------------------------------------

    def take(self, change: SessionChange) -> Session:
        """A session as a committed entry says it is."""
        session = self._by_number.pop(change.session, None)
        if session is None:
            session = Session(change.session, change.client_id, change.name)
            if self._forgotten_last >= 0:
                session.last, session.floor = change.last_sequence, change.last_sequence + 1
        session.name = change.name
        session.actor = change.name.encode(errors="surrogatepass")
        session.epoch = change.epoch
        if session.waiting and session.instance != change.instance:  # nobody sends them again
            never = msgspec.structs.replace(NEVER, session=change.session)
            ends = [
                session.quarantined.get(one) or msgspec.structs.replace(never, sequence=one)
                for one in sorted(session.waiting)
            ]
            session.remember(ends, self._limits.window_max)
        session.instance = change.instance
        session.pid, session.born = change.pid, change.born
        session.pass_over(change.last_sequence)
        self._by_number[change.session] = session
        return session

    def remember(self, outcomes: Iterable[Outcome]) -> None:
        """Committed outcomes, in their order; of each session and of all user-given ids, the oldest beyond their bounds
        are forgotten.
        """
        window = self._limits.window_max
        for number, run in groupby(outcomes, _session_of):
            together = [kept(one) if len(one.detail) > RESULTS_UNPACKED else one for one in run]
            session = self._by_number.get(number)
            if session is not None:
                session.remember(together, window)
            for request_id, outcome in [(one.request_id, one) for one in together if one.request_id is not None]:
                self._remember_id(request_id, outcome)

    def wait(self, number: int, sequence: int) -> None:
        """A claim that was taken and is answered later: no number behind it makes it forgotten."""
        session = self._by_number.get(number)
        if session is not None:
            session.last = max(session.last, sequence)
            session.waiting.add(sequence)

    def answered(self, number: int, sequence: int) -> None:
        """A claim that waited was answered, and by now the answer is forgotten."""
        session = self._by_number.get(number)
        if session is not None and session.waiting:
            session.waiting.discard(sequence)

    def _remember_id(self, request_id: str, outcome: Outcome) -> None:
        self.by_request_id[request_id] = outcome
        self.by_request_id.move_to_end(request_id)
        if len(self.by_request_id) > self._limits.request_ids_max:
            self._forget_ids()

    def _forget_ids(self) -> None:
        """The oldest beyond the bound: one, or behind a start with a lower bound many."""
        while len(self.by_request_id) > self._limits.request_ids_max:
            self.by_request_id.popitem(last=False)
            self._ids_forgotten = True

    def fence(self, request_id: str) -> None:
        """A request that was answered NotApplied never will be applied."""
        own = own_id(request_id)
        if own is None:
            self._remember_id(request_id, NEVER)
        elif (known := self._by_number.get(own[0])) is not None:
            known.may_fence(self._limits.window_max)  # which forgets those that were passed
            known.fenced.add(own[1])

    def quarantine(self, number: int, sequence: int, revision: int) -> None:
        """A request that is refused from now on, wherever it comes from its session."""
        session = self._by_number.get(number)
        if session is not None:
            session.quarantined[sequence] = Outcome(number, sequence, Status.REFUSED, revision, QUARANTINED)

    def surplus(
        self, coming: int, connected: Iterable[int], waiting: Container[int] = (), holding: Container[int] = ()
    ) -> list[int]:
        """The longest silent sessions that must go for `coming` new ones; never one that has a lane, or something
        waiting: what that is told would be forgotten before it is decided. Those that hold claims are the last to go:
        only a session tells the next start which process holds a claim.
        """
        excess = len(self._by_number) + coming - self._limits.sessions_max
        if excess <= 0:
            return []
        busy = set(connected)
        gone = [number for number in self._by_number if number not in busy]
        silent = [number for number in gone if number not in waiting]
        if len(gone) < excess:
            raise HelloRefused(f"{self._limits.sessions_max} sessions are connected (sessions_max)")
        if len(silent) < excess:
            raise HelloRefused("the sessions that could be forgotten have requests waiting (sessions_max)", "again")
        return sorted(silent, key=holding.__contains__)[:excess]

    def forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            session = self._by_number.pop(number, None)
            if session is not None:
                self._forgotten_last = max(0, self._forgotten_last, session.last, *session.fenced)

    def fell_silent(self, number: int) -> None:
        """Its lane is gone: of the silent ones it is the newest heard."""
        session = self._by_number.pop(number, None)
        if session is not None:
            self._by_number[number] = session
