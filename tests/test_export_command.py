"""`solewriter export` puts everything that lives at one revision into an SQLite file, or leaves none."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sysconfig
import tracemalloc
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from solewriter import Create, Delete, Entity, FrozenMap, Project, Put, Snapshot, Task, Update, open_reader
from solewriter.agents.cli.exporting import export_state
from solewriter.agents.reading.export import export
from solewriter.shared.config import EXPORT_ROWS

SOLEWRITER = str(Path(sysconfig.get_path("scripts"), "solewriter"))
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Sample(Entity):
    """Of every sort of value that a file may hold."""

    number: int = 0
    share: float = 0.5
    name: str = "x"
    sure: bool = False
    due: datetime | None = None
    raw: bytes = b""
    tags: tuple[str, ...] = ()
    notes: FrozenMap = FrozenMap()


class Named(Entity):
    """Of names that SQLite takes for the same, or for its own."""

    ID: str = "capitals"
    select: int = 1
    sqlite_x: int = 2


class Solewriter(Entity):
    """A kind that is named as the table which says what was exported."""


class SQLITE_KIND(Entity):  # noqa: N801 # the name is what this is about
    """A kind whose name SQLite keeps for itself."""


def tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table, in the order of ids or names."""
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: [dict(row) for row in database.execute(f'SELECT * FROM "{name}" ORDER BY 1')] for name in names}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    asked = [SOLEWRITER, "export", *map(str, arguments)]
    return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def engine(start_engine, state):
    return start_engine(state, models=[Sample, Named, Solewriter, SQLITE_KIND])


@pytest.fixture
def samples(client):
    """Some of every sort, of a client whose engine knows them."""
    client.create(Sample(id="full", number=7, due=NOON, raw=b"\0\xff", tags=("a", "ü"), notes=FrozenMap(b=2, a=1)))
    client.create(Sample(id="large", number=2**64 - 1, sure=True))
    client.create(Task(id="task-1", title="read", project="p"))
    client.create(Project(id="p", name="p"))
    return client


def test_all_fields_of_all_entities_are_there_from_memory_and_from_the_folder(engine, samples, tmp_path):
    told = command(engine.state, tmp_path / "beside.db")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"revision 4 is in {tmp_path / 'beside.db'}: 1 Task, 1 Project, 2 Sample, 0 Named, " \
        "0 Solewriter, 0 SQLITE_KIND\n"  # fmt: skip
    engine.stop()
    assert export_state(engine.state, None, tmp_path / "later.db", replace=False).startswith("revision 4 is in ")

    found = tables(tmp_path / "beside.db")
    assert found["Sample"] == [
        {
            "id": "full", "version": 1, "number": 7, "share": 0.5, "name": "x", "sure": 0,
            "due": "2026-11-28T12:00:00.000000+00:00", "raw": b"\0\xff", "tags": '["a","ü"]', "notes": '{"a":1,"b":2}',
        },
        {
            "id": "large", "version": 1, "number": "18446744073709551615", "share": 0.5, "name": "x", "sure": 1,
            "due": None, "raw": b"", "tags": "[]", "notes": "{}",
        },
    ]  # fmt: skip
    [task] = found["Task"]
    assert task.keys() == Task.model_fields.keys()
    assert (task["title"], task["status"], task["priority"], task["version"]) == ("read", "created", "medium", 1)
    later = tables(tmp_path / "later.db")
    about, about_later = ({row["name"]: row["value"] for row in one.pop("solewriter")} for one in (found, later))
    assert about["revision"] == 4
    assert {**about, "exported_at": ""} == {**about_later, "exported_at": ""}
    assert found == later


def test_moments_are_what_sqlite_reads_as_such(engine, samples, tmp_path):
    export_state(engine.state, None, tmp_path / "x.db", replace=False)
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        assert database.execute("SELECT unixepoch(due) FROM Sample WHERE due > '2026'").fetchall() == [
            (int(NOON.timestamp()),)
        ]


def test_a_file_is_of_one_revision_whatever_happens_meanwhile(engine, client, tmp_path):
    ids = [f"s{number}" for number in range(2 * EXPORT_ROWS + 1)]
    for reply in client.submit_many(Create(Sample(id=id)) for id in ids):
        reply.check()
    with open_reader(engine.state) as reader, reader.snapshot() as snapshot:
        changes = [Update(Sample.ref("s0"), {"number": 1}), Delete(Sample.ref("s1")), Put(Sample(id="new"))]
        for reply in client.submit_many(changes):
            reply.check()
        found = export(snapshot, tmp_path / "x.db")
    assert (found.revision, found.counts["Sample"]) == (len(ids), len(ids))
    rows = tables(tmp_path / "x.db")["Sample"]
    assert {row["id"] for row in rows} == set(ids)
    assert {row["number"] for row in rows} == {0}


