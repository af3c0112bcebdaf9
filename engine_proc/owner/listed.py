"""Which classes an engine is given: each of them can be stored, under a name that is its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from solewriter.shared.config import NAME_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.models import Project, Task
from solewriter.shared.registry import Registry


def by_kind(models: Any, *, twins: bool = True) -> dict[str, type[Entity]]:
    """The models by their kinds' names; of two of one kind the last. Raises TypeError for one that cannot be stored, or
    not under its name, for what is none, and without `twins` for two of one kind whose shapes differ, where the second
    is not the first one, defined again.
    """
    if isinstance(models, type | str) or not isinstance(models, Iterable):
        meant = f": models=[{models.__name__}]" if isinstance(models, type) else ""
        raise TypeError(f"models is a list of classes, not {models!r}{meant}")
    listed = list(models)
    for model in listed:
        if not isinstance(model, type) or not issubclass(model, Entity):
            raise TypeError(f"{model!r} is not a subclass of solewriter.Entity")
    registry, found = Registry(listed), dict[str, type[Entity]]()
    for model in listed:
        if model.kind_name in (Task.kind_name, Project.kind_name) and model not in (Task, Project):
            raise TypeError(f"{model.__name__}: the name {model.kind_name} is taken: give it another one by `kind=`")
        if len(model.kind_name) > NAME_MAX:
            raise TypeError(f"{model.__name__}: the name of a kind is of at most {NAME_MAX} characters")
        other = found.get(model.kind_name, model)
        is_other = registry.of(other).schema.digest() != registry.of(model).schema.digest()
        if is_other and not twins and (one := _place(other)) != (two := _place(model)):
            raise TypeError(f"{one} and {two} are both the kind {model.kind_name!r}: give one another by `kind=`")
        found[model.kind_name] = model
    return found


def _place(model: type) -> str:
    return f"{model.__module__}.{model.__qualname__}"
