"""What the journal and readers know of a model: its columns, its defaults, and a hash of what its fields may hold.

The defaults travel with the schema: changing a default in code never changes what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Any

import msgspec
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind

from solewriter.shared.config import MESSAGE_MAX, PROBLEMS_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.errors import clean
from solewriter.shared.kinds.columns import Cell, Column, from_us, unpack_cells
from solewriter.shared.kinds.fieldtypes import all_parts
from solewriter.shared.kinds.payload import decode, encode


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
        cells = unpack_cells(self.columns, block)
        if tuple(columns) == self.columns:
            return cells
        known = {column.under(column.name): cell for column, cell in zip(self.columns, cells, strict=True)}
        plain_values = values()
        return [_cell_among(column, known, plain_values, defaults) for column in columns]

    def has_cells_for(self, column: Column) -> bool:
        """Whether records that were written with these columns have the cells of this one."""
        return any(known.under(known.name) == column.under(name) for known in self.columns for name in column.names)

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
    for name in column.names:
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
        return f"{name} is text {_maker_in_words(there)} there, {_maker_in_words(here)} here"
    if there.values != here.values:
        return f"{name} is one of {there.values!r:.100} there, of {here.values!r:.100} here"
    return "" if there == here else f"{name} has other earlier names"


def _maker_in_words(column: Column) -> str:
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

    def union_schema(self, schema: Any) -> JsonSchemaValue:
        """With its mode, where that is not the one of all unions that say none."""
        described = super().union_schema(schema)
        return {**described, "mode": schema["mode"]} if schema.get("mode", "smart") != "smart" else described

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
