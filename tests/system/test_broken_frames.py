"""Agents that die, stop, give up or are interrupted in the middle of a frame or of an answer, and frames that come
twice, in another order, from somebody else or too late: each harms only itself, and nothing happens twice.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable

import pytest

from solewriter import (
    Applied,
    Create,
    EngineUnavailable,
    Limits,
    NotApplied,
    OutcomeUnknown,
    Task,
    Update,
    VersionConflict,
    connect,
)
from solewriter.shared import wire
from solewriter.shared.config import FRAME_REQUESTS_MAX
from solewriter.shared.request_ids import default_id, session_number

APPLIED, REFUSED = wire.Status.APPLIED, wire.Status.REFUSED

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads: the children only write


def forked(deed: Callable[[], object]) -> int:
    """A process that does this and ends, with status 0 if it came so far."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            deed()
            status = 0
        finally:
            os._exit(status)
    return child


def killed(child: int) -> bool:
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def request(client_id: str, frame: int = 0) -> str:
    return default_id(session_number(client_id), frame * FRAME_REQUESTS_MAX)


# --- in mid-frame -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.long)])
def test_an_agent_killed_at_any_byte_of_a_frame_takes_nothing_with_it(
    state, start_engine, client_of_a_raw_lane, wait_until, step
):
    """What was whole counts, half of a frame does not; in between, somebody else is served every time."""
    engine = start_engine(state)
    pid = engine.pid

    def written(raw, last: int) -> None:
        first = raw.frame([Create(Task(title="x", id=f"before {last}"))])
        raw.write(first + raw.frame([Create(Task(title="x", id=f"in {last}"))])[:last])
        os.kill(os.getpid(), signal.SIGKILL)

    with connect(state, name="other") as other:
        task = other.create(Task(title="x"))
        length = len(client_of_a_raw_lane(state).frame([Create(Task(title="x", id="in 0"))]))
        for last in range(0, length, step):
            raw = client_of_a_raw_lane(state, client_id=f"agent {last}")
            child = forked(lambda raw=raw, last=last: written(raw, last))
            raw.die()  # the child's are the only ends now
            assert killed(child)
            task = other.update(task, max_retries=last + 1)
            wait_until(lambda last=last: other.get(Task, f"before {last}"), 10, "what was whole is decided")
            assert isinstance(other.outcome(request(f"agent {last}", 1)), NotApplied)
        assert engine.pid == pid
        snap = other.reader.snapshot()
        assert {one.id for one in snap.entities(Task)} == {task.id, *(f"before {n}" for n in range(0, length, step))}
        assert task.version == 1 + len(range(0, length, step))


