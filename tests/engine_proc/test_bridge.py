"""What a lane may have waiting in the engine is bounded, whoever writes to it, and how fast."""

from __future__ import annotations

import asyncio
import os

import pytest

from solewriter import Create, Task
from solewriter.engine_proc.bridge import Bridge, LaneEnd
from solewriter.engine_proc.session import Session
from solewriter.shared import failpoint, wire, wireform
from solewriter.shared.config import DEFAULT_LIMITS, FOLDED_NODES_MAX, KIB, PIPE_BYTES, WIRE_VERSION
from solewriter.shared.handshake import Hello
from solewriter.shared.mutations import Op
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


# --- frames in parts --------------------------------------------------------------------------------------------------


def test_frames_that_come_in_parts_are_looked_at_as_soon_as_each_is_whole(alone):
    """A small one behind a large one, too."""
    engine, call, _ = alone()
    large, small = frame(0, "r" * 3 * KIB), frame(1)
    for part in (large[:100], large[100:] + small[:2], small[2:]):
        call.write(part)
        engine.read(lambda: [call.unread()])
    engine.turn()
    assert [reply.status for reply in call.replies()] == [Status.APPLIED] * 2


def test_a_frame_that_is_larger_than_what_a_lane_may_have_waiting_is_read_to_its_end(alone):
    """Nothing waits for a turn that could let it be read on."""
    engine, call, _ = alone(lane_bytes_max=LITTLE, lane_read_bytes=LITTLE)
    call.write(frame(0, "r" * 4 * KIB))
    engine.read(lambda: [call.unread()])
    engine.turn()
    assert [reply.status for reply in call.replies()] == [Status.APPLIED]


def test_frames_that_say_far_more_than_their_bytes_are_counted_by_wake_up_not_for_ever(alone):
    engine, call, _ = alone()
    (lane,) = engine.bridge._lanes.values()
    folded = [[0] * 300] * 300
    update = Op.UPDATE.value, "Task", "none", None, {"metadata": {"folded": folded}}, "", None
    data = wire.pack_frame([([update], [], None, None)], DEFAULT_LIMITS)
    for _ in range(FOLDED_NODES_MAX // 300**2 + 3):
        call.write(data)
        engine.read(lambda: [call.unread()])
        engine.turn()
        (reply,) = call.replies()
        assert reply.detail[0] == "NotFound"
    assert not lane.closed


def test_a_lane_of_which_a_turn_took_a_part_is_not_read_on(alone, monkeypatch):
    engine, call, steps = alone(lane_requests_max=4, lane_read_bytes=LITTLE, batch_max=2)
    (lane,) = engine.bridge._lanes.values()
    frames, most = [frame(number) for number in range(100)], 0

    def look(step):
        nonlocal most
        steps(step)
        most = max(most, lane._given - lane.taken)

    monkeypatch.setattr(failpoint, "reach", look)
    call.write(b"".join(frames))
    heard = []
    while len(heard) < len(frames):
        engine.read(lambda: [call.unread()])
        engine.turn()
        heard += call.replies()
    assert most <= 4 + LITTLE // len(frames[0]) + 1
    assert [reply.revision for reply in heard] == [*range(1, 101)]


def test_a_frame_that_cannot_be_decoded_is_refused_for_all_that_was_in_it(alone):
    """Its client knows how many that were, and nobody else does."""
    engine, call, _ = alone()
    call.write((3).to_bytes(4, "big") + b"bad" + frame(1))
    engine.read(lambda: [call.unread()])
    engine.turn()
    refused, applied = call.replies()
    assert (refused.sequence, refused.status, refused.detail[0]) == (0, Status.REFUSED, "BadRequest")
    assert refused.detail[2]["whole_frame"]
    assert (applied.sequence, applied.status) == (256, Status.APPLIED)


# --- replies that wait ------------------------------------------------------------------------------------------------


def unread_replies(engine, call):
    """Replies of which a part waits in the engine; how many there are."""
    (lane,) = engine.bridge._lanes.values()
    number = 0
    while not lane._backlog:
        call.write(b"".join(frame("n" * 200) for _ in range(50)))
        engine.read(lambda: [call.unread()])
        engine.turn()
        number += 50
        assert number < 100_000, "somebody reads them"
    return number


def test_a_reply_stands_behind_those_that_wait_also_when_there_is_room_again(alone, monkeypatch):
    """Its agent reads just before it is written: what waits was there first."""
    engine, call, steps = alone()
    number, heard = unread_replies(engine, call), []

    def read_first(step):
        steps(step)
        if step == "turn.reply":
            heard.extend(call.replies())

    monkeypatch.setattr(failpoint, "reach", read_first)
    call.write(frame(0))
    engine.read(lambda: [call.unread()])
    (lane,) = engine.bridge._lanes.values()
    engine.turn()
    engine.read()
    assert not lane._backlog
    assert [reply.sequence for reply in [*heard, *call.replies()]] == [256 * one for one in range(number + 1)]


@pytest.mark.parametrize("waiting", [True, False], ids=["others wait", "none waits"])
def test_of_a_lane_that_ends_in_a_reply_the_loop_keeps_nothing(waiting):
    """Its descriptors are somebody else's soon, who would get what is left of it."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # it tells what it watches
        loop = runner.get_loop()
        watched = {*loop._selector.get_map()}
        bridge = Bridge(loop, DEFAULT_LIMITS, 1, [].append)
        (requests, ours), (heard, replies) = os.pipe(), os.pipe()
        lane = LaneEnd(bridge, Session(1, "ann", "ann"), 0, (requests, replies), -1)
        while waiting and not lane._backlog:
            lane.reply([(0, Status.REFUSED, 1, "r" * KIB)])
        assert {*loop._selector.get_map()} == {*watched, requests, *[replies] * waiting}
        os.close(heard)
        lane.reply([(256, Status.REFUSED, 1, "r")])
        for _ in range(3):
            runner.run(asyncio.sleep(0))
        assert lane.closed
        assert {*loop._selector.get_map()} == watched
        os.close(ours)


def test_what_a_dead_agent_sent_counts_also_where_its_lane_had_enough_waiting(alone):
    """Whoever else holds its pipe open: there will be no end of file."""
    engine, call, _ = alone(lane_requests_max=4, lane_read_bytes=LITTLE)
    (lane,) = engine.bridge._lanes.values()
    call.write(b"".join(frame(number) for number in range(100)))
    engine.read(lambda: [call.unread()])
    assert call.unread(), "it is not read on"
    lane._agent_died()
    for _ in range(2):
        engine.turn()
        engine.read()
    assert lane.closed
    assert engine.view.pin().root.revision == 100
