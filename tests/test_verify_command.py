"""`solewriter verify` reads everything, and names the first bad place; `solewriter repair` cuts back on request."""

from __future__ import annotations

import itertools
import json
import shutil
import threading

import msgspec
import pytest
from typer.testing import CliRunner

from solewriter import Compacted, Create, Delete, Put, Task, Update, connect, open_reader
from solewriter.agents.cli.main import app
from solewriter.agents.verify import verify
from solewriter.engine_proc.repair import truncate
from solewriter.shared import entry as entries
from solewriter.shared import record
from solewriter.shared.chain import first_entry_of, first_of, journal_files
from solewriter.shared.checkpoint import checkpoint_files
from solewriter.shared.config import KIB, MIB, Limits
from solewriter.shared.errors import EngineUnavailable, JournalCorrupt, Locked
from solewriter.shared.folder import StateFolder

LIMITS = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=256 * KIB, journal_file_bytes=64 * KIB,
    checkpoint_after_bytes=64 * KIB, history_bytes=2 * MIB, recent_bytes=8 * KIB,
)  # fmt: skip


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory, wait_until):
    """A folder with history, checkpoints, deletions and two lives; its engine has stopped."""
    from solewriter import Engine

    state = tmp_path_factory.mktemp("worked") / "state"
    for rounds in range(2):
        with Engine(state, durability="process", limits=LIMITS), connect(state, limits=LIMITS) as client:

            def work(rounds=rounds, client=client) -> bool:
                mutations = [Put(Task(title="x" * 100, id=f"t{number}", max_retries=rounds)) for number in range(40)]
                mutations += [Update(Task.ref("t1"), {"title": "y" * 99}), Delete(Task.ref("t2"))]
                for reply in client.submit_many(mutations, window=50):
                    reply.check()
                try:
                    firsts = [first_entry_of(path) for path in journal_files(state)]
                except FileNotFoundError:  # it was just being trimmed
                    return False
                named = sum(first is not None and first.private.whole is not None for first in firsts)
                trimmed = first_of(journal_files(state)[0]) > 1 and len(checkpoint_files(state)) > 2
                return named > 1 and (not rounds or trimmed)

            wait_until(work, 60, "checkpoints, and something is trimmed")
            for _ in range(8):
                work()
            client.submit(Create(Task(title="refused", id="t1")))
    return state


@pytest.fixture
def folder(worked_in, state):
    shutil.copytree(worked_in, state, ignore=shutil.ignore_patterns("*.sock"))
    return state


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_sound_folder_is_read_whole_and_nothing_is_written(folder):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    found = verify(folder)
    assert found.checkpoints >= 2
    assert found.entities == 39
    assert found.first_revision > 0
    assert found.records == found.revision - found.first_revision
    told = run("verify", folder)
    assert told.exit_code == 0
    assert told.stdout.startswith(f"sound: 39 entities at revision {found.revision:,}, digest {found.digest}")
    assert json.loads(run("verify", folder, "--json").stdout) == {"ok": True, **found._asdict()}
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_beside_a_running_engine_it_reads_what_is_committed(folder, start_engine):
    start_engine(folder, limits=LIMITS)
    with connect(folder, limits=LIMITS) as client:
        revision = client.submit(Create(Task(title="x", id="new"))).revision
        assert verify(folder).revision == revision
        with pytest.raises(Locked):
            truncate(StateFolder(folder), revision)


def test_beside_an_engine_that_makes_and_trims_nothing_is_taken_for_damage(state, start_engine):
    limits = msgspec.structs.replace(LIMITS, history_bytes=128 * KIB)
    start_engine(state, limits=limits)
    puts = [Put(Task(title="x" * 200, id=f"t{number}")) for number in range(40)]
    first, done = [1], threading.Event()

    def work() -> None:
        with connect(state, limits=limits) as client:
            for rounds in itertools.count():
                changed = [Update(Task.ref(one.entity.id), {"max_retries": rounds % 9}) for one in puts]
                for reply in client.submit_many([*puts, *changed], window=40):
                    reply.check()
                if done.is_set():
                    return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while len(first) < 6:
            verify(state)
            first = sorted({*first, first_of(journal_files(state)[0])})
    finally:
        done.set()
        worker.join()


def test_ids_that_were_forgotten_begin_above_all_others_and_that_is_sound(state, start_engine):
    limits = msgspec.structs.replace(LIMITS, forgotten_keys_max=1, checkpoint_after_bytes=64 * MIB)
    engine = start_engine(state, limits=limits)
    with connect(state, limits=limits) as client:
        for number in range(9):
            client.create(Task(id=f"k{number}", title="x"))
        for title in "abcde":
            client.update(Task.ref("k0"), title=title)
        for number in range(9):
            client.delete(Task.ref(f"k{number}"))
        for rounds in range(40):  # memory is turned over, and the tombstones go
            puts = [Put(Task(title="x" * 200, id=f"t{number}", max_retries=rounds)) for number in range(40)]
            assert all(reply.applied for reply in client.submit_many(puts, window=40))
        assert client.create(Task(id="k1", title="again")).version > 3, "nothing was forgotten"
    engine.stop()
    assert verify(state).entities == 41


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_the_first_bad_place_is_named(folder):
    for path in [*journal_files(folder)[:-1], *checkpoint_files(folder).values()]:
        copy = path.read_bytes()
        for place in (0, 20, 70, 300):
            flipped(path, place)
            told = run("verify", folder)
            assert told.exit_code == 1, f"{path.name}:{place}"
            assert path.name in told.stderr or "no checkpoint" in told.stderr
            path.write_bytes(copy)
    assert run("verify", folder).exit_code == 0


