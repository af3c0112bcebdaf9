"""How agents ask: the open loop counts from the moment when a request was due, and windows are kept and never exceeded.

The stalled server is a real one, stopped by a signal and continued.
"""

from __future__ import annotations

import os
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from solewriter.bench.kit.measure import NS_PER_MS, NS_PER_S, Interval
from solewriter.bench.load.agent import Orders, Report
from solewriter.bench.load.crew import Failed, crew
from solewriter.bench.load.drive import READS_IN_A_PASS, Schedule, reading
from solewriter.bench.load.peers import echo, sqlite_writers
from solewriter.bench.load.peers.peer import Peer, Setting
from solewriter.bench.load.requests import Request, Step, in_batches, sliding
from solewriter.bench.load.work import Share

EVERYWHERE = tuple(os.sched_getaffinity(0))
RATE_PER_S, WARMUP_S, SECONDS = 400.0, 0.1, 1.5
STALL_AT_S, STALL_S = 0.2, 0.9  # two of them, one after the other, have no room in it


@pytest.fixture
def echoing(tmp_path: Path) -> Iterator[Peer]:
    with echo.pipe_started(Setting(tmp_path / "echo", "memory", 1, 0)) as peer:
        yield peer


def orders(loop: Any, window: int) -> Orders:
    return Orders(loop, "update-one", Share(0, 1, array("Q", [1] * 600), 0, 600), window, EVERYWHERE, RATE_PER_S)


def reads_of(pid: int) -> int:
    """How often a process has read so far."""
    (line,) = [one for one in Path(f"/proc/{pid}/io").read_text().splitlines() if one.startswith("syscr")]
    return int(line.split()[1])


class Stall(NamedTuple):
    """While the server stood still for certain, and what the agent reports."""

    begin_ns: int
    end_ns: int
    report: Report

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / NS_PER_S


def stalled_once(peer: Peer, given: Orders, wait_until: Callable[..., Any]) -> Stall | None:
    """An agent whose server was stopped for a while in the middle. None: it was not served again in its interval."""
    (server,) = peer.pids
    with crew([given], [peer.link(0)]) as group:
        interval = Interval.soon(WARMUP_S, SECONDS)
        group.go(interval)
        moment_ns = interval.start_ns + int(STALL_AT_S * NS_PER_S)
        wait_until(lambda: time.monotonic_ns() >= moment_ns, 5, "the moment")
        os.kill(server, signal.SIGSTOP)
        begin_ns = time.monotonic_ns()
        over_ns = begin_ns + int(STALL_S * NS_PER_S)  # as long, also where it begins late
        wait_until(lambda: time.monotonic_ns() >= over_ns, 5, "the end of the stall")
        before, end_ns = reads_of(server), time.monotonic_ns()
        os.kill(server, signal.SIGCONT)
        # What it reads second was sent by an agent that had the answer to what it had asked before the stall.
        wait_until(lambda: reads_of(server) >= before + 2 or time.monotonic_ns() >= interval.end_ns, 5, "more requests")
        served_again = reads_of(server) >= before + 2 and time.monotonic_ns() < interval.end_ns
        (report,) = group.reports(interval)
    return Stall(begin_ns, end_ns, report) if served_again else None


def with_a_stall(peer: Peer, given: Orders, wait_until: Callable[..., Any]) -> Stall:
    """Once more where the whole machine stood still, and so nothing happened when it should."""
    found: Stall = wait_until(lambda: stalled_once(peer, given, wait_until), 60, "a stall with an end")
    return found


def test_a_stall_delays_every_request_that_was_due_in_it(echoing: Peer, wait_until: Callable[..., Any]) -> None:
    stall = with_a_stall(echoing, orders("open", 64), wait_until)
    due, histogram = round(RATE_PER_S * SECONDS), stall.report.histogram
    assert due - 1 <= histogram.count <= due + 1, "each request that was due is counted, whatever became of it"
    long = histogram.above(int(STALL_S * 1_000 * 0.33) * NS_PER_MS)
    assert long >= int(RATE_PER_S * (stall.seconds - STALL_S / 3)) - 1, "those due before its last third wait for that"
    assert histogram.max_ns >= (stall.seconds - 2 / RATE_PER_S) * NS_PER_S, "the first of them waits for all of it"


def test_a_closed_loop_hides_all_of_a_stall_but_one_request(echoing: Peer, wait_until: Callable[..., Any]) -> None:
    stall = with_a_stall(echoing, orders("one by one", 1), wait_until)
    long_ms = int(STALL_S * 1_000 * 0.95)
    assert 2 * long_ms > 1_000 * (WARMUP_S + SECONDS), "no other can be as long, wherever the machine stands still"
    assert stall.report.histogram.above(long_ms * NS_PER_MS) == 1


def test_what_was_due_and_not_answered_counts_with_the_time_that_it_waited(
    echoing: Peer, wait_until: Callable[..., Any]
) -> None:
    """The server stops for good in the middle: only the requests that were on their way hold up the end."""
    (server,) = echoing.pids
    with crew([orders("open", 8)], [echoing.link(0)]) as group:
        interval = Interval.soon(WARMUP_S, 1.0)
        group.go(interval)
        half_ns = interval.start_ns + NS_PER_S // 2
        wait_until(lambda: time.monotonic_ns() >= half_ns, 5, "the moment")
        os.kill(server, signal.SIGSTOP)
        served = (time.monotonic_ns() - interval.start_ns) / NS_PER_S  # half of it, or more where this came late
        wait_until(lambda: time.monotonic_ns() >= interval.end_ns, 5, "the end")
        os.kill(server, signal.SIGCONT)
        (report,) = group.reports(interval)
    assert abs(report.histogram.count - RATE_PER_S) <= 1
    assert report.answered <= RATE_PER_S * (WARMUP_S + served) + 1, "what was due before it stopped, at most"
    assert report.histogram.above(245 * NS_PER_MS) >= int(RATE_PER_S * (0.75 - served)) - 1


