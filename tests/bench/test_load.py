"""Whole runs of `solewriter bench`: what comes out, what is said of who is not here, and how they end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.machine import file_system
from solewriter.bench.load.asked import options, planned
from solewriter.bench.load.peers.catalog import OURS
from solewriter.bench.load.program import run
from solewriter.bench.load.report import IN_MEMORY, NO_DISK, printed
from solewriter.bench.load.rows import Case, Results, Row

pytestmark = pytest.mark.heavy  # whole programs, minutes of them together

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--sizes", "600", "--runs", "2", "--seconds", "0.2")


def load(folder: Path, *arguments: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "solewriter.bench.load", "--folder", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONWARNINGS": "error", **surroundings},
        check=False,
    )


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("load")
    peers = "solewriter,SQLite,Manager dict,pipe echo"
    asked = ("--peers", peers, "--durability", "process,memory")
    ended = load(folder, "--workloads", "update-one", *asked, "--json", *SMALL)
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [], "a run leaves nothing behind"
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_row_got_something_done_and_lost_nothing(results: dict[str, Any]) -> None:
    asked = [(row["case"]["peer"], row["case"]["durability"], row["case"]["loop"]) for row in results["rows"]]
    assert asked == [
        (peer, durability, loop)
        for peer, durability in (
            ("solewriter", "process"), ("solewriter", "memory"), ("SQLite", "process"), ("Manager dict", "memory"),
            ("pipe echo", "memory"),
        )
        for loop in ("one by one", "pipelined")
    ]  # fmt: skip
    for row in results["rows"]:
        assert row["per_s"]["max"] > 0, row
        assert row["verified"] is (None if row["floor"] else True), row
        assert row["latency"]["p50_us"] <= row["latency"]["p99_us"] <= row["latency"]["max_us"]
        assert row["p50_us"]["min"] <= row["p50_us"]["median"] <= row["p50_us"]["max"]
        assert (row["server_cpu_us"] is None) == (row["case"]["peer"] == "SQLite"), "who serves is said apart"
        assert row["client_cpu_us"]["min"] > 0
    assert results["verified"] is True


def test_what_reaches_the_disk_is_told_for_each_request(tmp_path: Path, results: dict[str, Any]) -> None:
    told = [row["written_bytes"] is not None for row in results["rows"]]
    assert told == [device_written_bytes(tmp_path) is not None] * len(told)
    for row in results["rows"]:
        if row["written_bytes"] and (row["case"]["peer"], row["case"]["durability"]) == (OURS, "process"):
            assert row["written_bytes"]["min"] > 64, "an update is in the journal"


def test_rows_that_we_lose_are_said_to_be_lost(results: dict[str, Any]) -> None:
    ours = {
        (row["case"]["durability"], row["case"]["loop"]): row["per_s"]["median"]
        for row in results["rows"]
        if row["case"]["peer"] == OURS
    }
    rivals = [row for row in results["rows"] if row["case"]["peer"] in ("SQLite", "Manager dict")]
    assert len(rivals) == 4
    for row in rivals:
        ratio = ours[row["case"]["durability"], row["case"]["loop"]] / row["per_s"]["median"]
        assert row["ours_to_it"] == pytest.approx(ratio, abs=0.001)
        assert row["lost"] == (ratio < 1)


def test_the_json_has_the_fields_that_the_page_explains(results: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    table = page[page.index("## The JSON") :]
    explained = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert set(results) | set(results["rows"][0]) | set(results["rows"][0]["case"]) == explained
    for struct in (Results, Row, Case):
        assert set(get_type_hints(struct)) <= explained


def test_the_figures_come_with_what_they_depend_on(results: dict[str, Any]) -> None:
    assert {"cpu", "cpus", "kernel", "python", "pydantic", "sqlite", "redis-server", "lmdb", "journal_on"} <= set(
        results["machine"]
    )
    assert results["plan"]["runs"] == 2
    assert results["model_validate_us"]["median"] > 0
    assert 64 < results["entry_bytes"] < 1_024


# --- who is not here -------------------------------------------------------------------------------------------------


def test_a_rival_that_is_not_here_says_so_in_its_rows(tmp_path: Path) -> None:
    modules, programs, folder = tmp_path / "modules", tmp_path / "programs", tmp_path / "run"
    for one in (modules, programs, folder):
        one.mkdir()
    for name in ("lmdb", "redis", "ray"):
        (modules / f"{name}.py").write_text("raise ImportError('there is none')")
    absent = ["Redis", "redis-benchmark", "LMDB", "Ray actor"]
    ended = load(
        folder, "--workloads", "update-one", "--peers", ",".join(["pipe echo", *absent]), "--loops", "pipelined",
        "--durability", "process,memory", "--json", *SMALL, PYTHONPATH=str(modules), PATH=str(programs),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)["rows"]
    assert [row["case"]["peer"] for row in rows] == ["pipe echo", *absent]
    for row in rows:
        assert (row["per_s"] is None) == row["note"].startswith("not here: ") == (row["case"]["peer"] in absent), row
    assert "not here: there is none" in printed(msgspec.convert(json.loads(ended.stdout), Results))


@pytest.mark.parametrize("besides", [(), ("hiredis",)])
def test_a_run_without_the_extra_says_how_to_get_it(tmp_path: Path, besides: tuple[str, ...]) -> None:
    """All of it: without hiredis, Redis's replies are parsed in Python, and it is measured below its worth."""
    modules, missing = tmp_path / "modules", (*besides, "matplotlib")
    modules.mkdir()
    for name in missing:
        (modules / f"{name}.py").write_text("raise ImportError('there is none')")
    ended = load(tmp_path, "--plot", str(tmp_path), PYTHONPATH=str(modules))
    assert ended.returncode == 2, "before anything is measured that could not be drawn"
    (said,) = re.findall(r"not installed: (.*)\. To have them: pip install 'solewriter\[bench\]'", ended.stderr)
    assert {*missing} <= {*said.split(", ")}


