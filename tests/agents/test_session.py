"""An agent's numbers and frames, without any engine."""

from __future__ import annotations

import msgspec
import pytest

from solewriter.agents import session as sessions
from solewriter.agents.pending import error_of, outcome_unknown
from solewriter.agents.session import AgentSession
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.errors import (
    EngineUnavailable,
    Forgotten,
    MemoryFull,
    NotFound,
    OutcomeUnknown,
    RequestTooLarge,
    to_wire,
)
from solewriter.shared.handshake import Welcome
from solewriter.shared.lane import LENGTH_BYTES
from solewriter.shared.wire import Status

REQUEST = ([], [], None, None)


def welcome(first: int, **granted: int) -> Welcome:
    usual = {"window": 256, "frame_bytes_max": DEFAULT_LIMITS.frame_bytes_max}
    return Welcome(ok=True, first=first, **{**usual, **granted})


def answers(*sequences: int) -> bytes:
    return wire.pack_replies([(sequence, Status.APPLIED, 1, []) for sequence in sequences])


@pytest.fixture
def session():
    return AgentSession(DEFAULT_LIMITS, "x", "crawler")


def test_what_was_not_sent_goes_on_under_the_numbers_that_a_welcome_gives(session):
    (one,), (two,) = session.send([REQUEST]), session.send([REQUEST])
    session.accept(welcome(558))
    assert (one.sequence, two.sequence) == (558 << 8, 559 << 8)
    assert session.in_flight == 2
    assert one.request_id.endswith(f"-{558 << 8}")


def test_a_request_whose_id_was_told_is_never_sent_under_another_one(session):
    """Who asks for its outcome by that id is told NotApplied, and that has to stay true."""
    (before,), (named, beside), (behind,) = (
        session.send([REQUEST]),
        session.send([REQUEST] * 2),
        session.send([REQUEST]),
    )
    held = outcome_unknown(named).request_id
    session.accept(welcome(558))
    assert named.request_id == held
    assert isinstance(named.error, EngineUnavailable)
    assert isinstance(beside.error, EngineUnavailable), "it was in the same frame"
    assert [pending.sequence >> 8 for pending in (before, behind)] == [558, 559]
    assert session.in_flight == 2


def test_it_is_sent_where_its_number_stays(session):
    (named,) = session.send([REQUEST])
    held = outcome_unknown(named).request_id
    session.accept(welcome(0))
    assert (named.request_id, named.done, session.in_flight) == (held, False, 1)


@pytest.mark.parametrize(
    ("status", "detail", "error"),
    [
        (Status.APPLIED, [], None),
        (Status.REFUSED, to_wire(NotFound("there is none")), NotFound),
        (Status.UNAVAILABLE, ("Forgotten", "long ago", {}), Forgotten),
        (Status.UNAVAILABLE, ("MemoryFull", "no room", {}), MemoryFull),
        (Status.UNAVAILABLE, ("DiskFull", "no room", {}), EngineUnavailable),
    ],
)
def test_a_reply_is_the_error_that_it_names(session, status, detail, error):
    session.accept(welcome(0))
    (pending,) = send_whole(session, [REQUEST])
    session.receive(wire.pack_replies([(pending.sequence, status, 1, detail)]))
    told = error_of(pending)
    assert type(told) is (error or type(None))
    if error in (NotFound, Forgotten):
        assert told.request_id == pending.request_id


@pytest.mark.parametrize(("refusal", "final"), [("unknown", False), ("final", True), ("again", False)])
def test_a_refusal_says_whether_another_one_may_be_asked(session, refusal, final):
    """Where nobody knows the session any more, nobody knows how what was sent ended; what was not sent goes on."""
    session.accept(welcome(0))
    (begun,) = session.send([REQUEST])
    session.write(len)
    (unsent,) = session.send([REQUEST])
    with pytest.raises(EngineUnavailable, match="not today") as refused:
        session.accept(Welcome(ok=False, refusal=refusal, reason="not today"))
    assert refused.value.final is final
    assert (begun.done, unsent.done) == (refusal == "unknown", False)
    assert session.in_flight == (1 if refusal == "unknown" else 2)
    session.accept(welcome(700 if refusal == "unknown" else 0))
    assert unsent.sequence >> 8 == (700 if refusal == "unknown" else 1)


