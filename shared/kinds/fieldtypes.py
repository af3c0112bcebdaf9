"""Which types a stored model's fields may have, and why not the others.

Three laws. A value is immutable all the way down, because readers share decoded entities. It can be stored as plain
data and read back the same. A union's members have different stored shapes, so that decoding never has to guess.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo

from solewriter.shared.frozen import FrozenMap, _JsonSchema

# A plain type and the shape in which msgpack stores it.
SHAPES: Mapping[Any, str] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bytes",
    type(None): "nil",
    None: "nil",
    datetime.datetime: "time",
    pydantic.AwareDatetime: "time",
    pydantic.NaiveDatetime: "str",
    datetime.date: "str",
    datetime.time: "str",
    datetime.timedelta: "str",
    decimal.Decimal: "str",
    uuid.UUID: "str",
    FrozenMap: "map",
}

MOMENTS = (datetime.datetime, pydantic.AwareDatetime, datetime.time)  # which may have a zone

INSTEAD: Mapping[Any, str] = {
    list: "tuple[X, ...]",
    MutableSequence: "tuple[X, ...]",
    Sequence: "tuple[X, ...]",
    dict: "FrozenMap",
    Mapping: "FrozenMap",
    MutableMapping: "FrozenMap",
    set: "frozenset[X]",
    AbstractSet: "frozenset[X]",
    MutableSet: "frozenset[X]",
    bytearray: "bytes",
    Any: "Json",
    object: "Json",
    pydantic.PastDatetime: "AwareDatetime (what was valid by one clock could not be read by another)",
    pydantic.FutureDatetime: "AwareDatetime (it would be invalid when it is read later)",
    pydantic.PastDate: "datetime.date (what was valid by one clock could not be read by another)",
    pydantic.FutureDate: "datetime.date (it would be invalid when it is read later)",
}

# These read back as themselves beside each other; any other scalar is stored or sent as one of them and parsed again.
EXACT = frozenset({str, int, float, bool, bytes})
SCALAR_SHAPES = frozenset({"str", "int", "float", "bool", "bytes", "time"})
# What a stored frozenset may hold: its items are sorted, so that equal sets are equal bytes.
SORTED = EXACT | {datetime.date, datetime.timedelta, decimal.Decimal, uuid.UUID, pydantic.AwareDatetime}

_EMPTY: Mapping[Any, str] = {list: "()", dict: "FrozenMap()", set: "frozenset()"}


class UnsuitableField(TypeError):
    """A field type that cannot be stored, with what to use instead."""


def refuse_unsuitable(model: type[pydantic.BaseModel]) -> None:
    """Check every field of `model`, nested models included. Raises UnsuitableField; waits for forward references."""
    if model.__pydantic_complete__:
        _check_model(model, model.__name__, set())


def _check_model(model: type[pydantic.BaseModel], path: str, seen: set[type]) -> None:
    if model in seen:
        return
    seen.add(model)
    if issubclass(model, pydantic.RootModel):
        raise UnsuitableField(f"{path}: {model.__name__} has no fields; use the type of its root")
    if not model.model_config.get("frozen"):
        raise UnsuitableField(
            f"{path}: the model {model.__name__} is mutable; derive it from solewriter.Part (or set frozen=True)"
        )
    if model.model_config.get("extra") == "allow":
        raise UnsuitableField(
            f"{path}: fields that {model.__name__} does not declare would be lost; use one of type FrozenMap"
        )
    for name, field in model.model_fields.items():
        _check_aliases(model, name, f"{path}.{name}")
        if not any(item is _JsonSchema for item in field.metadata):
            stored_shape(field.annotation, f"{path}.{name}", seen)
            if name not in ("created_at", "updated_at"):  # which nobody sends
                _check_strict(field.annotation, f"{path}.{name}", model, _said_strict(field.metadata))
        _check_default(field, f"{path}.{name}")


def _check_aliases(model: type[pydantic.BaseModel], name: str, path: str) -> None:
    """What is stored goes by the fields' names."""
    config, alias = model.model_config, model.model_fields[name].validation_alias
    if alias is None:
        return
    if not (config.get("populate_by_name") or config.get("validate_by_name")):
        raise UnsuitableField(f"{path}: fields are read back by their names; set populate_by_name=True")
    if config.get("validate_by_alias") is False:
        return
    for one in alias.choices if isinstance(alias, pydantic.AliasChoices) else [alias]:
        first = one.path[0] if isinstance(one, pydantic.AliasPath) else one
        if first != name and first in model.model_fields:
            raise UnsuitableField(
                f"{path}: its alias {first!r} is the name of another field, by whose value it would be read back"
            )


