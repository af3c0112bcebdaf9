"""What is created and deleted for ever takes no more memory than what is there; nobody notices what was forgotten."""

from __future__ import annotations

import os
import random
import signal
from itertools import islice
from pathlib import Path

import pytest
from msgspec import structs

from solewriter import AlreadyExists, Create, Delete, Limits, Put, Task, connect, open_reader
from solewriter.shared.config import KIB

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=256 * KIB, heartbeat_s=0.05)


def churn(client, first, count, alive=300):
    """Create `count` tasks with new ids, each deleted when `alive` younger ones are there."""
    mutations = []
    for number in range(first, first + count):
        mutations.append(Create(Task(title=f"{number}", id=f"t{number}", project=f"p{number % 3}")))
        if number >= alive:
            mutations.append(Delete(Task.ref(f"t{number - alive}")))
    for reply in client.submit_many(mutations):
        reply.check()


def segments(reader, part):
    view = reader.snapshot().pin.view
    folder = reader.folder.whereabouts().memory_dir
    return sum(path.stat().st_size for path in Path(folder).glob(f"{view.prefix}-{part}-*"))


def places(snap):
    """The slot of every task."""
    return {id: snap.pin.slot_at(snap.pin.find(0, id)) for id in snap.ids(Task)}


def turnovers(reader):
    return reader.snapshot().pin.root.first_segment - 1


@pytest.mark.heavy
def test_memory_slots_and_index_stay_bounded_while_entities_come_and_go(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        churn(client, 0, 10_000)
        slots = reader.snapshot().pin.slots(0)
        sizes = {part: segments(reader, part) for part in ("heap", "table", "index", "revlog")}
        churn(client, 10_000, 30_000)
        assert reader.snapshot().pin.slots(0) < 1.5 * slots < 8_000
        for part, size in sizes.items():
            assert segments(reader, part) <= 1.5 * size, part
        snap = reader.snapshot()
        wanted = [f"t{number}" for number in range(39_700, 40_000)]
        assert sorted(task.id for task in snap.entities(Task)) == sorted(snap.ids(Task)) == wanted
        assert snap.count(Task, {"project": "p1"}) == 100
        assert snap.get(Task, "t39699") is None
        assert snap.get(Task, "t39700").version == 1


def test_a_snapshot_older_than_what_was_forgotten_still_has_it(state, start_engine):
    """Its slots belong to others by now, its keys left the index, and its tombstones are gone from memory."""
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader, open_reader(state) as idle:
        churn(client, 0, 1_000)
        expected = [f"t{number}" for number in range(700, 1_000)]
        looked, untouched = reader.snapshot(), idle.snapshot()
        assert looked.count(Task) == 300
        churn(client, 1_000, 9_000)
        assert turnovers(reader) > 10
        for snap in (looked, untouched):
            assert snap.pin.outdated
            assert snap.count(Task) == 300
            assert sorted(snap.ids(Task)) == expected
            assert sorted(task.id for task in snap.scan(Task, {"project": ["p0", "p1", "p2"]})) == expected
            assert sorted(task.id for task in snap.entities(Task)) == expected
            assert [snap.get(Task, id).version for id in expected] == [1] * 300
            assert snap.get(Task, "t699") is None
            assert snap.get(Task, "t1000") is None
            page, seen = snap.scan(Task, limit=70), []
            while page:
                seen += [task.id for task in page]
                page = snap.scan(Task, limit=70, after=page[-1])
            assert sorted(seen) == expected


def test_the_versions_of_a_key_go_on_when_its_tombstone_is_forgotten(state, start_engine, monkeypatch):
    start_engine(state, limits=SMALL, durability="process")
    with connect(state) as client, open_reader(state) as reader:
        task = client.create(Task(title="x", id="again"))
        client.delete(client.update(task, title="y"))
        churn(client, 0, 6_000)
        assert reader.snapshot().pin.find(0, "again") == 0, "its tombstone is gone"
        task = client.create(Task(title="z", id="again"))
        assert task.version == 4
        with pytest.raises(AlreadyExists):
            client.create(Task(title="z", id="again"))
        client.delete(task)
        churn(client, 6_000, 6_000)
        (reply,) = client.submit_many([Put(Task(title="again", id="again"), expect=0)])
        assert reply.check().results[0].version == 6


def test_beyond_the_bound_of_forgotten_keys_new_ones_begin_above_all_of_them(state, start_engine, monkeypatch):
    """Nothing is remembered of single keys any more, and still no version of a key comes twice."""
    start_engine(state, limits=structs.replace(SMALL, forgotten_keys_max=500), durability="memory")
    with connect(state) as client:
        task = client.create(Task(title="x", id="t0"))
        for number in range(5):
            task = client.update(task, title=f"{number}")
        client.delete(task)
        mutations = (
            mutation
            for number in range(1, 8_000)
            for mutation in (Create(Task(title="x", id=f"t{number}")), Delete(Task.ref(f"t{number}")))
        )
        while batch := list(islice(mutations, 10_000)):
            for reply in client.submit_many(batch):
                reply.check()
        assert client.create(Task(title="x", id="t0")).version > 7
        assert client.create(Task(title="x", id="never seen")).version > 7


def test_after_a_restart_every_key_has_its_place_again(state, start_engine, wait_until):
    dice = random.Random(2)
    engine = start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        churn(client, 0, 5_000)
        before = places(reader.snapshot())
        assert len(before) == 300
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        churn(client, 5_000, 1)
        snap = reader.snapshot()
        after = places(snap)
        assert {id: slot for id, slot in before.items() if id != "t4700"} == {
            id: slot for id, slot in after.items() if id != "t5000"
        }
        assert snap.pin.slots(0) < 4_000
        for id in dice.sample([f"t{number}" for number in range(4_000)], 20):
            assert client.put(Task(title="x", id=id)).version == 3
