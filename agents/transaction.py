"""A transaction: mutations and guards gathered in a `with`, sent as one request when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from solewriter.shared.errors import SolewriterError
from solewriter.shared.models import Entity, Ref
from solewriter.shared.mutations import (
    FROM_TARGET,
    Cancel,
    Create,
    Delete,
    Expect,
    GuardMutation,
    Mutation,
    Put,
    Reply,
    Require,
    RequireAbsent,
    Target,
    Transition,
    Update,
)
from solewriter.shared.wireform import model_of

if TYPE_CHECKING:
    from solewriter.agents.client import Client

E = TypeVar("E", bound=Entity)


class Transaction:
    """All of it at one revision, or nothing. Bad input raises at its verb, a refusal when the `with` ends."""

    def __init__(self, client: Client, request_id: str | None, timeout_s: float | None) -> None:
        self._client = client
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._mutations: list[Mutation] = []
        self._guards: list[GuardMutation] = []
        self._reply: Reply | None = None

    # --- verbs -------------------------------------------------------------------------------------------------------

    def create(self, entity: E, *, reason: str = "") -> E:
        """The entity itself, not stored yet: ask `result` after the `with`."""
        self._add(Create(entity, reason))
        return entity

    def put(self, entity: E, *, expect: Expect = FROM_TARGET, reason: str = "") -> E:
        self._add(Put(entity, expect, reason))
        return entity

    def update(
        self,
        target: Target,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        **fields: Any,
    ) -> None:
        self._add(Update(target, {**(changes or {}), **fields}, expect, reason))

    def transition(
        self,
        target: Target,
        to: str,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        **fields: Any,
    ) -> None:
        self._add(Transition(target, to, {**(changes or {}), **fields}, expect, reason))

    def cancel(self, target: Target, *, expect: int | None = None, reason: str = "") -> None:
        self._add(Cancel(target, expect, reason))

    def delete(self, target: Target, *, expect: Expect = FROM_TARGET, reason: str = "") -> None:
        self._add(Delete(target, expect, reason))

    def require(self, entity: Entity) -> None:
        """Go through only if this entity is stored in exactly this version."""
        self._guards.append(Require(entity))

    def require_absent(self, kind: type[Entity] | str, id: str) -> None:
        """Go through only if there is no such entity."""
        self._guards.append(RequireAbsent(kind, id))

    def _add(self, mutation: Mutation) -> None:
        if self._reply is not None:
            raise SolewriterError("this transaction was sent: begin another one")
        self._client.check_mutation(mutation)
        self._mutations.append(mutation)

    # --- results -----------------------------------------------------------------------------------------------------

    @property
    def reply(self) -> Reply:
        """What was told to the request as a whole."""
        return self._sent()

    @property
    def revision(self) -> int:
        """The revision at which all of it happened."""
        return self._sent().revision

    def result(self, target: E | Ref[E]) -> E:
        """An entity of this transaction as it left it. Raises KeyError for one that it did not change or that it
        deleted.
        """
        reply = self._sent()
        name = model_of(target).kind_name
        for result, entity in zip(reply.results, reply.entities, strict=True):
            if (result.kind, result.id) == (name, target.id) and entity is not None:
                left: E = entity
                return left
        raise KeyError(f"this transaction left no {name} {target.id!r}")

    def _sent(self) -> Reply:
        if self._reply is None:
            raise SolewriterError("this transaction was not sent: its results are there after the `with`")
        return self._reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not (self._mutations or self._guards):
            return
        self._reply = self._client.submit(
            *self._mutations, guards=self._guards, request_id=self._request_id, timeout_s=self._timeout_s
        ).check()