def _check_strict(annotation: Any, path: str, model: type[pydantic.BaseModel], said: bool | None) -> None:
    """What is not stored as itself is parsed when it is read, which a strict field refuses. `said` is what the field
    itself says of it, which goes before the model's configuration.
    """
    annotation = _resolve(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if not any(item is _JsonSchema for item in inner[1:]):
            _check_strict(inner[0], path, model, _said_strict(inner[1:], said))
    elif origin in (Union, types.UnionType):
        for item in inner:
            _check_strict(item, path, model, said)
    elif origin is Literal or _stays_itself(annotation):
        pass
    elif model.model_config.get("strict") if said is None else said:
        strict = getattr(origin or annotation, "__name__", annotation)
        raise UnsuitableField(
            f"{path}: a strict {strict} could not be read back, for it is stored as plain data; use Field(strict=False)"
        )
    else:
        for item in inner:
            _check_strict(item, path, model, None)


def _said_strict(metadata: Iterable[Any], said: bool | None = None) -> bool | None:
    for item in metadata:
        for one in item.metadata if isinstance(item, FieldInfo) else [item]:
            said = one.strict if isinstance(one, pydantic.Strict) else said
    return said


def _stays_itself(annotation: Any) -> bool:
    is_model = isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
    return is_model or annotation in EXACT or annotation in (None, type(None), FrozenMap, Ellipsis)


def _check_default(field: FieldInfo, path: str) -> None:
    """pydantic does not validate defaults, so a mutable one would stay mutable."""
    if inspect.isroutine(field.default):
        raise UnsuitableField(
            f"{path}: pydantic takes the method of this name for its default; write = Field(...), or another name"
        )
    plain = field.default_factory if field.default_factory in INSTEAD else type(field.default)
    try:
        hash(field.default)
        mutable = field.default_factory in INSTEAD
    except TypeError:
        mutable = True
    if mutable:
        instead = _EMPTY.get(plain, "an immutable one")
        raise UnsuitableField(f"{path}: the default is a mutable {getattr(plain, '__name__', plain)}; use {instead}")


def stored_shape(annotation: Any, path: str, seen: set[type]) -> str:
    """The stored shape of a type; raises UnsuitableField for one that has none."""
    annotation = _resolve(annotation)
    if annotation in INSTEAD or get_origin(annotation) in INSTEAD:
        plain = get_origin(annotation) or annotation
        raise UnsuitableField(
            f"{path}: {getattr(plain, '__name__', plain)} is not immutable plain data; use {INSTEAD[plain]}"
        )
    if annotation in SHAPES:
        return SHAPES[annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        if any(item is _JsonSchema for item in get_args(annotation)[1:]):
            return "json"
        return stored_shape(get_args(annotation)[0], path, seen)
    if origin in (Union, types.UnionType):
        return _union(get_args(annotation), path, seen)
    if origin is Literal:
        return _literal(get_args(annotation), path)
    if origin in (tuple, frozenset):
        for item in get_args(annotation):
            if item is not Ellipsis:
                stored_shape(item, f"{path}[]", seen)
            if origin is frozenset and not _sorts(item):
                raise UnsuitableField(
                    f"{path}: a frozenset of these has no order in which to store it; use tuple[X, ...]"
                )
        return "array"
    if origin is FrozenMap:
        raise UnsuitableField(f"{path}: what a FrozenMap holds is any plain data; write FrozenMap, without types")
    if annotation in (tuple, frozenset):
        raise UnsuitableField(f"{path}: say what it holds: {annotation.__name__}[X, ...]")
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum_shape(annotation, path)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        _check_model(annotation, path, seen)
        return "map"
    raise UnsuitableField(
        f"{path}: {annotation!r} cannot be stored; use plain immutable types, enums, Part models or Json"
    )


def _resolve(annotation: Any) -> Any:
    """Through `type X = ...` aliases and NewType to what they stand for."""
    while True:
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _enum_shape(annotation: type[enum.Enum], path: str) -> str:
    _check_numbers((member.value for member in annotation), path)
    shapes = {SHAPES.get(type(member.value), "") for member in annotation}
    if len(shapes) != 1 or not shapes <= {"str", "int"}:
        raise UnsuitableField(f"{path}: the values of {annotation.__name__} must be all str or all int")
    return shapes.pop()


def _literal(values: tuple[Any, ...], path: str) -> str:
    if any(isinstance(value, enum.Enum) for value in values):
        raise UnsuitableField(
            f"{path}: enum members in a Literal cannot be read back; use the enum, or a Literal of its values"
        )
    _check_numbers(values, path)
    return "|".join(sorted({SHAPES[type(value)] for value in values}))


def _check_numbers(values: Iterable[Any], path: str) -> None:
    """Larger ones pydantic does not read, of an enum or a Literal."""
    for value in values:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UnsuitableField(f"{path}: numbers of an enum or a Literal must fit 63 bits and a sign")


def _sorts(annotation: Any) -> bool:
    bare, optional = bare_type(annotation)
    if optional:
        return False
    return bare in SORTED or (isinstance(bare, type) and issubclass(bare, enum.Enum) and issubclass(bare, str | int))


def _union(members: tuple[Any, ...], path: str, seen: set[type]) -> str:
    flat = list(_flat(members))
    names = ", ".join(getattr(item, "__name__", str(item)) for item in flat)
    shapes: list[str] = []
    parsed = False
    for member in flat:
        own = stored_shape(member, path, seen).split("|")
        shapes += own
        parsed = parsed or (own[0] in SCALAR_SHAPES and member not in EXACT and get_origin(member) is not Literal)
    alike = {
        shape for shape in shapes if shapes.count(shape) > (shape == "nil") + 1 or (shape == "json" and len(flat) > 1)
    }
    if alike:
        listed = ", ".join(sorted(alike))
        raise UnsuitableField(f"{path}: {names} look alike when stored ({listed}); give them one type with a tag field")
    if parsed and sum(shape in SCALAR_SHAPES for shape in shapes) > 1:
        raise UnsuitableField(
            f"{path}: {names} cannot be told apart when read back; give them one type with a tag field"
        )
    return "|".join(sorted(shapes))


def _flat(members: tuple[Any, ...]) -> Iterator[Any]:
    """The members of a union and of those inside it, aliases and annotations taken off."""
    for member in map(_resolve, members):
        inner = get_args(member)
        if get_origin(member) is Annotated and not any(item is _JsonSchema for item in inner[1:]):
            yield from _flat(inner[:1])
        elif get_origin(member) in (Union, types.UnionType):
            yield from _flat(inner)
        else:
            yield member


def bare_type(annotation: Any) -> tuple[Any, bool]:
    """The type behind Annotated, aliases and `| None`, and whether None is allowed: what a column is made of."""
    annotation = _resolve(annotation)
    if get_origin(annotation) is Annotated:
        return bare_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [item for item in get_args(annotation) if item is not type(None)]
        if len(inner) == 1:
            return bare_type(inner[0])[0], True
    return annotation, False


def said_of(annotation: Any) -> Iterator[Any]:
    """What is said of the type behind Annotated, aliases and `| None`; what is said last goes before the rest."""
    annotation = _resolve(annotation)
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from said_of(inner[0])
        yield from inner[1:]
    elif get_origin(annotation) in (Union, types.UnionType):
        for item in inner:
            yield from said_of(item)


def nested_models(model: type[pydantic.BaseModel]) -> Iterator[type[pydantic.BaseModel]]:
    """The models directly inside a model's fields."""
    for name in model.model_fields:
        yield from models_in(model, name)


def models_in(model: type[pydantic.BaseModel], name: str) -> Iterator[type[pydantic.BaseModel]]:
    """The models directly inside a field."""
    for item in _leaves(model.model_fields[name].annotation):
        if isinstance(item, type) and issubclass(item, pydantic.BaseModel):
            yield item


def all_parts(model: type[pydantic.BaseModel]) -> frozenset[type[pydantic.BaseModel]]:
    """The models inside a model's fields, at any depth."""
    found: set[type[pydantic.BaseModel]] = set()
    todo = [model]
    while todo:
        new = set(nested_models(todo.pop())) - found
        found |= new
        todo += new
    return frozenset(found)


def with_moments(model: type[pydantic.BaseModel]) -> frozenset[str]:
    """The fields that hold moments, in a part of theirs perhaps."""
    found = set()
    for name, field in model.model_fields.items():
        inside = {part for one in models_in(model, name) for part in (one, *all_parts(one))}
        annotations = [field.annotation, *(held.annotation for part in inside for held in part.model_fields.values())]
        if any(leaf in MOMENTS for annotation in annotations for leaf in _leaves(annotation)):
            found.add(name)
    return frozenset(found)


def held_types(model: type[pydantic.BaseModel]) -> Iterator[type]:
    """The classes inside a model's fields, at any depth: parts, enums, plain types."""
    for holder in (model, *all_parts(model)):
        for field in holder.model_fields.values():
            yield from (item for item in _leaves(field.annotation) if isinstance(item, type))


def _leaves(annotation: Any) -> Iterator[Any]:
    annotation = _resolve(annotation)
    inner = typing.get_args(annotation)
    if not inner or get_origin(annotation) is Literal:
        yield annotation
    for item in inner:
        yield from _leaves(item)
