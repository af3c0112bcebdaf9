"""The benchmarks run, say what they measured in the shape their readers expect, lose nothing. No figure is judged."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.measure import Interval, Latency, Meter, latency
from solewriter.bench.kit.table import table
from solewriter.bench.kit.workload import Tally
from solewriter.bench.reading.passes import Contestant, Figure, agreeing, interleaved
from solewriter.bench.reading.standing import rows_of

pytestmark = pytest.mark.heavy  # whole programs, minutes of them together

PERCENTILES = {"p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"}
SHORT = ("--quick", "--seconds", "0.1", "--tasks", "1200", "--agents", "1,2")


# --- throughput ------------------------------------------------------------------------------------------------------


def throughput(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "solewriter.bench.throughput", "--folder", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    ended = throughput(folder, *SHORT, "--json", "--durability", "process,memory")
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [], "a run leaves nothing behind"
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_row_got_something_done_and_lost_nothing(results: dict[str, Any]) -> None:
    assert results["verified"] is True
    for row in results["updates"]:
        assert row["acked"] > 0, row
        assert row["verified"] is True, row
        assert set(row["latency"]) == PERCENTILES


def test_the_rows_are_the_combinations_that_were_asked_for(results: dict[str, Any]) -> None:
    rows = [(row["durability"], row["mode"], row["agents"], row["placement"]) for row in results["updates"]]
    assert rows == [
        (durability, mode, agents, "pinned")
        for durability in ("process", "memory")
        for mode, agents in (("one by one", 1), ("pipelined", 1), ("pipelined", 2))
    ]


def test_reads_are_measured_without_and_beside_a_writer(results: dict[str, Any]) -> None:
    kinds = ["pin and close", "get, warm", "get, cold", "get, raw", "pin, get newest"]
    assert [(row["read"], row["writer"]) for row in results["reads"]] == [
        (kind, writer) for writer in (False, True) for kind in kinds
    ]
    assert all(row["reads_per_s"] > 0 for row in results["reads"])
    assert results["writing_while_reading"]["verified"] is True


def test_the_figures_come_with_what_they_depend_on(results: dict[str, Any]) -> None:
    assert {"cpu", "cpus", "kernel", "python", "pydantic", "uvloop", "msgspec", "journal_on", "date"} <= set(
        results["machine"]
    )
    assert 300 < results["workload"]["payload_bytes_mean"] < 400
    assert set(results["floor"]["latency"]) == PERCENTILES
    assert set(results["floor"]["one_by_one_to_echo_p50"]) == {"process", "memory"}
    assert results["placement"]["engine_cpus"]


def test_a_slice_smaller_than_the_window_is_refused(tmp_path: Path) -> None:
    ended = throughput(tmp_path, *SHORT, "--tasks", "100")
    assert ended.returncode == 2
    assert "window" in ended.stderr


@pytest.mark.parametrize(
    "after",
    [
        Tally(revision=9, versions=15, whole=True),
        Tally(revision=10, versions=14, whole=True),
        Tally(revision=11, versions=16, whole=True),
        Tally(revision=10, versions=15, whole=False),
    ],
)
def test_a_lost_doubled_or_mixed_up_update_is_noticed(after: Tally) -> None:
    before = Tally(revision=5, versions=10, whole=True)
    assert Tally(revision=10, versions=15, whole=True).grew_by(before, 5)
    assert not after.grew_by(before, 5)


# --- snapshot --------------------------------------------------------------------------------------------------------

SMALL = ("--quick", "--tasks", "600", "--sizes", "200,1000", "--seconds", "0.05")
EVERYWHERE = {
    "get, raw": {"solewriter", "LMDB", "SQLite", "Redis"},
    "get, typed, cold": {"solewriter", "LMDB", "SQLite", "Redis", "Manager().dict()"},
    "get, typed, warm": {"solewriter", "LMDB"},
    "pin + unpin": {"solewriter", "LMDB"},
    "count, 2 conditions, few meet them": {"solewriter", "SQLite"},
    "count, 2 conditions, many meet them": {"solewriter", "SQLite"},
    "scan, 2 conditions, few, cold": {"solewriter", "SQLite"},
    "scan, 2 conditions, few, warm": {"solewriter", "SQLite"},
    "watch, replay": {"solewriter"},
    "attach": {"solewriter", "LMDB", "SQLite"},
    "submit until visible": {"solewriter"},
    "submit until reply": {"solewriter"},
    "engine CPU per update": {"solewriter"},
    "shared memory per entity": {"solewriter", "LMDB", "SQLite", "Redis"},
    "shared memory, updated at random": {"solewriter"},
}
MARKS = 8


def snapshot_command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "solewriter.bench.snapshot", *SMALL, "--folder", str(folder), *options]


def standing(folder: Path, **surroundings: str) -> dict[str, Any]:
    ended = subprocess.run(
        snapshot_command(folder, "--json"),
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "error", **surroundings},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [], "a run leaves nothing behind"
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def who_was_measured(found: dict[str, Any]) -> dict[str, set[str]]:
    rows: dict[str, set[str]] = {}
    for row in found["rows"]:
        rows.setdefault(row["measure"], set()).add(row["who"])
    return rows


def rivals_here() -> set[str]:
    here = {"LMDB"} if importlib.util.find_spec("lmdb") else set()
    return here | {"Redis"} if importlib.util.find_spec("redis") and shutil.which("redis-server") else here


def test_every_contestant_has_its_rows_and_returns_what_we_return(tmp_path: Path) -> None:
    found = standing(tmp_path)
    assert who_was_measured(found) == EVERYWHERE
    for row in found["rows"]:
        if row["who"] in {"LMDB", "Redis"} - rivals_here():
            assert (row["median"], row["note"][:8]) == (None, "not here"), row
        else:
            assert row["median"] > 0, row
        assert row["agrees"] is not False, row
        assert row["lost"] == ((row["ours_to_rival"] or 0) > 1), row
    assert found["agree"] is True
    assert len(found["marks"]) == MARKS
    assert all(mark["measured"] > 0 for mark in found["marks"] if mark["reached"] is not None)
    assert {"cpu", "python", "sqlite", "lmdb", "redis", "redis-server", "memory_on"} <= set(found["machine"])


@pytest.fixture
def nothing_installed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Surroundings in which neither module can be imported, and no server is on PATH."""
    modules, programs = tmp_path / "modules", tmp_path / "programs"
    for folder in (modules, programs):
        folder.mkdir()
    for name in ("lmdb", "redis"):
        (modules / f"{name}.py").write_text("raise ImportError('there is none')")
    return {"PYTHONPATH": str(modules), "PATH": str(programs)}


