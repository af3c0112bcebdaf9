"""Where several things meet: threads and the next engine, memory that goes in mid-look, keys that come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

from solewriter import (
    Alter,
    Append,
    Compacted,
    Complete,
    Create,
    Delete,
    Engine,
    Entity,
    Fail,
    InvalidMutation,
    InvalidQuery,
    Limits,
    NotFound,
    Range,
    Ref,
    Require,
    RequireNone,
    SnapshotExpired,
    Task,
    Transition,
    Update,
    aio,
    connect,
    open_reader,
)
from solewriter.agents.reader import Reader
from solewriter.agents.status import status_of
from solewriter.shared.config import FRAME_BATCH, KIB, MIB
from solewriter.shared.memory import pin as pins
from solewriter.shared.system import processes

SMALL = {"heap_segment_bytes_first": 64 * KIB, "heap_segment_bytes_max": 64 * KIB, "heartbeat_s": 0.05}
FEW = 6


class Note(Entity, kind="Note"):
    text: str = ""


def large(client, number):
    client.update(Task.ref("large"), description=f"{number}" + "d" * 20_000)


def begin(client):
    for number in range(FEW):
        client.create(Task(title="x", id=f"t{number}", project="p"))
    client.create(Task(title="x", id="large"))


# --- threads ---------------------------------------------------------------------------------------------------------


def test_what_one_thread_decodes_while_another_meets_the_next_engine_is_not_kept_for_that(
    state, start_engine, monkeypatch
):
    """Records of two epochs have the same addresses."""
    engine = start_engine(state, durability="memory", models=[Note])
    with connect(state) as client:
        client.create(Note(id="a", text="first"))
    with open_reader(state) as reader:
        old, decoding, go_on = reader.snapshot(), threading.Event(), threading.Event()
        fresh = type(reader.decoder).decode_anew

        def slow(self, pin, address, kind):
            if threading.current_thread() is thread:
                decoding.set()
                assert go_on.wait(60)
            return fresh(self, pin, address, kind)

        monkeypatch.setattr(type(reader.decoder), "decode_anew", slow)
        thread = threading.Thread(target=lambda: list(old.entities(Note)))
        thread.start()
        assert decoding.wait(60)
        engine.stop()
        start_engine(state, durability="memory", models=[Note])
        with connect(state) as client:
            client.create(Note(id="b", text="other"))
        new = reader.snapshot()
        go_on.set()
        thread.join()
        assert [note.id for note in new.entities(Note)] == ["b"]


def test_threads_that_meet_an_engine_at_once_leave_no_descriptor_open(state, start_engine, monkeypatch, wait_until):
    start_engine(state, models=[Note])
    look, met = processes.pidfd_of, threading.Barrier(4, timeout=60)

    def meeting(pid, start_time):
        met.wait()
        return look(pid, start_time)

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    with connect(state) as client, ThreadPoolExecutor(4) as threads:
        client.create(Note(id="a"))
        before = descriptors()
        monkeypatch.setattr(processes, "pidfd_of", meeting)
        with Reader(state) as reader:  # which has met none so far
            found = [threads.submit(reader.get, Note, "a") for _ in range(4)]
            assert [one.result().id for one in found] == ["a"] * 4
        wait_until(lambda: descriptors() <= before, 20, "all is closed")  # the engine's owner opens some now and then


# --- memory that goes in the middle of a look ------------------------------------------------------------------------


def turn_over(client, gone):
    number = 0
    while not gone():
        number += 1
        large(client, number)


@pytest.fixture
def stopped_in_a_walk(state, start_engine, monkeypatch):
    """`stopped_in_a_walk(module)`: a reader that has come to the newest record of all, and stops before it looks into
    that until its bytes are gone; the revision before it.
    """
    start_engine(state, limits=Limits(**SMALL, snapshot_age_max_s=0.0), durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        begin(client)

        def start(module):
            begun = reader.revision
            client.create(Task(title="x", id="new"))
            walk = module.walk

            def stopped(*given):
                for found in walk(*given):
                    if found[1].words[found[2] // 8 + 4] > begun:  # the revision
                        turn_over(client, lambda found=found: not found[1].words[found[2] // 8 + 4])
                    yield found

            monkeypatch.setattr(module, "walk", stopped)
            return reader, begun

        yield start


def test_a_difference_is_never_less_than_what_changed(stopped_in_a_walk):
    reader, begun = stopped_in_a_walk(pins)
    with contextlib.suppress(Compacted, SnapshotExpired):
        assert [one.id for one in reader.diff(begun, begun + 1)] == ["new"]


def test_an_earlier_revision_is_counted_as_it_was(stopped_in_a_walk):
    reader, begun = stopped_in_a_walk(pins)
    with contextlib.suppress(Compacted, SnapshotExpired):
        assert reader.at(begun).counts["Task"] == FEW + 1


@pytest.mark.parametrize("durability", ["process", "memory"])
def test_a_difference_of_which_memory_goes_in_the_middle_is_told_by_the_journal(
    state, start_engine, monkeypatch, durability
):
    """Whoever asks for it holds no snapshot, and cannot take a new one."""
    start_engine(state, limits=Limits(**SMALL, snapshot_age_max_s=0.0), durability=durability)
    with connect(state) as client, open_reader(state) as reader:
        begin(client)
        begun, find, goes = reader.revision, reader.decoder.find, [True]

        def change(title):
            for number in range(FEW):
                client.update(Task.ref(f"t{number}"), title=title)

        def stopped(pin, kind, id):
            if goes:
                goes.clear()
                change("newest")
                turn_over(client, lambda: pin.view.root.readable_from > pin.root.last_segment)
            return find(pin, kind, id)

        change("newer")
        monkeypatch.setattr(reader.decoder, "find", stopped)
        is_told = contextlib.nullcontext() if durability == "process" else pytest.raises(Compacted, match="nothing is")
        with is_told:
            told = reader.diff(begun, begun + FEW)
            assert [(one.id, one.old.title, one.new.title) for one in told] == [
                (f"t{number}", "x", "newer") for number in range(FEW)
            ]


def test_a_slow_consumer_of_a_watch_reads_what_it_was_told(state, start_engine):
    """It takes up to 256 changes at once; while it works on the first ones, the memory of the others may go."""
    start_engine(state, limits=Limits(**SMALL, snapshot_age_max_s=0.0))
    with connect(state) as client, open_reader(state) as reader:
        begin(client)
        watch = reader.watch(since=0, timeout_s=0)
        assert next(watch).new.id == "t0"
        root = reader.snapshot().pin.view.root
        last = root.live_tail >> 32
        turn_over(client, lambda: root.readable_from > last)
        assert next(watch).new.id == "t1"


def stopping(reader, client, monkeypatch):
    """A reader that is stopped behind each of its next three pins, until the bytes of that are gone."""
    pin, goes = reader.pin, [True] * 3

    def stopped():
        made = pin()
        if goes:
            goes.pop()
            root, last = made.view.root, made.root.last_segment
            for number in range(FEW):
                client.update(Task.ref(f"t{number}"), description=f"{len(goes)}")
            turn_over(client, lambda: root.readable_from > last)
        return made

    monkeypatch.setattr(reader, "pin", stopped)
    return reader


IN_P = {"project": "p", "priority": "medium"}


def test_who_holds_no_snapshot_is_answered_also_where_he_was_stopped_in_his_look(state, start_engine, monkeypatch):
    """He cannot take a new one."""
    start_engine(state, limits=Limits(**SMALL, snapshot_age_max_s=0.0), durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        begin(client)
        assert stopping(reader, client, monkeypatch).get(Task, "t0").title == "x"
        reader = stopping(reader, client, monkeypatch)
        reader.wait_until_count(Task, IN_P, lambda count: count == FEW, timeout_s=20).close()

    async def main():
        async with aio.open_reader(state) as reader:
            stopping(reader.memory, client, monkeypatch)
            (await reader.wait_until_count(Task, IN_P, lambda count: count == FEW, timeout_s=20)).close()

    with connect(state) as client:
        asyncio.run(main())


def test_work_ends_in_order_also_where_it_was_stopped_in_its_look_whether_any_is_left(state, start_engine, monkeypatch):
    start_engine(state, limits=Limits(**SMALL, snapshot_age_max_s=0.0), durability="memory")
    with connect(state) as client, connect(state) as agent:
        begin(client)
        working = agent.work(Task, where=IN_P)
        for number in range(FEW):
            agent.complete(next(working), result=number)
        stopping(agent.reader, client, monkeypatch)
        assert list(working) == []


# --- engines that stop -----------------------------------------------------------------------------------------------


def test_a_watch_whose_engine_was_stopped_before_its_memory_was_mapped_outlives_that(state, start_engine):
    engine = start_engine(state, limits=Limits(**SMALL))
    with open_reader(state) as reader:
        watch = reader.watch(since=0, timeout_s=60)
        with connect(state) as client:
            begin(client)
            for number in range(20):
                large(client, number)
        engine.stop()
        starting = threading.Timer(0.5, start_engine, [state])
        starting.start()
        try:
            assert next(watch).id == "t0"
        finally:
            starting.join()


# --- pages -----------------------------------------------------------------------------------------------------------


def forget_all(client, ids):
    """Delete these, and write until nobody knows that any more."""
    root = client.reader.view().root
    for id in ids:
        client.delete(Task.ref(id))
    deleted = client.reader.revision
    number = 0
    while root.forgotten < deleted:
        number += 1
        large(client, number)


def test_a_page_is_refused_where_the_last_one_ended_at_what_was_forgotten_and_made_again(state, start_engine):
    start_engine(state, limits=Limits(**SMALL), durability="memory")
    with connect(state) as client:
        client.create(Task(title="x", id="large"))
        for number in range(20):
            client.create(Task(title="x", id=f"t{number}", project="p"))
        first = client.reader.snapshot().scan(Task, {"project": "p"}, limit=10)
        assert [task.id for task in first] == [f"t{number}" for number in range(10)]
        forget_all(client, ["t0", "t9"])
        client.create(Task(title="x", id="new", project="q"))
        client.create(Task(title="x", id="t9", project="p"))
        with pytest.raises(InvalidQuery, match="its place is forgotten"):
            client.reader.snapshot().ids(Task, {"project": "p"}, after=first[-1])
        client.update(Task.ref("t8"), title="y")
        there = client.reader.snapshot().ids(Task, {"project": "p"}, after=first[-2])
        assert there == [f"t{number}" for number in range(10, 20)]


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_a_page_is_refused_also_where_memory_lost_what_was_before(state, start_engine, durability, wait_until):
    engine = start_engine(state, limits=Limits(**SMALL, recent_bytes=8 * KIB), durability=durability)
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="large"))
        for number in range(20):
            client.create(Task(title="x", id=f"t{number}", project="p"))
        first = reader.snapshot().scan(Task, {"project": "p"}, limit=5)
        forget_all(client, ["t4"])
        client.create(Task(title="x", id="new", project="p"))
        client.update(client.create(Task(title="x", id="t4", project="p")), title="y")
        client.update(Task.ref("t2"), title="y")
        made = reader.revision
        for number in range(200, 400):
            large(client, number)
            if reader.snapshot().pin.root.oldest > made:
                break
        for start in range(1 if durability == "memory" else 2):
            if start:
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda: engine.restarts, 20, "a restart")
            with pytest.raises(InvalidQuery, match="its place is forgotten"):
                reader.snapshot().ids(Task, {"project": "p"}, after=first[4])
            there = reader.snapshot().ids(Task, {"project": "p"}, after=first[2])
            assert {"t3", *(f"t{number}" for number in range(5, 20))} <= set(there)


def test_a_page_goes_on_behind_what_was_changed_before_a_restart(state, start_engine, wait_until):
    """A start puts its newest record back without those before it; the journal says that it is the same one still."""
    engine = start_engine(state, limits=Limits(**SMALL, recent_bytes=8 * KIB))
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="large"))
        for number in range(20):
            client.create(Task(title="x", id=f"t{number}", project="p"))
        forget_all(client, ["t0"])
        page = reader.snapshot().scan(Task, {"project": "p"}, limit=8)
        client.update(page[-3], title="y")
        client.update(client.update(page[-2], title="y"), title="z")
        client.delete(client.update(page[-1], title="y"))
        for number in range(20):
            large(client, number)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts, 20, "a restart")
        for last in (3, 2, 1):
            behind = [f"t{number}" for number in range(10 - last, 20) if number != 8]
            assert reader.snapshot().ids(Task, {"project": "p"}, after=page[-last]) == behind


def test_a_page_neither_skips_nor_repeats_across_a_restart(state, start_engine):
    """The order of the slots is another one: keys were forgotten at other times."""
    engine = start_engine(state, limits=Limits(**SMALL))
    with connect(state) as client:
        client.create(Task(title="x", id="large"))
        for number in range(10):
            client.create(Task(title="x", id=f"t{number}", project="p"))
        forget_all(client, ["t0"])
        client.create(Task(title="x", id="late", project="p"))
        first = client.reader.snapshot().ids(Task, {"project": "p"}, limit=5)
        engine.stop()
        start_engine(state, limits=Limits(heap_segment_bytes_first=16 * MIB))
        second = client.reader.snapshot().ids(Task, {"project": "p"}, after=first[-1])
    assert sorted([*first, *second]) == sorted([*(f"t{number}" for number in range(1, 10)), "late"])


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [int, 5, None], ids=str)
def test_what_is_no_entity_and_no_model_is_a_type_error_wherever_it_is_given(state, start_engine, wrong):
    start_engine(state)
    with connect(state) as client, client.reader.snapshot() as snap:
        for call in (
            lambda: client.create(wrong),
            lambda: client.update(wrong, title="x"),
            lambda: client.get(wrong, "a"),
            lambda: client.hold(wrong),
            lambda: client.claim(wrong),
            lambda: list(client.work(wrong)),
            lambda: client.submit(Delete(Task.ref("a")), guards=[RequireNone(wrong, {"status": "created"})]),
            lambda: client.submit(Delete(Task.ref("a")), guards=[Require(wrong)]),
            lambda: snap[wrong, "a"],
            lambda: list(snap.entities(wrong)),
            lambda: snap.scan(wrong),
            lambda: snap.count(wrong),
            lambda: client.reader.wait_until(wrong, "a", bool, timeout_s=0),
            lambda: list(client.reader.history(wrong, "a")),
        ):
            with pytest.raises(TypeError, match=re.escape(repr(wrong))):
                call()


def test_a_kind_to_claim_or_to_write_to_is_a_class_and_no_name(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        ref = Ref("Task", client.create(Task(title="x")).id)
        for call in (
            lambda: client.claim("Task"),
            lambda: client.update(ref, title="y"),
            lambda: client.apply(ref, lambda task: {"title": "y"}),
        ):
            with pytest.raises(TypeError, match=r"^'Task' is not a subclass of solewriter\.Entity$"):
                call()


@pytest.mark.parametrize("wrong", [["status"], "status"], ids=str)
def test_what_is_no_mapping_is_no_where(state, start_engine, wrong):
    start_engine(state)
    with connect(state) as client, client.reader.snapshot() as snap:
        for call in (
            lambda: snap.ids(Task, wrong),
            lambda: snap.count_by(Task, "status", wrong),
            lambda: client.reader.watch(Task, where=wrong),
            lambda: client.claim(Task, where=wrong),
            lambda: client.update(Task.ref("a"), title="x", where=wrong),
            lambda: client.submit(Delete(Task.ref("a")), guards=[RequireNone(Task, wrong)]),
        ):
            with pytest.raises(TypeError, match=f"where is a mapping.*not {re.escape(repr(wrong))}$"):
                call()


def test_two_classes_of_one_kind_registered_at_once_are_one_kind(state, start_engine):
    class One(Entity, kind="Doc"):
        title: str = ""

    class Two(Entity, kind="Doc"):
        title: str = ""
        level: int = 0

    engine = start_engine(state)
    engine.register(One, Two)
    with connect(state) as client, open_reader(state) as reader:
        client.create(Two(id="d", level=2))
        assert [*reader.snapshot().counts].count("Doc") == 1
        assert reader.get("Doc", "d")["level"] == 2


@pytest.mark.parametrize("verb", ["update", "transition", "alter", "complete", "fail"])
def test_what_is_no_mapping_is_no_changes_and_the_error_says_what_a_target_is(state, start_engine, verb):
    start_engine(state)
    to = ["assigned"] if verb == "transition" else []
    said = r"are a mapping, by the names of fields, not 'a': a target is an entity or a Ref, such as Task.ref\(id\)"

    async def awaited():
        async with aio.connect(state) as client:
            await getattr(client, verb)(Task, *to, "a", cost=2)

    with connect(state) as client, client.transaction() as tx:
        for verbs in (client, tx):
            with pytest.raises(TypeError, match=said):
                getattr(verbs, verb)(Task, *to, "a", cost=2)
    with pytest.raises(TypeError, match=said):
        asyncio.run(awaited())


@pytest.mark.parametrize(
    "wish",
    [
        lambda ref: Update(ref, "a"),
        lambda ref: Transition(ref, "assigned", "a"),
        lambda ref: Alter(ref, "a"),
        lambda ref: Complete(ref, "a"),
        lambda ref: Fail(ref, "a"),
    ],
)
def test_a_mutation_whose_changes_are_no_mapping_is_none_and_says_so(state, start_engine, wish):
    start_engine(state)
    told = []
    with connect(state) as client:
        task = client.create(Task(title="t"))
        with pytest.raises(TypeError, match="changes are a mapping, by the names of fields, not 'a'"):
            client.submit(wish(task))
        with pytest.raises(TypeError, match="changes are a mapping, by the names of fields, not 'a'"):
            told.extend(client.submit_many([*(Create(Task(title="x")) for _ in range(FRAME_BATCH)), wish(task)]))
    assert len(told) == FRAME_BATCH


@pytest.mark.parametrize("huge", [10**5000, -(10**5000)], ids=["huge", "negative"])
def test_an_integer_of_more_digits_than_can_be_written_is_refused_like_any_other(state, start_engine, huge):
    """Its `repr` is a ValueError, sys.set_int_max_str_digits says."""
    start_engine(state)
    with connect(state) as client:
        task = client.create(Task(id="a", title="a"))
        reader, snap = client.reader, client.reader.snapshot()
        for call, error in (
            (lambda: client.update(task, title="b", expect=huge), InvalidMutation),
            (lambda: client.submit(Update(task, {"title": "b"}, expect=huge)), InvalidMutation),
            (lambda: client.update(task, title="b", reason=huge), InvalidMutation),
            (lambda: client.update(task, title="b", request_id=huge), InvalidMutation),
            (lambda: client.update(task, {huge: "b"}), InvalidMutation),
            (lambda: client.update(task, title="b", deadline_s=huge), InvalidMutation),
            (lambda: client.transition(task, huge), InvalidMutation),
            (lambda: client.claim_many(Task, huge), InvalidMutation),
            (lambda: client.claim(Task, lease_s=huge), InvalidMutation),
            (lambda: client.claim(Task, assignee=huge), InvalidMutation),
            (lambda: client.renew(task, huge), InvalidMutation),
            (lambda: client.alter(task, reviewers=Append("x", most=huge)), InvalidMutation),
            (lambda: client.outcome(huge), InvalidMutation),
            (lambda: reader.at(huge), InvalidQuery),
            (lambda: reader.diff(0, huge), InvalidQuery),
            (lambda: reader.diff(huge, 1), InvalidQuery),
            (lambda: snap.count(Task, {"version": huge}), InvalidQuery),
            (lambda: snap.scan(Task, {"version": Range(ge=huge)}), InvalidQuery),
            (lambda: snap.get(Task, huge), TypeError),
            (lambda: client.update(huge, title="b"), TypeError),
        ):
            with pytest.raises(error) as refused:
                call()
            assert "digits" not in str(refused.value)
        if huge > 0:
            with pytest.raises(TimeoutError, match="was not published"):
                reader.wait_for(huge, timeout_s=0)
            with pytest.raises(Compacted, match="there is no revision"):
                list(reader.watch(since=huge, timeout_s=0))
        else:
            with pytest.raises(InvalidQuery, match="limit is a number of entities"):
                snap.scan(Task, limit=huge)
        assert client.get(Task, "a") == task


@pytest.mark.parametrize("wrong", [None, 7, b"state", "", "a\0b"], ids=repr)
def test_what_names_no_folder_is_told_at_the_call(wrong: Any, tmp_path, monkeypatch):
    """pathlib takes an empty name for the current folder: an engine would begin there."""
    monkeypatch.chdir(tmp_path)

    async def awaited(opening):
        await opening(wrong)

    said = "a state is the path of a folder"
    for opening in (Engine, connect, open_reader, partial(open_reader, offline=True), status_of):
        with pytest.raises((TypeError, ValueError), match=said):
            opening(wrong)
    for opening in (aio.connect, aio.open_reader):
        with pytest.raises((TypeError, ValueError), match=said):
            asyncio.run(awaited(opening))
    assert not [*tmp_path.iterdir()]


def test_bounds_are_limits_and_no_dict(state, start_engine):
    start_engine(state)
    given: Any = {"window_max": 64}

    async def awaited(opening):
        await opening(state, limits=given)

    said = r"limits are Limits\(\.\.\.\), such as Limits\(window_max=64\), not {'window_max': 64}"
    for opening in (Engine, connect, open_reader, partial(open_reader, offline=True)):
        with pytest.raises(TypeError, match=said):
            opening(state, limits=given)
    for opening in (aio.connect, aio.open_reader):
        with pytest.raises(TypeError, match=said):
            asyncio.run(awaited(opening))


@pytest.mark.parametrize("name", ["engine_headroom_bytes", "lane_read_bytes"])
def test_a_bound_of_bytes_without_an_end_is_one(state, start_engine, name):
    start_engine(state, limits=Limits(**{name: sys.maxsize}))
    with connect(state) as client:
        assert client.create(Task(title="x")).version == 1


def test_revisions_and_ids_of_another_type_are_refused_wherever_they_are_read(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        task = client.create(Task(id="a", title="a"))
        reader = client.reader
        for wrong in (1.5, "1", True):
            for read in (
                partial(reader.at, wrong),
                partial(reader.diff, 0, wrong),
                partial(reader.diff, wrong, 1),
                partial(reader.watch, since=wrong),
                partial(reader.wait_for, wrong, timeout_s=0),
            ):
                with pytest.raises(TypeError, match=f"a revision is an int, not {wrong!r}"):
                    read()
        for wrong in (5, None, b"a"):
            for read in (
                partial(reader.get, Task, wrong),
                partial(reader.get, "Task", wrong),
                partial(reader.at(0).get, Task, wrong),
                lambda wrong=wrong: list(reader.history(Task, wrong)),
                partial(reader.wait_until, Task, wrong, bool, timeout_s=0),
            ):
                with pytest.raises(TypeError, match=f"an id is a str, not {wrong!r}"):
                    read()
        assert reader.at(reader.revision).get(Task, "a") == task

    async def awaited():
        async with aio.open_reader(state) as other:
            with pytest.raises(TypeError, match="a revision is an int"):
                await other.wait_for(1.5)
            with pytest.raises(TypeError, match="a revision is an int"):
                await anext(other.watch(since=1.5))
            with pytest.raises(TypeError, match="an id is a str"):
                await other.get(Task, 5)

    asyncio.run(awaited())


def test_a_list_of_nothing_is_no_request(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        (reply,) = client.submit_many([[]])
        with pytest.raises(InvalidMutation, match="a request is of one mutation or guard at least"):
            reply.check()
        with pytest.raises(InvalidMutation, match="a request is of one mutation or guard at least"):
            client.submit()


@pytest.mark.parametrize("option", ["name", "client_id"])
def test_a_name_that_nothing_can_encode_is_refused_as_that(state, start_engine, option):
    start_engine(state)
    with pytest.raises(ValueError, match=r"name and client_id are text that UTF-8 can encode, not .*ud800"):
        connect(state, **{option: "\ud800"})


def a_doc(place: str, **fields: type) -> type[Entity]:
    made: dict[str, Any] = {name: (one, one()) for name, one in fields.items()}
    model = create_model("Doc", __base__=Entity, __module__="shop", **made)
    model.__qualname__ = place
    return model


def test_two_classes_of_one_kind_and_other_shapes_are_refused_where_they_are_listed(state):
    one, two = a_doc("One", title=str), a_doc("Two", title=str, level=int)
    with pytest.raises(TypeError, match=r"shop\.One and shop\.Two are both the kind 'Doc'"):
        Engine(state, models=[one, two])


def test_a_class_that_was_defined_again_takes_the_place_of_the_one_before_in_a_list_too(state, start_engine):
    """As notebooks do it; and the same class from a script and from a package is one kind."""
    before, again = a_doc("Doc", title=str), a_doc("Doc", title=str, level=int)
    elsewhere = a_doc("elsewhere.Doc", title=str, level=int)
    start_engine(state, models=[before, again, elsewhere, Task, Task])
    with connect(state) as client:
        assert client.create(again(id="d", level=2)).level == 2


def test_a_value_that_fits_no_column_is_refused_at_start_as_it_is_when_registered(state, start_engine):
    class Before(Entity, kind="Doc"):
        size: int

    class After(Entity, kind="Doc", columns=("size",)):
        size: int

    engine = start_engine(state, models=[Before])
    with connect(state) as client:
        client.create(Before(id="d", size=2**63))
    with pytest.raises(Exception, match="size"):
        engine.register(After)
    engine.stop()
    with pytest.raises(Exception, match="size"):
        start_engine(state, models=[After])


# --- other processes -------------------------------------------------------------------------------------------------

HANDING_ON = """
import multiprocessing, sys
from solewriter import AlreadyExists, Create, Delete, Entity, Task, Update, connect, open_reader

