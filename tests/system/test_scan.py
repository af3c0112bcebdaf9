"""Scans are exactly right at their revision: against plain Python over the same entities, under a writer at work."""

from __future__ import annotations

import datetime
import enum
import gc
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import AliasChoices, ConfigDict, Field, StringConstraints

from solewriter import (
    Create,
    Delete,
    Entity,
    InvalidQuery,
    Limits,
    Range,
    SchemaMismatch,
    Snapshot,
    Task,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.reading.conditions import Condition
from solewriter.agents.reading.scan import CellsOfRecords, _meets
from solewriter.shared.config import CHUNK_SLOTS, DECODED_AT_ONCE
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.record import Record


class Mood(enum.Enum):
    CALM = 1
    BUSY = 2


class Probe(Entity, columns=("level", "ratio", "when", "place", "mood", "size", "on")):
    level: int | None = None
    ratio: float | None = None
    when: datetime.datetime | None = None
    place: str | None = None
    mood: Mood | None = None
    size: Literal["s", "m", "l"] = "m"
    on: bool | None = None


DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
VALUES = {
    "level": [None, -5, 0, 1, 2, 3, 2**62],
    "ratio": [None, -1.5, 0.0, -0.0, 1e-300, 2.5],
    "when": [None, *(DAY + datetime.timedelta(microseconds=n) for n in range(4))],
    "place": [None, "", "here", "there", "\u00e9", "x" * 300],
    "mood": [None, Mood.CALM, Mood.BUSY],
    "size": ["s", "m", "l"],
    "on": [None, False, True],
}
ORDERED = ("level", "ratio", "when")


def a_probe(dice: random.Random, id: str) -> Probe:
    return Probe(id=id, **{name: dice.choice(values) for name, values in VALUES.items()})


def a_change(dice: random.Random, number: int):
    target = Probe.ref(f"p{dice.randrange(number)}")
    if dice.random() < 0.15:
        return Delete(target)
    name = dice.choice(list(VALUES))
    return Update(target, {name: dice.choice(VALUES[name])})


def a_filter(dice: random.Random) -> dict[str, object]:
    wanted: dict[str, object] = {}
    for name in dice.sample(list(VALUES), dice.randrange(0, 4)):
        match dice.randrange(3):
            case 0:
                wanted[name] = dice.choice(VALUES[name])
            case 1:
                wanted[name] = dice.sample(VALUES[name], 2)
            case 2 if name in ORDERED:
                bounds = dice.sample(["ge", "gt", "le", "lt"], dice.randrange(1, 3))
                wanted[name] = Range(**{bound: dice.choice(VALUES[name][1:]) for bound in bounds})
    return wanted


def meets(probe: Probe, name: str, wanted: object) -> bool:
    value = getattr(probe, name)
    if isinstance(wanted, Range):
        return value is not None and all(
            bound is None or compare(value, bound)
            for bound, compare in [
                (wanted.ge, lambda a, b: a >= b),
                (wanted.gt, lambda a, b: a > b),
                (wanted.le, lambda a, b: a <= b),
                (wanted.lt, lambda a, b: a < b),
            ]
        )
    return value in wanted if isinstance(wanted, list) else value == wanted


def plain_scan(entities: list[Probe], where: dict[str, object], order_by: str | None) -> list[Probe]:
    found = [one for one in entities if all(meets(one, name, wanted) for name, wanted in where.items())]
    if order_by is None:
        return found
    name, descending = order_by.removeprefix("-"), order_by.startswith("-")
    present = [one for one in found if getattr(one, name) is not None]
    absent = [one for one in found if getattr(one, name) is None]
    last = name == "ratio"  # NaN stands for None there, and comes last in both directions
    ranked = sorted(present, key=lambda one: rank(getattr(one, name)), reverse=descending)
    if descending:  # equal ones stay in the order of their creation
        ranked = [one for key in dict.fromkeys(rank(getattr(one, name)) for one in ranked)
                  for one in present if rank(getattr(one, name)) == key]  # fmt: skip
    return [*ranked, *absent] if last or descending else [*absent, *ranked]


def rank(value):
    return value.value if isinstance(value, Mood) else value


@pytest.mark.parametrize(
    "seed",
    [0, pytest.param(1, marks=pytest.mark.heavy), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 12))],
)
def test_a_scan_is_what_plain_python_finds_at_that_revision(state, start_engine, seed):
    dice = random.Random(seed)
    engine = start_engine(state, models=[Probe])
    with connect(state) as client, open_reader(state) as reader:
        for reply in client.submit_many(Create(a_probe(dice, f"p{number}")) for number in range(300)):
            reply.check()
        held = []
        for _ in range(6):
            held.append(reader.snapshot())
            list(client.submit_many(a_change(dice, 320) for _ in range(150)))
            for reply in client.submit_many(Create(a_probe(dice, f"p{300 + len(held)}")) for _ in range(1)):
                reply.check()
        for snap in held:
            entities = list(snap.entities(Probe))
            for _ in range(25):
                where = a_filter(dice)
                order_by = dice.choice([None, "level", "-level", "ratio", "-ratio", "when", "-when", "-place", "place"])
                if order_by is not None and "place" in order_by:
                    expected = plain_scan(entities, where, None)
                    expected.sort(key=lambda one: one.place or "")
                    if order_by.startswith("-"):
                        expected = [one for text in sorted({one.place or "" for one in expected}, reverse=True)
                                    for one in expected if (one.place or "") == text]  # fmt: skip
                else:
                    expected = plain_scan(entities, where, order_by)
                assert snap.scan(Probe, where, order_by=order_by) == expected, (seed, where, order_by)
                assert snap.count(Probe, where) == len(expected)
                limit = dice.randrange(0, 40)
                assert snap.ids(Probe, where, order_by=order_by, limit=limit) == [one.id for one in expected][:limit]
                if expected:
                    place = dice.randrange(len(expected))
                    page = snap.scan(Probe, where, order_by=order_by, limit=7, after=expected[place])
                    assert page == expected[place + 1 : place + 8], (seed, where, order_by, expected[place])
                for name in ("mood", "place", "level", "on"):
                    counted = snap.count_by(Probe, name, where)
                    values = [getattr(one, name) for one in expected]
                    assert counted == {value: values.count(value) for value in values}
    assert engine.restarts == 0


