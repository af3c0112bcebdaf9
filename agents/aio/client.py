"""`AioClient`: the agent of asyncio. The verbs of `Client`, as coroutines, over the same session and answers."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, overload

from solewriter.agents.aio.opening import Opening
from solewriter.agents.aio.transaction import AioTransaction
from solewriter.agents.aio.verbs import AioVerbs
from solewriter.agents.conflicts import conditional
from solewriter.agents.difference import difference, newer
from solewriter.agents.snapshot import Plain
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.entity import Entity, Ref, model_of
from solewriter.shared.errors import VersionConflict
from solewriter.shared.fieldform import merge_given
from solewriter.shared.mutations import FROM_TARGET, Cancel, Create, Delete, Expect, Put, Transition, Update
from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class AioClient(AioVerbs):
    """An agent's connection to the engine of a state folder, for the coroutines of one event loop. Made by `connect`.

    Every verb waits for its reply without blocking the loop, and returns the entity as it was left. All raise the
    refusals of `solewriter.errors`, InvalidMutation for bad input before anything is sent, EngineUnavailable when no
    engine could be reached, and in another loop or a forked child, OutcomeUnknown when a reply did not come within
    `timeout_s`. With `deadline_s`, a request that was not decided so many seconds after the call never is: it is
    refused as Expired, which may be told later than that. When too many requests are in flight, callers take turns in
    the order in which they came.
    """

    # --- verbs -------------------------------------------------------------------------------------------------------

    async def create(
        self,
        entity: E,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> E:
        """Store a new entity. Raises AlreadyExists."""
        return await self._submit_one(Create(entity, reason), type(entity), request_id, timeout_s, deadline_s)

    async def put(
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
        return await self._submit_one(Put(entity, expect, reason), type(entity), request_id, timeout_s, deadline_s)

    async def update(
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
        return await self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    async def transition(
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
        return await self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    async def cancel(
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
        return await self._submit_one(mutation, model_of(target), request_id, timeout_s, deadline_s, guards)

    async def delete(
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
        reply = await self.submit(
            mutation, guards=guards, request_id=request_id, timeout_s=timeout_s, deadline_s=deadline_s
        )
        reply.check()

    def transaction(
        self,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> AioTransaction:
        """Several mutations and guards at one revision, sent when the `async with` ends; an exception sends nothing.

        `reason` is that of each mutation in it which has none of its own.
        """
        return AioTransaction(self, reason, request_id, timeout_s, deadline_s)

    @overload
    async def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    async def get(self, kind: str, id: str) -> Plain | None: ...
    async def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The entity from shared memory, or None; never older than the last reply of this client."""
        return await self.reader.get(kind, id)

    async def apply(
        self,
        target: E | Ref[E],
        fn: Callable[[E], E | Mapping[str, Any] | Awaitable[E | Mapping[str, Any] | None] | None],
        /,
        *,
        reason: str = "",
        timeout_s: float | None = None,
    ) -> E:
        """Read, let `fn` say what shall be different, write under the version that was read; again when somebody else
        was faster.

        `fn`, a plain or an async function, runs here, perhaps several times. It returns the entity as it shall be, or
        the changed fields, or None for no change. Raises NotFound; VersionConflict if it was still overtaken after
        `timeout_s`, which is also the patience for each reply.
        """
        deadline = self._deadline(timeout_s)
        model = model_of(target)
        self._registry.of(model)  # a Ref made by hand may have a kind's name, of which only dicts can be read
        current = (await self.reader.snapshot())[model, target.id]
        while True:
            wanted = fn(current)
            mutation = difference(current, await wanted if inspect.isawaitable(wanted) else wanted, reason)
            if mutation is None:
                return current
            try:
                return await self._submit_one(mutation, model, None, timeout_s)
            except VersionConflict as conflict:
                if time.monotonic() > deadline:
                    raise
                won = newer(conflict, model)
                current = (await self.reader.snapshot())[model, target.id] if won is None else won


# --- opening ---------------------------------------------------------------------------------------------------------


def connect(
    state: str | os.PathLike[str], *, name: str = "", client_id: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Opening[AioClient]:
    """Connect to the engine of a state folder, from any process of the same user: `async with connect(...) as client`,
    or `client = await connect(...)`.

    `name` is a label, shown as the actor of changes. `client_id` resumes a session: requests that an earlier process
    with the same id sent are known. Raises EngineUnavailable if no engine answers within `limits.connect_timeout_s`.
    """

    async def connected() -> AioClient:
        client = AioClient(state, name=name, client_id=client_id, limits=limits)
        await client._exchange.connect()
        return client

    return Opening(connected)