def test_of_large_entities_few_are_held_at_once(engine, client, tmp_path):
    size = 100_000
    for reply in client.submit_many(Create(Sample(name="x" * size)) for _ in range(200)):
        reply.check()
    with open_reader(engine.state) as reader:
        tracemalloc.start()
        try:
            export(reader.snapshot(), tmp_path / "x.db")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 50 * size


def test_an_earlier_revision(engine, samples, tmp_path):
    samples.delete(Sample.ref("full"))
    told = command(engine.state, tmp_path / "x.db", "--revision", 1)
    assert told.stdout.startswith("revision 1 is in ")
    found = tables(tmp_path / "x.db")
    assert [row["id"] for row in found["Sample"]] == ["full"]
    assert found["Task"] == []
    told = command(engine.state, tmp_path / "y.db", "--revision", 99)
    assert (told.returncode, told.stderr) == (1, "solewriter: there is no revision 99; the newest is 5\n")
    assert not (tmp_path / "y.db").exists()


def test_what_is_there_stays_unless_it_may_be_replaced(engine, samples, tmp_path):
    file = tmp_path / "x.db"
    file.write_text("precious")
    told = command(engine.state, file)
    assert (told.returncode, told.stderr) == (1, f"solewriter: {file} is there already\n")
    assert file.read_text() == "precious"
    assert command(engine.state, file, "--replace").returncode == 0
    assert len(tables(file)["Sample"]) == 2
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to("pipe")  # as /dev/stdout is one
    for other in (tmp_path, tmp_path / "pipe", tmp_path / "stdout"):
        with pytest.raises(FileExistsError, match=f"^{re.escape(str(other))} is there already$"):
            export_state(engine.state, None, other, replace=True)
    assert (tmp_path / "stdout").is_fifo()
    (tmp_path / "old.db").symlink_to("nowhere")
    export_state(engine.state, None, tmp_path / "old.db", replace=True)


@pytest.mark.parametrize(("mode", "log"), [("WAL", "x.db-wal"), ("DELETE", "x.db-journal")])
def test_a_file_that_is_changed_by_sql_is_not_replaced(engine, samples, tmp_path, mode, log):
    """What its log holds would be taken for a part of the new one."""
    file = tmp_path / "x.db"
    export_state(engine.state, None, file, replace=False)
    why = rf"^{tmp_path / log} is there: SQLite would take it for a part of x\.db$"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE INDEX numbers ON Sample (number)")
        with pytest.raises(FileExistsError, match=why):
            export_state(engine.state, None, file, replace=True)
        database.execute("COMMIT")
    export_state(engine.state, None, file, replace=True)
    (tmp_path / log).touch()
    file.unlink()
    with pytest.raises(FileExistsError, match=why):
        export_state(engine.state, None, file, replace=False)
    assert [path.name for path in tmp_path.glob("x*")] == [log]


def exported_beside(engine, file, deed):
    """In whose middle something happens."""

    class Beside(Snapshot):
        @property
        def counts(self):
            deed()
            return super().counts

    with open_reader(engine.state) as reader:
        export(Beside(reader, reader.pin()), file)


def test_what_comes_meanwhile_stays_as_well(engine, samples, tmp_path):
    """Another export, say, that was done first."""
    file = tmp_path / "x.db"
    with pytest.raises(FileExistsError, match=r"x\.db is there already"):
        exported_beside(engine, file, lambda: file.write_text("precious"))
    assert [(path.name, path.read_text()) for path in tmp_path.glob("x*")] == [("x.db", "precious")]


