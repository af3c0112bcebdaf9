"""A lane is two pipes, whatever size the kernel gives them, and its ends are closed once."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from solewriter.shared import lane as lanes
from solewriter.shared.lane import Lane


def is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


@pytest.fixture
def lane():
    made = Lane()
    yield made
    made.close()


@pytest.mark.parametrize("size", [lanes.PIPE_BYTES, -1], ids=["as large as wanted", "refused by the kernel"])
def test_frames_and_replies_cross_in_pipes_of_any_size(monkeypatch, size):
    monkeypatch.setattr(lanes, "PIPE_BYTES", size)
    lane = Lane()
    requests, replies = lane.theirs
    os.write(lane.requests, b"a frame")
    assert os.read(requests, 100) == b"a frame"
    os.write(replies, b"a reply")
    assert os.read(lane.replies, 100) == b"a reply"
    lane.close()


def test_neither_end_of_the_agents_waits(lane):
    with pytest.raises(BlockingIOError):
        os.read(lane.replies, 1)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(lane.requests, bytes(4096))


def test_the_death_of_the_engine_is_seen_once_its_ends_were_handed_over(lane):
    requests, replies = (os.dup(fd) for fd in lane.theirs)
    lane.hand_over()
    os.write(lane.requests, b"a frame")
    for fd in (requests, replies):  # as the kernel does for an engine that dies
        os.close(fd)
    with pytest.raises(BrokenPipeError):
        os.write(lane.requests, b"a frame")
    assert os.read(lane.replies, 1) == b""


@pytest.mark.parametrize("handed_over", [False, True])
def test_closing_closes_every_end_once(handed_over):
    lane = Lane()
    ends = [lane.requests, lane.replies, *lane.theirs]
    if handed_over:
        lane.hand_over()
    lane.close()
    assert not any(map(is_open, ends))
    used_again = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    assert set(ends) & set(used_again)
    lane.close()
    assert all(map(is_open, used_again)), "a number that is somebody else's by now was closed"
    for fd in used_again:
        os.close(fd)


def test_a_lane_in_a_garbage_cycle_is_closed_once_whatever_is_collected_first(monkeypatch):
    """By whoever has it, as a client that was forgotten does: the queue's own ends are older, and go before."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Forgotten:
        def __del__(self):
            self.lane.close()

    lane = Lane()
    ends = [lane.requests, lane.replies, *lane.theirs]
    forgotten = Forgotten()
    forgotten.lane, forgotten.myself = lane, forgotten
    del lane, forgotten
    gc.collect()
    assert unraisable == []
    assert not any(map(is_open, ends))