def test_columns_are_arrays_in_the_order_of_ids(state, start_engine):
    start_engine(state, models=[Probe])
    with connect(state) as client:
        client.create(Probe(id="a", level=1, ratio=0.5, when=DAY, place="x", mood=Mood.BUSY, on=True))
        client.create(Probe(id="b"))
        snap = client.reader.snapshot()
        columns = snap.columns(Probe)
        assert snap.ids(Probe) == ["a", "b"]
        assert columns["level"].tolist() == [1, None]
        assert columns["ratio"].tolist()[0] == 0.5
        assert np.isnan(columns["ratio"][1])
        assert columns["when"][0] == np.datetime64(DAY.replace(tzinfo=None), "us")
        assert np.isnat(columns["when"][1])
        assert columns["place"].tolist() == ["x", None]
        assert columns["mood"].tolist() == [2, None]
        assert columns["on"].tolist() == [True, None]
        assert snap.columns(Probe, {"level": 1})["level"].dtype == np.int64
        assert snap.columns(Probe, {"level": 1})["on"].dtype == np.bool_


class Named(Entity, columns=("id", "level")):
    level: int = 0


def test_an_id_that_is_a_column_stays_what_it_is_when_its_entity_is_replaced(state, start_engine):
    engine = start_engine(state, models=[Named])

    def check(snap):
        assert snap.columns(Named)["id"].tolist() == ["a", "b"]
        assert snap.ids(Named, {"id": ["a", "b"]}, order_by="-id") == ["b", "a"]
        assert snap.count(Named, {"id": None}) == 0

    with connect(state) as client, open_reader(state) as reader:
        client.create(Named(id="a"))
        client.create(Named(id="b"))
        client.put(Named(id="a", level=1))
        with client.transaction() as tx:
            tx.delete(Named.ref("b"))
            tx.create(Named(id="b", level=2))
        check(reader.snapshot())
        client.update(Named.ref("a"), level=3)
        check(reader.snapshot())
    engine.stop()
    start_engine(state, models=[Named])
    with open_reader(state) as reader:
        check(reader.snapshot())


