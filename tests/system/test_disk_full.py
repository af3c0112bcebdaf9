"""The disk of the state folder is really full: writers are told, readers go on, and writing resumes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from solewriter import Client, EngineUnavailable, Task, Update, connect, open_reader

WIDE = "w" * 8_000
TRIES = 600  # each of 8 KB: several times what a journal file holds


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

    def begin(durability: str) -> tuple:
        engine = start_engine(small_disk, durability=durability)
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
