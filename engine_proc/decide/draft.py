"""A request's overlay: what each entity it touches was before the request, and what it has become so far.

Mutations see the earlier ones of their request; `expect` compares with what was stored before it. The entity gets one
version for the whole request.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from solewriter.engine_proc.state import KindState, Stored
from solewriter.shared.errors import NotFound, UnknownKind, VersionConflict
from solewriter.shared.models import Entity
from solewriter.shared.registry import Kind


class Step:
    """One entity of a request, on its way."""

    __slots__ = ("before", "entity", "key", "kind", "op", "reason", "state", "stamps", "touched")

    def __init__(self, state: KindState, kind: Kind, key: str, before: Stored | None, now: datetime.datetime) -> None:
        self.state = state
        self.kind = kind
        self.key = key
        self.before = before
        self.entity: Entity | None = before.entity if before is not None else None
        self.op = 0
        self.reason = ""
        self.touched: set[str] = set()
        self.stamps: dict[str, Any] = {"version": before.version + 1 if before is not None else 1}
        if "updated_at" in kind.stamps:
            self.stamps["updated_at"] = now

    def present(self) -> Entity:
        """The entity as it is now. Raises NotFound."""
        if self.entity is None:
            raise NotFound(f"there is no {self.kind.name} {self.key!r}", kind=self.kind.name, id=self.key)
        return self.entity

    def expected(self, expect: int | None) -> None:
        """Compare with the version stored before the request. Raises VersionConflict."""
        if expect is None:
            return
        before = self.before
        stored = before.version if before is not None and before.entity is not None else 0
        if stored != expect:
            raise VersionConflict(
                f"{self.kind.name} {self.key!r} is at version {stored}, not {expect}: look at the current one and decide again",
                kind=self.kind.name, id=self.key, expected=expect, version=stored,
            )  # fmt: skip

    def become(self, op: int, reason: str, entity: Entity | None) -> None:
        """Take the next content; None when it is deleted."""
        self.op = op
        self.reason = reason
        self.entity = entity

    def change(self, op: int, reason: str, changes: Mapping[str, Any]) -> None:
        """Replace some fields, validated. Raises InvalidMutation."""
        self.become(op, reason, self.kind.changed(self.present(), changes, self.stamps))
        self.touched.update(changes)


class Draft:
    """All entities that a request touches."""

    __slots__ = ("_find", "_named", "actor", "now", "steps")

    def __init__(
        self,
        named: Callable[[str], KindState | None],
        find: Callable[[KindState, str], Stored | None],
        now: datetime.datetime,
        actor: str,
    ) -> None:
        self._named = named
        self._find = find
        self.now = now
        self.actor = actor
        self.steps: dict[tuple[str, str], Step] = {}

    def step(self, kind_name: str, key: str) -> Step:
        """The entity of this kind and id. Raises UnknownKind."""
        step = self.steps.get((kind_name, key))
        if step is None:
            state, kind = self.kind(kind_name)
            step = self.steps[kind_name, key] = Step(state, kind, key, self._find(state, key), self.now)
        return step

    def stored(self, kind_name: str, key: str) -> Stored | None:
        """What was stored before the request. Raises UnknownKind."""
        return self._find(self.kind(kind_name)[0], key)

    def kind(self, name: str) -> tuple[KindState, Kind]:
        state = self._named(name)
        if state is None or state.kind is None:
            raise UnknownKind(
                f"the engine has no model for {name!r}: start it with models=[...] or register it there", kind=name
            )
        return state, state.kind
