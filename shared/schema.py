"""What the journal and readers know of a model: its schema, and the bytes of its fields.

The payload of a record is msgpack of the fields that differ from their defaults, keys sorted, without what the record's
header already says (id, version, updated_at). So equal entities have equal payloads, and a no-op is equality of bytes.
The defaults travel with the schema: changing a default in code never changes what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from hashlib import blake2b
from typing import Annotated, Any, Final, get_args, get_origin
from uuid import UUID

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind

from solewriter.shared.columns import Cell, Column, from_us, unpacked
from solewriter.shared.config import MESSAGE_MAX, PROBLEMS_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidMutation, clean
from solewriter.shared.fieldtypes import all_parts
from solewriter.shared.frozen import FrozenMap

_MINUTE: Final = timedelta(minutes=1)
_OTHER_NUMBER: Final[dict[type, type]] = {int: float, float: int}
TOO_LARGE_INT: Final = "holds an integer of more than 64 bits"
LONE_SURROGATE: Final = "holds text that is not valid Unicode"


_BARE: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    datetime: lambda value: datetime.combine(value.date(), value.timetz()),
    date: lambda value: date(value.year, value.month, value.day),
    timedelta: lambda value: timedelta(value.days, value.seconds, value.microseconds),
    Decimal: Decimal,
    UUID: lambda value: UUID(int=value.int),
}
"""Of classes that are derived from a plain type, as some of pandas and of drivers of databases are: the plain value. A
datetime is a date, too.
"""


def _plain_parts(value: Any) -> Any:
    """What msgspec does not know: nested models and frozen maps, as dicts, and values of derived classes."""
    if isinstance(value, FrozenMap):
        return value._items
    if isinstance(value, BaseModel):
        values, fields = value.__dict__, type(value).__pydantic_fields__
        if len(values) == len(fields):
            return values
        return {name: values[name] for name in fields if name in values}  # without its cached properties
    for base, bare in _BARE.items():
        if isinstance(value, base):
            return bare(value)
    raise NotImplementedError(f"cannot store a {type(value).__name__}")


encode = msgspec.msgpack.Encoder(enc_hook=_plain_parts, order="deterministic").encode
decode = msgspec.msgpack.Decoder().decode
spans_of = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
"""A payload's fields as the bytes that they are written as, to be encoded again as they are"""


_MINUS_ZERO: Final = encode(-0.0)


def encode_asked(value: Any) -> bytes:
    """The same for who compares: -0.0 is equal to 0.0, and so is what holds them."""
    written = encode(value)
    return encode(_unsigned(decode(written))) if _MINUS_ZERO in written else written


