"""A damaged checkpoint takes nothing along where an older one is there, and the journal behind that: on request a start
goes around it, and all is as it was.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from solewriter import (
    Compacted,
    Create,
    Delete,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Locked,
    Put,
    Task,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.cli.main import app
from solewriter.agents.verify import Replay, verify
from solewriter.engine_proc.recovery.repair import set_aside, truncate
from solewriter.shared.config import KIB, MIB, Limits
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal import life as lives
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files, named_checkpoints
from solewriter.shared.journal.checkpoint import checkpoint_files, checkpoint_path
from solewriter.shared.journal.setaside import aside_path

SMALL = {
    "heap_segment_bytes_first": 64 * KIB,
    "heap_segment_bytes_max": 256 * KIB,
    "journal_file_bytes": 64 * KIB,
    "checkpoint_after_bytes": 64 * KIB,
    "recent_bytes": 8 * KIB,
    "forgotten_keys_max": 20,
}
ALL, SOME = Limits(**SMALL, history_bytes=64 * MIB), Limits(**SMALL, history_bytes=1 * MIB)
KEYS = [f"k{number}" for number in range(60)]


def round_of_work(number: int) -> list[Any]:
    """Keys come, change and go: tombstones are forgotten, and their slots used again."""
    keys = [key for key in KEYS if (int(key[1:]) + number) % 3]
    deleted = [key for key in keys if (len(key) + number + int(key[1:])) % 2]
    return [
        *(Put(Task(title="x" * 200, id=key, max_retries=number)) for key in keys),
        *(Delete(Task.ref(key)) for key in deleted),
    ]


def work(client: Any, until: Callable[[], bool], versions: dict[str, int]) -> None:
    """Rounds of it `until` that is true; the engine has some more to do while that looks. Notes last versions."""
    rounds = itertools.takewhile(lambda _: not until(), itertools.count())
    for reply in client.submit_many((one for number in rounds for one in round_of_work(number)), window=64):
        (result,) = reply.check().results
        versions[result.id] = result.version


def named(state):
    return [name.entry for name in named_checkpoints(state)]


def naming(state):
    """The journal files that name them."""
    return [path for path in reversed(journal_files(state)) if (one := first_entry_of(path)) and one.private.whole]


def fits(state, limits) -> bool:
    """Whether the journal names three checkpoints, turns were taken while the second newest was made, the newest is of
    an entry in the midst of a file, and, where old history goes, the first of it is gone.
    """
    try:
        if len(naming(state)) < 3:
            return False
        newest, second, *_ = named(state)
        turns = first_of(naming(state)[1]) > second + 1
        midst = first_of(max(path for path in journal_files(state) if first_of(path) <= newest)) < newest
        return turns and midst and (limits is ALL or first_of(journal_files(state)[0]) > 1)
    except (FileNotFoundError, ValueError):  # it was just being trimmed
        return False


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory):
    """`worked_in(limits)`: such a folder, whose engine has stopped; and the last versions of its keys."""
    made = {}

    def of(limits):
        end = time.monotonic() + 60
        while limits not in made:
            state, versions = tmp_path_factory.mktemp("worked") / "state", {}

            def enough(state=state) -> bool:
                assert time.monotonic() < end, "waited 60 s in vain for three checkpoints"
                return fits(state, limits)

            with Engine(state, durability="process", limits=limits), connect(state, limits=limits) as client:
                client.submit(Create(Task(title="x", id="once")), request_id="of long ago").check()
                work(client, enough, versions)
            behind = verify(state).revision > first_entry_of(naming(state)[0]).revision  # for a cut to give up
            if behind and fits(state, limits):  # with what was under way
                made[limits] = state, versions
        return made[limits]

    return of


@pytest.fixture
def folder(worked_in, state):
    """`folder(limits)`: a copy of it."""

    def copied(limits):
        shutil.copytree(worked_in(limits)[0], state, ignore=shutil.ignore_patterns("*.sock"))
        return state

    return copied


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def told(state, limits):
    """All that agents are told of what was, and the versions that keys get when they are put again."""
    with Engine(state, durability="process", limits=limits), connect(state, limits=limits) as client:
        with client.reader.snapshot() as snap:
            now = snap.revision, snap.history_id, snap.counts, {task.id: task for task in snap.entities(Task)}
        again = client.submit(Create(Task(title="x", id="once")), request_id="of long ago")
        replies = [client.submit(Put(Task(title="next", id=key))).check() for key in KEYS]
    revisions = [reply.revision for reply in (again, *replies)]
    return (*now, revisions), {reply.results[0].id: reply.results[0].version for reply in replies}


@pytest.fixture
def goes_on(worked_in, tmp_path):
    """`goes_on(state, limits)` asserts that a start tells the same as one from the newest checkpoint does, and gives no
    version twice. What is forgotten when is not the same: so a key that is not there may skip versions.
    """

    def check(state, limits):
        shutil.copytree(worked_in(limits)[0], tmp_path / "whole", ignore=shutil.ignore_patterns("*.sock"))
        (expected, _), (found, versions) = told(tmp_path / "whole", limits), told(state, limits)
        assert found == expected
        for key, last in worked_in(limits)[1].items():
            assert versions[key] == last + 1 if key in found[3] else versions[key] > last

    return check


@pytest.mark.parametrize(
    ("limits", "place"),
    [
        pytest.param(ALL, 9, id="all history, format"),
        pytest.param(ALL, 100, id="all history, block", marks=pytest.mark.heavy),
        pytest.param(ALL, -1, id="all history, directory", marks=pytest.mark.heavy),
        pytest.param(ALL, None, id="all history, missing", marks=pytest.mark.heavy),
        pytest.param(ALL, "bad sector", id="all history, bad sector"),
        pytest.param(SOME, 9, id="some, header", marks=pytest.mark.heavy),
        pytest.param(SOME, 100, id="some, block", marks=pytest.mark.heavy),
        pytest.param(SOME, -1, id="some, directory", marks=pytest.mark.heavy),
        pytest.param(SOME, None, id="some, missing", marks=pytest.mark.heavy),
    ],
)
def test_a_start_goes_around_the_newest_one_and_everything_is_as_it_was(
    folder, goes_on, start_engine, lost_by_the_disk, limits, place
):
    state = folder(limits)
    newest, older = named(state)[:2]
    path = checkpoint_path(state, newest)
    if place is None:
        path.unlink()
    elif place == "bad sector":
        lost_by_the_disk(path)
    else:
        flip(path, place)
    with pytest.raises(EngineStartFailed, match=f"{path.name}.*repair {state} --around-checkpoint"):
        start_engine(state, limits=limits)
    asked = CliRunner().invoke(app, ["repair", str(state), "--around-checkpoint"])
    assert asked.exit_code == 0, asked.stderr
    assert asked.stdout == f"the next start begins behind entry {older}; set aside: {path.name}.damaged\n"
    assert aside_path(state, newest).exists()
    goes_on(state, limits)
    assert verify(state).revision > 0


@pytest.mark.parametrize("damaged", [pytest.param(2, marks=pytest.mark.heavy), 3])
def test_it_goes_back_as_far_as_it_must_even_to_the_first_entry(folder, goes_on, damaged):
    state = folder(ALL)
    entries = named(state)
    for entry in entries[:damaged]:
        flip(checkpoint_path(state, entry), -1)
    asides, begin = set_aside(StateFolder(state))
    assert [path.name for path in asides] == [aside_path(state, entry).name for entry in entries[:damaged]]
    assert begin == (entries[damaged] if len(entries) > damaged else 0)
    if not begin:
        with pytest.raises(EngineUnavailable, match="needs no checkpoint"):
            set_aside(StateFolder(state))
    goes_on(state, ALL)


@pytest.mark.heavy
def test_a_new_checkpoint_follows_and_later_starts_need_no_detour(folder, start_engine, wait_until):
    state = folder(ALL)
    before = named(state)
    flip(checkpoint_path(state, before[0]), -1)
    set_aside(StateFolder(state))
    engine = start_engine(state, limits=ALL)
    wait_until(lambda: named(state)[0] != before[0], 30, "another checkpoint, though nobody asks for anything")
    with connect(state, limits=ALL) as client, client.reader.snapshot() as snap:
        seen = snap.revision, {task.id: task for task in snap.entities(Task)}
    engine.stop()
    for entry in before[1:]:
        flip(checkpoint_path(state, entry), -1)  # which no start needs any more
    start_engine(state, limits=ALL)
    with connect(state, limits=ALL) as client, client.reader.snapshot() as snap:
        assert (snap.revision, {task.id: task for task in snap.entities(Task)}) == seen


@pytest.mark.heavy
def test_a_repair_that_was_ended_between_two_files_is_asked_for_again(folder, goes_on, monkeypatch):
    state, rename, renamed = folder(ALL), os.rename, []
    newest, older, *_ = named(state)
    for entry in (newest, older):
        flip(checkpoint_path(state, entry), -1)

    def interrupted(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(source)
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        set_aside(StateFolder(state))
    assert renamed == [checkpoint_path(state, older)], "the newest of them goes last: a start asks for it"
    with pytest.raises(EngineStartFailed, match=checkpoint_path(state, newest).name):
        told(state, ALL)
    assert set_aside(StateFolder(state))[0] == [aside_path(state, newest)]
    goes_on(state, ALL)


@pytest.fixture
def calls(monkeypatch):
    """What is synced, renamed and removed, in order and while it really is: (verb, name), the same once in a row."""
    seen = []

    def watch(verb, what):
        real = getattr(os, verb)

        def watched(*args, **options):
            if (call := (verb, what(*args))) not in seen[-1:]:
                seen.append(call)
            return real(*args, **options)

        monkeypatch.setattr(os, verb, watched)

    watch("sync", lambda: "all")
    watch("fsync", lambda fd: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    watch("rename", lambda _, new: os.path.basename(new))
    watch("unlink", lambda path: os.path.basename(path).split("-")[0])
    return seen


def test_what_is_set_aside_has_its_name_on_disk(folder, calls):
    state = folder(ALL)
    flip(checkpoint_path(state, named(state)[0]), -1)
    calls.clear()
    (aside,), _ = set_aside(StateFolder(state))
    assert calls == [("rename", aside.name), ("fsync", state.name)]


def test_a_cut_keeps_a_copy_on_disk_before_it_removes_anything_and_says_last_what_was_committed(folder, calls):
    state = folder(ALL)
    revision = first_entry_of(naming(state)[1]).revision
    calls.clear()
    cut, _ = truncate(StateFolder(state), revision)
    assert [call for call in calls if not call[1].endswith(".tmp")] == [
        ("sync", "all"), ("unlink", "journal"), ("unlink", "checkpoint"), ("fsync", cut.path.name),
        ("fsync", state.name), ("rename", "committed"), ("fsync", state.name),
    ]  # fmt: skip


def contents(folder):
    """Of all files but the lock, which names whoever held it last."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_what_is_sound_is_not_set_aside(folder):
    state = folder(ALL)
    before = contents(state)
    with pytest.raises(EngineUnavailable, match="is sound: there is nothing to set aside"):
        set_aside(StateFolder(state))
    assert contents(state) == before


