"""A class may change: what was stored before is read as the new one, wherever it lies, or the start is refused."""

from __future__ import annotations

import asyncio
import datetime
import json
import subprocess
import sys
import threading
import time
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Self

import msgspec
import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    ConfigDict,
    Field,
    NaiveDatetime,
    StringConstraints,
    ValidationInfo,
    computed_field,
    field_serializer,
    field_validator,
    model_validator,
)

from solewriter import (
    Create,
    Delete,
    EngineStartFailed,
    Entity,
    FrozenMap,
    Increment,
    InvalidMutation,
    Json,
    Part,
    Project,
    SchemaMismatch,
    Task,
    Update,
    VersionConflict,
    aio,
    broken,
    concerns,
    connect,
    open_reader,
)
from solewriter.engine_proc.owner import exits
from solewriter.shared.entity import new_id

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def not_o1(owner):
    if owner == "o1":
        raise ValueError("not o1")
    return owner


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Longer(StrEnum):
    URGENT = "urgent"
    LOW = "low"
    HIGH = "high"


class Shorter(StrEnum):
    LOW = "low"


class Blind(Entity, kind="Doc", columns=("owner", "level", "score")):
    """Cannot read what is stored with a level that it does not know."""

    owner: str
    level: Shorter = Shorter.LOW
    score: int = 7
    note: str = ""
    secret: str


class Size(Part):
    rows: int = 1


class Doc(Entity, kind="Doc", columns=("owner", "level", "score")):
    owner: str
    level: Level = Level.LOW
    score: int = 7
    note: str = ""
    size: Size = Size()
    secret: str


class Added(Entity, kind="Doc", columns=("owner", "level", "score", "weight")):
    owner: str
    level: Level = Level.LOW
    score: int = 7
    note: str = ""
    size: Size = Size()
    secret: str
    weight: float = 0.5


class Removed(Entity, kind="Doc", columns=("level", "score")):
    level: Level = Level.LOW
    score: int = 7


class NewSize(Part):
    model_config = ConfigDict(populate_by_name=True)

    lines: int = Field(1, alias="rows")


class Renamed(Entity, kind="Doc", columns=("keeper", "level", "points")):
    model_config = ConfigDict(populate_by_name=True)

    keeper: str = Field(alias="owner")
    level: Level = Level.LOW
    points: int = Field(7, validation_alias=AliasChoices("points", "score", "mark"))
    note: str = ""
    size: NewSize = NewSize()
    secret: str


class Extended(Entity, kind="Doc", columns=("owner", "level", "score")):
    owner: str
    level: Longer = Longer.LOW
    score: int = 7
    note: str = ""
    size: Size = Size()
    secret: str


class OtherDefault(Entity, kind="Doc", columns=("owner", "level", "score")):
    owner: str
    level: Level = Level.HIGH
    score: int = 8
    note: str = "new"
    size: Size = Size(rows=2)
    secret: str


def stored(client):
    """Ten documents, some changed, one deleted."""
    for number in range(10):
        client.create(
            Doc(
                id=f"d{number}",
                owner=f"o{number % 2}",
                level=list(Level)[number % 2],
                secret="s",
                size=Size(rows=number),
            )
        )
    client.update(Doc.ref("d3"), score=3)
    client.update(Doc.ref("d4"), score=4)
    client.delete(Doc.ref("d5"))


def check_added(snap, cls):
    assert [snap.get(cls, f"d{n}").weight for n in (0, 3)] == [0.5, 0.5]
    assert snap.count(cls, {"weight": 0.5, "owner": "o1"}) == 4
    assert snap[cls, "d3"].score == 3


def check_removed(snap, cls):
    assert snap[cls, "d3"] == cls(id="d3", version=2, level="high", score=3)
    assert snap.count_by(cls, "score") == {3: 1, 4: 1, 7: 7}


def check_renamed(snap, cls):
    assert (snap[cls, "d3"].keeper, snap[cls, "d3"].points, snap[cls, "d3"].size.lines) == ("o1", 3, 3)
    assert snap.count_by(cls, "keeper") == {"o0": 5, "o1": 4}
    assert snap.ids(cls, {"points": [3, 4]}) == ["d3", "d4"]
    assert snap.count(cls, {"points": 7, "keeper": "o1"}) == 3


def check_extended(snap, cls):
    assert snap[cls, "d3"].level is Longer.HIGH
    assert snap.count_by(cls, "level") == {Longer.LOW: 5, Longer.HIGH: 4}
    assert snap.count(cls, {"level": "urgent"}) == 0


def check_other_default(snap, cls):
    """What was stored keeps the defaults of its time."""
    assert (snap[cls, "d0"].level, snap[cls, "d0"].score, snap[cls, "d0"].note) == ("low", 7, "")
    assert snap.count(cls, {"score": 7}) == 7


CASES = [
    (Added, check_added, {"weight": 2.0}),
    (Removed, check_removed, {"level": "high"}),
    (Renamed, check_renamed, {"keeper": "me"}),
    (Extended, check_extended, {"level": "urgent"}),
    (OtherDefault, check_other_default, {"note": "changed"}),
]


