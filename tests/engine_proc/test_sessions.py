"""Who may say hello as whom, and what a session remembers of requests that never came."""

from __future__ import annotations

import msgspec
import pytest

from solewriter.engine_proc.session import FORGOTTEN, NEVER, Session
from solewriter.engine_proc.sessions import ENGINE_ID, HelloRefused, Sessions
from solewriter.shared import wire
from solewriter.shared.config import (
    ASKED_AHEAD_MAX,
    FRAME_REQUESTS_MAX,
    NAME_MAX,
    SESSION_FRAMES_MAX,
    WIRE_VERSION,
    Limits,
)
from solewriter.shared.handshake import Hello
from solewriter.shared.journal.entry import CheckpointName, Life, Outcome, PrivateState, SessionChange, SessionState
from solewriter.shared.mutations import Op
from solewriter.shared.request_ids import default_id, session_number
from solewriter.shared.wire import Status


def hello(client_id="ann", name="crawler", first=0):
    return Hello(wire=WIRE_VERSION, client_id=client_id, name=name, pid=1, first=first, instance="1", resends=False)


def greet(sessions, words):
    """A hello that is answered and journaled; its session's number."""
    change, _ = sessions.greet(words, None, lambda number: -1)
    sessions.take(change)
    return change.session


@pytest.fixture
def sessions():
    return Sessions(Limits(window_max=4))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (hello(client_id=""), "not empty"),
        (hello(client_id="c" * (NAME_MAX + 1)), f"at most {NAME_MAX}"),
        (hello(name="n" * (NAME_MAX + 1)), f"at most {NAME_MAX}"),
        (hello(first=-1), "numbered 0 to"),
        (hello(first=SESSION_FRAMES_MAX), "numbered 0 to"),
        (hello(client_id=ENGINE_ID), "the engine's own"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_hello_out_of_bounds_is_refused_for_good_and_begins_no_session(sessions, words, why):
    with pytest.raises(HelloRefused, match=why) as caught:
        greet(sessions, words)
    assert caught.value.refusal == "final"
    assert len(sessions) == 0


def test_a_hello_at_its_bounds_is_taken(sessions):
    greet(sessions, hello(client_id="c" * NAME_MAX, name="n" * NAME_MAX, first=SESSION_FRAMES_MAX - 1))
    assert len(sessions) == 1


def test_two_clients_whose_ids_make_the_same_number_are_never_taken_for_one(sessions):
    number = greet(sessions, hello("ann"))
    with pytest.raises(HelloRefused, match="choose another one") as caught:
        greet(sessions, hello(f"{number:016x}"))
    assert caught.value.refusal == "final"
    assert sessions.get(number).client_id == "ann"


def test_a_quarantined_request_is_told_so_before_it_comes_and_nobody_elses_is(sessions):
    number = greet(sessions, hello())
    sessions.quarantine(number, 3, 70)
    told = sessions.outcome_of(number, 3)
    assert (told.status, told.revision, told.detail[0]) == (Status.REFUSED, 70, "Quarantined")
    assert sessions.outcome_of(number, 2) is None
    assert sessions.outcome_of(number, 4) is None
    sessions.quarantine(number + 1, 3, 70)  # of a session that was forgotten
    assert sessions.outcome_of(number + 1, 3) == FORGOTTEN


def test_a_session_that_fell_silent_last_is_the_last_to_go(sessions):
    sessions = Sessions(Limits(sessions_max=2))
    ann, bob = (greet(sessions, hello(name)) for name in ("ann", "bob"))
    assert sessions.surplus(1, []) == [ann]
    sessions.fell_silent(ann)
    assert sessions.surplus(1, []) == [bob]
    sessions.forget([bob])
    sessions.fell_silent(bob)  # its lane was closed when it was forgotten already
    assert (len(sessions), sessions.get(bob)) == (1, None)


def test_those_that_hold_claims_are_the_last_to_go(sessions):
    sessions = Sessions(Limits(sessions_max=3))
    ann, bob, eve = (greet(sessions, hello(name)) for name in ("ann", "bob", "eve"))
    assert sessions.surplus(1, [], holding={ann}) == [bob]
    assert sessions.surplus(3, [], holding={ann, bob}) == [eve, ann, bob]


def test_the_window_holds_the_newest_outcomes_and_the_rest_is_forgotten_not_denied(sessions):
    number = greet(sessions, hello())
    for sequence in range(6):
        sessions.remember([Outcome(number, sequence, Status.APPLIED, sequence + 1, [])])
    assert [sessions.outcome_of(number, sequence) for sequence in (0, 1)] == [FORGOTTEN, FORGOTTEN]
    assert [sessions.outcome_of(number, sequence).revision for sequence in range(2, 6)] == [3, 4, 5, 6]
    sessions.remember([Outcome(number, 5, Status.APPLIED, 6, [])])  # told again, it takes nobody's place
    assert sessions.outcome_of(number, 2).revision == 3


def test_a_fence_holds_for_a_session_that_is_known_and_for_any_id_of_a_users_own(sessions):
    number = greet(sessions, hello())
    for request_id in (default_id(number, 7), default_id(number + 1, 7), "mine"):
        sessions.fence(request_id)
    assert sessions.outcome_of(number, 7) == NEVER
    assert sessions.outcome_of(number + 1, 7) == FORGOTTEN
    assert sessions.outcome_of_id("mine") == NEVER


def test_a_client_that_comes_back_begins_behind_all_that_an_earlier_one_may_have_sent(sessions):
    number = greet(sessions, hello())
    sessions.remember([Outcome(number, 2 * FRAME_REQUESTS_MAX, Status.APPLIED, 1, [])])
    other = hello()
    other.instance = "2"
    change, first = sessions.greet(other, None, lambda number: -1)
    assert first == 3 + 4, "a window of frames may be on its way, not read"
    assert change == SessionChange(number, "ann", "crawler", 2, first * FRAME_REQUESTS_MAX - 1, "2")
    assert session_number("ann") == number


def test_what_nobody_read_never_will_be_applied_behind_a_checkpoint_either(sessions):
    number = greet(sessions, hello())
    sessions.remember([Outcome(number, 0, Status.APPLIED, 1, [])])
    other = hello()
    other.instance = "2"
    greet(sessions, other)  # whatever the first one had on its way is passed over
    again = Session.of(sessions.get(number).state)
    for session in (sessions.get(number), again):
        assert [session.outcome_of(sequence) for sequence in (1, session.last)] == [NEVER, NEVER]
        assert session.outcome_of(0).status == Status.APPLIED
    assert again.state == sessions.get(number).state


def test_who_lost_its_session_to_another_process_does_not_take_it_back(sessions):
    """Whether it has something on its way or not. Whoever comes for the first time may have it."""
    greet(sessions, hello())
    other = hello()
    other.instance = "2"
    greet(sessions, other)
    for said in ({"again": True}, {"resends": True}):
        with pytest.raises(HelloRefused, match="took over") as caught:
            greet(sessions, msgspec.structs.replace(hello(), **said))
        assert caught.value.refusal == "fenced"
    number = greet(sessions, msgspec.structs.replace(other, again=True))
    assert sessions.get(number).instance == "2"
    greet(sessions, hello())
    assert sessions.get(number).instance == "1"


def test_who_waits_for_an_answer_waits_for_as_long_as_it_is_the_same_process(sessions):
    number = greet(sessions, hello())
    sessions.wait(number, 0)
    greet(sessions, hello())
    assert sessions.get(number).waiting == {0}, "it sends its claim again"
    other = hello()
    other.instance = "2"
    greet(sessions, other)
    assert sessions.get(number).waiting == set()


def test_numbers_are_fenced_up_to_the_window_counted_with_those_of_this_turn(sessions):
    number = greet(sessions, hello())
    for sequence in (7, 8):
        sessions.fence(default_id(number, sequence))
    assert [sessions.outcome_of(number, 9, pending) for pending in (0, 1, 2)] == [None, None, FORGOTTEN]
    sessions.fence(default_id(number, 9))
    assert sessions.outcome_of(number, 10) is None
    sessions.fence(default_id(number, 10))
    assert sessions.outcome_of(number, 11) == FORGOTTEN, (
        "it is not told to be never applied: there is no room to keep that"
    )
    assert sessions.outcome_of(number, 10) == NEVER


def test_a_number_that_cannot_be_on_its_way_is_not_fenced(sessions):
    """Or whoever comes later would begin behind it, and have no numbers left."""
    number = greet(sessions, hello())
    sessions.remember([Outcome(number, 100, Status.APPLIED, 1, [])])
    assert sessions.outcome_of(number, 100 + ASKED_AHEAD_MAX) is None
    assert sessions.outcome_of(number, 101 + ASKED_AHEAD_MAX) == FORGOTTEN


def test_who_comes_after_one_was_forgotten_begins_behind_all_that_such_a_one_may_have_sent(sessions):
    """As if it were that one. It sent nothing that anybody heard of."""
    sessions.forget([greet(sessions, hello("ann"))])
    change, first = sessions.greet(hello("bob"), None, lambda number: -1)
    assert first == 1 + 4, "behind its first frame, and a window of others"
    number, begin = sessions.take(change).number, first * FRAME_REQUESTS_MAX
    assert sessions.outcome_of(number, begin) is None
    assert sessions.outcome_of(number, begin - 1) == FORGOTTEN
    sessions.remember([Outcome(number, begin, Status.APPLIED, 9, [])])
    assert sessions.outcome_of(number, begin).revision == 9


def test_a_number_that_never_will_be_applied_is_nobodys_when_its_session_was_forgotten(sessions):
    number = greet(sessions, hello("ann"))
    sessions.fence(default_id(number, 100 * FRAME_REQUESTS_MAX))
    sessions.forget([number])
    assert sessions.greet(hello("ann"), None, lambda number: -1)[1] > 100


def test_nobody_who_is_connected_goes_for_a_new_session():
    sessions = Sessions(Limits(sessions_max=2))
    ann, bob = (greet(sessions, hello(name)) for name in ("ann", "bob"))
    with pytest.raises(HelloRefused, match="2 sessions are connected"):
        sessions.surplus(1, [ann, bob])


def test_to_forget_a_session_that_is_not_there_is_nothing(sessions):
    ann = greet(sessions, hello())
    sessions.forget([ann, ann])
    assert len(sessions) == 0


def test_the_results_of_large_requests_are_kept_packed_and_told_as_they_were(sessions):
    number = greet(sessions, hello())
    written = [(version, 64 * version, "Task", f"t{version}") for version in range(1, 1_001)]
    sessions.remember(
        [Outcome(number, 0, Status.APPLIED, 7, written[:2]), Outcome(number, 1, Status.APPLIED, 8, written)]
    )
    small, large = sessions.get(number).outcomes.get(0), sessions.get(number).outcomes.get(1)
    assert small.detail == written[:2]
    assert len(msgspec.msgpack.encode(large.detail)) < 40 * len(written)
    assert isinstance(large.detail, msgspec.Raw)
    (reply,) = wire.unpack_replies(bytearray(wire.pack_replies([(1, large.status, large.revision, large.detail)])))
    assert [tuple(one) for one in reply[3]] == written
    (again,) = [
        Session.of(state)
        for state in msgspec.convert(
            msgspec.msgpack.decode(msgspec.msgpack.encode(sessions.states())), list[SessionState]
        )
    ]
    assert msgspec.msgpack.decode(again.outcomes.get(1).detail) == [[one[0], 0, *one[2:]] for one in written]


def whole(sessions):
    """What is written of them behind a checkpoint."""
    ids_forgotten, sequence_forgotten = sessions.forgotten
    return PrivateState(
        checkpoint=CheckpointName(1, b""), life=Life(1, b"", "power", b"", False), sessions=sessions.states(),
        request_ids=sessions.request_ids(), request_ids_forgotten=ids_forgotten,
        sequence_forgotten=sequence_forgotten, keys=[],
    )  # fmt: skip


def test_what_was_forgotten_stays_so_behind_a_checkpoint():
    """Nobody is told that an id or a number was never used which may have been."""
    limits = Limits(request_ids_max=1, window_max=4)
    before, after = Sessions(limits), Sessions(limits)
    number = greet(before, hello("ann"))
    before.remember([Outcome(number, place, Status.APPLIED, 1, [], name) for place, name in enumerate(("a", "b"))])
    before.forget([number])
    after.restore(whole(before))
    for sessions in (before, after):
        assert sessions.outcome_of_id("a") == FORGOTTEN
        assert sessions.outcome_of_id("b").revision == 1
        assert sessions.greet(hello("bob"), None, lambda number: -1)[1] == 1 + 4


def test_behind_a_start_with_a_lower_bound_no_more_ids_of_users_are_remembered():
    """Those that are kept are the newest; of the others nobody is told that they were never used."""
    before, after = Sessions(Limits(request_ids_max=5)), Sessions(Limits(request_ids_max=2))
    number = greet(before, hello("ann"))
    before.remember([Outcome(number, place, Status.APPLIED, 1, [], name) for place, name in enumerate("abcd")])
    after.restore(whole(before))
    assert [id for id, _ in after.request_ids()] == ["c", "d"]
    assert before.outcome_of_id("a").revision == 1
    assert [after.outcome_of_id(id) for id in "ae"] == [FORGOTTEN, FORGOTTEN]


# --- in turns ---------------------------------------------------------------------------------------------------------


def test_so_many_new_sessions_in_one_turn_so_many_silent_ones_go(alone, local, tmp_path):
    """Not the same one for each, and none too many."""
    engine, call, _ = alone(sessions_max=4)
    calls = [call]

    def connect(*names):
        for name in names:
            calls.append(local.Call(tmp_path / "state", hello(name)))
            engine.read()
        engine.turn()
        assert all(one.welcome().ok for one in calls[-len(names) :])

    def known():
        return {state.change.client_id for state in engine.server.sessions.states()}

    connect("ann", "bob", "eve")
    for one in calls:
        one.close()
    engine.read()
    connect("new 1", "new 2")
    assert known() == {"bob", "eve", "new 1", "new 2"}
    connect("new 3")
    assert known() == {"eve", "new 1", "new 2", "new 3"}
    for one in calls[4:]:
        one.close()
    engine.read()


def test_a_session_that_comes_back_is_not_forgotten_for_one_that_is_new_in_the_same_turn(alone, local, tmp_path):
    """What it sends again has its first answer."""
    engine, call, _ = alone(sessions_max=2)
    calls = [call]

    def connect(*hellos):
        for one in hellos:
            calls.append(local.Call(tmp_path / "state", one))
            engine.read()
        engine.turn()
        return [each.welcome().ok for each in calls[-len(hellos) :]]

    def created(sender):
        mutation = Op.CREATE.value, "Task", "a", None, {"title": "x"}, "", None
        sender.write(wire.pack_frame([([mutation], [], None, None)], Limits()))
        engine.read()
        engine.turn()
        return [(reply.status, reply.revision) for reply in sender.replies()]

    assert connect(hello("back")) == [True]
    assert created(calls[1]) == [(Status.APPLIED, 1)]
    calls[1].close()
    engine.read()
    assert connect(msgspec.structs.replace(hello("back"), resends=True), hello("new")) == [True, False]
    assert created(calls[2]) == [(Status.APPLIED, 1)]
    for one in calls:
        one.close()
    engine.read()


def test_a_session_whose_requests_wait_is_not_forgotten_for_a_new_one(alone, local, tmp_path):
    """Its agent may come back for what they were told. Who would take its place comes again, when that was decided."""
    engine, call, _ = alone(sessions_max=2, batch_max=1)

    def calls(words):
        calling.append(local.Call(tmp_path / "state", words))
        engine.read()
        engine.turn()
        return calling[-1].welcome()

    calling = []
    assert calls(hello("other")).ok
    frames = [
        wire.pack_frame([([(Op.CREATE.value, "Task", id, None, {"title": id}, "", None)], [], None, None)], Limits())
        for id in ("a", "b", "c")
    ]
    for frame in frames:
        call.write(frame)
    engine.read()
    call.close()
    engine.read()
    assert engine.bridge.connected() == {session_number("other")}
    assert calls(hello("new")).refusal == "again"  # its hello was heard when one of the three was decided
    assert engine.server.state.revision == 3
    back = msgspec.structs.replace(hello("alone"), resends=True)
    assert calls(back).ok
    for frame in frames:
        calling[-1].write(frame)
    engine.read()
    engine.turn()
    assert [(reply.sequence, reply.status, reply.revision) for reply in calling[-1].replies()] == [
        (place * FRAME_REQUESTS_MAX, Status.APPLIED, place + 1) for place in range(3)
    ]
    assert calls(hello("new")).refusal == "final"
    for one in calling:
        one.close()
    engine.read()
