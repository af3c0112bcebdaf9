"""A request's overlay: what each entity it touches was before the request, and what it has become so far.

Mutations see the earlier ones of their request; `expect` compares with what was stored before it. The entity gets one
version for the whole request.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from solewriter.engine_proc.state import KindState, Stored
from solewriter.shared.columns import Cell
from solewriter.shared.errors import NotFound, UnknownKind, VersionConflict
from solewriter.shared.registry import Kind


class Step:
    """One entity of a request, on its way. Its content is the stored fields: those that differ from their defaults."""

    __slots__ = (
        "_fields", "before", "block", "cells", "exists", "header", "key", "kind", "old_cells",
        "op", "payload", "reason", "state", "stored", "touched", "version",
    )  # fmt: skip

    def __init__(self, state: KindState, kind: Kind, key: str, before: Stored | None, now: datetime.datetime) -> None:
        self.state = state
        self.kind = kind
        self.key = key
        self.before = before
        self.exists = before is not None and before.alive
        self.version = before.version + 1 if before is not None else 1
        self.header: dict[str, Any] = {"id": key, "version": self.version}
        if "updated_at" in kind.stamps:
            self.header["updated_at"] = now
        self.op = 0
        self.reason = ""
        self.touched: set[str] = set()
        self.old_cells: tuple[Cell, ...] = ()
        self.cells: tuple[Cell, ...] = ()  # these three are what its record will say
        self.payload = b""
        self.block = b""
        self.stored: Stored | None = None  # what it is after the request, once that is written
        self._fields: dict[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The stored fields as they are now. Raises NotFound if there is no such entity."""
        self.check_exists()
        if self._fields is None:
            assert self.before is not None
            self._fields = self.kind.fields_of(self.state.schema, self.before.payload)
        return self._fields

    def check_exists(self) -> None:
        """Raises NotFound."""
        if not self.exists:
            raise NotFound(f"there is no {self.kind.name} {self.key!r}", kind=self.kind.name, id=self.key)

    def field(self, name: str) -> Any:
        """One field's plain value, its default where it is not stored."""
        return self.fields.get(name, self.state.schema.defaults.get(name))

    def expected(self, expect: int | None) -> None:
        """Compare with the version stored before the request. Raises VersionConflict."""
        if expect is None:
            return
        before = self.before
        stored = before.version if before is not None and before.alive else 0
        if stored != expect:
            raise VersionConflict(
                f"{self.kind.name} {self.key!r} is at version {stored}, not {expect}: "
                "look at the current one and decide again",
                kind=self.kind.name, id=self.key, expected=expect, version=stored,
            )  # fmt: skip

    def change(self, op: int, reason: str, changes: Mapping[str, Any]) -> None:
        """Replace some fields, validated. Raises NotFound, InvalidMutation."""
        self._become(op, reason, self.kind.changed(self.fields, changes, self.header))
        self.touched.update(changes)

    def replace(self, op: int, reason: str, values: Mapping[str, Any]) -> None:
        """A whole new content, validated. Raises InvalidMutation."""
        self._become(op, reason, self.kind.stored(self.kind.validated({**values, **self.header})))
        self.touched.update(self.kind.model.model_fields)

    def delete(self, op: int, reason: str) -> None:
        self._become(op, reason, None)

    def _become(self, op: int, reason: str, fields: dict[str, Any] | None) -> None:
        self.op = op
        self.reason = reason
        self.exists = fields is not None
        self._fields = fields


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
