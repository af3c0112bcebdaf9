"""A revision that only the journal holds answers every question as it did when it was published."""

from __future__ import annotations

import shutil

import pytest

from solewriter import (
    Compacted,
    Create,
    Delete,
    Engine,
    InvalidQuery,
    JournalCorrupt,
    Put,
    Task,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.reading.past import Past
from solewriter.shared.config import KIB, Limits
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import first_of, journal_files
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files

LIMITS = Limits(recent_bytes=4 * KIB, heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB)
COUNT = 6


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Beside an engine that recovered: its memory has the newest records only. Revisions 1 to 6 create t0 to t5, 7 to
    12 change them, 13 deletes t0, and others follow. Nobody writes after that.
    """
    state = tmp_path_factory.mktemp("past") / "state"
    with Engine(state, limits=LIMITS, durability="process"), connect(state, limits=LIMITS) as client:
        mutations = [Create(Task(title=f"first {one}", id=f"t{one}", project=f"p{one}")) for one in range(COUNT)]
        mutations += [Update(Task.ref(f"t{one}"), {"title": f"second {one}"}) for one in range(COUNT)]
        mutations += [Delete(Task.ref("t0"))]
        mutations += [Update(Task.ref("t1"), {"description": "d" * 1_000, "source": str(one)}) for one in range(20)]
        for reply in client.submit_many(mutations):
            reply.check()
    with Engine(state, limits=LIMITS, durability="process"), open_reader(state, limits=LIMITS) as reader:
        yield reader
    shutil.rmtree(state.parent)


def past(reader, revision):
    snap = reader.at(revision)
    assert isinstance(snap.pin, Past), "memory still holds it"
    return snap


def titles(tasks):
    return [task.title for task in tasks]


def test_what_was_there_and_nothing_else_is_found(reader):
    for revision in range(13):
        snap = past(reader, revision)
        alive = min(revision, COUNT)
        second = max(0, revision - COUNT)
        expected = [f"{'second' if one < second else 'first'} {one}" for one in range(alive)]
        assert titles(snap.entities(Task)) == titles(snap.scan(Task)) == expected
        assert [snap.get(Task, f"t{one}") is not None for one in range(COUNT)] == [one < alive for one in range(COUNT)]
        assert snap.count(Task) == snap.counts.get("Task", 0) == alive
    assert past(reader, 13).get(Task, "t0") is None
    assert past(reader, 13).ids(Task) == [f"t{one}" for one in range(1, COUNT)]


def test_pages_of_it_go_on_behind_an_id_or_an_entity(reader):
    snap = past(reader, 9)
    assert snap.ids(Task, limit=2, after="t1") == ["t2", "t3"]
    assert titles(snap.scan(Task, order_by="-version", limit=2, after="t1")) == ["second 2", "first 3"]
    assert titles(snap.scan(Task, limit=1, after=snap.get(Task, "t1"))) == ["second 2"]
    with pytest.raises(InvalidQuery, match="there is no such Task"):
        snap.scan(Task, after="t9")


def test_a_page_goes_on_behind_an_entity_of_an_earlier_revision_still(reader):
    """What it was before is not looked up: a key has one life here, as far as can be seen."""
    earlier = past(reader, 6).get(Task, "t1")
    assert earlier.version == 1
    snap = past(reader, 12)
    assert snap.get(Task, "t1").version == 2
    assert snap.ids(Task, limit=2, after=earlier) == ["t2", "t3"]


def test_a_past_that_is_moved_on_to_the_end_of_the_journal_is_the_newest_revision(reader):
    now = reader.snapshot().pin
    then = Past(now, reader.folder.path, 3)
    then.advance(3)
    assert (then.revision, then.root.kinds[now.catalog.kind_code("Task")]) == (3, (3, 3))
    then.advance(now.root.revision)
    assert then.revision == now.root.revision
    for kind in range(len(now.catalog.kinds)):
        newest = {content.key: content for content in map(now.content, now.addresses(kind))}
        assert {content.key: content for content in map(then.content, then.addresses(kind))} == newest


def test_a_past_is_counted_and_scanned_by_its_own_values(reader):
    snap = past(reader, 9)
    assert snap.ids(Task, {"version": 2}) == ["t0", "t1", "t2"]
    assert snap.count(Task, {"project": "p3"}) == 1
    assert snap.columns(Task)["version"].tolist() == [2, 2, 2, 1, 1, 1]


def test_a_kind_that_was_registered_later_is_empty_then(reader):
    assert past(reader, 9).count("Project") == 0
    assert past(reader, 9).get("Project", "p") is None


def test_damage_is_named_to_whoever_looks_back_beside_an_engine_and_never_passed_over(state, start_engine):
    """Nobody takes it for what is not kept any more, not even a watch that would be content with a new snapshot."""
    engine = start_engine(state, limits=LIMITS)
    with connect(state, limits=LIMITS) as client:
        for number in range(60):
            client.put(Task(title="x" * 100, id=f"t{number % 9}", source=str(number)))
    engine.stop()
    start_engine(state, limits=LIMITS)
    (path,) = journal_files(state)
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at))[0].revision < 20:
        at = found[2]
    with path.open("r+b") as file:
        file.seek(at + 60)
        file.write(b"damage")
    with open_reader(state, limits=LIMITS) as reader:
        now = reader.revision
        looks = {
            "at": lambda: reader.at(30),
            "diff": lambda: reader.diff(5, now),
            "history": lambda: [*reader.history(Task, "t0")],
            "watch": lambda: [*reader.watch(since=10, timeout_s=0)],
            "resync": lambda: [*reader.watch(since=10, timeout_s=0, resync=True)],
        }
        for name, look in looks.items():
            with pytest.raises(JournalCorrupt, match=f"is damaged at offset {at}") as caught:
                look()
            assert caught.value.place == f"{path.name}:{at}", name
        assert past(reader, 10).count(Task) == 9


def test_it_begins_with_a_checkpoint_where_the_first_files_are_gone(state, start_engine, wait_until):
    limits = Limits(
        recent_bytes=4 * KIB, heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB,
        journal_file_bytes=64 * KIB, checkpoint_after_bytes=64 * KIB, history_bytes=600 * KIB,
    )  # fmt: skip
    engine, revision = start_engine(state, limits=limits), 0
    with connect(state, limits=limits) as client:

        def work() -> bool:
            nonlocal revision
            puts = [
                Put(Task(title="x" * 500, id=f"t{one % 7}", source=str(one))) for one in range(revision, revision + 70)
            ]
            for reply in client.submit_many(puts):
                revision = reply.check().revision
            return first_of(journal_files(state)[0]) > 1

        wait_until(work, 60, "something is trimmed")
    engine.stop()
    start_engine(state, limits=limits)
    with open_reader(state, limits=limits) as reader:
        with Checkpoint(next(iter(checkpoint_files(state).values()))) as oldest:
            begin = oldest.directory.revision
        for one in (begin, begin + 1, begin + 10):
            assert {task.source for task in past(reader, one).entities(Task)} == {
                str(one - back) for back in range(1, 8)
            }
            assert past(reader, one).count(Task) == 7
        with pytest.raises(Compacted, match=f"go back to {begin}"):
            reader.at(begin - 1)
