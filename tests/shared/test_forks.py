"""Forks that wait."""

from __future__ import annotations

import os

import pytest

from solewriter.shared.forks import held_off


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_who_holds_it_off_and_holds_nothing_in_its_child(elsewhere):
    """But for one from within, of a signal's handler say."""
    forked = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0 if not held_off._is_owned() and held_off.acquire(timeout=10) else 1)
        forked.append(child)

    with held_off:
        forking = elsewhere(fork)
        assert not forked
        fork()
        assert len(forked) == 1
    forking.join()
    assert len(forked) == 2
    for child in forked:
        assert os.waitpid(child, 0)[1] == 0
    assert not held_off._is_owned()
