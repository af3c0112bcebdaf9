"""The overload benchmark runs, loses nothing, and judges by what it measured. No figure is judged here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter import Create, Update, connect
from solewriter.bench.flood.calm import GreedyRow, LoadRow, QuietRow, Soak, Surge, jain, marks_of
from solewriter.bench.flood.pressing import Phase, due_moments
from solewriter.bench.flood.stage import WORK_US, pairs, staged
from solewriter.bench.flood.throttle import TICK_NS, Job, Probe
from solewriter.bench.kit.measure import Interval, percentile


@pytest.mark.long
def test_floods_are_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    options = ["--quick", "--json", "--seconds", "1.2", "--soak", "1", "--folder", str(tmp_path)]
    command = [sys.executable, "-P", "-m", "solewriter.bench.overload", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=115)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == [], "a run leaves nothing behind"
    said = json.loads(ended.stdout)
    assert said["verified"] is True
    assert [(row["load"], row["deadline_ms"]) for row in said["loads"]] == [
        (0.5, None), (1.0, None), (10.0, None), (10.0, 100.0),
    ]  # fmt: skip
    assert all(row["applied_per_s"] > 0 for row in said["loads"])
    assert [row["beside"] for row in said["quiet"]] == ["nobody", "a flood", "a lane without credits"]
    assert all(min(row["applied"]) > 0 for row in said["greedy"]), "everybody makes progress"
    assert len(said["marks"]) == 7


def test_a_plan_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "solewriter.bench.overload", "--seconds", "0.5", "--folder", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "takes more than" in ended.stderr


@pytest.mark.heavy
def test_what_a_flood_got_is_what_it_was_answered_in_the_interval(tmp_path: Path) -> None:
    """A lane without credits has thousands on its way at the end; more than processor time allows was shown as done."""
    seconds = 0.5
    with staged(tmp_path) as stage:
        pressed = stage.press([stage.orders("reckless", 0)], seconds)
        assert stage.verified
    (report,) = pressed.reports
    assert 0 < report.in_time <= seconds * 1e6 / WORK_US < report.applied


@pytest.mark.heavy
def test_a_run_that_is_told_to_end_takes_its_folder_with_it(tmp_path: Path, wait_until) -> None:
    command = [sys.executable, "-P", "-m", "solewriter.bench.overload", "--quick", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: list(tmp_path.glob("*/delays")), 30, "an engine that serves")
        running.terminate()
        assert running.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_job_costs_what_it_says_and_a_probe_notes_how_late_the_loop_is(state, start_engine, wait_until, tmp_path):
    start_engine(state, models=[Job, Probe])
    delays = tmp_path / "delays"
    with connect(state) as client:
        client.submit(Create(Job(id="job", work_us=20_000))).check()
        client.submit(Create(Probe(path=str(delays)))).check()
        begun = time.monotonic()
        for number in range(1, 11):
            client.submit(Update(Job.ref("job"), {"number": number})).check()
        assert time.monotonic() - begun > 10 * 0.02
        wait_until(lambda: delays.exists() and len(pairs(delays)) >= 64, 20, "delays that were noted")
    noted = pairs(delays)
    assert noted == sorted(noted)
    moment, longest_ns = max(noted, key=itemgetter(1))
    assert longest_ns > 10_000_000, "a change of 20 ms holds the loop up"
    looks = [lag_ns for at, lag_ns in noted if at == moment]
    assert looks == [*range(longest_ns % TICK_NS, longest_ns + 1, TICK_NS)], "one for each 2 ms of it"


# --- the parts --------------------------------------------------------------------------------------------------------


def test_requests_come_at_random_as_often_as_each_phase_says() -> None:
    interval = Interval(1_000_000_000, 31_000_000_000)
    moments = [*due_moments(interval, (Phase(10.0, 100.0), Phase(20.0, 10.0)), "seed")]
    assert moments == sorted(moments)
    assert [*due_moments(interval, (Phase(10.0, 100.0), Phase(20.0, 10.0)), "seed")] == moments
    first = sum(moment < 11_000_000_000 for moment in moments)
    assert (900 < first < 1_100, 150 < len(moments) - first < 250) == (True, True)
    assert 1_000_000_000 < moments[0] < moments[-1] < interval.end_ns


def test_shares_are_equal_or_not() -> None:
    assert jain([5, 5, 5, 5]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 0.0
    assert jain([32, 256] * 4) == pytest.approx(0.62, abs=0.01)


def test_percentiles_are_figures_that_occurred() -> None:
    ranked = [float(number) for number in range(101)]
    assert [percentile(ranked, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 100.0]
    with pytest.raises(AssertionError, match="nothing was measured"):
        percentile([], 0.5)


def load_row(load: float, applied_per_s: float, deadline_ms: float | None = None, lag_ms: float = 1.0) -> LoadRow:
    return LoadRow(
        load=load, deadline_ms=deadline_ms, offered_per_s=load, applied_per_s=applied_per_s, turned_away_per_s=0.0,
        expired_per_s=0.0, p50_ms=1.0, p99_ms=1.0, lag_p99_ms=lag_ms, lag_max_ms=lag_ms,
    )  # fmt: skip


def quiet_row(beside: str, to_alone: float | None) -> QuietRow:
    return QuietRow(
        beside=beside, requests=1, p50_ms=1.0, p99_ms=1.0, p99_to_alone=to_alone, flood_per_s=0.0, lag_p99_ms=1.0
    )


GOOD = (
    [load_row(1, 5_000), load_row(10, 4_600), load_row(10, 100, deadline_ms=100.0)],
    [quiet_row("nobody", None), quiet_row("a flood", 1.2)],
    [GreedyRow(windows=(), work_us=(), applied=(), jain=0.99, lag_p99_ms=1.0)],
    Surge(before_p99_ms=1.0, surge_p99_ms=9.0, after_p99_ms=(), later_p99_ms=1.1, later_to_before=1.1, lag_p99_ms=1.0),
    Soak(seconds=60.0, rss_mib=50.0, rss_growth_mib=3.0, lag_p99_ms=1.0, applied_per_s=1.0),
)


def test_every_mark_can_be_reached_and_missed() -> None:
    assert [mark.reached for mark in marks_of(*GOOD)] == [True] * 6
    _, quiet, greedy, _, _ = GOOD
    bad = marks_of(
        [load_row(1, 5_000), load_row(10, 4_400, lag_ms=6.0)],
        [quiet[0], quiet_row("a flood", 1.6)],
        [*greedy, GreedyRow(windows=(), work_us=(), applied=(), jain=0.9, lag_p99_ms=1.0)],
        Surge(
            before_p99_ms=1.0, surge_p99_ms=9.0, after_p99_ms=(), later_p99_ms=1.6, later_to_before=1.6, lag_p99_ms=1.0
        ),
        Soak(seconds=60.0, rss_mib=50.0, rss_growth_mib=65.0, lag_p99_ms=1.0, applied_per_s=1.0),
    )
    assert [mark.reached for mark in bad] == [False] * 6


def test_the_highest_lag_is_that_of_any_part() -> None:
    for place, part in enumerate(GOOD):
        late = msgspec.structs.replace(part[0] if isinstance(part, list) else part, lag_p99_ms=6.0)
        parts: list[Any] = [*GOOD]
        parts[place] = [*part, late] if isinstance(part, list) else late
        assert [mark.measured for mark in marks_of(*parts) if mark.mark.startswith("event loop lag")] == [6.0]