def test_history_whose_checkpoint_was_trimmed_is_nothing_to_set_aside(folder):
    """The file that names it holds later entries, too, which are kept."""
    state = folder(ALL)
    checkpoint_path(state, named(state)[-1]).unlink()
    before = contents(state)
    with pytest.raises(EngineUnavailable, match="is sound: there is nothing to set aside"):
        set_aside(StateFolder(state))
    assert contents(state) == before


def test_where_nothing_older_is_kept_nothing_is_changed(folder):
    state = folder(SOME)
    for path in checkpoint_files(state).values():
        flip(path, -1)
    before = contents(state)
    told = CliRunner().invoke(app, ["repair", str(state), "--around-checkpoint"])
    assert told.exit_code == 1
    assert "no older checkpoint with the journal behind it" in told.stderr
    assert contents(state) == before


def test_where_the_journal_does_not_reach_back_to_the_older_one_nothing_is_changed(folder):
    """As an engine leaves it that died in mid-trim."""
    state = folder(ALL)
    newest, older, *_ = named(state)
    for path in journal_files(state):
        if path < naming(state)[1]:
            path.unlink()
    flip(checkpoint_path(state, newest), -1)
    before = contents(state)
    assert older in named(state), "it is still named"
    with pytest.raises(EngineUnavailable, match="no older checkpoint with the journal behind it"):
        set_aside(StateFolder(state))
    assert contents(state) == before


