"""Every system that is put under load does what it is asked, and what it holds in the end is compared with what its
agents were told. One step that nobody knows of is noticed, whoever took it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from solewriter import Task
from solewriter.bench.kit.measure import Interval
from solewriter.bench.kit.optional import NotHere
from solewriter.bench.kit.workload import REPLY_BYTES, REQUEST_BYTES, key_of
from solewriter.bench.load.agent import Orders
from solewriter.bench.load.asked import options, planned
from solewriter.bench.load.crew import crew
from solewriter.bench.load.evidence import Evidence
from solewriter.bench.load.peers import diy_peer, sqlite_writers
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.peers.peer import Entry, Peer, SelfDriven, Setting
from solewriter.bench.load.plan import contests
from solewriter.bench.load.requests import Connection, Fields, Forgetful, Step
from solewriter.bench.load.rows import Case
from solewriter.bench.load.run import Standing, Timing, contest, measured, places
from solewriter.bench.load.work import WORKLOADS, Share, status_at
from solewriter.bench.steps import steps

pytestmark = pytest.mark.heavy

EVERYWHERE = tuple(os.sched_getaffinity(0))
WHERE = "import os; print(*os.sched_getaffinity(0))"
TASKS = 120
WEAKEST = {"memory": 0, "process": 1, "power": 2}
SYSTEMS = [
    (name, level)
    for name, entry in CATALOG.items()
    if not entry.floor and name != "redis-benchmark"
    for level in entry.how
]
BRIEF = Timing(runs=1, warmup_s=0.02, seconds=0.15)


def weakest(systems: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """One of each: the promise that costs least."""
    found: dict[str, Any] = {}
    for name, level in systems:
        if name not in found or WEAKEST[level] < WEAKEST[found[name]]:
            found[name] = level
    return list(found.items())


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Callable[..., Standing]]:
    """`filled(name, durability, workload)`: a system with TASKS tasks; skipped where it is not here."""
    endings: list[Any] = []

    def start(name: str, durability: Any, workload: str) -> Standing:
        try:
            ending = CATALOG[name].start(Setting(tmp_path / "system", durability, 2, 64))
            peer = ending.__enter__()
        except NotHere as why:
            pytest.skip(f"not here: {why}")
        endings.append(ending)
        peer.load(WORKLOADS[workload].population(TASKS))
        return Standing(peer, Evidence(WORKLOADS[workload], TASKS))

    yield start
    for ending in endings:
        ending.__exit__(None, None, None)


def connected(peer: Peer, number: int = 0) -> Connection:
    connect, arguments = peer.link(number)
    return connect(*arguments)


def case(name: str, durability: Any, workload: str, loop: Any) -> Case:
    return Case(
        section="test", peer=name, durability=durability, workload=workload, entities=TASKS, agents=2, loop=loop,
        window=1 if loop == "one by one" else 6,
    )  # fmt: skip


def loops_of(workload: str) -> tuple[Any, ...]:
    return ("one by one", "pipelined") if WORKLOADS[workload].pipelined else ("one by one",)


def run_all_loops(standing: Standing, name: str, durability: Any, workload: str) -> None:
    for loop in loops_of(workload):
        measured(case(name, durability, workload, loop), standing, BRIEF, Path(tempfile.gettempdir()))
        assert list(standing.evidence.faults(standing.peer.stored())) == []
    assert workload == "read-mostly" or done(standing) > 0  # one by one asks once at least, however busy the machine is


def done(standing: Standing) -> int:
    """Steps that agents were told of: each made a version, or an entity."""
    created = sum(share.created for share in standing.evidence.shares(2))
    return sum(standing.evidence.versions) - TASKS + created


@pytest.mark.parametrize(("name", "durability"), weakest(SYSTEMS))
def test_a_system_holds_what_its_agents_were_told_and_nothing_else(
    name: str, durability: Any, filled: Callable[..., Standing]
) -> None:
    standing = filled(name, durability, "transaction-4")
    run_all_loops(standing, name, durability, "transaction-4")
    connection = connected(standing.peer)
    assert list(connection.one((Step("update", key_of(0), None, {"budget_limit": 0.5}),))) == [
        standing.evidence.versions[0] + 1
    ]
    connection.close()
    (fault,) = standing.evidence.faults(standing.peer.stored())
    assert fault.startswith(f"{key_of(0)} has version {standing.evidence.versions[0] + 1}, and its agents made")


@pytest.mark.parametrize(("name", "durability"), weakest(SYSTEMS))
def test_a_system_compares_versions(name: str, durability: Any, filled: Callable[..., Standing]) -> None:
    standing = filled(name, durability, "update-one")
    connection = connected(standing.peer)
    good, bad = (Step("update", key_of(n), expect, {"budget_limit": 2.0}) for n, expect in ((0, 1), (1, 7)))
    for request in ((bad,), (good, bad)):
        with pytest.raises(Exception, match=r"version|[Rr]efus"):
            connection.one(request)
        connection.close()
        connection = connected(standing.peer)
    connection.close()
    assert list(standing.evidence.faults(standing.peer.stored())) == [], "all steps of a request or none"


@pytest.mark.parametrize("workload", [name for name in WORKLOADS if name != "transaction-4"])
def test_every_workload_adds_up(workload: str, filled: Callable[..., Standing]) -> None:
    for_each = filled(OURS, "memory", workload)
    run_all_loops(for_each, OURS, "memory", workload)


def test_an_agent_reads_what_there_is_also_where_shares_differ(tmp_path: Path) -> None:
    cases = [
        msgspec.structs.replace(case("SQLite", "process", "read-mostly", loop), entities=11, agents=3, window=1)
        for loop in ("one by one", "read")
    ]
    for row in contest(cases, tmp_path, BRIEF, 64, lambda what: None):
        assert row.note == ""
        assert row.verified is True


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_can_be_due_at_a_rate(workload: str, tmp_path: Path) -> None:
    asked = ("--workloads", workload, "--peers", "SQLite", "--durability", "process", "--rates", "200", "--sizes", "60")
    parser = options()
    ((one,),) = contests(planned(parser, parser.parse_args(asked)))
    (row,) = contest([one], tmp_path, BRIEF, 64, print)
    assert row.note == ""
    assert row.verified is True
    assert row.histogram is not None
    assert abs(row.histogram.count - 200 * BRIEF.seconds) <= 1


@pytest.mark.long
@pytest.mark.parametrize("workload", list(WORKLOADS))
@pytest.mark.parametrize(("name", "durability"), SYSTEMS)
def test_every_workload_adds_up_everywhere(
    name: str, durability: Any, workload: str, filled: Callable[..., Standing]
) -> None:
    run_all_loops(filled(name, durability, workload), name, durability, workload)


def test_redis_benchmark_does_what_it_says_that_it_did(filled: Callable[..., Standing]) -> None:
    peer = filled("redis-benchmark", "process", "update-one").peer
    assert isinstance(peer, SelfDriven)
    for window in (1, 32):
        driven = peer.drive(2, window, 0.1, EVERYWHERE)
        assert driven.per_s > 0
        assert driven.faults == []


def test_a_redis_benchmark_runs_where_its_row_says(
    filled: Callable[..., Standing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, real = filled("redis-benchmark", "process", "update-one"), shutil.which("redis-benchmark")
    noting, noted = tmp_path / "noting", tmp_path / "noted"
    noting.write_text(f'#!/bin/sh\n{sys.executable} -c "{WHERE}" >>{noted}\n{real} "$@"\n')
    noting.chmod(0o755)
    monkeypatch.setattr(standing.peer, "_program", str(noting))
    pinned = msgspec.structs.replace(case("redis-benchmark", "process", "update-one", "pipelined"), pinned=True)
    measured(pinned, standing, BRIEF, tmp_path)
    where = places(pinned, served=True)
    (server,) = standing.peer.pids
    assert os.sched_getaffinity(server) == {*where.server}
    agents = {frozenset(map(int, line.split())) for line in noted.read_text().splitlines()}
    assert agents == {frozenset(chain(*where.agents))}
    assert os.sched_getaffinity(0) == {*EVERYWHERE}


def test_what_a_server_started_before_is_pinned_with_it(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    """Else our checkpoints would be made on processors that no rival's server has."""
    tasks = 1_200  # of 16 KB: enough for a first checkpoint
    with CATALOG[OURS].start(Setting(tmp_path / "system", "process", 2, 64)) as peer:
        peer.load(WORKLOADS["large"].population(tasks))
        (server,) = peer.pids
        wait_until(psutil.Process(server).children, 20, "the process that makes checkpoints, which lives on")
        pinned = msgspec.structs.replace(case(OURS, "process", "large", "pipelined"), entities=tasks, pinned=True)
        measured(pinned, Standing(peer, Evidence(WORKLOADS["large"], tasks)), BRIEF, tmp_path)
        (maker,) = psutil.Process(server).children(recursive=True)
        assert {*maker.cpu_affinity()} == {*places(pinned, served=True).server}


