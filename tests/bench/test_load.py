"""The harness as a whole: what is asked of whom in which order, what is said of who is not here, and what comes out."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.machine import file_system
from solewriter.bench.kit.measure import NS_PER_S, Interval, Spread, Usage, in_turn, resident_bytes_of_all
from solewriter.bench.load.agent import Report
from solewriter.bench.load.asked import options, planned
from solewriter.bench.load.histogram import NOTHING, Histogram
from solewriter.bench.load.marks import marks_of
from solewriter.bench.load.page import filled
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plan import PIPELINED, Plan, contests, window_for
from solewriter.bench.load.plot import _lines, _pictures, draw
from solewriter.bench.load.program import main, run
from solewriter.bench.load.report import IN_MEMORY, NO_DISK, printed, tables
from solewriter.bench.load.rows import Case, Results, Row, Sample, Timeline, compared, row_of
from solewriter.bench.load.run import places, sample_of
from solewriter.shared.config import MIB

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


# --- order, plans, places --------------------------------------------------------------------------------------------


def test_all_are_asked_once_and_then_all_again_each_round_beginning_with_another() -> None:
    assert [(number, case) for number, case in in_turn("abc", 2)] == [
        (0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a"),
    ]  # fmt: skip


def plan_of(*arguments: str) -> Plan:
    parser = options()
    return planned(parser, parser.parse_args(arguments))


def test_the_programme_asks_for_everything_that_is_promised() -> None:
    groups = list(contests(plan_of()))
    cases = [case for group in groups for case in group]
    for group in groups:
        assert len({(case.section, case.workload) for case in group}) == 1, "who is compared is asked in turn"
    assert {case.workload for case in cases} == {
        "update-one", "create", "transition-cycle", "transaction-4", "hot-key", "read-mostly", "large",
    }  # fmt: skip
    assert {case.peer for case in cases if case.section == "peers"} == set(CATALOG)
    assert {case.agents for case in cases if case.section == "agents"} >= {1, 2, 64}
    assert {case.entities for case in cases if case.section == "sizes"} >= {1_000, 100_000, 1_000_000}
    assert {case.loop for case in cases} == {"one by one", "pipelined", "open", "read", "read anew"}
    assert {case.durability for case in cases if case.peer == OURS} == {"power", "process", "memory"}
    assert plan_of().runs >= 5
    for case in cases:
        assert case.durability in CATALOG[case.peer].how


def test_a_grid_is_everything_with_everything_and_rates_make_it_open() -> None:
    named = ("--workloads", "update-one,create", "--peers", "solewriter", "--durability", "process", "--agents", "1,2")
    closed = [case for group in contests(plan_of(*named, "--placement", "free,pinned")) for case in group]
    assert len(closed) == 2 * 2 * 2 * 2
    assert {case.loop for case in closed} == {"one by one", "pipelined"}
    assert {case.loop for group in contests(plan_of(*named, "--rates", "100")) for case in group} == {"open"}


def test_windows_that_come_to_the_same_are_one_case() -> None:
    named = ("--workloads", "update-one", "--peers", "solewriter", "--durability", "process", "--windows", "8,128,256")
    assert windows_of(*named) == [("one by one", 1), ("pipelined", 8), ("pipelined", 128), ("pipelined", 256)]
    assert windows_of(*named, "--agents", "64") == [("one by one", 1), ("pipelined", 8), ("pipelined", 78)]


def windows_of(*arguments: str) -> list[tuple[str, int]]:
    (cases,) = contests(plan_of(*arguments))
    return [(case.loop, case.window) for case in cases]


def test_no_task_is_asked_for_twice_at_once() -> None:
    assert window_for("update-one", 10_000, 2, 256) == 256
    assert window_for("update-one", 10_000, 64, 256) == 78
    assert window_for("transaction-4", 1_000, 2, 256) == 62
    assert window_for("hot-key", 10, 64, 256) == 256


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workloads", "nonsense"), ("--peers", "nobody"), ("--agents", "0"), ("--agents", "65"), ("--runs", "0"),
        ("--seconds", "-1"), ("--loops", "pipelined"), ("--sizes", "1", "--agents", "2"), ("--seconds", "nan"),
        ("--workloads", "create", "--peers", "pipe echo"), ("--sections", "open", "--durability", "power"),
        ("--workloads", "read-mostly", "--loops", "pipelined"), ("--sections", "kill", "--peers", "Redis"),
        ("--workloads", "update-one", "--peers", "redis-benchmark", "--rates", "100"),
        ("--workloads", "update-one", "--windows", "257"), ("--workloads", "transaction-4", "--sizes", "7"),
        ("--folder", "/nowhere"), ("--plot", "/dev/null/pictures"), ("--quick", "--agents", "8"),
        ("--quick", "--sizes", "100"), ("--sections", "agents,sizes", "--rates", "100"),
        ("--workloads", "update-one", "--sections", "open"),
        ("--workloads", "update-one", "--rates", "100", "--loops", "pipelined"),
    ],
)  # fmt: skip
def test_a_plan_that_measures_nothing_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refused:
        raise SystemExit(main(arguments))
    assert refused.value.code == 2


def test_what_is_named_is_asked_for_where_a_section_takes_it() -> None:
    assert {case.agents for (case, *_) in contests(plan_of("--quick", "--sections", "agents", "--agents", "8"))} == {8}
    few = plan_of("--sections", "sizes", "--sizes", "50")
    assert [case.entities for group in contests(few) for case in group] == [50], "two agents need no more"
    assert plan_of("--workloads", "update-one", "--sections", "kill").sections == ("kill",)


@pytest.mark.parametrize("option", ["--folder", "--plot"])
def test_a_folder_that_takes_nothing_is_refused_before_anything_is_measured(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody makes files in /proc, whatever his rights are."""
    pytest.importorskip("matplotlib")
    assert main(("--workloads", "create", "--peers", "solewriter", "--seconds", "0.05", option, "/proc")) == 2
    said = capsys.readouterr()
    assert "nothing can be put there: " in said.err
    assert "/proc" in said.err
    assert said.out == ""