def test_counts_are_told_by_values_as_the_model_has_them(state, start_engine):
    start_engine(state, models=[Probe])
    with connect(state) as client:
        for number in range(4):
            client.create(Probe(level=number or None, ratio=number / 2 or None, when=DAY if number else None))
        snap = client.reader.snapshot()
        assert snap.count_by(Probe, "level") == {None: 1, 1: 1, 2: 1, 3: 1}
        assert snap.count_by(Probe, "ratio") == {None: 1, 0.5: 1, 1.0: 1, 1.5: 1}
        assert snap.count_by(Probe, "when") == {None: 1, DAY: 3}, "times know their zone"
        assert [next(iter(snap.count_by(Probe, name))) for name in ("level", "ratio", "when")] == [None, 0.5, None]


class Tagged(Entity, columns=("area", "owner")):
    area: str = ""
    owner: str | None = None


def test_an_empty_text_is_counted_as_one_and_none_as_none(state, start_engine):
    """As `where` has it, so that each of these counts can be asked for."""
    start_engine(state, models=[Tagged])
    with connect(state) as client:
        for area, owner in (("", ""), ("", None), ("", None), ("web", "ann")):
            client.create(Tagged(area=area, owner=owner))
        snap = client.reader.snapshot()
        for kind in (Tagged, "Tagged"):
            assert snap.count_by(kind, "area") == {"": 3, "web": 1}
            assert list(snap.count_by(kind, "owner").items()) == [(None, 2), ("", 1), ("ann", 1)]
            assert list(snap.count_by(kind, "owner", {"area": ""}).items()) == [(None, 2), ("", 1)]
            for owner, count in snap.count_by(kind, "owner").items():
                assert snap.count(kind, {"owner": owner}) == count
            assert snap.count_by(kind, "owner", {"area": "nowhere"}) == {}


class Written(Entity, kind="Doc", columns=("title",)):
    title: str
    level: float = 1.0


class Columned(Entity, kind="Doc", columns=("level", "title", "note")):
    title: str
    level: float = 3.0
    note: str = "none"


def test_a_bound_of_a_float_column_may_be_an_int(state, start_engine):
    class Weighed(Entity, kind="Weighed", columns=("weight",)):
        weight: float | None = None

    weights = [0.0, 0.25, 1.0, 1.5, 2.0**53 + 2, None]
    start_engine(state, models=[Weighed])
    with connect(state) as client, open_reader(state) as reader:
        for number, weight in enumerate(weights):
            client.create(Weighed(id=f"w{number}", weight=weight))
        snap = reader.snapshot()
        client.update(Weighed.ref("w1"), weight=9.0)  # looked up singly from now on
        for wanted, found in (
            (Range(gt=0), [0.25, 1.0, 1.5, 2.0**53 + 2]),
            (Range(lt=1), [0.0, 0.25]),
            (Range(ge=1, lt=2), [1.0, 1.5]),
            (Range(gt=2**53 + 1), [2.0**53 + 2]),
            (1, [1.0]),
            (Range(), [0.0, 0.25, 1.0, 1.5, 2.0**53 + 2]),
        ):
            assert [one.weight for one in snap.scan(Weighed, {"weight": wanted})] == found


def test_what_was_written_before_a_column_was_declared_is_found_by_it(state, start_engine):
    """By the table, and record by record where a snapshot is older than what is stored."""
    engine = start_engine(state, models=[Written])
    with connect(state) as client, open_reader(state) as reader:
        for number in range(4):
            client.create(Written(id=f"d{number}", title="x", **({"level": 2.0} if number % 2 else {})))
        engine.register(Columned)
        snap = reader.snapshot()
        for _ in range(2):
            assert snap.ids(Columned, {"level": 1.0}) == ["d0", "d2"]
            assert snap.ids(Columned, {"level": 2.0, "title": "x"}) == ["d1", "d3"]
            assert snap.count_by(Columned, "level") == {1.0: 2, 2.0: 2}
            assert snap.count("Doc", {"level": Range(gt=2)}) == 0
            with connect(state) as other:
                for number in range(4):
                    other.update(Columned.ref(f"d{number}"), level=9.0)
        assert reader.snapshot().count(Columned, {"level": 9.0}) == 4


class Owned(Entity, kind="Book", columns=("owner",)):
    owner: str = ""


class Spoken(Entity, kind="Book", columns=("owner", "lang", "weight")):
    """The same with two fields that are new."""

    owner: str = ""
    lang: str = "en"
    weight: float = 0.5


