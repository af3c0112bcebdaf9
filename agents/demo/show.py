"""The live view: a bar, the agents and the busiest packages on a terminal; elsewhere a line for every tenth of the way,
and for every engine that dies or follows.

It draws what a snapshot says and asks nobody, so it can run as often as it likes without slowing anyone's writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from solewriter.agents.demo.progress import Progress

PACKAGES_SHOWN = 8
BAR_WIDTH = 30
LINES = 10  # of plain output

Show = Callable[[Progress, Sequence[str], Sequence[str]], None]  # progress, all agents, the dead ones


def view(console: Console) -> AbstractContextManager[Show]:
    """The view that suits this output."""
    return live_view(console) if console.is_terminal else plain_view(console)


@contextmanager
def live_view(console: Console) -> Iterator[Show]:
    """For a terminal: redrawn in place, gone at the end."""
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(progress: Progress, agents: Sequence[str], dead: Sequence[str]) -> None:
            tables = headline_table(progress), agents_table(progress, agents, dead), packages_table(progress)
            live.update(Group(*tables), refresh=True)

        yield show


@contextmanager
def plain_view(console: Console) -> Iterator[Show]:
    """For pipes and files."""
    printed: tuple[int, int, bool] | None = None

    def show(progress: Progress, agents: Sequence[str], dead: Sequence[str]) -> None:
        nonlocal printed
        news = progress.done * LINES // max(1, progress.total), progress.engine, progress.stale
        if news != printed:
            printed = news
            alive = len(agents) - len(dead)
            console.print(f"{headline(progress)}, {alive} agents, {engine(progress)}", soft_wrap=True)

    yield show


def headline(progress: Progress) -> str:
    return f"{progress.done:,} of {progress.total:,} tasks completed at revision {progress.revision:,}"


def engine(progress: Progress) -> str:
    return f"engine {progress.engine} {'is dead, the next one is on its way' if progress.stale else 'serves'}"


def headline_table(progress: Progress) -> Table:
    table = Table.grid(padding=(1, 1))
    table.add_row(ProgressBar(progress.total, progress.done, width=BAR_WIDTH), headline(progress))
    table.add_row("", engine(progress), style="red" if progress.stale else None)
    return table


def agents_table(progress: Progress, agents: Sequence[str], dead: Sequence[str]) -> Table:
    table = Table("agent", "completed", "at work", box=None, header_style="dim")
    for name in agents:
        held = progress.held.get(name)
        work = "killed" if name in dead else held.title if held else "-"
        table.add_row(name, f"{progress.completed[name]:,}", work, style="red" if name in dead else None)
    return table


def packages_table(progress: Progress) -> Table:
    table = Table("package", "completed", "of", "at work", box=None, header_style="dim")
    for name, share in progress.busiest[:PACKAGES_SHOWN]:
        table.add_row(name, f"{share.done:,}", f"{share.total:,}", f"{share.busy or '-'}")
    return table