def flooded_once(peer: Peer, flood: Orders, wait_until: Callable[..., Any]) -> tuple[Interval, Report] | None:
    """None: the server answered nothing in the interval."""
    (server,) = peer.pids
    with crew([flood], [peer.link(0)]) as group:
        interval = Interval.soon(0.2, 0.4)
        group.go(interval)
        wait_until(lambda: time.monotonic_ns() >= interval.start_ns, 5, "the interval")
        before = reads_of(server)
        wait_until(lambda: reads_of(server) >= before + 3 or time.monotonic_ns() >= interval.end_ns, 5, "answers")
        served = reads_of(server) >= before + 3 and time.monotonic_ns() < interval.end_ns
        (report,) = group.reports(interval)
    return (interval, report) if served else None


def test_an_overloaded_system_is_credited_with_what_it_answers_whenever_that_was_due(
    echoing: Peer, wait_until: Callable[..., Any]
) -> None:
    """Far more is offered than a pipe can carry: what waits since the warm-up is answered first, and counts."""
    flood = msgspec.structs.replace(orders("open", 1), rate_per_s=1_000_000.0)
    interval, report = wait_until(lambda: flooded_once(echoing, flood, wait_until), 60, "an answer in the interval")
    assert report.answered > 0
    due = round(flood.rate_per_s * interval.seconds)
    assert abs(report.histogram.count - due) <= 1, "none of those that were due is left out"
    assert report.histogram.above(100 * NS_PER_MS) > due / 2


def test_agents_are_due_one_after_the_other_at_the_rate_of_all_together() -> None:
    interval = Interval(0, NS_PER_S)
    moments = [list(Schedule(100.0, number, 4).due(interval, 0)) for number in range(4)]
    assert [len(one) for one in moments] == [25] * 4
    assert sorted(chain(*moments)) == [number * NS_PER_S // 100 for number in range(100)]


def test_who_begins_late_is_asked_for_all_that_was_due_in_the_interval() -> None:
    """Else the slowest beginning would be the best one: nothing would be due in it."""
    interval = Interval(NS_PER_S, 2 * NS_PER_S)
    late = list(Schedule(100.0, 1, 2).due(interval, interval.start_ns + NS_PER_S // 2))
    assert late == list(Schedule(100.0, 1, 2).due(interval, interval.start_ns))
    assert len(late) == 50


def test_agents_are_due_in_turn_whenever_each_of_them_begins() -> None:
    interval = Interval(NS_PER_S, 2 * NS_PER_S)
    begins = [NS_PER_S // 2 + NS_PER_S * late // 1_000 for late in (0, 3, 17, 40)]
    moments = sorted(chain(*[Schedule(100.0, n, 4).due(interval, begin) for n, begin in enumerate(begins)]))
    measured = [moment for moment in moments if moment >= interval.start_ns]
    assert measured == [interval.start_ns + number * NS_PER_S // 100 for number in range(100)]
    assert all(moment >= begins[0] for moment in moments), "before that, nobody was there"


def test_reads_are_counted_in_the_interval_only_and_opening_is_warm_up() -> None:
    """A pass takes longer than the interval, which it begins in."""
    opened, read_ns, interval = [], 100_000, Interval.soon(0.2, 0.03)

    def read(key: str) -> None:
        done_ns = time.monotonic_ns() + read_ns
        while time.monotonic_ns() < done_ns:
            pass

    def renewed() -> Callable[[str], object]:
        opened.append(time.monotonic_ns())
        return read

    done = reading(renewed, repeat("key"), interval)
    assert len(opened) == 1 + len(done.latencies_ns), "the first time is not measured"
    assert done.total == len(done.latencies_ns) * READS_IN_A_PASS
    assert done.answered <= interval.seconds * NS_PER_S / read_ns, "there is no time for more"


def test_what_an_agent_fails_of_is_said(tmp_path: Path) -> None:
    peer = sqlite_writers.SqlitePeer(tmp_path / "no folder" / "file", "NORMAL")
    with pytest.raises(Failed, match="unable to open database file"), crew([orders("one by one", 1)], [peer.link(0)]):
        pass


# --- windows ---------------------------------------------------------------------------------------------------------


def asked(count: int) -> list[Request]:
    return [(Step("update", str(number), number, {}),) for number in range(count)]


@pytest.mark.parametrize(("window", "frame"), [(1, 32), (4, 32), (7, 2), (256, 32)])
def test_a_sliding_window_is_kept_and_never_exceeded(window: int, frame: int) -> None:
    sent: list[int] = []
    most = 0

    def send(requests: list[Request]) -> None:
        nonlocal most
        sent.extend(step.expect or 0 for (step,) in requests)
        most = max(most, len(sent))

    def receive() -> list[list[int]]:
        return [[sent.pop(0)] for _ in range(min(3, len(sent)))]

    assert list(sliding(asked(500), window, frame, send, receive)) == [[number] for number in range(500)]
    assert most <= window
    assert most > window // 2


def test_batches_are_windows_and_the_last_one_is_the_rest() -> None:
    sizes: list[int] = []

    def exchange(requests: list[Request]) -> list[list[int]]:
        sizes.append(len(requests))
        return [[step.expect or 0 for step in request] for request in requests]

    assert list(in_batches(asked(10), 4, exchange)) == [[number] for number in range(10)]
    assert sizes == [4, 4, 2]
