"""What was committed is replayed, whatever was torn or full; what cannot be explained is refused with its place."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.engine_proc import filejournal as journals
from solewriter.engine_proc import preallocation
from solewriter.engine_proc.filejournal import FileJournal, Missing, Tail, journal_files
from solewriter.engine_proc.journal import DiskFull, NoJournal
from solewriter.engine_proc.preallocation import FULL, FilesAhead
from solewriter.shared import failpoint, record
from solewriter.shared.config import JOURNAL_VERSION, KIB, Limits
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.journal import entry
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Outcome, Private

STATE = b"0123456789abcdef"
SMALL = Limits(journal_file_bytes=16 * KIB)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where a sync costs nothing


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(journals, "JOURNAL_FILE_BYTES_FIRST", 4 * KIB)
    monkeypatch.setattr(preallocation, "RESERVE_BYTES", 4 * KIB)


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="journal-test-", dir=MEMORY))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def beside():
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def opened(folder, beside):
    """`opened(**options)`: a journal of the folder and what it replayed; closed after the test."""
    made = []

    def open_(**options):
        replayed = {name: options.pop(name) for name in ("first", "may_be_cut", "unsynced") if name in options}
        limits = options.pop("limits", SMALL)
        journal = FileJournal(folder, STATE, limits, beside, **{"power": False, **options})
        made.append(journal)
        return journal, list(journal.replay(**replayed))

    yield open_
    for journal in made:
        let_go(journal)
    beside.submit(int).result()


def let_go(journal):
    """Leave a journal as a killed process leaves it: nothing is synced or tidied, only the descriptors are closed."""
    following = journal._ahead._next
    if following is not None and following.exception() is None:
        os.close(following.result())
    if journal._closing is not None:
        journal._closing.result()
    for fd in (journal._fd, journal._committed_fd):
        if fd >= 0:
            os.close(fd)
    journal._fd = journal._committed_fd = -1
    journal._ahead._next = journal._closing = None
    journal._syncer.shutdown()


def body_of(number, size=20):
    payload = random.Random(number).randbytes(size)
    return record.pack(0, 0, 1, 6, number, 1, 0, 2, number, b"t-%d" % number, b"", b"", b"", b"", b"", payload)


def commit(journal, size=20, durable=True):
    """One more entry; its number."""
    number = journal.tail.number + 1
    journal.append(
        number, number * 10, [body_of(number, size)], Private(outcomes=[Outcome(2, number, 0, number, None)])
    )
    asyncio.run(journal.commit(durable=durable))
    assert journal.tail.number == number
    return number


def numbers(entries):
    return [one.number for one in entries]


def written(opened, count, size=20):
    """A journal of so many entries, left as if the engine was killed; where each entry of the last file begins."""
    journal, _ = opened()
    for _ in range(count):
        commit(journal, size)
    let_go(journal)


def places(path):
    """The offsets of a file's entries, and the offset behind the last one."""
    buffer, at, found = path.read_bytes(), FILE_HEADER_BYTES, []
    while (one := entry.unpack(buffer, at)) is not None:
        found.append(at)
        at = one[2]
    return found, at


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def forget_committed(folder):
    """As if the side file had never been written: it is only there where that costs nothing."""
    (folder / "committed").write_bytes(b"")


# --- committed and replayed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [False, True])
def test_what_was_committed_is_replayed_in_order_with_all_that_it_says(opened, power):
    journal, before = opened(power=power)
    assert (before, journal.tail, journal.missing) == ([], Tail(0, 0), None)
    for number in range(1, 6):
        commit(journal, durable=number % 2 == 0)
    tail = journal.tail
    let_go(journal)
    again, found = opened(power=power)
    assert numbers(found) == [1, 2, 3, 4, 5]
    assert [list(one.records()) for one in found] == [[body_of(number)] for number in range(1, 6)]
    assert [one.private.outcomes[0].sequence for one in found] == [1, 2, 3, 4, 5]
    assert [(one.revision, one.time_us) for one in found] == [(number, number * 10) for number in range(1, 6)]
    assert (again.tail, again.missing) == (tail, None)


def test_what_was_appended_and_not_committed_is_nowhere(opened):
    journal, _ = opened()
    commit(journal)
    journal.append(2, 0, [body_of(2)], Private())
    let_go(journal)
    journal, found = opened()
    assert numbers(found) == [1]
    assert commit(journal) == 2


def test_a_closed_journal_is_opened_again_and_goes_on(opened, folder):
    for rounds in range(4):
        journal, found = opened()
        assert numbers(found) == list(range(1, 3 * rounds + 1))
        for _ in range(3):
            commit(journal)
        journal.close()
        journal._fd = journal._committed_fd = -1
        assert not (folder / "journal.next").exists()
    assert len(journal_files(folder)) == 1


def test_a_journal_goes_on_over_several_files(opened, folder, beside):
    journal, _ = opened()
    for _ in range(120):
        commit(journal, 300)
        beside.submit(int).result()
    files = journal_files(folder)
    assert len(files) > 2
    assert [entry.read_file_header(path, path.read_bytes()).first for path in files] == [
        int(path.stem.removeprefix("journal-")) for path in files
    ]
    assert [path.stat().st_size for path in files[:4]] == [4 * KIB, 8 * KIB, 16 * KIB, 16 * KIB]
    let_go(journal)
    journal, found = opened()
    assert numbers(found) == list(range(1, 121))
    assert commit(journal, 300) == 121


@pytest.mark.parametrize("size", [4 * KIB, 20 * KIB, 100_000])
def test_an_entry_larger_than_any_file_gets_one_of_its_own(opened, folder, size):
    journal, _ = opened()
    commit(journal)
    commit(journal, size)
    commit(journal)
    let_go(journal)
    _, found = opened()
    assert [len(one.bodies) // 1000 for one in found] == [0, (size + 71) // 1000, 0]
    assert len(journal_files(folder)) >= 2


OPERATIONS = st.lists(
    st.tuples(st.integers(0, 3_000), st.booleans()) | st.sampled_from(["kill", "close", "kill"]), max_size=30
)


@settings(max_examples=40, deadline=None)
@given(operations=OPERATIONS, power=st.booleans())
def test_any_run_of_commits_kills_and_stops_is_replayed(operations, power, beside):
    folder = Path(tempfile.mkdtemp(prefix="journal-test-", dir=MEMORY))
    expected = []
    try:
        journal = FileJournal(folder, STATE, SMALL, beside, power=power)
        list(journal.replay())
        for operation in [*operations, "kill"]:
            if isinstance(operation, tuple):
                number = commit(journal, *operation)
                expected.append(body_of(number, operation[0]))
                continue
            if operation == "close":
                journal.close()
                journal._fd = journal._committed_fd = -1
                journal._ahead._next = journal._closing = None
            let_go(journal)
            journal = FileJournal(folder, STATE, SMALL, beside, power=power)
            assert [one.bodies for one in journal.replay()] == expected
            assert journal.missing is None
        let_go(journal)
    finally:
        shutil.rmtree(folder)


# --- durable ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch, folder):
    """What is synced, renamed and written, in order, while it really is: (verb, inode or names)."""
    seen = []

    def watch(name, what):
        real = getattr(os, name)

        def watched(*args):
            seen.append((name, what(*args)))
            return real(*args)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "fdatasync"):
        watch(name, lambda fd: os.fstat(fd).st_ino)
    watch("pwrite", lambda fd, data, offset: os.fstat(fd).st_ino)
    watch("rename", lambda old, new: (Path(old).name, Path(new).name))
    return seen


