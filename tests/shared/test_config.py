"""Limits that cannot work are refused where they are written down, by name; those that mean something are taken."""

from __future__ import annotations

import math

import msgspec
import pytest

from solewriter import Limits
from solewriter.shared.config import DEFAULT_LIMITS

FIELDS = {field.name: field.type for field in msgspec.structs.fields(Limits)}
NUMBERS = [name for name, kind in FIELDS.items() if kind is not str]
SECONDS = [name for name, kind in FIELDS.items() if kind is float]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan, "1", None, True])
def test_what_is_no_bound_is_refused_by_its_name(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        Limits(**{name: value})
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        msgspec.structs.replace(DEFAULT_LIMITS, **{name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in SECONDS])
def test_a_number_of_things_is_whole(name):
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        Limits(**{name: 1.5})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in SECONDS])
def test_a_number_of_things_is_one_that_an_engine_can_be_told(name):
    assert msgspec.msgpack.encode(Limits(**{name: 2**63 - 1}))
    for value in (2**63, 10**400):
        with pytest.raises(ValueError, match=rf"^{name} must be below 2\*\*63"):
            Limits(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_whole_seconds_are_seconds(name):
    assert getattr(Limits(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", ["batch_max", "turn_max_s", "turn_bytes_max", "lane_read_bytes", "window_max"])
def test_a_bound_that_would_let_nothing_through_is_refused(name):
    """An engine with such a one serves nobody, and nobody learns why."""
    with pytest.raises(ValueError, match=f"^{name} must be more than 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize("value", [1e-9, 1e-6, 0.00009])
def test_a_time_to_decide_in_that_leaves_none_for_anything_else_is_refused(value):
    """Its timer is all that such an engine would be busy with."""
    with pytest.raises(ValueError, match=r"^decide_timeout_s must be 0 or at least 0\.0001"):
        Limits(decide_timeout_s=value)
    assert Limits(decide_timeout_s=0) != Limits(decide_timeout_s=0.0001)


def test_a_headroom_in_which_no_engine_answers_is_refused():
    for value in (1, 2**20):
        with pytest.raises(ValueError, match=r"^engine_headroom_bytes must be at least 16,777,216, and is"):
            Limits(engine_headroom_bytes=value)
    assert Limits(engine_headroom_bytes=2**24)


@pytest.mark.parametrize("name", ["decide_timeout_s", "session_grace_s", "heartbeat_s", "history_s", "drain_timeout_s"])
def test_a_time_that_a_timer_is_set_to_has_an_end(name):
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        Limits(**{name: math.inf})


def test_patience_may_have_no_end():
    assert Limits(connect_timeout_s=math.inf, request_timeout_s=math.inf, restart_window_s=math.inf)


@pytest.mark.parametrize("name", ["", "caf\udce9", "\0", b"/dev/shm", None])
def test_the_folder_of_the_memory_has_a_name_that_can_be_told_to_others(name):
    with pytest.raises((ValueError, TypeError), match=r"^memory_dir\b"):
        Limits(memory_dir=name)


def test_limits_survive_the_way_to_an_engine():
    sent = Limits(batch_max=7, memory_dir="/tmp")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Limits) == sent
