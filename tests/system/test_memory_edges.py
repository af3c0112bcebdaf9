"""Edges of the memory: there, too, a reader gets its revision or a definite end, and a writer a definite error."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from solewriter import (
    Create,
    EngineStartFailed,
    Entity,
    Limits,
    MemoryFull,
    SnapshotExpired,
    Task,
    Update,
    connect,
    open_reader,
    status_of,
)
from solewriter.shared.config import KIB
from solewriter.shared.memory import pin

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)
COUNT = 100


def write(client, times: int) -> None:
    """Every task so often, 250 bytes each."""
    for number in range(times):
        write_once(client, number)


def write_once(client, number: int) -> None:
    fields = {"project": "new", "description": f"{number} {os.urandom(20).hex()} " * 6}
    for reply in client.submit_many(Update(Task.ref(f"t{number}"), fields) for number in range(COUNT)):
        reply.check()


def begin(client) -> None:
    for reply in client.submit_many(Create(Task(id=f"t{n}", title="x", project="old")) for n in range(COUNT)):
        reply.check()


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_snapshot_that_outlives_its_engine_scans_what_was_changed_behind_it(state, start_engine, wait_until, end):
    """Its tables are mapped and newer than it; the records that say so, in segments that its reader never mapped, are
    gone with their engine.
    """
    engine = start_engine(state, limits=SMALL)
    with open_reader(state) as reader:
        with connect(state) as client:
            begin(client)
            held = reader.snapshot()
            assert held.count(Task, {"project": "old"}) == COUNT
            write(client, 6)
            if end == "killed":
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda: engine.restarts == 1, 20, "a restart")
        if end == "stopped":
            engine.stop()
        assert [task.project for task in held.entities(Task)] == ["old"] * COUNT
        assert held.count(Task, {"project": "old"}) == COUNT
        assert held.count(Task, {"project": "new"}) == 0
        assert [task.project for task in held.scan(Task)] == ["old"] * COUNT
        assert held.columns(Task)["version"].tolist() == [1] * COUNT


def test_a_snapshot_that_outlives_its_engine_is_answered_with_nothing_of_the_next_one(state, start_engine):
    """What changed since it was looked up first is looked up anew, where its reader knows another record of the next
    memory at the same address.
    """
    engine = start_engine(state, durability="memory")
    with open_reader(state) as reader:
        with connect(state) as client:
            client.create(Task(id="x", title="one"))
            assert reader.get(Task, "x").title == "one"
            client.update(Task.ref("x"), title="two")
            held = reader.snapshot()
        engine.stop()
        start_engine(state, durability="memory")
        with connect(state) as client:
            client.create(Task(id="y", title="one"))
            client.update(Task.ref("y"), title="two")
        newest = reader.snapshot()
        assert newest.pin.find(0, "y") == held.pin.find(0, "x")
        assert [task.id for task in newest.entities(Task)] == ["y"]
        assert held[Task, "x"].id == "x"


def test_a_watch_that_missed_nothing_goes_on_when_the_segment_that_it_read_last_is_gone(state, start_engine):
    """It had read all of a segment; all that came after lies in the next ones, which are there."""
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader, open_reader(state) as other:
        begin(client)
        write(client, 3)
        watch, seen = reader.watch(timeout_s=0), [reader.revision]
        last = segment = other.snapshot().pin.root.last_segment
        while segment == last:  # of the newest record: reclaim goes on into another one, too
            seen = [change.revision for change in watch] or seen
            update = Update(Task.ref("t0"), {"title": f"{other.revision}" * 50})
            segment = client.submit(update).check().results[0].address >> 32
        while other.snapshot().pin.root.first_segment <= last:
            client.update(Task.ref("t0"), title=f"{other.revision}" * 50)
        newest = other.snapshot()
        assert newest.pin.root.oldest <= seen[-1] + 1, "what follows is in memory"
        assert [change.revision for change in watch] == list(range(seen[-1] + 1, newest.revision + 1))


def test_a_snapshot_that_expired_says_so_without_a_walk_through_what_is_not_there_any_more(
    state, start_engine, monkeypatch
):
    """With large segments such a walk takes minutes, and every read would begin anew."""
    start_engine(state, limits=msgspec.structs.replace(SMALL, snapshot_age_max_s=0.0), durability="memory")
    walked, walk = [0], pin.walk

    def counted(*given):
        for found in walk(*given):
            walked[0] += 1
            yield found

    with connect(state) as client, open_reader(state) as reader:
        begin(client)
        held = reader.snapshot()
        last = held.pin.root.last_segment
        while held.pin.view.root.readable_from <= last or held.pin.view.root.current().first_segment < last + 4:
            write(client, 1)
        monkeypatch.setattr(pin, "walk", counted)
        for number in range(COUNT):
            with pytest.raises(SnapshotExpired):
                held.get(Task, f"t{number}")
    assert walked[0] <= 2 * COUNT, "it walked through zeros, again and again"


def test_a_journal_of_a_version_that_never_was_is_not_taken_for_one_that_is_known(state, start_engine):
    start_engine(state).stop()
    (path,) = state.glob("journal-*.log")
    with path.open("r+b") as file:
        magic, _, _, *rest = struct.unpack("<QII16sQI", file.read(44))
        crc = crc32(struct.pack("<I", 0) + struct.pack("<16sQI", *rest))
        file.seek(0)
        file.write(struct.pack("<QII16sQI", magic, 0, crc, *rest))
    with pytest.raises(EngineStartFailed, match=r"version|format|damaged"):
        start_engine(state)


# --- a full memory file system ----------------------------------------------------------------------------------------


def fill(folder: Path) -> Path:
    """A file that takes all the room that there is."""
    room = os.statvfs(folder)
    fd = os.open(folder / "ballast", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.posix_fallocate(fd, 0, room.f_bavail * room.f_frsize)
    os.close(fd)
    return folder / "ballast"


READER = """
import sys
from solewriter import SnapshotExpired, Task, open_reader