def test_agents_stopped_anywhere_in_a_frame_keep_nobody_waiting(state, start_engine, client_of_a_raw_lane):
    """By SIGSTOP, five of them at once. When they go on, so do their frames."""
    engine = start_engine(state)
    stopped = []

    def written(raw, frame: bytes, at: int) -> None:
        raw.write(frame[:at])
        os.kill(os.getpid(), signal.SIGSTOP)
        raw.write(frame[at:])
        assert raw.reply()[1] == APPLIED

    for number in range(5):
        raw = client_of_a_raw_lane(state, client_id=f"agent {number}")
        frame = raw.frame([Create(Task(title="late", id=f"late {number}"))])
        at = (1, 4, 5, len(frame) // 2, len(frame) - 1)[number]
        stopped.append(forked(lambda raw=raw, frame=frame, at=at: written(raw, frame, at)))
        raw.die()
    for child in stopped:
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    with connect(state, name="other") as other:
        for number in range(50):
            other.create(Task(title="x", id=f"other {number}"))
        assert other.reader.snapshot().counts["Task"] == 50
        for child in stopped:
            os.kill(child, signal.SIGCONT)
            assert os.waitpid(child, 0)[1] == 0, "it was told that its frame was applied"
        assert all(other.get(Task, f"late {number}") for number in range(5))
    assert not engine.hung


@pytest.mark.parametrize("how", ["time-out", "Ctrl-C"])
def test_a_call_that_ends_in_the_middle_of_its_frame_tears_nothing(state, start_engine, wait_until, ctrl_c_when, how):
    """The pipe is full, half of the frame is in it, the engine is stopped. Another thread waits on the same client."""
    engine = start_engine(state)
    large, told = "y" * 400_000, []
    with connect(state) as client:
        task = client.create(Task(title="x", id="t"))
        os.kill(engine.pid, signal.SIGSTOP)
        other = threading.Thread(target=lambda: told.append(client.create(Task(title="other"), timeout_s=60)))
        try:
            if how == "time-out":
                with pytest.raises(OutcomeUnknown):
                    client.update(task, description=large, timeout_s=0.3)
            else:

                def waits() -> bool:
                    return client._exchange._reading and client._session.unsent is not None

                with ctrl_c_when(waits, "it waits for room in the pipe"), pytest.raises(KeyboardInterrupt):
                    client.update(task, description=large, timeout_s=60)
            assert client._session.unsent is not None, "it ended in the middle of its frame"
            other.start()
            wait_until(lambda: client._session.in_flight == 2, 10, "the other thread's is behind it")
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        other.join(60)
        assert [one.title for one in told] == ["other"]
        assert client.update(Task.ref("t"), title="after").version == 3, "the large one was applied, and once"
        assert client.get(Task, "t").description == large


def test_threads_on_one_client_are_served_beside_one_whose_calls_time_out(state, start_engine):
    start_engine(state)
    wrong: list[BaseException] = []
    stop = threading.Event()
    with connect(state) as client:

        def hurried() -> None:
            while not stop.is_set():
                try:
                    client.create(Task(title="hurried"), timeout_s=0.00001)
                except (OutcomeUnknown, EngineUnavailable):
                    pass  # on its way, or not sent because so many are
                except BaseException as error:
                    wrong.append(error)
                    return

        def patient(number: int) -> None:
            try:
                task = client.create(Task(title="patient", id=f"patient {number}"))
                for step in range(100):
                    task = client.update(task, max_retries=step + 1)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=patient, args=(number,)) for number in range(3)]
        hurry = threading.Thread(target=hurried)
        for thread in (hurry, *threads):
            thread.start()
        for thread in threads:
            thread.join(60)
        stop.set()
        hurry.join(60)
        assert wrong == []
        assert [client.get(Task, f"patient {number}").version for number in range(3)] == [101] * 3


# --- an answer that nobody read ---------------------------------------------------------------------------------------


def test_an_agent_killed_before_it_reads_its_reply_is_told_the_same_when_it_asks_again(
    state, start_engine, client_of_a_raw_lane, wait_until
):
    """Also by the engine that follows a kill: applied once, at the same revision and version."""
    engine = start_engine(state, durability="power")
    raw = client_of_a_raw_lane(state, client_id="agent")
    frames = [
        raw.frame([Create(Task(title="x", id="t", max_retries=0))]),
        raw.frame([Update(Task.ref("t"), {"max_retries": 1})]),
        raw.frame([Update(Task.ref("t"), {"title": "y"}, expect=1)]),
    ]

    def unread() -> None:
        raw.write(b"".join(frames))
        assert select.select([raw.lane.replies], [], [], 30)[0]
        os.kill(os.getpid(), signal.SIGKILL)  # committed, published and told, and nobody heard it

    child = forked(unread)
    raw.die()
    assert killed(child)
    with connect(state) as client:
        wait_until(lambda: client.reader.revision == 2, 10, "both changes are published")
        before = [client.outcome(request("agent", number)) for number in range(3)]
        assert [type(one) for one in before] == [Applied, Applied, VersionConflict]
        for kill in (False, True):
            if kill:
                restarts = engine.restarts
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda restarts=restarts: engine.restarts > restarts, 20, "a restart")
            again = client_of_a_raw_lane(state, client_id="agent", resends=True)
            again.write(b"".join(frames))
            told = [again.reply() for _ in frames]
            again.die()
            assert [reply.status for reply in told] == [APPLIED, APPLIED, REFUSED]
            assert [reply.revision for reply in told[:2]] == [one.reply.revision for one in before[:2]] == [1, 2]
            assert [reply.detail[0][0] for reply in told[:2]] == [1, 2]
            assert told[2].detail[0] == "VersionConflict"
            task = client.get(Task, "t")
            assert (task.version, task.max_retries, client.reader.revision) == (2, 1, 2)


# --- frames in the wrong place ----------------------------------------------------------------------------------------


def test_frames_sent_again_in_another_order_are_told_by_their_places(state, start_engine, client_of_a_raw_lane):
    """A number that was consumed has its answer, whatever is sent under it now."""
    start_engine(state)
    raw = client_of_a_raw_lane(state, client_id="agent")
    frames = [raw.frame([Create(Task(title="x", id=f"t{number}"))]) for number in range(4)]
    raw.write(b"".join(frames))
    told = [tuple(raw.reply()) for _ in frames]
    raw.die()
    again = client_of_a_raw_lane(state, client_id="agent", resends=True)
    again.write(b"".join(reversed(frames)) + again.frame([Create(Task(title="other", id="never"))]))
    assert [tuple(again.reply()) for _ in frames] == told
    assert again.reply().status == APPLIED, "the fifth is new"
    with connect(state) as client:
        assert client.reader.revision == 5