@pytest.mark.parametrize(("cls", "check", "change"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_changed_class_reads_what_was_stored_by_the_one_before(state, start_engine, cls, check, change):
    """In the memory that is there, after a restart from the journal, and at revisions of the past."""
    engine = start_engine(state, models=[Doc])
    with connect(state) as client, open_reader(state) as reader:
        stored(client)
        before = reader.snapshot()
        engine.register(cls)
        check(reader.snapshot(), cls)
        assert before[Doc, "d3"].score == 3, "an older snapshot goes on"
    with connect(state) as client, open_reader(state) as reader:
        changed = client.update(cls.ref("d0"), change)
        for name, value in change.items():
            assert getattr(changed, name) == value
        assert client.update(cls.ref("d0"), change).version == changed.version, "and that is no change again"
    engine.stop()
    start_engine(state, models=[cls])
    with connect(state) as client, open_reader(state) as reader:
        check(reader.at(13), cls)
        now = reader.snapshot()
        assert now[cls, "d0"] == changed
        assert [one.version for one in now.scan(cls, order_by="level")].count(2) == 3
        assert [one.new and one.new.id for one in reader.history(cls, "d3")] == ["d3", "d3"]
        assert next(iter(reader.history(cls, "d5"))).old.id == "d5"
        assert client.put(now[cls, "d1"]).version == 1, "written as the class has it now, it is the same"


class Texts(Entity, kind="Doc"):
    size: str = "7"
    at: str = "2030-01-01T00:00:00Z"
    share: float = 1.0
    level: str = "low"
    note: str = ""


class Typed(Entity, kind="Doc", columns=("size", "at", "share", "level")):
    size: int = 7
    at: AwareDatetime = NOW
    share: int = 1
    level: Level = Level.LOW
    note: str = ""
    updated_at: AwareDatetime


def test_what_is_of_another_type_now_is_changed_like_anything_else(state, start_engine):
    """The bytes that it was stored as have no cells in the columns that there are now."""
    engine = start_engine(state, models=[Texts])
    with connect(state) as client:
        for number in range(3):
            client.create(Texts(id=f"d{number}", size=str(number), share=number, level="high"))
    engine.register(Typed)
    with connect(state) as client, open_reader(state) as reader:
        assert client.update(Typed.ref("d0"), note="x").size == 0
        assert client.update(Typed.ref("d1"), size=5).share == 1
        assert client.alter(Typed.ref("d2"), share=Increment()).share == 3
        assert engine.pid is not None
        assert reader.snapshot().ids(Typed, {"at": NOW, "level": Level.HIGH}, order_by="size") == ["d0", "d2", "d1"]


class More(Doc, kind="Doc", columns=("weight",)):
    weight: float = 0.5


def test_a_class_that_is_derived_from_the_one_before_under_the_kinds_name_takes_its_place(state, start_engine):
    engine = start_engine(state, models=[Doc])
    with connect(state) as client, open_reader(state) as reader:
        client.create(Doc(id="d0", owner="o", secret="s"))
        engine.register(More)
        assert client.create(More(id="d1", owner="o", secret="s", weight=2.0)).weight == 2.0
        with reader.snapshot() as snap:
            assert snap.ids(More, {"weight": [0.5, 2.0]}) == ["d0", "d1"]
            assert "More" not in snap.counts


def lowered(text):
    return text.lower()


class Small(Typed, kind="Doc", columns=("size", "at", "share", "level", "note")):
    note: Annotated[str, AfterValidator(lowered)] = ""


def test_columns_of_what_is_read_otherwise_now_are_the_same_wherever_they_come_from(state, start_engine):
    """By the table, by the records of what was changed since, at an earlier revision, and without an engine."""
    engine = start_engine(state, models=[Texts])
    with connect(state) as client:
        for number in range(4):
            client.create(Texts(id=f"d{number}", size=str(9 - number), share=number, level="high", note=f"N{number}"))
    engine.register(Small)

    def check(snap, sizes):
        ids = [f"d{number}" for number in range(4)]
        assert snap.ids(Small, {"at": NOW, "level": Level.HIGH, "share": [0, 1, 2, 3]}) == ids
        assert snap.ids(Small, order_by="size") == ids[::-1]
        assert snap.ids(Small, order_by="size", after="d2") == ids[1::-1]
        assert snap.count(Small, {"note": ["n0", "n1", "n2", "n3"]}) == 4
        assert snap.count_by(Small, "note") == {f"n{number}": 1 for number in range(4)}
        columns = snap.columns(Small)
        assert (columns["size"].tolist(), columns["note"].tolist()) == (sizes, ["n0", "n1", "n2", "n3"])
        assert [(one.size, one.note) for one in snap.scan(Small)] == list(zip(sizes, columns["note"], strict=True))

    with connect(state) as client, open_reader(state) as reader:
        before = reader.snapshot()
        check(before, [9, 8, 7, 6])
        client.update(Small.ref("d0"), size=10)
        client.update(Small.ref("d3"), size=5)
        check(before, [9, 8, 7, 6])
        check(reader.at(before.revision), [9, 8, 7, 6])
        check(reader.snapshot(), [10, 8, 7, 5])
        met = [change.id for change in reader.watch(Small, since=0, where={"size": 6}, timeout_s=0)]
        assert met == ["d3", "d3"], "as it came, and as it went"
        past = before.revision
    engine.stop()
    with open_reader(state, offline=True) as reader:
        check(reader.snapshot(), [10, 8, 7, 5])
        check(reader.at(past), [9, 8, 7, 6])


class Shouted(Entity, kind="Doc", columns=("note",)):
    note: str | None = None
    n: int = 0


class Lowered(Entity, kind="Doc", columns=("note",)):
    note: Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True)] | None = None
    n: int = 0


class AllLowered(Entity, kind="Doc", columns=("note",)):
    model_config = ConfigDict(str_to_lower=True, str_strip_whitespace=True)

    note: str | None = None
    n: int = 0