def test_a_redis_benchmark_that_tells_no_latency_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was before 6.2: no names of columns, and the requests a second alone."""
    pytest.importorskip("redis")
    real = shutil.which("redis-benchmark")
    if real is None:
        pytest.skip("no redis-benchmark on PATH")
    old = tmp_path / "bin" / "redis-benchmark"
    old.parent.mkdir()
    old.write_text(f'#!/bin/sh\n{real} "$@" | sed 1d | cut -d, -f1,2\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=":")
    (row,) = contest([case("redis-benchmark", "process", "update-one", "pipelined")], tmp_path, BRIEF, 64, print)
    assert row.note == f"not here: {old} is too old: it tells no latency, which 6.2 does"
    assert row.verified is None


def test_who_fills_an_lmdb_and_looks_through_it_writes_into_no_map_of_a_file(tmp_path: Path) -> None:
    """On a full disk, what writes into one ends by SIGBUS, and with it all that was measured."""
    pytest.importorskip("lmdb")
    looked: list[int] = []

    def looking(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            looked.append(maps_to_write(tmp_path))
            yield item

    with CATALOG["LMDB"].start(Setting(tmp_path / "system", "process", 2, 64)) as peer:
        peer.load(looking(WORKLOADS["update-one"].population(3)))
        assert len(list(looking(peer.stored()))) == 3
    assert looked == [0] * 6


def maps_to_write(folder: Path) -> int:
    """How many files below it this process may change by its memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(folder) in line and "w" in line.split()[1] for line in lines)


