"""The engine is killed, or a write fails, at every step of a turn: the end is the same as without."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from solewriter import (
    Create,
    Delete,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Fenced,
    Limits,
    Put,
    Task,
    Update,
    VersionConflict,
    connect,
    open_reader,
)
from solewriter.agents.verify import verify
from solewriter.shared.config import KIB
from solewriter.shared.failpoint import NAMES, VARIABLE
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal.chain import first_of, journal_files
from solewriter.shared.journal.checkpoint import checkpoint_files
from solewriter.shared.system.processes import runs

pytestmark = pytest.mark.heavy

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
SUPERVISING = ["restart.begin", "restart.launched"]
MAKING = ["checkpoint.written", "checkpoint.synced"]  # in the process that makes a checkpoint
CLAIMING = ["claim.parked", "claim.granted", "claim.lost", "timer.fired"]
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
def test_a_kill_at_any_step_of_a_turn_changes_nothing_in_the_end(
    state, start_engine, monkeypatch, lives, point, wait_until
):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit={HIT}")
        engine = start_engine(state, durability="power")
    run_through(state)
    wait_until(lambda: engine.restarts == 1, 20, f"a death at {point}")
    suspected = lives(state)[-1].suspicion is not None
    assert suspected == (point in DECIDING), "suspected is who was being decided, and nobody else"


@pytest.mark.parametrize("point", CONNECTING)
def test_a_kill_while_agents_connect_and_are_forgotten_changes_nothing_in_the_end(
    state, start_engine, monkeypatch, lives, point, wait_until
):
    few = Limits(sessions_max=2, restart_backoff_s=0.005)
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit=3")
        engine = start_engine(state, durability="power", limits=few)
    for number in range(1, 7):  # each its own session: four are forgotten
        with connect(state, name=f"agent {number}") as client:
            client.put(Task(title=f"by {number}", id="t"))
            assert client.get(Task, "t").version == number
    wait_until(lambda: engine.restarts == 1, 20, f"a death at {point}")
    assert lives(state)[-1].suspicion is None


@pytest.mark.parametrize("point", CLAIMING)
def test_a_kill_while_claims_come_and_go_changes_nothing_in_the_end(
    state, start_engine, monkeypatch, point, wait_until
):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill")
        engine = start_engine(state, durability="power", limits=WORN)
    assert share_work(state) == 4
    wait_until(lambda: engine.restarts == 1, 20, f"a death at {point}")
    assert share_work(state) == 8


OWNER = textwrap.dedent(
    """
    import sys
    from solewriter import Engine, Limits
    engine = Engine(sys.argv[1], limits=Limits(restart_backoff_s=0.005)).start()
    print(engine.pid, flush=True)
    engine.wait()
    """
)


@contextmanager
def owner_that_dies(state: Path, wait_until: Any, point: str, hit: int = 1) -> Iterator[None]:
    """Another process owns the engine; behind it nothing of that one runs any more, and it died at that point, when
    its engine was killed so often.
    """
    armed = {**os.environ, VARIABLE: f"{point}:kill:hit={hit}"}
    with subprocess.Popen([sys.executable, "-c", OWNER, str(state)], stdout=subprocess.PIPE, env=armed) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline(), "it serves"
        try:
            yield
            assert owner.wait(60) == -signal.SIGKILL, f"{point} was never reached"
        finally:
            owner.kill()
    folder = StateFolder(state)
    wait_until(lambda: not any(runs(one.pid, one.start_time) for one in folder.markers()), 20, "no engine is left")


@pytest.mark.parametrize("point", SUPERVISING)
def test_a_supervisor_killed_in_mid_restart_leaves_a_folder_for_the_next_one(state, start_engine, wait_until, point):
    with owner_that_dies(state, wait_until, point):
        with connect(state) as client:
            task = client.create(Task(title="x", id="t"))
        os.kill(StateFolder(state).whereabouts().pid, signal.SIGKILL)
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
    assert engine.restarts > 2, f"{point} was seldom reached"
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
def test_a_failed_write_ends_the_process_without_an_ack(state, start_engine, monkeypatch, point, wait_until):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:raise:hit=10")
        engine = start_engine(state)
    run_through(state)
    wait_until(lambda: engine.restarts == 1, 20, "its owner counts them, a moment behind the reply")


def test_a_full_disk_refuses_writes_with_the_reason_and_writing_resumes_by_itself(state, start_engine, monkeypatch):
    monkeypatch.setenv(VARIABLE, "journal.prepare:full:hit=2,journal.prepared:full:hit=2")
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


# --- every point that there is, at its first and its second hit ------------------------------------------------------

WORN = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, journal_file_bytes=64 * KIB,
    checkpoint_after_bytes=64 * KIB, history_bytes=128 * KIB, recent_bytes=8 * KIB, sessions_max=3,
    restart_backoff_s=0.005, restart_backoff_max_s=0.05,
)  # fmt: skip
KEYS, ROUND = 48, 40  # keys; requests of a round
WORK_S = 60  # within which a point is reached: a disk may be slow to sync, and rounds are not


class Books:
    """What was acked, as a dict: each change makes one version and one revision, so nothing is lost or there twice."""

    def __init__(self) -> None:
        self.number = self.revision = 0
        self.versions = dict.fromkeys((f"k{number}" for number in range(KEYS)), 0)
        self.alive: dict[str, str] = {}

    def work(self, state: Path) -> None:
        """One round, by a session of its own: keys come, change and go, and one request is refused."""
        self.number += 1
        number, mutations = self.number, list[Any]()
        for one in range(ROUND):
            id = f"k{(7 * number + one) % KEYS}"
            if id in self.alive and (one + number) % 3 == 0:
                del self.alive[id]
                mutations.append(Delete(Task.ref(id)))
            else:
                self.alive[id] = f"round {number}"
                mutations.append(Put(Task(title=self.alive[id], id=id, description="x" * 300)))
        with connect(state, name=f"agent {number}", limits=WORN) as client:
            for reply, mutation in zip(client.submit_many(mutations, window=8), mutations, strict=True):
                self.revision += 1
                id = mutation.entity.id if isinstance(mutation, Put) else mutation.target.id
                self.versions[id] += 1
                assert (reply.check().results[0].version, reply.revision) == (self.versions[id], self.revision)
            with pytest.raises(VersionConflict):
                client.update(Task.ref(next(iter(self.alive))), title="late", expect=10_000)

    def compare(self, state: Path) -> None:
        with open_reader(state, limits=WORN) as reader, reader.snapshot() as snap:
            assert snap.revision == self.revision
            found = {task.id: (task.version, task.title) for task in snap.entities(Task)}
        assert found == {id: (self.versions[id], title) for id, title in self.alive.items()}

    def go_on(self, state: Path, engine: Engine, wait_until: Any) -> None:
        """What follows a death, and what another one finds."""
        for _ in range(3):
            self.work(state)
        self.compare(state)
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        self.compare(state)


@pytest.fixture(scope="module")
def worn(tmp_path_factory, wait_until) -> tuple[Path, Books]:
    """A folder whose start needs a checkpoint, and the end of whose journal has more; and what is in it."""
    state, books = tmp_path_factory.mktemp("worn") / "state", Books()
    with Engine(state, durability="process", limits=WORN):
        wait_until(lambda: books.work(state) or first_of(journal_files(state)[0]) > 1, 100, "a trim")
    return state, books


class Scene:
    """A worn folder, and how engines are started on it."""

    def __init__(self, worn: tuple[Path, Books], state: Path, start_engine: Any, wait_until: Any, capfd: Any) -> None:
        shutil.copytree(worn[0], state, ignore=shutil.ignore_patterns("*.sock"))
        self.state, self.books, self._start, self.wait_until, self._capfd = (
            state, copy.deepcopy(worn[1]), start_engine, wait_until, capfd,
        )  # fmt: skip
        self._said = ""

    def start(self, failpoint: str = "", durability: str = "process") -> Engine:
        with pytest.MonkeyPatch.context() as armed:
            if failpoint:
                armed.setenv(VARIABLE, failpoint)
            return self._start(self.state, durability=durability, limits=WORN)

    def work_until(self, condition: Callable[[], bool], what: str) -> None:
        self.wait_until(lambda: condition() or self.books.work(self.state), WORK_S, what)

    def said(self) -> str:
        """By all engines so far, to whoever started them."""
        self._said += self._capfd.readouterr().err
        return self._said


def an_engine(scene: Scene, point: str, hit: int) -> Engine:
    """Dies there while it works, or in its start already."""
    durability = "power" if point == "commit.synced" else "process"  # below it only a life is synced at once
    try:
        engine = scene.start(f"{point}:kill:hit={hit}", durability)
    except EngineStartFailed as error:
        assert "status -9" in str(error)  # noqa: PT017 (where it dies is not the question)
        return scene.start()
    scene.work_until(lambda: engine.restarts == 1, f"a death at {point}")
    return engine


def share_work(state: Path) -> int:
    """A claim waits in vain, the next one is granted, held for too long and lost. The revision after all of it; nothing
    else is left.
    """
    with connect(state, name="maker", limits=WORN) as maker, connect(state, name="taker", limits=WORN) as taker:
        assert taker.claim(Task, where={"project": "shared"}, timeout_s=0.02) is None
        maker.create(Task(title="shared", id="shared", project="shared", max_retries=1))
        before = taker.reader.revision
        mine = taker.claim(Task, where={"project": "shared"}, lease_s=0.02)
        assert mine.attempts == 1
        lost = maker.reader.wait_until(Task, "shared", lambda task: task.status == "interrupted", timeout_s=60)
        assert (lost.version, lost.attempts) == (mine.version + 1, 1), "granted once and lost once"
        assert maker.reader.revision == before + 2
        with pytest.raises(Fenced):
            taker.complete(mine)
        maker.delete(lost)
        return maker.reader.revision


def an_engine_of_claimers(scene: Scene, point: str, hit: int) -> Engine:
    engine = scene.start(f"{point}:kill:hit={hit}")

    def work() -> None:
        scene.books.revision = share_work(scene.state)

    scene.wait_until(lambda: engine.restarts == 1 or work(), WORK_S, f"a death at {point}")
    return engine


def starting_engines(scene: Scene, point: str, hit: int) -> Engine:
    """Each comes there once: so many of them die."""
    for _ in range(hit):
        with pytest.raises(EngineStartFailed, match="status -9"):
            scene.start(f"{point}:kill")
    return scene.start()


def makers_of_checkpoints(scene: Scene, point: str, hit: int) -> Engine:
    """So many in a row. The engine outlives them; the next one has checkpoints again."""
    engine = scene.start(f"{point}:kill")
    scene.work_until(lambda: scene.said().count("makes checkpoints ended with status -9") >= hit, f"deaths at {point}")
    assert engine.restarts == 0
    before = {*checkpoint_files(scene.state)}
    os.kill(engine.pid, signal.SIGKILL)
    scene.work_until(lambda: bool({*checkpoint_files(scene.state)} - before), "a checkpoint")
    return engine


def an_owner(scene: Scene, point: str, hit: int) -> Engine:
    """In the restart that follows so many deaths of its engine."""
    with owner_that_dies(scene.state, scene.wait_until, point, hit):
        for number in range(hit):
            pid = StateFolder(scene.state).whereabouts().pid
            scene.books.work(scene.state)
            os.kill(pid, signal.SIGKILL)
            if number < hit - 1:
                scene.wait_until(lambda pid=pid: StateFolder(scene.state).whereabouts().pid != pid, 20, "a restart")
    return scene.start()


WHO_DIES = {
    **dict.fromkeys(SUPERVISING, an_owner),
    **dict.fromkeys(MAKING, makers_of_checkpoints),
    **dict.fromkeys(CLAIMING, an_engine_of_claimers),
    **{name: starting_engines for name in NAMES if name.startswith("recover.")},
}


@pytest.mark.heavy
@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("point", NAMES)
def test_a_kill_at_any_point_at_its_first_or_second_hit_loses_and_repeats_nothing(
    worn, state, start_engine, wait_until, capfd, point, hit
):
    scene = Scene(worn, state, start_engine, wait_until, capfd)
    engine = WHO_DIES.get(point, an_engine)(scene, point, hit)
    scene.books.go_on(state, engine, wait_until)
    engine.stop()
    verified = verify(state)
    assert (verified.revision, verified.entities) == (scene.books.revision, len(scene.books.alive))