def test_one_that_is_only_history_is_set_aside_too_and_looking_back_goes_around_it(folder):
    state = folder(ALL)
    newest, older, *_ = named(state)
    path = checkpoint_path(state, older)
    flip(path, -1)
    with pytest.raises(JournalCorrupt, match=path.name):
        verify(state)
    asked = CliRunner().invoke(app, ["repair", str(state), "--around-checkpoint"])
    assert asked.exit_code == 0, asked.stderr
    assert asked.stdout == f"the next start begins behind entry {newest}; set aside: {path.name}.damaged\n"
    assert verify(state).revision > 0
    with open_reader(state, offline=True) as reader, reader.at(1) as then:
        assert then.get(Task, "once").title == "x"


def test_a_cut_that_would_begin_with_a_damaged_one_says_what_to_do(folder, start_engine):
    state = folder(ALL)
    revision, path = first_entry_of(naming(state)[0]).revision, checkpoint_path(state, named(state)[0])
    flip(path, 100)
    asked = ["repair", str(state), "--truncate-at", str(revision)]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 1
    assert re.search(f"{path.name} has a damaged block.* set it aside first, with --around-checkpoint", told.stderr)
    set_aside(StateFolder(state))
    assert CliRunner().invoke(app, asked).exit_code == 0
    start_engine(state, limits=ALL)


