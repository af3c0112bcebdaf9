"""`solewriter verify` reads everything, and names the first bad place; `solewriter repair` cuts back on request."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from zlib import crc32

import msgspec
import pytest
from typer.testing import CliRunner

from solewriter import Compacted, Create, Delete, Put, Task, Update, connect, open_reader
from solewriter.agents.cli.main import app
from solewriter.agents.reading import journal as reading
from solewriter.agents.reading.journal import Files
from solewriter.agents.verify import verify
from solewriter.engine_proc.recovery.copying import give
from solewriter.engine_proc.recovery.repair import truncate
from solewriter.shared import record
from solewriter.shared.config import KIB, MIB, Limits
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, JournalCorrupt, Locked
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files, oldest_entry
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.walk import entries_between

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


@pytest.fixture
def passable_folder(worked_in, passable):
    return shutil.copytree(worked_in, passable / "state", ignore=shutil.ignore_patterns("*.sock"))


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


@pytest.mark.heavy
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


def test_a_tail_that_is_gone_is_noticed_and_its_place_told(folder, start_engine):
    path = journal_files(folder)[-1]
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    last = at
    while (found := entries.unpack(buffer, at)) is not None:
        last, at = at, found[2]
    path.write_bytes(buffer[:last] + bytes(len(buffer) - last))
    with pytest.raises(JournalCorrupt, match="were committed and are not") as caught:
        verify(folder)
    assert caught.value.place == f"{path.name}:{last}"
    assert f"({path.name}:{last})" in run("verify", folder).stderr
    told = run("verify", folder, "--json")
    assert told.exit_code == 1
    said = {"ok": False, "error": str(caught.value), "place": f"{path.name}:{last}", "starts": False}
    assert json.loads(told.stdout) == said
    with pytest.raises(EngineStartFailed, match=re.escape(f"({path.name}:{last})")):
        start_engine(folder, limits=LIMITS)


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


def retold(folder, change):
    """Rewrite the whole journal with every sum, link and note right: `change(entry)` gives what an entry is instead."""
    crc, number = None, 0
    for path in journal_files(folder):
        buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
        start = entries.read_file_header(path, buffer)
        crc = start.previous_crc if crc is None else crc
        out = entries.file_header(start.state_id, start.first, crc)
        while (found := entries.unpack(buffer, at)) is not None:
            entry, at = change(found[0]), found[2]
            number = entry.number
            said = entry.private
            packed, crc = entries.pack(number, entry.revision, entry.time_us, crc, list(entry.records()), said)
            out += packed
        path.write_bytes(out.ljust(len(buffer), b"\0"))
    note, place = entries.committed_note(number, crc)
    (folder / "committed").write_bytes(bytes(place) + note)


def saying(entry, /, **changes):
    """The entry with something else in its private part."""
    return entry._replace(said=msgspec.msgpack.encode(msgspec.structs.replace(entry.private, **changes)))


def naming(entry, /, **changes):
    """The entry with another name of the checkpoint that it was written behind."""
    whole = entry.private.whole
    checkpoint = msgspec.structs.replace(whole.checkpoint, **changes)
    return saying(entry, whole=msgspec.structs.replace(whole, checkpoint=checkpoint))


def described(path, *, behind=None, **changes):
    """Rewrite a checkpoint with something else in its directory, or behind another entry, and every sum right."""
    with Checkpoint(path) as one:
        directory, entry = msgspec.structs.replace(one.directory, **changes), behind or one.entry
        blocks = {block.offset: block.length for section in one.sections() for block in section.blocks}
    content, end = path.read_bytes(), max(offset + length for offset, length in blocks.items())
    packed = msgspec.msgpack.encode(directory)
    rest = struct.pack("<16sQQII", content[16:32], entry, end, len(packed), crc32(packed))
    head = content[:12] + struct.pack("<I", crc32(rest)) + rest
    path.write_bytes(head.ljust(64, b"\0") + content[64:end] + packed)


def test_a_journal_that_was_only_written_again_is_sound(folder):
    found = verify(folder)
    retold(folder, lambda entry: entry)
    described(checkpoint_files(folder)[max(checkpoint_files(folder))])
    assert verify(folder) == found


# --- what a power cut may take below `power` --------------------------------------------------------------------------


def left_by(folder, **changes):
    """As if the last engine had left it so: its life says something else."""

    def left(entry):
        whole, life = entry.private.whole, entry.private.life
        if life is not None:
            return saying(entry, life=msgspec.structs.replace(life, drained=False, **changes))
        if whole is not None:
            return saying(
                entry, whole=msgspec.structs.replace(whole, life=msgspec.structs.replace(whole.life, **changes))
            )
        return entry

    retold(folder, left)


def holed(folder, how):
    """Damage an entry of the last file, or all from it on; the one before it."""
    path = journal_files(folder)[-1]
    buffer, at, places = path.read_bytes(), entries.FILE_HEADER_BYTES, []
    while (found := entries.unpack(buffer, at)) is not None:
        places.append((at, found[0]))
        at = found[2]
    middle = len(places) // 2
    place, before = places[middle][0], places[middle - 1][1]
    if how == "hole":
        flipped(path, place + 60)
    else:
        path.write_bytes(buffer[:place] + bytes(len(buffer) - place))
    return before


@pytest.mark.parametrize("how", ["hole", "end"])
def test_what_a_start_takes_for_a_power_cut_is_no_damage_to_whoever_looks_before_it(folder, start_engine, how):
    left_by(folder, boot="another one")
    last = all_entries(folder)[-1].number
    before = holed(folder, how)
    found = verify(folder)
    assert (found.revision, found.drops) == (before.revision, (before.number + 1, last))
    told = run("verify", folder)
    assert told.exit_code == 0
    assert f"a start will drop entries {before.number + 1} to {last}" in told.stdout
    assert json.loads(run("verify", folder, "--json").stdout)["drops"] == [before.number + 1, last]
    with open_reader(folder, offline=True) as reader, reader.snapshot() as snap:
        expected = snap.revision, {task.id: task for task in snap.entities(Task)}
    assert expected[0] == before.revision
    engine = start_engine(folder, limits=LIMITS)
    with connect(folder, limits=LIMITS) as client, client.reader.snapshot() as snap:
        assert (snap.revision, {task.id: task for task in snap.entities(Task)}) == expected
    engine.stop()
    assert verify(folder).drops is None


@pytest.mark.parametrize(
    "changes", [{}, {"boot": "another one", "durability": "power"}], ids=["of this boot", "of power"]
)
def test_what_no_power_cut_explains_stays_damage(folder, changes):
    left_by(folder, **changes)
    holed(folder, "hole")
    with pytest.raises(JournalCorrupt, match="is damaged at offset"):
        verify(folder)
    with pytest.raises(JournalCorrupt, match="is damaged at offset"), open_reader(folder, offline=True):
        pass


def test_what_a_later_start_found_whole_is_damaged_whatever_was_cut_before_it(folder, start_engine):
    left_by(folder, boot="another one")
    engine = start_engine(folder, limits=LIMITS)
    with connect(folder, limits=LIMITS) as client:
        client.create(Task(title="since then", id="since"))
    engine.stop()
    path = journal_files(folder)[-1]
    buffer, at, places = path.read_bytes(), entries.FILE_HEADER_BYTES, []
    while (found := entries.unpack(buffer, at)) is not None and found[0].private.life is None:
        places.append(at)
        at = found[2]
    assert found is not None, "the life that began since then"
    flipped(path, places[-1] + 60)
    with pytest.raises(JournalCorrupt, match="is damaged at offset"):
        verify(folder)
    with pytest.raises(JournalCorrupt, match="is damaged at offset"), open_reader(folder, offline=True):
        pass
    with pytest.raises(EngineStartFailed, match="is damaged at offset"):
        start_engine(folder, limits=LIMITS)


def test_what_was_on_disk_before_the_private_state_is_damaged_whatever_was_cut(folder):
    left_by(folder, boot="another one")
    flipped(journal_files(folder)[0], entries.FILE_HEADER_BYTES + 60)
    with pytest.raises(JournalCorrupt):
        verify(folder)


def tasks_in(checkpoint):
    with Checkpoint(checkpoint) as one:
        return one.directory.tables[one.directory.kinds.index("Task")].alive


def test_a_checkpoint_that_nobody_names_and_that_is_ahead_of_the_journal_is_no_matter(folder, start_engine):
    """A power cut took the entry that it was taken behind; a start begins with the one that is named."""
    last = all_entries(folder)[-1]
    ahead = checkpoint_path(folder, last.number + 1)
    alike = [path for path in checkpoint_files(folder).values() if tasks_in(path) == 39]  # as at the last revision
    shutil.copy(alike[-1], ahead)
    described(ahead, behind=last.number + 1, revision=last.revision)
    assert verify(folder).revision == last.revision
    with open_reader(folder, offline=True) as reader, reader.snapshot() as snap:
        assert (snap.revision, snap.counts["Task"]) == (last.revision, 39)
    start_engine(folder, limits=LIMITS)


def shouting(payload):
    return payload.replace(b"xxx", b"zzz").replace(b"yyy", b"zzz")


def test_a_state_that_is_not_what_the_journal_tells_is_found_by_its_digest(folder):
    """An update that says something else, with every sum, number and link right."""
    *_, older, newest = checkpoint_files(folder)

    def shouted(entry):
        if not older < entry.number <= newest:
            return entry
        found = [record.unpack(body) for body in entry.records()]
        bodies = [record.pack(*one[:9], *map(encoded, one[9:15]), shouting(one.payload)) for one in found]
        return entry._replace(bodies=b"".join(bodies))

    retold(folder, shouted)
    with pytest.raises(JournalCorrupt, match="holds another state than the journal tells") as caught:
        verify(folder)
    assert caught.value.place.startswith(f"checkpoint-{newest:020d}")


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"digest": bytes(16)}, "holds another state"), ({"revision": 7}, "is of revision 7, not")],
)
def test_a_checkpoint_that_says_something_else_than_the_journal_is_found(folder, changes, what):
    path = checkpoint_files(folder)[max(checkpoint_files(folder))]
    described(path, **changes)
    with pytest.raises(JournalCorrupt, match=what) as caught:
        verify(folder)
    assert caught.value.place == f"{path.name}:0"


@pytest.mark.parametrize(
    ("which", "change", "what"),
    [
        (lambda entry: entry.bodies, lambda entry: entry._replace(revision=entry.revision + 1), "its records end with"),
        (lambda entry: not entry.bodies, lambda entry: entry._replace(revision=entry.revision - 1), "the entry says"),
        (lambda entry: entry.private.whole, lambda entry: naming(entry, entry=entry.number), "a checkpoint of later"),
        (lambda entry: entry.private.whole, lambda entry: naming(entry, crc=7), "is not the one that entry"),
        (lambda entry: entry.bodies, lambda entry: entry._replace(number=entry.number + 1), "does not follow entry"),
    ],
    ids=["too high", "too low", "a later checkpoint", "another checkpoint", "a gap"],
)
def test_what_does_not_fit_together_is_found_though_every_sum_is_right(folder, which, change, what):
    """In the last entry of its sort, which is behind all that a start would leave out."""
    every = [entry for entry in all_entries(folder) if which(entry)]
    retold(folder, lambda entry: change(entry) if entry.number == every[-1].number else entry)
    with pytest.raises(JournalCorrupt, match=what):
        verify(folder)


def all_entries(folder):
    last, _ = entries.last_committed((folder / "committed").read_bytes())
    return list(entries_between(folder, first_of(journal_files(folder)[0]), last))


@pytest.mark.parametrize("dead", [False, True], ids=["never there", "deleted already"])
def test_a_deletion_of_what_is_not_there_is_found(folder, dead):
    last = all_entries(folder)[-1]
    tombs = [body for entry in all_entries(folder) for body in entry.records() if record.deleted_at(body, 0)]
    one = record.unpack(tombs[-1])
    tomb = record.pack(
        one.kind, one.schema, one.op, record.Flags.DELETE | record.Flags.FIRST | record.Flags.LAST, last.revision + 1,
        one.version + 1, 0, 0, 0, one.key.encode() if dead else b"nobody", b"", b"", b"", b"", b"", b"",
    )  # fmt: skip

    def deleted_again(entry):
        if entry.number == last.number:
            return entry._replace(revision=entry.revision + 1, bodies=entry.bodies + tomb)
        return entry

    retold(folder, deleted_again)
    with pytest.raises(JournalCorrupt, match="is deleted, and was not there"):
        verify(folder)


def test_a_file_of_another_state_or_in_anothers_place_is_found(folder, tmp_path):
    *_, before, path = journal_files(folder)
    content = path.read_bytes()
    start = entries.read_file_header(path, content)
    for header, what in (
        (entries.file_header(b"x" * 16, start.first, start.previous_crc), "belongs to another state"),
        (entries.file_header(start.state_id, start.first + 1, start.previous_crc), "begins with entry"),
        (entries.file_header(start.state_id, start.first, start.previous_crc ^ 1), "does not follow entry"),
    ):
        path.write_bytes(header + content[len(header) :])
        with pytest.raises(JournalCorrupt, match=what) as caught:
            verify(folder)
        assert caught.value.place == f"{path.name}:0"
    path.write_bytes(content)
    before.unlink()
    with pytest.raises(JournalCorrupt, match="is not at"):
        verify(folder)


def test_a_note_of_another_entry_than_is_there_is_found(folder):
    number, crc = entries.last_committed((folder / "committed").read_bytes())
    note, place = entries.committed_note(number, crc ^ 1)
    (folder / "committed").write_bytes(bytes(place) + note)
    with pytest.raises(JournalCorrupt, match=f"entry {number} is not the one that was committed"):
        verify(folder)


@pytest.mark.parametrize("content", [None, b"", b"no note"])
def test_without_a_note_of_what_was_committed_all_that_is_whole_counts(folder, content):
    found = verify(folder)
    (folder / "committed").unlink()
    if content is not None:
        (folder / "committed").write_bytes(content)
    assert verify(folder) == found


def test_a_journal_that_no_checkpoint_leads_to_is_said_to_be_one(folder):
    for path in checkpoint_files(folder).values():
        path.unlink()
    told = run("verify", folder)
    assert told.exit_code == 1
    assert "no checkpoint is there from which the journal goes on" in told.stderr


def test_files_that_went_between_two_looks_are_no_damage(folder, monkeypatch):
    """As those that an engine trims: whoever looks begins again with what is left."""
    begin = oldest_entry(folder)
    monkeypatch.setattr(reading, "oldest_entry", lambda folder: begin)
    path, following, *_ = journal_files(folder)
    assert first_of(path) <= begin + 1 < first_of(following)
    path.unlink()
    with pytest.raises(Compacted, match=f"begins with {following.name}"):
        Files(folder)


def test_a_history_from_its_very_beginning_is_read_without_a_checkpoint(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        for number in range(5):
            client.create(Task(title="x", id=f"t{number}"))
    engine.stop()
    found = verify(state)
    assert (found.first_revision, found.revision, found.entities, found.checkpoints) == (0, 5, 5, 0)


def test_a_folder_without_a_journal_is_said_to_be_one(tmp_path):
    told = run("verify", tmp_path)
    assert (told.exit_code, told.stdout) == (1, "")
    assert "nothing is journaled" in told.stderr


@pytest.mark.parametrize("command", [["verify"], ["repair", "--around-checkpoint"], ["repair", "--truncate-at", "3"]])
def test_what_the_system_does_not_let_be_read_is_one_line(tmp_path, command):
    (tmp_path / "journal-00000000000000000001.log").mkdir()
    told = run(*command, tmp_path)
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.splitlines() == [
        f"solewriter: [Errno 21] Is a directory: '{tmp_path}/journal-00000000000000000001.log'"
    ]


@pytest.mark.parametrize("which", [0, -1])
def test_a_file_that_the_disk_has_lost_is_named(folder, lost_by_the_disk, which):
    """Reading one that is open, the system itself does not say which."""
    path = journal_files(folder)[which]
    lost_by_the_disk(path)
    told = run("verify", folder)
    assert (told.exit_code, told.stderr) == (1, f"solewriter: [Errno 5] Input/output error: '{path}'\n")


def test_what_may_not_be_read_is_not_cut_off(passable_folder):
    folder = passable_folder
    path, revision = journal_files(folder)[-1], verify(folder).revision
    root = os.geteuid() == 0
    if root:  # which may read everything
        for one in (folder, folder.parent, *folder.iterdir()):
            os.chown(one, 65534, 65534)
        os.seteuid(65534)
    try:
        path.chmod(0)
        told = run("repair", folder, "--truncate-at", revision)
    finally:
        os.seteuid(0 if root else os.geteuid())
    assert told.stderr == f"solewriter: [Errno 13] Permission denied: '{path}'\n"
    assert (path.exists(), beside(folder)) == (True, [])


def test_a_folder_that_may_not_be_written_is_neither_copied_nor_cut_in_half(passable_folder):
    """Its files may be: then the journal would end already, and what was committed still go on behind that."""
    folder = passable_folder
    before, revision = contents(folder), verify(folder).revision
    root = os.geteuid() == 0
    if root:  # which may write everywhere
        for one in (folder, folder.parent, *folder.iterdir()):
            os.chown(one, 65534, 65534)
        os.seteuid(65534)
    try:
        folder.chmod(0o500)
        told = run("repair", folder, "--truncate-at", revision - 1)
    finally:
        folder.chmod(0o700)
        os.seteuid(0 if root else os.geteuid())
    assert told.stderr == f"solewriter: {folder} may not be written to: nothing was changed\n"
    assert (contents(folder), beside(folder)) == (before, [])


def test_what_root_gives_back_is_no_file_that_somebody_put_there_meanwhile(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    own.touch()
    theirs.symlink_to(own)
    os.chown(tmp_path, 65534, 65534)
    give(theirs, tmp_path.stat())
    assert (own.stat().st_uid, theirs.lstat().st_uid) == (0, 65534)


def test_a_checkpoint_that_the_disk_has_lost_is_damaged(folder, lost_by_the_disk):
    path = max(checkpoint_files(folder).values())
    lost_by_the_disk(path)
    told = run("verify", folder, "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["place"] == f"{path.name}:0"
    assert "cannot be read (Input/output error)" in told.stderr


def test_a_folder_that_cannot_be_read_is_one_object_all_the_same(tmp_path):
    told = run("verify", tmp_path, "--json")
    assert told.exit_code == 1
    said = {"ok": False, "error": f"nothing is journaled in {tmp_path}", "place": None, "starts": None}
    assert json.loads(told.stdout) == said


# Imported first: what belongs to root is not found behind that. All of a process's ids: typer asks for the real one.
AS_ANOTHER_USER = """
import os
import encodings.idna
import solewriter.agents.cli.checking
from solewriter.agents.cli.main import app
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
app()
"""


def test_another_users_folder_is_no_wrong_use_and_one_object_too(passable):
    if os.geteuid() != 0:
        pytest.skip("to be another user needs root")
    theirs = passable / "theirs"
    theirs.mkdir(mode=0o700)
    command = [sys.executable, "-P", "-c", AS_ANOTHER_USER, *map(str, ("verify", "--json", theirs))]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (1, f"solewriter: {theirs} is another user's: it cannot be read\n")
    assert json.loads(told.stdout)["error"] == f"{theirs} is another user's: it cannot be read"


@pytest.mark.parametrize("options", [["--around-checkpoint"], ["--truncate-at", "3"]])
def test_a_folder_that_is_no_state_is_not_repaired_and_nothing_is_put_there(tmp_path, options):
    (tmp_path / "notes").touch()
    told = run("repair", tmp_path, *options)
    assert (told.exit_code, told.stderr) == (
        1,
        f"solewriter: nothing is journaled in {tmp_path}: there is nothing to repair\n",
    )
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize(
    ("damaged", "hint"),
    [
        ("the oldest file", "a start needs nothing of that"),
        ("an older checkpoint", "a start needs nothing of that"),
        ("the newest checkpoint", "--around-checkpoint"),
        ("what the newest checkpoint needs", "--truncate-at"),
        ("the last entry", "--truncate-at"),
    ],
)
def test_of_damage_is_said_whether_a_start_is_refused_for_it_and_what_to_do(folder, start_engine, damaged, hint):
    files, checkpoints = journal_files(folder), sorted(checkpoint_files(folder))
    whole = [path for path in files if (first := first_entry_of(path)) is not None and first.private.whole is not None]
    path, at = {
        "the oldest file": (files[0], entries.FILE_HEADER_BYTES + 30),
        "an older checkpoint": (checkpoint_path(folder, checkpoints[-2]), 30),
        "the newest checkpoint": (checkpoint_path(folder, checkpoints[-1]), 30),
        "what the newest checkpoint needs": (whole[-1], entries.FILE_HEADER_BYTES + 30),
        "the last entry": (files[-1], end_of(files[-1]) - 10),
    }[damaged]
    buffer = bytearray(path.read_bytes())
    buffer[at] ^= 1
    path.write_bytes(buffer)
    told = run("verify", folder, "--json")
    assert told.exit_code == 1
    starts = json.loads(told.stdout)["starts"]
    assert starts is hint.startswith("a start needs nothing")
    assert hint in told.stderr.splitlines()[-1]
    if starts:
        start_engine(folder, limits=LIMITS)
    else:
        with pytest.raises(EngineStartFailed, match="JournalCorrupt"):
            start_engine(folder, limits=LIMITS)


def test_where_only_a_cut_helps_the_revision_is_told_that_keeps_most(folder, start_engine):
    newest, path = verify(folder).revision, journal_files(folder)[-1]
    buffer = bytearray(path.read_bytes())
    buffer[end_of(path) - 10] ^= 1
    path.write_bytes(buffer)
    told = run("verify", folder)
    revision = int(told.stderr.split("--truncate-at ")[1])
    assert newest - 50 < revision <= newest
    assert run("repair", folder, "--truncate-at", revision).exit_code == 0
    assert verify(folder).revision == revision
    start_engine(folder, limits=LIMITS)


def test_where_nothing_tells_the_revision_a_start_is_refused_all_the_same(folder):
    for path in journal_files(folder):
        with open(path, "r+b") as file:
            file.write(b"\xff\xff")
    told = run("verify", folder, "--json")
    assert json.loads(told.stdout)["starts"] is False


def end_of(path):
    """Of the last entry in a file."""
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at)) is not None:
        at = found[2]
    return at


def test_an_engine_that_trims_again_and_again_is_not_waited_for_for_ever():
    tries = []

    def read():
        tries.append(1)
        raise Compacted("trimmed meanwhile", oldest=0)

    with pytest.raises(Compacted):
        reading.retry_when_trimmed(read)
    assert len(tries) == reading.TRIES


# --- repair -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [1, 41, 200])
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


@pytest.mark.parametrize("beyond", [0, 1, 2**40])
def test_where_nothing_lies_behind_a_revision_there_is_nothing_to_give_up(folder, beyond):
    """No copy is made, and no other history begins, of which every reader would have to be told."""
    before, newest = contents(folder), verify(folder).revision
    told = run("repair", folder, "--truncate-at", newest + beyond)
    assert told.exit_code == 1
    assert told.stderr == f"solewriter: nothing lies behind revision {newest} in {folder}: nothing was changed\n"
    assert (contents(folder), beside(folder)) == (before, [])


@pytest.mark.parametrize("beyond", [0, 5])
def test_an_end_that_is_damaged_is_cut_off_whatever_revision_is_asked_for(folder, start_engine, beyond):
    """What was committed is noted beside the journal: a start refuses the folder until somebody decides."""
    newest, last = verify(folder).revision, all_entries(folder)[-1]
    path = journal_files(folder)[-1]
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at)) is not None and found[0].number < last.number:
        at = found[2]
    flipped(path, at + 20)
    with pytest.raises(EngineStartFailed, match="committed and are not in the journal"):
        start_engine(folder, limits=LIMITS)
    assert run("repair", folder, "--truncate-at", newest + beyond).exit_code == 0
    start_engine(folder, limits=LIMITS)


def beside(folder):
    return sorted(path for path in folder.parent.iterdir() if path != folder)


def test_the_copy_is_beside_the_folder_however_it_is_named(folder, tmp_path_factory):
    (folder / "inside").mkdir()
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder)
    revision = verify(folder).revision
    for back, path in enumerate([folder / "inside" / "..", link], 1):
        before = beside(folder)
        _, kept = truncate(StateFolder(path), revision - 50 * back)
        assert beside(folder) == sorted([*before, kept])
        assert sorted(path.name for path in (kept / "inside").iterdir()) == []
    assert list(link.parent.iterdir()) == [link]


def test_where_there_is_no_room_for_the_copy_nothing_is_changed_and_nothing_left(folder, files_at_most):
    before, revision = contents(folder), verify(folder).revision
    with files_at_most(32 * KIB):  # a disk that has room for a part of it
        told = run("repair", folder, "--truncate-at", revision - 5)
    assert told.exit_code == 1
    (line,) = told.stderr.splitlines()
    assert "cannot be copied, and so nothing was changed: [Errno 27] File too large" in line
    assert (contents(folder), beside(folder)) == (before, [])


@pytest.mark.parametrize("name", ["committed.tmp", "the journal's file"])
def test_a_cut_writes_through_no_link_that_somebody_put_there(folder, tmp_path, name):
    path = journal_files(folder)[-1] if name == "the journal's file" else folder / name
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes() if path.exists() else b"somebody's")
    path.unlink(missing_ok=True)
    path.symlink_to(other)
    before, files = other.read_bytes(), sorted(folder.iterdir())
    told = run("repair", folder, "--truncate-at", verify(folder).revision - 1)
    assert other.read_bytes() == before
    if path.name == "committed.tmp":
        assert told.exit_code == 0, told.stderr
    else:
        assert told.stderr == f"solewriter: [Errno 40] Too many levels of symbolic links: '{path}'\n"
        assert sorted(folder.iterdir()) == files


def test_what_root_repairs_stays_its_users(folder):
    if os.geteuid() != 0:
        pytest.skip("giving a folder to another user needs root")
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    _, kept = truncate(StateFolder(folder), verify(folder).revision - 5)
    made = [folder, *folder.iterdir(), kept, *kept.iterdir()]
    assert {path.name: (path.stat().st_uid, path.stat().st_gid) for path in made} == {
        path.name: (65534, 65534) for path in made
    }


CUT = """
import os, sys
from solewriter.engine_proc.recovery.repair import truncate
from solewriter.shared.folder import StateFolder

