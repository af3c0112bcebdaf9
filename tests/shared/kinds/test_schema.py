"""A schema tells whoever reads later, or without the class, what a record's fields are, and apart what is not alike."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import warnings
from typing import Annotated, Literal

import msgspec
import pydantic
import pytest
from pydantic import ConfigDict, Field, StringConstraints, create_model

from solewriter.shared.config import MESSAGE_MAX, PROBLEMS_MAX
from solewriter.shared.entity import Entity, Part
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kinds.columns import NO_INT, text_hash, to_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import differences
from solewriter.shared.models import Project, Task
from solewriter.shared.where import demands, plain_where

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
NOW_US = 1_893_456_000_000_000

TASK = Kind(Task)


def learned(schema):
    """A schema as it comes back from the journal or the catalog."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(schema), type=type(schema))


class Doc1(Entity, kind="Doc"):
    size: int = 1
    title: str = "old"
    gone: str = "was there"
    tags: tuple[str, ...] = ("a",)


class Doc2(Entity, kind="Doc"):
    size: int = 2
    title: str = "new"
    added: int = 7
    tags: tuple[str, ...] = ()


def test_defaults_of_an_older_schema_survive_another_default_in_the_code():
    old, new = Kind(Doc1), Kind(Doc2)
    schema = learned(old.schema)
    payload = old.payload(old.stored_fields(Doc1(id="d", title="mine")))
    assert new.decode_entity(schema, "d", 3, 0, payload) == Doc2(
        id="d", version=3, size=1, title="mine", tags=("a",), added=7
    )
    assert new.decode_entity(new.schema, "d", 3, 0, payload).size == 2


def test_a_default_that_its_own_field_would_refuse_survives_another_shape_of_the_class():
    """pydantic validates no defaults, and people rely on that."""
    fields = {"name": (Annotated[str, Field(min_length=1)], ""), "note": (str, None), "size": (int, 1)}
    old = Kind(create_model("Doc", __base__=Entity, **fields))
    new = Kind(create_model("Doc", __base__=Entity, **fields, added=(int, 7)))
    payload = old.payload(old.stored_fields(old.model(id="d", size=2)))
    assert new.decode_entity(learned(old.schema), "d", 0, 0, payload) == new.model(id="d", size=2)
    assert new.payload(new.fields_of(learned(old.schema), payload)) == payload


def test_a_field_that_there_was_is_not_read_by_the_name_of_another_one():
    both = Kind(create_model("Doc", __base__=Entity, keeper=(str, "nobody"), owner=(str, ...)))

    class Doc(Entity):
        model_config = ConfigDict(populate_by_name=True)
        keeper: str = Field("nobody", validation_alias=pydantic.AliasChoices("keeper", "owner"))

    payload = both.payload(both.stored_fields(both.model(owner="ann")))
    assert Kind(Doc).fields_of(learned(both.schema), payload).get("keeper", "nobody") == "nobody"


def test_fields_that_the_class_does_not_have_any_more_are_dropped():
    old, new = Kind(Doc1), Kind(Doc2)
    payload = old.payload(old.stored_fields(Doc1(id="d", gone="something")))
    assert "gone" not in new.fields_of(learned(old.schema), payload)
    assert old.decode_entity(learned(old.schema), "d", 1, 0, payload).gone == "something"


def test_readers_without_the_class_read_all_fields_as_plain_values():
    task = Task(id="t", title="t", reviewers=["a"], metadata={"a": 1}, version=5, updated_at=NOW)
    values = learned(TASK.schema).values("t", 5, NOW_US, TASK.payload(TASK.stored_fields(task)))
    assert values["updated_at"] == NOW
    assert Task(**values) == task
    assert list(values["reviewers"]) == ["a"]
    assert (values["status"], values["id"], values["version"]) == ("created", "t", 5)
    assert Kind(Doc1).schema.values("d", 1, NOW_US, b"\x80")["gone"] == "was there"
    assert "updated_at" not in Kind(Doc1).schema.values("d", 1, NOW_US, b"\x80")


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        NOW.astimezone(datetime.timezone(datetime.timedelta(hours=1))),
        datetime.datetime.max.replace(tzinfo=datetime.UTC),
    ],
)
def test_a_moment_that_is_a_default_is_a_moment_to_whoever_reads_plain_values(moment):
    """To readers without the class, to conditions, and to cells that are made anew."""
    fields = {"due": (pydantic.AwareDatetime, moment), "held": (datetime.datetime | None, moment)}
    model = create_model("Doc", __base__=Entity, **fields)
    model.column_names = ("due",)
    kind = Kind(model)
    schema = learned(kind.schema)
    values = schema.values("d", 1, 0, kind.payload(kind.stored_fields(model(id="d"))))
    assert (values["due"], values["held"]) == (moment, moment)
    for demand in demands(kind, plain_where(kind, {"due": moment, "held": [moment]})):
        assert demand.holds(values[demand.name])
    assert kind.columns[0].cell_or_none(kind.columns[0].value_in({}, schema.defaults)) == to_us(moment)


