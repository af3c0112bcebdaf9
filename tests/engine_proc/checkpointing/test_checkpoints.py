"""When a checkpoint fails, or what it makes needless cannot go, nothing is lost, and it is tried again."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from solewriter import AlreadyExists, Create, Task, connect
from solewriter.engine_proc import filejournal as journals
from solewriter.engine_proc.checkpointing import checkpoint
from solewriter.engine_proc.checkpointing import checkpoints as of_checkpoints
from solewriter.engine_proc.checkpointing.checkpoint import Made
from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints, Held, oldest_kept
from solewriter.engine_proc.checkpointing.maker import NotMade
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import pickled
from solewriter.engine_proc.server import checkpoints_of
from solewriter.engine_proc.start import Start
from solewriter.shared.config import CHECKPOINT_NICE, KIB, Limits
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files
from solewriter.shared.journal.checkpoint import CheckpointWriter, Directory, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import Private
from solewriter.shared.journal.setaside import aside_path

STATE = b"0123456789abcdef"
LIMITS = Limits(journal_file_bytes=4 * KIB, checkpoint_after_bytes=16 * KIB, history_bytes=0)


class AtOnce(Executor):
    """Beside the loop, but done at once."""

    def submit(self, work, /, *args, **options):
        future = Future()
        future.set_result(work(*args, **options))
        return future


def make(order, entry, time_us=0):
    """An empty checkpoint behind an entry."""
    writer = CheckpointWriter(Path(os.fsdecode(order.path)), STATE)
    name = writer.finish(entry, Directory(entry, time_us, [], [], [], 0, 0, [], bytes(16)))
    writer.close()
    return Made(entry, name.crc, 100, 0, entry, time_us)


@pytest.fixture
def tmp_path(passable):
    return passable


@pytest.fixture
def journal(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "JOURNAL_FILE_BYTES_FIRST", 4 * KIB)
    with ThreadPoolExecutor(1) as beside:
        made = FileJournal(tmp_path, STATE, LIMITS, beside, power=False)
        assert list(made.replay()) == []
        yield made
        made.close()


def grow(journal, count):
    for _ in range(count):
        journal.append(journal.tail.number + 1, 0, [], Private(fenced_ids=["x" * 2_000]))
        asyncio.run(journal.commit(durable=True))


@pytest.fixture
def lock(tmp_path):
    made = Lock(StateFolder(tmp_path))
    yield made
    made.release()


@pytest.fixture
def held(lock, journal):
    """`held()`: the checkpoints of this journal's engine, and what it logs."""

    def start(make=make, private_bytes=0):
        log = []
        made = Checkpoints(
            lock,
            journal,
            "",
            LIMITS,
            make=lambda order: make(order, journal.tail.number),
            waiter=AtOnce(),
            describe=lambda name: pytest.fail("not asked for"),
            log=log.append,
            private_bytes=private_bytes,
        )
        return made, log

    return start


def noting(held):
    """Checkpoints, and the priorities at which they are made."""
    asked = []

    def note(order, entry):
        asked.append(order.nice)
        return make(order, entry)

    return held(note)[0], asked


def test_a_checkpoint_is_due_when_the_journal_has_outgrown_it_and_one_is_made_at_a_time(held, journal, tmp_path):
    checkpoints, log = held()
    grow(journal, 7)
    assert not checkpoints.due
    grow(journal, 2)
    assert checkpoints.due
    done = []
    checkpoints.begin(done.append)
    assert not checkpoints.due, "it is made, and not journaled"
    assert list(checkpoint_files(tmp_path)) == [9]
    checkpoints.noted(done[0], 0, lambda: None)
    assert (checkpoints.due, log) == (False, [])
    grow(journal, 9)
    assert checkpoints.due