def inode(path):
    return path.stat().st_ino


@pytest.mark.parametrize(
    ("power", "durable", "expected"),
    [(True, True, "write sync note"), (True, False, "write"), (False, True, "write note")],
)
def test_a_commit_is_synced_before_it_is_noted_where_that_was_promised(opened, folder, calls, power, durable, expected):
    """For `power`, what is noted was on disk: after a power cut, more entries noted than there are is a loss."""
    journal, _ = opened(power=power)
    calls.clear()
    commit(journal, durable=durable)
    log, note = inode(journal_files(folder)[0]), inode(folder / "committed")
    named = {"write": ("pwrite", log), "sync": ("fdatasync", log), "note": ("pwrite", note)}
    assert calls == [named[word] for word in expected.split()]


def test_for_power_at_most_one_entry_is_written_and_not_on_disk(opened, folder, calls):
    """So that an entry behind a bad one is always damage."""
    journal, _ = opened(power=True)
    calls.clear()
    for _ in range(3):
        commit(journal, durable=False)
    log = inode(journal_files(folder)[0])
    assert calls == [("pwrite", log), ("fdatasync", log), ("pwrite", log), ("fdatasync", log), ("pwrite", log)]


def test_the_recovered_tail_is_rewritten_to_new_pages_and_synced_before_it_takes_the_place(opened, folder, calls):
    written(opened, 3)
    path = journal_files(folder)[0]
    before, content = inode(path), path.read_bytes()
    keep = os.open(path, os.O_RDONLY)  # so that its inode is not given out again
    calls.clear()
    opened()
    os.close(keep)
    after = inode(path)
    assert after != before
    assert path.read_bytes() == content
    assert calls[:4] == [
        ("pwrite", after),
        ("fsync", after),
        ("rename", ("journal.next", path.name)),
        ("fsync", inode(folder)),
    ]


def test_all_that_was_replayed_is_on_disk_before_anything_follows_it(opened, folder, calls):
    """A killed engine left older files to the kernel, and what follows now may be acked for `power`."""
    written(opened, 60, 300)
    *older, _ = journal_files(folder)
    assert len(older) > 1
    calls.clear()
    opened(power=True)
    assert calls[: len(older)] == [("fdatasync", inode(path)) for path in older]


def test_where_acks_came_before_syncs_the_file_before_the_last_is_rewritten_as_well(opened, folder, calls):
    """Its sync may have failed behind the last ack, and the kernel says of such pages that they are on disk."""
    written(opened, 60, 300)
    *older, before, last = journal_files(folder)
    assert older
    contents = {path: path.read_bytes() for path in journal_files(folder)}
    keep = [os.open(path, os.O_RDONLY) for path in (before, last)]  # so that their inodes are not given out again
    inodes = {path: inode(path) for path in journal_files(folder)}
    calls.clear()
    journal, found = opened(power=True, unsynced=lambda: True)
    for fd in keep:
        os.close(fd)
    assert numbers(found) == list(range(1, 61))
    assert {path: path.read_bytes() for path in journal_files(folder)} == contents
    assert [path for path in contents if inode(path) != inodes[path]] == [before, last]
    synced = calls.index(("fsync", inode(before)))
    assert calls[synced + 1] == ("rename", ("journal.next", before.name))
    assert calls[: len(older)] == [("fdatasync", inode(path)) for path in older]
    assert calls.index(("rename", ("journal.next", last.name))) > synced
    assert commit(journal, 300) == 61
    let_go(journal)
    assert numbers(opened(power=True)[1]) == list(range(1, 62))


def test_a_file_gets_its_name_when_all_before_the_last_one_are_on_disk(opened, folder):
    """So that of what a start finds only the last two may have failed to be synced."""
    journal, _ = opened()
    while len(journal_files(folder)) < 2:
        commit(journal, 300)
    if journal._closing is not None:
        journal._closing.result()
    closing = journal._closing = Future()  # of the first file
    number = journal.tail.number + 1
    journal.append(number, 0, [body_of(number, 20 * KIB)], Private())

    async def story():
        committing = asyncio.ensure_future(journal.commit(durable=True))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not committing.done()
        assert len(journal_files(folder)) == 2
        closing.set_exception(OSError(errno.EIO, "of the first file"))
        with pytest.raises(OSError, match="of the first file"):
            await committing

    asyncio.run(story())
    assert len(journal_files(folder)) == 2


def test_a_new_file_is_whole_and_synced_before_it_gets_its_name(opened, folder, calls):
    journal, _ = opened(power=True)
    calls.clear()
    while len(journal_files(folder)) == 1:
        commit(journal, 700)
    new = journal_files(folder)[1]
    rename = calls.index(("rename", ("journal.next", new.name)))
    assert calls.index(("fsync", inode(new))) < calls.index(("fdatasync", inode(new))) < rename
    assert calls[rename + 1] == ("fsync", inode(folder))


def test_no_acked_entry_depends_on_one_that_is_not_synced_in_the_file_before(opened, folder, calls):
    journal, _ = opened(power=True)
    commit(journal, 3_000)
    old = inode(journal_files(folder)[0])
    calls.clear()
    commit(journal, 300, durable=False)
    commit(journal, 3_000)
    new = journal_files(folder)[1]
    assert ("fdatasync", old) in calls[: calls.index(("rename", ("journal.next", new.name)))]


def test_a_stop_syncs_everything_at_every_level(opened, folder, calls):
    journal, _ = opened()
    commit(journal)
    calls.clear()
    journal.close()
    journal._fd = journal._committed_fd = -1
    assert {inode(journal_files(folder)[0]), inode(folder / "committed")} == {
        what for verb, what in calls if verb == "fdatasync"
    }


# --- a torn tail ------------------------------------------------------------------------------------------------------


def torn(whole, cut, end, how):
    """The file as it may be found when the write of its last entry was interrupted at `cut`."""
    if how == "short":
        return whole[:cut]
    return (
        whole[:cut] + {"zeros": bytes(end - cut), "noise": random.Random(cut).randbytes(end - cut)}[how] + whole[end:]
    )


