"""Mutations of whoever works at tasks: claim, complete, fail, release, renew, redrive; and the loss of a claim.

A claim is told by its token, the version that it made: versions only grow, so an old token is never right again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zlib_ng.zlib_ng import crc32

from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.coordination import ALONE
from solewriter.engine_proc.coordination.leases import renewed
from solewriter.engine_proc.coordination.making import Unready
from solewriter.engine_proc.coordination.ready import Candidate
from solewriter.engine_proc.coordination.waiting import Wish
from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.engine_proc.decide.fencing import end_claim
from solewriter.engine_proc.decide.guards import check_column
from solewriter.engine_proc.decide.lifecycle import free_step_fields, refusal
from solewriter.engine_proc.overtime import Overtime, run_watched
from solewriter.shared.config import LEASE_MOST_S, REST_MOST_S, US_PER_S, Limits
from solewriter.shared.errors import BadRequest, InvalidMutation, Refused, RequestTooLarge, SchemaMismatch, Unavailable
from solewriter.shared.journal.entry import Lease
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import encode
from solewriter.shared.mutations import Op
from solewriter.shared.readiness import CLAIMABLE, HELD
from solewriter.shared.taskform import FINAL, check_kind_of_tasks
from solewriter.shared.where import demands
from solewriter.shared.wireform import PlainMutation

LEASE_MOST_US = int(LEASE_MOST_S * US_PER_S)
AT_WORK = ("assigned", "in_progress", "in_review")


def claim(draft: Draft, mutation: PlainMutation) -> list[Step]:
    """The best ready tasks, or a place among those who wait, or nothing."""
    _, kind_name, _, _, said, reason, _ = mutation
    turn = draft.turn
    state, kind = draft.known(kind_name)
    check_kind_of_tasks(kind)
    count, where, lease_us, assignee, until_us = _wish(said, draft.actor)
    most = turn.coordination.limits.request_mutations_max
    draft.wanted += count
    if draft.wanted > most:
        raise RequestTooLarge(f"a request claims at most {most:,} tasks (request_mutations_max)")
    wanted = demands(kind, where)
    for demand in wanted:
        check_column(kind, demand.name)
    board = turn.coordination.board(state)
    board.advance(turn.now_us)
    claiming = _Claiming(draft, state.code, kind, board, assignee, lease_us, reason)
    budget = turn.coordination.time_budget
    if kind in budget.endless:
        budget.hurry(True)
    try:
        board.ready.best(wanted, turn.coordination.projects().keeps, count, claiming.offer)
    finally:
        if kind in budget.endless:
            budget.hurry(False)
    draft.claimed += claiming.taken
    if not claiming.taken and until_us > turn.uptime_us:
        draft.wish = Wish(state.code, encode(where), wanted, until_us, assignee, claiming.denied)
    return claiming.taken


class _Claiming:
    """One claim on its way through the ready tasks: what it has taken, and whether it was denied any."""

    def __init__(
        self, draft: Draft, code: int, kind: Kind, board: Board, assignee: str, lease_us: int, reason: Any
    ) -> None:
        self.taken: list[Step] = []
        self.denied = False
        self._draft = draft
        self._code = code
        self._kind = kind
        self._board = board
        self._assignee = assignee
        self._lease_us = lease_us
        self._reason = reason

    def offer(self, candidate: Candidate) -> bool | None:
        """Whether it is this assignee's now. None: this very request has it already. Raises Unready."""
        key, board = candidate.key, self._board
        step = self._draft.steps.get((self._kind.name, key))
        if step is not None and step.op:
            self.denied = True
            board.denied.add(key)
            return None
        if self._assignee in candidate.denied_to:
            self.denied = True
            return False
        step = self._take(key)
        if step is None:
            self.denied = True
            board.deny(candidate, self._assignee)
            return False
        self._lease(step)
        step.assignee = self._assignee
        self.taken.append(step)
        return True

    def _take(self, key: str) -> Step | None:
        """The task in the assignee's hands, within a model's time; None where that cannot be."""
        if key in self._board.unfit:
            return None
        try:
            return run_watched(_try_to_assign, self._draft, self._kind.name, key, self._assignee, self._reason)
        except Overtime as error:
            if not error.alone:
                raise
            self._board.pass_over(key)
            self._draft.turn.coordination.time_budget.endless.add(self._kind)
            raise Unready from error  # what is left of the time is not enough for the others

    def _lease(self, step: Step) -> None:
        draft, lease_us = self._draft, self._lease_us
        lease = Lease(self._code, step.key, step.version, draft.session, lease_us)
        draft.leases[self._code, step.key] = renewed(lease, lease_us, draft.turn.uptime_us) if lease_us else lease


def _wish(said: Any, actor: str) -> tuple[int, Any, int, str, int]:
    """What a claim asks for. Raises BadRequest for another shape."""
    if type(said) is not dict:
        raise BadRequest("a claim says what it wants")
    count, lease_us = said.get("count", 1), said.get("lease_us") or 0
    assignee, until_us = said.get("assignee") or actor, said.get("until_us") or 0
    if (
        any(type(number) is not int or number < 0 for number in (count, lease_us, until_us))
        or not count
        or lease_us > LEASE_MOST_US
    ):
        raise BadRequest("a claim's count, lease and patience are whole numbers, and it asks for something")
    if type(assignee) is not str:
        raise BadRequest("an assignee is text")
    return count, said.get("where", {}), lease_us, assignee, until_us