def test_an_entity_has_a_new_columns_default_by_the_table_and_record_by_record(state, start_engine):
    engine = start_engine(state, durability="process", models=[Owned])
    with connect(state) as client, open_reader(state) as reader:
        for number in range(4):
            client.create(Owned(id=f"b{number}"))
        engine.register(Spoken)
        snap = reader.snapshot()
        assert snap.count(Spoken, {"lang": "en"}) == 4
        with connect(state) as other:
            other.update(Spoken.ref("b0"), owner="ann")
            other.update(Spoken.ref("b1"), lang="de")
        offline = open_reader(state, offline=True)
        watched = reader.watch(Spoken, where={"lang": "en"}, since=snap.revision, timeout_s=0)
        assert [change.id for change in watched] == ["b0", "b1"], "b1 was in the filter before"
        for earlier in (snap, reader.at(snap.revision), offline.at(snap.revision)):
            assert earlier.count(Spoken, {"lang": "en"}) == earlier.count("Book", {"weight": 0.5}) == 4
            assert earlier.ids(Spoken, {"lang": None}) == []
            assert earlier.count_by(Spoken, "lang") == {"en": 4}
            assert earlier.ids(Spoken, order_by="-lang") == ["b0", "b1", "b2", "b3"]
            assert set(earlier.columns(Spoken)["lang"]) == {"en"}
        for now in (reader.snapshot(), offline.snapshot()):
            assert now.count_by(Spoken, "lang") == {"de": 1, "en": 3}
        offline.close()


class Remark(Entity, columns=("mood",)):
    mood: Annotated[str, StringConstraints(to_lower=True)] = "N/A"  # which pydantic leaves as it is


def test_a_default_that_its_field_would_make_another_text_of_is_counted_and_paged_as_it_is(client, shared_engine):
    shared_engine.register(Remark)
    for number, given in enumerate([{}, {}, {"mood": "a"}, {"mood": "Zz"}]):
        client.create(Remark(id=f"r{number}", **given))
    with client.reader.snapshot() as snap:
        assert snap.count_by(Remark, "mood") == {"N/A": 2, "a": 1, "zz": 1}
        assert snap.columns(Remark)["mood"].tolist() == [one.mood for one in snap.entities(Remark)]
        for order_by, ids in ("mood", ["r0", "r1", "r2", "r3"]), ("-mood", ["r3", "r2", "r0", "r1"]):
            assert snap.ids(Remark, order_by=order_by) == ids
            for place, id in enumerate(ids):
                assert snap.ids(Remark, order_by=order_by, after=snap[Remark, id]) == ids[place + 1 :]


class Kept(Entity, kind="Book", columns=("keeper", "lang")):
    """The same with a field that has another name."""

    model_config = ConfigDict(populate_by_name=True)
    keeper: str = Field("", validation_alias=AliasChoices("keeper", "owner"))
    lang: str = "en"


@pytest.mark.parametrize("order_by", ["keeper", "-keeper", "lang"])
@pytest.mark.parametrize("kind", ["Book", Owned])
def test_a_page_goes_on_behind_what_is_older_than_a_column_or_its_name(state, start_engine, kind, order_by):
    engine = start_engine(state, models=[Owned])
    with connect(state) as client, open_reader(state) as reader:
        for number in range(6):
            client.create(Owned(id=f"b{number}", owner=f"o{number // 2}"))
        page = reader.snapshot().scan(kind)
        engine.register(Kept)
        there = reader.snapshot().ids("Book", order_by=order_by)
        for last in page:
            behind = reader.snapshot().ids("Book", order_by=order_by, after=last)
            assert behind == there[there.index(last["id"] if kind == "Book" else last.id) + 1 :]


def test_a_table_that_was_replaced_is_let_go_with_the_snapshots_that_had_it(state, start_engine):
    engine = start_engine(state, models=[Owned])
    with connect(state) as client, open_reader(state) as reader:

        def tables() -> set[str]:
            maps = Path("/proc/self/maps").read_text().splitlines()
            return {line.split("/")[-1] for line in maps if f"{reader.view().prefix}-table-{code}-" in line}

        client.create(Owned(id="b"))
        snap = reader.snapshot()
        code = snap.pin.catalog.kind_code("Book")
        assert snap.ids("Book") == ["b"]
        for model in (Spoken, Kept, Owned, Spoken):
            engine.register(model)
            assert reader.snapshot().ids("Book") == ["b"]
        assert snap.ids("Book", {"owner": ""}) == ["b"]
        assert len(tables()) == 2
        del snap
        assert len(tables()) == 1


