"""The bytes of an entity's fields, and what any value is as plain data.

The payload of a record is msgpack of the fields that differ from their defaults, keys sorted, without what the record's
header already says (id, version, updated_at). So equal entities have equal payloads, and a no-op is equality of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

import msgspec
from pydantic import BaseModel

from solewriter.shared.errors import InvalidMutation
from solewriter.shared.frozen import FrozenMap

_MINUTE: Final = timedelta(minutes=1)
TOO_LARGE_INT: Final = "holds an integer of more than 64 bits"
LONE_SURROGATE: Final = "holds text that is not valid Unicode"
UNORDERED: Final = "a set of NaN and other numbers has no order"


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
    """As `encode`, for who compares bytes: -0.0 becomes 0.0, also inside of others, for the two are equal."""
    written = encode(value)
    return encode(_without_minus_zero(decode(written))) if _MINUS_ZERO in written else written


def _without_minus_zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_minus_zero(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_minus_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """A field value as data that any process can unpickle without importing anything. What holds moments goes through
    `in_whole_minutes` before. Raises TypeError, NotImplementedError for what is no data.
    """
    if type(value) is datetime or type(value) is time:
        value = in_whole_minutes(value)
    elif type(value) is bytearray or type(value) is memoryview:  # of which it would make text, as JSON needs it
        value = bytes(value)
    try:
        return msgspec.to_builtins(
            value, builtin_types=(bytes, bytearray, memoryview), enc_hook=_plain_parts, order="deterministic"
        )
    except InvalidOperation:  # of Decimals that are no numbers, in a set
        raise TypeError(UNORDERED) from None


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


def _is_same_number(one: Any, other: Any) -> bool:
    """Of both types, such as 0 and 0.0."""
    return {type(one), type(other)} == {int, float} and one == other and str(float(one)) == str(float(other))


def is_alike(one: Any, other: Any) -> bool:
    """Whether plain values are the same, but for numbers that are written as others, wherever they stand in them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other))
    return bool(encode(one) == encode(other)) or _is_same_number(one, other)


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


def differing_fields(payload: bytes, other: bytes) -> list[str]:
    """The names of the fields that two payloads do not hold alike."""
    if payload == other:
        return []
    ours, theirs = spans_of(payload), spans_of(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
