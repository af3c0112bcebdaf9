"""What is asked of whom, in which order and where, and which plans are refused."""

from __future__ import annotations

import os

import pytest

from solewriter.bench.kit.measure import in_turn
from solewriter.bench.load.asked import options, planned
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plan import PIPELINED, Plan, contests, window_for
from solewriter.bench.load.program import main
from solewriter.bench.load.rows import Case
from solewriter.bench.load.run import places


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