@pytest.mark.parametrize("how", ["zeros", "noise", "short"])
def test_a_torn_tail_is_dropped_and_nothing_else(opened, folder, how):
    written(opened, 3)
    (path,) = journal_files(folder)
    starts, end = places(path)
    whole = path.read_bytes()
    length = struct.unpack_from("<I", whole, starts[-1] + 8)[0]
    for cut in range(starts[-1], starts[-1] + length):
        path.write_bytes(torn(whole, cut, end, how))
        still_whole = entry.unpack(path.read_bytes(), starts[-1]) is not None
        forget_committed(folder)
        journal, found = opened()
        assert numbers(found) == ([1, 2, 3] if still_whole else [1, 2]), f"cut at {cut}"
        assert journal.missing is None
        let_go(journal)
        assert set(path.read_bytes()[end if still_whole else starts[-1] :]) <= {0}


def test_after_a_torn_tail_the_journal_goes_on_in_its_place(opened, folder):
    written(opened, 3)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    overwrite(path, starts[-1] + 40, b"damage")
    forget_committed(folder)
    journal, found = opened()
    assert numbers(found) == [1, 2]
    assert commit(journal, 44) == 3
    let_go(journal)
    _, found = opened()
    assert [one.bodies for one in found] == [body_of(1), body_of(2), body_of(3, 44)]


def test_a_torn_tail_in_a_file_that_holds_nothing_else(opened, folder, beside):
    written(opened, 30, 300)
    path = journal_files(folder)[-1]
    starts, _ = places(path)
    overwrite(path, starts[0], bytes(path.stat().st_size - starts[0]))
    forget_committed(folder)
    journal, found = opened()
    first = int(path.stem.removeprefix("journal-"))
    assert numbers(found) == list(range(1, first))
    assert commit(journal) == first


@pytest.mark.parametrize("content", [b"", b"x", bytes(10_000), b"SWJE" * 100])
def test_a_next_file_that_was_never_used_is_of_no_account(opened, folder, content):
    written(opened, 3)
    (folder / "journal.next").write_bytes(content)
    journal, found = opened()
    assert numbers(found) == [1, 2, 3]
    assert commit(journal) == 4


def test_a_file_that_was_only_begun_is_gone_on_with(opened, folder, beside):
    journal, _ = opened()
    for _ in range(3):
        commit(journal)
    journal._begin(journal._ahead.take(4 * KIB, 4 * KIB), journal.tail)
    let_go(journal)
    assert len(journal_files(folder)) == 2
    journal, found = opened()
    assert numbers(found) == [1, 2, 3]
    assert commit(journal) == 4


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(4))
def test_a_bad_entry_before_a_good_one_is_refused_with_file_and_offset(opened, folder, which):
    written(opened, 5)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    before = path.read_bytes()
    for at in range(starts[which], starts[which + 1], 5):
        overwrite(path, at, bytes([before[at] ^ 0x40]))
        if entry.unpack(path.read_bytes(), starts[which]) is not None:
            path.write_bytes(before)  # only the padding was hit
            continue
        with pytest.raises(JournalCorrupt, match=f"damaged at offset {starts[which]}") as damage:
            opened()
        assert damage.value.place == f"{path.name}:{starts[which]}"
        path.write_bytes(before)
    _, found = opened()
    assert numbers(found) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damaged", [(1,), (2,), (4,), (1, 2), (1, 3), (2, 5)])
def test_damage_before_what_is_asked_for_is_passed_over_and_stays_as_it_is(opened, folder, damaged):
    """A start asks for what is behind its checkpoint: the rest is history, for whoever looks back."""
    written(opened, 6)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    for number in damaged:
        overwrite(path, starts[number - 1] + 60, b"damage")
    content = path.read_bytes()
    for first in range(1, 7):
        if first <= damaged[-1]:
            bad = min(number for number in damaged if number >= first)
            while bad - 1 in damaged:  # of several in a row the first one is the place
                bad -= 1
            with pytest.raises(JournalCorrupt, match=f"is damaged at offset {starts[bad - 1]}"):
                opened(first=first)
            continue
        journal, found = opened(first=first)
        assert (numbers(found), journal.missing) == (list(range(first, 7)), None)
        let_go(journal)
        assert path.read_bytes() == content
    journal, _ = opened(first=6)
    assert commit(journal) == 7
    let_go(journal)
    assert numbers(opened(first=6)[1]) == [6, 7]


def test_damage_changes_nothing_on_disk(opened, folder):
    written(opened, 40, 300)
    files = journal_files(folder)
    overwrite(files[1], places(files[1])[0][0] + 20, b"damage")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "journal.next"}
    for _ in range(2):
        with pytest.raises(JournalCorrupt):
            opened()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("which", [0, 1, -2])
def test_the_end_of_a_file_that_is_not_the_last_is_no_torn_tail(opened, folder, which):
    written(opened, 60, 300)
    files = journal_files(folder)
    path = files[which]
    starts, _ = places(path)
    overwrite(path, starts[-1], bytes(path.stat().st_size - starts[-1]))
    with pytest.raises(JournalCorrupt, match="what lay between is damaged") as damage:
        opened()
    assert damage.value.place == f"{path.name}:{starts[-1]}"


def test_an_entry_that_does_not_follow_is_refused(opened, folder):
    written(opened, 3)
    (path,) = journal_files(folder)
    starts, end = places(path)
    stranger, _ = entry.pack(3, 3, 0, 0xBAD, [], Private())
    overwrite(path, starts[2], stranger.ljust(end - starts[2], b"\0"))
    with pytest.raises(JournalCorrupt, match="does not follow") as damage:
        opened()
    assert damage.value.place == f"{path.name}:{starts[2]}"


def test_a_file_in_the_middle_that_is_missing_is_noticed(opened, folder):
    written(opened, 60, 300)
    files = journal_files(folder)
    files[1].unlink()
    _, end = places(files[0])
    with pytest.raises(JournalCorrupt, match=f"{files[2].name} .* a file is missing") as damage:
        opened()
    assert damage.value.place == f"{files[0].name}:{end}"


def test_swapped_files_are_noticed(opened, folder):
    written(opened, 60, 300)
    first, second, *_ = journal_files(folder)
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    with pytest.raises(JournalCorrupt):
        opened()


def test_a_file_under_another_name_than_its_own_is_refused(opened, folder):
    """What it is asked for by its name it may not hold."""
    written(opened, 60, 300)
    first, second, *_ = journal_files(folder)
    first.unlink()
    asked = int(second.stem.removeprefix("journal-")) - 2
    path = second.rename(folder / f"journal-{asked:020d}.log")
    with pytest.raises(JournalCorrupt, match=f"{path.name} begins with entry {asked + 2}") as damage:
        opened(first=asked)
    assert damage.value.place == f"{path.name}:0"


def test_a_file_that_was_begun_behind_another_entry_is_refused_though_nothing_is_in_it_yet(opened, folder):
    written(opened, 3)
    (path,) = journal_files(folder)
    _, end = places(path)
    (folder / f"journal-{4:020d}.log").write_bytes(entry.file_header(STATE, 4, 0xBAD))
    with pytest.raises(JournalCorrupt, match="begins with entry 4") as damage:
        opened()
    assert damage.value.place == f"{path.name}:{end}"