@pytest.mark.heavy
def test_one_that_is_missing_is_passed_over_as_well(folder, goes_on):
    state = folder(ALL)
    entries = named(state)
    flip(checkpoint_path(state, entries[0]), -1)
    checkpoint_path(state, entries[1]).unlink()
    asides, begin = set_aside(StateFolder(state))
    assert asides == [aside_path(state, entry) for entry in entries[:2]]
    assert begin == entries[2]
    goes_on(state, ALL)


def test_a_missing_newest_one_is_not_sound_until_it_was_set_aside(folder):
    state = folder(ALL)
    path = checkpoint_path(state, named(state)[0])
    path.unlink()
    with pytest.raises(JournalCorrupt, match=f"{path.name} is missing"):
        verify(state)
    set_aside(StateFolder(state))
    assert verify(state).revision > 0


def test_what_says_that_one_is_missing_is_written_through_no_link_that_somebody_put_there(folder, tmp_path):
    state = folder(ALL)
    newest = named(state)[0]
    checkpoint_path(state, newest).unlink()
    aside_path(state, newest).symlink_to(tmp_path / "other")
    set_aside(StateFolder(state))
    assert not aside_path(state, newest).is_symlink()
    assert not (tmp_path / "other").exists()
    assert verify(state).revision > 0


def test_a_checkpoint_that_came_while_all_was_read_is_no_missing_one(folder, tmp_path):
    state = folder(ALL)
    path = checkpoint_path(state, named(state)[0])
    path.rename(tmp_path / "later")
    replay = Replay(state, 0)
    (tmp_path / "later").rename(path)
    with pytest.raises(Compacted, match="meanwhile"):
        replay.finish(0)


def test_a_journal_file_that_is_trimmed_meanwhile_names_nothing(folder):
    state = folder(ALL)
    expected = named(state)
    names = named_checkpoints(state)
    assert next(names).entry == expected[0]
    naming(state)[1].unlink()
    assert [name.entry for name in names] == expected[2:]


