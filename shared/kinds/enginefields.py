"""The fields that the engine itself reads or fills in, and what their types have to be, so that it can.

These are the fields that every entity has, the stamps of who made it and when, and of a class of tasks all by which the
engine coordinates. What any field may be says `fieldtypes`.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import pydantic

from solewriter.shared.kinds.fieldtypes import UnsuitableField, bare_type, stored_shape

OWN: Mapping[str, tuple[Any, ...]] = {
    "id": (str,),
    "version": (int,),
    "created_by": (str,),
    "created_at": (pydantic.AwareDatetime, datetime.datetime),
    "updated_at": (pydantic.AwareDatetime, datetime.datetime),
}
"""What must be the types of the fields that every entity has, and of those that the engine fills in"""


def refuse_own(model: type[pydantic.BaseModel]) -> None:
    """Check the fields that every entity has, or that the engine fills in. Raises UnsuitableField."""
    if not model.__pydantic_complete__:
        return
    for name in OWN.keys() & model.model_fields.keys():
        bare, optional = bare_type(model.model_fields[name].annotation)
        fits = bare in OWN[name] and not (optional and name in ("id", "version"))
        if not fits and not (name == "created_by" and _is_choice(bare)) and not (name == "id" and _is_words(bare)):
            must = OWN[name][0].__name__
            raise UnsuitableField(f"{model.__name__}.{name}: the engine has to know it: use {must}")


def refuse_unlike(model: type[pydantic.BaseModel], base: type[pydantic.BaseModel], names: Iterable[str]) -> None:
    """Check fields by which the engine coordinates: a derived class may narrow what its base has there, and not make
    other values of it. Raises UnsuitableField.
    """
    for name in names if model.__pydantic_complete__ else ():
        (own, own_none), (like, like_none) = (bare_type(one.model_fields[name].annotation) for one in (model, base))
        values = {_values(own, name), _values(like, name)}
        is_number = values <= {"int", "float"}
        if (len(values) > 1 and not is_number) or (is_number and own_none > like_none):
            must = (like.__name__ if isinstance(like, type) else str(like)) + " | None" * like_none
            raise UnsuitableField(f"{model.__name__}.{name}: the engine coordinates by it: use {must}, or less of that")


def _values(bare: Any, path: str) -> str:
    """What the values of a type are, to who compares and adds them."""
    if bare is datetime.datetime:
        return "moments of no zone"
    if get_origin(bare) is tuple:
        return " ".join(
            ["array", *sorted({stored_shape(item, path, set()) for item in get_args(bare) if item is not ...})]
        )
    return stored_shape(bare, path, set())


def _is_words(bare: Any) -> bool:
    return get_origin(bare) is Literal and all(type(value) is str for value in get_args(bare))


def _is_choice(bare: Any) -> bool:
    return get_origin(bare) is Literal or (isinstance(bare, type) and issubclass(bare, enum.StrEnum))
