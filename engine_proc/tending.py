"""What the engine does of itself for those who work at tasks: it takes claims from the dead and the late.

Each is a request of the session "engine", decided, journaled and published like any other, in a turn: an agent's death
behind what the agent had sent, a time that has come when its tick is taken. There is one alarm, for what comes next,
also to those who wait (`parking`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from solewriter.engine_proc.bridge import Bridge, LaneEnd
from solewriter.engine_proc.coordination.coordination import ALONE
from solewriter.engine_proc.coordination.leases import Lost, loss_of
from solewriter.engine_proc.coordination.waiting import Lines
from solewriter.engine_proc.journal import Journal
from solewriter.engine_proc.parking import DecideRequest
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.sessions import ENGINE, ENGINE_ID, Sessions
from solewriter.engine_proc.state import State
from solewriter.engine_proc.turn import Turn
from solewriter.shared import failpoint
from solewriter.shared.config import TIMER_RETRY_S, US_PER_S, Limits
from solewriter.shared.journal.entry import Lease
from solewriter.shared.mutations import Op
from solewriter.shared.system.processes import pidfd_of
from solewriter.shared.wire import Status

GONE = "its agent was gone for too long"
Losses = list[tuple[Lease, str]]  # claims to be taken away, and why


class Occasion:
    """Something that happened to a session, or, to the engine's own, a time that has come."""

    lost: Losses | None = None  # what is still to be taken away because of it; None: nobody has looked yet

    def __init__(self, session: int = ENGINE, *, died: bool = False) -> None:
        self.session = session
        self.died = died