def test_a_file_of_another_state_is_refused(opened, folder, beside):
    written(opened, 3)
    (path,) = journal_files(folder)
    other = FileJournal(folder, b"another state id", SMALL, beside, power=False)
    with pytest.raises(JournalCorrupt, match="another state") as damage:
        list(other.replay())
    let_go(other)
    assert damage.value.place == f"{path.name}:0"


def test_a_newer_format_is_refused_as_such(opened, folder):
    written(opened, 3)
    (path,) = journal_files(folder)
    overwrite(path, 8, (JOURNAL_VERSION + 1).to_bytes(4, "little"))
    with pytest.raises(LayoutMismatch, match=f"{path.name} has journal format"):
        opened()


@pytest.mark.parametrize(("at", "data"), [(0, b"x"), (12, b"damage"), (20, b"\xff"), (40, b"\xff\xff")])
def test_a_damaged_header_is_refused(opened, folder, at, data):
    written(opened, 3)
    (path,) = journal_files(folder)
    overwrite(path, at, data)
    with pytest.raises(JournalCorrupt, match="header") as damage:
        opened()
    assert damage.value.place == f"{path.name}:0"


@pytest.mark.parametrize("length", [0, FILE_HEADER_BYTES - 1])
def test_a_file_without_a_header_is_refused(opened, folder, length):
    written(opened, 3)
    (path,) = journal_files(folder)
    os.truncate(path, length)
    with pytest.raises(JournalCorrupt, match="shorter"):
        opened()


def test_a_journal_that_refused_can_be_closed(folder, opened, beside):
    written(opened, 3)
    overwrite(journal_files(folder)[0], 0, b"x")
    journal = FileJournal(folder, STATE, SMALL, beside, power=False)
    with pytest.raises(JournalCorrupt):
        list(journal.replay())
    journal.close()


# --- what was acked and is gone ---------------------------------------------------------------------------------------


def test_an_acked_tail_that_is_gone_is_noticed(opened, folder):
    written(opened, 5)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    overwrite(path, starts[3], bytes(path.stat().st_size - starts[3]))
    journal, found = opened(may_be_cut=lambda: True)
    assert numbers(found) == [1, 2, 3]
    assert journal.missing == Missing(4, 5, f"{path.name}:{starts[3]}")


def test_a_torn_entry_that_was_acked_is_noticed(opened, folder):
    written(opened, 5)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    overwrite(path, starts[4] + 30, b"damage")
    journal, _ = opened(may_be_cut=lambda: True)
    assert journal.missing == Missing(5, 5, f"{path.name}:{starts[4]}")


def test_a_last_file_that_is_gone_is_noticed(opened, folder):
    written(opened, 60, 300)
    *_, before, last = journal_files(folder)
    first = int(last.stem.removeprefix("journal-"))
    last.unlink()
    journal, found = opened(may_be_cut=lambda: True)
    assert numbers(found) == list(range(1, first))
    assert journal.missing == Missing(first, 60, f"{before.name}:{places(before)[1]}")


def test_a_loss_that_was_taken_is_not_reported_again(opened, folder):
    written(opened, 5)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    for lost in (4, 3, 2, 1):
        overwrite(path, starts[lost], bytes(path.stat().st_size - starts[lost]))
        journal, found = opened(may_be_cut=lambda: True)
        assert numbers(found) == list(range(1, lost + 1))
        assert journal.missing is not None
        assert commit(journal) == lost + 1
        let_go(journal)
        journal, found = opened()
        assert numbers(found) == list(range(1, lost + 2))
        assert journal.missing is None
        let_go(journal)


@pytest.mark.parametrize("power", [False, True])
def test_a_loss_that_nothing_explains_is_refused_as_often_as_it_is_met_and_nothing_is_changed(opened, folder, power):
    written(opened, 60, 300)
    path = journal_files(folder)[-1]
    starts, _ = places(path)
    overwrite(path, starts[-1] + 40, b"damage")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "journal.next"}
    for _ in range(3):
        with pytest.raises(JournalCorrupt, match="entries 60 to 60 were committed") as damage:
            opened(power=power)
        assert damage.value.place == f"{path.name}:{starts[-1]}"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_any_file_what_was_acked_is_not_forgotten(opened, folder):
    written(opened, 3)
    for path in journal_files(folder):
        path.unlink()
    with pytest.raises(JournalCorrupt, match="once held 3 entries") as damage:
        opened()
    assert damage.value.place == str(folder)
    assert journal_files(folder) == []


@pytest.mark.parametrize("damage", [b"", b"x", bytes(32), b"\xff" * 32])
def test_a_side_file_that_says_nothing_is_no_reason_to_refuse(opened, folder, damage):
    written(opened, 3)
    (folder / "committed").write_bytes(damage)
    journal, found = opened()
    assert (numbers(found), journal.missing) == ([1, 2, 3], None)


def test_a_side_file_torn_in_its_newest_half_says_what_the_other_half_says(opened, folder):
    written(opened, 5)
    (path,) = journal_files(folder)
    starts, _ = places(path)
    overwrite(path, starts[3], bytes(path.stat().st_size - starts[3]))
    overwrite(folder / "committed", 16, b"torn")  # 5 is odd: its half is the second
    journal, _ = opened(may_be_cut=lambda: True)
    assert journal.missing == Missing(4, 4, f"{path.name}:{starts[3]}")


def nothing():
    """It is still this journal's folder."""


# --- trimming ---------------------------------------------------------------------------------------------------------


def test_trimming_removes_whole_files_below_and_never_the_current_one(opened, folder):
    written(opened, 100, 300)
    journal, _ = opened()
    firsts = [int(path.stem.removeprefix("journal-")) for path in journal_files(folder)]
    assert len(firsts) > 3
    journal.trim(firsts[1] - 1, nothing)
    assert len(journal_files(folder)) == len(firsts)
    journal.trim(firsts[2], nothing)
    assert [int(path.stem.removeprefix("journal-")) for path in journal_files(folder)] == firsts[2:]
    let_go(journal)
    journal, found = opened(first=firsts[2])
    assert numbers(found) == list(range(firsts[2], 101))
    journal.trim(10_000, nothing)
    assert len(journal_files(folder)) == 1
    assert commit(journal) == 101
    let_go(journal)
    _, found = opened(first=firsts[-1])
    assert numbers(found) == list(range(firsts[-1], 102))


def test_a_replay_begins_with_the_entry_that_is_asked_for_and_is_refused_without_it(opened, folder):
    written(opened, 100, 300)
    second = int(journal_files(folder)[1].stem.removeprefix("journal-"))
    for first in (1, second - 1, second, second + 1, 100, 101):
        journal, found = opened(first=first)
        assert numbers(found) == list(range(first, 101))
        let_go(journal)
    journal, _ = opened()
    journal.trim(second, nothing)
    let_go(journal)
    with pytest.raises(JournalCorrupt, match="a file is missing"):
        opened(first=second - 1)


