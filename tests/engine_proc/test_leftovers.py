"""What engines left in memory when they died: their readers are sent on, and it is given back."""

from __future__ import annotations

import os
import shutil

import msgspec
import pytest

from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.recovery.leftovers import remove_old_memory, remove_orphans
from solewriter.shared.config import KIB, MEMORY_VERSION
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.memory.root import STOPPED, SUPERSEDED, RootReader, RootWriter
from solewriter.shared.memory.segment import Segment, remove_segments, segment_path
from solewriter.shared.system.processes import start_time_of

GONE = 2**22 + 1  # no process has this id
OTHER = 65534  # a user


class Memory:
    """What engines left in memory: a root and a heap each."""

    def __init__(self, folder, where):
        folder.mkdir()
        where.mkdir()
        self.folder, self.where = StateFolder(folder), str(where)
        self.readers = {}

    def left(self, prefix, pid=GONE, *, root=True):
        born = start_time_of(pid) or 12345
        named = os.fsencode(self.folder.path)
        whereabouts = Whereabouts(MEMORY_VERSION, pid, born, 1, self.where, prefix, named)
        self.folder.marker(prefix).write_bytes(msgspec.json.encode(whereabouts))
        if root:
            made = Segment.create(segment_path(self.where, prefix, "root"), 64 * KIB)
            RootWriter(made, 1, pid, born, "process")
            self.readers[prefix] = RootReader(Segment.attach(made.path))
            Segment.create(segment_path(self.where, prefix, "heap", 1), 4 * KIB)

    def segments(self):
        return sorted(os.listdir(self.where))

    def markers(self):
        return sorted(path.name for path in self.folder.path.glob("memory-*.json"))

    def successor(self, prefix):
        return self.readers[prefix].successor


@pytest.fixture
def memory(passable):
    made = Memory(passable / "state", passable / "memory")
    yield made
    for old in made.folder.markers():
        remove_segments(old.memory_dir, old.prefix)


def test_readers_of_dead_engines_are_sent_on_and_their_memory_goes(memory):
    memory.left("solewriter-own", os.getpid())
    memory.left("solewriter-dead")
    memory.left("solewriter-early", root=False)  # it died before it made any segment
    (memory.folder.path / "engine.json.tmp").write_bytes(b"half")
    remove_old_memory(memory.folder, "solewriter-own")
    assert memory.segments() == ["solewriter-own-heap-1", "solewriter-own-root"]
    assert memory.markers() == ["memory-solewriter-own.json"]
    assert (memory.successor("solewriter-dead"), memory.successor("solewriter-own")) == (SUPERSEDED, 0)
    assert not (memory.folder.path / "engine.json.tmp").exists()


def test_what_a_dead_engine_was_deciding_stays_known_to_a_start_that_has_no_room(memory):
    memory.left("solewriter-dead")
    remove_old_memory(memory.folder, "", but_roots=True)
    assert memory.segments() == ["solewriter-dead-root"]
    assert memory.markers() == ["memory-solewriter-dead.json"]


@pytest.mark.parametrize("remove", [lambda folder: remove_old_memory(folder, "solewriter-own"), remove_orphans])
def test_the_memory_of_a_live_engine_is_nobody_elses_to_remove(memory, remove):
    memory.left("solewriter-live", os.getppid())
    remove(memory.folder)
    assert memory.segments() == ["solewriter-live-heap-1", "solewriter-live-root"]
    assert memory.successor("solewriter-live") == 0


@pytest.mark.parametrize("remove", [lambda folder: remove_old_memory(folder, "solewriter-own"), remove_orphans])
def test_a_copy_of_a_folder_leaves_the_memory_of_that_one_alone(memory, remove, tmp_path):
    """Whoever looks into a copy of what was killed takes nothing from those who read there."""
    memory.left("solewriter-dead")
    (last,) = memory.folder.markers()
    memory.folder.announce(last)
    copied = StateFolder(shutil.copytree(memory.folder.path, tmp_path / "copy"))
    remove(copied)
    assert memory.segments() == ["solewriter-dead-heap-1", "solewriter-dead-root"]
    assert memory.successor("solewriter-dead") == 0
    shutil.rmtree(memory.folder.path)
    remove(copied)
    assert memory.segments() == [], "it is nobody else's any more"