def test_what_is_journaled_behind_one_is_no_growth_and_makes_the_next_one_later(held, journal):
    """It is written once for each checkpoint: what is written stays below twice of what is asked for."""
    checkpoints, asked = noting(held)
    grow(journal, 9)
    for _ in range(3):
        done = []
        checkpoints.begin(done.append)
        before = journal.length
        journal.append(journal.tail.number, 0, [], Private(fenced_ids=["x" * 40_000]))
        asyncio.run(journal.commit(durable=True))
        checkpoints.noted(done[0], journal.length - before, lambda: None)
        grow(journal, 27)
        assert not checkpoints.due, "1.4 times what the checkpoint and all behind it took are 56 KB"
        grow(journal, 2)
        assert checkpoints.due
    assert asked == [CHECKPOINT_NICE] * 3, "nor did the journal grow while one was made"


def test_records_that_compress_well_are_written_no_oftener_than_they_change(held, journal, monkeypatch):
    """To make a checkpoint takes a processor as long as its records are, however short the file is."""
    monkeypatch.setattr(of_checkpoints, "CHECKPOINT_LIVE_MOST", 40 * KIB)

    def make_long(order, entry):
        writer = CheckpointWriter(Path(os.fsdecode(order.path)), STATE)
        name = writer.finish(entry, Directory(entry, 0, [], [], [], 80 * KIB, 0, [], bytes(16)))
        writer.close()
        return Made(entry, name.crc, 100, 80 * KIB, entry, 0)

    checkpoints, _ = held(make_long)
    grow(journal, 9)
    done, before = [], journal.length
    checkpoints.begin(done.append)
    checkpoints.noted(done[0], 0, lambda: None)
    of_next_life, _ = held(make_long)  # which takes all that there is for growth
    while not of_next_life.due:
        grow(journal, 1)
    assert journal.length == pytest.approx(40 * KIB, rel=0.1)
    while not checkpoints.due:
        grow(journal, 1)
    assert journal.length - before == pytest.approx(40 * KIB, rel=0.1)


def test_a_start_does_not_take_what_is_journaled_behind_a_checkpoint_for_growth(state, start_engine, tmp_path):
    """Ids of users' own, say, are more than all entities."""
    memory, few = tmp_path / "memory", Limits(checkpoint_after_bytes=64 * KIB, journal_file_bytes=256 * KIB)
    engine, told, taken = start_engine(state, limits=few), 0, 0
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        while taken < 3 * few.checkpoint_after_bytes:
            reply = client.submit(Create(Task(title="x", id="t")), request_id=f"{told:060d}")
            assert isinstance(reply.error, AlreadyExists)
            told += 1
            if told % 50 == 0:
                firsts = [first_entry_of(path) for path in journal_files(state)]
                taken = max((len(one.said) for one in firsts if one and one.private.whole is not None), default=0)
    engine.stop()
    memory.mkdir()
    limits = msgspec.structs.replace(few, memory_dir=str(memory))
    epoch = Start(Orders(str(state), "process", limits, 0, [], pickled([]))).recover()
    try:
        assert epoch.journal.length > taken
        assert not checkpoints_of(epoch).due
    finally:
        epoch.close()
        epoch.threads.checkpoints.shutdown()
        epoch.lock.release()


def test_what_a_start_replayed_of_it_is_no_growth_either(held, journal):
    grow(journal, 9)
    checkpoints, _ = held(private_bytes=journal.length)
    grow(journal, 12)
    assert not checkpoints.due, "1.4 times what was there are 25 KB"
    grow(journal, 2)
    assert checkpoints.due


def test_one_that_the_journal_has_no_room_for_goes_and_another_is_due_later(held, journal, tmp_path):
    checkpoints, log = held()
    grow(journal, 9)
    done = []
    checkpoints.begin(done.append)
    checkpoints.given_up(done[0], "no room")
    assert checkpoint_files(tmp_path) == {}
    assert (checkpoints.due, log) == (False, ["a checkpoint was not made: no room"])
    grow(journal, 4)
    assert checkpoints.due