def test_a_tail_that_is_gone_is_noticed(folder):
    path = journal_files(folder)[-1]
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    last = at
    while (found := entries.unpack(buffer, at)) is not None:
        last, at = at, found[2]
    path.write_bytes(buffer[:last] + bytes(len(buffer) - last))
    with pytest.raises(JournalCorrupt, match="were committed and are not") as caught:
        verify(folder)
    assert caught.value.place == f"{path.name}:{last}"


def chained(path, change):
    """Rewrite a journal file with every sum right, after `change(entry, bodies)` had its way with each entry."""
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    out, crc = buffer[:at], None
    while (found := entries.unpack(buffer, at)) is not None:
        entry, previous, at = found
        bodies = change(entry, list(entry.records()))
        packed, crc = entries.pack(
            entry.number, entry.revision, entry.time_us, previous if crc is None else crc, bodies, entry.private
        )
        out += packed
    path.write_bytes(out.ljust(len(buffer), b"\0"))


def with_version(body, version):
    return record.pack(
        *record.unpack(body)[:5], version, *record.unpack(body)[6:9], *map(encoded, record.unpack(body)[9:])
    )


def encoded(part):
    return part.encode() if isinstance(part, str) else part


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("version", lambda bodies: [with_version(bodies[0], 10_000), *bodies[1:]]),
        ("revision", lambda bodies: bodies[1:]),
        ("revision", lambda bodies: [*bodies, bodies[-1]]),
        ("checksum", lambda bodies: [bodies[0][:-1] + bytes([bodies[0][-1] ^ 1]), *bodies[1:]]),
    ],
)
def test_what_no_engine_writes_is_found_though_every_entry_is_whole(folder, what, change):
    path = journal_files(folder)[-1]
    changed = []

    def once(entry, bodies):
        if bodies and not changed:
            changed.append(entry.number)
            return change(bodies)
        return bodies

    chained(path, once)
    with pytest.raises(JournalCorrupt, match=what) as caught:
        verify(folder)
    assert path.name in caught.value.place


def test_a_state_that_is_not_what_the_journal_tells_is_found_by_its_digest(folder):
    """An update that says something else, with every sum and number right."""
    newest = max(checkpoint_files(folder))
    path = next(path for path in reversed(journal_files(folder)) if first_of(path) <= newest)

    def shouted(entry, bodies):
        if entry.number <= newest:
            found = [record.unpack(body) for body in bodies]
            return [record.pack(*one[:9], *map(encoded, one[9:15]), one.payload.replace(b"x", b"X")) for one in found]
        return bodies

    chained(path, shouted)
    with pytest.raises(JournalCorrupt):
        verify(folder)


def test_a_folder_without_a_journal_is_said_to_be_one(tmp_path):
    told = run("verify", tmp_path)
    assert (told.exit_code, told.stdout) == (1, "")
    assert "nothing is journaled" in told.stderr


# --- repair -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [0, 1, 41, 200])
def test_a_folder_is_cut_back_to_a_revision_and_goes_on(folder, start_engine, back):
    found = verify(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    told = run("repair", folder, "--truncate-at", found.revision - back)
    assert told.exit_code == 0, told.stderr
    (kept,) = [path for path in folder.parent.iterdir() if path.name.startswith("state.before-repair-")]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    after = verify(folder)
    assert found.revision - back - 50 < after.revision <= found.revision - back
    start_engine(folder, limits=LIMITS)
    with connect(folder, limits=LIMITS) as client:
        assert client.submit(Create(Task(title="x", id="new"))).revision == after.revision + 1


def test_a_repaired_folder_has_another_history(folder, start_engine):
    engine = start_engine(folder, limits=LIMITS)
    with open_reader(folder, limits=LIMITS) as reader, reader.snapshot() as snap:
        history, revision = snap.history_id, snap.revision
        watch = reader.watch(Task, since=revision)
        engine.stop()
        truncate(StateFolder(folder), revision - 5)
        start_engine(folder, limits=LIMITS)
        with reader.snapshot() as later:
            assert later.history_id != history
            assert later.revision < revision
        with connect(folder, limits=LIMITS) as client:
            client.create(Task(title="x"))
        with pytest.raises(Compacted, match="another history"):
            next(watch)


def test_damage_behind_the_cut_goes_with_it(folder, start_engine):
    revision = verify(folder).revision
    path = journal_files(folder)[-1]
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    places = []
    while (found := entries.unpack(buffer, at)) is not None:
        places.append((at, found[0]))
        at = found[2]
    with_bodies = [(place, entry) for place, entry in places if entry.bodies]
    place, entry = with_bodies[len(with_bodies) // 2]
    flipped(path, place + 60)
    with pytest.raises(JournalCorrupt):
        verify(folder)
    truncate(StateFolder(folder), revision)
    assert verify(folder).revision < entry.revision
    start_engine(folder, limits=LIMITS)


def test_what_is_older_than_every_checkpoint_cannot_be_cut_back_to(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    told = run("repair", folder, "--truncate-at", 1)
    assert told.exit_code == 1
    assert "cannot be cut back to revision 1" in told.stderr
    with pytest.raises(EngineUnavailable):
        truncate(StateFolder(folder), 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"} == {
        name: content for name, content in before.items() if name != "lock"
    }


def test_a_folder_is_not_cut_back_to_where_a_start_would_need_a_checkpoint_that_was_trimmed(folder):
    """A file that begins behind an older checkpoint stays where later entries of it are needed."""
    firsts = [first for path in journal_files(folder) if (first := first_entry_of(path)) and first.private.whole]
    older = firsts[-2].private.whole.checkpoint.entry
    for entry, path in checkpoint_files(folder).items():
        if entry <= older:
            path.unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    with pytest.raises(EngineUnavailable, match="no checkpoint is so old"):
        truncate(StateFolder(folder), firsts[-2].revision + 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"} == before