def test_a_folder_in_memory_is_said_to_be_one(tmp_path: Path) -> None:
    """What survives a power cut there is not what the rows say."""
    asked = ("--workloads", "create", "--peers", "SQLite", "--durability", "power", "--runs", "1", "--seconds", "0.05")
    memory = Path("/dev/shm")
    if file_system(memory) not in IN_MEMORY or file_system(tmp_path) in IN_MEMORY:
        pytest.skip("one of them in memory, one on a disk: not here")
    told, silent = load(memory, *asked), load(tmp_path, *asked)
    assert [NO_DISK in text for text in (told.stdout, told.stderr)] == [True, True]
    assert [NO_DISK in text for text in (silent.stdout, silent.stderr)] == [False, False]


def test_that_there_is_nothing_to_draw_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures, named = tmp_path / "pictures", ("--workloads", "create", "--peers", "SQLite", "--durability", "process")
    ended = load(tmp_path, *named, "--runs", "1", "--seconds", "0.05", "--plot", str(pictures))
    assert ended.returncode == 0
    assert "drew nothing" in ended.stderr
    assert list(pictures.iterdir()) == []


# --- the programme and the command -----------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_short_look_measures_everything_that_it_says(tmp_path: Path) -> None:
    ended = load(tmp_path, "--quick", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert {row["case"]["section"] for row in found["rows"]} == {"peers", "open"}
    assert found["timeline"]["engine_restarts"] == 1
    assert found["timeline"]["verified"] is True
    assert sum(found["timeline"]["acked"]) > 0
    assert 0 <= found["idle_cpu_percent"] < 100


def test_what_fails_behind_the_tables_does_not_take_them_with_it(tmp_path: Path) -> None:
    (tmp_path / "killed").write_text("no folder for an engine")
    parser = options()
    plan = planned(parser, parser.parse_args((
        "--quick", "--sections", "reads,kill", "--peers", "solewriter", "--runs", "1", "--seconds", "0.05"
    )))  # fmt: skip
    found = run(plan, tmp_path, lambda what: None)
    assert found.rows
    assert found.timeline is None
    assert found.verified is False
    assert found.note.startswith("an engine that is killed: failed: ")
    assert found.note in printed(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.heavy
def test_a_run_that_is_ended_takes_everything_with_it(
    tmp_path: Path, number: signal.Signals, wait_until: Callable[..., Any]
) -> None:
    mark = f"LOAD_OF={tmp_path}"
    command = [sys.executable, "-P", "-m", "solewriter.bench.load", "--folder", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--workloads", "update-one", "--seconds", "5"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "LOAD_OF": str(tmp_path)},
    ) as running:  # fmt: skip
        wait_until(lambda: list(tmp_path.glob("*/contest-0/*queue-echo*")), 60, "every system to be started")
        assert len(marked(mark)) > 5, "servers, and where agents are forked from"
        running.send_signal(number)
    wait_until(lambda: not list(tmp_path.iterdir()), 30, "a folder that is empty again")
    wait_until(lambda: not marked(mark), 30, "no process that it left")


WAITING = """
import os, signal, sys
from array import array
from pathlib import Path
from solewriter.bench.load.agent import Orders
from solewriter.bench.load.crew import crew
from solewriter.bench.load.peers import echo
from solewriter.bench.load.peers.peer import Setting
from solewriter.bench.load.work import Share
from solewriter.bench.kit.measure import Interval

cpus = tuple(os.sched_getaffinity(0))[:1]
orders = Orders("pipelined", "update-one", Share(0, 1, array("Q", [1] * 600), 0, 600), 64, cpus)
with echo.queue_started(Setting(Path(sys.argv[1]), "memory", 1, 0)) as peer, crew([orders], [peer.link(0)]) as group:
    group.go(Interval.soon(0.0, 60.0))
    print("going", flush=True)
    signal.pause()
"""


def test_an_agent_that_waits_for_an_answer_ends_with_who_started_it(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """Its server is gone as well, and a queue of which it has both ends never says so."""
    mark = f"LOAD_OF={tmp_path}"
    command = [sys.executable, "-P", "-c", WAITING, str(tmp_path / "echo")]
    surroundings = {**os.environ, "LOAD_OF": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=surroundings) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"going\n"
        assert len(marked(mark)) > 3
        running.kill()
    wait_until(lambda: not marked(mark), 10, "no process that it left")


def marked(mark: str) -> list[int]:
    """Processes that have this in their environment, which those that are forked keep."""
    found = []
    for surroundings in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in surroundings.read_bytes().split(b"\0"):
                found.append(int(surroundings.parent.name))
        except OSError:
            pass  # it ended meanwhile
    return found


def test_the_command_is_the_program(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("solewriter"))
    said = subprocess.run([command, "bench", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "usage: solewriter bench" in said
    assert "--quick" in said
    wrong = subprocess.run([command, "bench", "--runs", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert "is no whole number of 1 or more" in wrong.stderr


def test_the_do_it_yourself_is_about_sixty_lines() -> None:
    spec = importlib.util.find_spec("solewriter.bench.load.peers.diy")
    assert spec is not None
    assert spec.origin is not None
    code = [line for line in Path(spec.origin).read_text().splitlines() if line.strip()]
    assert len(code) <= 70