def test_a_folder_in_memory_is_said_to_be_one(tmp_path: Path) -> None:
    """What survives a power cut there is not what the rows say."""
    asked = ("--workloads", "create", "--peers", "SQLite", "--durability", "power", "--runs", "1", "--seconds", "0.05")
    memory = Path("/dev/shm")
    if file_system(memory) not in IN_MEMORY or file_system(tmp_path) in IN_MEMORY:
        pytest.skip("one of them in memory, one on a disk: not here")
    told, silent = load(memory, *asked), load(tmp_path, *asked)
    assert [NO_DISK in text for text in (told.stdout, told.stderr)] == [True, True]
    assert [NO_DISK in text for text in (silent.stdout, silent.stderr)] == [False, False]


def test_who_is_named_twice_is_asked_once() -> None:
    (cases,) = contests(plan_of("--workloads", "create", "--peers", "Redis,Redis", "--durability", "process,process"))
    assert [case.loop for case in cases] == ["one by one", "pipelined"]


def test_pinned_agents_leave_the_server_alone_where_there_is_one() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    case = Case(section="", peer=OURS, durability="process", entities=1, agents=3, loop=PIPELINED, pinned=True)
    served, unserved = places(case, served=True), places(case, served=False)
    assert served.server == (cpus[0],)
    assert len(served.agents) == len(unserved.agents) == 3
    if len(cpus) > 1:
        assert all(cpus[0] not in one for one in served.agents)
        assert {one for (one,) in unserved.agents} == set(cpus[:3])


# --- rows, marks, pictures -------------------------------------------------------------------------------------------


