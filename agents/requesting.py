"""`Requests`: what every verb of the client that blocks comes to. Mutations become plain data, an `Exchange` carries it
and the answers, and answers become replies. `aio.requesting` has the same as coroutines.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

from solewriter.agents.admission import pipeline, sends_more
from solewriter.agents.answers import Answers, Outcome, entity_of
from solewriter.agents.anyclient import AnyClient
from solewriter.agents.conflicts import judge_conflict
from solewriter.agents.deadline import Timed, deadline_us, with_deadlines
from solewriter.agents.exchange import Exchange
from solewriter.agents.farewell import say_farewell
from solewriter.agents.pending import Pending, Sent, name_answered, name_request
from solewriter.agents.reader import Reader
from solewriter.shared import wireform
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import OutcomeUnknown, Refused, RequestTooLarge, Unavailable
from solewriter.shared.mutations import GuardMutation, Mutation, Reply

E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class Requests(AnyClient):
    """One agent's session and lane. May be shared by threads."""

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        name: str = "",
        client_id: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(state, name=name, client_id=client_id, limits=limits)
        self.reader = Reader(state, limits, self._registry)
        self._exchange = Exchange(self.folder, self._session, limits, self.reader.look_on)
        self._answers = Answers(self.reader, self._registry)

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(
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
        self._answers.check_classes(request, mutations)
        self._tokens.show([request])
        deadline = self._deadline(timeout_s)
        sent: Sent | None = None
        try:
            (sent,) = self._exchange.send([request], deadline, wait_for_room=wait_for_room)
            if isinstance(sent, RequestTooLarge):
                raise sent
            self._tokens.note_sent([sent], [request])
            reply = self._reply_to(sent, deadline)
            if isinstance(reply.error, OutcomeUnknown):
                raise reply.error  # as it is at a time-out
            return reply if reply.error is None else self._answers.retype_current(reply, mutations)
        except BaseException as interrupted:
            name_request(interrupted, [sent])
            raise

    def outcome(self, request_id: str, *, timeout_s: float | None = None) -> Outcome:
        """How a request ended, of this client or another one: Applied(reply), the refusal, NotApplied (and then it
        never will be), or Forgotten where the engine does not remember so far back.
        """
        deadline = self._deadline(timeout_s)
        (sent,) = self._exchange.send([wireform.outcome_query(request_id)], deadline)
        assert isinstance(sent, Pending), "a question is neither large nor ever late"
        self._exchange.wait(sent, deadline)
        outcome = self._answers.outcome(sent, request_id)
        self._tokens.note_outcome(outcome)
        return outcome

    def submit_many(
        self,
        mutations: Iterable[Mutation | Sequence[Mutation]],
        *,
        window: int = 256,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Iterator[Reply]:
        """A request for each mutation, or for each list or tuple of several, which happen together or not at all; up to
        `window` of them in flight; replies in order, refusals as values. They go while replies are taken: without that
        nothing is sent, and of whoever stops in the middle, what was sent by then stays on its way.

        `timeout_s` is the patience for each reply; then OutcomeUnknown is raised. `deadline_s` is each request's own,
        from when it was taken from `mutations`, while those are waited for that go in one frame with it: `window=1` is
        for a source that is slow. What `mutations` raises, and what keeps more from being sent, is raised behind the
        replies to all that was sent before.
        """
        waiting: deque[Sent] = deque()
        source = with_deadlines(mutations, deadline_s)
        window, batch = pipeline(window, self._session.window)
        self._deadline(timeout_s)  # refused before anything is taken
        exhausted = False
        failure: Exception | None = None
        while waiting or not exhausted:
            while not exhausted and len(waiting) + batch <= window and sends_more(self._session, len(waiting), batch):
                taken, failure = _next_of(source, batch)
                exhausted = len(taken) < batch
                try:
                    waiting.extend(self._send_frame(taken, self._deadline(timeout_s)))
                except (Refused, Unavailable, TypeError) as error:  # these were not sent, and no more will be
                    failure, exhausted = failure or error, True
            if waiting:
                yield self._reply_to(waiting.popleft(), self._deadline(timeout_s))
        if failure is not None:
            raise failure

    def _send_frame(self, asked: list[Timed[Mutation | Sequence[Mutation]]], deadline: float) -> list[Sent]:
        """Send what may be sent of these in one frame; each has its place in the answer, refusals too."""
        taken = self._answers.refuse_misfits(self._make_requests(asked), asked)
        requests = self._sendable(taken)
        return self._merge_refusals(taken, requests, self._exchange.send(requests, deadline) if requests else [])

    def _reply_to(self, sent: Sent, deadline: float) -> Reply:
        """Wait for the reply. An interrupt has, like a cancelled coroutine, a cause that names the request."""
        try:
            while not isinstance(sent, Refused):
                if sent.reply is None:
                    self._exchange.wait(sent, deadline)
                reply = self._answers.reply(sent)
                self._tokens.note_reply(sent, reply)
                if reply.error is None or not sent.is_back:
                    return reply
                claim = sent.claim  # goes on waiting, behind the others
                (sent,) = self._exchange.send([claim], deadline)
                self._tokens.note_sent([sent], [claim])
            return self._answers.refused_reply(sent)
        except BaseException as interrupted:
            name_request(interrupted, [sent])
            raise

    def _submit_one(
        self,
        mutation: Mutation,
        model: type[E],
        request_id: str | None,
        timeout_s: float | None,
        deadline_s: float | None = None,
        guards: Sequence[GuardMutation] = (),
    ) -> E:
        reply = self.submit(mutation, guards=guards, request_id=request_id, timeout_s=timeout_s, deadline_s=deadline_s)
        try:
            return entity_of(judge_conflict(reply, mutation), model)
        except BaseException as interrupted:
            name_answered(interrupted, reply.request_id)
            raise

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the lane and the memory go. Requests that were not answered may or may not be applied."""
        self._exchange.close()
        self.reader.close()
        if self._owes_farewell:
            say_farewell(self.folder, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _next_of(source: Iterator[T], count: int) -> tuple[list[T], Exception | None]:
    """The next ones of a source; fewer only at its end, and why it ended if it raised."""
    taken: list[T] = []
    try:
        taken.extend(islice(source, count))
    except Exception as error:
        return taken, error
    return taken, None