@pytest.mark.parametrize("cls", [Lowered, AllLowered])
def test_texts_of_which_a_newer_class_makes_others_are_found_by_those(state, start_engine, cls):
    """In memory, beside a writer, at an earlier revision, without the class, and without an engine."""

    def check(snap, *more):
        for kind in (cls, "Doc"):
            assert snap.ids(kind, {"note": "loud"}) == ["d0", "d1", *more]
            assert snap.count(kind, {"note": " LOUD"}) == 0
            assert snap.count_by(kind, "note") == {None: 1, "loud": 2 + len(more)}
            assert snap.columns(kind)["note"].tolist() == ["loud", "loud", None, *["loud" for _ in more]]
        assert snap.get(cls, "d0").note == "loud"

    engine = start_engine(state, models=[Shouted])
    with connect(state) as client, open_reader(state) as reader:
        for number in range(3):
            client.create(Shouted(id=f"d{number}", note=" LOUD" if number < 2 else None))
        past = reader.revision
        engine.register(cls)
        before = reader.snapshot()
        check(before)
        client.update(cls.ref("d1"), n=1)
        check(before)
        client.create(cls(id="d3", note="Loud "))
        check(reader.snapshot(), "d3")
        check(reader.at(past))
    engine.stop()
    with open_reader(state, offline=True) as reader:
        check(reader.snapshot(), "d3")
    start_engine(state, models=[cls])
    with open_reader(state) as reader:
        check(reader.snapshot(), "d3")


class AsTyped(Entity, kind="Doc", columns=("note", "size", "share")):
    note: str = "here"
    size: str = "7"
    share: float = 1.0


class AsMeant(Entity, kind="Doc", columns=("note", "size", "share")):
    note: Annotated[str, StringConstraints(to_lower=True)] = "here"
    size: int = 7
    share: int = 1


BY_NAME = """
import json, sys
from solewriter import open_reader
with open_reader(sys.argv[1]) as reader, reader.snapshot() as snap:
    asked = json.load(sys.stdin)
    print(json.dumps([snap.ids("Doc", order_by=order, after=snap.get("Doc", id)) for order, id in asked]))
"""


def test_pages_go_on_behind_what_is_read_otherwise_now(state, start_engine):
    """By class and by name; by name also where the class is not known."""
    engine = start_engine(state, models=[AsTyped])
    with connect(state) as client:
        for note, size, share in [("RED", "10", 3.0), ("a", "9", 2.0), ("Zz", "8", 0.0), ("red", "11", 4.0)]:
            client.create(AsTyped(id=f"d{size}", note=note, size=size, share=share))
        client.create(AsTyped(id="d7"))
        engine.register(AsMeant)
        asked = [(order, f"d{number}") for order in ("note", "-note", "size", "-share") for number in range(7, 12)]
        with client.reader.snapshot() as snap:
            there = {order: snap.ids(AsMeant, order_by=order) for order, _ in asked}
            behind = [there[order][there[order].index(id) + 1 :] for order, id in asked]
            for kind in (AsMeant, "Doc"):
                assert [snap.ids(kind, order_by=order, after=snap.get(kind, id)) for order, id in asked] == behind
            changed = snap.get("Doc", "d10")
        command = [sys.executable, "-c", BY_NAME, str(state)]
        found = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
        assert json.loads(found.stdout) == behind
        client.update(AsMeant.ref("d10"), note="b")
        with client.reader.snapshot() as snap:
            assert snap.ids("Doc", order_by="note", after=changed) == ["d11", "d8"], "from where it was"


def test_a_class_that_would_read_an_id_as_another_one_is_refused(state, start_engine):
    engine = start_engine(state, models=[Shouted])
    with connect(state) as client:
        client.create(Shouted(id="d0", note="n"))
        client.create(Shouted(id="D1", note="n"))
        with pytest.raises(SchemaMismatch, match=r"Doc 'D1'.*id: is made 'd1'.*revision 2"):
            engine.register(AllLowered)
        assert client.update(Shouted.ref("D1"), n=1).id == "D1", "the class before goes on"


class Texted(Entity, kind="Doc", columns=("size",)):
    size: str = "0"


class Weighed(Entity, kind="Doc", columns=("size", "weight")):
    size: int = 0
    weight: int = 1


class Heavier(Entity, kind="Doc", columns=("size", "weight")):
    size: int = 0
    weight: int = 2


@pytest.mark.parametrize("follows", [True, False])
def test_cells_that_another_class_made_of_what_is_older_than_its_columns_are_made_anew(state, start_engine, follows):
    """Or that an engine made which had no class of the kind."""
    engine = start_engine(state, models=[Texted])
    with connect(state) as client:
        for number in range(3):
            client.create(Texted(id=f"d{number}", size=str(number)))
        engine.register(Weighed)
        client.create(Weighed(id="d3", size=3))
    newest, weights = (Heavier, {1: 1, 2: 3}) if follows else (Weighed, {1: 4})
    if not follows:
        engine.stop()
        engine = start_engine(state)
    engine.register(newest)
    with open_reader(state) as reader:
        for snap in (reader.snapshot(), reader.at(4)):
            assert snap.count_by(newest, "weight") == weights
            assert snap.count_by(newest, "size") == dict.fromkeys(range(4), 1)
            assert [snap[newest, id].weight for id in snap.ids(newest, {"weight": 2})] == [2] * weights.get(2, 0)


class Owned(Entity, kind="Doc"):
    owner: str
    n: int = 0


class Kept(Entity, kind="Doc"):
    model_config = ConfigDict(populate_by_name=True)

    keeper: str = Field(alias="owner")
    n: int = 0


class Held(Entity, kind="Doc"):
    model_config = ConfigDict(populate_by_name=True)

    keeper: int = Field(alias="owner")
    n: int = 0