class Calm(Entity, kind="Moody", columns=("mood",)):
    mood: Literal["calm"] = "calm"


class Moody(Entity, kind="Moody", columns=("mood",)):
    mood: Literal["calm", "busy"] = "calm"


class Moods(enum.Enum):
    CALM = "calm"


class Enumerated(Entity, kind="Moody", columns=("mood",)):
    mood: Moods = Moods.CALM


@pytest.mark.parametrize("older", [Calm, Enumerated])
def test_a_class_that_lacks_a_value_is_told_so_by_every_read(state, start_engine, older):
    start_engine(state, models=[Moody])
    with connect(state) as client, open_reader(state) as reader:
        client.create(Moody(id="m", mood="busy"))
        snap = reader.snapshot()
        for look in (lambda: snap.get(older, "m"), lambda: snap.scan(older), lambda: snap.count_by(older, "mood")):
            with pytest.raises(SchemaMismatch, match="mood"):
                look()
        assert snap.count_by("Moody", "mood") == {"busy": 1}


def test_an_engine_without_the_class_follows_its_columns(state, start_engine):
    engine = start_engine(state, models=[Written])
    with connect(state) as client:
        client.create(Written(id="old", title="x", level=2.0))
        client.delete(client.create(Written(id="gone", title="x")))
        engine.register(Columned)
    with connect(state) as client:
        client.create(Columned(id="new", title="y", level=2.0))
    engine.stop()
    start_engine(state)
    with open_reader(state) as reader:
        snap = reader.snapshot()
        assert [one["id"] for one in snap.scan("Doc", {"level": 2.0})] == ["old", "new"]
        assert snap.count_by("Doc", "note") == {"none": 2}, "as the class has it"
        assert snap.ids(Columned, {"title": "y"}) == ["new"]


def test_a_class_that_only_overtaken_records_do_not_fit_is_taken(state, start_engine):
    """What is stored fits it; that something else was there before is history."""

    class Before(Entity, kind="Doc", columns=("title",)):
        title: str | None = None
        level: float | None = None

    class After(Entity, kind="Doc", columns=("title", "level")):
        title: str
        level: float

    engine = start_engine(state, models=[Before])
    with connect(state) as client:
        made = client.create(Before(id="d"))
        client.update(made, title="x", level=2.0)
    engine.stop()
    start_engine(state, models=[After])
    with open_reader(state) as reader:
        assert reader.snapshot().scan(After, {"level": 2.0, "title": "x"}) == [
            After(id="d", version=2, title="x", level=2.0)
        ]


