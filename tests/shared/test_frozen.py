"""A `FrozenMap` and what is in it never change, and only plain, finite, storable data gets in."""

from __future__ import annotations

import collections
import copy
import enum
import pickle
import types
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from solewriter.shared.frozen import DEPTH_MAX, INT_MAX, INT_MIN, FrozenMap, Json, freeze, thaw

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
MAPS = st.dictionaries(st.text(max_size=4), PLAIN, max_size=4)


def nested(depth, wrap):
    value = None
    for _ in range(depth):
        value = wrap(value)
    return value


def parts_of(value):
    yield value
    for inner in value.values() if isinstance(value, FrozenMap) else value if isinstance(value, tuple) else ():
        yield from parts_of(inner)


# --- a mapping --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(MAPS)
def test_a_frozen_map_is_equal_to_the_mapping_that_it_was_made_of(items):
    frozen = FrozenMap(items)
    assert thaw(frozen) == items
    assert frozen == FrozenMap(dict(reversed(items.items())))
    assert hash(frozen) == hash(FrozenMap(dict(reversed(items.items()))))
    assert list(frozen) == list(items)
    assert len(frozen) == len(items)
    assert all(name in frozen for name in items)


@settings(max_examples=60, deadline=None)
@given(MAPS)
def test_a_frozen_map_survives_pickle_and_is_its_own_copy(items):
    frozen = FrozenMap(items)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(frozen, protocol))
        assert again == frozen
        assert hash(again) == hash(frozen)
    assert copy.copy(frozen) is frozen
    assert copy.deepcopy(frozen) is frozen


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_everything_inside_is_immutable_and_freezing_again_changes_nothing(value):
    frozen = freeze(value)
    assert all(type(part) in (type(None), bool, int, float, str, tuple, FrozenMap) for part in parts_of(frozen))
    hash(frozen)
    assert freeze(frozen) == frozen
    assert freeze(thaw(frozen)) == frozen
    assert thaw(frozen) == value


def test_other_items_are_another_map():
    assert FrozenMap(a=1) != FrozenMap(a=2)
    assert FrozenMap(a=1) != FrozenMap(b=1)
    assert FrozenMap(a=1) != [("a", 1)]
    assert FrozenMap(a=1) == {"a": 1} == FrozenMap(a=1)
    assert FrozenMap() == FrozenMap(None) == {}


def test_nothing_can_be_put_in_or_taken_out():
    frozen = FrozenMap(a=[1], b={"c": 2})
    with pytest.raises(TypeError):
        frozen["a"] = 2
    with pytest.raises(TypeError):
        del frozen["a"]
    with pytest.raises(TypeError):
        frozen["b"]["c"] = 3
    with pytest.raises(AttributeError):
        frozen.more = 1
    for verb in ("pop", "popitem", "clear", "update", "setdefault", "__setitem__", "__delitem__", "__ior__"):
        assert not hasattr(frozen, verb)


def test_it_is_cut_off_from_what_it_was_made_of():
    inner = [1]
    given_items = {"a": inner}
    frozen = FrozenMap(given_items)
    inner.append(2)
    given_items["b"] = 3
    assert frozen == {"a": (1,)}


def test_a_missing_key_is_a_key_error():
    with pytest.raises(KeyError):
        FrozenMap()["a"]
    assert FrozenMap().get("a", 7) == 7


def test_a_union_is_a_new_map():
    left = FrozenMap(a=1, b=1)
    assert left | {"b": [2]} == {"a": 1, "b": (2,)}
    assert type(left | FrozenMap(c=3)) is FrozenMap
    assert left == {"a": 1, "b": 1}


def test_any_mapping_and_any_sequence_can_be_frozen():
    class Point(NamedTuple):
        x: int
        y: int

    assert freeze([Point(1, 2), types.MappingProxyType({"a": collections.OrderedDict(b=[])})]) == (
        (1, 2),
        {"a": {"b": ()}},
    )


def test_members_of_text_enums_become_their_values():
    class Old(str, enum.Enum):  # noqa: UP042 - str() of its members is not their value
        RED = "red"

    class New(enum.StrEnum):
        BLUE = "blue"

    frozen = FrozenMap({Old.RED: Old.RED, New.BLUE: [New.BLUE]})
    assert frozen == {"red": "red", "blue": ("blue",)}
    assert [type(key) for key in frozen] == [str, str]
    assert type(frozen["red"]) is str
    assert repr(frozen) == "FrozenMap({'red': 'red', 'blue': ('blue',)})"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number):
    for value in (number, [number], {"a": (number,)}):
        with pytest.raises(PydanticCustomError, match="finite"):
            freeze(value)


@pytest.mark.parametrize("number", [INT_MIN - 1, INT_MAX + 1, 10**5000], ids=["below", "above", "huge"])
def test_integers_beyond_64_bits_are_refused(number):
    with pytest.raises(PydanticCustomError, match="64 bits"):
        freeze({"a": [number]})
    assert freeze([INT_MIN, INT_MAX]) == (INT_MIN, INT_MAX)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}])
def test_nesting_ends_at_its_bound(wrap):
    assert freeze(nested(DEPTH_MAX, wrap)) is not None
    with pytest.raises(PydanticCustomError, match=f"more than {DEPTH_MAX} deep"):
        freeze(nested(DEPTH_MAX + 1, wrap))


def test_a_cycle_is_refused_however_often_it_refers_to_itself():
    wide: list = []
    wide.extend([wide] * 50)
    ring: dict = {"a": wide}
    ring["b"] = ring
    for cycle in (wide, ring):
        with pytest.raises(PydanticCustomError, match="deep"):
            freeze(cycle)


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), 1.5])
def test_keys_that_are_not_text_are_refused(key):
    with pytest.raises(PydanticCustomError, match="keys must be str"):
        FrozenMap({key: 1})
    with pytest.raises(PydanticCustomError, match="keys must be str"):
        freeze([{"a": {key: 1}}])


@pytest.mark.parametrize(
    "value", [{1}, b"x", bytearray(b"x"), object(), 1j, range(3), (item for item in ()), enum.IntEnum("E", "A").A]
)
def test_what_is_not_plain_data_is_refused_by_its_type(value):
    with pytest.raises(PydanticCustomError, match=type(value).__name__):
        freeze(value)
    with pytest.raises(PydanticCustomError, match="not plain data"):
        FrozenMap(a=[value])


# --- as field types ---------------------------------------------------------------------------------------------------


def test_as_a_field_a_map_takes_mappings_only():
    adapter = TypeAdapter(FrozenMap)
    made = adapter.validate_python({"a": [1]})
    assert type(made) is FrozenMap
    assert adapter.validate_python(made) is made
    assert adapter.dump_python(made) == {"a": [1]}
    assert adapter.validate_json(adapter.dump_json(made)) == made
    for wrong in ([("a", 1)], None, "a", 1):
        with pytest.raises(ValidationError, match="must be a mapping"):
            adapter.validate_python(wrong)
    with pytest.raises(ValidationError, match="finite"):
        adapter.validate_python({"a": float("nan")})


def test_as_a_field_json_takes_plain_data_of_any_shape():
    adapter = TypeAdapter(Json)
    for value in (None, True, 1, 2.5, "x", [1, [2]], {"a": [{}]}):
        assert thaw(adapter.validate_python(value)) == value
        assert adapter.dump_python(adapter.validate_python(value)) == value
        assert thaw(adapter.validate_json(adapter.dump_json(freeze(value)))) == value
    with pytest.raises(ValidationError, match="not plain data"):
        adapter.validate_python({"a": {1, 2}})