def _try_to_assign(draft: Draft, kind_name: str, key: str, assignee: str, reason: str) -> Step | None:
    """A task in the hands of this assignee. None where its class cannot read it any more, or its own rules do not let
    this assignee have it: others are not kept waiting behind it.
    """
    try:
        step = draft.step(kind_name, key)
        _assign(step, assignee, reason)
        return step
    except (SchemaMismatch, InvalidMutation):
        pass
    except (Refused, Unavailable, Overtime, AssertionError):
        raise
    except BaseException:  # of its model, as in `decide_and_form`
        pass
    draft.steps.pop((kind_name, key), None)  # nothing was asked of it
    return None


def _assign(step: Step, assignee: str, reason: str) -> None:
    """The task is in progress, and this assignee's. Raises InvalidMutation."""
    changes = {
        "status": "in_progress",
        "assigned_to": assignee,
        "attempts": step.field("attempts") + 1,
        "claim": step.version,
        "not_before": None,
    }
    step.change(Op.CLAIM.value, reason, changes)
    if step.kind.recasts:  # then its own code may have made something that has no bytes
        step.kind.payload(step.fields)


def complete(draft: Draft, mutation: PlainMutation) -> Step:
    step = _at_work(draft, mutation, "completed", ("in_progress", "in_review"))
    step.change(Op.COMPLETE.value, mutation[5], {**free_step_fields(step, mutation[4]), "status": "completed"})
    return step


def fail(draft: Draft, mutation: PlainMutation) -> Step:
    step = _at_work(draft, mutation, "failed", AT_WORK)
    said = free_step_fields(step, mutation[4])
    changes: dict[str, Any] = {**said, "status": "failed", "assigned_to": None}
    first, most = (  # as they are to be from now on
        step.kind.field(name, said[name]) if name in said else step.field(name)
        for name in ("retry_delay_s", "max_retries")
    )
    attempts = step.field("attempts")
    if mutation[6] == FINAL:
        changes["attempts"] = max(attempts, most + 1)
    elif attempts <= most and "not_before" not in said:  # else the caller knows better
        delay_us = int(back_off_s(step, first, attempts, draft.turn.coordination.limits) * US_PER_S)
        changes["not_before"] = from_us(draft.turn.now_us + delay_us) if delay_us else None
    step.change(Op.FAIL.value, mutation[5], changes)
    end_claim(draft, step)
    return step


def back_off_s(step: Step, first: float | None, attempts: int, limits: Limits) -> float:
    """How long a task rests after so many attempts: doubled each time, up to a bound, and between half and all of that,
    so that those that failed together do not come back together. Chance is the key's and version's sum.
    """
    delay = (limits.retry_backoff_s if first is None else first) * 2.0 ** min(max(0, attempts - 1), 60)
    part = crc32(f"{step.key}/{step.version}".encode()) / 2**32
    return float(min(delay, max(limits.retry_backoff_max_s, first or 0), REST_MOST_S) * (0.5 + part / 2))


def release(draft: Draft, mutation: PlainMutation) -> Step:
    step = _at_work(draft, mutation, "interrupted", AT_WORK)
    attempts = max(0, step.field("attempts") - 1)
    step.change(Op.RELEASE.value, mutation[5], {"status": "interrupted", "assigned_to": None, "attempts": attempts})
    end_claim(draft, step)
    return step


def renew(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, said, _, _ = mutation
    step = draft.step(kind_name, key)
    step.require(expect)
    lease_us = said.get("lease_us") if type(said) is dict else None
    if type(lease_us) is not int or not 0 < lease_us <= LEASE_MOST_US:
        raise BadRequest("a lease is renewed for some time")
    place = step.state.code, key
    lease = draft.lease(place)
    if lease is None or draft.shown.get(place) != lease.token:
        problem = f"{kind_name} {key!r} is not claimed here, or not any more: there is nothing to renew"
        raise InvalidMutation(problem, fields={"claim": "not held here"})
    draft.leases[place] = renewed(lease, lease_us, draft.turn.uptime_us)
    return step


def redrive(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, _, reason, _ = mutation
    step = _task(draft, kind_name, key, expect)
    status = step.field("status")
    if status not in CLAIMABLE:
        raise refusal(step, status, "ready")
    step.change(Op.REDRIVE.value, reason, {"attempts": 0, "not_before": None})
    return step


def expire(draft: Draft, mutation: PlainMutation) -> Step:
    """A claim is lost: nobody has the task any more. Only the engine says so. A task that nobody works at stays as it
    is: journals of before may hold a claim of one that is over.
    """
    _, kind_name, key, _, _, reason, what = mutation
    if not draft.engines_own:
        raise BadRequest("only the engine takes claims away")
    draft.alone = what == ALONE
    step = draft.step(kind_name, key)
    step.require(None)
    if step.field("status") in HELD:
        step.change(Op.EXPIRE.value, reason, {"status": "interrupted", "assigned_to": None})
    else:
        draft.leases[step.state.code, key] = None
    return step


def _at_work(draft: Draft, mutation: PlainMutation, to: str, among: tuple[str, ...]) -> Step:
    """A task that somebody works at. Raises InvalidTransition."""
    step = _task(draft, *mutation[1:4])
    status = str(step.field("status"))
    if status not in among:
        raise refusal(step, status, to)
    return step


def _task(draft: Draft, kind_name: str, key: str, expect: int | None) -> Step:
    step = draft.step(kind_name, key)
    check_kind_of_tasks(step.kind)
    step.require(expect)
    return step


DECIDERS: Mapping[int, Any] = {
    Op.CLAIM.value: claim,
    Op.COMPLETE.value: complete,
    Op.FAIL.value: fail,
    Op.RELEASE.value: release,
    Op.RENEW.value: renew,
    Op.REDRIVE.value: redrive,
    Op.EXPIRE.value: expire,
}
