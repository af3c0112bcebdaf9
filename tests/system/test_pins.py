"""A pin that nobody reads keeps all of its revision, however often the memory is turned over meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from solewriter import Alter, Increment, Limits, Reader, Task, connect, open_reader
from solewriter.shared.config import KIB, MIB
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.segment import punch

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)
LARGE = Limits(heap_segment_bytes_first=8 * MIB, heap_segment_bytes_max=8 * MIB)


def turn_over(reader: Reader, work: Any, times: int) -> None:
    """Until so often none of the segments is left that there were before."""
    for _ in range(times):
        last = reader.snapshot().pin.root.last_segment
        while reader.snapshot().pin.root.first_segment <= last:
            work.run(400)


@pytest.fixture
def work(state: Path, start_engine: Callable[..., object], work_on: Any) -> Iterator[Any]:
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client:
        yield work_on(client)


def test_pins_that_were_idle_through_three_turnovers_say_everything(state, work, ways):
    """In any way first, whether its reader had mapped the tables before or looks into them for the first time."""
    with ExitStack() as stack:
        reader = stack.enter_context(open_reader(state))
        pins = []
        for way in ways:
            idle, other = (stack.enter_context(open_reader(state)) for _ in range(2))
            way(other.snapshot(), work.tasks)
            pins += [(way, idle.snapshot(), dict(work.tasks)), (way, other.snapshot(), dict(work.tasks))]
            work.run(200)
        turn_over(reader, work, 3)
        for way, snap, expected in pins:
            assert snap.pin.root.last_segment < reader.snapshot().pin.root.first_segment
            way(snap, expected)
        work.run(300)
        for _, snap, expected in pins:
            for way in ways:
                way(snap, expected)


def test_what_changes_very_often_is_looked_for_in_a_held_snapshot_once(state, start_engine, monkeypatch):
    """Counted in records looked at. Nothing of this heap is given back meanwhile, which would make them fewer."""
    looked, segment = 0, Pin.segment

    def counted(pin: Pin, number: int) -> Any:
        nonlocal looked
        looked += 1
        return segment(pin, number)

    monkeypatch.setattr(Pin, "segment", counted)
    start_engine(state, durability="memory", limits=LARGE)
    with connect(state) as client, open_reader(state) as reader, reader.snapshot() as before:
        task = client.create(Task(id="often", title="t"))
        with reader.snapshot() as snap:
            for times in (2_000, 100, 20, 1, 0):
                for reply in client.submit_many(Alter(task, {"cost": Increment(1)}) for _ in range(times)):
                    reply.check()
                looked = 0
                assert snap[Task, "often"] == task
                assert [*snap.entities(Task)] == [task]
                assert times <= looked < times + 200
            assert len(snap.pin._far) == 1, "nothing of it adds up"
        for _ in range(2):
            assert before.get(Task, "often") is None
        assert reader.get(Task, "often").cost == 2_121


# --- the check can fail -----------------------------------------------------------------------------------------------


class Careless:
    """A reclaim that ignores pins: what leaves the root is given back at once."""

    def __init__(self, reader: Reader, give_back: Callable[[int, int], None]) -> None:
        where = reader.folder.whereabouts()
        self.reader = reader
        self._files = lambda: Path(where.memory_dir).glob(f"{where.prefix}-heap-*")
        self._give_back = give_back
        self._open: dict[int, int] = {}
        self.given_back = 0

    def look(self) -> None:
        for path in self._files():
            number = int(path.name.rpartition("-")[2])
            if number not in self._open:
                self._open[number] = os.open(path, os.O_RDWR)
        first = self.reader.snapshot().pin.root.first_segment
        for number in [number for number in self._open if number < first]:
            fd = self._open.pop(number)
            self._give_back(fd, os.fstat(fd).st_size)
            os.close(fd)
            self.given_back += 1

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)


def used_again(fd: int, size: int) -> None:
    """For records of another revision: those of the segment in another order."""
    data = os.pread(fd, size, 0)
    os.pwrite(fd, data[size // 2 :] + data[: size // 2], 0)


@pytest.mark.parametrize("give_back", [punch, used_again])
def test_a_reclaim_that_ignores_pins_is_seen(state, work, ways, read_whole, give_back):
    with open_reader(state) as idle, open_reader(state) as reader:
        snap, expected = idle.snapshot(), dict(work.tasks)
        careless = Careless(reader, give_back)
        last = snap.pin.root.last_segment
        while reader.snapshot().pin.root.first_segment <= last + 1:
            careless.look()
            work.run(100)
        careless.look()
        careless.close()
        assert careless.given_back > 0
        read_whole(reader.snapshot(), work.tasks)  # whoever comes later sees nothing of it
        for way in ways:
            with pytest.raises((AssertionError, JournalCorrupt, IndexError, UnicodeDecodeError, OverflowError)):
                way(snap, expected)
