"""What is made beside the loop is there when it is needed, and nobody is worse off where it is not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory.successor import Successor


@pytest.fixture
def beside():
    with ThreadPoolExecutor(1) as made:
        yield made


def named(number, size):
    return number, size, threading.current_thread() is threading.main_thread()


def test_one_is_made_in_the_other_thread_and_taken_once(beside):
    successor = Successor(named, beside)
    assert successor.due
    successor.prepare(1, 10)
    assert not successor.due
    successor.prepare(2, 20)
    beside.submit(int).result()
    assert (successor.take(), successor.take()) == ((1, 10, False), None)
    assert successor.due


def test_without_another_thread_none_is_made(beside):
    successor = Successor(named, None)
    successor.prepare(1, 10)
    assert (successor.due, successor.take()) == (False, None)


def test_one_that_there_was_no_room_for_is_asked_for_again(beside):
    """There may be room by now."""

    def full(number, size):
        raise MemoryFull("no room")

    successor = Successor(full, beside)
    successor.prepare(1, 10)
    beside.submit(int).result()
    assert not successor.due  # once is enough until it is needed
    assert successor.missed
    assert successor.take() is None
    assert successor.due
    assert not successor.missed


def test_one_that_was_not_begun_is_not_waited_for_nor_made(beside):
    """As while the thread is busy with another row's."""
    made, go = [], threading.Event()
    successor = Successor(lambda number, size: made.append(number), beside)
    busy = beside.submit(go.wait, 10)
    successor.prepare(1, 10)
    assert successor.take() is None
    assert not busy.done()
    go.set()
    beside.submit(int).result()
    assert made == []


def test_one_that_is_being_made_is_waited_for(beside):
    """Who takes its place, or removes the row, finds all of it."""
    made, begun = [], threading.Event()

    def slowly(number, size):
        begun.set()
        threading.Event().wait(0.2)
        made.append(number)
        return number

    successor = Successor(slowly, beside)
    successor.prepare(1, 10)
    assert begun.wait(10)
    assert successor.take() == 1
    assert made == [1]
