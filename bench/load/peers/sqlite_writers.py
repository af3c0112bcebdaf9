"""SQLite with many writers: each agent has the file open. WAL, a column for each field, statements prepared once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from solewriter import Task
from solewriter.bench.load.agent import Link
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import (
    CHECKED,
    Answer,
    Fields,
    Refusal,
    Request,
    Step,
    Stored,
    as_column,
    in_batches,
)
from solewriter.engine_proc.process import Durability

NAME = "SQLite"
SYNCHRONOUS: dict[Durability, str] = {"power": "FULL", "process": "NORMAL"}
BUSY_S = 60.0  # 64 writers take turns
FIELDS = [name for name in Task.model_fields if name not in ("id", "version")]
CREATE = f"CREATE TABLE task (id TEXT PRIMARY KEY, version INTEGER NOT NULL, {', '.join(FIELDS)})"
GET = "SELECT * FROM task WHERE id = ?"


def opened(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, cached_statements=256)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    return db


class SqliteConnection:
    """One request is one transaction; a window is one transaction, too."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._db = opened(path, synchronous)
        self._execute = self._db.execute

    def one(self, request: Request) -> Answer:
        if len(request) == 1:
            return (self._step(request[0]),)  # a statement is a transaction
        return self._exchange([request])[0]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return in_batches(requests, window, self._exchange)

    def _exchange(self, requests: list[Request]) -> list[Answer]:
        self._execute("BEGIN IMMEDIATE")
        try:
            answers = [[self._step(step) for step in request] for request in requests]
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")
        return answers  # type: ignore[return-value]  # lists are sequences

    def _step(self, step: Step) -> int:
        operation, key, expect, fields = step
        if operation == "create":
            self._execute(_insert(tuple(fields)), (1, *map(as_column, fields.values())))
            return 1
        if expect is None:
            told = self._execute(_update(tuple(fields), compared=False), (*fields.values(), key)).fetchone()
            return int(told[0])
        found = self._execute(_update(tuple(fields), compared=True), (*fields.values(), key, expect))
        if found.rowcount != 1:
            raise Refusal(f"{key} does not have version {expect}")
        return expect + 1

    def read(self, key: str) -> object:
        return self._execute(GET, (key,)).fetchone()

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        self._db.close()


@cache
def _update(names: tuple[str, ...], *, compared: bool) -> str:
    changes = ", ".join(f"{name} = ?" for name in names)
    which = "id = ? AND version = ?" if compared else "id = ? RETURNING version"
    return f"UPDATE task SET version = version + 1, {changes} WHERE {which}"


@cache
def _insert(names: tuple[str, ...]) -> str:
    return f"INSERT INTO task (version, {', '.join(names)}) VALUES ({', '.join('?' * (len(names) + 1))})"


class SqlitePeer:
    pids: list[int] = []  # noqa: RUF012  # nobody serves

    def __init__(self, path: Path, synchronous: str) -> None:
        self._path, self._synchronous = path, synchronous

    def load(self, tasks: Iterable[Fields]) -> None:
        with closing(opened(self._path, "OFF")) as db:
            db.execute(CREATE)
            db.execute("BEGIN")
            for fields in tasks:
                db.execute(_insert(tuple(fields)), (1, *map(as_column, fields.values())))
            db.execute("COMMIT")

    def link(self, number: int) -> Link:
        return SqliteConnection, (self._path, self._synchronous)

    def stored(self) -> Iterator[Stored]:
        with closing(sqlite3.connect(self._path)) as db:
            for key, version, *found in db.execute(f"SELECT id, version, {', '.join(CHECKED)} FROM task"):
                pairs = zip(CHECKED, found, strict=True)
                yield key, version, {name: value for name, value in pairs if value is not None}


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    setting.folder.mkdir()
    yield SqlitePeer(setting.folder / "tasks.sqlite", SYNCHRONOUS[setting.durability])


ENTRY = Entry(
    NAME,
    {level: f"{synchronous}, WAL" for level, synchronous in SYNCHRONOUS.items()},
    started,
    batch="a transaction a window",
)
