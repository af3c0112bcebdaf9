"""The verbs of coordination, for the client that blocks. `aio.verbs` has the same as coroutines."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from solewriter.agents.answers import entities_of
from solewriter.agents.conflicts import conditional
from solewriter.agents.deadline import deadline_us, is_patience, no_time
from solewriter.agents.pending import is_interrupt
from solewriter.agents.reading.anyreader import plain_answer
from solewriter.agents.reading.readiness import is_anything_left
from solewriter.agents.requesting import Requests
from solewriter.shared.config import GIVE_BACK_S, MESSAGE_MAX, WORK_PATIENCE_S
from solewriter.shared.entity import Entity, Ref, model_of
from solewriter.shared.errors import (
    OutcomeUnknown,
    Refused,
    ResultUnavailable,
    SolewriterError,
    Unavailable,
    clean,
    safe_repr,
)
from solewriter.shared.fieldform import merge_given
from solewriter.shared.models import Task
from solewriter.shared.mutations import (
    Alter,
    Claim,
    Complete,
    Fail,
    Redrive,
    Release,
    Renew,
    Reply,
)
from solewriter.shared.operations import Operation
from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)
T = TypeVar("T", bound=Task)
ENDING = "its agent ends"  # why what it was granted at the last moment is given back


class Verbs(Requests):
    """Of agents that share work. A claimed task is this client's: later requests about it show the claim by themselves,
    and raise Fenced when it was lost.
    """

    def alter(
        self,
        target: E | Ref[E],
        operations: Mapping[str, Operation] | None = None,
        /,
        *,
        where: Where | None = None,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        **more: Operation,
    ) -> E:
        """Operations on fields, such as `hits=Increment()`, whatever they hold by then: no version is compared, and
        nobody is overtaken. With `where`, only if its fields are like that. Raises InvalidMutation for what cannot be
        done with a field; GuardFailed.
        """
        mutation, guards = conditional(Alter(target, merge_given(operations, more), reason=reason), where)
        return self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    # --- claiming ----------------------------------------------------------------------------------------------------

    def claim(
        self,
        kind: type[T],
        *,
        where: Where | None = None,
        timeout_s: float = 0,
        lease_s: float | None = None,
        assignee: str | None = None,
        reason: str = "",
        request_id: str | None = None,
    ) -> T | None:
        """The best ready task, by priority, then age, now in progress and this agent's; None if there is none within
        `timeout_s`.

        The claim lasts as long as this process, and with `lease_s` at most so long from now, unless it is renewed.
        """
        tasks = self.claim_many(
            kind, 1, where=where, timeout_s=timeout_s, lease_s=lease_s, assignee=assignee, reason=reason,
            request_id=request_id,
        )  # fmt: skip
        return tasks[0] if tasks else None

    def claim_many(
        self,
        kind: type[T],
        count: int,
        *,
        where: Where | None = None,
        timeout_s: float = 0,
        lease_s: float | None = None,
        assignee: str | None = None,
        reason: str = "",
        request_id: str | None = None,
    ) -> list[T]:
        """The best `count` ready tasks, or as many as there are; waits only while there is none. Cancelled, or
        interrupted by Ctrl-C say, it gives back what it was granted; with the next claim, where the engine does not
        answer.
        """
        self._give_back()
        claim = claim_mutation(kind, where, count, timeout_s, lease_s, assignee, reason)
        patience_s = max(0, timeout_s) + self._limits.request_timeout_s
        reply: Reply | None = None
        try:
            reply = self.submit(claim, request_id=request_id, timeout_s=patience_s)
            return entities_of(reply, kind)
        except BaseException as interrupted:
            asked = reply or interrupted.__cause__
            if is_interrupt(interrupted) and isinstance(asked, Reply | OutcomeUnknown):
                self._unwanted[asked.request_id] = kind
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Nobody waits for these claims any more, nor wants what they brought. Each is noted until that is done:
        another Ctrl-C, or an engine that has no time, leaves it to the next claim, or to the end of this process.
        """
        for request_id, kind in list(self._unwanted.items()):
            try:
                outcome = self.outcome(request_id, timeout_s=GIVE_BACK_S)  # one that waits is answered by it
                for result in self._claimed_results(request_id, outcome):
                    request = self._release_request(kind, result, "its claim was interrupted")
                    deadline = self._deadline(GIVE_BACK_S)
                    (sent,) = self._exchange.send([request], deadline)
                    self._tokens.note_sent([sent], [request])
                    if isinstance(error := self._reply_to(sent, deadline).error, Unavailable):
                        raise error
            except Unavailable:
                return
            except SolewriterError as error:
                if is_interrupt(error):
                    raise
                # else another client has the session, and what it held
            self._unwanted.pop(request_id, None)

    def complete(
        self,
        task: T | Ref[T],
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> T:
        """The work is done: through review to completed, `result=` and other fields with it. Raises Fenced."""
        mutation = Complete(task, merge_given(changes, fields), reason)
        return self._submit_one(mutation, model_of(task), request_id, timeout_s)

    def fail(
        self,
        task: T | Ref[T],
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        final: bool = False,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> T:
        """This attempt failed. While attempts are left it is ready again after a rest, or from `not_before=` on; with
        `final`, it is a dead letter. Raises Fenced.
        """
        mutation = Fail(task, merge_given(changes, fields), final, reason)
        return self._submit_one(mutation, model_of(task), request_id, timeout_s)

    def release(
        self, task: T | Ref[T], *, reason: str = "", request_id: str | None = None, timeout_s: float | None = None
    ) -> T:
        """Give a claimed task back; this attempt does not count. Raises Fenced."""
        return self._submit_one(Release(task, reason), model_of(task), request_id, timeout_s)

    def renew(self, task: T | Ref[T], lease_s: float, *, timeout_s: float | None = None) -> None:
        """Hold a claimed task for so long from now. Makes no version. Raises Fenced; InvalidMutation for one that was
        not claimed here.
        """
        self.submit(Renew(task, lease_s), timeout_s=timeout_s).check()

    def redrive(
        self, task: T | Ref[T], *, reason: str = "", request_id: str | None = None, timeout_s: float | None = None
    ) -> T:
        """Let a failed or interrupted task, a dead letter say, be tried again, now and from the first attempt on."""
        return self._submit_one(Redrive(task, reason), model_of(task), request_id, timeout_s)

    @contextmanager
    def attempt(self, task: T) -> Iterator[T]:
        """In a `with`, an attempt at a task that was claimed here. An exception that leaves it ends that: as `fail`
        does, with its text as the reason; Ctrl-C, a cancellation and the like as `release` does. It is raised on, and
        has a note if the engine did not confirm that. What was handed in, given back or lost by then stays so.

        Raises InvalidMutation for a task that was not claimed here.
        """
        token = self._claim_of(task)
        try:
            yield task
        except BaseException as error:
            if self.holds(type(task), task.id) == token:
                end = self.fail if isinstance(error, Exception) else self.release
                self._end_attempt(end, task, reason_of(error), error)
            raise

    def _end_attempt(self, end: Callable[..., T], task: T, reason: str, error: BaseException) -> None:
        """Because of an error that is raised on, and has a note if the engine did not confirm that."""
        try:
            end(task, reason=self._fitting(reason), timeout_s=patience_with(error))
        except ResultUnavailable:
            pass  # it ended: what that left is for others to read
        except SolewriterError as untold:
            error.add_note(unended_note(task, untold))

    def work(
        self,
        kind: type[T],
        *,
        where: Where | None = None,
        lease_s: float | None = None,
        until: Until | None = None,
        **fields: Any,
    ) -> Iterator[T]:
        """Claim one ready task after the other, waiting while others may bring more, until nothing is left that
        anybody works at or that will be ready by itself. `project="p"` and the like are short for `where`.

        It ends also when `until` holds: an event, or a function, async only where the client is. That is looked at
        before each claim, once a second while one waits, and behind it: what it brought then is given back untried.
        """
        wanted, is_over = {**(where or {}), **fields}, predicate_of(until)
        while not plain_answer(is_over()):
            task = self.claim(kind, where=wanted, timeout_s=WORK_PATIENCE_S, lease_s=lease_s)
            if task is None:
                with self.reader.snapshot() as snap:
                    if not is_anything_left(snap, kind, wanted):
                        return
                continue
            try:
                over = plain_answer(is_over())
            except BaseException as error:
                self._end_attempt(self.release, task, ENDING, error)
                raise
            if over:
                with suppress(Refused, ResultUnavailable):  # taken away already; given back, and not to be read here
                    self.release(task, reason=self._fitting(ENDING))
                return
            yield task


def reason_of(error: BaseException) -> str:
    """What ended an attempt, as text that can be stored."""
    return clean("".join(traceback.format_exception_only(error)).strip(), MESSAGE_MAX)


def patience_with(error: BaseException) -> float | None:
    """How long a request may take that comes before this is raised on: of Ctrl-C and the like, not long."""
    return None if isinstance(error, Exception) else GIVE_BACK_S


def unended_note(task: Task, why: SolewriterError) -> str:
    """A note for who sees what should have ended an attempt."""
    told = f"{type(why).__name__}: {why}"
    return f"the engine did not confirm that this ended the attempt at {task.kind_name} {task.id!r}: {told}"


class Event(Protocol):
    """What `threading`, `multiprocessing` and `asyncio` have by this name."""

    def is_set(self) -> bool:
        """Whether it happened."""


Until = Callable[[], object] | Event


def predicate_of(until: Until | None) -> Callable[[], object]:
    """The function that says whether work is over: the event's `is_set`, or `until` itself; one that says no for None.
    Raises TypeError for anything else.
    """
    asked = _never if until is None else getattr(until, "is_set", until)
    if not callable(asked):
        raise TypeError(f"until is an event, or a function without parameters, not {safe_repr(until)}")
    return asked


def _never() -> bool:
    return False


def claim_mutation(
    kind: type[Task],
    where: Where | None,
    count: int,
    timeout_s: float,
    lease_s: float | None,
    assignee: str | None,
    reason: str,
) -> Claim:
    """The mutation, with the time until which it waits on the clock that all share. Raises InvalidMutation for what is
    no number of seconds.
    """
    if not is_patience(timeout_s):
        raise no_time("timeout_s", timeout_s)
    until_us = deadline_us(timeout_s) if timeout_s > 0 else None
    return Claim(kind, where or {}, count, lease_s, assignee, until_us, reason)
