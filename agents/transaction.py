"""A transaction: mutations and guards gathered in a `with`, sent as one request when it ends.

Gathering and results are one class; how the request is sent is another's: `Transaction` blocks, that of `aio` awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from solewriter.agents.deadline import check_times
from solewriter.shared.entity import Entity, Ref, model_of
from solewriter.shared.errors import SolewriterError
from solewriter.shared.fieldform import merge_given
from solewriter.shared.mutations import (
    FROM_TARGET,
    Alter,
    Cancel,
    Complete,
    Create,
    Delete,
    Expect,
    Fail,
    GuardMutation,
    Mutation,
    Put,
    Release,
    Reply,
    Require,
    RequireAbsent,
    RequireFields,
    RequireNone,
    Target,
    Transition,
    Unchanged,
    Update,
    entity_left_by,
)
from solewriter.shared.operations import Operation
from solewriter.shared.where import Where

if TYPE_CHECKING:
    from solewriter.agents.client import Client

E = TypeVar("E", bound=Entity)


class AnyTransaction:
    """Mutations and guards that go as one request, and what it left. `check` raises for a mutation that cannot go,
    `reason` is that of those which have none; the others are options of the client's `submit`.
    """

    def __init__(
        self,
        check: Callable[[Mutation], None],
        reason: str,
        request_id: str | None,
        timeout_s: float | None,
        deadline_s: float | None,
    ) -> None:
        check_times(timeout_s, deadline_s)
        self._check = check
        self._reason = reason
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._mutations: list[Mutation] = []
        self._guards: list[GuardMutation] = []
        self._begun = self._ended = False
        self._reply: Reply | None = None
        self._left: dict[tuple[str, str], int] | None = None  # places of results, by kind and id, once asked for

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
        self._add(Update(target, merge_given(changes, fields), expect, reason))

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
        self._add(Transition(target, to, merge_given(changes, fields), expect, reason))

    def alter(
        self,
        target: Target,
        operations: Mapping[str, Operation] | None = None,
        /,
        *,
        reason: str = "",
        **more: Operation,
    ) -> None:
        """Operations on fields, whatever they hold by then."""
        self._add(Alter(target, merge_given(operations, more), reason=reason))

    def cancel(self, target: Target, *, expect: int | None = None, tree: bool = False, reason: str = "") -> None:
        self._add(Cancel(target, expect, reason, tree))

    def complete(
        self, task: Target, changes: Mapping[str, Any] | None = None, /, *, reason: str = "", **fields: Any
    ) -> None:
        """Hand a claimed task in, together with the rest."""
        self._add(Complete(task, merge_given(changes, fields), reason))

    def fail(
        self,
        task: Target,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        final: bool = False,
        reason: str = "",
        **fields: Any,
    ) -> None:
        self._add(Fail(task, merge_given(changes, fields), final, reason))

    def release(self, task: Target, *, reason: str = "") -> None:
        self._add(Release(task, reason))

    def delete(self, target: Target, *, expect: Expect = FROM_TARGET, reason: str = "") -> None:
        self._add(Delete(target, expect, reason))

    def require(self, entity: Entity) -> None:
        """Go through only if this entity is stored in exactly this version."""
        self._check_open()
        self._guards.append(Require(entity))

    def require_absent(self, kind: type[Entity] | str, id: str) -> None:
        """Go through only if there is no such entity."""
        self._check_open()
        self._guards.append(RequireAbsent(kind, id))

    def require_fields(self, target: Target, where: Where) -> None:
        """Go through only if this entity is stored and its fields are like this."""
        self._check_open()
        self._guards.append(RequireFields(target, where))

    def require_none(self, kind: type[Entity], where: Where) -> None:
        """Go through only if no entity of this kind is like this. Declared columns can be asked."""
        self._check_open()
        self._guards.append(RequireNone(kind, where))

    def require_unchanged(self, entity: Entity, *fields: str) -> None:
        """Go through only if these fields are stored as this entity has them. Raises VersionConflict."""
        self._check_open()
        self._guards.append(Unchanged(entity, fields))

    def _add(self, mutation: Mutation) -> None:
        self._check_open()
        if mutation.reason == "" and self._reason != "":
            mutation = msgspec.structs.replace(mutation, reason=self._reason)
        self._check(mutation)
        self._mutations.append(mutation)

    def _check_open(self) -> None:
        if not self._begun:
            raise SolewriterError(
                "a transaction is sent by its `with`: `with client.transaction() as tx:`, or `async with`"
            )
        if self._ended:
            raise SolewriterError("the `with` of this transaction has ended: begin another one")

    def _begin(self) -> None:
        """The `with` begins. Raises SolewriterError for a second one, at whose end all of it would be sent again."""
        if self._begun:
            raise SolewriterError("this transaction has its `with` already: begin another one")
        self._begun = True

    def _end(self, error: BaseException | None) -> bool:
        """The `with` ends, with or without an exception inside: whether there is anything to send."""
        self._ended = True
        return error is None and bool(self._mutations or self._guards)

    # --- results -----------------------------------------------------------------------------------------------------

    @property
    def reply(self) -> Reply:
        """The reply to the request as a whole. Raises SolewriterError where there is none."""
        if self._reply is None and self._ended:
            raise SolewriterError(
                "this transaction left no results: it was empty and not sent, or ended in an error, which tells why"
            )
        if self._reply is None:
            raise SolewriterError("this transaction was not sent: its results are there after the `with`")
        return self._reply

    @property
    def revision(self) -> int:
        """The revision at which all of it happened."""
        return self.reply.revision

    def result(self, target: E | Ref[E]) -> E:
        """An entity of this transaction as it left it. Raises KeyError for one that none of its verbs named, as what is
        cancelled with another, or that it deleted.
        """
        reply = self.reply
        if self._left is None:
            pairs = enumerate(zip(reply.results, reply.entities, strict=True))
            self._left = {(result.kind, result.id): place for place, (result, entity) in pairs if entity is not None}
        model = model_of(target)
        name = model.kind_name
        if (place := self._left.get((name, target.id))) is not None:
            left: E = entity_left_by(reply, place, model)
            return left
        raise KeyError(f"this transaction's verbs left no {name} {target.id!r}")


class Transaction(AnyTransaction):
    """All of it at one revision, or nothing. Bad input raises at its verb, a refusal when the `with` ends."""

    def __init__(
        self, client: Client, reason: str, request_id: str | None, timeout_s: float | None, deadline_s: float | None
    ) -> None:
        super().__init__(client.check_mutation, reason, request_id, timeout_s, deadline_s)
        self._client = client

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end(error):
            self._reply = self._client.submit(
                *self._mutations,
                guards=self._guards,
                request_id=self._request_id,
                timeout_s=self._timeout_s,
                deadline_s=self._deadline_s,
            ).check()
