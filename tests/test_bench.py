"""The benchmark runs, says what it measured in the shape its readers expect, and loses nothing. No figure is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from solewriter.bench.measure import Interval, Latency, Meter, latency, table
from solewriter.bench.workload import Tally

PERCENTILES = {"p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"}
SHORT = ("--quick", "--seconds", "0.2", "--tasks", "1200", "--agents", "1,2")


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
