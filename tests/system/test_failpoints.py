"""The engine is killed, or a write fails, at every step of a turn: the end is the same as without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from solewriter import (
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Limits,
    Task,
    Update,
    VersionConflict,
    connect,
)
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder, runs

DECIDING = ["decide.begin", "decide.refused"]  # a kill there names the request that was being decided
STEPS = [
    "bridge.read",
    "bridge.frames",
    *DECIDING,
    "decide.done",
    "turn.decided",
    "commit.write",
    "commit.written",
    "commit.synced",
    "commit.noted",
    "publish.tail-moved",
    "publish.installed",
    "publish.filled",
    "publish.shown",
    "turn.published",
    "turn.reply",
    "reply.written",
    "turn.done",
]
CONNECTING = ["session.greeted", "bridge.admitted", "session.forgotten"]
STARTING = ["recover.rewrite", "recover.rewritten", "recover.published", "recover.announced", "recover.done"]


HIT = 7


def run_through(state) -> None:
    """The same work every time; whatever dies meanwhile, it ends like this."""
    with connect(state, name="worker") as client:
        task = client.create(Task(title="x", id="t"))
        for number in range(1, 13):
            task = client.update(task, max_retries=number)
        assert (task.version, task.max_retries) == (13, 12)
        for _ in range(HIT):
            with pytest.raises(VersionConflict):
                client.update(task, title="late", expect=1)
        replies = list(client.submit_many((Create(Task(title="y", id=f"m{number}")) for number in range(40)), window=8))
        assert [reply.results[0].version for reply in replies] == [1] * 40
        with client.transaction() as tx:
            tx.update(Task.ref("m0"), title="z")
            tx.update(Task.ref("m1"), title="z")
        assert {tx.result(Task.ref(name)).version for name in ("m0", "m1")} == {2}
        snap = client.reader.snapshot()
        assert snap.counts["Task"] == 41
        assert snap.revision == 13 + 40 + 1
        assert snap[Task, "t"] == task


def thinned(points):
    """Every third of them in a plain run; the engine inside the test process is killed at each of them."""
    return [point if n % 3 == 0 else pytest.param(point, marks=pytest.mark.heavy) for n, point in enumerate(points)]


@pytest.mark.parametrize("point", thinned(STEPS))
def test_a_kill_at_any_step_of_a_turn_changes_nothing_in_the_end(state, start_engine, monkeypatch, lives, point):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit={HIT}")
        engine = start_engine(state, durability="power")
    run_through(state)
    assert engine.restarts == 1, f"{point} was never reached"
    suspected = lives(state)[-1].suspicion is not None
    assert suspected == (point in DECIDING), "suspected is who was being decided, and nobody else"


@pytest.mark.parametrize("point", CONNECTING)
def test_a_kill_while_agents_connect_and_are_forgotten_changes_nothing_in_the_end(
    state, start_engine, monkeypatch, lives, point
):
    few = Limits(sessions_max=2, restart_backoff_s=0.005)
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit=3")
        engine = start_engine(state, durability="power", limits=few)
    for number in range(1, 7):  # each its own session: four are forgotten
        with connect(state, name=f"agent {number}") as client:
            client.put(Task(title=f"by {number}", id="t"))
            assert client.get(Task, "t").version == number
    assert engine.restarts == 1, f"{point} was never reached"
    assert lives(state)[-1].suspicion is None


OWNER = textwrap.dedent(
    """
    import sys
    from solewriter import Engine, Limits
    engine = Engine(sys.argv[1], limits=Limits(restart_backoff_s=0.005)).start()
    print(engine.pid, flush=True)
    engine.wait()
    """
)


@pytest.mark.parametrize("point", ["restart.begin", "restart.launched"])
def test_a_supervisor_killed_in_mid_restart_leaves_a_folder_for_the_next_one(state, start_engine, wait_until, point):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, VARIABLE: f"{point}:kill"},
    )
    with owner:
        pid = int(owner.stdout.readline())
        with connect(state) as client:
            task = client.create(Task(title="x", id="t"))
        os.kill(pid, signal.SIGKILL)
        assert owner.wait(20) == -signal.SIGKILL, f"{point} was never reached"
    folder = StateFolder(state)
    wait_until(lambda: not any(runs(one.pid, one.start_time) for one in folder.markers()), 20, "no engine is left")
    start_engine(state)
    with connect(state) as client:
        assert client.update(task, title="y").version == 2


@pytest.mark.long
@pytest.mark.parametrize("hit", [5, 7])
@pytest.mark.parametrize("point", [step for step in STEPS if step not in DECIDING])  # there it is poison: quarantined
def test_kills_at_a_step_of_every_life_change_nothing_in_the_end(
    state, start_engine, monkeypatch, wait_until, point, hit
):
    often = Limits(restart_backoff_s=0.005, restart_backoff_max_s=0.02, restarts_max=1_000)
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit={hit}")
        engine = start_engine(state, durability="power", limits=often)
        run_through(state)
    assert engine.restarts > 3, f"{point} was seldom reached"
    before = engine.restarts
    os.kill(engine.pid, 9)  # followed by one that can stop
    wait_until(lambda: engine.restarts > before, 20, "a restart")


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory, limits) -> Path:
    """A folder in which that work was done, in an engine's second life."""
    state = tmp_path_factory.mktemp("worked") / "state"
    Engine(state, durability="process", limits=limits).start().stop()
    with Engine(state, durability="process", limits=limits):
        run_through(state)
    return state


@pytest.mark.parametrize("point", STARTING)
def test_a_kill_in_mid_recovery_leaves_a_folder_that_recovers(state, start_engine, worked_in, monkeypatch, point):
    shutil.copytree(worked_in, state, ignore=shutil.ignore_patterns("*.sock"))
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill")
        for _ in range(2):
            with pytest.raises(EngineStartFailed, match="-9"):
                start_engine(state)
    start_engine(state)
    with connect(state) as client:
        assert client.reader.snapshot().revision == 54
        assert client.update(Task.ref("t"), title="after").version == 14


@pytest.mark.parametrize("point", ["commit.write", "commit.written"])
def test_a_failed_write_ends_the_process_without_an_ack(state, start_engine, monkeypatch, point):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:raise:hit=10")
        engine = start_engine(state)
    run_through(state)
    assert engine.restarts == 1


def test_a_full_disk_refuses_writes_with_the_reason_and_writing_resumes_by_itself(state, start_engine, monkeypatch):
    monkeypatch.setenv(VARIABLE, "journal.prepare:full:hit=2")
    engine = start_engine(state)
    pid = engine.pid
    with connect(state) as client:
        task = client.create(Task(title="x", id="t", max_retries=0))
        refused = 0
        for number in range(1, 400):
            replies = client.submit_many([Update(Task.ref("t"), {"description": f"{number}" + "y" * 8_000})])
            for reply in replies:
                if reply.error is not None:
                    assert isinstance(reply.error, EngineUnavailable)
                    assert "free space" in str(reply.error)
                    refused += 1
        assert refused >= 1, "the disk never was full"
        assert client.get(Task, "t").version == 1 + 399 - refused
        assert client.update(Task.ref("t"), title="after").title == "after"
    assert engine.pid == pid
    assert task.version == 1
