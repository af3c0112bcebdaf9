"""Rows, the goals that are judged by them, and what people see: tables, pictures, the page."""

from __future__ import annotations

import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter.bench.kit.measure import NS_PER_S, Interval, Spread, Usage, resident_bytes_of_all
from solewriter.bench.load.agent import Report
from solewriter.bench.load.histogram import NOTHING, Histogram
from solewriter.bench.load.marks import marks_of
from solewriter.bench.load.page import filled
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plot import _lines, _pictures, draw
from solewriter.bench.load.report import printed, tables
from solewriter.bench.load.rows import Case, Results, Row, Sample, Timeline, compared, row_of
from solewriter.bench.load.run import sample_of
from solewriter.shared.config import MIB

pytestmark = pytest.mark.heavy  # it draws

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_page_is_filled_with_the_figures_of_a_run_and_filled_again_it_is_the_same() -> None:
    page, found = (ROOT / "docs" / "benchmarks.md").read_text(), everything_found()
    once = filled(page, found, ["latency-by-load"])
    assert filled(once, found, ["latency-by-load"]) == once
    assert once.count("![") == 1
    for mark in found.marks:
        assert f"| {mark.mark} |" in once
    assert once[once.index("## What is asked") :] == page[page.index("## What is asked") :]
    assert once[: once.index("<!-- figures")] == page[: page.index("<!-- figures")]
