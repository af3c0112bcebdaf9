"""What the current root lists is there, at every step of publishing and of giving memory back."""

from __future__ import annotations

import fcntl
import itertools

import pytest

from solewriter import Create, Task, Update
from solewriter.shared import wire, wireform
from solewriter.shared.config import CHUNK_SLOTS, DEFAULT_LIMITS, KIB
from solewriter.shared.errors import LayoutMismatch, MemoryFull
from solewriter.shared.memory import revlog
from solewriter.shared.memory.index import key_hash
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.registry import Registry


def listed(engine):
    """The segments of the heap and of the log of revisions that readers of the current root may map."""
    root, where = engine.view.root.current(), engine.server.epoch.folder.whereabouts()
    heap = range(root.first_segment, root.last_segment + 1)
    log = range(root.log_first, -(-root.log_points // revlog.POINTS))
    names = [("heap", number) for number in heap] + [("revlog", number) for number in log]
    return [segment_path(where.memory_dir, where.prefix, *name) for name in names]


def test_a_segment_is_unlinked_only_when_no_root_lists_it_any_more(alone, monkeypatch):
    monkeypatch.setattr(revlog, "POINTS", 8)  # of a segment of the log: a few turns fill one
    engine, call, steps = alone(heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=16 * KIB)
    missing = []

    def step(name):
        steps(name)
        missing.extend((name, path.name) for path in listed(engine) if not path.exists())

    monkeypatch.setattr("solewriter.shared.failpoint.reach", step)
    registry = Registry()
    for number in range(100):
        mutation = Update(Task.ref("t"), {"title": str(number)}) if number else Create(Task(id="t", title="x"))
        plain = wireform.plain_mutation(mutation, registry)
        plain = (*plain[:5], "r" * 4_000, *plain[6:])  # so much that every turn makes a point in the log
        call.write(wire.pack_frame([([plain], [], None, None)], DEFAULT_LIMITS))
        engine.read(lambda: [call.unread()])
        engine.turn()
    assert {"reclaim.filled", "reclaim.shown", "reclaim.done"} <= set(steps.reached)
    assert engine.view.root.current().log_first > 5
    assert missing == []


def test_what_keys_fill_goes_on_in_segments_that_are_there_before(alone):
    engine, _, _ = alone()
    publisher, where = engine.server.publisher, engine.server.epoch.folder.whereabouts()
    publisher.reserve({0: CHUNK_SLOTS - 1}, {0: [(b"key %d" % number, number) for number in range(2_500)]})
    generation = publisher.table(0).generation
    ahead = [("table", 0, generation, 1), ("index", 0, 1)]
    paths = [segment_path(where.memory_dir, where.prefix, *name) for name in ahead]
    assert [path.name for path in paths if not path.exists()] == []
    publisher.replace_table(0, publisher.other_table(0, publisher.columns(0), 1))
    assert not paths[0].exists()


def test_when_a_reader_lets_memory_go_room_is_looked_for_again_ahead_of_need(alone, monkeypatch):
    """Made when it is needed, the next segment would keep everybody waiting."""
    engine, _, _ = alone(heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=16 * KIB)
    publisher, where = engine.server.publisher, engine.server.epoch.folder.whereabouts()
    following = segment_path(where.memory_dir, where.prefix, "heap", 2)

    def no_room(number, size, spare):
        raise MemoryFull("no room")

    def turn():
        publisher.heap.append(bytes(100), 0, 0)
        publisher.heap.flush()

    emptied = Segment.create(segment_path(where.memory_dir, where.prefix, "heap", 0), 4 * KIB)
    held = Segment.attach(emptied.path)
    publisher.reclaimer.bury(emptied)
    with monkeypatch.context() as full:
        full.setattr(publisher.heap, "_make", no_room)
        publisher.heap.append(bytes(9 * KIB), 0, 0)
        turn()
    for _ in range(2):
        publisher.let_go()
        turn()
        assert publisher.heap.short
        assert not following.exists()
    del held
    publisher.let_go()
    for _ in range(2):
        turn()
    assert following.exists()
    assert not publisher.heap.short


def keys_of(region, count):
    """So many of one region of an index."""
    keys = map(b"%d".__mod__, itertools.count())
    return [*itertools.islice((key for key in keys if key_hash(key) & 0xFF == region), count)]


def test_tidying_the_index_leaves_the_room_of_the_keys_that_come(alone):
    """However many of those before were forgotten: an insertion without a free entry would look for one for ever."""
    engine, _, _ = alone()
    publisher, where = engine.server.publisher, engine.server.epoch.folder.whereabouts()
    words = Segment.attach(segment_path(where.memory_dir, where.prefix, "index", 0, 0)).words
    index, slots, coming = publisher._indexes[0], itertools.count(), {0: keys_of(0, 200), 3: keys_of(3, 3_000)}
    for _ in range(150):
        publisher.reserve({0: 1}, {0: [(key, 0) for keys in coming.values() for key in keys]})
        for region, keys in coming.items():
            assert (index._counts[region] + len(keys)) * 3 <= 2 << (words[region] & 0xFF)
        for key, slot in zip(itertools.chain(*coming.values()), slots, strict=False):
            index.insert(key_hash(key), slot)
            index.leave(key_hash(key), slot)
        coming[3] = coming[3][:20]
    assert index._newest > 3


@pytest.mark.parametrize("planted", ["a link", "a file that others may read"])
def test_of_what_somebody_put_in_a_segments_place_no_byte_is_taken_away(alone, tmp_path, planted):
    """As anybody may where `memory_dir` is a folder in which others may remove files."""
    engine, _, _ = alone(snapshot_age_max_s=0)
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    path = tmp_path / "memory" / "solewriter-0-heap-1"
    segment = Segment.create(path, 4_096)
    path.unlink()
    path.symlink_to(other) if planted == "a link" else path.hardlink_to(other)
    reclaimer, expired = engine.server.publisher.reclaimer, []
    with other.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as who maps a segment
        with pytest.raises((OSError, LayoutMismatch), match=r"symbolic|private"):
            reclaimer.bury(segment)
        for _ in range(2):
            reclaimer.let_go(expired.append)
    assert expired == []
    assert other.read_bytes() == b"mine"
    path.unlink()