modes = set()

def look(event, given):
    if event == "open" and ".before-repair-" in os.path.dirname(str(given[0])):
        modes.add(os.stat(os.path.dirname(given[0])).st_mode & 0o777)

sys.addaudithook(look)
os.umask(0o022)
_, kept = truncate(StateFolder(sys.argv[1]), int(sys.argv[2]))
print(*modes, oct(kept.stat().st_mode & 0o777), {path.stat().st_mode & 0o077 for path in kept.iterdir()})
"""


def test_the_copy_that_a_cut_leaves_can_be_read_by_nobody_else_while_it_is_made(folder):
    """Nor behind it, whoever may enter the folder."""
    folder.chmod(0o755)
    cut = [sys.executable, "-c", CUT, folder, str(verify(folder).revision - 5)]
    told = subprocess.run(cut, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == f"{0o700} 0o755 {{0}}\n"


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


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_repair_that_is_killed_leaves_a_folder_that_waits_for_the_next_one(folder, start_engine, step):
    """No engine goes on under the old history, which would give revisions out again."""
    revision = verify(folder).revision
    with open_reader(folder, offline=True) as reader:
        history = reader.snapshot().history_id
    child = os.fork()
    if child == 0:
        setattr(os, step, lambda *_: os._exit(9))
        truncate(StateFolder(folder), revision - 5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(EngineStartFailed, match=r"committed and are not in the journal|not the one that was committed"):
        start_engine(folder, limits=LIMITS)
    truncate(StateFolder(folder), revision - 5)
    start_engine(folder, limits=LIMITS)
    with open_reader(folder) as reader, reader.snapshot() as snap:
        assert snap.history_id != history
        assert snap.revision <= revision - 5


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


def contents(folder):
    """Of all files but the lock, which names whoever held it last."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