@pytest.mark.parametrize("moved", ["renamed", "linked", "replaced"])
def test_a_folder_that_was_moved_has_the_memory_that_it_had(memory, moved, tmp_path):
    memory.left("solewriter-dead")
    was, to = memory.folder.path, tmp_path / "moved"
    if moved == "linked":
        to.symlink_to(was)
    else:
        was.rename(to)
    if moved == "replaced":
        was.mkdir()
    remove_orphans(StateFolder(to))
    assert memory.segments() == []
    assert memory.successor("solewriter-dead") == STOPPED


def test_readers_of_an_engine_that_nobody_follows_are_told_that_it_stopped(memory):
    memory.left("solewriter-dead")
    memory.folder.engine_json.write_bytes(b"{}")
    remove_orphans(memory.folder)
    assert (memory.segments(), memory.markers()) == ([], [])
    assert memory.successor("solewriter-dead") == STOPPED
    assert not memory.folder.engine_json.exists()


def test_of_an_engine_that_never_served_only_its_own_memory_goes(memory):
    """What others left says to the next start how they ended, and to readers where they are."""
    memory.left("solewriter-before")
    memory.left("solewriter-failed", GONE + 1)
    memory.folder.engine_json.write_bytes(b"{}")
    remove_orphans(memory.folder, GONE + 1)
    assert memory.segments() == ["solewriter-before-heap-1", "solewriter-before-root"]
    assert memory.markers() == ["memory-solewriter-before.json"]
    assert memory.successor("solewriter-before") == 0
    assert memory.successor("solewriter-failed") == STOPPED
    assert memory.folder.engine_json.exists()
    remove_orphans(memory.folder)
    assert (memory.segments(), memory.markers()) == ([], [])
    assert not memory.folder.engine_json.exists()


def test_whose_note_is_gone_is_known_by_the_announcement(memory):
    """What served last is named twice."""
    memory.left("solewriter-dead")
    (last,) = memory.folder.markers()
    memory.folder.announce(last)
    memory.folder.marker("solewriter-dead").unlink()
    remove_orphans(memory.folder)
    assert (memory.segments(), memory.markers()) == ([], [])
    assert memory.successor("solewriter-dead") == STOPPED


@pytest.mark.parametrize("prefix", ["report", "*", "", "solewriter-a/../report"])
@pytest.mark.parametrize("name", ["a note", "the announcement"])
def test_no_note_makes_a_start_remove_files_that_are_no_segments(memory, prefix, name):
    """Where others may write to the folder, it may be theirs."""
    kept = segment_path(memory.where, "report", 1)
    kept.write_bytes(b"somebody's")
    planted = Whereabouts(MEMORY_VERSION, GONE, 12345, 1, memory.where, prefix)
    path = memory.folder.engine_json if name == "the announcement" else memory.folder.marker("planted")
    path.write_bytes(msgspec.json.encode(planted))
    remove_orphans(memory.folder)
    remove_old_memory(memory.folder, "solewriter-own")
    assert kept.read_bytes() == b"somebody's"
    assert memory.markers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the uid needs root")
@pytest.mark.parametrize("remove", [lambda folder: remove_old_memory(folder, "solewriter-own"), remove_orphans])
def test_memory_of_another_user_keeps_nobody_from_what_is_theirs(memory, remove):
    """As where an engine that root ran was killed, and its folder then given to whom it is for: in a memory folder that
    is everybody's they can neither look at its memory nor remove it, so its note stays, for who can.
    """
    memory.left("solewriter-root")
    os.chown(memory.folder.path, OTHER, OTHER)
    os.chmod(memory.where, 0o1777)
    os.seteuid(OTHER)
    try:
        memory.left("solewriter-mine")
        remove(memory.folder)
    finally:
        os.seteuid(0)
    assert memory.segments() == ["solewriter-root-heap-1", "solewriter-root-root"]
    assert memory.markers() == ["memory-solewriter-root.json"]
    remove(memory.folder)
    assert (memory.segments(), memory.markers()) == ([], [])


def test_orphans_are_left_to_the_engine_that_owns_the_folder(memory):
    memory.left("solewriter-dead")
    lock = Lock(memory.folder)
    remove_orphans(memory.folder)
    assert memory.segments() == ["solewriter-dead-heap-1", "solewriter-dead-root"]
    lock.release()
    remove_orphans(memory.folder)
    assert memory.segments() == []


def test_a_folder_that_is_gone_has_no_orphans_and_is_not_made_again(tmp_path):
    remove_orphans(StateFolder(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()