def test_ray_leaves_signals_and_processes_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    told_to_end, before = signal.getsignal(signal.SIGTERM), {*psutil.Process().children(recursive=True)}
    with CATALOG["Ray actor"].start(Setting(tmp_path / "system", "memory", 1, 64)) as peer:
        peer.load(WORKLOADS["update-one"].population(3))
        assert signal.getsignal(signal.SIGTERM) is told_to_end, (
            "else what was started stays, and the exit code is wrong"
        )
    _, alive = psutil.wait_procs({*psutil.Process().children(recursive=True)} - before, 5)
    assert alive == []


def test_reads_return_what_is_stored(filled: Callable[..., Standing]) -> None:
    connection = connected(filled(OURS, "memory", "update-one").peer)
    assert isinstance(connection, Forgetful)
    for read, kept in ((connection.read, True), (connection.renewed(), True), (connection.renewed_anew(), False)):
        found = read(key_of(3))
        assert isinstance(found, Task)
        assert (found.id, found.version) == (key_of(3), 1)
        assert (read(key_of(3)) is found) is kept
    connection.close()


def test_floors_echo(tmp_path: Path) -> None:
    cases = [
        case(name, level, "update-one", loop)
        for name, entry in CATALOG.items()
        if entry.floor
        for level in entry.how
        for loop in ("one by one", "pipelined")
    ]
    rows = contest(cases, tmp_path, BRIEF, 64, lambda what: None)
    assert len(rows) == 6
    for row in rows:
        assert row.per_s is not None
        assert row.verified is None
    assert any(row.per_s and row.per_s.max > 0 for row in rows)


def test_a_floor_moves_about_as_many_bytes_as_an_update_of_ours_and_its_reply(tmp_path: Path) -> None:
    with steps(tmp_path / "state", "memory", TASKS) as engine:
        frame = engine.frame(1)
        engine.turn(frame)
        assert len(frame) + 4 == pytest.approx(REQUEST_BYTES, rel=0.1), "a frame begins with its length"
        assert len(engine.sent) == pytest.approx(REPLY_BYTES, rel=0.1)


class Unreachable(sqlite_writers.SqlitePeer):
    """Is there, and no agent can connect to it."""

    def link(self, number: int) -> Any:
        return sqlite_writers.SqliteConnection, (Path("no folder") / "file", "NORMAL")


@contextmanager
def unreachable(setting: Setting) -> Iterator[Peer]:
    setting.folder.mkdir()
    yield Unreachable(setting.folder / "file", "NORMAL")


def test_a_system_that_fails_says_so_in_its_rows_and_does_not_disturb_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "broken", Entry("broken", {"process": ""}, unreachable))
    cases = [case(name, "process", "update-one", "one by one") for name in ("broken", "SQLite")]
    broken, other = contest(cases, tmp_path, BRIEF, 64, lambda what: None)
    assert (broken.per_s, broken.verified) == (None, False)
    assert broken.note == "failed: OperationalError: unable to open database file"
    assert other.verified is True