def test_one_of_a_folder_that_was_moved_gets_no_name_among_the_files_that_are_there_now(
    state, start_engine, tmp_path, monkeypatch
):
    """As of a restored copy, which another engine may serve: it was moved right behind the last look."""
    engine, moved = start_engine(state), tmp_path / "moved"
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
    engine.stop()
    (tmp_path / "memory").mkdir()
    limits = msgspec.structs.replace(LIMITS, memory_dir=str(tmp_path / "memory"))
    epoch = Start(Orders(str(state), "process", limits, 0, [], pickled([]))).recover()

    def still_owner():
        state.rename(moved)
        shutil.copytree(moved, state, ignore=shutil.ignore_patterns("*.sock"))

    try:
        with monkeypatch.context() as moving:
            moving.setattr(epoch.lock, "check", still_owner)
            checkpoints_of(epoch._replace(maker=checkpoint.make)).begin(lambda made: None)
            epoch.threads.checkpoints.shutdown()
        assert (len(checkpoint_files(moved)), len(checkpoint_files(state))) == (1, 0)
        assert not [*moved.glob("*.tmp")]
    finally:
        epoch.close()
        epoch.lock.release()


def test_one_that_comes_late_is_made_at_everybodys_priority(held, journal):
    """As behind engines that died before theirs were done: the journal that they left counts."""
    checkpoints, asked = noting(held)
    for count in (9, 18, 9):
        grow(journal, count)
        done = []
        checkpoints.begin(done.append)
        checkpoints.noted(done[0], 0, lambda: None)
    assert asked == [CHECKPOINT_NICE, 0, CHECKPOINT_NICE]


def test_what_was_set_aside_goes_with_the_history_that_it_belongs_to(held, journal, tmp_path):
    checkpoints, _ = held()
    grow(journal, 9)
    old, new = aside_path(tmp_path, 5), aside_path(tmp_path, 20)
    old.touch()
    new.touch()
    done = []
    checkpoints.begin(done.append)
    checkpoints.noted(done[0], 0, lambda: None)
    assert (done[0].entry, old.exists(), new.exists()) == (9, False, True)


def test_the_next_one_is_made_at_everybodys_priority_too_while_the_journal_grows_a_lot_meanwhile(held, journal):
    checkpoints, asked = noting(held)
    for meanwhile in (0, 5, 1, 0):
        grow(journal, 9)
        done = []
        checkpoints.begin(done.append)
        grow(journal, meanwhile)
        checkpoints.noted(done[0], 0, lambda: None)
    assert asked == [CHECKPOINT_NICE, CHECKPOINT_NICE, 0, CHECKPOINT_NICE]


def test_one_that_fails_is_said_and_leaves_nothing_and_another_is_due_later(held, journal, tmp_path):
    def fail(order, entry):
        make(order, entry)
        raise OSError("no room")

    checkpoints, log = held(fail)
    grow(journal, 9)
    checkpoints.begin(lambda made: pytest.fail("it was not made"))
    assert log == ["a checkpoint was not made: OSError: no room"]
    assert [*tmp_path.glob("checkpoint*")] == []
    assert not checkpoints.due
    grow(journal, 4)
    assert checkpoints.due


def test_what_the_process_that_makes_them_says_of_one_that_failed_is_said_as_it_is(held, journal):
    def fail(order, entry):
        raise NotMade("OSError: no room")

    checkpoints, log = held(fail)
    grow(journal, 9)
    checkpoints.begin(lambda made: pytest.fail("it was not made"))
    assert log == ["a checkpoint was not made: OSError: no room"]


def test_one_that_nobody_expected_to_fail_is_followed_by_another_too(held, journal):
    def fail(order, entry):
        raise MemoryError

    checkpoints, log = held(fail)
    grow(journal, 9)
    checkpoints.begin(lambda made: pytest.fail("it was not made"))
    assert log == ["a checkpoint was not made: MemoryError"]
    grow(journal, 4)
    assert checkpoints.due


