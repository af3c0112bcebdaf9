"""An owner's classes as bytes for its engine: by name from modules that it can import, by value from all others.

Here alone, and for the way to the engine alone: it reads them from the pipe of the owner that started it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from operator import itemgetter
from typing import Any, NewType

import cloudpickle
from pydantic import BaseModel

from solewriter.shared.entity import Entity
from solewriter.shared.kinds.fieldtypes import held_types

_pickling = threading.Lock()  # what is by value, and what a model remembers, is the whole process's


def pickled(models: Sequence[type[Entity]], reloaded: AbstractSet[str] = frozenset()) -> bytes:
    """The owner's classes for the engine, with those of their fields: by name from modules that it can import, by value
    from all others, and from those that were `reloaded`. Raises TypeError for what cannot be sent.
    """
    names = {one.__module__ for one in _classes(models)}
    with _pickling:
        known = cloudpickle.list_registry_pickle_by_value()  # what the owner said itself stays
        by_value = [
            sys.modules[name]
            for name in names - known
            if name in sys.modules and (name in reloaded or not _importable(name))
        ]
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            with _without_surroundings():
                file = BytesIO()
                _Pickler(file).dump(_Behind([*_inside_out(models, set())], list(models)))
            return file.getvalue()
        except OSError:
            raise  # of want of descriptors: it is tried again
        except Exception as error:  # whatever the classes' own say of it
            classes = ", ".join(model.__name__ for model in models)
            raise TypeError(
                f"{classes}, with what their code uses, cannot go to the engine by value: {error}; those of a module "
                "that it can import go by name"
            ) from error
        finally:
            for module in by_value:
                cloudpickle.unregister_pickle_by_value(module)


def reloaded_since(before: Iterable[type[Entity]], models: Iterable[type[Entity]]) -> set[str]:
    """The modules that were loaded anew, by `importlib.reload` say, since an engine was told of those before: it has
    imported what they held then. Some of what these models are made of has the names that other classes had.
    """
    types = _classes(models)
    former = {_place(one) for one in _classes(before) - types}
    return {one.__module__ for one in types if _place(one) in former and "<locals>" not in one.__qualname__}


def _place(one: type) -> tuple[str, str]:
    return one.__module__, one.__qualname__


def _classes(models: Iterable[type[Entity]]) -> set[type]:
    """All that these are made of."""
    return {base for model in models for held in (model, *held_types(model)) for base in held.__mro__}


def unpickled(models: bytes) -> list[type[Entity]]:
    """The same in the engine: this runs the owner's code."""
    found: list[type[Entity]] = cloudpickle.loads(models)
    return found


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Sends the names that a script gives to types by value as well: cloudpickle does that for its classes alone. And
    each class's own name of its kind, which it takes for inherited where a base has the same. And cached properties.
    """

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, NewType) and not _is_found_by_name(found):
            return NewType, (found.__name__, found.__supertype__)
        if type(found).__name__ == "TypeAliasType" and not _is_found_by_name(found):
            return type(found), (found.__name__, found.__value__)
        if type(found) is cached_property:  # which has a lock in Python 3.11
            return cached_property, (found.func,), {"attrname": found.attrname}
        reduced = super().reducer_override(found)
        if isinstance(found, type) and issubclass(found, Entity) and isinstance(reduced, tuple):
            attributes, _ = reduced[2]
            attributes["kind_name"] = found.kind_name
        return reduced


def _is_found_by_name(named: Any) -> bool:
    module = named.__module__ or "__main__"
    if module == "__main__" or not _importable(module):
        return False
    return getattr(sys.modules.get(module), named.__name__, None) is named


class _Behind:
    """Reads as `models`; what they are made of is read before."""

    def __init__(self, inside: list[type], models: list[type[Entity]]) -> None:
        self._both = inside, models

    def __reduce__(self) -> tuple[itemgetter[int], tuple[object]]:
        return itemgetter(1), (self._both,)


def _inside_out(types: Iterable[type], met: set[type]) -> Iterator[type]:
    """The models among these, and those that they are made of: bases and parts before what has them. A part may share
    its schema with what holds it: met for the first time in the middle of that, by an annotation that is a text, it
    would be read with a schema that is still empty.
    """
    for one in types:
        if one not in met and issubclass(one, BaseModel):
            met.add(one)
            yield from _inside_out((*one.__mro__[1:], *held_types(one)), met)
            yield one


def _forked() -> None:
    global _pickling
    _pickling = threading.Lock()  # whoever held it is not here


os.register_at_fork(after_in_child=_forked)


@contextmanager
def _without_surroundings() -> Iterator[None]:
    """A model that is defined in a function remembers that function's variables, an Engine among them perhaps: pydantic
    needs them to resolve names in its annotations, which was done when the model was checked.
    """
    attribute = "__pydantic_parent_namespace__"
    remembered = {
        model: model.__dict__[attribute]
        for model in _all_models(BaseModel)
        if model.__dict__.get(attribute) is not None
    }
    for model in remembered:
        setattr(model, attribute, None)
    try:
        yield
    finally:
        for model, names in remembered.items():
            setattr(model, attribute, names)


def _all_models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _all_models(model)


def _importable(name: str) -> bool:
    """Whether another process with the same path would find the package of this module. `__main__` is by value
    anyway.
    """
    top = name.partition(".")[0]
    if top == "__main__":
        return True
    try:  # not importlib.util.find_spec: that answers for whatever is loaded, from wherever
        return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)
    except (ImportError, ValueError):
        return False
