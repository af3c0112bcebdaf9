"""Which models exist. A `Kind` is one registered model: its name, codec, columns, and how a change of it is validated.

The payload of a record is msgpack of the fields that differ from their defaults, keys sorted, without what the record's
header already says (id, version, updated_at). So equal entities have equal payloads, and a no-op is equality of bytes.
The defaults travel with the schema: changing a default in code never changes what is stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from solewriter.shared.columns import Cell, Column, column_of, from_us
from solewriter.shared.config import COLUMNS_MAX, KINDS_MAX
from solewriter.shared.errors import InvalidMutation, UnknownKind
from solewriter.shared.fieldtypes import refuse_unsuitable
from solewriter.shared.frozen import FrozenMap, _JsonSchema
from solewriter.shared.models import Entity, Lifecycle, Project, Task

E = TypeVar("E", bound=Entity)
STAMPS = ("created_by", "created_at", "updated_at")  # filled in by the engine where a model declares them
IN_HEADER = frozenset({"id", "version", "updated_at"})


def _plain_parts(value: Any) -> Any:
    """What msgspec does not know: nested models and frozen maps, as dicts."""
    if isinstance(value, FrozenMap):
        return value._items
    if isinstance(value, BaseModel):
        return value.__dict__
    raise NotImplementedError(f"cannot store a {type(value).__name__}")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain_parts, order="deterministic").encode
_decode = msgspec.msgpack.Decoder().decode


def plain(value: Any) -> Any:
    """A field value as data that any process can unpickle without importing anything."""
    return msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_plain_parts)


def problems(error: ValidationError) -> InvalidMutation:
    """pydantic's findings as a refusal: each failing field and what is wrong with it."""
    fields: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(step) for step in item["loc"]) or str(item.get("ctx", {}).get("field", "entity"))
        fields.setdefault(where, item["msg"])
    listed = "; ".join(f"{name}: {problem}" for name, problem in fields.items())
    return InvalidMutation(f"{error.title}: {listed}", fields=fields)


class Schema(msgspec.Struct, frozen=True):
    """One state of a model, as the journal and readers know it: what its records' payloads and column blocks mean."""

    code: int
    kind: int  # the kind's code
    name: str  # the kind's name
    columns: tuple[Column, ...]
    defaults: dict[str, Any]  # plain values of the fields that a payload may leave out
    stamped: bool  # whether the record's time is the field `updated_at`

    def digest(self) -> bytes:
        return blake2b(_encode((self.name, self.columns, self.defaults, self.stamped)), digest_size=16).digest()

    def values(self, key: str, version: int, time_us: int, payload: bytes) -> dict[str, Any]:
        """All fields of a record as plain values."""
        values = {**self.defaults, **_decode(payload), "id": key, "version": version}
        if self.stamped:
            values["updated_at"] = from_us(time_us)
        return values


