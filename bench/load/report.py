"""The tables of a run under load, as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from solewriter.bench.kit.mark import judged, summed
from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.table import described, table
from solewriter.bench.load.rows import Results, Row

LEGEND = """\
per s: requests answered in a second, median of the runs, with the least and the most; p50 ... max us: of all runs
together, in the open loop from the moment when a request was due; server us, client us: processor time for each
request; switches: of context, for each request, server and agents; written B: what reached the disk for each
request, warm-up included, of the whole machine; server MiB: resident, shared memory included; ok: nothing lost, doubled
or mixed up"""

IN_MEMORY = ("tmpfs", "ramfs")
NO_DISK = (
    "the folder lies in memory: nothing there survives a power cut, and syncs cost nothing. --folder names another"
)


def printed(results: Results) -> str:
    """The tables, the marks, and what has to be known to read them."""
    lost = sum(row.lost for row in results.rows)
    parts = [f"machine: {described(results.machine)}", f"plan: {described(results.plan)}", *_yardsticks(results)]
    for title, rows in tables(results.rows).items():
        parts += ["", title, _table(rows)]
    parts += ["", LEGEND, *_marks(results)]
    parts += [
        "",
        f"{summed(results.marks)}; lost: {lost} rows; "
        f"{'every state was verified' if results.verified else 'NOT VERIFIED'}; took {results.elapsed_s} s",
    ]
    return "\n".join(parts)


def _yardsticks(results: Results) -> Iterator[str]:
    if results.machine.get("journal_on") in IN_MEMORY:
        yield NO_DISK
    if results.model_validate_us:
        yield f"one model_validate of such a task: {_spread(results.model_validate_us)} us of processor time"
    if results.idle_cpu_percent is not None:
        yield f"an engine that nobody asks anything: {results.idle_cpu_percent} % of a processor"
    if results.timeline is not None:
        line = results.timeline
        yield f"engine killed by SIGKILL under load: the next reply came {line.first_ack_ms:.0f} ms later"
    if results.note:
        yield results.note


LOOPS = {"open": "open loop", "read": "typed reads", "read anew": "typed reads, each decoded"}


def tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that answer the same question, by it."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_title(row), []).append(row)
    return found


def _title(row: Row) -> str:
    case = row.case
    loop = LOOPS.get(case.loop, case.loop)
    window = f", {case.window} on their way" if case.window > 1 and case.loop in ("pipelined", "open") else ""
    where = "CPUs pinned" if case.pinned else "any CPU"
    agents = "" if case.section == "agents" else f"{case.agents} agents, "
    entities = "" if case.section == "sizes" else f"{case.entities:,} entities, "
    return f"{case.workload}, {loop}{window if agents and entities else ''}: {agents}{entities}{where}"


def _table(rows: Sequence[Row]) -> str:
    """Without the columns in which nothing stands."""
    lines = [_line(row) for row in rows]
    shown = [name for name in lines[0] if any(line[name] not in (None, "") for line in lines)]
    return table(["" if name == "lost" else name for name in shown], [[line[name] for name in shown] for line in lines])


def _line(row: Row) -> dict[str, Any]:
    case, latency = row.case, row.latency
    validated = None if row.floor else "yes" if row.validated else "no"
    return {
        "who": case.peer,
        "how": row.how,
        "survives": row.promise,
        "validated": validated,
        "agents": case.agents if case.section == "agents" else None,
        "entities": case.entities if case.section == "sizes" else None,
        "writers": case.writers if case.section == "reads" else None,
        "offered": case.rate_per_s or None,
        "per s": row.per_s and row.per_s.median,
        "min": row.per_s and row.per_s.min,
        "max": row.per_s and row.per_s.max,
        "ours : it": row.ours_to_it,
        "lost": "LOST" if row.lost else "",
        "p50 us": latency.p50_us if latency else row.p50_us and row.p50_us.median,
        "p90": latency and latency.p90_us,
        "p99": latency and latency.p99_us,
        "p99.9": latency and latency.p99_9_us,
        "max us": latency and latency.max_us,
        "server us": _median(row.server_cpu_us),
        "client us": _median(row.client_cpu_us),
        "switches": _switches(row),
        "written B": _median(row.written_bytes),
        "server MiB": _median(row.server_mib),
        "ok": row.verified,
        "note": row.note,
    }


def _marks(results: Results) -> Iterator[str]:
    if results.marks:
        yield ""
        yield judged(results.marks)


def _median(found: Spread | None) -> float | None:
    return found.median if found else None


def _switches(row: Row) -> float | None:
    if row.client_switches is None:
        return None
    return row.client_switches.median + (row.server_switches.median if row.server_switches else 0.0)


def _spread(found: Spread) -> str:
    return f"{found.median:g} ({found.min:g} to {found.max:g})"