def test_the_cells_of_an_older_record_are_those_of_its_own_values():
    """Of a column that came with a newer class, by what the record says; of a field that it is older than, by the
    default there.
    """

    class Old(Entity, kind="Doc", columns=("title",)):
        title: str = "old"
        size: int = 1
        level: str = "low"

    class New(Entity, kind="Doc", columns=("size", "level", "title", "added")):
        title: str = "new"
        size: int = 2
        level: int = 3
        added: int | None = 7

    old, new = Kind(Old), Kind(New)
    schema = learned(old.schema)
    for entity in (Old(id="d"), Old(id="d", title="mine", size=9, level="high")):
        fields = old.stored_fields(entity)
        block, _ = old.layout.cut(fields, "d", 1, 0)
        values = functools.partial(schema.values, "d", 1, 0, old.payload(fields))
        cells = schema.cells(new.columns, block, values, new.schema.defaults)
        assert list(cells) == [entity.size, NO_INT, text_hash(entity.title), 7]
        assert list(schema.cells(old.columns, block, dict, {})) == [text_hash(entity.title)]


def test_a_schema_tells_apart_what_changes_the_meaning_of_payloads():
    digests = {
        Kind(model).schema.digest()
        for model in (
            Doc1,
            Doc2,
            create_model("Doc", __base__=Entity, size=(int, 1)),
            create_model("Doc", __base__=Entity, size=(int, 2)),
            create_model("Doc", __base__=ByName, __cls_kwargs__={"columns": ("size",)}, size=(int, 1)),
            create_model("Doc", __base__=Entity, size=(int, 1), updated_at=(pydantic.AwareDatetime | None, None)),
        )
    }
    assert len(digests) == 6
    assert Kind(Doc1).schema.digest() == learned(Kind(Doc1).schema).digest()


def test_a_schema_is_the_same_whatever_people_are_told_about_its_fields():
    """Titles and descriptions, unless they are fields by these names."""
    plain_fields = create_model("Doc", __base__=Entity, title=(str, ...), size=(int, Field(gt=0)))
    described = create_model(
        "Doc",
        __base__=Entity,
        __doc__="More words.",
        title=(str, Field(title="Its title", description="What it is called")),
        size=(int, Field(gt=0, title="Size", examples=[1])),
    )
    assert Kind(described).schema.digest() == Kind(plain_fields).schema.digest()
    for others in (
        {"title": (int, ...), "size": (int, Field(gt=0))},
        {"title": (str, ...), "size": (int, Field(gt=1))},
        {"description": (str, ...), "size": (int, Field(gt=0))},
    ):
        other = create_model("Doc", __base__=Entity, **others)
        assert Kind(other).schema.digest() != Kind(plain_fields).schema.digest()


def test_a_schema_tells_apart_a_class_that_renames_a_field_whatever_it_was():
    for was in ("left", "smart"):
        renamed = create_model("Doc", __base__=ByName, field=(int, Field(validation_alias=was)))
        assert (
            Kind(renamed).schema.digest()
            != Kind(create_model("Doc", __base__=ByName, field=(int, ...))).schema.digest()
        )


def test_a_schema_is_the_same_whether_a_union_says_its_mode_or_not():
    one, two = (
        Kind(create_model("Doc", __base__=Entity, field=(annotation, ...))).schema.digest()
        for annotation in (int | str, Annotated[int | str, Field(union_mode="smart")])
    )
    assert one == two


class Narrow(Part):
    a: int = 0


class Wide(Part):
    a: int = 0
    b: int = 0


Wide.__name__ = Wide.__qualname__ = "Narrow"
STRICTER = [
    (int, Annotated[int, Field(ge=5)]),
    (str, Annotated[str, Field(max_length=3)]),
    (str, Annotated[str, pydantic.StringConstraints(to_lower=True)]),
    (Wide, Narrow),
    (tuple[Wide, ...], tuple[Narrow, ...]),
    (pydantic.NaiveDatetime, pydantic.AwareDatetime),
    (datetime.date, Annotated[datetime.date, Field(gt=datetime.date(2020, 1, 1))]),
    (datetime.time, Annotated[datetime.time, Field(le=datetime.time(12))]),
    (datetime.timedelta, Annotated[datetime.timedelta, Field(ge=datetime.timedelta(1))]),
    (decimal.Decimal, Annotated[decimal.Decimal, Field(max_digits=3)]),
    (FrozenMap, Json),
    (int | str, Annotated[int | str, Field(union_mode="left_to_right")]),
    (int | str | None, Annotated[int | str | None, Field(union_mode="left_to_right")]),
    (tuple[int | str, ...], tuple[Annotated[int | str, Field(union_mode="left_to_right")], ...]),
]