def test_frames_of_another_session_are_requests_of_its_own(state, start_engine, client_of_a_raw_lane):
    """Whoever replays what somebody else sent asks for it in his own name."""
    start_engine(state)
    first, second = (client_of_a_raw_lane(state, client_id=name) for name in ("one", "two"))
    frames = [
        first.frame([Create(Task(title="x", id="t", max_retries=0))]),
        first.frame([Update(Task.ref("t"), {"max_retries": 1}, expect=1)]),
    ]
    for raw, expected in ((first, [APPLIED, APPLIED]), (second, [REFUSED, REFUSED])):
        raw.write(b"".join(frames))
        told = [raw.reply() for _ in frames]
        assert [reply.status for reply in told] == expected
    assert [reply.detail[0] for reply in told] == ["AlreadyExists", "VersionConflict"]
    with connect(state) as client:
        assert client.get(Task, "t").version == 2


def test_numbers_that_were_passed_over_are_never_applied(state, start_engine, client_of_a_raw_lane):
    start_engine(state)
    first = client_of_a_raw_lane(state, client_id="agent")
    first.write(first.frame([Create(Task(title="x", id="t0"))]))
    assert first.reply().status == APPLIED
    first.die()
    later = client_of_a_raw_lane(state, client_id="agent", first=7)
    assert later.welcome.first == 7
    later.write(later.frame([Create(Task(title="x", id="t7"))]))
    assert later.reply().sequence == 7 * FRAME_REQUESTS_MAX
    later.die()
    with connect(state) as client:
        for number in range(1, 7):
            assert isinstance(client.outcome(request("agent", number)), NotApplied)
    again = client_of_a_raw_lane(state, client_id="agent", resends=True, first=3)
    again.write(again.frame([Create(Task(title="x", id="t3"))]))
    told = again.reply()
    assert (told.sequence, told.status, told.detail[0]) == (
        3 * FRAME_REQUESTS_MAX,
        wire.Status.UNAVAILABLE,
        "Forgotten",
    ), "nothing is known of it, and that stays so"
    with connect(state) as client:
        assert sorted(task.id for task in client.reader.snapshot().entities(Task)) == ["t0", "t7"]


def test_a_lane_of_an_earlier_epoch_is_neither_read_nor_left_waiting(state, start_engine, client_of_a_raw_lane):
    start_engine(state)
    old = client_of_a_raw_lane(state, client_id="agent")
    new = client_of_a_raw_lane(state, client_id="agent", resends=True)
    assert new.welcome.epoch == old.welcome.epoch + 1
    try:
        old.write(old.frame([Create(Task(title="x", id="old"))]))
    except BrokenPipeError:
        pass  # the engine closed it already
    assert old.reply().status == wire.Status.FENCED
    assert old.reply() is None
    new.write(new.frame([Create(Task(title="x", id="new"))]))
    assert new.reply().status == APPLIED
    with connect(state) as client:
        assert [task.id for task in client.reader.snapshot().entities(Task)] == ["new"]


def test_an_agent_that_writes_and_never_reads_ends_alone(state, start_engine, client_of_a_raw_lane, wait_until):
    """Its replies wait up to their bound; then its lane is closed, and it can send again what was not answered."""
    bounds = Limits(reply_backlog_bytes_max=64 * 1024)
    engine = start_engine(state, limits=bounds)
    raw = client_of_a_raw_lane(state, client_id="agent")
    frame = raw.frame([Update(Task.ref("n" * 200), {"title": "x"})])  # its refusal is longer than itself

    def flood() -> None:
        try:
            while True:
                raw.write(frame)
        except BrokenPipeError:
            pass

    child = forked(flood)
    replies = raw.lane.replies
    with connect(state) as client:
        for number in range(50):
            client.create(Task(title="x", id=f"t{number}"))
        assert os.waitpid(child, 0)[1] == 0, "its lane was closed"
        assert client.reader.snapshot().counts["Task"] == 50
        assert not isinstance(client.outcome(request("agent")), NotApplied)
    assert select.select([replies], [], [], 30)[0], "what was written before is still there to be read"
    assert not engine.hung
