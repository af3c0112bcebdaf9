"""The verbs of coordination, for the client that blocks. `aio_verbs` has the same as coroutines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

from solewriter.shared.models import Entity, Ref
from solewriter.shared.mutations import Alter, GuardMutation, Mutation
from solewriter.shared.operations import Operation
from solewriter.shared.wireform import model_of

E = TypeVar("E", bound=Entity)


class Verbs(ABC):
    """Mutations that go through whatever others do meanwhile."""

    @abstractmethod
    def _one(
        self,
        mutation: Mutation,
        model: type[E],
        request_id: str | None,
        timeout_s: float | None,
        deadline_s: float | None = None,
        guards: Sequence[GuardMutation] = (),
    ) -> E: ...

    def alter(
        self,
        target: E | Ref[E],
        operations: Mapping[str, Operation] | None = None,
        /,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        **more: Operation,
    ) -> E:
        """Operations on fields, such as `hits=Increment()`, whatever they hold by then: no version is compared, and
        nobody is overtaken. Raises InvalidMutation for what cannot be done with a field.
        """
        mutation = Alter(target, {**(operations or {}), **more}, reason=reason)
        return self._one(mutation, model_of(target), request_id, timeout_s, deadline_s)
