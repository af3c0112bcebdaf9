"""A snapshot as one SQLite file, for whoever asks with SQL, or wants the state without this library.

A table for each kind, named as the kind; a row for each entity; a column for each field, which holds the value as it is
where SQLite has such values. Booleans are 0 and 1, moments are text in UTC that SQLite's date functions read, integers
that SQLite has no room for are text, and what has parts is JSON. The table `solewriter` says what was exported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from solewriter.agents.snapshot import Snapshot
from solewriter.shared.config import EXPORT_ROWS
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.system.files import errors_naming, files_named, lasting_file, new_file, sync_folder

_INT64 = range(-(2**63), 2**63)
_LOGS = ("-wal", "-journal")  # behind a file's name: what SQLite takes for changes of it, and puts into it
_NOT_SYNCED = (errno.EACCES, errno.EINVAL)  # of a folder that cannot be listed, or of a file system that syncs none
_json = msgspec.json.Encoder(order="sorted").encode


class Exported(NamedTuple):
    """What is in the file."""

    revision: int
    counts: dict[str, int]  # how many entities of each kind


def export(snapshot: Snapshot, path: Path, *, replace: bool = False) -> Exported:
    """Write all that a snapshot holds to a new file, which nobody else may read. It is there whole, or not at all.

    Raises FileExistsError for a path that is taken, unless what is there may be replaced, and beside a log of SQLite's
    for it; OSError where it cannot be written; SnapshotExpired.
    """
    taken = FileExistsError(f"{path} is there already")
    if os.path.lexists(path) and not (replace and (path.is_file() or not path.exists())):  # no folder, pipe or device
        raise taken
    for log in (f"{path}{suffix}" for suffix in _LOGS):
        if os.path.lexists(log):
            raise FileExistsError(f"{log} is there: SQLite would take it for a part of {path.name}")
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):  # of a folder that cannot be listed
        _remove_left(path)
    try:
        fd = new_file(fresh)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        _is_free(fd)
        with closing(sqlite3.connect(fresh, isolation_level=None)) as database:
            exported = _write(snapshot, database)
        with errors_naming(path):
            os.fsync(fd)
        _give_name(fresh, path, replace=replace)
    except FileExistsError:  # it came meanwhile
        raise taken from None
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        os.close(fd)
        fresh.unlink(missing_ok=True)
    try:
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
    return exported


def _remove_left(path: Path) -> None:
    """Remove what exports to this file left that were killed. Raises OSError."""
    for left in files_named(path.parent, f"{escape(path.name)}.*.tmp"):
        if left.name[len(path.name) + 1 : -4].isdecimal() and left.is_file():
            fd = lasting_file(left, made=False)
            try:
                if _is_free(fd):
                    left.unlink()
            finally:
                os.close(fd)


def _is_free(fd: int) -> bool:
    """Lock a file until it is closed, as whoever writes one has it. Whether nobody had."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or its file system has no locks: then it stays
        return False
    return True


def _give_name(fresh: Path, path: Path, *, replace: bool) -> None:
    """Raises FileExistsError for one that came meanwhile, unless it may be replaced."""
    if not replace:
        try:
            os.link(fresh, path)
        except OSError:  # of a file system that has no links, each says so by another one
            if os.path.lexists(path):
                raise FileExistsError from None
        else:
            return
    os.replace(fresh, path)


def _write(snapshot: Snapshot, database: sqlite3.Connection) -> Exported:
    database.execute("PRAGMA journal_mode = OFF")  # the file has its name when it is whole
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN")
    taken = {"solewriter"}
    about = {
        "revision": snapshot.revision,
        "history_id": snapshot.history_id,
        "exported_at": _cell(datetime.now(UTC)),
    }
    database.execute("CREATE TABLE solewriter (name TEXT PRIMARY KEY, value)")
    database.executemany("INSERT INTO solewriter VALUES (?, ?)", about.items())
    counts = {}
    for kind in snapshot.counts:
        table = _Table(database, _free(kind, taken))
        table.widen(_known_fields(snapshot.pin.catalog, kind))
        counts[kind] = table.fill(snapshot.entities(kind))
    database.execute("COMMIT")
    return Exported(snapshot.revision, counts)


def _known_fields(catalog: Catalog, kind: str) -> Iterable[str]:
    """The fields that a kind has though nothing of it may be stored: those with a default, and columns."""
    schema = catalog.newest_schema(catalog.kinds.index(kind))
    assert schema is not None, "it is a kind"
    return [*schema.defaults, *(column.name for column in schema.columns), *(["updated_at"] if schema.stamped else [])]


class _Table:
    """The table of one kind. Its columns are the fields that it is known to have, and those of its entities so far."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database = database
        self._name = _quote(name)
        self._fields = ["id", "version"]
        self._columns = set(self._fields)
        database.execute(f"CREATE TABLE {self._name} (id TEXT PRIMARY KEY, version INTEGER)")

    def fill(self, entities: Iterator[dict[str, Any]]) -> int:
        """Add a row for each; return how many."""
        count = 0
        while rows := list(islice(entities, EXPORT_ROWS)):
            self.widen(dict.fromkeys(name for row in rows for name in row))
            places = ", ".join("?" * len(self._fields))
            values = ([_cell(row.get(name)) for name in self._fields] for row in rows)
            self._database.executemany(f"INSERT INTO {self._name} VALUES ({places})", values)
            count += len(rows)
            rows.clear()  # not beside the next ones
        return count

    def widen(self, fields: Iterable[str]) -> None:
        """Add a column for each of these fields that has none."""
        for field in fields:
            if field not in self._fields:
                self._fields.append(field)
                column = _quote(_free(field, self._columns))
                self._database.execute(f"ALTER TABLE {self._name} ADD COLUMN {column}")


def _free(name: str, taken: set[str]) -> str:
    """A name that SQLite keeps apart from these: to it, `ID` is `id`. It is among them then."""
    name = name.replace("\0", "_")
    first = f"_{name}" if name.lower().startswith("sqlite_") else name  # which are its own
    free, number = first, 1
    while free.lower() in taken:
        number += 1
        free = f"{first}_{number}"
    taken.add(free.lower())
    return free


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _cell(value: Any) -> Any:
    """What SQLite stores of a plain value."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, int) and value not in _INT64:
        return str(value)
    if isinstance(value, dict | list):
        return _json(value).decode()
    return value
