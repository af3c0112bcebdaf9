"""The tables of a run under load, as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from solewriter.bench.load.rows import Results, Row, Spread
from solewriter.bench.measure import described, table

HEAD = (
    "who", "how", "survives", "validated", "per s", "min", "max", "ours : it", "", "p50 us", "p90", "p99",
    "p99.9", "max us", "server us", "client us", "switches", "written B", "server MiB", "ok", "note",
)  # fmt: skip
LEGEND = """\
per s: requests answered in a second, median of the runs, with the least and the most; p50 ... max us: of all runs
together; server us, client us: processor time for each request; switches: of context, for each request, server and
agents; written B: for each request, what was given to file systems on a disk; ok: nothing lost, doubled or mixed up"""


def printed(results: Results) -> str:
    """The tables, the marks, and what has to be known to read them."""
    reached = sum(1 for mark in results.marks if mark.reached)
    lost = sum(row.lost for row in results.rows)
    parts = [f"machine: {described(results.machine)}", f"plan: {described(results.plan)}", *_floors(results)]
    for title, rows in _tables(results.rows).items():
        parts += ["", title, table(HEAD, _lines(rows))]
    parts += ["", LEGEND, *_marks(results)]
    parts += [
        "",
        f"reached: {reached} of {len(results.marks)} marks; lost: {lost} rows; "
        f"{'every state was verified' if results.verified else 'NOT VERIFIED'}; took {results.elapsed_s} s",
    ]
    return "\n".join(parts)


def _floors(results: Results) -> Iterator[str]:
    if results.model_validate_us:
        yield f"one model_validate of such a task: {_spread(results.model_validate_us)} us of processor time"


def _tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that answer the same question, by it."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_title(row), []).append(row)
    return found


def _title(row: Row) -> str:
    case = row.case
    loop = f"pipelined, {case.window} on their way" if case.loop == "pipelined" else case.loop
    where = "CPUs pinned" if case.pinned else "any CPU"
    return f"{case.workload}, {loop}: {case.agents} agents, {case.entities:,} entities, {where}"


def _lines(rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        figures: tuple[Any, ...] = msgspec.structs.astuple(row.latency) if row.latency else (None,) * 5
        if row.latency is None and row.p50_us is not None:
            figures = (row.p50_us.median, *figures[1:])
        yield (
            row.case.peer, row.how, row.promise, "yes" if row.validated else "no" if not row.floor else "-",
            *_three(row.per_s), row.ours_to_it, "LOST" if row.lost else "", *figures,
            _median(row.server_cpu_us), _median(row.client_cpu_us), _switches(row), _median(row.written_bytes),
            _median(row.server_mib), "-" if row.verified is None else row.verified, row.note,
        )  # fmt: skip


def _marks(results: Results) -> Iterator[str]:
    if results.marks:
        yield ""
        yield table(
            ("mark", "wanted", "measured", ""),
            [
                (mark.mark, mark.wanted, mark.measured, {True: "reached", False: "MISSED", None: "-"}[mark.reached])
                for mark in results.marks
            ],
        )


def _three(found: Spread | None) -> tuple[float | None, ...]:
    return (found.median, found.min, found.max) if found else (None, None, None)


def _median(found: Spread | None) -> float | None:
    return found.median if found else None


def _switches(row: Row) -> float | None:
    if row.client_switches is None:
        return None
    return row.client_switches.median + (row.server_switches.median if row.server_switches else 0.0)


def _spread(found: Spread) -> str:
    return f"{found.median:g} ({found.min:g} to {found.max:g})"