class Note(Entity):
    text: str = ""

def of(reply):
    return reply.request_id, reply.revision, reply.applied, reply.results, reply.entities if reply.applied else ()

def asked(state, known):
    with connect(state) as client:
        twice = Create(Note(id="b", text="2")), Update(Note.ref("a"), {"text": "3"})
        replies = [client.submit(*twice, request_id="mine"), client.submit(Create(Note(id="a", text="x")))]
        replies += [client.submit(Delete(Note.ref("a"))), client.outcome("mine").reply, *known]
    return replies, list(map(of, replies))

def told(change):
    return [getattr(change, name) for name in (
        "kind", "id", "mutation", "revision", "version", "time", "actor", "reason", "request_id", "new", "old")]

def tell(changes, said):
    for change in iter(changes.get, None):
        said.put((change, told(change), repr(change)))

if __name__ == "__main__":
    processes, state = multiprocessing.get_context("spawn"), sys.argv[1]
    with connect(state, name="crawler") as client, open_reader(state) as reader:
        first = client.submit(Create(Note(id="a", text="1"), reason="new"))
        with processes.Pool(1) as pool:
            replies, there = pool.apply(asked, (state, [first]))
        assert list(map(of, replies)) == there
        assert replies[0].entities == (Note(id="b", text="2", version=1), Note(id="a", text="3", version=2))
        assert (replies[0].request_id, replies[0].entity) == ("mine", replies[3].entity)
        assert isinstance(replies[1].error, AlreadyExists) and replies[1].error.current == replies[0].entities[1]
        assert (replies[2].entity, replies[4].entity) == (None, first.entity)
        changes, said = processes.Queue(), processes.Queue()
        telling = processes.Process(target=tell, args=(changes, said))
        telling.start()
        seen = [*reader.watch(Note, since=0, timeout_s=0), *reader.watch("Note", since=0, timeout_s=0)]
        for change in [*seen, None]:
            changes.put(change)
        for change in seen:
            again, there, shown = said.get(timeout=30)
            assert (told(again), repr(again)) == (told(change), repr(change)) == (there, shown)
        telling.join()
    print([(change.id, change.mutation, change.old and change.old.text) for change in seen[:4]])
