"""Hellos in the turn: the next epoch of each one's session is journaled with it; they are welcome when it is over."""

from __future__ import annotations

import msgspec

from solewriter.engine_proc.bridge import Bridge
from solewriter.engine_proc.fairness import FairQueueing
from solewriter.engine_proc.newcomer import Newcomer
from solewriter.engine_proc.sessions import HelloRefused, Sessions
from solewriter.engine_proc.tending import Tending
from solewriter.engine_proc.turn import Turn
from solewriter.shared import failpoint
from solewriter.shared.journal.entry import SessionChange
from solewriter.shared.request_ids import session_number
from solewriter.shared.system.processes import start_time_of


class Hellos:
    """Greets newcomers in a turn, and when that is committed welcomes them; when it is not, refuses them."""

    def __init__(self, sessions: Sessions, bridge: Bridge, tending: Tending, waiting: FairQueueing) -> None:
        self._sessions = sessions
        self._bridge = bridge
        self._tending = tending
        self._waiting = waiting
        self._greeted: list[tuple[Newcomer, SessionChange, int]] = []  # and the number of the lane's first frame

    def greet(self, turn: Turn, newcomer: Newcomer) -> None:
        """From now on older lanes of its session are not listened to any more."""
        sessions = self._sessions
        try:
            number = session_number(newcomer.hello.client_id)
            if number in turn.forgotten_sessions:
                raise HelloRefused("this session is just being forgotten", "again")
            pending = turn.sessions.get(number)
            change, first = sessions.greet(newcomer.hello, pending, turn.last_of)
            change = msgspec.structs.replace(change, pid=newcomer.pid, born=start_time_of(newcomer.pid))
            if sessions.get(number) is None and pending is None:
                coming = sum(sessions.get(one) is None for one in turn.sessions)
                busy = {*self._bridge.connected(), *turn.sessions, *turn.forgotten_sessions}
                coming -= len(turn.forgotten_sessions)
                holding = turn.coordination.leases.sessions
                turn.forgotten_sessions += sessions.surplus(1 + coming, busy, self._waiting.sessions, holding)
        except HelloRefused as error:
            newcomer.refuse(str(error), error.refusal)
            return
        self._bridge.supersede(change.session)
        self._tending.greet(change.session)
        turn.sessions[change.session] = change
        self._greeted.append((newcomer, change, first))
        failpoint.reach("session.greeted")

    def refuse(self, why: str) -> None:
        """The turn could not be committed."""
        for newcomer, change, _ in self._greeted:
            newcomer.refuse(why)
            self._bridge.drop(change.session)  # its older lane was not listened to in this turn
        self._greeted.clear()

    def admit(self) -> None:
        """Behind the turn's replies: this closes older lanes."""
        for newcomer, change, first in self._greeted:
            session = self._sessions.get(change.session)
            if session is not None:
                self._bridge.admit(newcomer, session, first)
        self._greeted.clear()
