"""A declared column: one field as a fixed-width number beside every slot, so that readers filter without decoding.

| field type  | cell                | None   |
|-------------|---------------------|--------|
| enum, literals | u8: 1 + position in the enum's definition, or among the sorted literals | 0 |
| bool        | u8: 1 false, 2 true | 0      |
| int         | i64                 | lowest |
| float       | f64                 | NaN    |
| datetime    | i64: microseconds since 1970, UTC | lowest |
| str         | u64: stable hash, never 0; verified on the record | 0 |

A record carries the block of its cells, so installing it, or recovering it, never decodes the payload.
"""

from __future__ import annotations

import datetime
import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, get_args, get_origin

import msgspec
import pydantic

from solewriter.shared.entity import broken
from solewriter.shared.errors import InvalidMutation, safe_repr
from solewriter.shared.kinds.fieldtypes import bare_type, said_of

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
NO_INT = -(2**63)
NO_FLOAT = float("nan")
TIMES = (datetime.datetime, pydantic.AwareDatetime, pydantic.PastDatetime, pydantic.FutureDatetime)

MADE_OF_TEXTS: Mapping[str, Callable[[str], str]] = {
    "strip_whitespace": str.strip,
    "to_lower": str.lower,
    "to_upper": str.upper,
}

Cell = int | float
Cells = Sequence[tuple[int, Cell]]
"""(position of the column, its cell) of the columns that a record changes"""


def to_us(moment: datetime.datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - EPOCH) // MICROSECOND


