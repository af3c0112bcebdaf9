"""The turn: take, decide, commit, publish, reply. The one place where state changes, one turn at a time.

The order is the promise. Nothing is visible before it is committed; no reply leaves before what it says is visible; a
known request gets its first reply before anything else is looked at. A refusal drops the request's overlay, a failed
commit the turn's, and then nothing that a reader or a resend can see has moved. Whose request is next says `fairness`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from solewriter.engine_proc import outcomes
from solewriter.engine_proc.betweenturns import BetweenTurns
from solewriter.engine_proc.bridge import Bridge, LaneEnd
from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints
from solewriter.engine_proc.coordination.making import Unready
from solewriter.engine_proc.coordination.waiting import Lines
from solewriter.engine_proc.decide import Draft
from solewriter.engine_proc.express import Express
from solewriter.engine_proc.fairness import SessionQueue
from solewriter.engine_proc.hellos import Hellos
from solewriter.engine_proc.intake import Intake
from solewriter.engine_proc.journal import DiskFull, Journal
from solewriter.engine_proc.newcomer import Newcomer
from solewriter.engine_proc.outcomes import Answer, refused_outcome, unavailable_outcome
from solewriter.engine_proc.overtime import Overtime, run_watched
from solewriter.engine_proc.parking import Parking
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.session import FORGOTTEN, NEVER, QUARANTINED, Session
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.state import State
from solewriter.engine_proc.tending import Occasion, Tending
from solewriter.engine_proc.turn import Turn
from solewriter.engine_proc.writing import decide_and_form, overtime, results_of, write
from solewriter.shared import failpoint, wireform
from solewriter.shared.config import LONG_TURN_US, Limits
from solewriter.shared.errors import (
    Expired,
    MemoryFull,
    Quarantined,
    Refused,
    Unavailable,
)
from solewriter.shared.journal.entry import Outcome
from solewriter.shared.wire import Status


class SingleWriter:
    """Owns the state and is the only one to change it. The steps of a turn have public names for one who takes
    them one by one, without `run`: `bench/steps.py`.
    """

    def __init__(
        self,
        state: State,
        sessions: Sessions,
        journal: Journal,
        publisher: Publisher,
        bridge: Bridge,
        limits: Limits,
        still_owner: Callable[[], None],
        checkpoints: Checkpoints | None,
    ) -> None:
        self.state = state
        self.sessions = sessions
        self.time_budget = state.time_budget
        self._coordination = state.coordination
        self._journal = journal
        self._publisher = publisher
        self._limits = limits
        self._still_owner = still_owner  # raises when the state folder is no longer this engine's
        self._stopping = False
        self._replies: dict[LaneEnd, list[Answer]] = {}  # of the turn that runs
        self._begin_deciding = publisher.root.begin_deciding

        lines = Lines()
        self.intake = Intake(bridge.inbox, state.coordination.making, limits.spin_s)
        self._express = Express(publisher.heap, state.coordination, limits, self._begin)
        self.between = BetweenTurns(state, journal, publisher, bridge.inbox, still_owner, checkpoints)
        self.tending = Tending(
            state, sessions, journal, bridge, limits, lines, self._decide_request, self._begin_deciding
        )
        self.parking = Parking(
            state, sessions, limits, lines, self._decide_request, self._say, self.tending.ask_for_a_turn
        )
        self._hellos = Hellos(sessions, bridge, self.tending, self.intake.waiting)

    async def run(self) -> None:
        """Turn after turn, until the inbox is closed and everything accepted before is done, or `stop` is called."""
        intake = self.intake
        intake.open()
        self.tending.set_alarm()
        while not self._stopping and await intake.take():
            if intake.between_turns:
                self._still_owner()
                await self.between.run(intake.between_turns.popleft())
                self.tending.set_alarm()  # with another class a claim can be taken away, say
                continue
            tail, now_us, uptime_us = self._publisher.heap.tail, time.time_ns() // 1000, time.monotonic_ns() // 1000
            turn = Turn(self.state, tail, now_us, uptime_us)
            self._coordination.begin(turn)
            await self.decide(turn)
            await self._commit(turn)
            self.reply()
            self.reclaim(turn.bytes)
            self.between.look()
            self.parking.make()
            self.tending.set_alarm()

    def reclaim(self, written: int) -> None:
        """After the replies left."""
        self.state.forget(
            self._publisher.reclaim(written, self.state.revision, self._journal.tail.number, self.state.counts)
        )

    def gone(self, lane: LaneEnd) -> None:
        """A session has no lane any more: of the silent ones it is the last to be forgotten, and its claims may end."""
        self.sessions.fell_silent(lane.session.number)
        self.tending.gone(lane)

    def stop(self) -> None:
        """Let the turn that runs be the last."""
        self._stopping = True

    def refuse_rest(self) -> None:
        """Tell those whose requests no turn will take. What came for the first time was not applied, or remembered."""
        self.intake.take_rest()
        for item in self.intake.between_turns:
            self.between.refuse(item)
        self.intake.between_turns.clear()
        for parked in self.parking.lines.clear():
            self._say(parked.lane, (parked.sequence, Status.UNAVAILABLE, self.state.revision, outcomes.STOPPED))
        for item in self.intake.waiting.clear():
            if isinstance(item, Newcomer):
                item.refuse("the engine is stopping")
            elif not isinstance(item, Occasion) and not item[0].superseded:
                lane, sequence, request = item
                self._say(
                    lane, outcomes.answer_untaken(self.sessions, lane.session, sequence, request, self.state.revision)
                )
        self.reply()

    # --- decide ------------------------------------------------------------------------------------------------------

    async def decide(self, turn: Turn) -> None:
        """Slice after slice, up to the bounds of a turn. Between two of them lanes are read and hellos are heard. Once
        somebody was served who asks for little, the turn does not go on for those who always ask for more.
        """
        waiting, limits, left = self.intake.waiting, self._limits, self._limits.batch_max
        begun = looked = now = time.monotonic()
        quiet = False
        self.time_budget.begin_turn()
        while waiting and left and turn.bytes < limits.turn_bytes_max and now - begun < limits.turn_max_s:
            if quiet and waiting.next.backlogged and now - begun >= limits.turn_slice_s:
                break
            slice_begun, slices = now, waiting.slices
            taken, now = self._slice(turn, waiting.next, left, now + slices * limits.turn_slice_s)
            took_s = now - slice_begun
            quiet |= waiting.served(took_s) and (slices == 1 or took_s <= limits.turn_slice_s)
            left -= taken
            if waiting and now - looked >= limits.turn_slice_s:
                self._publisher.root.end_deciding()
                await asyncio.sleep(0)
                if self.intake.take_more():
                    turn.set_time(time.time_ns() // 1000)
                looked = now = time.monotonic()
        self.parking.serve(turn)
        self.time_budget.end_turn()
        self._publisher.root.end_deciding()
        failpoint.reach("decide.done")

    def _slice(self, turn: Turn, queue: SessionQueue, most: int, until: float) -> tuple[int, float]:
        """The next requests of a queue, in their order, until then; how many, and when it was done."""
        items, bytes_max, left, now = queue.items, self._limits.turn_bytes_max, most, until
        lane: LaneEnd | None = None
        passed: Any = None  # what the express way has left
        answers: list[Answer] = []
        while items and left and turn.bytes < bytes_max:
            item = items[0]
            try:
                if item.__class__ is tuple:
                    sender: LaneEnd = item[0]
                    if sender is not lane:
                        lane, answers = sender, self._replies.setdefault(sender, [])
                    session = sender.session
                    if sender.superseded or sender.epoch != session.epoch or session.number in turn.sessions:
                        sender.superseded = True  # nobody listens there any more, whether this turn is committed or not
                    elif item is not passed and (
                        taken := self._express.take(turn, sender, items, answers, left, until)
                    ):
                        left -= taken
                        passed = items[0] if items else None
                        if (now := time.monotonic()) >= until:
                            break
                        continue
                    elif (answer := self._answer(turn, sender, item[1], item[2])) is not None:
                        answers.append(answer)
                    sender.taken += 1
                elif isinstance(item, Newcomer):
                    self._hellos.greet(turn, item)
                elif self.tending.tend(turn, item):
                    now = time.monotonic()
                    break
            except Unready:  # it stays where it is, and so does what its session asked behind it
                queue.held = True
                break
            del items[0]
            left -= 1
            if (now := time.monotonic()) >= until:
                break
        return most - left, now

    def _answer(self, turn: Turn, lane: LaneEnd, sequence: int, request: Any) -> Answer | None:
        """The answer to one request, known or new. None: it comes when its claim has what it waits for."""
        if request.__class__ is tuple and len(request) == 2:
            # no request: asked again, it is looked at again
            return outcomes.answer_query(turn, self.sessions, self.parking, sequence, request[1])
        session = lane.session
        outcome: Outcome | None
        if sequence <= session.last and sequence not in session.waiting:
            outcome = session.outcomes.get(sequence) or FORGOTTEN
        else:
            if self.parking.lines:
                self.parking.give_way(turn, request)
            if (outcome := self._decide_request(turn, session, sequence, request, lane)) is None:
                return None
        return sequence, outcome.status, outcome.revision, outcome.detail

    def _decide_request(
        self, turn: Turn, session: Session, sequence: int, request: Any, lane: LaneEnd | None, name: int = 0
    ) -> Outcome | None:
        """Decide a new request and note its outcome. None: it is a claim that waits for something to be ready. `name`:
        what it is known by, should the engine die of it, where that is not its number.
        """
        number = session.number
        self._begin(number, name or sequence)
        request_id = digest = None
        try:
            if isinstance(request, Refused):
                raise request  # what the bridge found wrong with it
            if sequence in session.fenced or (turn.fenced and (number, sequence) in turn.fenced):
                return outcomes.note_again(turn, number, sequence, NEVER)
            plain: wireform.PlainRequest = request
            if plain[2] is not None:
                digest = wireform.digest(plain)
                if (known := outcomes.known_id(turn, self.sessions, plain[2], digest)) is not None:
                    return outcomes.note_again(turn, number, sequence, known)
                request_id = plain[2]
            if session.quarantined and sequence in session.quarantined:
                raise Quarantined(QUARANTINED[1])
            if plain[3] is not None and time.monotonic_ns() // 1000 > plain[3]:
                raise Expired("the request's deadline passed before it was decided")
            attended = self._coordination.attends(turn, plain)
            draft = Draft(turn, session.name)
            if attended:
                draft.coordinate(number, engines_own=lane is None)
            touched, steps = run_watched(decide_and_form, draft, plain, turn, self._limits)
            if draft.wish is not None and self.parking.park(turn, draft.wish, lane, session, sequence, plain):
                return None
            if steps:
                write(turn, steps, request_id, session, sequence, self._publisher.heap)
            if attended:
                self._coordination.note(turn, draft, steps)
                if draft.claimed and lane is not None:
                    self.tending.claimed(lane)
            outcome = Outcome(number, sequence, Status.APPLIED, turn.revision, results_of(touched), request_id, digest)
        except Refused as error:
            outcome = refused_outcome(turn, number, sequence, error, request_id, digest)
        except Overtime:
            outcome = refused_outcome(turn, number, sequence, overtime(draft, self._limits), request_id, digest)
        except Unavailable as error:
            return unavailable_outcome(turn, number, sequence, error)
        turn.note(outcome)
        return outcome

    def _begin(self, session: int, sequence: int) -> None:
        """A request is about to be decided."""
        self._begin_deciding(session, sequence)
        failpoint.reach("decide.begin")

    def _say(self, lane: LaneEnd, answer: Answer) -> None:
        """One more answer of this turn."""
        self._replies.setdefault(lane, []).append(answer)

    # --- commit and publish -------------------------------------------------------------------------------------------

    async def _commit(self, turn: Turn) -> None:
        """Make the turn durable, then visible. Only a full disk or memory is survived; anything else ends the
        process.
        """
        if turn.empty:
            return
        failpoint.reach("turn.decided")
        self._still_owner()
        try:
            self._publisher.reserve(turn.slots(), turn.new_keys)
            self._journal.append(turn.revision, turn.now_us, turn.bodies, turn.private())
            await self._journal.commit(durable=turn.revision > self.state.revision or turn.binds)
        except (MemoryFull, DiskFull) as error:
            self._undo(turn, error)
            return
        if time.monotonic_ns() // 1000 - turn.uptime_us > LONG_TURN_US:  # it may have been stopped in the middle
            self._still_owner()
        self.merge(turn)
        failpoint.reach("turn.published")

    def merge(self, turn: Turn) -> None:
        """The committed turn becomes the state, then what readers see."""
        changed = turn.revision > self.state.revision
        self.state.merge(turn)
        self.sessions.remember(turn.outcomes)
        for request_id in turn.fenced_ids:
            self.sessions.fence(request_id)
        self.sessions.forget(turn.forgotten_sessions)  # with what was told of their numbers in this turn, too
        if turn.forgotten_sessions:
            failpoint.reach("session.forgotten")
        for change in turn.sessions.values():  # behind what their older lanes brought in this turn
            self.sessions.take(change)
        for number, sequence in turn.waiting:
            self.sessions.wait(number, sequence)
        if changed:
            self._publisher.publish(turn.installed, turn.revision, self._journal.tail.number, self.state.counts())

    def _undo(self, turn: Turn, error: Unavailable) -> None:
        """Nothing of the turn happened: what was decided anew is answered with the reason, and may be sent again."""
        self._publisher.reset(turn.tail)
        self._publisher.let_go()
        self.tending.undo()
        self.parking.undo(turn)
        detail = outcomes.not_now(error)
        new = {(outcome.session, outcome.sequence) for outcome in turn.outcomes}
        for lane, answers in self._replies.items():
            answers[:] = [
                (answer[0], Status.UNAVAILABLE, self.state.revision, detail)
                if answer[1] == Status.ANSWER or (lane.session.number, answer[0]) in new
                else answer
                for answer in answers
            ]
        self._hellos.refuse(str(error))

    # --- reply -------------------------------------------------------------------------------------------------------

    def reply(self) -> None:
        """Tell everybody, lane by lane, and listen again to those that had to wait. Who took over a session is admitted
        last, because that closes the older lane.
        """
        failpoint.reach("turn.reply")
        for lane, answers in self._replies.items():
            lane.reply(answers)
        self._replies.clear()
        self._hellos.admit()
        failpoint.reach("turn.done")
