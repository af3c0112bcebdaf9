"""`Client`: the synchronous agent. Verbs become mutations, replies become entities; an `Exchange` carries both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from solewriter.agents.conflicts import conditional
from solewriter.agents.difference import difference, newer
from solewriter.agents.snapshot import Plain
from solewriter.agents.transaction import Transaction
from solewriter.agents.verbs import Verbs
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.entity import Entity, Ref, model_of
from solewriter.shared.errors import VersionConflict
from solewriter.shared.fieldform import merge_given
from solewriter.shared.mutations import FROM_TARGET, Cancel, Create, Delete, Expect, Put, Transition, Update
from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)


class Client(Verbs):
    """An agent's connection to the engine of a state folder. May be shared by threads. Made by `connect`.

    Every verb blocks until its reply, and returns the entity as it was left. All raise the refusals of
    `solewriter.errors`, InvalidMutation for bad input before anything is sent, EngineUnavailable when no engine could
    be reached, OutcomeUnknown when a reply did not come within `timeout_s`. With `deadline_s`, a request that was not
    decided so many seconds after the call never is: it is refused as Expired, which may be told later than that.
    """

    # --- verbs -------------------------------------------------------------------------------------------------------

    def create(
        self,
        entity: E,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> E:
        """Store a new entity. Raises AlreadyExists."""
        return self._submit_one(Create(entity, reason), type(entity), request_id, timeout_s, deadline_s)

    def put(
        self,
        entity: E,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> E:
        """Create or replace: an import that can be run again. Begins anywhere in the lifecycle, goes on by its steps.
        Raises VersionConflict for one that was read, and InvalidTransition.
        """
        return self._submit_one(Put(entity, expect, reason), type(entity), request_id, timeout_s, deadline_s)

    def update(
        self,
        target: E | Ref[E],
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        where: Where | None = None,
        merge: bool = False,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        **fields: Any,
    ) -> E:
        """Replace fields. Fields whose names are options here are given through `changes`. Raises VersionConflict.

        In place of the version, `where` compares the fields that it names, and raises GuardFailed; `merge` those that
        are changed, with what `target` has, so that changes of other fields by others stay.
        """
        mutation, guards = conditional(Update(target, merge_given(changes, fields), expect, reason), where, merge)
        return self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    def transition(
        self,
        target: E | Ref[E],
        to: str,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        where: Where | None = None,
        merge: bool = False,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        **fields: Any,
    ) -> E:
        """Move along the lifecycle, changing other fields with the step. `where` and `merge` as in `update`. Raises
        InvalidTransition, VersionConflict.
        """
        step = Transition(target, to, merge_given(changes, fields), expect, reason)
        mutation, guards = conditional(step, where, merge)
        return self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    def cancel(
        self,
        target: E | Ref[E],
        *,
        expect: int | None = None,
        where: Where | None = None,
        tree: bool = False,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> E:
        """To the cancelled state, whatever the version, unless `expect` is given, and only if its fields are as `where`
        says. With `tree`, all descendants with it, but for those in a final state. Raises InvalidTransition,
        GuardFailed.
        """
        mutation, guards = conditional(Cancel(target, expect, reason, tree), where)
        return self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    def delete(
        self,
        target: Entity | Ref[Any],
        *,
        expect: Expect = FROM_TARGET,
        where: Where | None = None,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Remove the entity; its id goes on with the next version if it is created again. `where` as in `update`."""
        mutation, guards = conditional(Delete(target, expect, reason), where)
        self.submit(mutation, guards=guards, request_id=request_id, timeout_s=timeout_s, deadline_s=deadline_s).check()

    def transaction(
        self,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Transaction:
        """Several mutations and guards at one revision, sent when the `with` ends; an exception sends nothing.

        `reason` is that of each mutation in it which has none of its own.
        """
        return Transaction(self, reason, request_id, timeout_s, deadline_s)

    @overload
    def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    def get(self, kind: str, id: str) -> Plain | None: ...
    def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The entity from shared memory, or None; never older than the last reply of this client."""
        return self.reader.get(kind, id)

    def apply(
        self,
        target: E | Ref[E],
        fn: Callable[[E], E | Mapping[str, Any] | None],
        /,
        *,
        reason: str = "",
        timeout_s: float | None = None,
    ) -> E:
        """Read, let `fn` say what shall be different, write under the version that was read; again when somebody else
        was faster.

        `fn` runs here, perhaps several times. It returns the entity as it shall be, or the changed fields, or None for
        no change. Raises NotFound; VersionConflict if it was still overtaken after `timeout_s`, which is also the
        patience for each reply.
        """
        deadline = self._deadline(timeout_s)
        model = model_of(target)
        self._registry.of(model)  # a Ref made by hand may have a kind's name, of which only dicts can be read
        current = self.reader.snapshot()[model, target.id]
        while True:
            mutation = difference(current, fn(current), reason)
            if mutation is None:
                return current
            try:
                return self._submit_one(mutation, model, None, timeout_s)
            except VersionConflict as conflict:
                if time.monotonic() > deadline:
                    raise
                won = newer(conflict, model)
                current = self.reader.snapshot()[model, target.id] if won is None else won


def connect(
    state: str | os.PathLike[str], *, name: str = "", client_id: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Client:
    """Connect to the engine of a state folder, from any process of the same user.

    `name` is a label, shown as the actor of changes. `client_id` resumes a session: requests that an earlier process
    with the same id sent are known. Raises EngineUnavailable if no engine answers within `limits.connect_timeout_s`.
    """
    return Client(state, name=name, client_id=client_id, limits=limits)