def from_us(time_us: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(microseconds=time_us)


@lru_cache(maxsize=65_536)  # assignees and projects repeat; 0.6 us saved each
def text_hash(text: str) -> int:
    """64 stable bits of a string, never 0. The same in every process and on every day."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class Column(msgspec.Struct, frozen=True):
    """What a column is made of, as readers without the class learn it: `code` is its struct letter."""

    name: str
    code: str  # B, q, d or Q
    type: str  # enum, bool, int, float, time or str
    values: tuple[str | int, ...] = ()  # of an enum, in order; of a str, what its class makes of each text
    was: tuple[str, ...] = ()  # earlier names of the field: its aliases

    @property
    def names(self) -> tuple[str, ...]:
        """The field's name, and its earlier ones."""
        return self.name, *self.was

    def under(self, name: str) -> tuple[Any, ...]:
        """What a column of this name must be to have the same cells."""
        return name, self.code, self.type, self.values

    def value_in(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
        """The field's value among plain ones, which may have it under an earlier name, or may be older than it."""
        for name in self.names:
            if name in values:
                return values[name]
        return defaults.get(self.name)

    def made_of(self, value: Any) -> Any:
        """A stored value as the class has it, as far as a column tells that."""
        if self.type == "str" and isinstance(value, str):
            for made in self.values:
                value = MADE_OF_TEXTS[str(made)](value)
        return value

    def cell_or_none(self, value: Any) -> Cell:
        """The cell of a plain value; that of None for what this column never holds."""
        cell_of = self.cell()
        try:
            cell = cell_of(self.made_of(value))
            struct.pack("<" + self.code, cell)  # of what was text before and is a float now, say
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError, struct.error, InvalidMutation):
            cell = cell_of(None)
        return cell

    def cell(self) -> Callable[[Any], Cell]:
        """The function from a validated field value to its cell."""
        if self.type == "enum":
            codes = _Codes({value: position for position, value in enumerate(self.values, 1)})
            codes[None] = 0
            return codes.__getitem__  # members of str and int enums hash and compare as their values
        return _CELLS[self.type](self.name)


def format_of(columns: Sequence[Column]) -> str:
    """How a block of cells, one of each of these columns, is packed."""
    return "<" + "".join([column.code for column in columns])


def unpack_cells(columns: Sequence[Column], block: bytes) -> tuple[Cell, ...]:
    """The cells of a block, one for each of the columns that it was written with."""
    return struct.unpack(format_of(columns), block)


class _Codes(dict[Any, int]):
    """Also finds the members of a plain enum, which are not equal to their values."""

    def __missing__(self, value: Any) -> int:
        if isinstance(value, enum.Enum):
            return self[value.value]
        raise ValueError(f"{safe_repr(value)} is not one of the column's values")


def column_of(model: type[pydantic.BaseModel], name: str) -> Column:
    """The column of a model's field. Raises TypeError for a field that has no fixed-width form."""
    if name not in model.model_fields:
        raise TypeError(f"{model.__name__} declares the column {name!r}, but has no such field")
    return msgspec.structs.replace(_column_of(model, name), was=earlier_names(model, name))


def earlier_names(model: type[pydantic.BaseModel], name: str) -> tuple[str, ...]:
    """The names that a field may be stored under besides its own: its aliases that are no other field's names."""
    field = model.model_fields[name]
    aliases = field.validation_alias
    choices = aliases.choices if isinstance(aliases, pydantic.AliasChoices) else [aliases]
    found = [one for one in (*choices, field.alias) if isinstance(one, str) and one not in model.model_fields]
    return tuple(dict.fromkeys(found))


def values_of(model: type[pydantic.BaseModel], name: str) -> tuple[Any, ...] | None:
    """The values of a field that is one of an enum's, or of literals, in their order; None of any other."""
    bare, _ = bare_type(model.model_fields[name].annotation)
    if isinstance(bare, type) and issubclass(bare, enum.Enum) and not issubclass(bare, enum.Flag):
        return tuple([member.value for member in bare])
    if get_origin(bare) is Literal and all(type(value) in (str, int, type(None)) for value in get_args(bare)):
        # Sorted: Python caches unions and compares Literals without order, so the written order may be another class's.
        return tuple(
            sorted(
                (value for value in get_args(bare) if value is not None), key=lambda value: (str(type(value)), value)
            )
        )
    return None


def _column_of(model: type[pydantic.BaseModel], name: str) -> Column:
    if (values := values_of(model, name)) is not None:
        if len(values) > 255:
            raise TypeError(f"column {name!r}: at most 255 values fit one byte")
        return Column(name, "B", "enum", values)
    bare, _ = bare_type(model.model_fields[name].annotation)
    if bare in TIMES:
        return Column(name, "q", "time")
    if bare is str:
        return Column(name, "Q", "str", _made_of_texts(model, name))
    for plain, code in ((bool, "B"), (int, "q"), (float, "d")):
        if bare is plain:
            return Column(name, code, plain.__name__)
    raise TypeError(f"{model.__name__}.{name}: a column is an enum, bool, int, float, datetime or str, not {bare!r}")


def _made_of_texts(model: type[pydantic.BaseModel], name: str) -> tuple[str, ...]:
    """What pydantic makes of each text of a field, as the field or its class says, in this order."""
    field = model.model_fields[name]
    said = {made: model.model_config.get(f"str_{made}") for made in MADE_OF_TEXTS}
    for one in (*said_of(field.annotation), *field.metadata):
        if isinstance(one, pydantic.StringConstraints):
            said |= {made: told for made in said if (told := getattr(one, made)) is not None}
    return tuple([made for made in said if said[made]])


def _int_cell(name: str) -> Callable[[Any], Cell]:
    def cell(value: int | None) -> int:
        if value is None:
            return NO_INT
        if not NO_INT < value < 2**63:
            raise broken(name, "an int column holds 63 bits and a sign")
        return value

    return cell


def _time_cell(name: str) -> Callable[[Any], Cell]:
    def cell(value: datetime.datetime | None) -> int:
        if value is None:
            return NO_INT
        if value.utcoffset() is None:
            raise broken(name, "a time column needs a time zone")
        return to_us(value)

    return cell


def _float_cell(value: float | None) -> float:
    return NO_FLOAT if value is None else value


def _text_cell(value: str | None) -> int:
    return 0 if value is None else text_hash(value)


_CELLS: dict[str, Callable[[str], Callable[[Any], Cell]]] = {
    "bool": lambda name: {None: 0, False: 1, True: 2}.__getitem__,
    "int": _int_cell,
    "float": lambda name: _float_cell,
    "time": _time_cell,
    "str": lambda name: _text_cell,
}