def test_what_cannot_be_asked_is_refused_with_what_can(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        snap = client.reader.snapshot()
        for wrong, match in [
            (lambda: snap.scan(Task, {"title": "x"}), "columns: status, priority"),
            (lambda: snap.scan(Task, order_by="title"), "columns: status"),
            (lambda: snap.count_by(Task, "metadata"), "no declared column"),
            (lambda: snap.scan(Task, {"status": "nope"}), "one of 'created'"),
            (lambda: snap.scan(Task, {"version": "1"}), "is an int, never '1'"),
            (lambda: snap.scan(Task, {"status": {"ge": "created"}}), "one of 'created'"),
            (lambda: snap.scan(Task, {"created_at": datetime.datetime(2026, 1, 1)}), "time with a time zone, never"),
            (lambda: snap.scan(Task, {"project": Range(ge="a")}), "no order"),
            (lambda: snap.scan(Task, limit=-1), "limit"),
            (lambda: snap.scan(Task, after="unheard of"), "no such Task"),
        ]:
            with pytest.raises(InvalidQuery, match=match):
                wrong()
        assert snap.scan("NoSuchKind") == []
        assert snap.count("NoSuchKind", {"x": 1}) == 0


def test_kinds_by_name_give_dicts(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x", id="t", project="p"))
        (found,) = client.reader.snapshot().scan("Task", {"project": "p", "status": "created"})
        assert (found["id"], found["title"]) == ("t", "x")


@pytest.mark.parametrize("kind", [Task, "Task"])
def test_entities_that_are_gone_through_end_with_their_snapshot(client, reader, kind):
    for number in range(3):
        client.create(Task(title=str(number)))
    with reader.snapshot() as snap:
        entities = snap.entities(kind)
        next(entities)
    with pytest.raises(ValueError, match="this snapshot is closed"):
        next(entities)


def test_pages_neither_skip_nor_repeat_what_stays_in_its_place(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        list(client.submit_many(Create(Task(title="x", id=f"t{number}", project="p")) for number in range(200)))
        seen: list[str] = []
        after = None
        while page := client.reader.snapshot().scan(
            Task, {"project": "p"}, order_by="created_at", limit=9, after=after
        ):
            seen += [task.id for task in page]
            after = page[-1]
            for gone in (page[-1].id, f"t{len(seen) + 20}"):  # the cursor itself, and one that would have come
                list(client.submit_many([Delete(Task.ref(gone))]))
            if len(seen) < 150:
                client.create(Task(title="new", project="p"))
        deleted = {f"t{number}" for number in range(200)} - {
            task.id for task in client.reader.snapshot().entities(Task)
        }
        assert len(seen) == len(set(seen))
        assert {f"t{number}" for number in range(200)} - deleted <= set(seen)


def test_a_page_goes_on_behind_a_dict_and_never_behind_the_id_of_what_was_deleted(client, reader):
    """Nobody knows any more where that was in the order of a column."""
    for number in range(20):
        client.create(Task(title="x", id=f"t{number:02}", project=f"p{number % 4}"))
    page, seen = reader.snapshot().scan("Task", order_by="project", limit=3), []
    while page:
        seen += [(one["project"], one["id"]) for one in page]
        client.delete(Task.ref(page[-1]["id"]))
        page = reader.snapshot().scan("Task", order_by="project", limit=3, after=page[-1])
    assert seen == sorted(seen)
    assert len(seen) == 20
    with pytest.raises(InvalidQuery, match="give what the page before ended with"):
        reader.snapshot().scan(Task, order_by="project", after=seen[2][1])
    there = reader.snapshot().ids(Task)
    assert reader.snapshot().ids(Task, after=seen[2][1]) == [id for id in there if id > seen[2][1]]


def test_pages_go_on_behind_a_number_that_is_none(state, start_engine):
    class Gauged(Entity, kind="Gauged", columns=("level",)):
        level: float | None = Field(default=None, allow_inf_nan=True)

    start_engine(state, models=[Gauged])
    with connect(state) as client:
        for number, level in enumerate((math.nan, 1.0, None, math.nan, -math.inf)):
            client.create(Gauged(id=f"g{number}", level=level))
        snap = client.reader.snapshot()
        for kind in (Gauged, "Gauged"):
            for order_by, expected in (("level", "41023"), ("-level", "14023")):
                page, seen = snap.scan(kind, order_by=order_by, limit=1), []
                while page:
                    seen.append(page[-1]["id"] if kind == "Gauged" else page[-1].id)
                    page = snap.scan(kind, order_by=order_by, limit=1, after=page[-1])
                assert seen == [f"g{number}" for number in expected]


def test_nothing_is_more_than_infinity_or_less_than_its_negative(state, start_engine):
    class Bound(Entity, kind="Bound", columns=("level",)):
        level: float | None = Field(default=None, allow_inf_nan=True)

    start_engine(state, models=[Bound])
    with connect(state) as client:
        for number, level in enumerate((-math.inf, -1.0, math.inf, None, math.nan)):
            client.create(Bound(id=f"b{number}", level=level))
        snap = client.reader.snapshot()
        for asked, expected in (
            (Range(gt=math.inf), ""), (Range(lt=-math.inf), ""), (Range(gt=math.inf, le=math.inf), ""),
            (Range(gt=-math.inf), "12"), (Range(lt=math.inf), "01"),
            (Range(ge=math.inf), "2"), (Range(le=-math.inf), "0"),
        ):  # fmt: skip
            found = [f"b{number}" for number in expected]
            assert snap.ids(Bound, {"level": asked}) == found, asked
            changes = client.reader.watch(Bound, since=0, where={"level": asked}, timeout_s=0)
            assert [change.id for change in changes] == found, asked


STORING = """
import sys
import numpy as np

cells = np.memmap(sys.argv[1], np.int64, "r+")
print(flush=True)
while True:
    for value in (2, 10**6):
        cells[:] = value
"""


def test_cells_that_are_stored_to_while_they_are_compared_with_several_values_harm_nobody(tmp_path):
    """Who looks at them singly behind the pass is not reached where that fails in the middle."""
    path = tmp_path / "cells"
    np.zeros(CHUNK_SLOTS, np.int64).tofile(path)
    live = np.memmap(path, np.int64, "r")
    asked = Condition(0, (1, 2, 3), None, None)
    with subprocess.Popen([sys.executable, "-c", STORING, str(path)], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            found = [_meets(asked, live) for _ in range(700)]
        finally:
            process.kill()
    assert {len(one) for one in found} == {CHUNK_SLOTS}
    assert 0 < sum(int(one.sum()) for one in found) < 700 * CHUNK_SLOTS, "they changed meanwhile"


@pytest.mark.parametrize("never", [2**2000, float("nan")], ids=["huge", "nan"])
def test_a_number_that_no_float_column_holds_is_refused(state, start_engine, never):
    start_engine(state, models=[Probe])
    with connect(state) as client:
        client.create(Probe(ratio=None))
        with pytest.raises(InvalidQuery, match="float, never"):
            client.reader.snapshot().count(Probe, {"ratio": never})
        assert client.reader.snapshot().count(Probe, {"ratio": None}) == 1


def test_what_is_no_part_of_a_question_is_told_by_its_name(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="t"))
        snap = client.reader.snapshot()
        for wrong, said in (
            ({"limit": "5"}, "limit is a number of entities, not '5'"),
            ({"limit": 2.5}, "limit is a number of entities, not 2.5"),
            (
                {"order_by": ["priority", "created_at"]},
                "order_by is one column, with - before it .*, not \\['priority'",
            ),
            ({"after": Task.ref(task.id)}, r"after is an entity or its id, not Ref\("),
            ({"after": {"title": "t"}}, r"after is an entity or its id, not {'title'"),
            ({"after": {"id": task.id}}, r"after is an entity or its id, not {'id'"),
        ):
            with pytest.raises(InvalidQuery, match=said):
                snap.scan(Task, **wrong)
        assert snap.ids(Task, limit=np.int64(5)) == [task.id]
        for key in (task.id, Task, (Task, task.id, 1)):
            with pytest.raises(TypeError, match=r"is a kind and an id, snap\[Task, id\], not "):
                snap[key]
        for call in (snap.scan, snap.count, client.reader.watch, lambda kind: client.get(kind, "nothing")):
            with pytest.raises(TypeError, match=r"a kind is an entity's class, or its name, not Task\("):
                call(task)


class Account(Entity, columns=("owner", "amount", "twin")):
    owner: str
    amount: int
    twin: int


PAYER = """
import random, sys
from solewriter import Entity, Update, connect

class Account(Entity, columns=("owner", "amount", "twin")):
    owner: str
    amount: int
    twin: int

dice, amounts = random.Random(1), [100] * 64
with connect(sys.argv[1]) as payer:
    while True:
        a, b = dice.sample(range(64), 2)
        amounts[a] -= 1
        amounts[b] += 1
        moved = [Update(Account.ref(f"a{n}"), {"amount": amounts[n], "twin": amounts[n]}) for n in (a, b)]
        payer.submit(*moved).check()
"""


def test_scans_under_a_writer_at_full_speed_are_never_torn(state, start_engine):
    """Money moves between accounts, two at a time: every snapshot has the same sum, by any way of asking."""
    start_engine(state, models=[Account], durability="memory")
    total, rounds = 64 * 100, 0
    with connect(state) as client, open_reader(state) as reader:
        for number in range(64):
            client.create(Account(id=f"a{number}", owner=f"o{number % 4}", amount=100, twin=100))
        writer = subprocess.Popen([sys.executable, "-c", PAYER, str(state)])
        try:
            held = reader.snapshot()
            while rounds < 200 or reader.revision < held.revision + 1_000:
                assert writer.poll() is None, "the writer ended"
                rounds += 1
                snap = held if rounds % 8 == 0 else reader.snapshot()
                columns = snap.columns(Account)
                assert columns["amount"].sum() == total
                assert (columns["amount"] == columns["twin"]).all()
                assert sum(one.amount for one in snap.scan(Account)) == total
                assert snap.count_by(Account, "owner") == {f"o{n}": 16 for n in range(4)}
                level = Range(ge=100)
                assert snap.count(Account, {"amount": level}) == sum(
                    one.amount >= 100 for one in snap.entities(Account)
                )
        finally:
            writer.kill()
            writer.wait()
    assert rounds >= 200


@pytest.mark.parametrize("point", ["publish.tail-moved", "publish.installed"])
def test_an_engine_that_dies_between_two_stores_leaves_scans_whole(
    state, start_engine, monkeypatch, wait_until, hurry, point
):
    monkeypatch.setenv(VARIABLE, f"{point}:kill:hit=40")
    engine = start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    reader = open_reader(state)
    with connect(state) as client:
        hurry(client, 0.2)
        for number in range(60):
            try:
                client.put(Task(title=f"{number}", id=f"t{number % 10}", project="even" if number % 2 else "odd"))
            except Exception:
                break
    snap = reader.snapshot()
    wait_until(lambda: snap.stale, 20, "the death")
    entities = list(snap.entities(Task))
    assert snap.count(Task, {"project": "odd"}) == sum(task.project == "odd" for task in entities)
    assert snap.scan(Task) == entities
    assert {task.version for task in entities} <= {1, 2, 3, 4, 5, 6}
    reader.close()
    engine.stop()


def test_a_snapshot_that_outlives_its_engine_scans_by_its_records(state, start_engine, wait_until):
    engine = start_engine(state)
    reader = open_reader(state)
    with connect(state) as client:
        list(client.submit_many(Create(Task(title="x", id=f"t{n}", project=f"p{n % 3}")) for n in range(100)))
        snap = reader.snapshot()
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        client.delete(Task.ref("t0"))
    assert snap.count(Task, {"project": "p0"}) == 34, "its tables went before they were mapped"
    assert [task.id for task in snap.scan(Task, {"project": "p1"}, limit=2)] == ["t1", "t4"]
    assert snap.count_by(Task, "project") == {"p0": 34, "p1": 33, "p2": 33}
    reader.close()


def test_what_a_held_snapshot_looks_up_singly_it_looks_up_once(state, start_engine, monkeypatch):
    """Counted in records whose cells are asked for, in memory and where it is built again from the journal."""
    looked, cells_of = 0, CellsOfRecords.__call__

    def counted(cells: CellsOfRecords, found: Record) -> Any:
        nonlocal looked
        looked += 1
        return cells_of(cells, found)

    def every_way(snap: Snapshot, odd: int, even: int) -> None:
        assert snap.count(Task) == odd + even == len(snap.scan(Task))
        assert snap.count(Task, {"project": "even"}) == even
        assert snap.count_by(Task, "project") == {"even": even, "odd": odd}
        assert snap.ids(Task, {"project": "odd"}, limit=2) == ["t001", "t003"]
        assert snap.ids(Task, {"version": Range(ge=2)}) == []

    monkeypatch.setattr(CellsOfRecords, "__call__", counted)
    start_engine(state)
    with connect(state) as client, open_reader(state) as reader:
        tasks = [Task(id=f"t{n:03}", title="x", project="odd" if n % 2 else "even") for n in range(200)]
        assert all(reply.applied for reply in client.submit_many(map(Create, tasks)))
        with reader.snapshot() as snap:
            for first, last, wanted in ((0, 0, 0), (0, 50, 50), (25, 75, 25), (75, 75, 0)):
                changes = (Update(Task.ref(one.id), {"project": "other"}) for one in tasks[first:last])
                assert all(reply.applied for reply in client.submit_many(changes))
                client.delete(client.create(Task(title="new")))
                looked = 0
                every_way(snap, 100, 100)
                assert looked == wanted
        with open_reader(state, offline=True) as offline, offline.at(100) as snap:
            looked = 0
            every_way(snap, 50, 50)
            assert looked == 100


def test_what_a_scan_brings_is_not_looked_through_while_it_is_made(state, start_engine):
    """As garbage that it is not: Python would look after every few entities, at all that there are by then."""
    start_engine(state, models=[Probe])
    count = 2 * DECODED_AT_ONCE + 1
    with connect(state) as client:
        for reply in client.submit_many(Create(Probe(id=f"p{number}")) for number in range(count)):
            reply.check()
    looks, thresholds = [], gc.get_threshold()
    with open_reader(state) as reader, reader.snapshot() as snap:
        assert snap.count(Probe) == count  # and what a scan imports is there
        gc.callbacks.append(note := lambda phase, _: looks.append(phase))
        gc.set_threshold(10)
        try:
            found = snap.scan(Probe)
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(note)
    assert len(found) == count
    assert looks.count("start") < 100, "one for each few entities"
    assert gc.isenabled()