def test_the_length_is_that_of_what_was_asked_for_and_committed(opened):
    """By which a checkpoint is due."""
    journal, _ = opened()
    lengths = [journal.length]
    for _ in range(4):
        commit(journal)
        lengths.append(journal.length)
    let_go(journal)
    assert lengths == sorted({0, *lengths})
    for first in range(1, 6):
        journal, _ = opened(first=first)
        assert journal.length == lengths[-1] - lengths[first - 1]
        let_go(journal)


@pytest.mark.parametrize("power", [False, True])
def test_trimmed_files_are_written_again_and_what_they_held_is_never_replayed(opened, folder, calls, power):
    journal, _ = opened(power=power)
    while len(journal_files(folder)) < 6:
        commit(journal, 300)
    journal.trim(journal.tail.number, nothing)
    spare = {inode(path) for path in folder.glob("spare-*.log")}
    assert len(spare) > 1
    first = int(journal_files(folder)[0].stem.removeprefix("journal-"))
    while inode(journal_files(folder)[-1]) not in spare:
        commit(journal, 300)
    assert entry.unpack(journal_files(folder)[-1].read_bytes(), FILE_HEADER_BYTES)[0].number == journal.tail.number
    for _ in range(3):
        tail = journal.tail
        let_go(journal)
        journal, found = opened(first=first, power=power)
        assert (numbers(found), journal.tail) == (list(range(first, tail.number + 1)), tail)
        commit(journal, 30)


@pytest.mark.parametrize("power", [False, True])
def test_a_trimmed_file_is_written_again_only_when_its_old_name_is_gone_from_the_disk(opened, folder, calls, power):
    journal, _ = opened(power=power)
    while len(journal_files(folder)) < 6:
        commit(journal, 300)
    path = journal_files(folder)[3]
    old = inode(path)
    path.rename(path.with_name(path.name.replace("journal-", "spare-")))  # as a trim does that did not end
    calls.clear()
    while inode(journal_files(folder)[-1]) != old:
        commit(journal, 300)
    renamed = next(at for at, (verb, what) in enumerate(calls) if verb == "rename" and what[0].startswith("spare-"))
    assert ("fsync", inode(folder)) in calls[renamed : calls.index(("pwrite", old))]


def test_a_trimmed_file_that_somebody_keeps_under_another_name_is_never_written_again(opened, folder):
    kept = folder / "kept"
    kept.mkdir()
    journal, _ = opened()
    while len(journal_files(folder)) < 6:
        commit(journal, 300)
    before = {}
    for path in journal_files(folder)[:-1]:
        os.link(path, kept / path.name)
        before[path.name] = path.read_bytes()
    journal.trim(journal.tail.number, nothing)
    for _ in range(300):
        commit(journal, 300)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert not [*folder.glob("spare-*.log")]


def test_a_copy_by_hard_links_stays_what_it_is(opened, folder):
    written(opened, 5)
    copy = folder / "copy"
    files = [*folder.iterdir()]
    copy.mkdir()
    for path in files:
        os.link(path, copy / path.name)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    journal, found = opened()
    assert numbers(found) == [1, 2, 3, 4, 5]
    while len(journal_files(folder)) < 4:
        commit(journal, 300)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    tail = journal.tail
    let_go(journal)
    assert opened()[0].tail == tail


@pytest.mark.parametrize(("name", "size"), [("journal.next", 7), ("reserve", 7), ("spare-1.log", 32 * KIB)])
def test_no_link_that_somebody_put_there_is_written_through(opened, folder, tmp_path, name, size):
    other = tmp_path / "other"
    other.write_bytes(b"x" * size)
    journal, _ = opened()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(other)
    while len(journal_files(folder)) < 4:
        commit(journal, 300)
    assert other.read_bytes() == b"x" * size
    assert not any(path.is_symlink() for path in journal_files(folder))


def test_what_was_committed_is_noted_in_no_file_that_somebody_linked_to(folder, beside, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"x" * 100)
    (folder / "committed").symlink_to(other)
    with pytest.raises(OSError, match=r"symbolic links.*committed"):
        FileJournal(folder, STATE, SMALL, beside, power=False)
    assert other.read_bytes() == b"x" * 100


def test_a_journal_file_that_is_a_link_is_never_written_again(opened, folder, beside, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"x" * SMALL.journal_file_bytes)
    path = folder / "journal-00000000000000000001.log"
    path.symlink_to(other)
    FilesAhead(folder, beside, SMALL.journal_file_bytes, zeroed=True).keep(path)
    assert (os.listdir(folder), other.exists()) == ([], True)


def test_a_trimmed_file_whose_header_is_cleared_in_part_serves_nobody(opened, folder, beside, files_at_most):
    """The kernel cuts that write short, as on a full disk. What the file held is never taken for the next one."""
    journal, _ = opened()
    while len(journal_files(folder)) < 6:
        commit(journal, 300)
    files = FilesAhead(folder, beside, SMALL.journal_file_bytes, zeroed=True)
    files.keep(journal_files(folder)[4])
    assert len([*folder.glob("spare-*.log")]) == 1
    with files_at_most(FILE_HEADER_BYTES - 1), pytest.raises(OSError, match="no room for a journal file") as failure:
        files.take(FILE_HEADER_BYTES, SMALL.journal_file_bytes)
    assert failure.value.errno in FULL
    assert not [*folder.glob("spare-*.log"), *folder.glob("journal.next")]
    fd = files.take(FILE_HEADER_BYTES, SMALL.journal_file_bytes)
    assert os.pread(fd, SMALL.journal_file_bytes, 0) == bytes(SMALL.journal_file_bytes)
    os.close(fd)


def test_at_most_so_many_spare_files_are_kept(opened, folder):
    written(opened, 600, 300)
    journal, _ = opened()
    assert len(journal_files(folder)) > 12
    journal.trim(600, nothing)
    assert len([*folder.glob("spare-*.log")]) == 8


def test_spare_files_that_are_too_small_by_now_go_with_the_next_start(opened, folder):
    written(opened, 600, 300)
    journal, _ = opened()
    journal.trim(600, nothing)
    assert len([*folder.glob("spare-*.log")]) == 8
    tail = journal.tail
    let_go(journal)
    first = int(journal_files(folder)[0].stem.removeprefix("journal-"))
    journal, _ = opened(first=first, limits=Limits(journal_file_bytes=2 * SMALL.journal_file_bytes))
    assert (journal.tail, [*folder.glob("spare-*.log")]) == (tail, [])


