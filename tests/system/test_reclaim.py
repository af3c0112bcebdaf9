"""Memory of what was overtaken is given back, and nobody who reads notices, up to the maximum age of a snapshot."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solewriter import (
    Compacted,
    Create,
    Delete,
    Entity,
    Limits,
    SnapshotExpired,
    Task,
    Update,
    connect,
    open_reader,
    status_of,
)
from solewriter.shared.config import KIB
from solewriter.shared.failpoint import VARIABLE

COUNT = 400
SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=256 * KIB, heartbeat_s=0.05)
STEPS = ["reclaim.moved", "reclaim.filled", "reclaim.shown", "reclaim.done"]


class Load:
    """Random changes of a fixed set of tasks, and what must be stored after them."""

    def __init__(self, client, seed=1):
        self.client = client
        self.dice = random.Random(seed)
        self.number = 0
        self.deleted = set()
        for reply in client.submit_many(
            Create(Task(title="x", id=f"t{n}", description="d" * 200)) for n in range(COUNT)
        ):
            reply.check()
        self.versions = {f"t{n}": 1 for n in range(COUNT)}

    def run(self, changes, deletes=0.02):
        mutations = []
        for _ in range(changes):
            self.number += 1
            id = f"t{self.dice.randrange(COUNT)}"
            self.versions[id] += 1
            if id in self.deleted:
                self.deleted.remove(id)
                mutations.append(Create(Task(title=f"{self.number}", id=id)))
            elif self.dice.random() < deletes:
                self.deleted.add(id)
                mutations.append(Delete(Task.ref(id)))
            else:
                mutations.append(Update(Task.ref(id), {"title": f"{self.number}"}))
        for reply in self.client.submit_many(mutations):
            reply.check()

    @property
    def alive(self):
        return {id: version for id, version in self.versions.items() if id not in self.deleted}


def seen(snap):
    return {task.id: task.version for task in snap.entities(Task)}


def turnovers(reader):
    """How many segments have left the heap."""
    return reader.snapshot().pin.root.first_segment - 1


def test_what_is_held_stays_whole_through_many_turnovers_of_the_heap(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as idle, open_reader(state) as reader:
        load = Load(client)
        first, expected_first = idle.snapshot(), dict(load.alive)  # nothing of it is read until the end
        held = []
        while turnovers(reader) < 40:
            load.run(1_000)
            if len(held) < 8:
                held.append((reader.snapshot(), dict(load.alive)))
            assert seen(reader.snapshot()) == load.alive
        for snap, expected in held:
            assert seen(snap) == expected
            assert set(snap.ids(Task)) == set(expected)
            assert snap.count(Task) == len(expected)
        assert first.pin.root.last_segment < reader.snapshot().pin.root.first_segment, "everything was turned over"
        assert seen(first) == expected_first
        assert first.count(Task, {"version": 1}) == COUNT
        assert first.get(Task, "t7").version == 1
        assert first.get(Task, "never") is None


def test_memory_stays_a_small_multiple_of_what_lives(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client:
        load = Load(client)
        sizes = []
        for _ in range(20):
            load.run(1_500, deletes=0)
            sizes.append(status_of(state).memory_heap_bytes)
    assert max(sizes[10:]) <= max(sizes[:10]) * 1.5
    assert max(sizes) < 4 * COUNT * 800 + 3 * 256 * KIB


def test_a_watcher_that_keeps_up_misses_nothing_and_one_that_does_not_is_told(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        quick, slow = reader.watch(since=0, timeout_s=0), reader.watch(since=0, timeout_s=0)
        resyncing = reader.watch(since=0, timeout_s=0, resync=True)
        got = [change.revision for change in quick]
        while turnovers(reader) < 10:
            load.run(100)
            got += [change.revision for change in quick]
        assert got == list(range(1, got[-1] + 1)), "relocated records are no changes"
        with pytest.raises(Compacted) as compacted:
            list(slow)
        assert compacted.value.oldest > 1
        assert reader.snapshot().revision - compacted.value.oldest < 5_000
        first = next(resyncing)
        assert seen(first.snapshot) == load.alive


def test_a_stopped_reader_cannot_hold_memory_for_ever(state, start_engine, wait_until, tmp_path):
    """Held past its maximum age: its memory is given back, and it gets SnapshotExpired, never other data."""
    limits = Limits(**{name: getattr(SMALL, name) for name in SMALL.__struct_fields__} | {"snapshot_age_max_s": 0.5})
    start_engine(state, limits=limits, durability="memory")
    program = """
import sys
from solewriter import SnapshotExpired, Task, open_reader
reader = open_reader(sys.argv[1])
snap = reader.snapshot()
print("held", flush=True)
sys.stdin.readline()
outcomes = set()
for number in range(400):
    try:
        task = snap.get(Task, f"t{number}")
        outcomes.add("right" if task is not None and task.version == 1 else f"wrong {task}")
    except SnapshotExpired:
        outcomes.add("expired")