def test_those_that_failed_make_the_next_one_late(held, journal):
    """The journal that a start has to read is as long as it is, however often somebody tried."""
    asked = []

    def fail_at_first(order, entry):
        asked.append(order.nice)
        if len(asked) < 4:
            raise OSError("no room")
        return make(order, entry)

    checkpoints, _ = held(fail_at_first)
    for count in (9, 4, 4, 4):
        grow(journal, count)
        assert checkpoints.due
        checkpoints.begin(lambda made: None)
    assert asked == [CHECKPOINT_NICE, CHECKPOINT_NICE, 0, 0]


@pytest.mark.parametrize("asked", [1, 2, 4, "behind the journal"])
def test_nothing_goes_of_a_folder_that_is_another_states_by_now(held, lock, journal, tmp_path, monkeypatch, asked):
    """Moved away while a trim waited, say, with a restored copy in its place: before every step somebody looks."""
    left = []

    def still_owner():
        if left and not left.pop():
            raise EngineUnavailable("the folder is another one")

    grow(journal, 9)
    old, _ = held()
    old.begin(lambda made: None)
    monkeypatch.setattr(lock, "check", still_owner)
    checkpoints, log = held()
    grow(journal, 30)
    assert len(journal_files(tmp_path)) > 3
    done = []
    checkpoints.begin(done.append)
    if asked == "behind the journal":
        asked = 2 + sum(first_of(path) <= done[0].entry + 1 for path in journal_files(tmp_path)[1:])
    left += [False, *[True] * (asked - 1)]
    before = sorted(tmp_path.iterdir())
    checkpoints.noted(done[0], 0, lambda: None)
    assert log == ["trimming: EngineUnavailable: the folder is another one"]
    assert len(before) - len(set(before) & set(tmp_path.iterdir())) == max(0, asked - 2)


def test_history_goes_only_behind_a_checkpoint_that_is_journaled(held, journal, tmp_path):
    grow(journal, 5)
    old, _ = held()
    old.begin(lambda made: None)
    checkpoints, log = held()
    grow(journal, 5)
    done = []
    checkpoints.begin(done.append)
    assert list(checkpoint_files(tmp_path)) == [5, 10]
    assert first_of(journal_files(tmp_path)[0]) == 1
    checkpoints.noted(done[0], 0, lambda: None)
    assert list(checkpoint_files(tmp_path)) == [10]
    assert 1 < first_of(journal_files(tmp_path)[0]) <= 11
    assert log == []


@pytest.mark.parametrize(
    ("firsts", "older", "newest", "most", "kept"),
    [
        ([1, 11], {5: 0}, 11, 199, 11),  # the file that begins with the newest entry is history from entry 6 on
        ([1, 11], {5: 0}, 11, 200, 0),
        ([1, 11], {10: 0}, 11, 99, 11),
        ([1, 11], {10: 0}, 15, 100, 10),  # of the first file nothing is behind entry 10
        ([1, 11], {10: 0}, 15, 99, 15),
        ([1, 11], {10: 50}, 15, 149, 15),  # a checkpoint is part of the history that it begins
        ([1, 11], {10: 50}, 15, 150, 10),
        ([1, 11], {10: 50}, 15, 250, 0),
        ([1, 11, 21], {10: 0}, 15, 200, 0),  # a file behind the newest one is none
        ([11], {10: 0}, 15, 1_000, 10),  # the first entry is gone
    ],
)
def test_history_is_as_much_as_it_may_be_with_all_its_files_and_checkpoints(firsts, older, newest, most, kept):
    files, checkpoints = dict.fromkeys(firsts, 100), {entry: Held(size, 0) for entry, size in older.items()}
    checkpoints[newest] = Held(10_000, 0)  # which a start needs: it is no history
    assert oldest_kept(files, checkpoints, newest, 0, Limits(history_bytes=most)) == kept


