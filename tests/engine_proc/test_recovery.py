"""What a start takes over from dead engines: their state, if it is theirs."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from zlib import crc32

import msgspec
import pytest

from solewriter import Engine, EngineStartFailed, JournalCorrupt, Put, Task, connect, open_reader
from solewriter.agents.verify import verify
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.engine_proc.recovery.recovery import history_of
from solewriter.engine_proc.recovery.repair import set_aside, truncate
from solewriter.shared.config import GIB, KIB, Limits
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal import life as lives
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Life, Private
from solewriter.shared.journal.life import boot_id, may_be_cut
from solewriter.shared.journal.setaside import aside_path

# --- its state, and nobody else's -------------------------------------------------------------------------------------

LIMITS = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB, journal_file_bytes=64 * KIB,
    checkpoint_after_bytes=16 * KIB, history_bytes=600 * KIB, recent_bytes=8 * KIB,
)  # fmt: skip


def named(state):
    """The checkpoints that the journal names, in order."""
    firsts = [first_entry_of(path) for path in journal_files(state)]
    return [first.private.whole.checkpoint.entry for first in firsts if first is not None and first.private.whole]


FEW = 10  # of its tasks


@pytest.fixture(scope="module")
def left(tmp_path_factory, wait_until):
    """A folder whose start needs a checkpoint; its engine has stopped. From there on its journal is of two files, and
    the last one begins with a turn. Nothing is written while the checkpoint is made, so that however long it takes
    there is no other one, and nothing goes of what is before it.
    """
    state = tmp_path_factory.mktemp("left") / "state"
    limits = msgspec.structs.replace(LIMITS, journal_file_bytes=8 * KIB, history_bytes=GIB)
    with Engine(state, durability="process", limits=limits), connect(state, limits=limits) as client:
        work(client, "x")
        work(client, "y", FEW)  # 18 KiB with those before, of which 16 are enough
        wait_until(lambda: named(state), 60, "a checkpoint")
        files = len(journal_files(state))
        letters = cycle("xy")
        while len(journal_files(state)) == files:
            work(client, next(letters), FEW)
    before, last = map(first_entry_of, journal_files(state)[-2:])
    assert before.private.whole, "the file before the last one is needed"
    assert last.bodies
    assert len(named(state)) == 1
    return state


def work(client, letter, count=40):
    """Changes what there is, or makes it."""
    for reply in client.submit_many([Put(Task(title=letter * 100, id=f"t{one}")) for one in range(count)]):
        reply.check()


@pytest.fixture
def stopped(left, state):
    """A copy of it."""
    shutil.copytree(left, state, ignore=shutil.ignore_patterns("*.sock"))
    return state


def test_a_start_begins_with_the_checkpoint_that_the_journal_names(stopped, start_engine):
    with Checkpoint(checkpoint_files(stopped)[named(stopped)[-1]]) as one:
        assert one.directory.revision > 0
    start_engine(stopped, limits=LIMITS)
    with connect(stopped, limits=LIMITS) as client:
        assert client.get(Task, "t39").title == "x" * 100


@pytest.mark.parametrize("by", ["start", "cut"])
def test_of_the_journal_nothing_is_needed_that_its_checkpoint_holds(stopped, start_engine, by):
    """Not the entry behind which it was taken either: its file may have been the last to go."""
    with Checkpoint(checkpoint_files(stopped)[named(stopped)[-1]]) as one:
        entry = one.entry
    for path in journal_files(stopped):
        if first_of(path) <= entry:
            path.unlink()
    assert first_of(journal_files(stopped)[0]) == entry + 1
    revision = verify(stopped).revision
    if by == "cut":
        before, (cut, _) = revision, truncate(StateFolder(stopped), revision - 1)
        revision = cut.revision
        assert revision < before
    start_engine(stopped, limits=LIMITS)
    with connect(stopped, limits=LIMITS) as client:
        assert client.reader.revision == revision
        assert client.get(Task, "t39").title == "x" * 100


def test_a_checkpoint_of_another_state_is_refused_by_name(stopped, start_engine):
    """Every sum in it is right, and it is of the same entry."""
    path = checkpoint_files(stopped)[named(stopped)[-1]]
    content = path.read_bytes()
    rest = b"another state..." + content[32:56]
    head = content[:12] + struct.pack("<I", crc32(rest)) + rest
    path.write_bytes(head + content[56:])
    with pytest.raises(EngineStartFailed, match=f"{path.name} and .* are of different states"):
        start_engine(stopped, limits=LIMITS)


def test_another_checkpoint_in_the_place_of_the_one_that_is_named_is_refused(stopped, start_engine):
    path = checkpoint_files(stopped)[named(stopped)[-1]]
    content = path.read_bytes()
    with Checkpoint(path) as one:
        packed = msgspec.msgpack.encode(msgspec.structs.replace(one.directory, time_us=one.directory.time_us + 1))
    rest = content[16:48] + struct.pack("<II", len(packed), crc32(packed))
    offset = int.from_bytes(content[40:48], "little")
    head = content[:12] + struct.pack("<I", crc32(rest)) + rest
    path.write_bytes(head.ljust(64, b"\0") + content[64:offset] + packed)
    with pytest.raises(EngineStartFailed, match=f"{path.name} is not the one that the journal names"):
        start_engine(stopped, limits=LIMITS)


def test_a_missing_checkpoint_is_refused_by_name(stopped, start_engine):
    path = checkpoint_files(stopped)[named(stopped)[-1]]
    path.unlink()
    with pytest.raises(EngineStartFailed, match=f"{path.name} is missing"):
        start_engine(stopped, limits=LIMITS)


def test_a_damaged_entry_is_refused_by_place_where_no_power_cut_explains_it(stopped, start_engine):
    """The folder is of this boot: its page cache was not lost."""
    path = journal_files(stopped)[-1]
    content = bytearray(path.read_bytes())
    place = FILE_HEADER_BYTES + 60
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineStartFailed, match=f"{path.name} is damaged at offset {FILE_HEADER_BYTES}"):
        start_engine(stopped, limits=LIMITS)
    assert path.read_bytes() == content


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_a_life_below_power_only_wrote_is_on_new_pages_before_anything_follows(stopped, start_engine, durability):
    """A sync of the file before the last one may have failed, and to try it again proves nothing."""
    for rewritten in (True, durability == "process"):
        before = journal_files(stopped)[-2]
        keep = os.open(before, os.O_RDONLY)  # so that its inode is not given out again
        old = before.stat().st_ino
        start_engine(stopped, durability=durability, limits=LIMITS).stop()
        os.close(keep)
        assert (before.stat().st_ino != old) is rewritten


def test_a_repair_goes_back_to_a_checkpoint_right_behind_which_the_journal_begins(stopped, start_engine, wait_until):
    (older,), limits, letters = named(stopped), msgspec.structs.replace(LIMITS, history_bytes=GIB), cycle("yz")
    engine = start_engine(stopped, limits=limits)
    with connect(stopped, limits=limits) as client:
        wait_until(lambda: work(client, next(letters)) or len(named(stopped)) > 1, 60, "another checkpoint")
    engine.stop()
    for path in journal_files(stopped):
        if first_of(path) <= older:
            path.unlink()
    assert first_of(journal_files(stopped)[0]) == older + 1
    newer = named(stopped)[:0:-1]
    for entry in newer:
        checkpoint_path(stopped, entry).unlink()
    assert set_aside(StateFolder(stopped)) == ([aside_path(stopped, entry) for entry in newer], older)
    start_engine(stopped, limits=limits)


def work_until_two_more(state, client, known, wait_until):
    """Checkpoints than are known."""

    letters = cycle("yz")

    def two_more() -> bool:
        work(client, next(letters))
        try:
            return len({*named(state)} - {*known}) > 1
        except FileNotFoundError:  # it was just being trimmed
            return False

    wait_until(two_more, 60, "two more checkpoints")


def test_where_the_name_of_the_newest_checkpoint_is_damaged_that_is_the_place(stopped, start_engine, wait_until):
    """Not the one before it, which is named by an older file, and was removed when this one was named."""
    before = named(stopped)
    engine = start_engine(stopped, limits=LIMITS)
    with connect(stopped, limits=LIMITS) as client:
        work_until_two_more(stopped, client, before, wait_until)
    engine.stop()
    wholes = [path for path in journal_files(stopped) if (one := first_entry_of(path)) and one.private.whole]
    for older in named(stopped)[:-1]:
        checkpoint_path(stopped, older).unlink(missing_ok=True)
    content = bytearray(wholes[-1].read_bytes())
    content[FILE_HEADER_BYTES + 60] ^= 1
    wholes[-1].write_bytes(content)
    with pytest.raises(EngineStartFailed, match=f"{wholes[-1].name} is damaged at offset {FILE_HEADER_BYTES}"):
        start_engine(stopped, limits=LIMITS)
    assert wholes[-1].read_bytes() == content


# --- files that do not belong together --------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["power", "process", "memory"])
def test_checkpoints_without_a_journal_are_no_empty_state(stopped, start_engine, durability):
    for path in (*journal_files(stopped), stopped / "committed"):
        path.unlink()
    before = checkpoint_files(stopped)
    with pytest.raises(EngineStartFailed, match="holds checkpoints, and has no journal file any more"):
        start_engine(stopped, limits=LIMITS, durability=durability)
    assert checkpoint_files(stopped) == before
    assert not journal_files(stopped)


def test_a_folder_that_lost_its_journal_is_no_place_for_what_is_only_in_memory(stopped, start_engine):
    for path in (*journal_files(stopped), *checkpoint_files(stopped).values()):
        path.unlink()
    with pytest.raises(EngineStartFailed, match=r"once held \d+ entries, and has no journal file any more"):
        start_engine(stopped, limits=LIMITS, durability="memory")


@pytest.fixture
def mixed(stopped, start_engine, wait_until, tmp_path):
    """The journal of an earlier moment, of an engine that ran then, and checkpoints of later."""
    engine = start_engine(stopped, limits=LIMITS)
    with connect(stopped, limits=LIMITS) as client:
        client.put(Task(title="earlier", id="t0"))
        earlier, known = tmp_path / "earlier", named(stopped)
        shutil.copytree(stopped, earlier, ignore=shutil.ignore_patterns("*.sock", "*.tmp", "*.json"))
        work_until_two_more(stopped, client, known, wait_until)
    engine.stop()
    for path in journal_files(stopped):
        path.unlink()
    shutil.copytree(earlier, stopped, dirs_exist_ok=True)
    return stopped


def test_a_journal_that_ends_before_a_checkpoint_was_taken_is_refused(mixed, start_engine):
    newest, files = max(checkpoint_files(mixed)), {path.name: path.read_bytes() for path in journal_files(mixed)}
    match = f"checkpoint-{newest:020d} was taken behind entry {newest}, and the journal ends with entry "
    with pytest.raises(EngineStartFailed, match=match):
        start_engine(mixed, limits=LIMITS)
    with pytest.raises(JournalCorrupt, match=match):
        verify(mixed)
    assert {path.name: path.read_bytes() for path in journal_files(mixed)} == files
    assert max(checkpoint_files(mixed)) == newest
    cut, _ = truncate(StateFolder(mixed), 2**60)  # whoever wants what is left says so
    start_engine(mixed, limits=LIMITS)
    with connect(mixed, limits=LIMITS) as client:
        assert (client.get(Task, "t0").title, client.reader.revision) == ("earlier", cut.revision)
    assert verify(mixed).entities == 40


def rebooted():
    from solewriter.shared.journal import life

    life.boot_id = lambda: "another boot"


def test_what_a_power_cut_took_before_a_checkpoint_is_no_reason_to_refuse(mixed, start_engine, seeded, monkeypatch):
    """Nor is it one when the start that took the loss was killed, once it had begun another life."""
    with monkeypatch.context() as patch:
        patch.setattr(lives, "boot_id", lambda: "another boot")
        first, last = verify(mixed).drops
        assert first <= last == max(checkpoint_files(mixed))
    monkeypatch.setenv("SOLEWRITER_FAILPOINT", "recover.published:kill")
    with pytest.raises(EngineStartFailed):
        start_engine(mixed, limits=LIMITS, models=[seeded(rebooted)], durability="power")
    monkeypatch.delenv("SOLEWRITER_FAILPOINT")
    start_engine(mixed, limits=LIMITS)
    with connect(mixed, limits=LIMITS) as client:
        assert client.get(Task, "t0").title == "earlier"
    assert verify(mixed).entities == 40


def test_what_a_cut_leaves_is_on_disk_so_that_its_history_goes_on_after_a_reboot(stopped, start_engine, seeded):
    with open_reader(stopped, offline=True) as reader, reader.snapshot() as snap:
        before = snap.history_id
    truncate(StateFolder(stopped), verify(stopped).revision - 1)
    with open_reader(stopped, offline=True) as reader, reader.snapshot() as snap:
        history = snap.history_id
    assert history != before
    start_engine(stopped, limits=LIMITS, models=[seeded(rebooted)])
    with connect(stopped, limits=LIMITS) as client, client.reader.snapshot() as snap:
        assert snap.history_id == history


BOOT = boot_id()


def life(durability="process", boot=BOOT, drained=False, epoch=1):
    return Life(epoch, b"0123456789abcdef", durability, boot, drained=drained)


@pytest.mark.parametrize(
    ("before", "goes_on"),
    [
        (None, False),
        (life(), True),
        (life(boot="another"), False),
        (life(boot="another", drained=True), True),
        (life("power", boot="another"), True),
        (life("memory"), False),
    ],
    ids=["the first life", "a kill", "a power cut", "a clean end", "a power cut without loss", "memory"],
)
def test_a_history_goes_on_where_nothing_published_can_have_been_lost(before, goes_on):
    history = history_of(before)
    assert len(history) == 16
    assert (before is not None and history == before.history) is goes_on


@pytest.mark.parametrize(("second", "cut"), [(3_000, False), (1_000, False), (2_000, True)])
def test_what_another_life_began_behind_was_never_cut_whatever_the_clock_said_then(tmp_path, second, cut):
    """Its start had all of that on disk; an epoch is a time, and a clock may be set back between two lives."""
    first = life(boot="another", epoch=2_000)
    with ThreadPoolExecutor(1) as beside:
        journal = FileJournal(tmp_path, b"0123456789abcdef", LIMITS, beside, power=False)
        assert not list(journal.replay())
        for one in (first, life(boot="another", epoch=second)):
            journal.append(0, 1, [], Private(life=one))
            asyncio.run(journal.commit(durable=True))
        journal.close()
    assert may_be_cut(tmp_path, first, 1) is cut