# --- what must not be decided any more --------------------------------------------------------------------------------


def sent_again(session):
    """The requests of every frame that goes out on a new lane, by the frame's number."""
    session.accept(welcome(session.hello(1).first, frame_bytes_max=session.limits.frame_bytes_max))
    frames = {}
    while (data := session.unsent) is not None:
        number = session._unsent[0][0].number
        frames[number] = wire.unpack_frame(bytes(data[LENGTH_BYTES:]))
        session.write(len)
    return frames


def send_whole(session, requests):
    pendings = session.send(requests)
    session.write(len)
    return pendings


def test_what_was_told_to_be_not_applied_is_not_asked_for_again(session):
    """Its frame is sent again because of its other requests; in its place goes the question how it ended, which keeps
    it from ever being applied.
    """
    session.accept(welcome(5))
    before, one, behind = send_whole(session, [REQUEST] * 3)
    session.receive(wire.pack_replies([(one.sequence, Status.UNAVAILABLE, 1, ("MemoryFull", "no room", {}))]))
    assert (before.done, one.done, behind.done) == (False, True, False)
    assert sent_again(session) == {5: [REQUEST, ("outcome", one.request_id), REQUEST]}
    session.receive(answers(before.sequence))
    session.receive(wire.pack_replies([(one.sequence, Status.ANSWER, 1, None)]))
    session.receive(answers(behind.sequence))
    assert error_of(one).args[0] == "no room", "what it was told first"
    assert before.done
    assert behind.done
    assert session.in_flight == session.bytes_in_flight == 0


def test_a_frame_that_is_too_large_for_the_next_engine_ends_and_those_behind_it_keep_their_numbers(session):
    session.accept(welcome(0))
    large = ([(3, "Task", "t", None, {"title": "x" * 2_000}, "", None)], [], None, None)
    (begun,) = send_whole(session, [large])
    (small,), (unsent,), (behind,) = session.send([REQUEST]), session.send([large]), session.send([REQUEST])
    session.limits = msgspec.structs.replace(session.limits, frame_bytes_max=1_000)  # of the engine that is next
    frames = sent_again(session)
    assert frames == {
        0: [("outcome", begun.request_id)], 1: [REQUEST], 2: [("outcome", unsent.request_id)], 3: [REQUEST],
    }  # fmt: skip
    assert isinstance(begun.error, OutcomeUnknown)
    assert isinstance(unsent.error, RequestTooLarge)
    assert session.in_flight == 2
    session.receive(wire.pack_replies([(begun.sequence, Status.ANSWER, 1, None)]))
    session.receive(answers(small.sequence))
    session.receive(wire.pack_replies([(unsent.sequence, Status.ANSWER, 1, None)]))
    session.receive(answers(behind.sequence))
    assert (small.done, behind.done, session.in_flight) == (True, True, 0)


@pytest.mark.parametrize(
    ("error", "written"),
    [(KeyboardInterrupt, True), (TimeoutError, True), (BlockingIOError, False), (BrokenPipeError, False)],
)
def test_what_was_perhaps_written_is_sent_again_under_its_number(session, error, written):
    """The last two are a pipe's; a TimeoutError is a signal handler's, of an alarm say."""
    session.accept(welcome(0))
    session.send([REQUEST])

    def write(data):
        raise error

    with pytest.raises(error):
        session.write(write)
    assert session.hello(1).resends is written


def test_a_client_that_was_welcomed_says_so(session):
    assert not session.hello(1).again
    session.accept(welcome(0, memory_epoch=3))
    assert session.hello(1).again


# --- credits ----------------------------------------------------------------------------------------------------------


