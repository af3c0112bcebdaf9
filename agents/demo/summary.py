"""How it went, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Summary:
    """What `--json` prints. `ok` in one word: nothing lost, nothing twice, every figure right, no agent failed."""

    ok: bool
    modules: int
    packages: int
    unparsable: int
    lines: int
    functions: int
    agents: int
    agents_killed: int
    agents_failed: int  # that ended early, and not by our hand
    taken_over: int  # tasks that dead agents held
    engine_killed: int
    engine_unanswered: int  # requests that were on their way when it was
    engine_restarts: int
    engine_gap_s: float | None  # from the kill to the next change that readers saw
    durability: str
    revision: int
    acked: int  # requests, of all agents and the parent
    conflicts: int  # requests refused since somebody was faster
    lost: int
    duplicated: int
    matches_single_process: bool
    seconds: float  # from the first request to the last task completed, starts of processes included
    single_process_seconds: float


def table(summary: Summary) -> Table:
    """The summary for people."""
    rows = {
        "modules": f"{summary.modules:,} in {summary.packages:,} packages, {summary.unparsable:,} of them unparsable",
        "measured": f"{summary.lines:,} lines, {summary.functions:,} functions",
        "agents": f"{summary.agents}, killed {summary.agents_killed}, tasks of theirs taken over {summary.taken_over}",
        "engine": f"killed {summary.engine_killed}, requests on their way {summary.engine_unanswered}",
        "engine restarts": f"{summary.engine_restarts:,}",
        "no writer": no_writer(summary.engine_gap_s),
        "requests acked": f"{summary.acked:,}, durability {summary.durability!r}",
        "conflicts": f"{summary.conflicts:,} races lost, as is normal",
        "lost": f"{summary.lost:,}",
        "applied twice": f"{summary.duplicated:,}",
        "seconds": f"{summary.seconds:.2f}, in a single process {summary.single_process_seconds:.2f}",
        "every figure": "equal to that of a single process" if summary.matches_single_process else "not equal!",
    }
    made = Table(box=None, show_header=False)
    for name, text in rows.items():
        if text:
            made.add_row(name, text)
    return made


def no_writer(gap_s: float | None) -> str:
    return "" if gap_s is None else f"for {gap_s:.2f} s, from the kill to the next change that readers saw"
