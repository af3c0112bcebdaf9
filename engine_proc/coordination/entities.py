"""Entities as coordination looks at them: their stored fields, with those defaults that their class has otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from solewriter.engine_proc.kinds import KindState
from solewriter.shared.kinds.payload import encode, plain
from solewriter.shared.models import Task

if TYPE_CHECKING:
    from solewriter.engine_proc.turn import Turn

Fields = Mapping[str, Any]
Take = Callable[[str, int, Fields], None]  # is shown an entity: key, slot, fields


class Entities:
    """All of them, as they are after what `turn` has changed so far: the one that is being decided, or was the last. A
    look at each of them may outlive it.
    """

    turn: Turn

    def __init__(self) -> None:
        self._defaults: dict[int, Fields] = {}  # by kind, see `whole`

    def each(self, kind: KindState, take: Take) -> Iterator[None]:
        """Show every entity of a kind, as it is when its turn comes. One that is new by then was noted when it came. A
        step each: its class may take its time.
        """
        assert kind.kind is not None, "nobody coordinates what has no class"
        new = [key for name, key in self.turn.changed if name == kind.name and key not in kind.slots]
        for key in [*kind.slots, *new]:
            stored = self.turn.find_safely(kind, (kind.name, key))
            if stored is not None and stored.alive:
                take(key, stored.slot, self.whole(kind, key, kind.kind.fields_of(kind.schema, stored.payload)))
            yield

    def look(self, kind: KindState, key: str) -> Fields | None:
        """The fields of one; None if there is none."""
        assert kind.kind is not None, "nobody coordinates what has no class"
        stored = self.turn.find_safely(kind, (kind.name, key))
        if stored is None or not stored.alive:
            return None
        return self.whole(kind, key, kind.kind.fields_of(kind.schema, stored.payload))

    def whole(self, kind: KindState, key: str, fields: Fields) -> Fields:
        """An entity's stored fields, those defaults of its class that are not Task's, and its id if it is a column."""
        own = self._defaults.get(kind.code)
        if own is None:
            own = self._defaults[kind.code] = _own_defaults(kind)
        if kind.kind is not None and kind.kind.layout.id_is_column:
            return {**own, **fields, "id": key}
        return {**own, **fields} if own else fields

    def forget_classes(self) -> None:
        """Classes may be others by now."""
        self._defaults.clear()


def _own_defaults(kind: KindState) -> Fields:
    """Those of a class of tasks that are not Task's."""
    if kind.kind is None or not kind.kind.claimable:
        return {}
    return {name: value for name, value in kind.schema.defaults.items() if not _is_of_tasks(name, value)}


def _is_of_tasks(name: str, default: Any) -> bool:
    field = Task.model_fields.get(name)
    return field is not None and not field.is_required() and bool(encode(plain(field.get_default())) == encode(default))