print(sorted(outcomes), flush=True)
print(reader.snapshot().get(Task, "t0").id, flush=True)
"""
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout.readline() == "held\n"
            os.kill(process.pid, signal.SIGSTOP)
            reader.close()
            while status_of(state).memory_held_bytes == 0:
                load.run(1_000, deletes=0)
            wait_until(lambda: status_of(state).memory_held_bytes == 0, 20, "it is given back")
            os.kill(process.pid, signal.SIGCONT)
            said, _ = process.communicate("go on\n", timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert said.splitlines() in (["['expired']", "t0"], ["['expired', 'right']", "t0"])


def test_a_reader_that_ends_gives_its_memory_back_at_once(state, start_engine, wait_until):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client:
        load = Load(client)
        process = subprocess.Popen(
            [sys.executable, "-c",
             "import sys\nfrom solewriter import open_reader\nsnap = open_reader(sys.argv[1]).snapshot()\n"
             "print('held', flush=True)\nsys.stdin.readline()", str(state)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "held\n"
            while status_of(state).memory_held_bytes == 0:
                load.run(1_000, deletes=0)
        finally:
            process.kill()
            process.communicate()
        client.reader.close()
        wait_until(lambda: status_of(state).memory_held_bytes == 0, 20, "the kernel tells that nobody maps it")


@pytest.mark.parametrize("point", STEPS)
def test_an_engine_killed_while_it_reclaims_loses_nothing(state, start_engine, monkeypatch, wait_until, point):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit=30")
        engine = start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        held, expected = reader.snapshot(), dict(load.alive)
        while not engine.restarts:
            load.run(500)
        assert seen(reader.snapshot()) == load.alive
        assert seen(held) == expected
        load.run(2_000)
        assert seen(reader.snapshot()) == load.alive


def test_no_sequence_of_kills_leaves_a_segment_behind_after_the_next_start(state, start_engine, wait_until):
    engine = start_engine(state, limits=SMALL)
    with connect(state) as client:
        load = Load(client)
        for _ in range(3):
            load.run(1_000)
            before = engine.restarts
            os.kill(engine.pid, signal.SIGKILL)
            wait_until(lambda before=before: engine.restarts > before, 20, "a restart")
        load.run(10)
        assert seen(client.reader.snapshot()) == load.alive
        prefixes = {marker.prefix for marker in engine.folder.markers()}
        assert len(prefixes) == 1
        assert {path.name.rsplit("-", 1)[0] for path in Path("/dev/shm").glob(f"{prefixes.pop()}*")}


def test_a_full_memory_while_it_reclaims_only_postpones_it(state, start_engine, monkeypatch):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, ",".join(f"memory.grow:full:hit={hit}" for hit in (14,)))
        engine = start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        refused = 0
        for _ in range(12):
            mutations = [Update(Task.ref(f"t{n}"), {"title": f"{load.dice.random()}"}) for n in range(COUNT)]
            for reply in client.submit_many(mutations):
                if reply.error is not None:
                    refused += 1
                else:
                    load.versions[reply.results[0].id] += 1
        load.run(3_000)
        assert seen(reader.snapshot()) == load.alive
        assert turnovers(reader) > 3
    assert engine.restarts == 0
    assert refused <= 512


def test_models_registered_while_memory_is_turned_over(state, start_engine):
    engine = start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        held = []
        for number in range(5):
            load.run(1_500)
            held.append((reader.snapshot(), dict(load.alive)))
            body = {"level": 0, f"more{number}": number, "__module__": __name__}
            body["__annotations__"] = {"level": int, f"more{number}": int}
            extra = type("Extra", (Entity,), body, columns=("level", f"more{number}"))
            engine.register(extra)
            client.put(extra(id=f"e{number}", level=number))
        load.run(3_000)
        for snap, expected in held:
            assert seen(snap) == expected
        assert sorted(one["level"] for one in reader.snapshot().entities("Extra")) == [0, 1, 2, 3, 4]


def test_one_entity_larger_than_a_segment_moves_too(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        client.create(Task(title="x", id="huge", description="d" * 400_000))
        load.run(8_000)
        assert len(reader.get(Task, "huge").description) == 400_000
        assert turnovers(reader) > 3


def test_the_bytes_of_a_snapshot_are_never_somebody_elses(state, start_engine):
    """The negative control of the whole: without the look at `readable_from`, a punched record would be None."""
    limits = Limits(**{name: getattr(SMALL, name) for name in SMALL.__struct_fields__} | {"snapshot_age_max_s": 0.0})
    start_engine(state, limits=limits, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        load = Load(client)
        snap = reader.snapshot()
        while snap.pin.view.root.readable_from <= snap.pin.root.last_segment:
            load.run(1_000)
        expired = 0
        for number in range(COUNT):
            try:
                task = snap.get(Task, f"t{number}")
            except SnapshotExpired:
                expired += 1
            else:  # untouched since, and so moved along with what lives
                assert (task.id, task.version) == (f"t{number}", 1)
        assert expired > COUNT // 2
        with pytest.raises(SnapshotExpired):
            list(snap.entities(Task))
