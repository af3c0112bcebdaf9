"""The verbs of coordination, as coroutines. `verbs` has the same for the client that blocks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from solewriter.agents.aio.requesting import AioRequests
from solewriter.agents.conflicts import conditional
from solewriter.agents.reading.readiness import is_anything_left
from solewriter.agents.verbs import (
    ENDING,
    Until,
    claim_mutation,
    patience_with,
    predicate_of,
    reason_of,
    unended_note,
)
from solewriter.shared.config import WORK_PATIENCE_S
from solewriter.shared.entity import Entity, Ref, model_of
from solewriter.shared.errors import OutcomeUnknown, Refused, ResultUnavailable, SolewriterError, Unavailable
from solewriter.shared.fieldform import merge_given
from solewriter.shared.models import Task
from solewriter.shared.mutations import (
    Alter,
    Complete,
    Fail,
    Redrive,
    Release,
    Renew,
)
from solewriter.shared.operations import Operation
from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)
T = TypeVar("T", bound=Task)


class AioVerbs(AioRequests):
    """Of agents that share work. A claimed task is this client's: later requests about it show the claim by themselves,
    and raise Fenced when it was lost.
    """

    async def alter(
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
        return await self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    # --- claiming ----------------------------------------------------------------------------------------------------

    async def claim(
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
        tasks = await self.claim_many(
            kind, 1, where=where, timeout_s=timeout_s, lease_s=lease_s, assignee=assignee, reason=reason,
            request_id=request_id,
        )  # fmt: skip
        return tasks[0] if tasks else None

    async def claim_many(
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
        while self._unwanted:
            unwanted, its_kind = self._unwanted.popitem()
            self._give_up(its_kind, unwanted)
        claim = claim_mutation(kind, where, count, timeout_s, lease_s, assignee, reason)
        patience_s = max(0, timeout_s) + self._limits.request_timeout_s
        try:
            reply = await self.submit(claim, request_id=request_id, timeout_s=patience_s)
        except asyncio.CancelledError as cancelled:
            if isinstance(cancelled.__cause__, OutcomeUnknown):
                self._give_up(kind, cancelled.__cause__.request_id)
            raise
        try:
            return await self._entities(reply, kind)
        except asyncio.CancelledError:  # while memory was handed over
            self._give_up(kind, reply.request_id)
            raise

    def _give_up(self, kind: type[Task], request_id: str) -> None:
        """Nobody waits for a claim any more: what it brings, or brought, is given back. A task of one's own would be
        complained of where `asyncio.run` ends: it cancels the claim, and does not wait for what begins then.
        """
        giving_up = asyncio.gather(self._give_back(kind, request_id))
        self._giving_up.add(giving_up)
        giving_up.add_done_callback(self._gave_up)

    def _gave_up(self, giving_up: asyncio.Future[tuple[None]]) -> None:
        self._giving_up.discard(giving_up)
        if not giving_up.cancelled():
            giving_up.exception()  # one that `close` has cut off is not complained of

    async def _give_back(self, kind: type[Task], request_id: str) -> None:
        try:
            outcome = await self.outcome(request_id)  # one that waits is answered by the question
            for result in self._claimed_results(request_id, outcome):
                request = self._release_request(kind, result, "its claim was cancelled")
                deadline = self._deadline(None)
                (sent,) = await self._exchange.send([request], deadline)
                self._tokens.note_sent([sent], [request])
                error = (await self._answer_to(sent, self._reply, deadline)).error  # it may be lost already
                if isinstance(error, Unavailable):
                    raise error
        except Unavailable:
            if not self._tokens.never_left(request_id):  # the engine has no time: with the next claim, or
                self._unwanted[request_id] = kind  # when this process ends
        except SolewriterError:
            pass  # another client has the session, and what it held

    async def complete(
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
        return await self._submit_one(mutation, model_of(task), request_id, timeout_s)

    async def fail(
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
        return await self._submit_one(mutation, model_of(task), request_id, timeout_s)

    async def release(
        self, task: T | Ref[T], *, reason: str = "", request_id: str | None = None, timeout_s: float | None = None
    ) -> T:
        """Give a claimed task back; this attempt does not count. Raises Fenced."""
        return await self._submit_one(Release(task, reason), model_of(task), request_id, timeout_s)

    async def renew(self, task: T | Ref[T], lease_s: float, *, timeout_s: float | None = None) -> None:
        """Hold a claimed task for so long from now. Makes no version. Raises Fenced; InvalidMutation for one that was
        not claimed here.
        """
        (await self.submit(Renew(task, lease_s), timeout_s=timeout_s)).check()

    async def redrive(
        self, task: T | Ref[T], *, reason: str = "", request_id: str | None = None, timeout_s: float | None = None
    ) -> T:
        """Let a failed or interrupted task, a dead letter say, be tried again, now and from the first attempt on."""
        return await self._submit_one(Redrive(task, reason), model_of(task), request_id, timeout_s)

    @asynccontextmanager
    async def attempt(self, task: T) -> AsyncIterator[T]:
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
                await self._end_attempt(end, task, reason_of(error), error)
            raise

    async def _end_attempt(self, end: Callable[..., Awaitable[T]], task: T, reason: str, error: BaseException) -> None:
        """Because of an error that is raised on, and has a note if the engine did not confirm that."""
        try:
            await end(task, reason=self._fitting(reason), timeout_s=patience_with(error))
        except ResultUnavailable:
            pass  # it ended: what that left is for others to read
        except SolewriterError as untold:
            error.add_note(unended_note(task, untold))

    async def work(
        self,
        kind: type[T],
        *,
        where: Where | None = None,
        lease_s: float | None = None,
        until: Until | None = None,
        **fields: Any,
    ) -> AsyncIterator[T]:
        """Claim one ready task after the other, waiting while others may bring more, until nothing is left that
        anybody works at or that will be ready by itself. `project="p"` and the like are short for `where`.

        It ends also when `until` holds: an event, or a function, async only where the client is. That is looked at
        before each claim, once a second while one waits, and behind it: what it brought then is given back untried.
        """
        wanted, asked = {**(where or {}), **fields}, predicate_of(until)

        async def is_over() -> object:
            over = asked()
            return await over if inspect.isawaitable(over) else over

        while not await is_over():
            task = await self.claim(kind, where=wanted, timeout_s=WORK_PATIENCE_S, lease_s=lease_s)
            if task is None:
                with await self.reader.snapshot() as snap:  # may be of very many tasks: the loop has others to serve
                    if not await self.reader.beside(partial(is_anything_left, snap, kind, wanted)):
                        return
                continue
            try:
                over = await is_over()
            except BaseException as error:
                await self._end_attempt(self.release, task, ENDING, error)
                raise
            if over:
                with suppress(Refused, ResultUnavailable):  # taken away already; given back, and not to be read here
                    await self.release(task, reason=self._fitting(ENDING))
                return
            yield task