def test_an_export_that_is_interrupted_leaves_nothing_and_one_that_is_killed_no_file_of_this_name(
    engine, samples, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        exported_beside(engine, tmp_path / "x.db", lambda: signal.raise_signal(signal.SIGINT))
    assert not [*tmp_path.glob("x*")]
    if not (child := os.fork()):
        exported_beside(engine, tmp_path / "x.db", lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "x.db").exists()
    assert [path.name for path in tmp_path.glob("x*")] == [f"x.db.{child}.tmp"]


def test_what_a_killed_export_left_is_removed_by_the_next_one_to_that_file(engine, samples, tmp_path):
    """But nothing that is being written, nor anything else."""
    others = {"x.db.notes.tmp", "y.db.1.tmp"}
    for name in (*others, "x.db.1.tmp", "x.db.22.tmp"):
        (tmp_path / name).write_text("x")
    if not (child := os.fork()):
        exported_beside(engine, tmp_path / "x.db", lambda: os.kill(os.getpid(), signal.SIGSTOP))
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        export_state(engine.state, None, tmp_path / "x.db", replace=False)
        assert {path.name for path in tmp_path.glob("*.db*")} == {"x.db", f"x.db.{child}.tmp", *others}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    export_state(engine.state, None, tmp_path / "x.db", replace=True)
    assert {path.name for path in tmp_path.glob("*.db*")} == {"x.db", *others}


def test_nobody_else_may_read_it(engine, samples, tmp_path):
    export_state(engine.state, None, tmp_path / "x.db", replace=False)
    assert (tmp_path / "x.db").stat().st_mode & 0o077 == 0


def test_where_there_is_no_room_there_is_no_file(engine, samples, tmp_path, files_at_most):
    """As on a disk that is full: its error comes as SQLite's."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.db").write_text("precious")
    for name in ("new.db", "old.db"):
        with files_at_most(4096), pytest.raises(OSError, match=rf"{name} cannot be written: "):
            export_state(engine.state, None, folder / name, replace=True)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("old.db", "precious")]
    with pytest.raises(FileNotFoundError) as missing:
        export_state(engine.state, None, folder / "nowhere" / "x.db", replace=False)
    assert missing.value.filename == str(folder / "nowhere" / "x.db")


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_links_that_syncs_no_folder_takes_one(engine, samples, tmp_path, monkeypatch, refusal):
    """As those of network shares and virtual machines are."""
    file, sync = tmp_path / "x.db", os.fsync

    def link(*_):
        raise OSError(refusal, os.strerror(refusal))

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(fd)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", fsync)
    export_state(engine.state, None, file, replace=False)
    assert len(tables(file)["Sample"]) == 2
    file.unlink()
    with pytest.raises(FileExistsError, match=r"x\.db is there already"):
        exported_beside(engine, file, lambda: file.write_text("precious"))
    assert file.read_text() == "precious"


def test_a_disk_that_fails_is_told_with_the_name_of_the_file(engine, samples, tmp_path, monkeypatch):
    def fsync(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=re.escape(f"[Errno 5] Input/output error: '{tmp_path / 'x.db'}'")):
        export_state(engine.state, None, tmp_path / "x.db", replace=False)
    assert not [*tmp_path.glob("x*")]


def test_a_kind_of_which_nothing_is_stored_can_be_asked_for_its_fields(engine, tmp_path):
    """Its class says which have a default, or are columns; of the others nobody knows before one is stored."""
    export_state(engine.state, None, tmp_path / "x.db", replace=False)
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        assert database.execute("SELECT status, project, created_at, updated_at, result FROM Task").fetchall() == []
        columns = [row[1] for row in database.execute("PRAGMA table_info(Sample)")]
    assert columns == list(Sample.model_fields)


def test_a_field_that_is_newer_than_all_that_is_stored_has_a_column(engine, samples, tmp_path):
    class Newer(Sample, kind="Sample"):
        lang: str = "en"

    engine.register(Newer)
    export_state(engine.state, None, tmp_path / "x.db", replace=False)
    assert [row["lang"] for row in tables(tmp_path / "x.db")["Sample"]] == [None, None]
    samples.update(Newer.ref("full"), lang="fr")
    export_state(engine.state, None, tmp_path / "y.db", replace=False)
    assert [row["lang"] for row in tables(tmp_path / "y.db")["Sample"]] == ["fr", None]


def test_names_that_are_one_to_sqlite_are_kept_apart(engine, client, tmp_path):
    client.create(Named(id="one"))
    client.create(Solewriter(id="two"))
    client.create(SQLITE_KIND(id="three"))
    export_state(engine.state, None, tmp_path / "x.db", replace=False)
    found = tables(tmp_path / "x.db")
    assert found["Named"] == [{"id": "one", "version": 1, "ID_2": "capitals", "select": 1, "_sqlite_x": 2}]
    assert [row["id"] for row in found["Solewriter_2"]] == ["two"]
    assert [row["id"] for row in found["_SQLITE_KIND"]] == ["three"]
    assert found["solewriter"]
