"""Versions of a key never go back, whatever was forgotten of it, and what is remembered of dead keys is bounded."""

from __future__ import annotations

from solewriter.engine_proc.kinds import KindState
from solewriter.shared.kinds.schema import Schema

SCHEMA = Schema(0, 0, "Task", (), {}, False)


def kind_with(*keys):
    kind = KindState(0, "Task", SCHEMA, None)
    for key in keys:
        kind.take(key, kind.places)
    return kind


def test_what_was_forgotten_is_remembered_up_to_its_bound_then_for_all_keys_at_once():
    kind = kind_with("a", "b", "c", "d")
    kind.forget("a", 7, keys_max=2)
    kind.forget("b", 3, keys_max=2)
    assert [kind.last_version(key) for key in ("a", "b", "never")] == [7, 3, 0]
    kind.forget("c", 5, keys_max=2)
    assert [kind.last_version(key) for key in ("a", "b", "c", "never")] == [7, 7, 5, 7], "no key goes back"
    assert len(kind.forgotten[1]) == 1


def test_a_base_never_falls():
    kind = kind_with("a", "b", "c")
    for key, version in (("a", 9), ("b", 2), ("c", 1)):
        kind.forget(key, version, keys_max=1)
    assert (kind.base, kind.last_version("a"), kind.last_version("b")) == (9, 9, 9)


def test_where_no_forgotten_key_is_to_be_remembered_all_new_ones_begin_above_it():
    kind = kind_with("a", "b")
    for key, version in (("a", 9), ("b", 2)):
        kind.forget(key, version, keys_max=0)
    assert kind.forgotten == (9, {})
    assert [kind.last_version(key) for key in ("a", "b", "never")] == [9, 9, 9]


def test_a_key_that_comes_back_takes_a_free_slot_and_is_not_among_the_forgotten_any_more():
    kind = kind_with("a", "b", "c")
    kind.forget("b", 4, keys_max=9)
    assert (list(kind.free), kind.places) == ([1], 3)
    kind.take("b", 1)
    assert (list(kind.free), kind.places, kind.slots["b"]) == ([], 3, 1)
    assert kind.forgotten == (0, {})


def test_a_kind_is_put_back_with_the_slots_that_nobody_has():
    kind = kind_with()
    kind.restore(["a", None, "c"], alive=1)
    kind.restore_forgotten(5, {"b": 9})
    assert (kind.slots, list(kind.free), kind.places, kind.alive) == ({"a": 0, "c": 2}, [1], 3, 1)
    assert [kind.last_version(key) for key in ("b", "never")] == [9, 5]