class Kind:
    """One registered model. Raises TypeError, naming the field, for a model that cannot be stored."""

    def __init__(self, model: type[Entity]) -> None:
        model.model_rebuild()
        refuse_unsuitable(model)
        self.model = model
        self.name = model.kind_name
        self.lifecycle: Lifecycle | None = model.lifecycle
        self.stamps = frozenset(name for name in STAMPS if name in model.model_fields)
        status = {self.lifecycle.field} if self.lifecycle else set()
        self.fixed = frozenset({"id", "version", *self.stamps, *status})
        if len(model.column_names) > COLUMNS_MAX:
            raise TypeError(f"{self.name} declares more than {COLUMNS_MAX} columns")
        self.columns = tuple(column_of(model, name) for name in model.column_names)
        self._cell_of = {column.name: (place, column.cell()) for place, column in enumerate(self.columns)}
        self.block = struct.Struct("<" + "".join(column.code for column in self.columns))
        self._defaults = {
            name: field.get_default()
            for name, field in model.model_fields.items()
            if not field.is_required() and field.default_factory is None and name not in IN_HEADER
        }
        self._json = frozenset(
            name for name, field in model.model_fields.items() if any(item is _JsonSchema for item in field.metadata)
        )
        self.schema = Schema(0, 0, self.name, self.columns, plain(self._defaults), "updated_at" in self.stamps)
        self._after = _after_validators(model)
        self._field_validators: dict[str, Callable[[Any], Any]] = {}
        self._same_as_ours = self.schema

    # --- building ----------------------------------------------------------------------------------------------------

    def validated(self, values: Mapping[str, Any]) -> Entity:
        """A whole entity from plain values, in canonical form. Raises InvalidMutation."""
        try:
            made: Entity = self.model.__pydantic_validator__.validate_python(values)
        except ValidationError as error:
            raise problems(error) from None
        object.__setattr__(made, "__pydantic_fields_set__", {*self.stored(made), *IN_HEADER.intersection(made.__dict__)})
        return made

    def changed(self, current: Entity, changes: Mapping[str, Any], stamps: Mapping[str, Any]) -> Entity:
        """A canonical `current` with some fields replaced, fully validated, and `stamps` (the engine's own fields) set.

        Where a model has only `after` rules, validating the changed fields and then running the rules on the merged entity
        is the same as validating everything, and costs a third; otherwise everything is validated. Raises InvalidMutation.
        """
        merged = {**current.__dict__, **stamps}
        if self._after is None:
            merged.update(changes)
            return self.validated(merged)
        present = set(current.__pydantic_fields_set__)
        for name, value in changes.items():
            valid = merged[name] = self.field(name, value)
            if name in self._defaults and self._is_default(name, valid, self._defaults[name]):
                present.discard(name)
            else:
                present.add(name)
        made: Entity = self.model.__new__(self.model)
        object.__setattr__(made, "__dict__", merged)
        object.__setattr__(made, "__pydantic_fields_set__", present)
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", None)
        try:
            for rule in self._after:
                rule(made)
        except ValueError:
            return self.validated(merged)  # the same refusal, worded by pydantic
        return made

    def field(self, name: str, value: Any) -> Any:
        """One field's value, validated by that field alone. Raises InvalidMutation."""
        validate = self._field_validators.get(name)
        if validate is None:
            if name not in self.model.model_fields:
                raise InvalidMutation(f"{self.name} has no field {name!r}", fields={name: "no such field"})
            validate = self._field_validators[name] = self._field_validator(name)
        try:
            return validate(value)
        except ValidationError as error:
            found = problems(error)
            raise InvalidMutation(f"{self.name}.{name}: {next(iter(found.fields.values()))}", fields={
                name if where == "entity" else f"{name}.{where}": problem for where, problem in found.fields.items()
            }) from None

    def _field_validator(self, name: str) -> Callable[[Any], Any]:
        field = self.model.model_fields[name]
        annotated = field.annotation
        for item in field.metadata:
            annotated = Annotated[annotated, item]
        config = {"allow_inf_nan": False} if not _has_model(annotated) else None
        return TypeAdapter(annotated, config=config).validator.validate_python  # type: ignore[arg-type]  # a ConfigDict

    def payload(self, entity: Entity) -> bytes:
        """What is stored of a canonical entity."""
        values = entity.__dict__
        return _encode({name: values[name] for name in entity.__pydantic_fields_set__ if name not in IN_HEADER})

    def cells(self, entity: Entity) -> tuple[Cell, ...]:
        """The cells of all columns. Raises InvalidMutation for a value that has none."""
        return self.recelled(entity, (0,) * len(self.columns), self._cell_of)

    def recelled(self, entity: Entity, old: Sequence[Cell], names: Iterable[str]) -> tuple[Cell, ...]:
        """The old cells with those of some fields made anew. Raises InvalidMutation for a value that has none."""
        values, cells = entity.__dict__, list(old)
        for name in names:
            found = self._cell_of.get(name)
            if found is not None:
                try:
                    cells[found[0]] = found[1](values[name])
                except ValueError as error:
                    raise InvalidMutation(f"{self.name}.{name}: {error}", fields={name: str(error)}) from None
        return tuple(cells)

    def stored(self, entity: Entity) -> dict[str, Any]:
        """The fields that a payload holds, of an entity from anywhere: those that differ from their defaults."""
        values, defaults = entity.__dict__, self._defaults
        return {
            name: value
            for name, value in values.items()
            if name not in IN_HEADER and not (name in defaults and self._is_default(name, value, defaults[name]))
        }

    def _is_default(self, name: str, value: Any, default: Any) -> bool:
        if value is default:
            return True
        if type(value) is not type(default):
            return False
        return not value and not default if name in self._json else bool(value == default)

    # --- reading -----------------------------------------------------------------------------------------------------

    def decoded(self, schema: Schema, key: str, version: int, time_us: int, payload: bytes) -> Entity:
        """The entity of a record, validated. Records of an older schema keep the defaults of their time."""
        values = _decode(payload)
        if schema is not self._same_as_ours and not self._is_ours(schema):
            values = {**schema.defaults, **values}
            values = {name: value for name, value in values.items() if name in self.model.model_fields}
        values["id"] = key
        values["version"] = version
        if "updated_at" in self.stamps:
            values["updated_at"] = from_us(time_us)  # the time of its newest record
        return self.model.__pydantic_validator__.validate_python(values)  # type: ignore[no-any-return]  # the model's own


    def _is_ours(self, schema: Schema) -> bool:
        """Whether a stored schema has the defaults of the class here; remembered, because it is asked at every decode."""
        if schema.defaults != self.schema.defaults:
            return False
        self._same_as_ours = schema
        return True


def _after_validators(model: type[Entity]) -> tuple[Callable[[Any], Any], ...] | None:
    """The model's `after` rules, or None where validation is more than its fields and these rules."""
    found = model.__pydantic_decorators__
    if found.field_validators or found.root_validators or found.validators or model.__pydantic_post_init__:
        return None
    if any(rule.info.mode != "after" for rule in found.model_validators.values()) or model.__pydantic_root_model__:
        return None
    return tuple(getattr(model, rule.cls_var_name) for rule in found.model_validators.values())


def _has_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


class Registry:
    """The kinds that a process knows, by name and by class."""

    def __init__(self, models: Iterable[type[Entity]] = ()) -> None:
        self._by_name: dict[str, Kind] = {}
        self._by_model: dict[type[Entity], Kind] = {}
        for model in (Task, Project, *models):
            self.add(model)

    def add(self, model: type[Entity]) -> Kind:
        """Register a model; a newer class of the same name takes the place of the older (notebooks redefine classes)."""
        known = self._by_model.get(model)
        if known is not None:
            return known
        if not (isinstance(model, type) and issubclass(model, Entity)):
            raise TypeError(f"{model!r} is not a subclass of solewriter.Entity")
        kind = Kind(model)
        if kind.name not in self._by_name and len(self._by_name) >= KINDS_MAX:
            raise TypeError(f"more than {KINDS_MAX} kinds in one state")
        self._by_name[kind.name] = kind
        self._by_model[model] = kind
        return kind

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
