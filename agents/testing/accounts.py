"""Evidence and history brought together: of each request, what its senders say and where it is in the history.

A request that was sent several times under the user's own id is one request. It took effect somewhere between its
first call and its first answer. In the history it is found by the user's id, by the name in the reason of its records,
or by the id in its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from solewriter.agents.testing.history import Decided, History
from solewriter.agents.testing.lines import APPLIED, FENCED, REFUSED, UNKNOWN, Answer, Attempt, Call, name_in
from solewriter.agents.testing.steps import Key
from solewriter.shared.mutations import NotApplied

Tokens = tuple[tuple[Key, int], ...]
MISMATCH = "RequestMismatch"
NOT_APPLIED = NotApplied.__name__


class Violation(NamedTuple):
    """What is wrong: the number of the condition, a name, and where."""

    condition: int
    name: str
    detail: str

    def __str__(self) -> str:
        return f"({self.condition}) {self.name}: {self.detail}"


class Account:
    """One request. `answers` are the engine's; `refused_here` counts refusals before anything was sent."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.called = call.at
        self.tokens: list[Tokens] = []  # under each of which it was sent
        self.attempts = 0
        self.answers: list[Answer] = []
        self.refused_here = 0
        self.never = False  # somebody was told that it was not applied, and never will be
        self.decided: list[Decided] = []  # in the history; more than one only if something is wrong
        self.repeats: list[Decided] = []  # told again, to another sender of the user's own id

    def hear(self, attempt: Attempt) -> None:
        self.attempts += 1
        self.called = min(self.called, attempt.call.at)
        if attempt.call.tokens not in self.tokens:
            self.tokens.append(attempt.call.tokens)
        answer = attempt.answer
        if answer is None or answer.outcome == UNKNOWN:
            return
        if answer.request_id and answer.error != FENCED:
            self.answers.append(answer)
        else:
            self.refused_here += 1
            self.never = self.never or answer.error == NOT_APPLIED

    @property
    def outcome(self) -> str:
        """Applied if anybody was told so; refused if the engine told so, or if nothing was ever sent; else unknown."""
        if any(answer.outcome == APPLIED for answer in self.answers):
            return APPLIED
        return REFUSED if self.answers or self.refused_here == self.attempts else UNKNOWN

    @property
    def mismatched(self) -> bool:
        """Whether its id was another request's before."""
        return bool(self.answers) and all(answer.error == MISMATCH for answer in self.answers)

    @property
    def returned(self) -> Answer | None:
        """The first answer."""
        return min(self.answers, key=lambda answer: answer.at, default=None)

    @property
    def changed(self) -> bool:
        """Whether the history holds a record of it."""
        return any(decided.changes for decided in self.decided)

    @property
    def revision(self) -> int | None:
        """Where in the order it was decided, by its own answer or else by the history; None if it never was."""
        told = [answer.revision for answer in self.answers] + [decided.revision for decided in self.decided]
        return next((revision for revision in told if revision is not None), None)

    def __str__(self) -> str:
        steps = ", ".join(f"{step.op} {step.key}" for step in self.call.steps)
        return f"{self.call.name} ({steps or 'guards only'})"


class Accounts:
    """All requests of a run, joined with its history."""

    def __init__(self, attempts: Iterable[Attempt], history: History) -> None:
        self.all = _by_request(attempts)
        self.history = history
        self.unread = 0  # requests that changed nothing, and nobody read the answer
        self._of: dict[int, Account] = {}  # by place in the history
        self._join()

    def __iter__(self) -> Iterator[Account]:
        return iter(self.all)

    def of(self, place: int) -> Account | None:
        """Whose request stands at this place of the history. None for a repeat, and for what nobody asked."""
        return self._of.get(place)

    def _join(self) -> None:
        by_name: dict[str, Account] = {}
        by_answer: dict[str, Account] = {}
        for account in sorted(self.all, key=lambda account: not account.answers):  # one may never have been sent
            if not account.mismatched:
                by_name.setdefault(account.call.name, account)
                for answer in account.answers:
                    by_answer.setdefault(answer.request_id, account)
        for place, decided in enumerate(self.history):
            owner = _named(decided, by_name) or by_answer.get(decided.request_id)
            if owner is None:
                self.unread += not decided.changes
            elif decided.own_id and owner.decided and not decided.changes:
                owner.repeats.append(decided)
            else:
                owner.decided.append(decided)
                self._of[place] = owner


def _by_request(attempts: Iterable[Attempt]) -> list[Account]:
    """Attempts under one id of the user's own with one content are the same request."""
    found: dict[tuple[str, bytes], Account] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.call.at):
        call = attempt.call
        content = msgspec.json.encode((call.steps, call.conditions)) if call.own else b""
        found.setdefault((call.name, content), Account(call)).hear(attempt)
    return list(found.values())


def _named(decided: Decided, by_name: dict[str, Account]) -> Account | None:
    """By the user's own id, or by the name that its records carry."""
    if decided.own_id:
        return by_name.get(decided.own_id)
    return by_name.get(name_in(decided.changes[0].reason)) if decided.changes else None
