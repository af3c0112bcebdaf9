"""Values that cannot change: `FrozenMap`, and `Json`, the immutable shape of plain data.

Readers share decoded entities between snapshots and threads, so a field's value must be immutable all the way down. A
list becomes a tuple and a dict a `FrozenMap` when it enters a model; numbers must be finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PydanticInvalidForJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

DEPTH_MAX = 32  # nesting of one value; a cycle ends here too
INT_MIN: Final = -(2**63)  # what msgpack can hold
INT_MAX: Final = 2**64 - 1


class FrozenMap(Mapping[str, Any]):
    """An immutable, hashable, picklable mapping from str to plain immutable data. Equal to any mapping with the same
    items.
    """

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        frozen = _freeze_map({**(items or {}), **more}, 0)
        self._items: dict[str, Any] = frozen._items
        self._hash: int | None = None

    @classmethod
    def _of(cls, items: dict[str, Any]) -> FrozenMap:
        made = cls.__new__(cls)
        made._items = items
        made._hash = None
        return made

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __or__(self, other: Mapping[str, Any]) -> FrozenMap:
        return FrozenMap({**self._items, **other})

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"

    def __reduce__(self) -> tuple[type[FrozenMap], tuple[dict[str, Any]]]:
        return FrozenMap, (self._items,)

    def __copy__(self) -> FrozenMap:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenMap:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _validated_map, serialization=core_schema.plain_serializer_function_ser_schema(thaw)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _json_schema(schema, handler, {"type": "object"})


class _JsonSchema:
    """The pydantic face of `Json`."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            freeze, serialization=core_schema.plain_serializer_function_ser_schema(thaw)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _json_schema(schema, handler, {})


Json = Annotated[Any, _JsonSchema]
"""Plain data of any shape (None, bool, int, float, str, lists and maps of these), stored immutable."""


def _json_schema(schema: CoreSchema, handler: GetJsonSchemaHandler, words: dict[str, Any]) -> dict[str, Any]:
    """As a JSON schema, for which pydantic has no words; what compares classes has some (`schema.shape_of`)."""
    try:
        return handler(schema)
    except PydanticInvalidForJsonSchema:
        return words


def freeze(value: Any, depth: int = 0) -> Any:
    """The same data, immutable: list -> tuple, mapping -> FrozenMap. Raises a pydantic error on anything that is not
    plain.
    """
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is int:
        if INT_MIN <= value <= INT_MAX:
            return value
        raise PydanticCustomError("int_range", "integers must fit 64 bits")
    if kind is float:
        if math.isfinite(value):
            return value
        raise PydanticCustomError("finite_number", "numbers must be finite")
    if kind is FrozenMap:
        return value
    if depth >= DEPTH_MAX:
        raise PydanticCustomError("too_deep", "nested more than {depth} deep", {"depth": DEPTH_MAX})
    if isinstance(value, list | tuple):
        return tuple([freeze(item, depth + 1) for item in value])
    if isinstance(value, Mapping):
        return _freeze_map(value, depth)
    if isinstance(value, str):
        return str.__str__(value)  # str() of a member of `class Color(str, Enum)` is not its value
    raise PydanticCustomError("not_plain", "{type} is not plain data", {"type": kind.__name__})


def _freeze_map(value: Mapping[Any, Any], depth: int) -> FrozenMap:
    items: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise PydanticCustomError("str_keys", "keys must be str, not {type}", {"type": type(key).__name__})
        items[str.__str__(key)] = freeze(item, depth + 1)
    return FrozenMap._of(items)


def _validated_map(value: Any) -> FrozenMap:
    if type(value) is FrozenMap:
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("map_type", "must be a mapping, not {type}", {"type": type(value).__name__})
    return _freeze_map(value, 0)


def thaw(value: Any) -> Any:
    """The same data in plain dicts and lists, for JSON and for people who want to change it."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value