def test_a_renamed_field_without_default_and_column_has_its_new_name_only_once_it_is_changed(state, start_engine):
    engine = start_engine(state, models=[Owned])
    with connect(state) as client:
        for id in ("d0", "d1"):
            client.create(Owned(id=id, owner="ann"))
        engine.register(Kept)
        kept = client.get(Kept, "d0")
        assert client.update(kept, keeper="ann").version == 1, "nothing was changed"
        assert client.update(kept, keeper="ben").keeper == client.get(Kept, "d0").keeper == "ben"
        assert client.get("Doc", "d0") == {"id": "d0", "version": 2, "keeper": "ben", "n": 0}
        assert [change.new.keeper for change in client.reader.history(Kept, "d0")] == ["ben", "ann"]
        with pytest.raises(SchemaMismatch, match="owner: Field required"):
            engine.register(Owned)
        with pytest.raises(SchemaMismatch, match="differs"):
            client.create(Held(id="d2", keeper=1))


class Stamped(Entity, kind="Doc", columns=("updated_at",)):
    n: int = 0
    updated_at: AwareDatetime | None = None


class Unstamped(Entity, kind="Doc", columns=("edited_at",)):
    """Its time is not the engine's any more, but what it was by then."""

    model_config = ConfigDict(populate_by_name=True)

    n: int = 0
    edited_at: AwareDatetime | None = Field(None, alias="updated_at")


def test_the_time_that_the_engine_filled_in_is_read_under_its_new_name(state, start_engine):
    """In memory, by columns, after a change, in the past, without an engine, and in the next one."""
    engine = start_engine(state, models=[Stamped])
    with connect(state) as client, open_reader(state) as reader:
        for id in ("d0", "d1"):
            client.create(Stamped(id=id))
        client.update(Stamped.ref("d1"), n=1)
        then = [client.get(Stamped, id).updated_at for id in ("d0", "d1")]
        engine.register(Unstamped)
        changed = client.update(Unstamped.ref("d1"), n=2)
        assert changed.edited_at == then[1]
        assert client.update(changed, edited_at=then[1]).version == changed.version, "nothing was changed"

    def check(reader):
        with reader.snapshot() as snap:
            assert [one.edited_at for one in snap.scan(Unstamped, order_by="edited_at")] == then
            assert snap.count_by(Unstamped, "edited_at") == dict.fromkeys(then, 1)
        with reader.at(3) as past:
            assert [one.edited_at for one in past.scan(Unstamped, order_by="edited_at")] == then
        times = [change.new.edited_at for change in reader.history(Unstamped, "d1")]
        assert times[:2] == [then[1], then[1]]
        assert times[2] < then[1]

    with open_reader(state) as reader:
        check(reader)
    engine.stop()
    with open_reader(state, offline=True) as reader:
        check(reader)
    start_engine(state, models=[Unstamped])
    with open_reader(state) as reader:
        check(reader)


class Noted(Entity, kind="Doc"):
    note: int = 0


class Renoted(Entity, kind="Doc"):
    model_config = ConfigDict(populate_by_name=True)

    text: str = Field("", validation_alias=AliasChoices("remark"))


class Remembered(Entity, kind="Doc"):
    model_config = ConfigDict(populate_by_name=True)

    text: str = Field("", validation_alias=AliasChoices("remark", "note"))


def test_a_class_with_one_more_earlier_name_is_looked_at(state, start_engine):
    engine = start_engine(state, models=[Noted])
    with connect(state) as client:
        client.create(Noted(id="d0", note=5))
        engine.register(Renoted)
        with pytest.raises(SchemaMismatch, match="text: Input should be a valid string"):
            engine.register(Remembered)
        assert client.get(Renoted, "d0").text == ""


class NoSize(Part):
    pass


class LooseSize(Part):
    model_config = ConfigDict(extra="ignore")


class NoRows(Entity, kind="Doc"):
    owner: str
    secret: str
    size: NoSize = NoSize()


class LooseRows(Entity, kind="Doc"):
    owner: str
    secret: str
    size: LooseSize = LooseSize()


def test_a_part_without_one_of_its_fields_fits_if_it_says_that_it_ignores_them(state, start_engine):
    engine = start_engine(state, models=[Doc])
    with connect(state) as client:
        stored(client)
        with pytest.raises(SchemaMismatch, match=r"Doc 'd\d'.*size\.rows.*extra='ignore'"):
            engine.register(NoRows)
        engine.register(LooseRows)
        assert client.get(LooseRows, "d3").size == LooseSize()


class TaggedSize(Part):
    rows: int = 1
    tag: str = Field(default_factory=new_id)


class Marked(Entity, kind="Doc"):
    owner: str
    secret: str
    token: str = Field(default_factory=new_id)


class MarkedInside(Entity, kind="Doc"):
    owner: str
    secret: str
    size: TaggedSize = TaggedSize(tag="none")


def always() -> str:
    return "the same, which nobody can know"


class MadeByCode(Entity, kind="Doc"):
    owner: str
    secret: str
    token: str = Field(default_factory=always)


class MadeAlike(Entity, kind="Doc"):
    owner: str
    secret: str
    more: Size = Field(default_factory=Size)
    data: FrozenMap = Field(default_factory=FrozenMap)
    names: tuple[str, ...] = Field(default_factory=tuple)


@pytest.mark.parametrize(("cls", "field"), [(Marked, "token"), (MadeByCode, "token"), (MarkedInside, "size")])
def test_a_new_field_that_may_be_another_one_for_each_reader_is_refused(state, start_engine, cls, field):
    engine = start_engine(state, models=[Doc])
    with connect(state) as client:
        stored(client)
        with pytest.raises(SchemaMismatch, match=rf"Doc 'd\d'.*{field}.*default_factory may make another"):
            engine.register(cls)
        engine.register(MadeAlike)
        assert client.get(MadeAlike, "d3") == MadeAlike(id="d3", version=2, owner="o1", secret="s")