def test_where_none_was_made_there_is_nothing_to_set_aside(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    with pytest.raises(Locked):
        set_aside(StateFolder(state))
    engine.stop()
    with pytest.raises(EngineUnavailable, match="needs no checkpoint"):
        set_aside(StateFolder(state))


@pytest.mark.parametrize("options", [[], ["--around-checkpoint", "--truncate-at", "1"]])
def test_a_repair_is_told_what_to_do(folder, options):
    told = CliRunner().invoke(app, ["repair", str(folder(ALL)), *options])
    assert told.exit_code == 2
    assert "either --around-checkpoint or --truncate-at" in " ".join(told.stderr.replace("│", " ").split())


def entry_at(state, number):
    """An entry, the file that holds it, and its offset there."""
    path = max(path for path in journal_files(state) if first_of(path) <= number)
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at))[0].number < number:
        at = found[2]
    return found[0], path, at


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("the header of a file", marks=pytest.mark.heavy),
        pytest.param("an entry of a file", marks=pytest.mark.heavy),
        pytest.param("the first entry", marks=pytest.mark.heavy),
        "the last entry",
    ],
)
def test_damage_in_history_is_no_hindrance_to_a_start_and_met_by_whoever_looks_back(folder, start_engine, which):
    """The last two are of the file with which a start begins, before what is behind its checkpoint."""
    state = folder(ALL)
    last = named(state)[0]
    _, needed, at = entry_at(state, last)
    oldest = journal_files(state)[0]
    assert first_of(oldest) < first_of(needed) < last
    path, place = {
        "the header of a file": (oldest, 30),
        "an entry of a file": (oldest, entries.FILE_HEADER_BYTES + 60),
        "the first entry": (needed, entries.FILE_HEADER_BYTES + 60),
        "the last entry": (needed, at + 60),
    }[which]
    with open_reader(state, offline=True) as reader, reader.snapshot() as snap:
        expected = snap.revision, {task.id: task for task in snap.entities(Task)}
    flip(path, place)
    with open_reader(state, offline=True) as reader, reader.snapshot() as snap:
        assert (snap.revision, {task.id: task for task in snap.entities(Task)}) == expected, "as a start would have it"
        with pytest.raises(JournalCorrupt):
            reader.diff(0, snap.revision)
    for _ in range(2):
        engine = start_engine(state, limits=ALL)
        with connect(state, limits=ALL) as client, client.reader.snapshot() as snap:
            assert (snap.revision, {task.id: task for task in snap.entities(Task)}) == expected
            with pytest.raises(JournalCorrupt) as caught:
                client.reader.diff(0, snap.revision)
            assert path.name in caught.value.place
        engine.stop()
        with pytest.raises(JournalCorrupt) as caught:
            verify(state)
        assert path.name in caught.value.place


def damaged_between(state):
    """Flip a bit of the first entry behind the second newest checkpoint, before the one that names it; its revision,
    and where that is.
    """
    found, path, at = entry_at(state, named(state)[1] + 1)
    flip(path, at + 60)
    return found.revision, f"{path.name}:{at}"


def test_where_a_start_would_need_what_is_damaged_nothing_is_cut(folder, start_engine):
    state = folder(ALL)
    revision, place = damaged_between(state)
    newest = first_entry_of(naming(state)[0]).revision
    before = contents(state)
    told = CliRunner().invoke(app, ["repair", str(state), "--truncate-at", str(newest - 1)])
    assert told.exit_code == 1
    assert "a start there needs what is damaged" in told.stderr
    assert place in told.stderr or place.replace(":", " is damaged at offset ") in told.stderr
    assert contents(state) == before
    assert [*state.parent.glob("*.before-repair-*")] == []
    cut, _ = truncate(StateFolder(state), revision - 1)
    assert cut.revision < revision
    start_engine(state, limits=ALL)
    with connect(state, limits=ALL) as client:
        assert client.reader.revision == cut.revision


def test_a_cut_is_not_made_before_the_private_state_that_it_would_begin_with(folder):
    """That would give up more than what was asked for."""
    state = folder(ALL)
    newest = named(state)[0]
    flip(checkpoint_path(state, newest), -1)
    set_aside(StateFolder(state))
    _, path, at = entry_at(state, newest)
    flip(path, at + 60)
    before = contents(state)
    with pytest.raises(EngineUnavailable, match="a start there needs what is damaged"):
        truncate(StateFolder(state), first_entry_of(naming(state)[0]).revision)
    assert contents(state) == before


@pytest.mark.parametrize("boot", [lives.boot_id(), "another boot"])
def test_where_the_journal_behind_the_older_one_is_damaged_nothing_is_set_aside(folder, monkeypatch, boot):
    """The next start would be refused all the same, and the next repair have one checkpoint less to begin with. A power
    cut is no excuse: what is damaged was on disk when the newest one was named.
    """
    monkeypatch.setattr(lives, "boot_id", lambda: boot)
    state = folder(ALL)
    _, place = damaged_between(state)
    for entry in named(state)[:2]:
        flip(checkpoint_path(state, entry), -1)
    before = contents(state)
    with pytest.raises(EngineUnavailable, match=f"needs what is damaged .*{place.partition(':')[0]}"):
        set_aside(StateFolder(state))
    assert contents(state) == before


def test_where_only_history_is_damaged_a_cut_goes_through_and_is_started_on(folder, start_engine):
    state = folder(ALL)
    damaged_between(state)
    revision = first_entry_of(naming(state)[0]).revision
    cut, _ = truncate(StateFolder(state), revision)
    assert cut.revision == revision
    start_engine(state, limits=ALL)


