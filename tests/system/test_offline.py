"""What a folder tells without an engine is what the engine told, and what the next one will."""

from __future__ import annotations

import os
import random
import signal
from itertools import pairwise

import pytest

from solewriter import (
    Compacted,
    EngineUnavailable,
    Entity,
    InvalidQuery,
    JournalCorrupt,
    Limits,
    OfflineReader,
    Project,
    Task,
    connect,
    open_reader,
)
from solewriter.shared.config import KIB, MIB
from solewriter.shared.journal.chain import journal_files, named_checkpoints
from solewriter.shared.journal.checkpoint import checkpoint_files

SMALL = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, journal_file_bytes=256 * KIB,
    checkpoint_after_bytes=64 * KIB, history_bytes=64 * MIB,
)  # fmt: skip


class Ship(Entity, columns=("tons",)):
    tons: int = 0


def lived(client, *, changes=1_500):
    """Tasks come, change and go, a project stays, and a kind that is met late."""
    dice = random.Random(7)
    client.update(client.create(Project(id="site", name="site")), name="our site")
    alive = {}
    for number in range(changes):
        id = f"t{dice.randrange(200)}"
        if id not in alive:
            alive[id] = client.create(Task(id=id, title=f"{number}", description="d" * 200), reason="new")
        elif dice.random() < 0.1:
            client.delete(alive.pop(id))
        else:
            alive[id] = client.update(alive[id], title=f"{number}", project=dice.choice("pq"))
    client.create(Ship(id="late", tons=7))


def told(reader, revisions):
    """All that a reader says, as plain values."""
    with reader.snapshot() as snap:
        now = {
            "revision": snap.revision,
            "history": snap.history_id,
            "counts": snap.counts,
            "tasks": {task.id: task for task in snap.entities(Task)},
            "ships": snap.scan(Ship, {"tons": 7}),
            "plain": snap.get("Task", "t7"),
            "scan": [task.id for task in snap.scan(Task, {"project": "p"}, order_by="-created_at", limit=20)],
            "by": snap.count_by(Task, "project"),
            "ids": sorted(snap.ids(Task, {"project": "q"})),
        }
    now["one"] = reader.get(Task, "t7"), reader.get(Task, "nobody"), reader.get("Boat", "nobody")
    for revision in revisions:
        with reader.at(revision) as then:
            now[revision] = then.counts, {task.id: task.version for task in then.entities(Task)}
    now["diff"] = [(one.kind, one.id, one.old, one.new) for one in reader.diff(revisions[0], revisions[-1])]
    now["story"] = [(one.mutation, one.version, one.reason, one.old, one.new) for one in reader.history(Task, "t7")]
    return now


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def test_a_stopped_state_tells_all_that_its_engine_told_and_is_not_touched(state, start_engine, wait_until):
    engine = start_engine(state, limits=SMALL, models=[Ship])
    with connect(state, limits=SMALL) as client:
        lived(client)

        def several() -> bool:
            """The first one may be slow, and of nearly all there was."""
            client.update(Project.ref("site"), description=os.urandom(500).hex())
            return len(checkpoint_files(engine.state)) > 1

        wait_until(several, 60, "checkpoints are made")
        revisions = [3, 400, 1_200, client.reader.revision]
        online = told(client.reader, revisions)
    engine.stop()
    before = contents(engine.state)
    with open_reader(state, offline=True) as reader:
        assert isinstance(reader, OfflineReader)
        assert told(reader, revisions) == online
        assert reader.snapshot().stale
        assert reader.diff(reader.revision, reader.revision) == []
        with pytest.raises(InvalidQuery, match="there is no revision"):
            reader.at(reader.revision + 1)
    assert contents(engine.state) == before


def test_what_was_acked_before_a_kill_is_there(state, start_engine):
    engine = start_engine(state, limits=Limits(restart_backoff_s=60.0, restart_backoff_max_s=60.0))
    with connect(state) as client:
        acked = [client.create(Task(id=f"t{number}", title="x")) for number in range(50)]
    os.kill(engine.pid, signal.SIGKILL)
    with open_reader(state, offline=True) as reader, reader.snapshot() as snap:
        assert [snap[Task, task.id] for task in acked] == acked


def test_beside_an_engine_it_stays_what_it_was_when_it_was_opened(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="first"))
        with open_reader(state, offline=True) as reader:
            client.update(task, title="second")
            assert reader.get(Task, task.id) == task
            held = reader.snapshot()
        assert held.get(Task, task.id) == task
        with open_reader(state, offline=True) as reader:
            assert reader.get(Task, task.id).title == "second"


def not_needed(state):
    """Files of the journal that lie before a checkpoint that is named, all of them."""
    begin = max((name.entry for name in named_checkpoints(state)), default=0)
    return [path for path, behind in pairwise(journal_files(state)) if int(behind.stem[8:]) <= begin + 1]


def test_history_that_was_given_up_is_compacted(state, start_engine, wait_until):
    engine = start_engine(state, limits=SMALL, models=[Ship])
    with connect(state, limits=SMALL) as client:
        lived(client)
        wait_until(lambda: not_needed(engine.state), 20, "a checkpoint is made behind a whole file, and is named")
    engine.stop()
    for path in not_needed(engine.state):
        path.unlink()
    with open_reader(state, offline=True) as reader:
        assert reader.get(Ship, "late").tons == 7
        with pytest.raises(Compacted):
            reader.at(1)
        story = reader.history(Project, "site")
        assert next(story).version == 2
        with pytest.raises(Compacted):
            next(story)


def test_a_state_without_a_journal_has_nothing_to_read(tmp_path, state, start_engine):
    start_engine(state, durability="memory")
    for folder in (state, tmp_path / "empty"):
        with pytest.raises(EngineUnavailable, match="nothing is journaled"):
            open_reader(folder, offline=True)


def test_a_path_that_is_mistyped_is_told_from_a_folder_without_a_journal(tmp_path):
    (tmp_path / "file").touch()
    for name, what in (("nowhere", ", which is not there"), ("file", ", which is no folder"), ("", "")):
        with pytest.raises(EngineUnavailable, match=f"nothing is journaled in {tmp_path / name}{what}$"):
            open_reader(tmp_path / name, offline=True)


@pytest.mark.parametrize("where", ["middle", "committed"])
def test_damage_is_named_not_read_over(state, start_engine, where):
    engine = start_engine(state)
    with connect(state) as client:
        for number in range(50):
            client.create(Task(id=f"t{number}", title="x"))
    engine.stop()
    (path,) = journal_files(engine.state)
    content = bytearray(path.read_bytes())
    if where == "middle":
        content[6_000] ^= 1
    else:
        content[content.index(b"t40") :] = bytes(len(content) - content.index(b"t40"))
    path.write_bytes(content)
    with pytest.raises(JournalCorrupt) as failure:
        open_reader(state, offline=True)
    assert path.name in failure.value.place
