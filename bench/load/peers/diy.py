"""A single writer as a good engineer writes it in an afternoon: one process, one queue, SQLite, a commit a batch.

Agents put lists of requests into the one queue, and each gets lists of replies from a pipe of its own. Every change is
validated by pydantic, and is in the database before anybody is told. Reads go to the file itself, beside the writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from multiprocessing import Queue
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from solewriter import Task

BATCH_MAX = 512
Reply = list[int] | str  # the new versions, or what is wrong


def opened(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("CREATE TABLE IF NOT EXISTS task (id TEXT PRIMARY KEY, version INTEGER, body BLOB)")
    return db


def serve(path: Path, synchronous: str, queue: Queue[Any], pipes: list[Connection]) -> None:
    """Run the writer until somebody puts None."""
    db = opened(path, synchronous)
    tasks: dict[str, dict[str, Any]] = {
        id: msgspec.json.decode(body) for id, body in db.execute("SELECT id, body FROM task")
    }
    for frames in batches(queue):
        changed: dict[str, dict[str, Any]] = {}
        replies = [(agent, [applied(tasks, changed, request) for request in requests]) for agent, requests in frames]
        db.execute("BEGIN IMMEDIATE")
        rows = ((id, task["version"], msgspec.json.encode(task)) for id, task in changed.items())
        db.executemany("INSERT OR REPLACE INTO task VALUES (?, ?, ?)", rows)
        db.execute("COMMIT")
        for agent, told in replies:
            pipes[agent].send(told)


def batches(queue: Queue[Any]) -> Iterator[list[tuple[int, Any]]]:
    """Wait for the first frame, then take what else is there."""
    while (frame := queue.get()) is not None:
        frames, count = [frame], len(frame[1])
        while count < BATCH_MAX and not queue.empty() and (frame := queue.get()) is not None:
            frames.append(frame)
            count += len(frame[1])
        yield frames
        if frame is None:
            return


def applied(tasks: dict[str, dict[str, Any]], changed: dict[str, dict[str, Any]], request: Any) -> Reply:
    """All steps of a request or none."""
    new = {}
    for _, id, expect, fields in request:
        old = tasks.get(id, {})
        version = old.get("version", 0)
        if expect is not None and expect != version:
            return f"{id} has version {version}, not {expect}"
        new[id] = {**old, **fields, "version": version + 1}
        try:
            Task.model_validate(new[id])
        except ValueError as error:
            return str(error)
    tasks.update(new)
    changed.update(new)
    return [task["version"] for task in new.values()]