def row(peer: str, per_s: float, **given: Any) -> Row:
    how = {name: given.pop(name) for name in ("server_cpu_us", "p50_us", "per_client_cpu_s") if name in given}
    given = {"section": "peers", "durability": "process", "entities": 10_000, "agents": 2, "loop": "pipelined", **given}
    given.setdefault("window", 256 if given["loop"] == "pipelined" else 1)
    empty = Row(
        case=Case(peer=peer, **given), how="so", promise="", validated=False, floor=CATALOG[peer].floor, batch="",
        placement="free",
    )  # fmt: skip
    latencies = Histogram.of([1_000_000, 2_000_000, 9_000_000])
    sample = Sample(per_s=per_s, histogram=latencies, **{"p50_us": 100.0, **how})
    return row_of(empty, [sample])


def everything() -> list[Row]:
    return [
        row(OURS, 130_000.0, server_cpu_us=9.0),
        row(OURS, 30_000.0, loop="one by one", p50_us=20.0),
        row(OURS, 70_000.0, durability="power"),
        row(OURS, 1_000.0, loop="one by one", durability="power", p50_us=300.0),
        row("do-it-yourself", 70_000.0),
        row("SQLite", 40_000.0, loop="one by one"),
        row("SQLite", 140_000.0),
        row("Redis", 100_000.0),
        row("Redis", 100_000.0, loop="one by one", p50_us=19.0),
        row("Redis", 40_000.0, durability="power"),
        row("pipe echo", 90_000.0, loop="one by one", durability="memory", p50_us=15.0),
        row("pipe echo", 1_500.0, loop="one by one", durability="power", p50_us=200.0),
        *[row(OURS, per_s, section="agents", agents=agents) for agents, per_s in ((2, 100.0), (64, 81.0))],
        *[
            row(OURS, per_s, section="sizes", entities=size, server_cpu_us=9.0)
            for size, per_s in ((1_000, 100.0), (1_000_000, 74.0))
        ],
        *[
            row(OURS, 1.0, section="reads", loop=loop, writers=writers, agents=1, per_client_cpu_s=per_s)
            for loop, writers, per_s in (
                ("read", 0, 100.0),
                ("read", 1, 79.0),
                ("read anew", 0, 9.0),
                ("read anew", 1, 8.0),
            )
        ],
    ]


def test_marks_are_judged_by_the_figures_and_only_where_there_are_some() -> None:
    found = {mark.mark: mark.reached for mark in marks_of(everything(), Spread(4.0, 4.0, 4.0), 0.2)}
    assert list(found.values()) == [
        True, True, False, False, True,  # pipelined
        True, False, False,  # one by one
        True, False, True, True, False, False,  # the others
    ]  # fmt: skip
    assert marks_of([], None, None) == []
    assert len(marks_of(everything(), None, None)) == len(found) - 2


def test_a_goal_is_about_one_window_and_compares_rows_of_that_one_only() -> None:
    rows = [row(peer, 10.0 * window, window=window) for window in (8, 64) for peer in (OURS, "Redis")]
    assert marks_of(rows, None, None) == []
    (mark,) = marks_of([*rows, row(OURS, 120.0), row("Redis", 100.0)], None, None)
    assert (mark.measured, mark.reached) == (1.2, True)


def test_goals_are_judged_for_each_placement_and_say_which() -> None:
    replace = msgspec.structs.replace
    pinned = [replace(one, case=replace(one.case, pinned=True), placement="server 0") for one in everything()]
    free, both = marks_of(everything(), None, None), marks_of([*everything(), *pinned], None, None)
    assert len(both) == 2 * len(free)
    assert sum(mark.mark.endswith(", server 0") for mark in both) == len(free)
    half = [one for one in pinned if one.case.section != "agents" or one.case.agents == 64]
    assert len(marks_of([*everything(), *half], None, None)) == len(both) - 1, "never one placement's to the other's"


def test_of_reads_that_were_none_nothing_is_said() -> None:
    none = {"section": "reads", "loop": "read", "agents": 1, "per_client_cpu_s": 0.0}
    (mark,) = marks_of([row(OURS, 1.0, writers=writers, **none) for writers in (0, 1)], None, None)
    assert (mark.measured, mark.reached) == (None, None)


