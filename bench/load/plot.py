"""The pictures of a run, as SVG and PNG: throughput by agents, latency by offered load, cost by size, and a death."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.optional import required
from solewriter.bench.load.peers.catalog import OURS
from solewriter.bench.load.rows import Case, Results, Row, Timeline

SIZE_INCHES = (7.5, 4.2)
DPI = 120
OURS_COLOUR, OTHERS_COLOURS = "#c0392b", ("#2c3e50", "#2980b9", "#27ae60", "#8e44ad", "#d68910")
MARKERS = "os^Dvp*Xh"  # of lines that have the same colour
MS_PER_US = 0.001


def draw(results: Results, folder: Path) -> list[Path]:
    """Every picture that there are figures for; the files that were written. Raises NotHere without matplotlib."""
    matplotlib = required("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "solewriter"  # the same figures make the same file
    pyplot = required("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, pencil in _pictures(results).items():
        figure, axes = pyplot.subplots(figsize=SIZE_INCHES)
        pencil(axes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.text(0.99, 0.01, _footer(results), ha="right", fontsize=6, color="gray")
        figure.tight_layout()
        for path in (folder / f"{name}.svg", folder / f"{name}.png"):
            figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
            written.append(path)
        pyplot.close(figure)
    return written


def _pictures(results: Results) -> dict[str, Callable[[Any], None]]:
    rows = [row for row in results.rows if row.per_s is not None]
    found: dict[str, Callable[[Any], None]] = {}
    if by_agents := _lines([row for row in rows if row.case.loop == "pipelined"], "agents"):
        found["throughput-by-agents"] = lambda axes: _throughput(axes, by_agents)
    if by_rate := _lines([row for row in rows if row.case.loop == "open"], "rate_per_s"):
        found["latency-by-load"] = lambda axes: _latency(axes, by_rate)
    ours = [row for row in rows if row.case.peer == OURS and row.case.loop == "pipelined" and row.server_cpu_us]
    if by_size := _lines(ours, "entities"):
        found["cost-by-size"] = lambda axes: _cost(axes, by_size)
    timeline = results.timeline
    if timeline is not None:
        found["across-a-kill"] = lambda axes: _across(axes, timeline)
    return found


def _lines(rows: Sequence[Row], of: str) -> dict[str, list[Row]]:
    """Rows of one question that differ in this alone, by who they are of. Of the question that has the most of them;
    of several windows, those of the widest.
    """
    questions: dict[Any, dict[str, dict[Any, Row]]] = {}
    others = [name for name in ("agents", "entities", "rate_per_s") if name != of]
    for row in rows:
        case, place = row.case, getattr(row.case, of)
        question = case.section, case.workload, case.pinned, *(getattr(case, name) for name in others)
        line = questions.setdefault(question, {}).setdefault(f"{case.peer}, {row.how}", {})
        if place not in line or line[place].case.window < case.window:
            line[place] = row
    several = [
        {who: [found[place] for place in sorted(found)] for who, found in lines.items()}
        for lines in questions.values()
        if any(len(found) > 1 for found in lines.values())
    ]
    return max(several, key=lambda lines: sum(map(len, lines.values())), default={})


def _looks(lines: dict[str, list[Row]]) -> Iterator[dict[str, Any]]:
    """A colour and a marker for each line, no two of them alike: one colour is ours, whatever we promise."""
    ours, others = ((OURS_COLOUR, marker) for marker in MARKERS), product(MARKERS, OTHERS_COLOURS)
    for found in lines.values():
        if found[0].case.peer == OURS:
            colour, marker = next(ours)
        else:
            marker, colour = next(others)
        yield {"color": colour, "marker": marker}


def _of(lines: dict[str, list[Row]]) -> tuple[Case, str]:
    """The question that they all answer, and what of it every title says."""
    case = next(iter(lines.values()))[0].case
    return case, f"{case.workload}{', CPUs pinned' if case.pinned else ''}"


def _throughput(axes: Any, lines: dict[str, list[Row]]) -> None:
    for (who, rows), look in zip(lines.items(), _looks(lines), strict=True):
        spreads = [row.per_s for row in rows if row.per_s is not None]
        agents = [row.case.agents for row in rows]
        axes.plot(agents, [one.median for one in spreads], markersize=4, label=who, **look)
        _band(axes, agents, spreads, look["color"])
    case, asked = _of(lines)
    _logarithmic_ticks(axes, sorted({row.case.agents for rows in lines.values() for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("agent processes")
    axes.set_ylabel("requests answered a second")
    axes.set_title(f"Throughput: {asked}, {case.entities:,} entities, pipelined", fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def _latency(axes: Any, lines: dict[str, list[Row]]) -> None:
    for (who, rows), look in zip(lines.items(), _looks(lines), strict=True):
        rates = [row.case.rate_per_s for row in rows]
        for name, style in (("p50_us", ":"), ("p99_us", "-")):
            found = [getattr(row.latency, name) * MS_PER_US if row.latency else None for row in rows]
            label = f"{who}: p99 (dotted: p50)" if name == "p99_us" else None
            axes.plot(rates, found, linestyle=style, markersize=3, label=label, **look)
    case, asked = _of(lines)
    _logarithmic_ticks(axes, sorted({row.case.rate_per_s for rows in lines.values() for row in rows}))
    axes.set_yscale("log")
    axes.set_xlabel("requests offered a second, all agents together")
    axes.set_ylabel("ms from the moment when it was due")
    axes.set_title(f"Latency by offered load: {asked}, {case.agents} agents", fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def _cost(axes: Any, lines: dict[str, list[Row]]) -> None:
    for (who, rows), look in zip(lines.items(), _looks(lines), strict=True):
        spreads = [row.server_cpu_us for row in rows if row.server_cpu_us is not None]
        sizes = [row.case.entities for row in rows]
        axes.plot(sizes, [one.median for one in spreads], markersize=4, label=who, **look)
        _band(axes, sizes, spreads, look["color"])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("entities in the state")
    axes.set_ylabel("us of the engine's processor time")
    asked = _of(lines)[1]
    axes.set_title(
        f"What one request costs the engine, checkpoints included, by the size of the state: {asked}", fontsize=10
    )
    axes.legend(fontsize=7, frameon=False)


def _across(axes: Any, line: Timeline) -> None:
    per_s = [count * 1_000 / line.step_ms for count in line.acked]
    moments = [place * line.step_ms for place in range(len(per_s))]
    axes.fill_between(moments, per_s, step="post", color=OURS_COLOUR, alpha=0.6, linewidth=0)
    axes.axvline(line.killed_ms, color="black", linewidth=0.8)
    axes.annotate("SIGKILL", (line.killed_ms, max(per_s)), xytext=(4, -4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("ms")
    axes.set_ylabel("replies a second, all agents together")
    axes.set_title(f"Across the death of the engine: the next reply {line.first_ack_ms:.0f} ms later", fontsize=10)


def _band(axes: Any, places: Sequence[float], spreads: Sequence[Spread], colour: str) -> None:
    axes.fill_between(places, [one.min for one in spreads], [one.max for one in spreads], alpha=0.12, color=colour)


def _logarithmic_ticks(axes: Any, places: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.minorticks_off()


def _footer(results: Results) -> str:
    machine = results.machine
    return f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}, {str(machine['date'])[:10]}"
