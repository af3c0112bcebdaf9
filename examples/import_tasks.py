"""An import that can be run again: 100,000 tasks by `put`, many requests in flight; the second run changes nothing.

`put` creates or replaces. The ids come from the source of the data, so the same row is the same task in every run; and
what changes nothing makes no version and no revision, so whoever waits for changes is not woken by a second import.

    python import_tasks.py [STATE] [--count N]      STATE: kept, perhaps of an earlier run; a temporary one by default
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from solewriter import Client, Engine, Put, Task, TaskPriority, connect


def rows(count: int) -> Iterator[Task]:
    """What a file or another system would give, one at a time: nothing holds all of them."""
    for number in range(count):
        priority = TaskPriority.HIGH if number % 10 == 0 else TaskPriority.MEDIUM
        yield Task(id=f"ticket-{number}", title=f"ticket {number}", project="import", priority=priority)


def run(client: Client, count: int) -> int:
    """Import all rows; the revision at the end."""
    before, started = client.reader.revision, time.perf_counter()
    for reply in client.submit_many((Put(task) for task in rows(count)), window=256):
        reply.check()  # a refusal is a value until it is looked at: here it ends the import
    seconds, revision = time.perf_counter() - started, client.reader.revision
    print(f"{count:,} tasks in {seconds:.2f} s, {count / seconds:,.0f}/s; revision {before:,} -> {revision:,}")
    return revision


def import_tasks(state: Path, count: int) -> bool:
    """Import twice; whether everything is there, and the second run changed nothing."""
    with Engine(state) as engine, connect(engine.state, name="import") as client:
        first, second = run(client, count), run(client, count)
        with client.reader.snapshot() as snap:
            there = all(snap[Task, row.id].title == row.title for row in rows(count))
    return first == second and there


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("state", type=Path, nargs="?")
    arguments.add_argument("--count", type=int, default=100_000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        right = import_tasks(given.state or Path(folder), given.count)
    sys.exit(not right)