def test_faults_make_a_row_unverified_and_are_told() -> None:
    empty = row(OURS, 1.0)
    samples = [Sample(per_s=1.0, histogram=Histogram.of([1]), faults=faults) for faults in ([], ["task-1 is lost"])]
    assert empty.verified is True
    bad = row_of(empty, samples)
    assert (bad.verified, bad.note) == (False, "task-1 is lost")
    assert bad.per_s == Spread(1.0, 1.0, 1.0)


def test_a_run_in_which_nothing_was_answered_says_nothing_of_one_request() -> None:
    """On a busy machine a short one may see no answer: all of the server's time would be that of one request."""
    interval, used = Interval(0, NS_PER_S), Usage(500_000_000, 1_000)
    answers = (0, 10_000)
    samples = [
        sample_of([Report(1, array("Q"), count, 1, NOTHING, used, 1, array("Q"))], interval, used, 1, served=True)
        for count in answers
    ]
    found = row_of(row(OURS, 1.0), samples)
    assert (found.server_cpu_us, found.client_cpu_us) == (Spread(50.0, 50.0, 50.0),) * 2
    assert (found.server_switches, found.client_switches) == (Spread(0.1, 0.1, 0.1),) * 2
    assert found.per_s == Spread(5_000.0, 0.0, 10_000.0)


STARTER = """
import subprocess, sys

child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.stdout.readline().decode(), end="", flush=True)
sys.stdin.readline()
child.communicate()
print("waited for it", flush=True)
sys.stdin.readline()
"""
WORKING = """
import sys, time

held = bytearray(b"x") * (64 << 20)
while time.process_time() < 0.3:
    pass
print("worked", flush=True)
sys.stdin.readline()
"""