class Strictest(Entity, kind="Doc"):
    owner: Annotated[str, AfterValidator(not_o1)]
    secret: str


class Lenient(Entity, kind="Doc"):
    owner: Annotated[str, AfterValidator(str.lower)]
    secret: str


class Plainest(Entity, kind="Doc"):
    owner: str
    secret: str


class StrictRule(Plainest, kind="Doc"):
    @model_validator(mode="after")
    def _not_o1(self) -> Self:
        if self.owner == "o1":
            raise broken("owner", "not o1")
        return self


class StrictlyConcerned(Plainest, kind="Doc"):
    """Its code changes nothing, so it says."""

    @model_validator(mode="after")
    @concerns("owner")
    def _not_o1(self) -> Self:
        if self.owner == "o1":
            raise broken("owner", "not o1")
        return self


class Remark(Part):
    text: str
    stars: int = 0


class ShortRemark(Part):
    text: str


class Review(Entity):
    answer: Json = None
    pages: int
    remark: Remark
    at: NaiveDatetime


class LongReview(Entity, kind="Review"):
    answer: Json = None
    pages: Annotated[int, Field(ge=10)]
    remark: Remark
    at: NaiveDatetime


class ShortReview(Entity, kind="Review"):
    answer: Json = None
    pages: int
    remark: ShortRemark
    at: NaiveDatetime


class ZonedReview(Entity, kind="Review"):
    answer: Json = None
    pages: int
    remark: Remark
    at: AwareDatetime


class EndlessReview(Entity, kind="Review"):
    model_config = ConfigDict(allow_inf_nan=True)

    answer: Json = None
    pages: int
    remark: Remark
    at: NaiveDatetime
    weight: float = 0.0


class EndingReview(Entity, kind="Review"):
    answer: Json = None
    pages: int
    remark: Remark
    at: NaiveDatetime
    weight: float = 0.0


ShortRemark.__name__ = ShortRemark.__qualname__ = "Remark"


@pytest.mark.parametrize(("cls", "field"), [(LongReview, "pages"), (ShortReview, "stars"), (ZonedReview, "at")])
def test_a_class_that_takes_less_beside_plain_data_is_refused_by_the_field(state, start_engine, cls, field):
    engine = start_engine(state, models=[Review])
    with connect(state) as client:
        stored = client.create(Review(pages=3, remark=Remark(text="good", stars=5), at=NOW.replace(tzinfo=None)))
        with pytest.raises(SchemaMismatch, match=field):
            engine.register(cls)
        assert client.update(stored, pages=4).pages == 4, "the class before goes on"
    engine.stop()
    with pytest.raises(EngineStartFailed, match=field):
        start_engine(state, models=[cls])


def test_a_class_that_takes_less_by_its_configuration_is_refused_by_the_field(state, start_engine):
    engine = start_engine(state, models=[EndlessReview])
    with connect(state) as client:
        made = EndlessReview(pages=3, remark=Remark(text="good"), at=NOW.replace(tzinfo=None), weight=float("inf"))
        stored = client.create(made)
        with pytest.raises(SchemaMismatch, match="weight"):
            engine.register(EndingReview)
        assert client.update(stored, pages=4).weight == float("inf"), "the class before goes on"


@pytest.mark.parametrize("cls", [Strictest, StrictRule, StrictlyConcerned])
def test_a_class_whose_code_takes_less_is_refused_though_its_fields_are_the_same(state, start_engine, cls):
    engine = start_engine(state, models=[Plainest])
    with connect(state) as client:
        made = client.create(Plainest(id="d1", owner="o1", secret="s"))
        with pytest.raises(SchemaMismatch, match=r"Doc 'd1'.*owner: .*not o1.*revision 1"):
            engine.register(cls)
        assert client.get(Plainest, "d1") == made


class Forgetful(Entity, kind="Doc", columns=("owner",)):
    """As Lenient, but for a rule that returns nothing for some."""

    owner: str
    secret: str

    @model_validator(mode="after")
    def _forget(self) -> Any:
        return None if self.owner == "o1" else self


def test_what_a_rule_returns_nothing_for_is_not_told_as_missing(state, start_engine):
    """pydantic hands None on, and readers say None for what is not there."""
    engine = start_engine(state, models=[Lenient])
    said = "its validator returned None, and not the entity"
    with connect(state) as client:
        client.create(Lenient(id="d1", owner="o1", secret="s"))
        with pytest.raises(SchemaMismatch, match=rf"Doc 'd1'.*{said}.*revision 1"):
            engine.register(Forgetful)
        with client.reader.snapshot() as snap:
            for read in (partial(client.get, Forgetful, "d1"), partial(snap.scan, Forgetful)):
                with pytest.raises(SchemaMismatch, match=rf"Doc 'd1'.*{said}"):
                    read()
        client.update(Lenient.ref("d1"), owner="o2")
        engine.register(Forgetful)
        assert client.get(Forgetful, "d1") == Forgetful(id="d1", version=2, owner="o2", secret="s")
        with pytest.raises(InvalidMutation, match=said):
            client.update(Forgetful.ref("d1"), owner="o1")


class Silent(Plainest, kind="Doc"):
    @field_validator("secret")
    @classmethod
    def _other(cls, secret: str) -> str | None:
        return None if secret == "s" else secret


def test_a_class_that_would_not_take_what_it_makes_of_what_is_stored_is_refused(state, start_engine):
    engine = start_engine(state, models=[Plainest])
    with connect(state) as client:
        made = client.create(Plainest(id="d1", owner="o1", secret="s"))
        with pytest.raises(SchemaMismatch, match=r"Doc 'd1'.*own validators make of it.*secret: Input .*revision 1"):
            engine.register(Silent)
        assert client.update(made, secret="t").version == 2, "nothing has changed"