def test_spare_files_that_are_too_small_by_now_keep_no_larger_ones_from_their_place(folder, beside):
    small, large = 4 * KIB, 64 * KIB
    for number, size in enumerate([small] * 8 + [large], 1):
        path = folder / f"journal-{number:020d}.log"
        path.write_bytes(bytes(size))
        FilesAhead(folder, beside, size, zeroed=True).keep(path)
    kept = [path for path in folder.glob("spare-*.log") if path.stat().st_size == large]
    expected = [inode(path) for path in kept]
    fd = FilesAhead(folder, beside, large, zeroed=True).take(FILE_HEADER_BYTES, large)
    assert [os.fstat(fd).st_ino] == expected
    os.close(fd)


# --- the whole private state ------------------------------------------------------------------------------------------


def commit_whole(journal, checkpoint, history=b"h"):
    life = entry.Life(1, history, "process", "boot", drained=False)
    whole = entry.PrivateState(entry.CheckpointName(checkpoint, 7), life, [], [], False, -1, [])
    journal.append(journal.tail.number, 0, [], Private(whole=whole))
    asyncio.run(journal.commit(durable=True))
    return journal.tail.number


def test_the_newest_entry_that_holds_all_of_the_private_state_is_found_and_begins_a_file(opened, folder, calls):
    journal, _ = opened()
    assert journal.newest_whole() is None
    for expected in (4, 9, 14):
        for _ in range(3):
            commit(journal)
        calls.clear()
        assert commit_whole(journal, expected - 1) == expected
        path = journal_files(folder)[-1]
        assert path.name == f"journal-{expected:020d}.log"
        assert ("fdatasync", inode(path)) in calls[calls.index(("pwrite", inode(path))) + 2 :], "on disk at every level"
        number, whole = journal.newest_whole()
        assert (number, whole.checkpoint.entry) == (expected, expected - 1)
        commit(journal)
        journal.append(journal.tail.number, 0, [], Private())
    let_go(journal)
    journal, found = opened(first=10)
    assert numbers(found) == list(range(10, 16))
    assert journal.newest_whole()[0] == 14


def test_the_file_that_it_begins_is_made_beside_the_loop(opened, folder, calls, beside):
    journal, _ = opened(power=True)
    commit(journal)
    journal.make_ahead()
    beside.submit(int).result()
    new = inode(folder / "journal.next")
    assert ("fsync", new) in calls
    calls.clear()
    commit_whole(journal, 1)
    assert inode(journal_files(folder)[-1]) == new
    assert ("fsync", new) not in calls


# --- what a power cut may take without `power` ------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [0, 3, 60])
def test_where_entries_may_be_lost_in_any_order_all_behind_the_first_lost_one_go(opened, folder, hole):
    written(opened, 100, 300)
    files = journal_files(folder)
    firsts = [int(path.stem.removeprefix("journal-")) for path in files]
    place = max(number for number, first in enumerate(firsts) if first <= hole + 1)
    begins, _ = places(files[place])
    at = begins[hole + 1 - firsts[place]]
    overwrite(files[place], at, bytes(40))
    with pytest.raises(JournalCorrupt):
        opened()
    journal, found = opened(may_be_cut=lambda: True)
    assert numbers(found) == list(range(1, hole + 1))
    assert journal.missing == Missing(hole + 1, 100, f"{files[place].name}:{at}")
    assert commit(journal) == hole + 1
    let_go(journal)
    _, found = opened()
    assert numbers(found) == list(range(1, hole + 2))


def test_that_a_loss_was_taken_is_on_disk_before_anything_follows(opened, folder, calls):
    """Or a second power cut brings back the note of what is gone, and nothing starts any more."""
    written(opened, 100, 300)
    overwrite(journal_files(folder)[-1], places(journal_files(folder)[-1])[0][0], bytes(40))
    calls.clear()
    journal, _ = opened(may_be_cut=lambda: True)
    assert journal.missing is not None
    noted = inode(folder / "committed")
    assert [verb for verb, what in calls if what == noted] == ["pwrite", "fdatasync"]


def test_where_entries_may_be_lost_a_file_that_is_missing_ends_the_history(opened, folder):
    written(opened, 60, 300)
    files = journal_files(folder)
    assert len(files) > 2
    files[1].unlink()
    journal, found = opened(may_be_cut=lambda: True)
    assert journal_files(folder) == files[:1]
    assert journal.missing == Missing(len(found) + 1, 60, f"{files[2].name}:0")
    assert numbers(found) == list(range(1, len(found) + 1))
    assert commit(journal) == len(found) + 1
    let_go(journal)
    assert numbers(opened()[1]) == list(range(1, len(found) + 2))


@pytest.mark.parametrize("count", [3, 60])
def test_where_entries_may_be_lost_one_that_does_not_follow_ends_the_history(opened, folder, count):
    written(opened, count, 300)
    path = journal_files(folder)[0]
    starts, end = places(path)
    stranger, _ = entry.pack(3, 3, 0, 0xBAD, [], Private())
    overwrite(path, starts[2], stranger.ljust([*starts, end][3] - starts[2], b"\0"))
    journal, found = opened(may_be_cut=lambda: True)
    assert numbers(found) == [1, 2]
    assert journal.missing == Missing(3, count, f"{path.name}:{starts[2]}")
    let_go(journal)
    assert numbers(opened()[1]) == [1, 2], "it is gone, and met only once"


def test_an_entry_that_is_another_one_than_was_committed_is_refused(opened, folder):
    """Every file is whole and follows the one before: it is the note that knows better."""
    written(opened, 3)
    (path,) = journal_files(folder)
    number, crc = entry.last_committed((folder / "committed").read_bytes())
    note, place = entry.committed_note(number, crc ^ 1)
    (folder / "committed").write_bytes(bytes(place) + note)
    with pytest.raises(JournalCorrupt, match="entry 3 is not the one that was committed") as damage:
        opened()
    assert damage.value.place == f"{path.name}:{places(path)[0][2]}"


# --- no room ----------------------------------------------------------------------------------------------------------

FILLING = """
import asyncio, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from solewriter.engine_proc import preallocation, filejournal as journals
from solewriter.engine_proc.filejournal import FileJournal, journal_files
from solewriter.engine_proc.journal import DiskFull
from solewriter.shared.config import Limits
from solewriter.shared.journal.entry import Private
journals.JOURNAL_FILE_BYTES_FIRST = preallocation.RESERVE_BYTES = 64 * 1024
folder, ballast = Path(sys.argv[1]) / "state", Path(sys.argv[1]) / "ballast"
folder.mkdir()
if len(sys.argv) > 2:
    ballast.write_bytes(bytes(600_000))
limits, beside, state = Limits(journal_file_bytes=256 * 1024), ThreadPoolExecutor(1), b"0123456789abcdef"
journal = FileJournal(folder, state, limits, beside, power=True)
list(journal.replay())
def commit():
    journal.append(1, 0, [], Private(fenced_ids=["x" * 9_000]))
    asyncio.run(journal.commit(durable=True))
full = 0
while full < 10 and journal.tail.number < 500:
    before = journal.tail
    try:
        commit()
    except DiskFull as error:
        full += 1
        assert journal.tail == before
        assert "free space" in str(error), error
        ballast.unlink(missing_ok=full < 3) if full == 3 or not ballast.exists() else None
        if len(sys.argv) < 3 or full == 3:
            break
print(full)
held = journal.tail.number
for _ in range(3):
    commit()
print(journal.tail.number - held)
journal.close()
again = FileJournal(folder, state, limits, beside, power=True)
print([entry.number for entry in again.replay()] == list(range(1, held + 4)), again.missing)
again.close()
"""


