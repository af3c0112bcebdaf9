"""The disk of the state folder is really full: writers are told, readers go on, and writing resumes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from solewriter import (
    Client,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Entity,
    Limits,
    Task,
    Update,
    connect,
    open_reader,
)
from solewriter.shared.config import MIB
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.journal.chain import journal_files

WIDE = "w" * 8_000
TRIES = 600  # each of 8 KB: several times what a journal file holds
IMPATIENT = Limits(journal_file_bytes=1 * MIB, restart_backoff_s=0.005, restart_backoff_max_s=0.05, restarts_max=2)


def fill(folder: Path) -> Path:
    """A file that takes all the room that there is."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        for block in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                pass
    assert os.statvfs(folder).f_bavail == 0
    return path


def write_until_refused(client: Client) -> int:
    """How many changes were acked until the disk was found to be full."""
    for number in range(TRIES):
        reply = client.submit(Update(Task.ref("t"), {"description": f"{number}{WIDE}"}))
        if reply.error is not None:
            assert isinstance(reply.error, EngineUnavailable)
            assert "free space" in str(reply.error)
            return number
    raise AssertionError("the disk never was full")


@pytest.fixture
def begun(small_disk, start_engine) -> Callable[[str], tuple]:
    """`begun(durability)`: an engine with one task, on a disk that is full then; and what fills it."""

    def begin(durability: str, **options: object) -> tuple:
        engine = start_engine(small_disk, durability=durability, **options)
        with connect(small_disk) as client:
            client.create(Task(title="x", id="t"))
        return engine, fill(small_disk)

    return begin


@pytest.mark.parametrize("durability", ["process", "power"])
def test_writers_are_told_readers_go_on_and_writing_resumes_by_itself(small_disk, begun, durability):
    engine, filler = begun(durability)
    pid = engine.pid
    with connect(small_disk) as client, open_reader(small_disk) as reader:
        acked = write_until_refused(client)
        held = reader.snapshot()
        for _ in range(20):
            assert isinstance(client.submit(Update(Task.ref("t"), {"description": WIDE})).error, EngineUnavailable)
        assert client.get(Task, "t").version == 1 + acked
        with open_reader(small_disk) as late, late.snapshot() as snap:
            assert snap[Task, "t"].version == 1 + acked
        filler.unlink()
        task = client.update(Task.ref("t"), title="after")
        assert task.version == 2 + acked, "what was refused was applied"
        assert held[Task, "t"].version == 1 + acked
    assert (engine.pid, engine.restarts) == (pid, 0)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_nothing_acked_on_a_full_disk_is_lost_when_the_engine_dies_there(
    small_disk, begun, wait_until, durability, capfd
):
    engine, filler = begun(durability)
    with connect(small_disk) as client:
        acked = write_until_refused(client)
        os.kill(engine.pid, signal.SIGKILL)
        said: list[str] = []
        wait_until(
            lambda: engine.restarts or said.append(capfd.readouterr().err) or "could not start" in "".join(said),
            20,
            "a start that succeeds or says why not",
        )
        filler.unlink()
        wait_until(lambda: engine.restarts > 0, 20, "a restart")
        assert client.update(Task.ref("t"), title="after").version == 2 + acked
    assert engine.failure is None


@pytest.fixture
def failed_starts(capfd) -> Callable[[], int]:
    """`failed_starts()`: how many the supervisor has told of so far."""
    said: list[str] = []

    def count() -> int:
        said.append(capfd.readouterr().err)
        return "".join(said).count("could not start")

    return count


@pytest.mark.parametrize("durability", ["process", "power"])
def test_an_engine_that_dies_on_a_full_disk_starts_in_the_room_of_its_spare_files(
    small_disk, start_engine, wait_until, durability, failed_starts
):
    """A start writes the last file of the journal again, beside the old one."""
    engine = start_engine(small_disk, durability=durability)
    with connect(small_disk) as client:
        client.create(Task(title="x", id="t"))
        for number in range(2):
            (small_disk / f"spare-{number:020d}.log").write_bytes(bytes(1 * MIB))  # as a trim leaves them
        (small_disk / "reserve").unlink(missing_ok=True)
        fill(small_disk)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts or failed_starts(), 20, "a start")
        assert not failed_starts()
        assert client.update(Task.ref("t"), title="after").version == 2