class Ending(Entity, kind="Doc", columns=("owner",)):
    """Its fields are the same, its column is not, and its validator raises what ends a program."""

    owner: str
    secret: str

    @field_validator("owner")
    @classmethod
    def _end(cls, owner: str) -> str:
        if owner in ENDS:
            raise ENDS[owner]
        return WRONG.get(owner, owner)


ENDS = {"o1": SystemExit("over"), "o2": KeyboardInterrupt("over"), "o3": asyncio.CancelledError("over")}
WRONG: dict[str, Any] = {"o4": ("over",), "o5": 0.5}  # which has no place in its column


@pytest.mark.parametrize("owner", [*ENDS, *WRONG])
def test_a_class_whose_code_would_end_the_engine_is_refused_and_does_not(state, start_engine, owner):
    engine = start_engine(state, models=[Lenient])
    pid, says = engine.pid, "over" if owner in ENDS else "its validators made"
    with connect(state) as client:
        client.create(Lenient(id="d1", owner=owner, secret="s"))
        with pytest.raises(SchemaMismatch, match=rf"Doc 'd1'.*{says}.*revision 1"):
            engine.register(Ending)
        assert client.update(Lenient.ref("d1"), secret="t").version == 2, "nothing has changed"
    assert engine.pid == pid
    engine.stop()
    with pytest.raises(EngineStartFailed, match=rf"Doc 'd1'.*{says}.*revision 2"):
        start_engine(state, models=[Ending])


SLOW, ENDLESS = "slow", "endless"


def take_time(owner: str, long_s: float = 0.02) -> str:
    until = time.monotonic() + long_s
    while owner == ENDLESS or (owner == SLOW and time.monotonic() < until):
        pass
    return owner


class EndlessField(Entity, kind="Doc", columns=("owner",)):
    owner: Annotated[str, AfterValidator(take_time)]
    secret: str


class EndlessRule(Entity, kind="Doc", columns=("owner",)):
    owner: str
    secret: str

    @model_validator(mode="after")
    def _wait(self) -> Self:
        take_time(self.owner)
        return self


class EndlessDefault(Entity, kind="Doc"):
    owner: str
    secret: str
    note: str = Field(default_factory=lambda data: take_time(data["owner"]))


@pytest.mark.parametrize("cls", [EndlessField, EndlessDefault, pytest.param(EndlessRule, marks=pytest.mark.heavy)])
def test_a_class_whose_code_never_ends_is_refused_and_everybody_goes_on(state, start_engine, limits, cls):
    limits = msgspec.structs.replace(limits, decide_timeout_s=0.2, request_timeout_s=5, start_timeout_s=5)
    engine = start_engine(state, models=[Lenient], limits=limits)
    pid = engine.pid
    with connect(state) as client:
        for number in range(3):
            client.create(Lenient(id=f"d{number}", owner=ENDLESS, secret="s"))
        with pytest.raises(SchemaMismatch, match=r"Doc 'd0'.*revision 1.*decide_timeout_s"):
            engine.register(cls)
        assert client.update(Lenient.ref("d1"), secret="t").version == 2, "nothing has changed"
    assert engine.pid == pid
    engine.stop()
    with pytest.raises(EngineStartFailed, match=r"Doc 'd0'.*revision 1.*decide_timeout_s") as caught:
        start_engine(state, models=[cls], limits=limits)
    assert caught.value.status == exits.REFUSED
    start_engine(state, models=[Lenient], limits=limits)
    with connect(state) as client:
        assert client.update(Lenient.ref("d0"), owner="ann", expect=1).version == 2


def test_a_class_may_take_its_time_for_many_entities_and_each_of_them_is_bounded(state, start_engine, limits):
    limits = msgspec.structs.replace(limits, decide_timeout_s=0.1, request_timeout_s=5, start_timeout_s=5)
    engine = start_engine(state, models=[Lenient], limits=limits)
    with connect(state) as client:
        for number in range(20):
            client.create(Lenient(id=f"d{number}", owner=SLOW, secret="s"))
        last = client.create(Lenient(id="d20", owner=ENDLESS, secret="s"))
        with pytest.raises(SchemaMismatch, match=r"Doc 'd20'.*decide_timeout_s"):
            engine.register(EndlessField)
        client.delete(last)
        engine.register(EndlessField)
        assert client.update(EndlessField.ref("d0"), owner="ann").version == 2


class Chore(Task, kind="Chore"):
    pass


class NextChore(Task, kind="Chore"):
    note: str = ""


class LastChore(Task, kind="Chore"):
    """As the one before, but for its code: no start looks at that."""

    note: str = ""

    @model_validator(mode="after")
    def _stumble(self) -> Self:
        if self.title in STUMBLES:
            STUMBLES[self.title]()
        return self

    @field_validator("title")
    @classmethod
    def _spoil(cls, title: str) -> Any:
        return SPOILT.get(title, title)

    @field_validator("priority", "parent_task_id", "cost", "not_before")
    @classmethod
    def _misfit(cls, value: Any, info: ValidationInfo) -> Any:
        name, odd = MISFITS.get(info.data["title"], ("", None))
        return odd if info.field_name == name else value


def raises() -> None:
    raise ValueError("not any more")


STUMBLES = {"raises": raises, "exits": sys.exit, "never ends": partial(take_time, ENDLESS)}
SPOILT = {"has no bytes": object(), "is no text": "\ud800", "is too large": 2**64, "to": "fro", "fro": "to"}
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
MISFITS: dict[str, tuple[str, Any]] = {
    "odd priority": ("priority", ("high",)),
    "odd parent": ("parent_task_id", ["x"]),
    "odd cost": ("cost", "much"),
    "odd time": ("not_before", datetime.datetime(2020, 1, 1)),
}