@pytest.mark.parametrize("beside", [{}, {"answer": (Json, None)}, {"settings": (FrozenMap, FrozenMap())}])
@pytest.mark.parametrize(("annotation", "other"), STRICTER)
def test_a_schema_tells_apart_all_types_and_constraints_whatever_is_beside_them(annotation, other, beside):
    """JSON schema has no words for some of them, and none at all for a map of plain data."""
    one, two, again = (
        Kind(create_model("Doc", __base__=Entity, field=(kind, ...), **beside)).schema.digest()
        for kind in (annotation, other, annotation)
    )
    assert one == again != two


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(bytes, b"\xff"), (tuple[FrozenMap, ...], (FrozenMap(a=1),)), (frozenset[bytes], frozenset([b"\xff"]))],
)
def test_a_schema_is_the_same_where_warnings_are_errors(annotation, default):
    """Else tests that make them so could store nothing by an engine that does not; and there is nothing to warn of."""
    model = create_model("Doc", __base__=Entity, field=(annotation, default))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = Kind(model).schema
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Kind(model).schema == schema
    assert schema.shape != Kind(create_model("Doc", __base__=Entity, field=(annotation | None, default))).schema.shape


def test_a_schema_beside_plain_data_does_not_depend_on_where_a_part_lives():
    elsewhere = type("Narrow", (Part,), {"__annotations__": {"a": int}, "a": 0, "__module__": "elsewhere"})
    one, two = (
        Kind(create_model("Doc", __base__=Entity, part=(part, ...), answer=(Json, None))).schema.digest()
        for part in (Narrow, elsewhere)
    )
    assert one == two


def test_a_schema_that_comes_back_from_the_journal_is_still_ours():
    payload = TASK.payload({"title": "t", "priority": "high"})
    fields = Kind(Task).fields_of(learned(TASK.schema), payload)
    assert fields == {"title": "t", "priority": "high"}
    assert TASK.payload(fields) == payload


class Mood(enum.Enum):
    CALM = "calm"
    WILD = "wild"


class ByName(Entity):
    model_config = ConfigDict(populate_by_name=True)


@pytest.mark.parametrize(
    ("fields", "columns", "told"),
    [
        ({"size": (int, 1)}, ("size",), "mood is only there"),
        ({"size": (int, True)}, ("size",), "mood is only there; size defaults to 1 there, to True here"),
        ({"mood": (Mood, ...), "size": (int, 1)}, ("size",), "mood is a column only there"),
        ({"mood": (Mood, ...), "size": (int, 1), "at": (int, ...)}, ("mood", "size", "at"), "at is a column only here"),
        ({"mood": (Mood, ...), "size": (int, 1)}, ("size", "mood"), "the order of its columns"),
        (
            {"mood": (Literal["calm"], ...), "size": (float, ...)},
            ("mood", "size"),
            "mood is one of ('calm', 'wild') there, of ('calm',) here; size has a default only there; "
            "size is a column of int there, of float here",
        ),
        (
            {"mood": (Mood, Field(alias="temper")), "size": (int, 1)},
            ("mood", "size"),
            "mood has other earlier names",
        ),
    ],
)
def test_what_a_class_here_has_other_than_the_engines_is_told_field_by_field(fields, columns, told):
    def schema(fields, columns):
        return Kind(create_model("Doc", __base__=ByName, __cls_kwargs__={"columns": columns}, **fields)).schema

    theirs = schema({"mood": (Mood, ...), "size": (int, 1)}, ("mood", "size"))
    ours = schema(fields, columns)
    assert theirs.digest() != ours.digest()
    assert differences(learned(theirs), ours, {"id", "version", *fields}) == told


def test_a_class_here_that_makes_other_texts_than_the_engines_is_told():
    there, here = (
        Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": ("name",)}, name=(annotation, "")))
        for annotation in (str, Annotated[str, StringConstraints(to_lower=True)])
    )
    told = differences(learned(there.schema), here.schema, here.model.model_fields.keys())
    assert told == "name is text as it is given there, made by to_lower here"


def test_of_two_classes_that_have_hardly_anything_in_common_some_of_it_is_told():
    there, here = (
        Kind(create_model("Doc", __base__=Entity, **{f"{letter}{number}" * 50: (str, "") for number in range(50)}))
        for letter in ("x", "y")
    )
    told = differences(there.schema, here.schema, here.model.model_fields.keys())
    assert len(told) <= MESSAGE_MAX / 2
    few = differences(*(kind.schema for kind in (TASK, Kind(Project))), Project.model_fields.keys())
    assert few.count(";") == PROBLEMS_MAX
    assert few.endswith("more")
