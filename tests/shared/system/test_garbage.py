"""While what stays is made, nothing looks for garbage."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import ExitStack

import pytest

from solewriter.shared.system.garbage import gc_paused


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    gc.enable()


def test_nothing_is_collected_meanwhile_and_again_afterwards():
    assert gc.isenabled()
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            pass
        assert not gc.isenabled(), "the outer one is not over"
    assert gc.isenabled()


def test_also_where_that_fails():
    with pytest.raises(ValueError, match="it"), gc_paused():
        raise ValueError("it")
    assert gc.isenabled()


def test_whoever_collects_nothing_is_left_alone():
    gc.disable()
    with gc_paused():
        pass
    assert not gc.isenabled()


def test_a_child_that_another_thread_makes_meanwhile_has_its_search():
    """Nobody there would switch it on again."""
    statuses = []

    def fork() -> None:
        if not (child := os.fork()):
            os._exit(0 if gc.isenabled() else 1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with gc_paused():
        other = threading.Thread(target=fork)
        other.start()
        other.join()
        assert not gc.isenabled()
    assert statuses == [0]


def test_a_child_has_its_search_also_where_one_begins_in_the_moment_in_which_another_ends(monkeypatch):
    enable, others = gc.enable, ExitStack()

    def enabled() -> None:
        enable()
        monkeypatch.undo()
        others.enter_context(gc_paused())  # as another thread would here

    monkeypatch.setattr(gc, "enable", enabled)
    with gc_paused():
        pass
    with others:
        assert not gc.isenabled()
        if not (child := os.fork()):
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