@pytest.mark.parametrize("durability", ["process", "power"])
def test_starts_without_room_are_tried_until_there_is_some(small_disk, begun, wait_until, durability, failed_starts):
    engine, filler = begun(durability, limits=IMPATIENT)
    with connect(small_disk) as client:
        (small_disk / "reserve").unlink(missing_ok=True)
        fill(small_disk)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.failure or failed_starts() > 2 * IMPATIENT.restarts_max, 20, "failed starts")
        assert engine.failure is None
        filler.unlink()
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        assert client.update(Task.ref("t"), title="after").version == 2


@pytest.mark.parametrize("room", [MIB // 2, MIB * 3 // 2], ids=["for no journal", "for no reserve"])
def test_a_first_start_without_room_names_the_folder_that_is_full(small_disk, room):
    """And not only that some device is, which may be that of the memory."""
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - room))
    with pytest.raises(EngineStartFailed, match=f"No space left on device: '{small_disk}/"):
        Engine(small_disk).start()


def test_a_start_that_has_no_room_for_its_first_entry_is_tried_again(
    state, start_engine, monkeypatch, wait_until, failed_starts
):
    engine = start_engine(state, limits=IMPATIENT)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        os.kill(engine.pid, signal.SIGSTOP)
        (last,) = journal_files(state)
        os.truncate(last, len(last.read_bytes().rstrip(b"\0")) + 8)  # so that its entry needs another file
        with monkeypatch.context() as full:
            full.setenv(VARIABLE, "journal.prepare:full,journal.prepared:full")  # nor has the reserve enough
            os.kill(engine.pid, signal.SIGKILL)
            wait_until(lambda: engine.failure or failed_starts() > 2 * IMPATIENT.restarts_max, 20, "failed starts")
        assert engine.failure is None
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        assert client.update(Task.ref("t"), title="after").version == 2


@pytest.mark.parametrize("durability", ["process", "power"])
def test_an_engine_that_is_stopped_on_a_full_disk_stops_and_the_next_one_goes_on(
    small_disk, begun, start_engine, durability
):
    engine, filler = begun(durability)
    with connect(small_disk) as client:
        acked = write_until_refused(client)
    engine.stop()
    filler.unlink()
    start_engine(small_disk, durability=durability)
    with connect(small_disk) as client:
        assert client.update(Task.ref("t"), title="after").version == 2 + acked


class Noted(Entity):
    """What is journaled of its class is more than the rest of a file has room for."""

    note: str = WIDE * 3


def test_a_model_that_a_full_disk_has_no_room_for_is_not_one_that_does_not_fit(small_disk, begun):
    engine, filler = begun("process")
    with connect(small_disk) as client:
        write_until_refused(client)
        with pytest.raises(EngineUnavailable, match="does not take Noted: no room"):
            engine.register(Noted)
        filler.unlink()
        engine.register(Noted)
        assert client.create(Noted(id="n")).version == 1


def test_every_agent_is_told_with_everything_that_it_sent(small_disk, begun):
    engine, filler = begun("process")
    with connect(small_disk) as one, connect(small_disk) as other:
        acked = write_until_refused(one)
        wide = [Update(Task.ref("t"), {"description": f"{number}{WIDE}"}) for number in range(50)]
        assert {type(reply.error) for reply in other.submit_many(wide, window=50)} == {EngineUnavailable}
        with pytest.raises(EngineUnavailable):
            one.create(Task(title="wide", description=WIDE))
        filler.unlink()
        assert [reply.error for reply in other.submit_many(wide, window=50)] == [None] * 50
        assert one.get(Task, "t").version == 1 + acked + 50
    assert engine.restarts == 0
