"""Forks that wait."""

from __future__ import annotations

import os
import threading

import pytest

from solewriter.shared.forks import held_off


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_who_holds_it_off_and_holds_nothing_in_its_child(wait_until):
    """Nor does one from within, of a signal's handler say."""
    held, go_on, forked = threading.Event(), threading.Event(), []

    def hold() -> None:
        with held_off:
            held.set()
            go_on.wait(60)
            assert not forked

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0 if held_off.acquire(timeout=10) else 1)
        forked.append(child)

    holder, forker = threading.Thread(target=hold), threading.Thread(target=fork)
    holder.start()
    held.wait(60)
    forker.start()
    go_on.set()
    holder.join(60)
    forker.join(60)
    with held_off:
        fork()
    assert len(forked) == 2
    for child in forked:
        assert os.waitpid(child, 0)[1] == 0
    assert not held_off._is_owned()
