"""Earlier revisions, differences and histories are what they were: from memory, from the journal, or not at all."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import msgspec
import pytest

from solewriter import (
    Compacted,
    Create,
    Delete,
    Entity,
    InvalidQuery,
    Limits,
    Project,
    Put,
    Task,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.reading import travel
from solewriter.agents.reading.past import Past
from solewriter.engine_proc.recovery.repair import truncate
from solewriter.shared.config import KIB
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal.chain import first_of, journal_files

SMALL = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, journal_file_bytes=256 * KIB, heartbeat_s=0.05
)


class Story:
    """Random changes of some tasks, and everything that was stored after each revision."""

    def __init__(self, client, seed=1, tasks=150):
        self.client = client
        self.dice = random.Random(seed)
        self.tasks = tasks
        self.now = {}  # id -> (version, title, project)
        self.versions = {}
        self.states = [{}]

    def run(self, changes):
        mutations = []
        for number in range(changes):
            id = f"t{self.dice.randrange(self.tasks)}"
            version = self.versions[id] = self.versions.get(id, 0) + 1
            title, project = f"{number} {id}", self.dice.choice(["p", "q"])
            if id not in self.now:
                mutations.append(Create(Task(title=title, id=id, project=project, description="d" * 100)))
                self.now[id] = version, title, project
            elif self.dice.random() < 0.1:
                mutations.append(Delete(Task.ref(id)))
                del self.now[id]
            else:
                mutations.append(Update(Task.ref(id), {"title": title, "project": project}))
                self.now[id] = version, title, project
            self.states.append(dict(self.now))
        for reply in self.client.submit_many(mutations):
            reply.check()
        for _ in range(20):  # memory is given back behind the replies, a slice for each turn: until there is no need
            self.client.outcome("nobody's")

    def check(self, snap, revision, *, thorough=True):
        expected = self.states[revision]
        assert snap.revision == revision
        assert snap.counts.get("Task", 0) == snap.count(Task) == len(expected)
        ids = {f"t{number}" for number in range(self.tasks)} if thorough else self.dice.sample(sorted(self.versions), 5)
        found = {id: task for id in ids if (task := snap.get(Task, id)) is not None}
        assert {id: content(task) for id, task in found.items()} == {
            id: told for id, told in expected.items() if id in ids
        }
        if thorough:
            assert {task.id: content(task) for task in snap.entities(Task)} == expected
            in_p = {id for id, told in expected.items() if told[2] == "p"}
            assert set(snap.ids(Task, {"project": "p"})) == in_p
            assert [task.id for task in snap.scan(Task, order_by="-version", limit=3)] == sorted(
                expected, key=lambda id: (-expected[id][0], snap.ids(Task).index(id))
            )[:3]


def content(task):
    return task.version, task.title, task.project


def test_every_revision_is_what_it_was_wherever_it_comes_from(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(4_000)
        root = reader.snapshot().pin.root
        assert 0 < root.oldest <= root.whole <= 4_000, "memory holds the last ones only"
        for revision in (0, 1, 2, 700, root.oldest, root.whole - 1, root.whole, 3_999, 4_000):
            story.check(reader.at(revision), revision)
        for revision in range(root.whole, 4_000, 97):
            story.check(reader.at(revision), revision, thorough=False)


def test_a_revision_of_the_past_stays_what_it_is_while_memory_goes_on(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(3_000)
        held = [reader.at(revision) for revision in (1_000, reader.snapshot().pin.root.whole, 2_999)]
        untouched = reader.at(2_998)
        revisions = [snap.revision for snap in held]
        story.run(6_000)
        for snap, revision in zip(held, revisions, strict=True):
            story.check(snap, revision)
        story.check(untouched, 2_998)


def test_the_past_goes_on_across_restarts(state, start_engine, wait_until):
    engine = start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        for _ in range(3):
            story.run(700)
            before = engine.restarts
            os.kill(engine.pid, signal.SIGKILL)
            wait_until(lambda before=before: engine.restarts > before, 20, "a restart")
        story.run(10)
        for revision in (5, 700, 1_400, 2_099, 2_105):
            story.check(reader.at(revision), revision)


def test_pages_of_one_revision_go_on_where_it_is_read_from_the_journal(state, start_engine):
    """Places of what was deleted long ago go to something new: to the same everywhere."""
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:

        def turn_over():
            for reply in client.submit_many(
                Update(Task.ref("f"), {"description": f"{number}" * 200}) for number in range(2_000)
            ):
                reply.check()

        for id in "abcdef":
            client.create(Task(title="x", id=id))
        earlier = client.get(Task, "a")
        for id in "ac":
            client.delete(Task.ref(id))
        turn_over()
        revisions = [client.submit(Create(Task(title="x", id=id))).check().revision for id in "xay"]
        with reader.at(revisions[-1]) as snap:
            places = snap.ids(Task)
            assert sorted(places) == [*"abdefxy"]
            assert places != sorted(places), "used places are used again"
            page = snap.scan(Task, order_by="project", limit=3)
        turn_over()
        with open_reader(state, offline=True) as offline:
            for look in (reader, offline):
                with look.at(revisions[-1]) as snap:
                    assert isinstance(snap.pin, Past)
                    assert snap.ids(Task) == [one.id for one in snap.entities(Task)] == places
                    assert [one.id for one in page] + snap.ids(Task, order_by="project", after=page[-1]) == places
                    with pytest.raises(InvalidQuery, match="begin again"):
                        snap.ids(Task, after=earlier)
                assert look.at(revisions[0]).ids(Task, after=earlier) == [*"bxdef"]
            assert offline.snapshot().ids(Task) == reader.snapshot().ids(Task) == places


def test_without_a_journal_what_left_memory_is_gone_and_that_is_said(state, start_engine):
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(4_000)
        whole = reader.snapshot().pin.root.whole
        assert whole > 1_000
        story.check(reader.at(whole), whole)
        with pytest.raises(Compacted, match="nothing is journaled") as told:
            reader.at(whole - 1)
        assert told.value.oldest == whole
        with pytest.raises(Compacted):
            reader.diff(1, 4_000)
        got: list[int] = []
        with pytest.raises(Compacted) as told:
            got.extend(change.version for change in reader.history(Task, "t1"))
        assert got == list(range(got[0], got[-1] - 1, -1)), "what is there comes first"
        assert told.value.oldest == whole
        assert list(reader.history(Task, "never")) == []


def test_what_is_gone_says_where_memory_begins_if_it_goes_back_farther_than_what_is_kept(
    state, start_engine, wait_until
):
    start_engine(state, limits=msgspec.structs.replace(SMALL, checkpoint_after_bytes=64 * KIB, history_bytes=0))

    def told(look) -> int:
        try:
            look()
        except Compacted as gone:
            return gone.oldest
        return 0

    def kept() -> int:
        with open_reader(state, offline=True) as folder:
            return told(lambda: folder.at(1))

    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(3_000)

        def goes_back_farther() -> bool:
            story.run(50)
            root = reader.pin().root
            return bool(told(lambda: next(reader.watch(since=1))) and kept() > root.whole > root.oldest)

        wait_until(goes_back_farther, 60, "a checkpoint was made, and nothing before it is kept")
        root = reader.pin().root
        assert told(lambda: reader.at(1)) == told(lambda: reader.diff(1, 2)) == root.whole
        assert told(lambda: next(reader.watch(since=1))) == root.oldest
        assert next(reader.watch(since=root.oldest)).revision == root.oldest + 1


def test_who_looks_back_is_not_shown_another_states_journal_in_its_folders_place(state, tmp_path, start_engine):
    """Its engine was stopped; what it kept of that memory is all that there is."""
    other, aside = tmp_path / "other", tmp_path / "aside"
    engine = start_engine(other, limits=SMALL)
    with connect(other) as client:
        Story(client, seed=2).run(3_000)
    engine.stop()
    engine = start_engine(state, limits=SMALL)
    with open_reader(state) as reader:
        with connect(state) as client:
            story = Story(client)
            story.run(3_000)
        held = reader.snapshot()
        assert held.pin.root.whole > 20
        engine.stop()
        state.rename(aside)
        other.rename(state)
        for look in (
            lambda: reader.at(10),
            lambda: reader.diff(10, 20, Task),
            lambda: [*reader.history(Task, "t1")],
        ):
            with pytest.raises(Compacted, match="of another history"):
                look()
        story.check(held, 3_000)
        start_engine(state, limits=SMALL)
        with reader.at(10) as snap:
            assert snap.history_id != held.history_id


def test_who_looks_back_is_not_shown_what_was_journaled_in_place_of_what_was_cut(state, start_engine):
    """Neither is who holds what an engine published before: its journal was cut, and another one has written since."""
    few = msgspec.structs.replace(SMALL, recent_bytes=0)
    engine = start_engine(state, limits=few)
    with connect(state) as client:
        for number in range(60):
            client.put(Task(id="t", title=f"before {number}"))
    engine.stop()
    engine = start_engine(state, limits=few)
    with open_reader(state) as reader:
        held = reader.at(60)
        with connect(state) as client:
            last = client.put(Task(id="t", title="last"))
        change = next(reader.history(Task, "t"))
        assert held.pin.root.whole > 40
        with reader.at(40) as snap:
            assert snap[Task, "t"].title == "before 39"
        engine.stop()
        truncate(StateFolder(state), 20)
        engine = start_engine(state, limits=few)
        with connect(state) as client:
            for number in range(80):
                client.put(Task(id="t", title=f"behind {number}"))
        engine.stop()
        assert reader.snapshot()[Task, "t"] == last == change.new, "it has the old memory still"
        for look in (
            lambda: reader.at(40),
            lambda: reader.diff(40, 50, Task),
            lambda: [*reader.history(Task, "t")],
        ):
            with pytest.raises(Compacted, match="of another history behind that"):
                look()


@pytest.mark.parametrize("revision", [-1, 11])
def test_a_revision_that_was_not_published_is_refused(client, reader, revision):
    for number in range(10):
        client.create(Task(title="x", id=f"t{number}"))
    with pytest.raises(InvalidQuery, match="the newest is 10"):
        reader.at(revision)
    with pytest.raises(InvalidQuery):
        reader.diff(0, revision)
    with pytest.raises(InvalidQuery, match="earlier"):
        reader.diff(5, 4)


# --- differences ------------------------------------------------------------------------------------------------------


def test_a_difference_is_what_is_not_the_same_at_both_ends(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(4_000)
        whole = reader.snapshot().pin.root.whole
        pairs = [(0, 4_000), (100, 100), (100, 130), (whole - 50, whole), (whole, 4_000), (3_990, 4_000)]
        for since, until in pairs:
            told = reader.diff(since, until, Task)
            old, new = story.states[since], story.states[until]
            assert {one.id for one in told} == {id for id in old.keys() | new.keys() if old.get(id) != new.get(id)}
            for one in told:
                assert (one.old and content(one.old)) == old.get(one.id)
                assert (one.new and content(one.new)) == new.get(one.id)
                assert one.kind == "Task"


def test_a_difference_whose_journal_goes_in_the_middle_says_what_is_left(state, start_engine, monkeypatch):
    """By a trim, that is: the engine does not wait for whoever looks back."""
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        Story(client).run(5_000)
        whole = reader.snapshot().pin.root.whole
        _, *later = journal_files(state)
        assert later
        past = travel._past

        def trimmed(*arguments):
            begun = past(*arguments)
            for path in later:
                path.unlink(missing_ok=True)
            return begun

        monkeypatch.setattr(travel, "_past", trimmed)
        with pytest.raises(Compacted, match=f"memory goes back to {whole}, and .* was trimmed meanwhile") as told:
            reader.diff(1, 5_000)
        assert told.value.oldest == whole


def test_a_difference_of_one_kind_or_of_all_also_as_plain_data(client, reader):
    client.create(Task(title="a", id="t"))
    client.create(Project(name="p", id="p"))
    gone = client.create(Task(title="b", id="gone"))
    client.delete(gone)
    assert [(one.kind, one.id) for one in reader.diff(0, 4)] == [("Task", "t"), ("Project", "p")]
    assert [one.new.name for one in reader.diff(0, 4, Project)] == ["p"]
    assert [(one.old, one.new["title"]) for one in reader.diff(0, 4, "Task")] == [(None, "a")]
    assert reader.diff(2, 4) == [], "made and deleted between: the same at both ends"


# --- one entity -------------------------------------------------------------------------------------------------------


def test_the_history_of_an_entity_goes_back_to_its_first_version(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state, name="me") as client, open_reader(state) as reader:
        story = Story(client)
        story.run(4_000)
        for id in ("t1", "t2", "t3"):
            changes = list(reader.history(Task, id))
            assert [change.version for change in changes] == list(range(story.versions[id], 0, -1))
            for change in changes:
                assert (change.new and content(change.new)) == story.states[change.revision].get(id)
                assert (change.old and content(change.old)) == story.states[change.revision - 1].get(id)
                assert (change.kind, change.id, change.actor) == ("Task", id, "me")
        assert list(reader.history(Task, "never")) == []
        assert next(iter(reader.history("Task", "t1"))).version == story.versions["t1"]


def test_the_history_of_what_was_forgotten_is_in_the_journal(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        task = client.create(Task(title="x", id="gone"), reason="made")
        client.delete(client.update(task, title="y"), reason="over")
        story = Story(client)
        for _ in range(3_000):
            story.states.append({})
        story.run(3_000)
        assert reader.snapshot().pin.find(0, "gone") == 0
        told = [(change.mutation, change.version, change.reason) for change in reader.history(Task, "gone")]
        assert told == [("delete", 3, "over"), ("update", 2, ""), ("create", 1, "made")]
        client.create(Task(title="z", id="gone"))
        assert [change.version for change in reader.history(Task, "gone")] == [4, 3, 2, 1]


def test_what_was_forgotten_before_its_records_went_is_in_the_journal_too(state, start_engine):
    start_engine(state, limits=Limits(heap_segment_bytes_first=1024 * KIB))
    with connect(state) as client, open_reader(state) as reader:
        task = client.create(Task(title="x", id="gone"))
        client.delete(client.update(task, title="y"))
        client.create(Task(title="x", id="other"))
        for number in range(1_000):
            client.update(Task.ref("other"), description="d" * 20_000 + str(number))
            if reader.view().root.forgotten:
                break
        assert reader.snapshot().pin.root.oldest == 0, "the first segment is still being emptied"
        assert [change.version for change in reader.history(Task, "gone")] == [3, 2, 1]
        assert [change.version for change in reader.history(Task, "never")] == []
        client.create(Task(title="z", id="gone"))
        changes = list(reader.history(Task, "gone"))
        told = [(change.version, change.mutation, change.old and change.old.title) for change in changes]
        assert told == [(4, "create", None), (3, "delete", "y"), (2, "update", "x"), (1, "create", None)]


def test_what_was_before_is_found_or_known_to_be_none_or_gone(state, start_engine, wait_until):
    """Whether memory has it, or the journal, or neither any more: beside the engine, after its next start, offline."""

    def told(reader, id, model=Task):
        """(version, title before) of its changes, "gone" where that is not known any more."""
        found = []
        try:
            for change in reader.history(model, id):
                try:
                    found.append((change.version, change.old and change.old.title))
                except Compacted:
                    found.append((change.version, "gone"))
        except Compacted:
            found.append("gone")
        return found

    engine = start_engine(state, models=[Bare], limits=TRIMMED)
    with connect(state) as client, open_reader(state) as reader:
        for id in ("a", "b", "again"):
            client.create(Task(title="1", id=id))
        client.create(Bare(title="1", id="bare"))
        for title in "2345":
            client.update(Task.ref("a"), title=title)
        client.delete(Task.ref("again"))
        until_trimmed(client, state, wait_until, "other", times=2)
        assert reader.snapshot().pin.find(reader.snapshot().pin.catalog.kind_code("Task"), "again") == 0
        client.create(Task(title="3", id="again"))
        until_trimmed(client, state, wait_until, "other", times=2)
    engine.stop()
    engine = start_engine(state, models=[Bare])  # which makes no checkpoint so soon
    with connect(state) as client, open_reader(state) as reader:
        client.update(Task.ref("a"), title="6")
        client.update(Bare.ref("bare"), title="2")
        client.create(Task(title="1", id="new"))
        expected = {
            "a": [(6, "5"), (5, "gone"), "gone"],
            "b": [(1, None)],
            "again": [(3, None), "gone"],
            "new": [(1, None)],
        }
        for start in range(2):
            if start:
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda: engine.restarts, 20, "a restart")
            assert {id: told(reader, id) for id in expected} == expected
            assert told(reader, "bare", Bare) == [(2, "1"), (1, None)]
            with open_reader(state, offline=True) as folder:
                assert {id: told(folder, id) for id in expected} == expected
                assert told(folder, "bare", Bare) == [(2, "1"), (1, None)]


class Bare(Entity):
    """It has no columns, so no record of it says whether there was one before it."""

    title: str = ""


TRIMMED = Limits(
    heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB, journal_file_bytes=64 * KIB,
    checkpoint_after_bytes=64 * KIB, recent_bytes=8 * KIB, history_bytes=0, heartbeat_s=0.05,
)  # fmt: skip


def until_trimmed(client, state, wait_until, what, times=1):
    """Changes of something else, until the journal begins with another checkpoint, so many times."""
    for _ in range(times):
        first = first_of(journal_files(state)[0])

        def work(first=first) -> bool:
            fill(client, what, 20)
            return first_of(journal_files(state)[0]) > first

        wait_until(work, 60, "something is trimmed")


def fill(client, id, times, size=5_000):
    for reply in client.submit_many(
        Put(Task(title="x" * 100 + str(n), id=id, description="d" * size)) for n in range(times)
    ):
        reply.check()


def test_looking_back_leaves_nothing_open(state, start_engine, wait_until):
    start_engine(state, limits=TRIMMED)
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="a"))
        client.update(Task.ref("a"), title="y")
        until_trimmed(client, state, wait_until, "other")
        with pytest.raises(Compacted):
            list(reader.history(Task, "a"))
        files = [file.resolve().name for file in Path("/proc/self/fd").iterdir()]
        assert [name for name in files if name.startswith(("checkpoint-", "journal-"))] == []


# --- a watch that looks back ------------------------------------------------------------------------------------------


def test_a_watch_from_the_beginning_reads_the_journal_then_memory(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(3_000)
        assert reader.snapshot().pin.root.oldest > 500
        watch = reader.watch(Task, since=0, timeout_s=0)
        seen = []
        for change in watch:
            seen.append(change.revision)
            if change.revision % 101 == 0:
                assert (change.new and content(change.new)) == story.states[change.revision].get(change.id)
                assert (change.old and content(change.old)) == story.states[change.revision - 1].get(change.id)
            if change.revision == 2_000:
                story.run(2_000)  # more than memory holds, behind a watch that reads the journal
        assert seen == list(range(1, 5_001))


def test_a_filter_holds_for_what_is_read_from_the_journal_too(state, start_engine):
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        story = Story(client)
        story.run(3_000)
        got = [
            (change.revision, change.id) for change in reader.watch(Task, since=50, where={"project": "p"}, timeout_s=0)
        ]
        expected = []
        for revision in range(51, 3_001):
            old, new = story.states[revision - 1], story.states[revision]
            (id,) = [id for id in old.keys() | new.keys() if old.get(id) != new.get(id)]
            if "p" in ((old.get(id) or "   ")[2], (new.get(id) or "   ")[2]):
                expected.append((revision, id))
        assert got == expected


def test_a_watcher_that_fell_behind_in_mid_request_misses_and_repeats_nothing(state, start_engine):
    """It stands between two records of one transaction when their memory goes."""
    start_engine(state, limits=SMALL)
    with connect(state) as client, open_reader(state) as reader:
        client.submit(*[Create(Task(title="x", id=f"t{n}", max_retries=0)) for n in range(300)]).check()
        watch = reader.watch(since=0, timeout_s=0)
        seen = [next(watch).id for _ in range(256)]  # what was taken at once ends within the first request
        assert watch.revision == 0
        story = Story(client, tasks=100)
        story.now = {f"t{n}": (1, "x", "p") for n in range(100)}
        story.versions = {f"t{n}": 1 for n in range(100)}
        story.run(3_000)
        assert reader.snapshot().pin.root.oldest > 1
        changes = list(watch)
        assert seen + [change.id for change in changes[:44]] == [f"t{n}" for n in range(300)]
        assert [change.revision for change in changes[44:]] == list(range(2, 3_002))