TWICE = "journal.prepare:full:hit=3,journal.prepared:full:hit=3"  # beside the loop, and when the file is needed


def fill(command, **environment):
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_full_disk_is_survived_and_the_journal_goes_on_when_there_is_room(tmp_path):
    ran = fill([sys.executable, "-P", "-c", FILLING, str(tmp_path)], **{VARIABLE: TWICE})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["1", "3", "True None"]


def can_mount():
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root and mount namespaces")
def test_a_file_system_that_really_is_full_is_survived_as_often_as_it_is(tmp_path):
    mounted = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -P -c "$3" "$1" with-ballast'
    ran = fill(["unshare", "-m", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, FILLING])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["3", "3", "True None"]


def test_the_first_failed_write_is_not_retried_and_its_entry_is_dropped(opened, files_at_most):
    """A limit on the size of files makes the kernel write half an entry."""
    journal, _ = opened()
    commit(journal)
    before = journal.tail
    journal.append(2, 0, [body_of(2, 500)], Private())
    with files_at_most(journal._offset + 100), pytest.raises(OSError, match="wrote 100 of") as failure:
        asyncio.run(journal.commit(durable=True))
    assert not isinstance(failure.value, DiskFull)
    assert failure.value.errno == errno.EIO
    assert journal.tail == before
    let_go(journal)
    journal, found = opened()
    assert (numbers(found), journal.missing) == ([1], None)


def test_a_disk_that_is_full_again_and_again_needs_no_more_room_in_the_end(opened, folder, files_at_most):
    journal, _ = opened()
    commit(journal)  # less than half a file: nothing is made ahead
    left = ["committed", journal_files(folder)[0].name, "reserve"]
    with files_at_most(1_000):
        for _ in range(5):
            with pytest.raises(DiskFull):
                commit(journal, 5_000)
            assert sorted(path.name for path in folder.iterdir()) == left
    assert commit(journal, 5_000) == 2
    assert journal_files(folder)[1].stat().st_size == 8 * KIB
    let_go(journal)
    assert numbers(opened()[1]) == [1, 2]


def test_a_next_file_that_had_no_room_is_made_when_there_is_some(opened, folder, beside, files_at_most):
    """Nobody is told that the disk is full which was so an hour ago."""
    journal, _ = opened()
    with files_at_most(4 * KIB):
        commit(journal, 3_000)
        beside.submit(int).result()  # the next file was tried
    assert commit(journal, 3_000) == 2
    let_go(journal)
    assert numbers(opened()[1]) == [1, 2]


def test_a_bound_for_files_is_not_told_as_a_full_disk(opened, folder, files_at_most):
    """No room that somebody frees there would help: `ulimit -f` of whoever started the engine does."""
    journal, _ = opened()
    with files_at_most(4 * KIB):
        commit(journal, 3_000)
        with pytest.raises(DiskFull, match=r"no file in .* may have the 8,192 bytes .* `ulimit -f`") as refused:
            commit(journal, 3_000)
    assert "free space" not in str(refused.value)


def test_the_reserve_is_for_what_tidies_up_and_is_held_again_when_there_is_room(opened, folder, files_at_most):
    journal, _ = opened()
    with files_at_most(4 * KIB):  # as much as the reserve has
        commit(journal, 3_000)
        assert commit_whole(journal, 1) == 2, "it is written where the reserve was"
        assert journal_files(folder)[1].stat().st_size < 4 * KIB
        with pytest.raises(DiskFull):
            commit(journal, 5_000)
    assert commit(journal, 5_000) == 3
    assert (folder / "reserve").stat().st_size == 4 * KIB


def test_what_the_reserve_is_too_small_for_leaves_it_there(opened, folder, files_at_most):
    """What tidies up later may be smaller, and nobody else may have the room."""
    journal, _ = opened()
    commit(journal)
    with files_at_most(4 * KIB):
        with pytest.raises(DiskFull):
            commit_whole(journal, 1, history=bytes(9_000))
        assert (folder / "reserve").stat().st_size == 4 * KIB


@contextmanager
def files_at_most(size):
    """The kernel lets no file grow beyond this, and cuts a write short there."""
    with files_at_most(size):
        yield


def test_half_a_header_is_the_end_and_its_file_never_gets_its_name(opened, folder, beside, files_at_most):
    journal, _ = opened()
    commit(journal, 3_000)
    beside.submit(int).result()  # the next file is there
    with files_at_most(30), pytest.raises(OSError, match="half a journal header") as failure:
        commit(journal, 3_000)
    assert not isinstance(failure.value, DiskFull)
    assert len(journal_files(folder)) == 1
    let_go(journal)
    assert numbers(opened()[1]) == [1]