@pytest.mark.parametrize("title", [*STUMBLES, *SPOILT, *MISFITS])
@pytest.mark.parametrize("before", [Chore, NextChore])
def test_tasks_that_their_class_cannot_take_any_more_end_no_engine_and_keep_nobody_from_others(
    state, start_engine, limits, title, before
):
    limits = msgspec.structs.replace(limits, decide_timeout_s=0.2, request_timeout_s=5)
    engine = start_engine(state, models=[before], limits=limits)
    with connect(state) as client:
        said = {"priority": "critical", "parent_task_id": "p", "cost": 0.5, "not_before": LONG_AGO}
        bad = [client.create(before(title=title, project="bad", **said)) for _ in range(3)]
        client.create(before(title="good", project="good"))
        client.create(Project(id="bad", name="bad", budget_limit=9.0))
    engine.register(NextChore)
    engine.stop()
    engine = start_engine(state, models=[LastChore], limits=limits)
    pid = engine.pid
    with connect(state, limits=limits) as client:
        mine = client.claim(LastChore)
        assert mine.title == "good"
        assert client.claim_many(LastChore, 9) == []
        assert client.claim(LastChore, where={"project": "bad"}) is None
        with pytest.raises((SchemaMismatch, InvalidMutation), match=r"Chore|its model"):
            client.update(LastChore.ref(bad[0].id), note="why?")
        assert client.create(LastChore(title="other")).version == 1
        begun = time.monotonic()
        assert client.claim(LastChore).title == "other"
        assert time.monotonic() - begun < 0.2, "no claim waits for what never came to an end before"
    assert (engine.pid, engine.restarts) == (pid, 0)


def test_who_waits_is_given_what_becomes_ready_together_with_tasks_that_never_end(
    state, start_engine, limits, wait_until
):
    limits = msgspec.structs.replace(limits, decide_timeout_s=0.2, request_timeout_s=20)
    engine = start_engine(state, models=[NextChore], limits=limits)
    with connect(state) as client:
        first = client.create(NextChore(title="first"))
        for number, title in enumerate(["never ends", "never ends", "good"]):
            priority = "low" if number == 2 else "high"
            client.create(NextChore(title=title, dependencies=(first.id,), project="late", priority=priority))
    engine.stop()
    start_engine(state, models=[LastChore], limits=limits)
    with connect(state, limits=limits) as client, connect(state, limits=limits) as other:
        mine = client.claim(LastChore)
        got: list[LastChore | None] = []
        claim = partial(other.claim, LastChore, where={"project": "late"}, timeout_s=15)
        waiting = threading.Thread(target=lambda: got.append(claim()))
        waiting.start()
        wait_until(lambda: other._session.in_flight, 20, "the claim to be sent")
        other.create(Task(title="behind it"))
        client.complete(mine)
        begun = time.monotonic()
        waiting.join()
        assert [one and one.title for one in got] == ["good"]
        assert time.monotonic() - begun < 5, "not only when it would have waited for long enough"


def test_a_class_of_which_one_task_never_ends_has_less_time_for_each_of_the_others(state, start_engine, limits):
    limits = msgspec.structs.replace(limits, decide_timeout_s=0.5, request_timeout_s=20)
    engine = start_engine(state, models=[NextChore], limits=limits)
    with connect(state) as client:
        for _ in range(10):
            client.create(NextChore(title="never ends", priority="high"))
        client.create(NextChore(title="good"))
    engine.stop()
    start_engine(state, models=[LastChore], limits=limits)
    with connect(state, limits=limits) as client:
        begun = time.monotonic()
        assert client.claim(LastChore).title == "good"
        assert time.monotonic() - begun < 3, "not half a second or more for each"


class SlowChore(Task, kind="Chore"):
    note: str = ""

    @model_validator(mode="after")
    def _take_time(self) -> Self:
        if self.project == SLOW:
            take_time(SLOW, 0.05)
        return self


def test_a_look_at_all_tasks_whose_class_takes_its_time_keeps_nobody_waiting_for_more_than_one(
    state, start_engine, limits
):
    engine = start_engine(state, models=[Chore], limits=limits)
    with connect(state) as client:
        for number in range(20):
            client.create(Chore(title=str(number), project=SLOW))
    engine.register(NextChore)
    engine.stop()
    start_engine(state, models=[SlowChore], limits=limits)
    with connect(state, limits=limits) as client, connect(state, limits=limits) as other:
        claiming = threading.Thread(target=client.claim, args=(SlowChore,))
        claiming.start()
        took: list[float] = []
        while claiming.is_alive():
            begun = time.monotonic()
            other.create(Task(title="other"))
            took.append(time.monotonic() - begun)
        claiming.join()
        assert len(took) > 10, "others were served in between"
        assert max(took) < 1, "not all of them at once, which takes two seconds"


class Required(Entity, kind="Doc"):
    owner: str
    secret: str
    wanted: int


class OtherType(Entity, kind="Doc"):
    owner: int
    secret: str


class Fewer(Entity, kind="Doc"):
    owner: str
    secret: str
    level: Shorter = Shorter.LOW


