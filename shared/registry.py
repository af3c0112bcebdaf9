"""Which models exist, each a `Kind`: those that come with the house, and those that a process registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from solewriter.shared.config import KINDS_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.errors import UnknownKind, safe_repr
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Project, Task

E = TypeVar("E", bound=Entity)


@cache
def _shipped() -> tuple[Kind, ...]:
    """The kinds that every process knows, made once: their JSON schemas take 3 ms, which each reader would pay."""
    return Kind(Task), Kind(Project)


class Registry:
    """The kinds that a process knows, by name and by class."""

    def __init__(self, models: Iterable[type[Entity]] = ()) -> None:
        self._by_name: dict[str, Kind] = {}
        self._by_model: dict[type[Entity], Kind] = {}
        for kind in _shipped():
            self.install(kind)
        for model in models:
            self.add(model)

    def add(self, model: Any) -> Kind:
        """Register a model. A newer class of the same name takes the older's place: notebooks redefine classes."""
        if not isinstance(model, type) or not issubclass(model, Entity):
            raise TypeError(f"{safe_repr(model)} is not a subclass of solewriter.Entity")
        if (known := self._by_model.get(model)) is not None:
            return known
        kind = Kind(model)
        if kind.name not in self._by_name and len(self._by_name) >= KINDS_MAX:
            raise TypeError(f"more than {KINDS_MAX} kinds in one state")
        self.install(kind)
        return kind

    def install(self, kind: Kind) -> None:
        """This kind, in place of an older one of its name."""
        self._by_name[kind.name] = kind
        self._by_model[kind.model] = kind

    def replace(self, kind: Kind) -> None:
        """As `install`, and nothing is read by the older class any more: it is forgotten."""
        if (older := self._by_name.get(kind.name)) is not None:
            self._by_model.pop(older.model, None)
        self.install(kind)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Kind | None:
        return self._by_name.get(name)

    def named(self, name: str) -> Kind:
        """The kind of this name. Raises UnknownKind."""
        kind = self._by_name.get(name)
        if kind is None:
            raise UnknownKind(f"no model is registered as {name!r}; known: {', '.join(self._by_name)}", kind=name)
        return kind

    def of(self, model: type[E]) -> Kind:
        """The kind of a class, registering it at first use."""
        return self._by_model.get(model) or self.add(model)