@pytest.mark.heavy
def test_a_rival_that_is_not_installed_says_so_in_its_rows(tmp_path: Path, nothing_installed: dict[str, str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    found = standing(folder, **nothing_installed)
    assert who_was_measured(found) == EVERYWHERE
    for row in found["rows"]:
        absent = row["who"] in ("LMDB", "Redis")
        assert (row["median"] is None) == row["note"].startswith("not here") == absent, row
    assert [mark["reached"] for mark in found["marks"] if "LMDB" in mark["mark"]] == [None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.heavy
def test_a_run_that_is_ended_takes_everything_with_it(
    tmp_path: Path, number: signal.Signals, wait_until: Callable[..., Any]
) -> None:
    last = "redis/redis.sock" if "Redis" in rivals_here() else "sqlite"
    with subprocess.Popen(snapshot_command(tmp_path), stdout=subprocess.DEVNULL) as running:
        wait_until(lambda: list(tmp_path.glob(f"*/rivals-task/{last}")), 60, "rivals that are being filled")
        running.send_signal(number)
    wait_until(lambda: not list(tmp_path.iterdir()), 20, "a folder that is empty again")
    wait_until(lambda: not processes_of(tmp_path), 20, "no process that was told of it")


def processes_of(folder: Path) -> list[int]:
    """Those whose command says this folder: a server's, once it has named itself, no environment tells of any more."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in command.read_bytes():
                found.append(int(command.parent.name))
        except OSError:
            pass  # it ended meanwhile
    return found


def test_a_rival_that_returns_something_else_is_noticed() -> None:
    contestants = [
        Contestant("get", "solewriter", "", lambda ids: ids[-1]),
        Contestant("get", "right", "", lambda ids: ids[-1]),
        Contestant("get", "wrong", "", lambda ids: ids[-1].upper()),
        Contestant("get", "absent", "", None),
    ]
    assert agreeing(contestants, ["A", "b"]) == [None, True, False, None]


def test_rounds_give_every_contestant_every_piece_of_work_and_each_its_turn_to_begin() -> None:
    met: list[tuple[str, int]] = []
    contestants = [
        Contestant("get", name, "", lambda work, name=name: met.append((name, work[0]))) for name in ("a", "b")
    ]
    assert [figure is None for figure in interleaved([*contestants, Contestant("get", "c", "", None)], [[1], [2]])] == [
        False,
        False,
        True,
    ]
    assert met == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]


def test_what_a_rival_does_by_itself_is_compared_by_processor_time_and_what_a_server_does_by_the_clock() -> None:
    contestants = [
        Contestant("get", "solewriter", "", len),
        Contestant("get", "alone", "", len),
        Contestant("get", "served", "", len, served=True),
        Contestant("get", "absent", "", None, "no module"),
    ]
    figures = [Figure(4.0, 3.0, 5.0, 2.0), Figure(4.0, 3.0, 5.0, 1.0), Figure(8.0, 7.0, 9.0, 1.0), None]
    rows = rows_of("1 Task", contestants, figures, [None] * 4)
    assert [(row.who, row.ours_to_rival, row.lost) for row in rows] == [
        ("solewriter", None, False),
        ("alone", 2.0, True),
        ("served", 0.5, False),
        ("absent", None, False),
    ]
    assert rows[-1].note == "not here: no module"


@pytest.mark.parametrize("options", [("--sizes", "1000"), ("--tasks", "10")])
def test_a_plan_that_measures_nothing_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = subprocess.run(
        snapshot_command(tmp_path, *options), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "there must be" in ended.stderr


# --- claims ----------------------------------------------------------------------------------------------------------


def claims(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "solewriter.bench.claims", "--folder", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_claims_are_measured_at_each_size_and_across_a_death(tmp_path: Path) -> None:
    ended = claims(tmp_path, "--sizes", "200,400", "--claims", "40", "--deaths", "1", "--json")
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == [], "a run leaves nothing behind"
    said = json.loads(ended.stdout)
    assert [row["tasks"] for row in said["rows"]] == [200, 400]
    for row in said["rows"]:
        for kind in ("claim", "claim_by_project", "handed_in", "cycle"):
            assert set(row[kind]) == PERCENTILES
        assert min(row["first_ms"], row["beside_ms"], row["engine_us_per_claim"]) > 0, row
    assert said["death_to_claim"]["p50_us"] > 0


@pytest.mark.parametrize("number", ["3", "100"])
def test_claims_for_which_there_are_not_enough_tasks_are_refused(tmp_path: Path, number: str) -> None:
    ended = claims(tmp_path, "--sizes", "200,400", "--claims", number)
    assert ended.returncode == 2
    assert "--claims are 4 or more" in ended.stderr


# --- the parts -------------------------------------------------------------------------------------------------------


def test_percentiles_are_latencies_that_occurred() -> None:
    assert latency([]) is None
    assert latency([7_000]) == Latency(7.0, 7.0, 7.0, 7.0, 7.0)
    assert latency(range(1_000, 1_002_000, 1_000)) == Latency(501.0, 901.0, 991.0, 1_000.0, 1_001.0)


def test_only_the_interval_is_measured_but_everything_is_counted() -> None:
    ended = Meter(Interval(0, 1))
    assert not ended.done(0)
    assert (ended.total, len(ended.latencies_ns)) == (1, 0)
    early = Meter(Interval(1 << 62, 1 << 63))
    assert early.done(0)
    assert (early.total, len(early.latencies_ns)) == (1, 0)
    lasting = Meter(Interval(0, 1 << 63))
    assert lasting.done(0)
    assert (lasting.total, len(lasting.latencies_ns)) == (1, 1)


def test_a_table_is_aligned() -> None:
    assert table(("mode", "n"), [("a", 1), ("long", 1_234.5), ("b", None)]).splitlines() == [
        "mode      n",
        "a         1",
        "long  1,234",
        "b         -",
    ]


@pytest.mark.long
def test_restarts_and_what_is_written_are_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    """Every restart counts the tasks; a lost one would end the run."""
    options = ["--sizes", "500", "--kills", "2", "--seconds", "2", "--durability", "process", "--folder", str(tmp_path)]
    command = [sys.executable, "-P", "-m", "solewriter.bench.recovery", "--json", *options]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=110).stdout)
    assert [(row["tasks"], row["beside"], row["kills"]) for row in said["restarts"]] == [
        (500, "grown", 1), (500, "quiet", 2), (500, "busy agents", 2), (500, "sustained", 2),
    ]  # fmt: skip
    assert all(0 < row["p50_ms"] <= row["max_ms"] for row in said["restarts"])
    assert [row["files"] for row in said["writing"]] == ["from an empty folder", "used again"]
    assert all(row["journal_mib"] > 0 and row["checkpoints"] > 0 for row in said["writing"])
    if device_written_bytes(tmp_path) is None:
        assert said["marks"] == {}
    else:
        assert all(row["written_mib"] >= row["journal_mib"] for row in said["writing"])
        assert set(said["marks"]) == {"write amplification, process <= 2"}