@pytest.mark.parametrize(("cls", "field"), [(Required, "wanted"), (OtherType, "owner"), (Fewer, "level")])
def test_a_class_that_cannot_read_it_is_refused_by_model_field_and_revision(state, start_engine, cls, field):
    engine = start_engine(state, models=[Doc])
    with connect(state) as client:
        stored(client)
        with pytest.raises(SchemaMismatch, match=rf"Doc 'd\d'.*{field}.*revision \d+"):
            engine.register(cls)
        assert client.update(Doc.ref("d3"), score=9).version == 3, "nothing has changed"
    engine.stop()
    with pytest.raises(EngineStartFailed, match=rf"Doc 'd\d'.*{field}.*revision \d+"):
        start_engine(state, models=[cls])
    start_engine(state, models=[Doc])
    with connect(state) as client:
        assert client.get(Doc, "d3").score == 9


def test_a_refusal_about_what_a_class_does_not_fit_is_told_with_that_by_name(state, start_engine):
    start_engine(state, models=[Doc])
    with connect(state) as owner, connect(state) as client:
        owner.create(Doc(id="d", owner="ann", level="high", secret="s"))
        target = Blind.ref("d")
        with pytest.raises(VersionConflict) as refused:
            client.delete(target, expect=7)
        assert (refused.value.current["level"], refused.value.version) == ("high", 1)
        told = client.outcome(refused.value.request_id)
        assert isinstance(told, VersionConflict)
        assert told.current == refused.value.current
        asked = [Update(target, {"note": "x"}, expect=7), Create(Blind(id="e", owner="x", secret="s")), Delete(target)]
        errors = [reply.error for reply in client.submit_many(asked)]
    assert [type(error) for error in errors] == [VersionConflict, SchemaMismatch, type(None)]


def test_what_was_made_by_a_class_that_a_notebook_defined_again_goes_on(state, start_engine):
    def define():
        class Page(Entity, kind="Page"):
            number: int = 0
            size: Size = Size()
            hidden: str = Field("", exclude=True)
            price: Decimal = Decimal(0)

            @field_serializer("price")
            def _rounded(self, price):
                return round(price, 1)

            @computed_field
            def double(self) -> int:
                return 2 * self.number

        return Page

    first, again = define(), define()
    start_engine(state, models=[first])
    with connect(state) as client, connect(state) as other:
        page = client.create(first(id="p", hidden="x", price=Decimal("1.25")))
        assert type(client.update(again.ref("p"), number=1)) is again
        page = client.update(page, number=2, expect=None)
        assert (type(page), page.number, page.size) == (first, 2, Size())
        assert (page.hidden, page.price, page.double) == ("x", Decimal("1.25"), 4)
        with client.transaction() as tx:
            tx.update(page, size=Size())
        assert type(tx.result(first.ref("p"))) is first

        def grown(page):
            if page.number == 2:
                other.update(first.ref("p"), number=3)
            return {"number": page.number + 1}

        assert client.apply(page, grown).number == 4


class Sized(Entity, kind="Page"):
    owner: str = ""
    size: int = 0


class Unsized(Entity, kind="Page"):
    owner: str = ""


class Spoken(Entity, kind="Page"):
    owner: str = ""
    lang: str = "en"


@pytest.mark.parametrize("other", [Unsized, Spoken])
def test_what_a_request_left_is_of_the_class_that_it_was_made_by_whatever_was_read_meanwhile(
    state, start_engine, other
):
    start_engine(state, models=[Sized])
    with connect(state) as client, connect(state) as overtaking:
        client.create(Sized(id="p", size=5))
        assert client.get(other, "p").version == 1
        assert client.update(Sized.ref("p"), owner="ann") == Sized(id="p", version=2, owner="ann", size=5)
        with client.transaction() as tx:
            tx.update(Sized.ref("p"), owner="ben")
        assert tx.result(Sized.ref("p")).size == 5

        def larger(page):
            if page.size == 5 and page.version == 3:
                overtaking.update(Sized.ref("p"), owner="cat")
            return {"size": page.size + 1}

        assert client.apply(Sized.ref("p"), larger).size == overtaking.get(Sized, "p").size == 6


@pytest.mark.parametrize("other", [Unsized, Spoken])
def test_what_a_refusal_tells_of_an_entity_is_of_the_class_that_was_asked_with(state, start_engine, other):
    start_engine(state, models=[Sized])

    def refusal(call, *given, **more):
        with pytest.raises(VersionConflict) as refused:
            call(*given, **more)
        return refused.value

    async def awaited():
        async with aio.connect(state) as agent:
            assert (await agent.get(other, "p")).version == 2
            with pytest.raises(VersionConflict) as refused:
                await agent.update(read, size=7)
            with pytest.raises(VersionConflict) as removed:
                await agent.delete(read)
            return refused.value, removed.value

    with connect(state) as client:
        read = client.create(Sized(id="p", size=5))
        newest = client.update(read, size=7)
        assert client.get(other, "p").version == 2
        conflicts = [refusal(client.update, read, size=7), refusal(client.delete, read), *asyncio.run(awaited())]

        def together():
            with client.transaction() as tx:
                tx.update(read, owner="ann")

        conflicts.append(refusal(together))
        assert [conflict.current for conflict in conflicts] == [newest] * 5
        assert [conflicts[place].verdict for place in (0, 2)] == ["yours"] * 2
        assert client.submit(Update(read, {"size": 8})).error.current == newest


def test_apply_of_asyncio_reads_again_as_the_class_that_it_was_called_with(state, start_engine):
    start_engine(state, models=[Sized])

    async def main():
        async with aio.connect(state) as client:
            with connect(state) as overtaking:
                overtaking.create(Sized(id="p", size=5))
                assert [(await client.get(cls, "p")).version for cls in (Sized, Unsized)] == [1, 1]

                def larger(page):
                    if page.version == 1:
                        overtaking.update(Sized.ref("p"), owner="cat")
                    return {"size": page.size + 1}

                assert (await client.apply(Sized.ref("p"), larger)).size == 6

    asyncio.run(main())