def test_before_the_beginning_of_all_there_is_nothing_to_cut_back_to(state, start_engine):
    start_engine(state).stop()
    before = contents(state)
    with pytest.raises(EngineUnavailable, match="no whole entry is so old"):
        truncate(StateFolder(state), -1)
    assert contents(state) == before


def test_a_cut_ends_before_a_file_that_is_missing(folder, start_engine):
    """What lies behind the gap follows nothing, however new a revision is asked for."""
    revision, before, last = verify(folder).revision, journal_files(folder), all_entries(folder)[-1]
    state_id, first = entries.read_file_header(before[0], before[0].read_bytes()).state_id, last.number + 5
    packed, _ = entries.pack(first, revision + 5, 0, 7, [], entries.Private())
    behind = folder / f"journal-{first:020d}.log"
    behind.write_bytes(entries.file_header(state_id, first, 7) + packed)
    with pytest.raises(JournalCorrupt, match="is not at"):
        verify(folder)
    truncate(StateFolder(folder), revision + 9)
    assert journal_files(folder) == before
    assert verify(folder).revision == revision
    start_engine(folder, limits=LIMITS)


def test_what_was_quarantined_stays_so_in_the_history_that_a_repair_begins(folder):
    """It would kill two more engines to find out again."""
    *_, last = read = all_entries(folder)
    told = next(entry for entry in reversed(read) if entry.revision < last.revision)
    life = msgspec.structs.replace(last.private.life, quarantined=[(7, 3)])
    retold(folder, lambda entry: saying(entry, life=life) if entry.number == told.number else entry)
    truncate(StateFolder(folder), told.revision)
    assert all_entries(folder)[-1].private.life.quarantined == [(7, 3)]
    assert all_entries(folder)[-1].private.life.history != life.history