def test_a_recovery_that_has_no_room_to_rewrite_the_tail_leaves_it_as_it_is(opened, folder, files_at_most):
    written(opened, 5)
    content = journal_files(folder)[0].read_bytes()
    with files_at_most(1_000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        opened()
    assert journal_files(folder)[0].read_bytes() == content
    assert numbers(opened()[1]) == [1, 2, 3, 4, 5]


def test_an_error_that_is_no_full_disk_is_not_taken_for_one(opened, folder):
    journal, _ = opened()
    commit(journal)
    (folder / "journal.next").mkdir()
    with pytest.raises(IsADirectoryError):
        commit(journal, 5_000)
    assert journal.tail.number == 1


def test_room_that_would_cost_the_reserve_is_no_room(opened, folder, monkeypatch, files_at_most):
    monkeypatch.setattr(preallocation, "RESERVE_BYTES", 16 * KIB)
    journal, _ = opened()
    commit(journal)
    (folder / "reserve").unlink()  # it was given back when the disk was full
    before = sorted(path.name for path in folder.iterdir())
    with files_at_most(8 * KIB), pytest.raises(DiskFull):
        commit(journal, 5_000)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert commit(journal, 5_000) == 2
    assert (folder / "reserve").stat().st_size == 16 * KIB


def test_what_tidies_up_is_refused_too_where_even_the_reserve_is_too_little(opened, folder, files_at_most):
    journal, _ = opened()
    commit(journal)
    with files_at_most(100), pytest.raises(DiskFull):
        commit_whole(journal, 1)
    assert journal.tail.number == 1
    assert commit_whole(journal, 1) == 2
    let_go(journal)
    assert numbers(opened()[1]) == [1, 2]


def test_an_error_of_the_reserve_that_is_no_full_disk_is_the_end(opened, folder, monkeypatch):
    journal, _ = opened()
    commit(journal)
    errors = iter([errno.ENOSPC, errno.EIO])

    def fail(step):
        if step == "journal.prepare":
            raise OSError(next(errors), step)

    monkeypatch.setattr(failpoint, "reach", fail)
    with pytest.raises(OSError, match=r"journal\.prepare") as failure:
        commit_whole(journal, 1)
    assert failure.value.errno == errno.EIO
    assert journal.tail.number == 1


# --- files that close beside the commits ------------------------------------------------------------------------------


class Late(Executor):
    """Beside the loop, and never done before somebody waits for it."""

    def submit(self, work, /, *args):
        future = Future()
        real, call = future.result, future.add_done_callback

        def result(timeout=None):
            if not future.done():
                future.set_result(work(*args))
            return real(timeout)

        future.result, future.add_done_callback = result, lambda callback: call(callback) or result()
        return future


def held(folder):
    """How many descriptors of journal files this process has."""
    links = (Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith(f"{folder}/journal-") for link in links if link.is_symlink())


def test_a_file_is_synced_and_closed_before_the_one_after_the_next_is_begun_and_before_a_stop(folder, calls):
    """However slow that is: so at most one file besides the current one is not on disk."""
    journal = FileJournal(folder, STATE, SMALL, Late(), power=False)
    assert list(journal.replay()) == []
    for number in (1, 3, 5):
        assert commit_whole(journal, number - 1) == number
        commit(journal)  # which `process` does not sync
        assert held(folder) == 2
    journal.close()
    assert held(folder) == 0
    for path in journal_files(folder):
        verbs = [verb for verb, what in calls if what == inode(path)]
        assert verbs[-1] == "fdatasync", "nothing was written behind the last sync"


DYING = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from solewriter.engine_proc import filejournal as journals
from solewriter.shared.config import Limits
from solewriter.shared.journal.entry import Private
journals.JOURNAL_FILE_BYTES_FIRST = 4096
limits, beside = Limits(journal_file_bytes=16384), ThreadPoolExecutor(1)
journal = journals.FileJournal(Path(sys.argv[1]), b"0123456789abcdef", limits, beside, power=True)
list(journal.replay())
for _ in range(40):
    journal.append(1, 0, [], Private(fenced_ids=["x" * 500]))
    asyncio.run(journal.commit(durable=True))
    print(journal.tail.number, flush=True)
"""
EVERYWHERE = (
    "commit.write commit.written commit.synced commit.noted journal.prepare journal.roll journal.rolled "
    "recover.rewrite recover.rewritten"
)


@pytest.mark.parametrize("name", EVERYWHERE.split())
def test_a_kill_at_any_step_loses_nothing_that_was_acked(folder, opened, name):
    """The first run is killed in a commit or a roll, the second in its recovery or a commit after it."""
    env = {**os.environ, VARIABLE: f"{name}:kill:hit=2" if name.startswith(("commit", "journal.")) else f"{name}:kill"}
    acked = 0
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-P", "-c", DYING, str(folder)], capture_output=True, text=True, env=env)
        acked = max([acked, *map(int, ran.stdout.split())])
        assert "Error" not in ran.stderr
        journal, found = opened()
        assert numbers(found) in (list(range(1, acked + 1)), list(range(1, acked + 2)))
        assert journal.missing is None
        acked = len(found)
        let_go(journal)
    assert acked > 0


# --- without a journal ------------------------------------------------------------------------------------------------


def test_without_durability_entries_are_counted_and_forgotten():
    journal = NoJournal()
    assert list(journal.replay()) == []
    for number in range(1, 4):
        journal.append(number, 0, [body_of(number)], Private())
        assert journal.tail.number == number - 1
        asyncio.run(journal.commit(durable=True))
        assert journal.tail == Tail(number, 0)
    journal.make_ahead()
    journal.trim(2, nothing)
    assert journal.newest_whole() is None
    journal.close()


# --- where it syncs --------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_disk(monkeypatch):
    """`slow_disk.append(seconds)`: from now on a sync takes so long. Nothing is synced: this disk may be slow, too."""
    takes_s = [0.0]
    monkeypatch.setattr(os, "fdatasync", lambda fd: threading.Event().wait(takes_s[-1]))
    monkeypatch.setattr(journals, "JOURNAL_FILE_BYTES_FIRST", 16 * KIB)  # all of it in one file
    monkeypatch.setattr(journals, "SYNC_BESIDE_S", 0.2)  # which no quick one here takes
    return takes_s


def turns_of_the_loop(journal, life=None):
    """Commit one more entry: how often others had their turn meanwhile."""
    number = journal.tail.number + 1
    journal.append(number, number * 10, [body_of(number)], Private(life=life))

    async def counted():
        committing, turns = asyncio.ensure_future(journal.commit(durable=True)), -1
        while not committing.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    return asyncio.run(counted())


def test_the_loop_waits_for_a_quick_disk_and_not_for_a_slow_one(opened, slow_disk):
    """After one slow sync the next ones are done beside the loop, until the disk was quick for a while."""
    journal, _ = opened(power=True)
    assert [turns_of_the_loop(journal) for _ in range(4)] == [0] * 4
    slow_disk.append(0.25)
    assert turns_of_the_loop(journal) == 0, "nobody can know before"
    assert all(turns_of_the_loop(journal) > 10 for _ in range(2))
    slow_disk.append(0.0)
    waited = [turns_of_the_loop(journal) == 0 for _ in range(9)]
    assert not waited[0], "it was slow a moment ago"
    assert waited[-1]
    assert waited == sorted(waited)


@pytest.mark.parametrize("size", [300, 20_000])
def test_the_loop_does_not_wait_while_a_file_is_made_or_closed_beside_it(opened, folder, beside, size):
    """The commit does: for the file that it goes on in, or, where it makes one itself, for the one that was before."""
    journal, _ = opened()
    while not journal._ahead.is_begun:
        commit(journal, 300)
    beside.submit(int).result()
    disk = threading.Event()
    beside.submit(disk.wait, 60)
    while len(journal_files(folder)) == 1:
        commit(journal, 300)
    while size == 300 and journal._offset + 500 < journal._size:
        commit(journal, 300)

    async def rolled():
        number = journal.tail.number + 1
        journal.append(number, 0, [body_of(number, size)], Private())
        committing = asyncio.ensure_future(journal.commit(durable=True))
        for _ in range(100):
            await asyncio.sleep(0)
            assert not committing.done()
        disk.set()
        await committing

    asyncio.run(rolled())
    assert len(journal_files(folder)) == 3


def test_the_loop_does_not_wait_while_all_that_was_written_since_long_is_synced(opened):
    """Below `power` nothing is synced but with what lasts, a life say, and then everything before it."""
    journal, _ = opened(power=False)
    assert turns_of_the_loop(journal) == 0, "it is not synced at all"
    assert turns_of_the_loop(journal, entry.Life(1, b"h" * 16, "process", "boot", drained=False)) > 0