def test_what_a_server_has_done_by_a_process_that_it_started_is_its_own() -> None:
    """Our checkpoints are made by one that lives on, so nobody waits for it."""
    command = [sys.executable, "-c", STARTER, WORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "worked\n"
        living = Usage.of(server.pid)
        assert living.cpu_ns > 0.29 * NS_PER_S
        assert resident_bytes_of_all(server.pid) > 64 * MIB
        server.stdin.write("\n")
        assert server.stdout.readline() == "waited for it\n"
        assert Usage.of(server.pid).cpu_ns >= living.cpu_ns, "once, whatever became of it"
        assert resident_bytes_of_all(server.pid) < 64 * MIB


def test_what_a_program_of_its_own_does_not_tell_is_not_there() -> None:
    """A zero would be a figure."""
    found = row_of(row("redis-benchmark", 1.0), [Sample(per_s=5.0, histogram=NOTHING, p50_us=2.0)])
    assert (found.per_s, found.p50_us) == (Spread(5.0, 5.0, 5.0), Spread(2.0, 2.0, 2.0))
    assert (found.per_client_cpu_s, found.client_cpu_us, found.server_cpu_us, found.latency) == (None,) * 4


def test_a_row_is_compared_with_ours_to_the_same_question_only() -> None:
    rows = compared([row(OURS, 10.0), row("Redis", 20.0), row("Redis", 20.0, agents=4), row("Redis", 5.0)], OURS)
    assert [(one.ours_to_it, one.lost) for one in rows] == [(None, False), (0.5, True), (None, False), (2.0, False)]
    nothing_done = compared([row(OURS, 0.0), row("Redis", 0.0), row("SQLite", 5.0)], OURS)
    assert [(one.ours_to_it, one.lost) for one in nothing_done] == [(None, False), (None, False), (0.0, True)]


def everything_found() -> Results:
    rows = everything() + [row(OURS, rate, section="open", loop="open", rate_per_s=rate) for rate in (100.0, 1_000.0)]
    line = Timeline(
        step_ms=20, acked=[5, 5, 0, 0, 5], killed_ms=40.0, first_ack_ms=41.5, engine_restarts=1, verified=True
    )
    return Results(
        machine={"cpu": "some", "cpus": 2, "python": "3", "date": "2000-01-01"}, plan={}, model_validate_us=None,
        entry_bytes=100, idle_cpu_percent=0.05, rows=rows, timeline=line, marks=marks_of(rows, None, 0.05),
        verified=True, elapsed_s=1.0,
    )  # fmt: skip


def test_the_text_shows_every_row_and_every_mark() -> None:
    found = everything_found()
    text = printed(found)
    assert text.count("reached\n") + text.count("MISSED\n") == len(found.marks)
    for one in found.rows:
        assert one.case.peer in text
    assert "killed by SIGKILL" in text


def test_rows_of_several_windows_are_told_apart_and_a_picture_shows_the_widest() -> None:
    rows = [
        row(OURS, 1.0 * window, section="grid", loop="open", rate_per_s=rate, window=window)
        for window in (4, 256, 64)
        for rate in (10.0, 20.0)
    ]
    assert [len(found) for found in tables(rows).values()] == [2, 2, 2]
    ((line,),) = (_lines(rows, "rate_per_s").values(),)
    assert [(one.case.rate_per_s, one.case.window) for one in line] == [(10.0, 256), (20.0, 256)]


def test_pictures_are_drawn_as_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = draw(everything_found(), tmp_path / "pictures")
    names = ("throughput-by-agents", "latency-by-load", "cost-by-size", "across-a-kill")
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    for path in written:
        assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")
    again = draw(everything_found(), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def axes_of(name: str, rows: list[Row]) -> Any:
    """What the picture of this name shows of these rows."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    _, axes = pyplot.subplots()
    _pictures(msgspec.structs.replace(everything_found(), rows=rows))[name](axes)
    pyplot.close("all")
    return axes


def test_a_picture_says_what_was_asked_and_where() -> None:
    asked = {"section": "grid", "workload": "create", "pinned": True}
    sizes = [row(OURS, 1.0, entities=size, server_cpu_us=9.0, **asked) for size in (100, 1_000)]
    agents = [row(OURS, 1.0, agents=agents, **asked) for agents in (1, 2)]
    rates = [row(OURS, 1.0, loop="open", rate_per_s=rate, **asked) for rate in (10.0, 20.0)]
    shown = {"cost-by-size": sizes, "throughput-by-agents": agents, "latency-by-load": rates}
    for name, rows in shown.items():
        assert "create, CPUs pinned" in axes_of(name, rows).get_title()


def test_no_two_lines_of_a_picture_look_alike() -> None:
    rivals = [(f"rival {number}", "process") for number in range(7)]
    rows = [
        msgspec.structs.replace(row(OURS, 1.0, agents=agents, durability=level), how=level)
        for level in ("power", "process", "memory")
        for agents in (1, 2)
    ]
    for name, level in rivals:
        rows += [
            msgspec.structs.replace(one, case=msgspec.structs.replace(one.case, peer=name), how=level)
            for one in rows[:2]
        ]
    lines = axes_of("throughput-by-agents", rows).get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 10


def test_that_there_is_nothing_to_draw_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures, named = tmp_path / "pictures", ("--workloads", "create", "--peers", "SQLite", "--durability", "process")
    ended = load(tmp_path, *named, "--runs", "1", "--seconds", "0.05", "--plot", str(pictures))
    assert ended.returncode == 0
    assert "drew nothing" in ended.stderr
    assert list(pictures.iterdir()) == []


def test_the_page_is_filled_with_the_figures_of_a_run_and_filled_again_it_is_the_same() -> None:
    page, found = (ROOT / "docs" / "benchmarks.md").read_text(), everything_found()
    once = filled(page, found, ["latency-by-load"])
    assert filled(once, found, ["latency-by-load"]) == once
    assert once.count("![") == 1
    for mark in found.marks:
        assert f"| {mark.mark} |" in once
    assert once[once.index("## What is asked") :] == page[page.index("## What is asked") :]
    assert once[: once.index("<!-- figures")] == page[: page.index("<!-- figures")]


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
    plan = plan_of(
        "--quick", "--sections", "reads,kill", "--peers", "solewriter", "--runs", "1", "--seconds", "0.05"
    )  # fmt: skip
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