def gone() -> int:
    """The id of a process that ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


class Failing(sqlite_writers.SqlitePeer):
    """Fails at one moment of its life."""

    def __init__(self, path: Path, at: str) -> None:
        super().__init__(path, "NORMAL")
        self._at = at
        if at == "asked":
            self.pids = [gone()]

    def load(self, tasks: Iterable[Fields]) -> None:
        if self._at == "filled":
            raise ValueError("no room")
        super().load(tasks)

    def stored(self) -> Iterator[Any]:
        if self._at == "looked through":
            raise ConnectionError("nobody answers")
        return super().stored()


@pytest.mark.parametrize(
    ("at", "note"),
    [
        ("started", "failed: OSError: it did not start"),
        ("filled", "failed: ValueError: no room"),
        ("asked", "failed: FileNotFoundError: "),
        ("looked through", "failed: ConnectionError: nobody answers"),
    ],
)
def test_whatever_a_system_dies_of_the_others_are_measured(
    at: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def failing(setting: Setting) -> Iterator[Peer]:
        if at == "started":
            raise OSError("it did not start")
        setting.folder.mkdir()
        yield Failing(setting.folder / "file", at)

    monkeypatch.setitem(CATALOG, "failing", Entry("failing", {"process": ""}, failing))
    cases = [case(name, "process", "update-one", "one by one") for name in ("failing", "SQLite")]
    found, other = contest(cases, tmp_path, BRIEF, 64, lambda what: None)
    assert (found.per_s, found.verified) == (None, False)
    assert found.note.startswith(note)
    assert other.verified is True


def test_a_do_it_yourself_ends_though_its_writer_and_an_agent_in_the_middle_of_a_write_were_killed(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """The agent holds the lock of the one queue for ever, and so do all that follow by themselves."""
    tasks, window = 4_000, 2_000  # more than a pipe holds
    orders = Orders("pipelined", "update-one", Share(0, 1, array("Q", [1] * tasks), 0, tasks), window, EVERYWHERE[:1])
    (tmp_path / "diy").mkdir()
    peer = diy_peer.DiyPeer(Setting(tmp_path / "diy", "process", 1, 64))
    peer.load(WORKLOADS["update-one"].population(tasks))
    (writer,) = peer.pids
    with crew([orders], [peer.link(0)]) as group:
        os.kill(writer, signal.SIGKILL)
        group.go(Interval.soon(0.0, 60.0))
        wait_until(lambda: unread(peer) > 60_000, 20, "a pipe that is full")
    ending = threading.Thread(target=peer.end, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()


def unread(peer: diy_peer.DiyPeer) -> int:
    found = array("i", [0])
    fcntl.ioctl(peer._queue._reader.fileno(), termios.FIONREAD, found)
    return found[0]


# --- the evidence ----------------------------------------------------------------------------------------------------


def stored(evidence: Evidence) -> dict[str, Any]:
    return {
        key_of(number): (key_of(number), version, {"budget_limit": version})
        for number, version in enumerate(evidence.versions)
    }


ONE, TWO = "task-000001", "task-000002"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({ONE: None}, f"{ONE} is lost"),
        ({ONE: (ONE, 3, {"budget_limit": 3})}, f"{ONE} has version 3, and its agents made 2"),
        ({ONE: (ONE, 2, {"budget_limit": 1})}, f"{ONE} has version 2, but the fields of another"),
        ({"new": ("new", 1, {"budget_limit": 1})}, "new is stored, and nobody made it"),
        ({"twice": (TWO, 1, {"budget_limit": 1})}, f"{TWO} is stored, and nobody made it, or it is stored twice"),
    ],
)
def test_what_was_lost_doubled_or_mixed_up_is_found(change: dict[str, Any], fault: str | None) -> None:
    evidence = Evidence(WORKLOADS["update-one"], 4)
    evidence.note(Share(1, 2, array("Q"), 0, 4), 1, array("Q", [2, 1]))
    found = list(evidence.faults(row for row in {**stored(evidence), **change}.values() if row is not None))
    assert [one[: len(fault or "")] for one in found] == ([fault] if fault else [])


def test_a_created_entity_that_is_lost_is_found() -> None:
    evidence = Evidence(WORKLOADS["create"], 1)
    (share,) = evidence.shares(1)
    evidence.note(share, 2, share.versions)
    first = [(key_of(0), 1, {"budget_limit": 1.0}), ("new-00-000000000", 1, {"budget_limit": 1.0})]
    assert list(evidence.faults(first)) == ["new-00-000000001 is lost"]
    assert [share.created for share in evidence.shares(2)] == [2, 0]


def test_shares_are_disjoint_and_leave_nobody_out() -> None:
    evidence = Evidence(WORKLOADS["update-one"], 11)
    keys = [key for share in evidence.shares(3) for key in WORKLOADS["update-one"].share(share).keys]  # type: ignore[attr-defined]
    assert sorted(keys) == [key_of(number) for number in range(11)]


def test_the_cycle_of_a_task_is_one_that_its_lifecycle_allows() -> None:
    assert Task.lifecycle is not None
    for version in range(1, 12):
        assert status_at(version + 1) in Task.lifecycle.allowed(status_at(version))
