"""Claims that wait: what found nothing is parked in its line, and decided again when something became ready, or when
its time is up.

What became ready goes to those who wait before anybody who comes for it now, to so many in a turn, and for as long as
a turn decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from solewriter.engine_proc.bridge import LaneEnd
from solewriter.engine_proc.coordination.making import Unready
from solewriter.engine_proc.coordination.waiting import Line, Lines, LinesOfKind, Parked, Wish
from solewriter.engine_proc.session import NEVER, Session
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.state import State
from solewriter.engine_proc.turn import Turn
from solewriter.shared import failpoint
from solewriter.shared.config import Limits
from solewriter.shared.errors import Refusal
from solewriter.shared.journal.entry import Outcome
from solewriter.shared.mutations import Op
from solewriter.shared.wire import Status
from solewriter.shared.wireform import PlainRequest

_CLAIM = Op.CLAIM.value
DecideRequest = Callable[[Turn, Session, int, Any, "LaneEnd | None", int], "Outcome | None"]


class Parking:
    """Serves the claims that wait in `lines`: `decide_request` and `say` are the writer's, to decide one and to answer
    it in this turn; `ask_for_a_turn` has another one follow, whatever comes.
    """

    def __init__(
        self,
        state: State,
        sessions: Sessions,
        limits: Limits,
        lines: Lines,
        decide_request: DecideRequest,
        say: Callable[[LaneEnd, Any], None],
        ask_for_a_turn: Callable[[], None],
    ) -> None:
        self.lines = lines
        self._state = state
        self._coordination = state.coordination
        self._sessions = sessions
        self._decide_request = decide_request
        self._say = say
        self._ask_for_a_turn = ask_for_a_turn
        self._served_max = limits.batch_max
        self._serve_s = limits.turn_max_s

    def park(
        self, turn: Turn, wish: Wish, lane: LaneEnd | None, session: Session, sequence: int, request: PlainRequest
    ) -> bool:
        """A claim that found nothing waits. False where it cannot: it asks for other things besides."""
        if lane is None or len(request[0]) + len(request[1]) != 1:
            return False
        if not lane.closed:  # else it is sent again by whoever comes back
            came = self._coordination.boards[wish.kind].ready.came
            self.lines.park(Parked(lane, session, sequence, request, wish), came)
        if sequence not in session.waiting:
            turn.waiting.append((session.number, sequence))
        failpoint.reach("claim.parked")
        return True

    def give_way(self, turn: Turn, request: Any) -> None:
        """Before a request is decided that may be a claim: what became ready in this turn is for those who wait."""
        if request.__class__ is tuple and any(mutation[0] == _CLAIM for mutation in request[0]):
            self.serve(turn)

    def serve(self, turn: Turn) -> None:
        """At the end of a turn, and before a claim of it: who waited long enough is told so, and what became ready goes
        to those who wait; what this turn has no time for has another one.
        """
        if not self.lines or turn.cut:
            return
        left, until = self._served_max, time.monotonic() + self._serve_s
        for parked in self.lines.overdue(turn.uptime_us, left):
            try:
                left -= self._is_decided(turn, parked)
            except Unready:
                break  # it is told so when that is made
        for kind, of_kind in list(self.lines.by_kind.items()):
            board = self._coordination.boards.get(kind)
            if board is not None:
                board.advance(turn.now_us)
            of_kind.look(board.ready if board is not None else None)
            for line in list(of_kind.due.values()):
                if left:
                    left = self._serve_line(turn, of_kind, line, left, until)
                if not left or time.monotonic() >= until:
                    self.lines.put_last(kind, line)  # in the next turn others come first
                    turn.cut = True
                    self._ask_for_a_turn()
                    return

    def _serve_line(self, turn: Turn, of_kind: LinesOfKind, line: Line, left: int, until: float) -> int:
        """How many may be served besides."""
        kind, over = line.wish.kind, False
        while not over:
            for parked in list(line.waiting.values()):
                came = self._came(kind)
                if 0 <= came == line.looked:
                    break
                if line.is_denied(parked, came):
                    continue
                try:
                    left -= self._is_decided(turn, parked)
                except Unready:  # it is looked at again when that is made, and others first
                    of_kind.put_last(line)
                    if not self._coordination.making:
                        self._ask_for_a_turn()
                    return left
                if not left or time.monotonic() >= until:
                    line.pause(self._came(kind))
                    return left
            over = line.ends(self._came(kind))
        of_kind.due.pop(line.wish.said, None)
        return left

    def _came(self, kind: int) -> int:
        """How much of a kind has become ready; -1 where nobody knows."""
        board = self._coordination.boards.get(kind)
        return -1 if board is None else board.ready.came

    def _is_decided(self, turn: Turn, parked: Parked) -> bool:
        """Whether a claim that waits is answered now. Raises Unready."""
        outcome = self._decide_request(turn, parked.session, parked.sequence, parked.request, parked.lane, 0)
        if outcome is None:
            return False
        self.lines.leave((parked.session.number, parked.sequence))
        self._say(parked.lane, (parked.sequence, outcome.status, outcome.revision, outcome.detail))
        return True

    def gives_up(self, turn: Turn, asked: tuple[int, int]) -> bool:
        """Whether a claim that somebody asks about was waiting; then it waits no more, and is told so."""
        session = self._sessions.get(asked[0])
        parked = self.lines.leave(asked)
        if parked is not None:
            self._say(parked.lane, (parked.sequence, NEVER.status, turn.revision, NEVER.detail))
        return parked is not None or (session is not None and asked[1] in session.waiting)

    def make(self) -> None:
        """A slice of what requests need to be decided. When it is done, those that wait in lines are looked at, too."""
        making = self._coordination.making
        if making:
            making.go_on()
            if not making and self.lines:
                self._ask_for_a_turn()

    def undo(self, turn: Turn) -> None:
        """Nothing of the turn happened: who was parked in it is told so."""
        detail: Refusal = "EngineUnavailable", "the claim could not be noted: ask again", {}
        for asked in turn.waiting:
            parked = self.lines.leave(asked)
            if parked is not None:
                self._say(parked.lane, (parked.sequence, Status.UNAVAILABLE, self._state.revision, detail))
