"""Engines and agents with one seeded bug each that only a whole process shows, and the scene that catches it.

Each scene is played without the bug, too: it fails because of the bug, and of nothing else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter import Create, Delete, Engine, Limits, OutcomeUnknown, Put, Task, connect, open_reader
from solewriter.shared.config import KIB
from solewriter.shared.journal.chain import first_of, journal_files
from solewriter.shared.wire import Status

# --- one queue for two agents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_queue_for_two_agents_is_torn_when_one_of_them_dies(state, start_engine, client_of_a_raw_lane, shared):
    start_engine(state)
    dying, other = (client_of_a_raw_lane(state, client_id=name) for name in ("dying", "other"))
    if shared:
        os.dup2(dying.lane.requests, other.lane.requests)
    half = dying.frame([Create(Task(title="x", id="half"))])
    dying.write(half[: len(half) // 2])
    dying.die()
    other.write(other.frame([Create(Task(title="x", id="whole"))]))
    reply = other.reply()
    if shared:
        assert reply is None, "nobody read what it wrote, and its own queue is gone"
        with open_reader(state) as reader:
            assert reader.snapshot().get(Task, "whole") is None
    else:
        assert reply[1] == Status.APPLIED


# --- a queue that is read to the end of a frame, in the loop ----------------------------------------------------------


def queue_get_in_the_loop() -> None:
    """Whoever begins a frame is waited for."""
    import os

    from solewriter.engine_proc.bridge import LENGTH_BYTES, LaneEnd

    def exactly(fd, count):
        data = b""
        while len(data) < count:
            more = os.read(fd, count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def readable(self) -> None:
        os.set_blocking(self._requests, True)
        try:
            header = exactly(self._requests, LENGTH_BYTES)
            frame = exactly(self._requests, int.from_bytes(header, "big"))
        except EOFError:
            self.close()
            return
        self._cut(memoryview(header + frame))

    LaneEnd._readable = readable


@pytest.mark.parametrize("bug", [None, queue_get_in_the_loop])
def test_an_agent_stopped_in_mid_frame_shows_a_loop_that_waits_for_it(
    state, start_engine, client_of_a_raw_lane, seeded, bug
):
    start_engine(state, models=[seeded(bug)] if bug else [])
    raw = client_of_a_raw_lane(state)
    frame = raw.frame([Create(Task(title="late", id="late"))])
    with connect(state, name="other") as other:
        other.create(Task(title="x", id="before"))
        raw.write(frame[:4])
        if bug:
            with pytest.raises(OutcomeUnknown):
                other.create(Task(title="x", id="meanwhile"), timeout_s=1)
        else:
            other.create(Task(title="x", id="meanwhile"))
        raw.write(frame[4:])
        assert raw.reply()[1] == Status.APPLIED


# --- memory that is not reserved --------------------------------------------------------------------------------------


def memory_not_reserved() -> None:
    """A segment has its length, and no pages."""
    import os

    from solewriter.shared.memory import segment

    class Careless:
        def __getattr__(self, name):
            return getattr(os, name)

        def posix_fallocate(self, fd, start, size):
            os.ftruncate(fd, start + size)

        def statvfs(self, where):
            return os.statvfs("/proc")  # as where nobody says what is free

    segment.os = Careless()


class Watched(Engine):
    """Knows how its processes ended."""

    statuses: tuple[int, ...] = ()

    def _watched(self, child: Any) -> int:
        status = super()._watched(child)
        self.statuses += (status,)
        return status


@pytest.fixture
def watched(state: Path, small_memory: Path, seeded: Any) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def start(bug: Callable[[], None] | None) -> Watched:
        small = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, restarts_max=0)
        limits = msgspec.structs.replace(small, memory_dir=str(small_memory))
        made.append(Watched(state, limits=limits, durability="process", models=[seeded(bug)] if bug else []))
        return made[-1].start()

    yield start
    for engine in made:
        engine.stop()


@pytest.mark.parametrize("bug", [None, memory_not_reserved])
def test_a_full_memory_kills_an_engine_that_reserves_nothing(state, small_memory, watched, wait_until, bug):
    engine = watched(bug)
    with connect(state) as client:
        client.create(Task(title="x"))
        room = os.statvfs(small_memory)
        with open(small_memory / "ballast", "xb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, room.f_bavail * room.f_frsize)
        if bug:
            with pytest.raises(OutcomeUnknown):
                for _ in range(1_000):
                    client.submit(Create(Task(title="x", description="y" * 1_000)), timeout_s=1)
            wait_until(lambda: engine.statuses, 10, "its end")
            assert engine.statuses == (-signal.SIGBUS,)
        else:
            told = [client.submit(Create(Task(title="x", description="y" * 1_000))).error for _ in range(1_000)]
            assert {type(error).__name__ for error in told} == {"NoneType", "MemoryFull"}
            assert engine.statuses == ()
    os.unlink(small_memory / "ballast")


# --- a checkpoint that forgets what no record says --------------------------------------------------------------------

SMALL = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, journal_file_bytes=64 * KIB,
    checkpoint_after_bytes=64 * KIB, history_bytes=64 * KIB, recent_bytes=8 * KIB, restart_backoff_s=0.005,
)  # fmt: skip


def versions_of_forgotten_keys_not_kept() -> None:
    import msgspec

    from solewriter.engine_proc.recovery import recovery

    def private_state(*given):
        return msgspec.structs.replace(true(*given), keys=[])

    true, recovery.private_state = recovery.private_state, private_state


@pytest.mark.parametrize("bug", [None, versions_of_forgotten_keys_not_kept])
def test_a_key_that_comes_back_behind_a_checkpoint_shows_whether_its_versions_are_kept(
    state, start_engine, wait_until, seeded, bug
):
    engine = start_engine(state, limits=SMALL, models=[seeded(bug)] if bug else [])
    with connect(state, limits=SMALL) as client:
        client.create(Task(title="x", id="gone"))
        deleted = client.submit(Delete(Task.ref("gone"))).check().revision

        def work() -> None:
            for reply in client.submit_many(
                Put(Task(title="x", id=f"t{one}", description=os.urandom(200).hex())) for one in range(40)
            ):
                reply.check()

        def forgotten_and_trimmed() -> bool:
            work()
            forgotten = client.reader.snapshot().pin.view.root.forgotten >= deleted
            marks.append(first_of(journal_files(state)[-1]) if forgotten else 0)
            return forgotten and first_of(journal_files(state)[0]) > next(filter(None, marks))

        marks: list[int] = []
        wait_until(forgotten_and_trimmed, 60, "its tombstone is nowhere any more")
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        assert client.create(Task(title="back", id="gone")).version == (1 if bug else 3)