def test_no_file_stays_whose_entries_are_all_in_the_oldest_checkpoint(held, journal, tmp_path):
    grow(journal, 30)
    checkpoints, _ = held()
    *_, needed, _ = journal_files(tmp_path)
    done = []
    checkpoints.begin(done.append)
    checkpoints.noted(msgspec.structs.replace(done[0], entry=first_of(needed) - 1), 0, lambda: None)
    assert journal_files(tmp_path)[0] == needed


def test_what_could_not_be_given_up_stays_and_goes_behind_the_next_checkpoint(held, journal, tmp_path):
    grow(journal, 5)
    old, _ = held()
    old.begin(lambda made: None)
    checkpoints, log = held()
    path = checkpoint_path(tmp_path, 5)
    path.rename(tmp_path / "aside")
    path.mkdir()  # even root cannot unlink this
    for _ in range(2):
        grow(journal, 5)
        done = []
        checkpoints.begin(done.append)
        checkpoints.noted(done[0], 0, lambda: None)
        assert len(log) == 1
        assert log[0].startswith("trimming: ")
        if path.is_dir():
            path.rmdir()
            (tmp_path / "aside").rename(path)
    assert list(checkpoint_files(tmp_path)) == [journal.tail.number]


@pytest.mark.parametrize("step", ["the name of a checkpoint", "a trim"])
def test_where_a_sync_of_names_failed_no_later_one_is_believed_and_nothing_more_is_acked(
    held, journal, tmp_path, monkeypatch, step
):
    """The kernel tells of it once: whoever asks behind that hears that all is well, and its own name may be lost."""
    grow(journal, 5)
    old, _ = held()
    old.begin(lambda made: None)
    checkpoints, log = held()
    grow(journal, 5)
    done = []
    with monkeypatch.context() as failing:
        if step == "a trim":
            checkpoints.begin(done.append)
        fail_once_for(failing, tmp_path)
        if step == "a trim":
            checkpoints.noted(done[0], 0, lambda: None)
        else:
            checkpoints.begin(lambda made: pytest.fail("it is not known to have its name"))
        assert len(log) == 1
        assert "Input/output error" in log[0]
        with pytest.raises(OSError, match="Input/output error"):
            grow(journal, 1)


def test_where_there_was_no_descriptor_to_sync_names_by_the_next_sync_is_as_good(journal):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            journal.sync_names()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    grow(journal, 1)
    journal.sync_names()


def fail_once_for(patch, folder):
    """The next sync of this folder is told of an error."""
    real, number = os.fsync, os.stat(folder).st_ino

    def failing(fd):
        if os.fstat(fd).st_ino == number:
            patch.setattr(os, "fsync", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    patch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("how", ["cut", "lost by the disk", "a newer format, by a flipped bit"])
def test_a_damaged_checkpoint_that_is_only_history_does_not_hinder_a_start_and_goes_first(
    held, journal, tmp_path, lost_by_the_disk, how
):
    grow(journal, 5)
    old, _ = held()
    old.begin(lambda made: None)
    path = checkpoint_path(tmp_path, 5)
    if how == "cut":
        os.truncate(path, 10)
    elif how == "lost by the disk":
        lost_by_the_disk(path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[:9] + b"\1" + content[10:])
    checkpoints, log = held()
    grow(journal, 5)
    done = []
    checkpoints.begin(done.append)
    checkpoints.noted(done[0], 0, lambda: None)
    assert list(checkpoint_files(tmp_path)) == [10]
    assert log == []


def test_one_of_the_history_that_another_user_owns_does_not_hinder_a_start_and_stays_as_long_as_others(
    held, journal, tmp_path
):
    grow(journal, 5)
    old, _ = held()
    old.begin(lambda made: None)
    path = checkpoint_path(tmp_path, 5)
    os.utime(path, (5, 5))
    root = os.geteuid() == 0
    path.chmod(0o600 if root else 0)
    os.seteuid(65534 if root else os.geteuid())  # root may read everything
    try:
        checkpoints, log = held()
    finally:
        os.seteuid(0 if root else os.geteuid())
    assert checkpoints._held == {5: Held(path.stat().st_size, 5_000_000)}
    assert log == []