"""


def test_replies_and_changes_are_handed_on_to_other_processes(state, start_engine, tmp_path):
    """What is in them then is what the process that has the memory finds there."""
    program = tmp_path / "handing_on.py"
    program.write_text(HANDING_ON)
    start_engine(state, models=[Note])
    ran = subprocess.run([sys.executable, program, state], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert ran.stdout == "[('a', 'create', None), ('b', 'create', None), ('a', 'update', '1'), ('a', 'delete', '3')]\n"


# --- the rest --------------------------------------------------------------------------------------------------------


def test_waiting_for_an_entity_of_a_kind_given_by_name_ends_in_time(engine, client, reader):
    with pytest.raises(TimeoutError):
        reader.wait_until("Task", "t", lambda task: task is not None, timeout_s=0.01)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_functions_that_have_to_be_awaited_are_refused_where_nobody_awaits_them(engine, client, reader):
    async def answer(_):
        return None

    task = client.create(Task(title="x"))
    for call in (lambda: reader.wait_until(Task, task.id, answer), lambda: client.apply(task, answer)):
        with pytest.raises(TypeError, match="coroutine"):
            call()


def test_a_call_near_the_end_of_a_users_recursion_is_a_recursion_error(engine, client):
    """Whatever of it finds no room any more; and the next one goes on."""

    def below(depth, call):
        return below(depth - 1, call) if depth else call()

    def read():
        with open_reader(engine.state) as reader:
            return reader.get(Task, "t")

    asked = Update(Task.ref("none"), {"title": "x"})
    told = set()
    for call in (lambda: client.submit(asked), read):
        for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit()):
            try:
                below(depth, call)
            except Exception as error:
                told.add(type(error))
    assert told == {RecursionError}
    assert isinstance(client.submit(asked).error, NotFound)


def test_registering_the_same_again_takes_no_memory(state, start_engine, limits):
    engine = start_engine(state, models=[Note])
    memory = engine.folder.whereabouts()
    before = len([*Path(memory.memory_dir).glob(f"{memory.prefix}-catalog-*")])
    for _ in range(5):
        engine.register(Note)
    assert len([*Path(memory.memory_dir).glob(f"{memory.prefix}-catalog-*")]) == before


@pytest.mark.heavy
def test_a_reader_that_looks_back_now_and_then_does_not_keep_what_the_log_of_revisions_left_out(
    state, start_engine, monkeypatch
):
    """Nobody else sees that memory, and nobody takes it away."""
    start_engine(state, limits=Limits(**SMALL), durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        begin(client)
        root = reader.view().root
        number = 0
        while root.current().log_first < 3:
            for _ in range(200):
                number += 1
                client.submit(Update(Task.ref("large"), {"description": f"{number}" + "d" * 4_000})).check()
            with contextlib.suppress(Compacted):
                reader.at(reader.revision - 1)
        maps = Path("/proc/self/maps").read_text().splitlines()
        prefix = reader.view().prefix
        kept = [line for line in maps if f"{prefix}-revlog" in line and "(deleted)" in line]
    assert len(kept) <= 1