def _unsigned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unsigned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unsigned(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """A field value as data that any process can unpickle without importing anything. What holds moments goes through
    `in_whole_minutes` before.
    """
    if type(value) is datetime or type(value) is time:
        value = in_whole_minutes(value)
    elif type(value) is bytearray or type(value) is memoryview:  # of which it would make text, as JSON needs it
        value = bytes(value)
    return msgspec.to_builtins(
        value, builtin_types=(bytes, bytearray, memoryview), enc_hook=_plain_parts, order="deterministic"
    )


def in_whole_minutes(value: Any) -> Any:
    """Moments whose zone was seconds beside a minute of UTC, as most were before 1900, in UTC, and times of such a zone
    in the next one: as text, which is how they are sent, they would be others by these seconds.
    """
    if isinstance(value, datetime):
        offset = value.utcoffset()
        if offset is None or not offset % _MINUTE:
            return value
        try:
            return value.astimezone(UTC)
        except OverflowError:  # in no year of UTC, which is a refusal later
            return value
    if isinstance(value, time):
        return _in_next_zone(value)
    if isinstance(value, BaseModel):
        value = _plain_parts(value)
    if isinstance(value, dict):
        return {name: in_whole_minutes(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [in_whole_minutes(item) for item in value]
    if isinstance(value, frozenset | set):
        return frozenset([in_whole_minutes(item) for item in value])
    return value


def _in_next_zone(value: time) -> time:
    """The same time, so many seconds earlier or later by a clock of whole minutes beside UTC. Of the same day: else it
    would not be equal, and in UTC it may be of another.
    """
    offset = value.utcoffset()
    if offset is None or not (beside := offset % _MINUTE):
        return value
    clock = datetime.combine(datetime.max, value.replace(tzinfo=None))
    midnight = datetime.combine(clock, time.min)
    by = -beside if clock - midnight >= beside else _MINUTE - beside
    return (clock + by).time().replace(tzinfo=timezone(offset + by))


def is_same(held: Any, value: Any) -> bool:
    """Whether both are stored alike, as far as can be seen: what is equal to Python may not be, such as 1 and True."""
    if held is value:
        return True
    try:
        return bool(held == value) and bool(encode(held) == encode(value))
    except (NotImplementedError, TypeError, OverflowError, UnicodeEncodeError):  # only its field knows what it becomes
        return False


def other_numbers(model: type[Entity], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these defaults that are written as another number than their fields hold: 0 for a float."""
    found = {}
    for name, default in defaults.items():
        annotation, other = model.model_fields[name].annotation, _OTHER_NUMBER.get(type(default))
        members = annotation, *get_args(annotation)
        types = [get_args(one)[0] if get_origin(one) is Annotated else one for one in members]
        if other is not None and other in types and type(default) not in types:
            found[name] = default
    return found


def settled(stored: dict[str, Any], before: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, but those that have the number of their default, as that is written or as the field holds it,
    are as they were stored, or left out: nobody sees a change in that. `numbers` are the `other_numbers`.
    """
    for name, default in numbers.items():
        if (name in stored) is (name in before):
            continue
        if _is_same_number(stored.get(name, default), before.get(name, default)):
            if name in stored:
                del stored[name]
            else:
                stored[name] = before[name]
    return stored


def _is_same_number(one: Any, other: Any) -> bool:
    """Of both types, such as 0 and 0.0."""
    return {type(one), type(other)} == {int, float} and one == other and str(float(one)) == str(float(other))


def without_bytes(kind: str, stored: Mapping[str, Any]) -> InvalidMutation:
    """The refusal that names the fields which cannot be written."""
    fields: dict[str, str] = {}
    for name, value in stored.items():
        try:
            encode(value)
        except OverflowError as error:
            is_time = "date" in str(error)  # by its zone it is before the year 1 or after 9999
            fields[name] = "holds a time that UTC has not" if is_time else TOO_LARGE_INT
        except UnicodeEncodeError:
            fields[name] = LONE_SURROGATE
    return InvalidMutation(
        f"{kind}: {', '.join(f'{name} {problem}' for name, problem in fields.items())}", fields=fields
    )


def differing(payload: bytes, other: bytes) -> list[str]:
    """The names of the fields that two payloads do not hold alike."""
    if payload == other:
        return []
    ours, theirs = spans_of(payload), spans_of(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


class Schema(msgspec.Struct, frozen=True):
    """One state of a model, as the journal and readers know it: what its records' payloads and column blocks mean."""

    code: int
    kind: int  # the kind's code
    name: str  # the kind's name
    columns: tuple[Column, ...]
    defaults: dict[str, Any]  # plain values of the fields that a payload may leave out
    stamped: bool  # whether the record's time is the field `updated_at`
    shape: bytes = b""  # stable hash of all fields' types and constraints

    def digest(self) -> bytes:
        return blake2b(
            encode((self.name, self.columns, self.defaults, self.stamped, self.shape)), digest_size=16
        ).digest()

    def cells(
        self,
        columns: Sequence[Column],
        block: bytes,
        values: Callable[[], Mapping[str, Any]],
        defaults: Mapping[str, Any],
    ) -> Sequence[Cell]:
        """The cells of a record for other columns than it may have been written with, without its class: those that it
        lacks are made of its plain `values`, or of the `defaults` of the kind's newest schema where it is older than
        the field; of a value that has none there, that of None.
        """
        cells = unpacked(self.columns, block)
        if tuple(columns) == self.columns:
            return cells
        known = {column.under(column.name): cell for column, cell in zip(self.columns, cells, strict=True)}
        plain_values = values()
        return [_cell_among(column, known, plain_values, defaults) for column in columns]

    def values(self, key: str, version: int, time_us: int, payload: bytes) -> dict[str, Any]:
        """All fields of a record as plain values."""
        values = {**self.defaults, **decode(payload), "id": key, "version": version}
        if self.stamped:
            values["updated_at"] = from_us(time_us)
        return values


def _cell_among(
    column: Column, known: Mapping[Any, Cell], values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Cell:
    """A column's cell among those that are there, else of the value, each under the field's name or an earlier one."""
    for name in (column.name, *column.was):
        if (found := known.get(column.under(name))) is not None:
            return found
    return column.cell_or_none(column.value_in(values, defaults))


def differences(theirs: Schema, ours: Schema, fields: AbstractSet[str]) -> str:
    """In words, in what the engine's class of a kind differs from one here that has these fields. Of the engine's only
    those fields are known that are columns or have a default.
    """
    there, here = ({column.name: column for column in schema.columns} for schema in (theirs, ours))
    known = theirs.defaults.keys() | there.keys() | ({"updated_at"} if theirs.stamped else set())
    found = [f"{name} is only there" for name in sorted(known - fields)]
    for name in sorted(fields - known):
        if name in ours.defaults:
            found.append(f"{name} is only here, or has no default there")
        elif name in here:
            found.append(f"{name} is a column only here")
    for name in sorted(fields & known):
        found += _apart(f"{name} has a default", theirs.defaults, ours.defaults, name, _default_apart)
        found += _apart(f"{name} is a column", there, here, name, _column_apart)
    if not found and theirs.shape == ours.shape:
        found.append("the order of its columns")
    elif not found:
        silent = ", ".join(sorted(fields - known - {"id", "version"}))
        of_no_default = f", or fields without a default, here: {silent}" if silent else ""
        found.append(f"the types or constraints of its fields{of_no_default}")
    if len(found) > PROBLEMS_MAX:
        found[PROBLEMS_MAX:] = [f"and {len(found) - PROBLEMS_MAX} more"]
    return clean("; ".join(found), MESSAGE_MAX // 2)


def _apart(
    what: str, there: Mapping[str, Any], here: Mapping[str, Any], name: str, told: Callable[[str, Any, Any], str]
) -> list[str]:
    """In what both sides differ about one field, if they do."""
    words = ""
    if name in there and name in here:
        words = told(name, there[name], here[name])
    elif name in there or name in here:
        words = f"{what} only {'there' if name in there else 'here'}"
    return [words] if words else []


def _default_apart(name: str, there: Any, here: Any) -> str:
    return "" if encode(there) == encode(here) else f"{name} defaults to {there!r:.60} there, to {here!r:.60} here"


def _column_apart(name: str, there: Column, here: Column) -> str:
    if there.type != here.type:
        return f"{name} is a column of {there.type} there, of {here.type} here"
    if there.values != here.values and there.type == "str":
        return f"{name} is text {_made(there)} there, {_made(here)} here"
    if there.values != here.values:
        return f"{name} is one of {there.values!r:.100} there, of {here.values!r:.100} here"
    return "" if there == here else f"{name} has other earlier names"


def _made(column: Column) -> str:
    return f"made by {', '.join(map(str, column.values))}" if column.values else "as it is given"


def shape_of(model: type[Entity]) -> bytes:
    """What a class's fields are named, were, and may hold, as 16 stable bytes. Titles and descriptions do not count."""
    try:
        described: Any = model.model_json_schema(by_alias=False, schema_generator=_WithAllSaid)
    except Exception:  # a type that JSON schema has no words for
        described = {name: repr(field.annotation) for name, field in model.model_fields.items()}
    said = msgspec.json.encode(_bare(described), order="sorted")
    configured = {
        one.__name__: names
        for one in (model, *all_parts(model))
        if (names := [name for name in _CONFIGURED if one.model_config.get(name)])
    }
    if configured:
        said += msgspec.json.encode(configured, order="sorted")
    return blake2b(said, digest_size=16).digest()


_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "max_digits", "decimal_places")
_UNSAID = {
    "datetime": ("tz_constraint", *_BOUNDS),
    "date": _BOUNDS,
    "time": ("tz_constraint", *_BOUNDS),
    "timedelta": _BOUNDS,
    "decimal": ("allow_inf_nan", *_BOUNDS),
    "float": ("allow_inf_nan",),
    "str": ("strip_whitespace", "to_lower", "to_upper", "ascii_only"),
    "model-field": ("validation_alias",),
}
"""What a pydantic core schema says of a type, and a JSON schema does not"""


_CONFIGURED = ("allow_inf_nan", "str_strip_whitespace", "str_to_lower", "str_to_upper")
"""What a class's configuration says of all its fields, likewise"""


class _WithAllSaid(GenerateJsonSchema):
    """A JSON schema that also tells what it has no words for: from another class's constraints of moments, say, or from
    those of the fields beside a FrozenMap, nobody could be warned otherwise.
    """

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """Not of a default that JSON has no words for: it does not count here, and where warnings are errors the shape
        would be another one.
        """

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        described = super().generate_inner(schema)
        unsaid = {name: str(schema[name]) for name in _UNSAID.get(schema["type"], ()) if name in schema}
        return {**described, **unsaid} if unsaid else described

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        function = schema.get("function", {}).get("function")
        return {"type": schema["type"], "made by": getattr(function, "__name__", "")}


_FOR_PEOPLE = frozenset({"title", "description", "examples", "deprecated", "default"})  # defaults are compared by value


def _bare(described: Any, *, names: bool = False) -> Any:
    """A JSON schema without what only people and makers read; where keys are `names`, each of them stays."""
    if isinstance(described, list):
        return [_bare(item) for item in described]
    if not isinstance(described, dict):
        return described
    return {
        key: _bare(item, names=not names and key in ("properties", "$defs"))
        for key, item in described.items()
        if names or key not in _FOR_PEOPLE
    }