class Tending:
    """Takes claims from the dead and the late. `lines` are the claims that wait; `decide_request` is the writer's, and
    `begin_deciding` writes down which request is being decided, should the engine die of it.
    """

    def __init__(
        self,
        state: State,
        sessions: Sessions,
        journal: Journal,
        bridge: Bridge,
        limits: Limits,
        lines: Lines,
        decide_request: DecideRequest,
        begin_deciding: Callable[[int, int], None],
    ) -> None:
        self._state = state
        self._coordination = state.coordination
        self._sessions = sessions
        self._journal = journal
        self._bridge = bridge
        self._lines = lines
        self._decide_request = decide_request
        self._taken_max = limits.batch_max  # claims, in a turn
        self._take_s = limits.turn_max_s
        self._begin_deciding = begin_deciding
        self._grace_us = int(limits.session_grace_s * US_PER_S)
        self._self = Session(ENGINE, ENGINE_ID, ENGINE_ID)
        self._asked = (0, 0)  # the journal's entry, and how many requests of its own the engine has in the next one
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_us = 0
        self._not_before_us = 0  # after a commit that failed
        self._silent: dict[int, int] = {}  # sessions without a lane, and until when they may be
        self._watched: dict[int, int] = {}  # pidfds of processes whose sessions are silent
        for session in self._coordination.leases.sessions:
            self._recall(session)

    def _recall(self, number: int) -> None:
        """A start is nobody's death: whose process is there has what it had, as long as that is there. Whose process is
        not died while nobody looked. Only of whom that is not known silence is all that tells.
        """
        session = self._sessions.get(number)
        try:
            pidfd = pidfd_of(session.pid, session.born) if session is not None and session.pid else None
        except OSError:  # out of descriptors
            pidfd = None
        if pidfd is None:
            self._silent[number] = _uptime_us() + self._grace_us
        elif pidfd < 0:
            self._bridge.inbox.put_nowait([Occasion(number, died=True)])
        else:
            self._watch(number, pidfd)

    # --- occasions ---------------------------------------------------------------------------------------------------

    def gone(self, lane: LaneEnd) -> None:
        """A session has no lane any more. What it had sent before stands in the inbox, and this behind it. A process
        that ends closes its pipes a moment before it counts as dead: so, where tasks are claimed, it is watched a while
        longer.
        """
        session = lane.session.number
        if not (self._coordination.boards or self._coordination.leases or self._lines):
            return
        self._lines.drop(session)
        self._bridge.inbox.put_nowait([Occasion(session, died=lane.dying)])
        if not lane.dying and lane.pidfd >= 0:
            self._watch(session, os.dup(lane.pidfd))

    def greet(self, session: int) -> None:
        """It has a lane again, and its client sends again what was not answered."""
        self._lines.drop(session)
        self._watch_no_more(session)

    def claimed(self, lane: LaneEnd) -> None:
        """A claim was granted on this lane: if nobody is there any more, it is as if it had gone right now."""
        failpoint.reach("claim.granted")
        if lane.closed:
            self._bridge.inbox.put_nowait([Occasion(lane.session.number, died=lane.dying)])

    def _died(self, session: int) -> None:
        self._watch_no_more(session)
        self._bridge.inbox.put_nowait([Occasion(session, died=True)])

    def _watch(self, session: int, pidfd: int) -> None:
        self._watch_no_more(session)
        self._watched[session] = pidfd
        self._bridge.loop.add_reader(pidfd, self._died, session)

    def _watch_no_more(self, session: int) -> None:
        pidfd = self._watched.pop(session, None)
        if pidfd is not None:
            self._bridge.loop.remove_reader(pidfd)
            self._bridge.loop.call_soon(os.close, pidfd)

    def close(self) -> None:
        """At the end of the engine: nobody is tended any more."""
        for session in list(self._watched):
            self._watch_no_more(session)
        if self._alarm is not None:
            self._alarm.cancel()

    def tend(self, turn: Turn, occasion: Occasion) -> bool:
        """Do what is due, of many claims that are lost so many at once, and for as long as a turn decides: each may be
        of a model that takes its time. Whether some are left: others come first.
        """
        lost = occasion.lost
        if lost is None:
            lost = occasion.lost = self._lost(turn, occasion)  # kept: silence is told once, and this may have to wait
        done, until = 0, time.monotonic() + self._take_s
        try:
            for lease, why in lost[: self._taken_max]:
                if why != GONE or lease.session not in self._bridge.connected():  # or it came back meanwhile
                    self._take_away(turn, lease, why)
                done += 1
                if time.monotonic() >= until:
                    break
        finally:  # where one has to wait, and no commit has room, what was done is due again in a while, not at once
            occasion.lost = lost[done:]
        return bool(occasion.lost)

    def _lost(self, turn: Turn, occasion: Occasion) -> Losses:
        """The claims that end by it. Of those whose time is up no more than are taken away now: the alarm rings again
        for the others.
        """
        if occasion.session != ENGINE:
            return self._lost_with(turn, occasion)
        leases, lost = self._coordination.leases, Losses()
        for lease in leases.over(turn.uptime_us, self._taken_max):
            before = leases.lost.get((lease.kind, lease.key))
            lost.append((lease, "its time was up" if before is None else before.why))
        for session in [one for one, until_us in self._silent.items() if until_us <= turn.uptime_us]:
            if session not in self._bridge.connected():
                lost += self._all_of(turn, session, GONE)
            del self._silent[session]
            self._watch_no_more(session)
        return lost

    def _lost_with(self, turn: Turn, occasion: Occasion) -> Losses:
        session = occasion.session
        if session in self._bridge.connected():
            return []  # it came back meanwhile
        self._lines.drop(session)
        if not occasion.died:
            held = self._all_of(turn, session, GONE)
            if not (held or self._coordination.leases.of_session(session)):  # nor will it, should the turn be undone
                self._watch_no_more(session)
                return []
            self._silent[session] = turn.uptime_us + self._grace_us
            if held:
                turn.leave(self._sessions.get(session))
            return []
        self._silent.pop(session, None)
        return self._all_of(turn, session, "its agent died")

    def _all_of(self, turn: Turn, session: int, why: str) -> Losses:
        held = {(lease.kind, lease.key): lease for lease in self._coordination.leases.of_session(session)}
        for place, lease in turn.leases.items():
            held.pop(place, None)
            if lease is not None and lease.session == session:
                held[place] = lease
        return [(lease, why) for lease in held.values()]

    def _take_away(self, turn: Turn, lease: Lease, why: str) -> None:
        """One claim, if it is still that one. Where that cannot be now, it stays: who would find its task?"""
        place, leases = (lease.kind, lease.key), self._coordination.leases
        if turn.lease(place) != lease:
            return
        if loss_of(lease) in leases.deadly:  # two engines died of it: its task stays as it is
            turn.leases[place] = None
            return
        status, refusal = self._expired(turn, lease, why, None)
        cascades = self._coordination.cascades or turn.cascades
        if refusal == "RequestTooLarge" or (cascades and refusal == "InvalidMutation"):
            # too many would be cancelled with it, or one that cannot be: they wait until somebody decides
            status, refusal = self._expired(turn, lease, why, ALONE)
        if refusal in ("InvalidMutation", "NotFound"):  # its model does not let it be interrupted: nobody holds it
            turn.leases[place] = None
        elif status == Status.UNAVAILABLE:
            leases.put_off(Lost(lease, why, turn.uptime_us + int(TIMER_RETRY_S * US_PER_S)))
        elif status != Status.APPLIED:  # its class is not registered, say: another try needs another one, or a start
            leases.put_off(Lost(lease, why, 0))
        failpoint.reach("claim.lost")

    def _expired(self, turn: Turn, lease: Lease, why: str, what: str | None) -> tuple[int, str]:
        """How a claim's loss ended: its status, and the name of the refusal."""
        mutation = (Op.EXPIRE.value, self._state.kinds[lease.kind].name, lease.key, None, None, why, what)
        request: Any = ([mutation], [], None, None)
        sequence = self._next_sequence()
        try:
            outcome = self._decide_request(turn, self._self, sequence, request, None, loss_of(lease))
        finally:
            self._begin_deciding(ENGINE, sequence)  # of whatever it dies now, it was not this
        assert outcome is not None, "it is no claim"
        return outcome.status, outcome.detail[0] if outcome.status == Status.REFUSED else ""

    def _next_sequence(self) -> int:
        """Of the engine's own requests: higher than any before, also after a restart."""
        entry = self._journal.tail.number + 1
        self._asked = (entry, self._asked[1] + 1 if self._asked[0] == entry else 0)
        return entry << 20 | self._asked[1]

    # --- time --------------------------------------------------------------------------------------------------------

    def set_alarm(self) -> None:
        """For what comes next, if anything does."""
        due_us = self._due_us()
        if due_us == self._alarm_us:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_us = due_us
        if due_us:
            delay_s = max(0, max(due_us, self._not_before_us) - _uptime_us()) / US_PER_S
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _due_us(self) -> int:
        """On CLOCK_MONOTONIC; 0: nothing is to come."""
        leases, lines = self._coordination.leases, self._lines
        if not (leases or lines or self._silent):
            return 0
        times = [leases.next_us, lines.next_us, *self._silent.values()]
        if lines:
            offset_us = _uptime_us() - time.time_ns() // 1000
            for board in map(self._coordination.boards.get, lines.by_kind):
                if board is None:  # it was dropped, and knows when something is ready as soon as a line looks again
                    times.append(1)
                elif board.next_us:
                    times.append(max(1, board.next_us + offset_us))  # it may be earlier than this clock
        return min((one for one in times if one > 0), default=0)

    def _ring(self) -> None:
        failpoint.reach("timer.fired")
        self._alarm, self._alarm_us = None, 0
        self.ask_for_a_turn()

    def ask_for_a_turn(self) -> None:
        """For what the engine has to do by itself."""
        self._bridge.inbox.put_nowait([Occasion()])

    def undo(self) -> None:
        """Nothing of the turn happened, and what was due is due again, in a while."""
        self._coordination.discard()
        self._not_before_us = _uptime_us() + int(TIMER_RETRY_S * US_PER_S)
        there = {*self._bridge.connected(), *self._watched}
        for session in self._coordination.leases.sessions:
            if session not in there:
                self._silent.setdefault(session, self._not_before_us)


def _uptime_us() -> int:
    return time.monotonic_ns() // 1000
