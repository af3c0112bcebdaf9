"""What a lane may have waiting in the engine is bounded, whoever writes to it, and how fast."""

from __future__ import annotations

import os

import pytest

from solewriter import Create, Task
from solewriter.shared import failpoint, wire, wireform
from solewriter.shared.config import DEFAULT_LIMITS, KIB, PIPE_BYTES, WIRE_VERSION
from solewriter.shared.handshake import Hello
from solewriter.shared.registry import Registry
from solewriter.shared.wire import Status

REGISTRY = Registry()
LITTLE = KIB  # that one wake-up takes of a lane


def frame(number, reason="", name=None):
    plain = wireform.plain_mutation(Create(Task(id=f"t{number}", title="x"), reason=reason), REGISTRY)
    return wire.pack_frame([([plain], [], name, None)], DEFAULT_LIMITS)


def waiting(engine):
    """Requests that were read, and that no turn has taken."""
    return sum(len(items) for items in engine.bridge.inbox._queue if items)


@pytest.mark.parametrize("bound", [{"lane_requests_max": 4}, {"lane_bytes_max": 4 * 100}], ids=["requests", "bytes"])
def test_a_lane_with_enough_waiting_is_not_read_until_a_turn_has_taken_it(alone, bound):
    engine, call, _ = alone(lane_read_bytes=LITTLE, **bound)
    frames = [frame(number) for number in range(100)]
    call.write(b"".join(frames))
    engine.read(lambda: [call.unread()])
    assert 4 < waiting(engine) <= 4 + LITTLE // len(frames[0]) + 1
    assert call.unread() >= len(b"".join(frames)) - 4 * 100 - LITTLE
    heard = []
    for _ in frames:
        engine.turn()
        engine.read(lambda: [call.unread()])
        heard += call.replies()
    assert [reply.status for reply in heard] == [Status.APPLIED] * 100, "none is left out"
    assert [reply.revision for reply in heard] == [*range(1, 101)], "in order"


def test_the_rest_of_a_lane_that_is_written_to_all_the_time_has_an_end(alone, monkeypatch):
    """Or an engine that is told to end would read on for as long as somebody writes."""
    engine, call, steps = alone()
    large, number = frame(0, "r" * 4 * KIB), 0

    def more(step):
        nonlocal number
        steps(step)
        while step == "bridge.read" and number < 2 * PIPE_BYTES // len(large) and call.unread() < PIPE_BYTES // 2:
            call.write(large)
            number += 1

    monkeypatch.setattr(failpoint, "reach", more)
    more("bridge.read")
    engine.bridge.read_rest()
    read = number * len(large) - call.unread()
    assert PIPE_BYTES <= read < PIPE_BYTES + DEFAULT_LIMITS.lane_read_bytes
    assert waiting(engine) == read // len(large)


def test_who_reads_none_of_its_replies_is_let_go_and_can_ask_again(alone):
    """They wait up to their bound, of earlier turns: then it had time to read."""
    bound = 16 * KIB
    engine, call, _ = alone(reply_backlog_bytes_max=bound)
    (lane,) = engine.bridge._lanes.values()
    most = number = 0
    while not lane.closed:
        assert len(lane._backlog) <= bound + most, "of one turn above it"
        before = len(lane._backlog)
        call.write(b"".join(frame("n" * 200) for _ in range(50)))
        engine.read(lambda: [call.unread()])
        engine.turn()
        most, number = max(most, len(lane._backlog) - before), number + 50
        assert number < 100_000, "it is never let go"
    engine.read()
    heard = call.replies()
    assert heard.pop() is None
    assert [reply.sequence for reply in heard] == [256 * one for one in range(len(heard))], "what it was sent is whole"
    assert 0 < len(heard) < number


@pytest.fixture
def connected_again(alone, local, tmp_path):
    """`connected_again()`: an engine, and the next lane of an agent that was told how these ended and heard nothing of
    it: t0 was made, t1 was made under the id "mine", and t1 could not be made again.
    """
    calls = []

    def connect():
        engine, first, _ = alone()
        first.write(frame(0) + frame(1, name="mine") + frame(1))
        engine.read(lambda: [first.unread()])
        engine.turn()
        words = Hello(
            wire=WIRE_VERSION, client_id="alone", name="alone", pid=os.getpid(), first=0, instance="1", resends=True
        )
        calls.append(local.Call(tmp_path / "state", words))
        engine.read()
        engine.turn()
        assert calls[0].welcome().ok
        return engine, calls[0], first.replies()[:3]

    yield connect
    for call in calls:
        call.close()


def test_what_is_sent_again_to_an_engine_that_ends_is_told_as_before(connected_again):
    """No turn takes it, and it may be applied: who hears that it was not would ask for it once more."""
    engine, call, told = connected_again()
    call.write(frame(0) + frame(1, name="mine") + frame(1) + frame(1, name="mine") + frame(2, name="mine") + frame(3))
    engine.read(lambda: [call.unread()])
    engine.writer.refuse_rest()
    *again, named, other, new = call.replies()
    assert again == told
    assert named[1:] == told[1][1:], "as a new request under an id that was used"
    for one in (other, new):
        assert one.status == Status.UNAVAILABLE
        assert "was not applied" in one.detail[1]


def test_a_question_to_an_engine_that_ends_is_not_answered_with_no(connected_again):
    """That it was not applied would be taken for what was asked about."""
    engine, call, _ = connected_again()
    call.write(wire.pack_frame([("outcome", "mine")], DEFAULT_LIMITS))
    engine.read(lambda: [call.unread()])
    engine.writer.refuse_rest()
    (answer,) = call.replies()
    assert (answer.status, answer.detail[0]) == (Status.UNAVAILABLE, "EngineUnavailable")
    assert "applied" not in answer.detail[1]