with open_reader(sys.argv[1]) as reader:
    held = reader.snapshot()
    print("holds", flush=True)
    sys.stdin.readline()
    ended = set()
    for number in range(100):
        try:
            ended.add(held.get(Task, f"t{number}").project)
        except SnapshotExpired:
            ended.add("expired")
    print(*sorted(ended), flush=True)
"""


def test_what_expired_while_memory_is_full_is_a_definite_end_and_no_sigbus(
    state, small_memory, start_engine, wait_until
):
    """To read bytes that were taken away, the kernel makes room for them; if it finds none, the process gets SIGBUS."""
    limits = msgspec.structs.replace(SMALL, memory_dir=str(small_memory), snapshot_age_max_s=0.2)
    start_engine(state, limits=limits, durability="memory")
    with connect(state) as client:
        begin(client)
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout.readline() == "holds\n"
                os.kill(process.pid, signal.SIGSTOP)
                last = client.reader.snapshot().pin.root.last_segment
                while client.reader.snapshot().pin.root.first_segment <= last:
                    write(client, 1)
                root = client.reader.view().root
                wait_until(lambda: root.readable_from > last, 20, "it is about to be taken away")
                client.reader.let_go()
                wait_until(lambda: not status_of(state).memory_held_bytes, 20, "it is taken away")
                fill(small_memory)
                os.kill(process.pid, signal.SIGCONT)
                said, _ = process.communicate("go on\n", timeout=60)
            finally:
                process.kill()
    assert (process.returncode, said) == (0, "expired\n")


class Extra(Entity, columns=("level",)):
    level: int


def test_a_model_registered_while_memory_is_full_is_refused_and_the_engine_goes_on(state, small_memory, start_engine):
    limits = msgspec.structs.replace(SMALL, memory_dir=str(small_memory), start_timeout_s=5, restart_backoff_max_s=0.1)
    engine = start_engine(state, limits=limits)
    pid = engine.pid
    with connect(state) as client:
        begin(client)
        ballast = fill(small_memory)
        with pytest.raises(MemoryFull, match="does not take Extra: no room"):
            engine.register(Extra)
        assert client.get(Task, "t1").project == "old"
        assert client.update(Task.ref("t1"), title="fits").title == "fits"
        ballast.unlink()
        engine.register(Extra)
        assert client.create(Extra(id="e", level=1)).version == 1
    assert (engine.pid, engine.restarts) == (pid, 0)


def grows_slowly() -> None:
    import threading

    from solewriter.shared.memory.segment import Blank

    making = Blank.__init__

    def made(self, path, size):
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.5)
        making(self, path, size)

    Blank.__init__ = made


def test_memory_that_was_being_made_while_an_engine_ended_goes_with_it(state, start_engine, seeded):
    engine = start_engine(state, limits=SMALL, models=[seeded(grows_slowly)])
    memory, prefix = engine.limits.memory_dir, engine.folder.whereabouts().prefix
    with connect(state) as client:
        client.create(Task(title="x", description="x" * (SMALL.heap_segment_bytes_first * 3 // 4)))
    engine.stop()
    left = [*Path(memory).glob(f"{prefix}*")]
    for path in left:
        path.unlink()
    assert left == []
