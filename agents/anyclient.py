"""`AnyClient`: what a client is before anything is sent: whose session, what it holds, how a request is made, and how
long it is waited for. The client that blocks and that of asyncio have it in common; nothing here sends or waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

from solewriter.agents.answers import Answers, Outcome
from solewriter.agents.deadline import Timed, is_patience, no_time
from solewriter.agents.pending import Sent
from solewriter.agents.session import AgentSession
from solewriter.agents.tokens import SHOWN, Tokens
from solewriter.shared import wireform
from solewriter.shared.config import DEFAULT_LIMITS, Limits, check_limits
from solewriter.shared.entity import name_of
from solewriter.shared.errors import Forgotten, InvalidMutation, Refused, safe_repr
from solewriter.shared.folder import StateFolder, not_picklable
from solewriter.shared.models import Task
from solewriter.shared.mutations import Applied, Mutation, Release, Result
from solewriter.shared.registry import Registry
from solewriter.shared.wireform import PlainRequest


class AnyClient:
    """One agent's session, and what it takes to make requests in it. `Requests` and `AioRequests` send them."""

    _answers: Answers

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        name: str = "",
        client_id: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_limits(limits)
        self.folder = StateFolder(state)
        self._limits = limits
        self._registry = Registry()
        self._session = AgentSession(limits, name or f"pid-{os.getpid()}", client_id)
        self._tokens = Tokens()
        self._unwanted: dict[str, type[Task]] = {}  # requests of claims that were interrupted, not given back so far
        self._pid = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise not_picklable("client", f"connect({str(self.folder.path)!r})")

    @property
    def client_id(self) -> str:
        """The session's id: `connect(state, client_id=...)` resumes it in another process."""
        return self._session.client_id

    @property
    def name(self) -> str:
        return self._session.name

    def check_mutation(self, mutation: Mutation) -> None:
        """Raises InvalidMutation, naming the field, for one that would be refused whatever is stored."""
        wireform.plain_mutation(mutation, self._registry, self._limits)

    def hold(self, task: Task) -> None:
        """Write to this task under the claim that it shows: one that another client made and handed over, or a session
        that was resumed.
        """
        self._tokens.hold(task)

    def holds(self, kind: type[Task] | str, id: str) -> int | None:
        """The token of the claim under which this client writes to a task; None: it knows of no claim of its own."""
        return self._tokens.holds(name_of(kind), id)

    def _claim_of(self, task: Task) -> int:
        """The token under which this client works at a task. Raises InvalidMutation if it does not."""
        if not isinstance(task, Task):
            raise TypeError(f"attempt takes a task, not {safe_repr(task)}")
        if (token := self.holds(type(task), task.id)) is None:
            problem = f"{task.kind_name} {task.id!r} was not claimed here, so there is no attempt at it"
            raise InvalidMutation(problem, fields={"claim": "not held here"})
        return token

    # --- requests ----------------------------------------------------------------------------------------------------

    def _make_requests(self, asked: Iterable[Timed[Mutation | Sequence[Mutation]]]) -> list[PlainRequest | Refused]:
        """Bad input takes its place as a refusal."""
        return [wireform.plain_or_refused(one, self._registry, self._limits, due_us) for one, due_us in asked]

    def _sendable(self, taken: Iterable[PlainRequest | Refused]) -> list[PlainRequest]:
        """The ones that can be sent, each with the tokens of the claims that it is about."""
        requests = [request for request in taken if not isinstance(request, Refused)]
        self._tokens.show(requests)
        return requests

    def _merge_refusals(
        self,
        taken: Sequence[PlainRequest | Refused],
        requests: Sequence[PlainRequest],
        sent: Sequence[Sent],
    ) -> list[Sent]:
        """What was sent of them, and the refusals of the others, in the order in which they were taken."""
        self._tokens.note_sent(sent, requests)
        if len(requests) == len(taken):
            return list(sent)
        following = iter(sent)
        return [request if isinstance(request, Refused) else next(following) for request in taken]

    def _claimed_results(self, request_id: str, outcome: Outcome) -> Sequence[Result]:
        """What a claim brought that nobody waits for any more: as the engine says, or, where it was asked too late, as
        the claim's own reply does, which came before that.
        """
        if isinstance(outcome, Forgotten) and (sent := self._tokens.unread(request_id)) is not None and sent.done:
            reply = self._answers.reply(sent)
            self._tokens.note_reply(sent, reply)
            return reply.results
        return outcome.reply.results if isinstance(outcome, Applied) else ()

    def _release_request(self, kind: type[Task], claimed: Result, reason: str) -> PlainRequest:
        """The release of what a claim brought, under its own token, whatever is held: by now it may be claimed anew."""
        mutation = Release(kind.ref(claimed.id), self._fitting(reason))
        release = wireform.plain_mutation(mutation, self._registry, self._limits)
        return [release], [(SHOWN, claimed.kind, claimed.id, claimed.version)], None, None

    def _fitting(self, reason: str) -> str:
        """As much of a reason that nobody wrote as the engine takes: it is no cause to refuse what it is of."""
        return reason.encode()[: self._session.limits.text_bytes_max].decode(errors="ignore")

    def _deadline(self, timeout_s: float | None) -> float:
        """Until when a caller waits, on `time.monotonic`. Raises InvalidMutation for what is no number of seconds."""
        if timeout_s is not None and not is_patience(timeout_s):
            raise no_time("timeout_s", timeout_s)
        return time.monotonic() + (self._limits.request_timeout_s if timeout_s is None else timeout_s)

    @property
    def _owes_farewell(self) -> bool:
        """Whether it is said to an engine that came meanwhile, where this is closed, see `farewell`."""
        return bool(self._tokens) and self._pid == os.getpid() and not self._session.fenced