def test_where_history_cannot_be_read_a_cut_goes_through_and_the_copy_has_that_file_all_the_same(
    folder, start_engine, lost_by_the_disk
):
    state = folder(ALL)
    revision = verify(state).revision
    oldest = journal_files(state)[0]
    lost_by_the_disk(oldest)
    asked = CliRunner().invoke(app, ["repair", str(state), "--truncate-at", str(revision - 1)])
    assert asked.exit_code == 0, asked.stderr
    (kept,) = state.parent.glob("*.before-repair-*")
    assert (kept / oldest.name).readlink() == oldest.readlink()
    assert {path.name for path in kept.iterdir()} >= {path.name for path in state.iterdir()}
    start_engine(state, limits=ALL)
    with connect(state, limits=ALL) as client:
        assert revision - 64 <= client.reader.revision < revision


def test_where_what_a_cut_needs_cannot_be_read_it_is_named_and_nothing_is_changed(folder, lost_by_the_disk):
    state = folder(ALL)
    _, path, _ = entry_at(state, named(state)[1] + 1)
    newest = first_entry_of(naming(state)[0]).revision
    lost_by_the_disk(path)
    files = sorted(state.iterdir())
    told = CliRunner().invoke(app, ["repair", str(state), "--truncate-at", str(newest - 1)])
    assert told.exit_code == 1
    assert f"needs what is damaged ([Errno 5] Input/output error: '{path}')" in told.stderr
    assert sorted(state.iterdir()) == files
    assert [*state.parent.glob("*.before-repair-*")] == []


def test_what_cannot_be_read_at_the_end_can_be_cut_off(folder, start_engine, lost_by_the_disk):
    """No revision of it is left to be cut back to: its first entry is what follows."""
    state = folder(ALL)
    newest = journal_files(state)[-1]
    revision = first_entry_of(newest).revision
    lost_by_the_disk(newest)
    with pytest.raises(EngineStartFailed, match=newest.name):
        start_engine(state, limits=ALL)
    cut, kept = truncate(StateFolder(state), revision - 1)
    assert cut.revision < revision
    assert not newest.exists()
    assert (kept / newest.name).is_symlink()
    start_engine(state, limits=ALL)
    with connect(state, limits=ALL) as client:
        assert client.reader.revision == cut.revision


@pytest.mark.heavy
def test_a_time_before_the_damage_can_still_be_read(folder, start_engine):
    state = folder(ALL)
    flip(checkpoint_path(state, named(state)[0]), -1)
    set_aside(StateFolder(state))
    start_engine(state, limits=ALL)
    with connect(state, limits=ALL) as client:
        client.submit(Update(Task.ref("once"), {"title": "now"})).check()
        with client.reader.at(1) as then:
            assert then.get(Task, "once").title == "x"


def test_what_was_set_aside_goes_with_what_a_cut_takes(folder):
    """Or a checkpoint behind an entry of the same number would seem to be set aside, in the history that comes."""
    state = folder(ALL)
    newest, *_ = named(state)
    flip(checkpoint_path(state, newest), -1)
    set_aside(StateFolder(state))
    cut, _ = truncate(StateFolder(state), first_entry_of(naming(state)[1]).revision)
    assert cut.number < newest
    assert not aside_path(state, newest).exists()


@pytest.mark.heavy
def test_what_was_set_aside_is_no_hindrance_to_a_cut(folder):
    """Nor is it taken for the checkpoint behind an entry of the same number, in the history that begins there."""
    state = folder(ALL)
    newest, older, *_ = named(state)
    revision = max(verify(state).revision - 1, first_entry_of(naming(state)[0]).revision)  # behind where it is named
    flip(checkpoint_path(state, newest), -1)
    set_aside(StateFolder(state))
    cut, _ = truncate(StateFolder(state), revision)
    assert revision - 64 <= cut.revision <= revision
    assert aside_path(state, newest).exists()
    shutil.copy(checkpoint_path(state, older), checkpoint_path(state, newest))
    with pytest.raises(EngineStartFailed, match=f"{checkpoint_path(state, newest).name} is not the one"):
        told(state, ALL)
    checkpoint_path(state, newest).unlink()
    assert told(state, ALL)[0][0] == cut.revision