def test_credits_are_those_of_the_welcome_where_they_are_fewer(session):
    session.accept(welcome(0, window=4, window_bytes=1_000))
    assert (session.window, session.window_bytes) == (4, 1_000)
    session.accept(welcome(0, window=10_000, window_bytes=1 << 40))
    assert (session.window, session.window_bytes) == (DEFAULT_LIMITS.window_max, DEFAULT_LIMITS.window_bytes_max)
    session.accept(welcome(0))
    assert session.window_bytes == DEFAULT_LIMITS.window_bytes_max, "an engine that does not say it"


def test_a_frame_may_be_as_large_as_client_and_engine_say_whatever_an_earlier_engine_did(session):
    large = ([(3, "Task", "t", None, {"title": "x" * 2_000}, "", None)], [], None, None)
    for frame_bytes_max in (1_000, 1 << 40):
        session.accept(welcome(session.hello(1).first, frame_bytes_max=frame_bytes_max))
    session.send([large])
    with pytest.raises(RequestTooLarge):
        session.send([([(3, "Task", "t", None, {"title": "x" * (1 << 20)}, "", None)], [], None, None)])


def test_there_is_room_until_the_requests_of_the_window_are_in_flight(session):
    session.accept(welcome(0, window=4))
    assert session.replies_until_room(100) == 0, "one frame always may be sent"
    session.send([REQUEST] * 3)
    assert [session.replies_until_room(count) for count in (1, 2, 3)] == [0, 1, 2]
    session.receive(answers(0))
    assert [session.replies_until_room(count) for count in (1, 2, 3)] == [0, 0, 1]


def test_there_is_room_until_the_bytes_of_the_window_are_in_flight(session):
    session.accept(welcome(0, window_bytes=3_000))
    large = ([], [], "x" * 1_000, None)
    for frame in range(3):
        assert session.replies_until_room(1) == 0, f"{frame} kB"
        session.send([large])
    assert session.bytes_in_flight > 3_000
    assert session.replies_until_room(1) == 2, "half of what is in flight, for which of them is large is not told"
    session.receive(answers(1 << 8))
    assert session.replies_until_room(1) == 0, "what was answered takes no room, whatever is open before it"
    session.receive(answers(0))
    session.receive(answers(2 << 8))
    assert session.bytes_in_flight == 0


def test_of_what_was_answered_behind_an_open_request_only_the_number_is_kept(session, monkeypatch):
    """The next lane counts it: what goes in its place asks how one ended, and decides nothing."""
    session.accept(welcome(0))
    (first,) = send_whole(session, [REQUEST])
    (second,) = send_whole(session, [([], ["x" * 1_000], None, None)])
    third, fourth = send_whole(session, [REQUEST] * 2)
    (last,) = send_whole(session, [REQUEST])
    session.receive(answers(second.sequence, fourth.sequence))
    session.receive(wire.pack_replies([(third.sequence, Status.UNAVAILABLE, 1, ("MemoryFull", "no room", {}))]))
    assert session.bytes_in_flight < 500
    monkeypatch.setattr(sessions, "FRAMES_KEPT_MAX", 4)
    assert session.replies_until_room(1) == 1, "so many numbers that nobody can say how long the next lane counts"
    for _ in range(2):
        assert sent_again(session) == {
            0: [REQUEST],
            1: [("outcome", second.request_id)],
            2: [("outcome", third.request_id)],
            3: [REQUEST],
        }
    session.receive(answers(second.sequence, last.sequence, first.sequence))
    assert (first.done, last.done, session.in_flight, session.bytes_in_flight) == (True, True, 0, 0)
    assert session.hello(1).first == 4


def test_what_is_in_flight_is_counted_anew_on_a_new_lane_and_when_nobody_will_answer(session):
    session.accept(welcome(0))
    session.send([REQUEST] * 2)
    in_flight = session.bytes_in_flight
    session.bytes_in_flight = session.in_flight = 99  # as an interrupt in the middle of a count may leave it
    session.accept(welcome(0))
    assert (session.in_flight, session.bytes_in_flight) == (2, in_flight)
    session.fail(None)
    assert (session.in_flight, session.bytes_in_flight) == (0, 0)
