"""What a process was told, in a file of its own that outlives it: one JSON line for each reply, written after it came.

Every request of the demo goes through a `Log`, so the files together are the agents' side of the story, which `check`
compares with the engine's. A process killed between a reply and its line leaves one change that nobody claims, never
more: it waits for each reply before it sends again. Before it sends, it writes a question mark; so a log that ends
with one is that of a process that waits for an answer, or died while it did. Each line is one unbuffered write, so a
later kill cannot take it back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from solewriter import Claim, Client, Complete, Create, Reply, Task, VersionConflict
from solewriter.shared.mutations import Mutation

ASKED = b"?\n"
STATUS = {Claim: "in_progress", Complete: "completed"}  # of the task, as such a request leaves it


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reply: applied, or lost to somebody who was faster. A request that only looked names no task."""

    request: str
    revision: int
    task: str = ""
    version: int = 0
    status: str = ""  # of the task, as the request left it
    conflict: bool = False


class Log:
    """Keeps what was answered. One for each process of the demo."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def create(self, client: Client, tasks: Iterable[Task]) -> None:
        """Store new tasks, many requests in flight."""
        for reply in client.submit_many(Create(task) for task in tasks):
            self._write(reply.check(), "created")

    def ask(self) -> None:
        """A request is about to leave."""
        self._file.write(ASKED)

    def answer(self, reply: Reply, mutations: Sequence[Mutation]) -> None:
        """It came back. A claim that found nothing says nothing."""
        if reply.applied and isinstance(mutations[0] if mutations else None, Claim) and not reply.results:
            self._file.write(b"\n")
        else:
            self._write(reply, STATUS.get(type(mutations[-1]), "") if mutations else "")

    def _write(self, reply: Reply, status: str) -> None:
        if reply.applied:
            task, version = (reply.results[-1].id, reply.results[-1].version) if reply.results else ("", 0)
            line: Line | None = Line(reply.request_id, reply.revision, task, version, status)
        elif isinstance(reply.error, VersionConflict):
            line = Line(reply.request_id, reply.revision, conflict=True)
        else:
            line = None  # any other refusal is raised by whoever asked; here it is an answer, no more
        self._file.write((msgspec.json.encode(line) if line else b"") + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Scribe(Client):
    """A client that keeps what it was answered."""

    def __init__(self, state: Path, name: str, log: Log) -> None:
        super().__init__(state, name=name)
        self._log = log

    def submit(self, *mutations: Mutation, **options: Any) -> Reply:
        self._log.ask()
        reply = super().submit(*mutations, **options)
        self._log.answer(reply, mutations)
        return reply


def logged(folder: Path) -> Iterator[Line]:
    """Every line of every log. What follows the last line end was never finished, and claims nothing."""
    for path in sorted(folder.iterdir()):
        for line in path.read_bytes().split(b"\n")[:-1]:
            if line.startswith(b"{"):
                yield msgspec.json.decode(line, type=Line)


def unanswered(path: Path) -> int:
    """How long the log was when its process asked what it was not answered yet; 0 if it awaits nothing."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(ASKED)))
        return size if file.read() == ASKED else 0
