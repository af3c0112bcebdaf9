"""`AioRequests`: what every verb of the client for asyncio comes to; see `requesting`."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

from solewriter.agents.admission import pipeline, sends_more
from solewriter.agents.aio.exchange import AioExchange
from solewriter.agents.aio.reader import AioReader, Memory
from solewriter.agents.answers import Answers, Outcome, entities_of, entity_or_error
from solewriter.agents.anyclient import AnyClient
from solewriter.agents.conflicts import judge_conflict
from solewriter.agents.deadline import Timed, deadline_us, with_deadlines
from solewriter.agents.farewell import say_farewell
from solewriter.agents.pending import Pending, Sent, name_request
from solewriter.shared import wireform
from solewriter.shared.config import DEFAULT_LIMITS, GIVE_BACK_S, Limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import OutcomeUnknown, Refused, RequestTooLarge, SolewriterError, Unavailable
from solewriter.shared.mutations import GuardMutation, Mutation, Reply
from solewriter.shared.wireform import OutcomeQuery, PlainRequest

E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class AioRequests(AnyClient):
    """One agent's session and lane, for the coroutines of one event loop."""

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        name: str = "",
        client_id: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(state, name=name, client_id=client_id, limits=limits)
        self._memory = Memory(state, limits, self._registry)
        self._exchange = AioExchange(self.folder, self._session, limits, self._memory.look_on, self._tokens.note_sent)
        self._answers = Answers(self._memory, self._registry)
        self._giving_up: set[asyncio.Future[tuple[None]]] = set()
        self.reader = AioReader(self._memory, limits)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        *mutations: Mutation,
        guards: Iterable[GuardMutation] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        wait_for_room: bool = True,
    ) -> Reply:
        """One request: all of these mutations at one revision, or none. A refusal is in the reply. Raises what is
        refused before it is sent (InvalidMutation, SchemaMismatch, RequestTooLarge), and OutcomeUnknown.

        With `wait_for_room=False`, Busy is raised where the request would have to wait before it can be sent, because
        too many of this client are in flight already, or for its reply for longer than `busy_above_s` or than its own
        deadline, as the engine answers just now; the reply is waited for as ever.
        """
        due_us = deadline_us(deadline_s)
        request = wireform.plain_request(mutations, guards, request_id, self._registry, self._limits, due_us)
        await self._check_classes(request, mutations)
        reply = await self._ask(request, self._reply, timeout_s, wait_for_room)
        if isinstance(reply.error, OutcomeUnknown):
            raise reply.error  # as it is at a time-out
        if reply.error is not None:
            await self._memory.look(lambda: self._answers.retype_current(reply, mutations))
        return reply

    async def outcome(self, request_id: str, *, timeout_s: float | None = None) -> Outcome:
        """How a request ended, of this client or another one: Applied(reply), the refusal, NotApplied (and then it
        never will be), or Forgotten where the engine does not remember so far back.
        """

        def read(sent: Sent) -> Outcome:
            assert isinstance(sent, Pending), "a question is neither large nor ever late"
            outcome = self._answers.outcome(sent, request_id)
            self._tokens.note_outcome(outcome)
            return outcome

        return await self._ask(wireform.outcome_query(request_id), read, timeout_s)

    async def submit_many(
        self,
        mutations: Iterable[Mutation | Sequence[Mutation]] | AsyncIterable[Mutation | Sequence[Mutation]],
        *,
        window: int = 256,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Reply, None]:
        """A request for each mutation, or for each list or tuple of several, which happen together or not at all; up to
        `window` of them in flight; replies in order, refusals as values. They go while replies are taken: without that
        nothing is sent, and of whoever stops in the middle, what was sent by then stays on its way.

        `timeout_s` is the patience for each reply; then OutcomeUnknown is raised. `deadline_s` is each request's own,
        from when it was taken from `mutations`, while those are waited for that go in one frame with it. The window is
        filled before the first reply is yielded: `window=1` is for a source that is slow, or that waits for replies
        itself. What `mutations` raises, and what keeps more from being sent, is raised behind the replies to all that
        was sent before.
        """
        waiting: deque[Sent] = deque()
        deadline_us(deadline_s)  # raises here what it would raise for each
        source = aiter(mutations) if isinstance(mutations, AsyncIterable) else with_deadlines(mutations, deadline_s)
        window, batch = pipeline(window, self._session.window)
        self._deadline(timeout_s)  # likewise
        exhausted = False
        failure: Exception | None = None
        try:
            while waiting or not exhausted:
                while (
                    not exhausted and len(waiting) + batch <= window and sends_more(self._session, len(waiting), batch)
                ):
                    taken, failure = await _next_of(source, batch, deadline_s)
                    exhausted = len(taken) < batch
                    try:
                        waiting.extend(await self._send_frame(taken, self._deadline(timeout_s)))
                    except (Refused, Unavailable, TypeError) as error:  # these were not sent, and no more will be
                        failure, exhausted = failure or error, True
                if waiting:
                    yield await self._answer_to(waiting.popleft(), self._reply, self._deadline(timeout_s))
        except asyncio.CancelledError as cancelled:
            name_request(cancelled, waiting)
            raise
        if failure is not None:
            raise failure

    async def _send_frame(self, asked: list[Timed[Mutation | Sequence[Mutation]]], deadline: float) -> list[Sent]:
        """Send what may be sent of these in one frame; each has its place in the answer, refusals too."""
        made = self._make_requests(asked)
        taken = await self._memory.look(lambda: self._answers.refuse_misfits(made, asked))
        requests = self._sendable(taken)
        sent = await self._exchange.send(requests, deadline) if requests else []
        return self._merge_refusals(taken, requests, sent)

    def _reply(self, sent: Sent) -> Reply:
        if isinstance(sent, Refused):
            return self._answers.refused_reply(sent)
        reply = self._answers.reply(sent)
        self._tokens.note_reply(sent, reply)
        return reply

    async def _entities(self, reply: Reply, model: type[E]) -> list[E]:
        reply.check()
        return await self._memory.look(lambda: entities_of(reply, model))

    async def _submit_one(
        self,
        mutation: Mutation,
        model: type[E],
        request_id: str | None,
        timeout_s: float | None,
        deadline_s: float | None = None,
        guards: Sequence[GuardMutation] = (),
    ) -> E:
        due_us = deadline_us(deadline_s)
        request = wireform.plain_request((mutation,), guards, request_id, self._registry, self._limits, due_us)
        await self._check_classes(request, mutation)

        def read(sent: Sent) -> E | SolewriterError:
            reply = self._reply(sent)
            if reply.error is not None:
                judge_conflict(self._answers.retype_current(reply, (mutation,)), mutation)
            return entity_or_error(reply, model)

        entity = await self._ask(request, read, timeout_s)
        if isinstance(entity, SolewriterError):
            raise entity
        return entity

    async def _check_classes(self, request: PlainRequest, asked: Mutation | Sequence[Mutation]) -> None:
        """Raises SchemaMismatch for a whole entity of a class that is not the engine's: nothing is sent."""
        await self._memory.look(lambda: self._answers.check_classes(request, asked))

    async def _ask(
        self,
        request: PlainRequest | OutcomeQuery,
        read: Callable[[Sent], T],
        timeout_s: float | None,
        wait_for_room: bool = True,
    ) -> T:
        """Send one request, wait for its answer, and read that."""
        deadline = self._deadline(timeout_s)
        if len(request) == 4:
            self._tokens.show([request])
        (sent,) = await self._exchange.send([request], deadline, wait_for_room=wait_for_room)
        if isinstance(sent, RequestTooLarge):
            raise sent
        if len(request) == 4:
            self._tokens.note_sent([sent], [request])
        return await self._answer_to(sent, read, deadline)

    async def _answer_to(self, sent: Sent, read: Callable[[Sent], T], deadline: float) -> T:
        """Wait for the answer, and read it without blocking on memory. A cancelled wait names the request."""
        try:
            while isinstance(sent, Pending):
                await self._exchange.wait(sent, deadline)
                if not sent.is_back:
                    break
                self._reply(sent)
                claim = sent.claim  # goes on waiting, behind the others
                (sent,) = await self._exchange.send([claim], deadline)
                self._tokens.note_sent([sent], [claim])
            return await self._memory.look(lambda: read(sent))
        except asyncio.CancelledError as cancelled:
            name_request(cancelled, [sent])
            raise

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let the lane and the memory go. Requests that were not answered may or may not be applied."""
        try:
            await self._give_back_first()
        finally:
            try:
                await self._exchange.close()
                if self._owes_farewell and self.reader.is_here:
                    await self._say_farewell()
            finally:
                await self.reader.close()

    async def _give_back_first(self) -> None:
        """What cancelled claims brought: left behind, it would be nobody's work until this session's time is over."""
        if not self._giving_up or not self.reader.is_here:
            return
        try:
            await asyncio.wait(self._giving_up, timeout=GIVE_BACK_S)
        finally:
            for giving_up in self._giving_up:
                giving_up.cancel()

    async def _say_farewell(self) -> None:
        thread = ThreadPoolExecutor(1, "solewriter-farewell")  # its own: the loop's may be full
        try:
            await asyncio.get_running_loop().run_in_executor(thread, say_farewell, self.folder, self._session)
        except RuntimeError:
            pass  # no thread begins any more, where the interpreter ends say: whoever comes next goes by the process
        finally:
            thread.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _next_of(
    source: Iterator[Timed[T]] | AsyncIterator[T], count: int, deadline_s: float | None
) -> tuple[list[Timed[T]], Exception | None]:
    """The next ones of a source; fewer only at its end, and why it ended if it raised."""
    taken: list[Timed[T]] = []
    try:
        if isinstance(source, Iterator):
            taken.extend(islice(source, count))
        else:
            async for mutation in source:
                taken.append((mutation, deadline_us(deadline_s)))
                if len(taken) == count:
                    break
    except Exception as error:
        return taken, error
    return taken, None
