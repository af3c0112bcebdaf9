"""Defaults of fields, none of which pydantic validates: as they are stored, and those that are written as other numbers
than their fields hold, 0 for a float, by themselves or inside of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import InvalidOperation
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel

from solewriter.shared.entity import Entity
from solewriter.shared.errors import safe_repr
from solewriter.shared.kinds.payload import UNORDERED, decode, encode, in_whole_minutes, plain
from solewriter.shared.kinds.rules import converts
from solewriter.shared.kinds.validation import field_adapter

_OTHER_NUMBER: Final[dict[type, type]] = {int: float, float: int}


def stored_default(model: type[Entity], name: str, default: Any) -> Any:
    """A default as a payload holds it, and the journal. Raises TypeError for what none can."""
    try:
        return decode(encode(in_whole_minutes(default)))
    except InvalidOperation:
        why = UNORDERED
    except (NotImplementedError, OverflowError, TypeError, UnicodeEncodeError) as error:
        why = str(error)
    raise TypeError(f"{model.__name__}.{name}: its default {safe_repr(default)} cannot be stored: {why}")


def other_numbers(model: type[Entity], defaults: Mapping[str, Any]) -> dict[str, tuple[bytes, bytes]]:
    """Those of these defaults that are written as other numbers than their fields hold: as they are written, and as the
    field holds them.
    """
    found = {}
    for name, default in defaults.items():
        try:
            made = _default_as_held(model, name, default)
            written = encode(default), encode(made)
        except Exception:  # its field does not take it, or nothing stores it
            continue
        if written[0] != written[1] and made == default:
            found[name] = written
    return found


def _default_as_held(model: type[Entity], name: str, default: Any) -> Any:
    """What a field makes of its default, where that takes no code of a user's; else the default."""
    if (other := _OTHER_NUMBER.get(type(default))) is not None:
        annotation = model.model_fields[name].annotation
        members = annotation, *get_args(annotation)
        types = [get_args(one)[0] if get_origin(one) is Annotated else one for one in members]
        return other(default) if other in types and type(default) not in types else default
    if isinstance(default, BaseModel) or (default and isinstance(default, tuple | frozenset)):
        adapter = field_adapter(model, name)
        return default if converts(adapter.core_schema) else adapter.validator.validate_python(plain(default))
    return default


def keep_numbers(
    stored: dict[str, Any], before: Mapping[str, Any], numbers: Mapping[str, tuple[bytes, bytes]]
) -> dict[str, Any]:
    """The same fields, but those that have the numbers of their default, as that is written or as the field holds it,
    are as they were stored, or left out: nobody sees a change in that. `numbers` are the `other_numbers`.
    """
    for name, written in numbers.items():
        if (name in stored) is (name in before):
            continue
        if name in before and _bytes_of(before[name]) in written:
            stored[name] = before[name]
        elif name in stored and _bytes_of(stored[name]) in written:
            del stored[name]
    return stored


def _bytes_of(value: Any) -> bytes:
    try:
        return encode(value)
    except (OverflowError, UnicodeEncodeError):  # which is told when it is stored
        return b""
