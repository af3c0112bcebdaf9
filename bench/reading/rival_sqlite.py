"""SQLite as a rival: the same keys and payload bytes, in the memory file system that our segments lie in.

It is used as somebody would who knows it: in WAL, mapped into memory, with a composite index for each question and
ANALYZE run, statements prepared once, and one held read transaction for all reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from solewriter import TaskPriority
from solewriter.bench.kit.scratch import taken_bytes
from solewriter.bench.reading.passes import (
    COUNT_FEW,
    COUNT_MANY,
    GET_COLD,
    GET_RAW,
    SCAN_COLD,
    SCAN_WARM,
    Contestant,
    Opening,
    Pass,
)
from solewriter.bench.reading.population import Decode, Population, RunStatus, Window, decoder, run_columns, stored

WHO = "SQLite"
MAP_BYTES = 1 << 31  # address space, not memory
GET = "SELECT version, time_us, payload FROM entity WHERE id = ?"
FEW = "WHERE status = ? AND score >= ? AND score < ?"
MANY = "WHERE status = ? AND priority = ?"


def fill(path: Path, population: Population, memory_bytes: dict[str, int], *, indexed: bool) -> None:
    """A table of a population; if `indexed`, with the columns that runs are asked for, and an index for each question.
    Says in `memory_bytes` what it takes.
    """
    columns, places = (", status TEXT, priority TEXT, score REAL", ", ?, ?, ?") if indexed else ("", "")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE entity (id TEXT PRIMARY KEY, version, time_us, payload{columns})")
        connection.execute("BEGIN")
        with population.client.reader.snapshot() as snapshot:
            rows = enumerate(stored(snapshot, population.model))
            connection.executemany(
                f"INSERT INTO entity VALUES (?, ?, ?, ?{places})",
                ((*one, *run_columns(number)) if indexed else one for number, one in rows),
            )
        if indexed:
            connection.execute("CREATE INDEX by_score ON entity (status, score)")
            connection.execute("CREATE INDEX by_priority ON entity (status, priority)")
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    memory_bytes[WHO] = taken_bytes(path)


def _opened(path: Path) -> sqlite3.Connection:
    """In a read transaction, which begins with its first look."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA mmap_size = {MAP_BYTES}")
    connection.execute("BEGIN")
    connection.execute(GET, ("",)).fetchone()
    return connection


def opening(path: Path) -> Opening:
    return lambda: _opened(path).close


def getting(path: Path, population: Population, ending: ExitStack, every: Sequence[str]) -> list[Contestant]:
    """Gets by the primary key of the ids that the rounds ask for, which are `every` one of them."""
    connection = ending.enter_context(closing(_opened(path)))
    decode = decoder(population.client.reader.snapshot(), population.model)
    raw = row_gets(connection)
    raw(every)  # the pages are mapped
    return [
        Contestant(GET_RAW, WHO, "by primary key, row", raw),
        Contestant(GET_COLD, WHO, "by primary key, our decoder", decoded_gets(connection, decode)),
    ]


def asking(path: Path, population: Population, ending: ExitStack, every: Sequence[Window]) -> list[Contestant]:
    """Questions that few meet, which are `every` one of them."""
    connection = ending.enter_context(closing(_opened(path)))
    decode = decoder(population.client.reader.snapshot(), population.model)
    again = scans_again(connection, decode)
    again(every)
    counts(connection)(every)
    return [
        Contestant(COUNT_FEW, WHO, "composite index", counts(connection)),
        Contestant(SCAN_COLD, WHO, "composite index, our decoder", scans(connection, decode)),
        Contestant(SCAN_WARM, WHO, "composite index, dict of decoded", again),
    ]


def counting_many(path: Path, ending: ExitStack) -> list[Contestant]:
    connection = ending.enter_context(closing(_opened(path)))
    return [Contestant(COUNT_MANY, WHO, "composite index", counts_of_many(connection))]


# --- the loops -------------------------------------------------------------------------------------------------------


def row_gets(connection: sqlite3.Connection) -> Pass:
    execute = connection.execute

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = execute(GET, (id,)).fetchone()
        return found

    return one_pass


def decoded_gets(connection: sqlite3.Connection, decode: Decode) -> Pass:
    execute = connection.execute

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            version, time_us, payload = execute(GET, (id,)).fetchone()
            found = decode(id, version, time_us, payload)
        return found

    return one_pass


def counts(connection: sqlite3.Connection) -> Pass:
    execute, question = connection.execute, f"SELECT count(*) FROM entity {FEW}"

    def one_pass(asked: Sequence[Window]) -> Any:
        for window in asked:
            (found,) = execute(question, window).fetchone()
        return found

    return one_pass


def counts_of_many(connection: sqlite3.Connection) -> Pass:
    execute, question = connection.execute, f"SELECT count(*) FROM entity {MANY}"

    def one_pass(asked: Sequence[tuple[RunStatus, TaskPriority]]) -> Any:
        for pair in asked:
            (found,) = execute(question, pair).fetchone()
        return found

    return one_pass


def scans(connection: sqlite3.Connection, decode: Decode) -> Pass:
    execute, question = connection.execute, f"SELECT id, version, time_us, payload FROM entity {FEW}"

    def one_pass(asked: Sequence[Window]) -> Any:
        for window in asked:
            found = [decode(*row) for row in execute(question, window)]
        return found

    return one_pass


def scans_again(connection: sqlite3.Connection, decode: Decode) -> Pass:
    """What was decoded before is kept by id and version: only those are asked for then."""
    execute, question = connection.execute, f"SELECT id, version FROM entity {FEW}"
    kept: dict[tuple[str, int], Any] = {}

    def one_pass(asked: Sequence[Window]) -> Any:
        for window in asked:
            found = []
            for row in execute(question, window):
                entity = kept.get(row)
                if entity is None:
                    entity = kept[row] = decode(row[0], *execute(GET, row[:1]).fetchone())
                found.append(entity)
        return found

    return one_pass
