"""A status says how an engine is whatever state it is in, and touches nothing while it looks."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from pydantic import field_validator

from solewriter import Create, EngineStartFailed, Entity, Limits, OutcomeUnknown, Task, Update, connect
from solewriter.agents import status as status_module
from solewriter.agents.cli.describing import DEGRADED, FINE, NOT_THERE, exit_code, status_lines
from solewriter.agents.inspection import last_outcomes
from solewriter.agents.status import EngineStatus, status_of
from solewriter.shared.config import STALE_BEATS
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.entry import CheckpointName, Life, Private, PrivateState, SessionChange, SessionState
from solewriter.shared.memory.root import STOPPED
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.request_ids import default_id

HEARTBEAT_S = 0.2

See = Callable[[Path, str], EngineStatus]


@pytest.fixture(scope="session")
def limits(limits: Limits) -> Limits:
    """An engine that beats often is soon known to be hung."""
    return msgspec.structs.replace(limits, heartbeat_s=HEARTBEAT_S)


@pytest.fixture
def see(wait_until: Callable[..., Any]) -> See:
    """`see(state, condition)`: the status, once the engine is in that condition."""

    def wait(state: Path, condition: str) -> EngineStatus:
        what = f"an engine that is {condition}"
        return wait_until(lambda: (status := status_of(state)).engine == condition and status, 20, what)

    return wait


OWNER = """
import sys
from solewriter import Engine, Limits
limits = Limits(heartbeat_s=float(sys.argv[3]))
print(Engine(sys.argv[1], durability=sys.argv[2], limits=limits, detach=True).start().pid, flush=True)
"""


@pytest.fixture
def lone_engine(remove_memory: Callable[[Path], None]) -> Iterator[Callable[..., int]]:
    """`lone_engine(state, durability)`: pid of an engine that outlived its owner, so that nobody starts it again."""
    started: list[tuple[Path, int]] = []

    def start(state: Path, durability: str = "process") -> int:
        command = [sys.executable, "-P", "-c", OWNER, str(state), durability, str(HEARTBEAT_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            started.append((state, os.pidfd_open(pid)))
        return pid

    yield start
    for state, pidfd in started:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        remove_memory(state)


class Doc(Entity):
    """Its validator is never done in a process with this variable in its environment."""

    size: int = 0

    @field_validator("size")
    @classmethod
    def measured(cls, size: int) -> int:
        while "SOLEWRITER_TEST_HANG" in os.environ:
            pass
        return size


# --- an engine that serves -------------------------------------------------------------------------------------------


def test_an_engine_that_serves_is_alive_and_all_is_said_of_it(state, start_engine, see):
    engine = start_engine(state, models=[Doc])
    with connect(state) as client:
        tasks = [client.create(Task(title="x")) for _ in range(5)]
        for task in tasks[:2]:
            client.delete(task)
        client.create(Doc(id="d"))
        snap = client.reader.snapshot()
    status = see(state, "alive")
    assert (status.folder, status.engine, status.detail, status.problems) == (str(state), "alive", "", ())
    assert (status.pid, status.starting_pid) == (engine.pid, None)
    assert status.epoch == engine.folder.whereabouts().epoch
    assert status.process_state in ("S", "R")
    assert status.entities == {"Task": 3, "Project": 0, "Doc": 1} == snap.counts
    assert (status.revision, status.history_id, status.durability) == (8, snap.history_id, "process")
    assert (status.last_request, status.deciding, status.leftover_bytes) == (None, None, 0)
    assert status.heartbeat_period_s == HEARTBEAT_S
    assert 0 <= status.heartbeat_age_s <= HEARTBEAT_S * STALE_BEATS
    assert 0 < status.uptime_s < 60
    assert (status.journal_entry, status.journal_files) == (snap.pin.root.entry, 1)
    assert exit_code(status) == FINE


def test_sizes_are_what_the_files_take(state, start_engine, wait_until):
    engine = start_engine(state)
    with connect(state) as client:
        for reply in client.submit_many(Create(Task(title="x" * 2_000)) for _ in range(1_000)):
            reply.check()
    with (state / "journal-99999999999999999999.log").open("wb") as file:
        file.truncate(1 << 40)  # long, and takes nothing
    where = engine.folder.whereabouts()

    def listed() -> list[tuple[Path, int]]:
        files = [*Path(where.memory_dir).glob(f"{where.prefix}-*"), *state.glob("journal*")]
        return [(path, path.stat().st_blocks * 512) for path in sorted(files)]

    def quiet() -> tuple[EngineStatus, list[tuple[Path, int]]] | None:
        before, status = listed(), status_of(state)
        return (status, before) if before == listed() else None

    def taken(part: str) -> int:
        return sum(size for path, size in files if path.name.startswith(f"{where.prefix}-{part}"))

    status, files = wait_until(quiet, 10, "no file is being made ahead")
    journal = [(path, size) for path, size in files if path.parent == state]
    assert status.memory_dir == where.memory_dir
    assert status.memory_segments == len(files) - len(journal)
    assert status.memory_bytes == taken("") > 2_000_000
    assert status.memory_heap_bytes == taken("heap") > 2_000_000
    assert status.memory_table_bytes == taken("table") > 0
    assert status.memory_index_bytes == taken("index") > 0
    assert status.memory_other_bytes == taken("root") + taken("catalog") + taken("revlog") > 0
    assert status.journal_bytes == sum(size for _, size in journal) > 2_000_000
    assert status.journal_files == sum(path.suffix == ".log" for path, _ in journal) > 2


def test_sessions_are_counted_remembered_and_connected(state, start_engine, wait_until):
    start_engine(state)

    def counts() -> tuple[int | None, int | None]:
        status = status_of(state)
        return status.sessions_remembered, status.sessions_connected

    def counted(remembered: int, connected: int) -> None:
        what = f"{remembered} sessions remembered, {connected} connected"
        wait_until(lambda: counts() == (remembered, connected), 10, what)

    counted(0, 0)
    with connect(state), connect(state):
        counted(2, 2)
        with connect(state):
            counted(3, 3)
        counted(3, 2)
    counted(3, 0)


def test_memory_durability_has_no_journal(state, start_engine):
    engine = start_engine(state, durability="memory")
    with connect(state) as client:
        client.create(Task(title="x"))
    status = status_of(state)
    assert (status.durability, status.revision) == ("memory", 1)
    assert (status.journal_files, status.journal_bytes, status.journal_entry) == (0, 0, None)
    engine.stop()
    assert status_of(state).engine == "stopped"


# --- an engine that does not go on -----------------------------------------------------------------------------------


def test_a_stopped_process_is_stale_until_it_goes_on(state, start_engine, see):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    before = see(state, "alive")
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        status = see(state, "stale")
        assert (status.process_state, status.pid) == ("T", engine.pid)
        assert "SIGCONT" in status.detail
        assert status.heartbeat_age_s > HEARTBEAT_S * STALE_BEATS
        assert (status.revision, status.entities, status.deciding) == (before.revision, before.entities, None)
        assert exit_code(status) == DEGRADED
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert exit_code(see(state, "alive")) == FINE


def test_a_hung_engine_is_stale_and_its_request_is_named(state, start_engine, limits, see, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("SOLEWRITER_TEST_HANG", "1")
        engine = start_engine(state, models=[Doc], limits=msgspec.structs.replace(limits, decide_timeout_s=0))
    with connect(state) as client:
        client.create(Task(title="x"))
        with pytest.raises(OutcomeUnknown) as unknown:
            client.create(Doc(id="d", size=13), timeout_s=0.2)
    status = see(state, "stale")
    assert status.process_state == "R"
    assert "computes" in status.detail
    assert status.deciding == unknown.value.request_id == status.last_request
    assert status.revision == 1
    assert exit_code(status) == DEGRADED
    os.kill(engine.pid, signal.SIGKILL)  # its supervisor starts one without that variable
    see(state, "alive")


def test_a_request_whose_turn_was_trimmed_ended_all_the_same(tmp_path):
    """Behind a checkpoint, the journal says it in the private state alone."""
    outcomes = [(7, sequence, 0, 5, None, None, None) for sequence in (256, 512)]
    session = SessionState(SessionChange(7, "me", "me", 1, 512), 0, [], [], outcomes)
    life = Life(1, b"h" * 16, "process", "boot", drained=False)
    whole = PrivateState(CheckpointName(8, 1), life, [session], [], False, -1, [])
    packed, _ = entries.pack(9, 5, 0, 0, [], Private(whole=whole))
    (tmp_path / "journal-9.log").write_bytes(entries.file_header(b"s" * 16, 9, 0) + packed + bytes(100))
    assert last_outcomes(StateFolder(tmp_path), ["journal-9.log"]) == {(7, 256), (7, 512)}


@pytest.mark.parametrize(("step", "ended"), [("commit.write", False), ("commit.noted", True)])
def test_a_request_is_being_decided_until_its_outcome_is_journaled(
    state, start_engine, client_of_a_raw_lane, see, monkeypatch, step, ended
):
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, f"{step}:stop:hit=4")  # behind its own start, a hello and a creation: the update
        engine = start_engine(state)
    raw = client_of_a_raw_lane(state)
    raw.write(raw.frame([Create(Task(title="x", id="t"))]))
    sequence = raw.reply()[0]
    raw.write(raw.frame([Update(Task.ref("t"), {"title": "y"})]))
    try:
        status = see(state, "stale")
        named = default_id(raw.welcome.session, sequence + 256)
        assert status.last_request == named
        assert status.deciding == (None if ended else named)
        assert ("deciding" in status_lines(status)) is not ended
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert raw.reply()[1] == 0
    assert see(state, "alive").deciding is None


@pytest.mark.parametrize("durability", ["process", "memory"])
def test_a_dead_engine_is_gone_and_its_last_snapshot_readable(state, lone_engine, see, remove_memory, durability):
    pid = lone_engine(state, durability)
    with connect(state) as client:
        client.create(Task(title="x"))
    os.kill(pid, signal.SIGKILL)
    status = see(state, "gone")
    assert (status.pid, status.process_state, status.uptime_s, status.starting_pid) == (pid, None, None, None)
    assert (status.revision, status.entities, status.problems) == (1, {"Task": 1, "Project": 0}, ())
    assert (status.durability, status.deciding) == (durability, None)
    assert status.last_request is not None
    assert "still readable" in status.detail
    assert exit_code(status) == DEGRADED
    remove_memory(state)
    status = see(state, "gone")
    assert (status.revision, status.entities, status.memory_bytes, status.problems) == (None, None, 0, ())
    assert ("no snapshot can be read" in status.detail, exit_code(status)) == (True, NOT_THERE)


def test_a_pid_that_is_somebody_elses_now_is_not_the_engine(state, lone_engine, see):
    pid = lone_engine(state)
    assert see(state, "alive").pid == pid
    where = StateFolder(state).whereabouts()
    StateFolder(state).announce(msgspec.structs.replace(where, start_time=where.start_time - 1))
    assert see(state, "gone").process_state is None


# --- an engine that comes or goes ------------------------------------------------------------------------------------


def test_an_engine_that_follows_a_dead_one_is_named(state, start_engine, see, wait_until, monkeypatch, is_stopped):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    pid = engine.pid
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "recover.rewrite:stop")
        os.kill(pid, signal.SIGKILL)
        coming = wait_until(lambda: status_of(state).starting_pid, 20, "the next engine recovers")
    status = status_of(state)
    assert (status.engine, status.pid, status.revision, exit_code(status)) == ("gone", pid, 1, DEGRADED)
    assert f"pid {coming} recovers" in status_lines(status)
    wait_until(lambda: is_stopped(coming), 20, "it reaches the step where it stops")
    os.kill(coming, signal.SIGCONT)
    status = see(state, "alive")
    assert (status.pid, status.starting_pid, status.revision) == (coming, None, 1)


def test_the_first_engine_of_a_folder_is_starting_until_it_serves(state, start_engine, see, monkeypatch):
    start_engine(state).stop()
    monkeypatch.setenv(VARIABLE, "recover.rewrite:stop")
    starting = threading.Thread(target=start_engine, args=[state])
    starting.start()
    status = see(state, "starting")
    assert (status.revision, status.journal_files, exit_code(status)) == (None, 1, DEGRADED)
    while starting.is_alive():  # it may not have come to its stop yet
        os.kill(status.pid, signal.SIGCONT)
        starting.join(0.02)
    assert see(state, "alive").pid == status.pid


def test_restarts_are_no_problem_whenever_one_looks(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    seen = []
    for _ in range(3):
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        while engine.restarts == before:
            seen.append(status_of(state))
    assert {status.engine for status in seen} <= {"alive", "gone"}
    assert {status.problems for status in seen} == {()}
    assert {(status.revision, str(status.entities)) for status in seen} == {(1, "{'Task': 1, 'Project': 0}")}
    assert len({status.epoch for status in seen}) >= 3


def test_an_engine_that_takes_over_during_the_look_is_told(state, start_engine, wait_until, monkeypatch):
    """The kill falls between the look at the folder and the one at the memory that it names."""
    engine = start_engine(state)
    first, read_memory = engine.pid, status_module.inspect_memory

    def killed_meanwhile(where: Whereabouts) -> object:
        if where.pid == first:
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: engine.restarts, 20, "a restart")
        return read_memory(where)

    monkeypatch.setattr(status_module, "inspect_memory", killed_meanwhile)
    status = status_of(state)
    assert (status.engine, status.pid, status.problems) == ("alive", engine.pid, ())
    assert engine.pid != first


def test_an_engine_that_gives_its_memory_back_has_stopped(state, start_engine):
    engine = start_engine(state)
    where = engine.folder.whereabouts()
    (state / "engine.json").unlink()  # the first two steps of its end
    Segment.attach(segment_path(where.memory_dir, where.prefix, "root"), writable=True).words[19] = STOPPED
    status = status_of(state)
    assert (status.engine, exit_code(status)) == ("stopped", NOT_THERE)
    assert f"pid {engine.pid} still gives its memory back" in status.detail


def test_a_copy_of_a_folder_is_not_told_by_the_engine_of_that_folder(state, start_engine, lone_engine, see, tmp_path):
    """Whether that one serves or died, and whether another one serves the copy."""
    pid = lone_engine(state)
    served = shutil.copytree(state, tmp_path / "served", ignore=shutil.ignore_patterns("*.sock"))
    status = status_of(served)
    assert (status.engine, status.pid, status.memory_segments) == ("stopped", None, 0)
    assert status.journal_files == 1
    copied = start_engine(served)
    status = status_of(served)
    assert (status.engine, status.pid, status.starting_pid) == ("alive", copied.pid, None)
    assert status_of(state).pid == pid
    os.kill(pid, signal.SIGKILL)
    see(state, "gone")
    of_the_dead = shutil.copytree(state, tmp_path / "dead", ignore=shutil.ignore_patterns("*.sock"))
    assert (status_of(of_the_dead).engine, status_of(of_the_dead).leftover_bytes) == ("stopped", 0)
    assert status_of(served).leftover_bytes == 0


def test_a_clean_stop_is_not_there(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    engine.stop()
    status = status_of(state)
    assert (status.engine, status.pid, status.revision, status.memory_bytes) == ("stopped", None, None, 0)
    assert (status.journal_files, status.leftover_bytes, status.problems) == (1, 0, ())
    assert status.journal_bytes > 0
    assert "the next one goes on" in status.detail
    assert exit_code(status) == NOT_THERE


def test_of_what_was_in_memory_alone_is_not_said_that_it_goes_on(state, start_engine):
    start_engine(state, durability="memory").stop()
    status = status_of(state)
    assert (status.engine, exit_code(status)) == ("stopped", NOT_THERE)
    assert status.detail == "no engine runs, and nothing is journaled"


def test_of_an_engine_whose_start_was_refused_is_not_said_that_it_ended_in_order(state, start_engine):
    start_engine(state).stop()
    (path,) = state.glob("journal-*.log")
    path.write_bytes(bytes(100))
    with pytest.raises(EngineStartFailed):
        start_engine(state)
    status = status_of(state)
    assert (status.engine, exit_code(status)) == ("stopped", NOT_THERE)
    assert "in order" not in status.detail


def test_an_engine_killed_in_mid_start_left_memory_behind(limits, state, wait_until, remove_memory):
    """With its owner, who would have seen it off."""
    command = [sys.executable, "-P", "-c", OWNER, str(state), "process", str(HEARTBEAT_S)]
    with subprocess.Popen(command, env={**os.environ, VARIABLE: "recover.published:stop"}) as owner:
        (engine,) = wait_until(psutil.Process(owner.pid).children, 20, "an engine")
        wait_until(lambda: engine.status() == psutil.STATUS_STOPPED, 20, "a start that goes so far")
        owner.kill()
    engine.kill()
    wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 20, "its end")
    status = status_of(state)
    assert (status.engine, status.pid, exit_code(status)) == ("stopped", None, NOT_THERE)
    assert status.leftover_bytes > limits.heap_segment_bytes_first
    assert "left over" in status_lines(status)
    remove_memory(state)
    assert status_of(state).leftover_bytes == 0


# --- what is not there, or not whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["nothing", "a folder", "a file"])
def test_where_no_engine_ever_was_none_is_there(state, made):
    if made == "a folder":
        (state / "src").mkdir(parents=True)
    elif made == "a file":
        state.touch()
    status = status_of(state)
    assert (status.engine, exit_code(status)) == ("absent", NOT_THERE)
    assert ("no engine ever served" if made == "a folder" else "no folder") in status.detail


@pytest.mark.parametrize(
    ("part", "size", "complaint", "revision"),
    [
        (("root",), None, "root is gone", None),
        (("root",), 0, "too short", None),
        (("root",), 100, "too short", None),
        (("catalog", 1), None, "catalog-1 is gone", 1),
        (("catalog", 1), 0, "empty", 1),
        (("heap", 1), None, "heap-1 is gone", 1),
    ],
)
def test_memory_that_was_damaged_is_a_problem(state, lone_engine, see, part, size, complaint, revision):
    pid = lone_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    os.kill(pid, signal.SIGKILL)
    assert see(state, "gone").problems == ()
    where = StateFolder(state).whereabouts()
    path = segment_path(where.memory_dir, where.prefix, *part)
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    status = see(state, "gone")
    assert complaint in status.problems[0]
    assert (status.revision, status.entities) == (revision, None)
    assert exit_code(status) == DEGRADED
    assert status.problems[0] in status_lines(status)


def test_memory_that_goes_under_a_running_engine_is_a_problem(state, start_engine, limits, remove_memory):
    start_engine(state, limits=msgspec.structs.replace(limits, heartbeat_s=60.0))  # when it would end of it
    assert exit_code(status_of(state)) == FINE
    remove_memory(state)
    status = status_of(state)
    assert (status.engine, len(status.problems), exit_code(status)) == ("alive", 1, DEGRADED)
    assert "root is gone" in status.problems[0]


def test_memory_of_another_layout_is_a_problem(state, lone_engine):
    lone_engine(state)
    where = StateFolder(state).whereabouts()
    with segment_path(where.memory_dir, where.prefix, "root").open("r+b") as root:
        root.seek(8)
        root.write(b"\x63")
    status = status_of(state)
    assert (status.engine, status.revision, exit_code(status)) == ("alive", None, DEGRADED)
    assert "has layout 99" in status.problems[0]


NOT_OURS = b'{"format": 1, "pid": 1, "start_time": 1, "epoch": 1, "memory_dir": "/dev/shm", "prefix": "report"}'


@pytest.mark.parametrize("text", [b"", b'{"format": 1, "pid"', NOT_OURS])
def test_an_unreadable_engine_json_is_a_problem_and_the_markers_know_better(state, start_engine, text):
    engine = start_engine(state)
    (state / "engine.json").write_bytes(text)
    status = status_of(state)
    assert (status.engine, status.pid, status.revision, exit_code(status)) == ("alive", engine.pid, 0, DEGRADED)
    assert "engine.json cannot be read" in status.problems[0]
