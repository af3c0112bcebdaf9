"""While what stays is made, nothing looks for garbage."""

from __future__ import annotations

import gc

import pytest

from solewriter.shared.garbage import uncollected


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    gc.enable()


def test_nothing_is_collected_meanwhile_and_again_afterwards():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled(), "the outer one is not over"
    assert gc.isenabled()


def test_also_where_that_fails():
    with pytest.raises(ValueError, match="it"), uncollected():
        raise ValueError("it")
    assert gc.isenabled()


def test_whoever_collects_nothing_is_left_alone():
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
