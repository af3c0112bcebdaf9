"""A cell is a fixed-width number that every process makes of a value alike, and what has no such number is refused."""

from __future__ import annotations

import datetime
import enum
import math
import os
import struct
import subprocess
import sys
from typing import Annotated, Literal, NewType

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, StringConstraints, create_model

from solewriter.shared.config import MEMORY_VERSION
from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidMutation, LayoutMismatch
from solewriter.shared.kinds.columns import NO_INT, Column, column_of, from_us, text_hash, to_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.memory import catalog as catalogs
from solewriter.shared.models import Task, TaskStatus

UTC = datetime.UTC


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"
    HUGE = "large"  # an alias is no value of its own


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 7


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


Name = NewType("Name", str)


def column_for(annotation):
    return column_of(create_model("Doc", __base__=Entity, field=(annotation, None)), "field")


def cell_of(annotation, value):
    column = column_for(annotation)
    cell = column.cell()(value)
    assert struct.unpack("<" + column.code, struct.pack("<" + column.code, cell)) == (cell,) or math.isnan(cell)
    return cell


# --- each type --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "code", "type_", "values"),
    [
        (Size, "B", "enum", ("small", "large")),
        (Level, "B", "enum", (-1, 7)),
        (Colour, "B", "enum", ("red", "blue")),
        (Literal["west", "east"], "B", "enum", ("east", "west")),
        (Literal["a", None], "B", "enum", ("a",)),  # noqa: PYI061 - that is the case
        (bool, "B", "bool", ()),
        (int, "q", "int", ()),
        (float, "d", "float", ()),
        (datetime.datetime, "q", "time", ()),
        (pydantic.AwareDatetime, "q", "time", ()),
        (str, "Q", "str", ()),
        (Name, "Q", "str", ()),
        (Annotated[Name, StringConstraints(to_lower=True, max_length=9)], "Q", "str", ("to_lower",)),
        (
            Annotated[str, StringConstraints(to_upper=True, strip_whitespace=True)],
            "Q",
            "str",
            ("strip_whitespace", "to_upper"),
        ),
        (Annotated[int, Field(ge=0)], "q", "int", ()),
    ],
)
def test_a_column_is_what_its_field_is_with_and_without_none(annotation, code, type_, values):
    assert column_for(annotation) == Column("field", code, type_, values)
    assert column_for(annotation | None) == Column("field", code, type_, values)


@pytest.mark.parametrize(
    ("annotation", "value", "cell"),
    [
        (Size, Size.SMALL, 1),
        (Size, Size.HUGE, 2),
        (Size, "large", 2),
        (Level, Level.LOW, 1),
        (Level, 7, 2),
        (Colour, Colour.BLUE, 2),
        (Colour, "red", 1),
        (Literal["west", "east"], "east", 1),
        (Literal[3, 4], 3, 1),
        (bool, False, 1),
        (bool, True, 2),
        (int, 0, 0),
        (int, -5, -5),
        (int, 2**63 - 1, 2**63 - 1),
        (int, NO_INT + 1, NO_INT + 1),
        (float, -0.5, -0.5),
        (pydantic.AwareDatetime, datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 1_000_000),
        (pydantic.AwareDatetime, datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (str, "a", text_hash("a")),
        (str, "", text_hash("")),
    ],
)
def test_the_cell_of_a_value(annotation, value, cell):
    assert cell_of(annotation, value) == cell
    assert cell_of(annotation | None, value) == cell


@pytest.mark.parametrize(
    ("annotation", "cell"),
    [
        (Size, 0),
        (Colour, 0),
        (Literal["a"], 0),
        (bool, 0),
        (int, -(2**63)),
        (pydantic.AwareDatetime, -(2**63)),
        (str, 0),
    ],
)
def test_none_has_a_cell_that_no_value_has(annotation, cell):
    assert cell_of(annotation | None, None) == cell


def test_none_among_floats_is_nan():
    assert math.isnan(cell_of(float | None, None))


def test_every_value_of_an_enum_has_a_code_of_its_own_and_none_has_zero():
    cells = [cell_of(TaskStatus, status) for status in TaskStatus]
    assert cells == list(range(1, 13))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Size, "medium"),
        (Size, ["small"]),
        (Literal[3, 4], 5),
        (bool, 5),
        (bool, "yes"),
        (int, "5"),
        (int, 1.5),
        (int, 2**63),
        (float, "5"),
        (float, 10**400),
        (pydantic.AwareDatetime, "2030-01-01T00:00:00Z"),
        (pydantic.AwareDatetime, datetime.datetime(2030, 1, 1)),
        (str, 5),
    ],
)
def test_what_another_class_left_there_and_a_column_never_holds_has_the_cell_of_none(annotation, value):
    """It is read without its class, so nobody can say what it would be."""
    column = column_for(annotation | None)
    assert column.cell_or_none(value) == column.cell()(None) or math.isnan(column.cell_or_none(value))


def test_a_plain_value_that_a_column_holds_has_its_cell():
    assert [column_for(int).cell_or_none(5), column_for(Size).cell_or_none("large")] == [5, 2]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2**63, 2**64, NO_INT, -(2**70), 10**5000], ids=["63", "64", "none", "low", "huge"])
def test_an_integer_without_a_cell_is_a_refusal_that_names_the_field(value):
    kind = Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": ("field",)}, field=(int, 0)))
    with pytest.raises(InvalidMutation, match="63 bits") as refusal:
        kind.layout.cut({"field": value}, "key", 1, 0)
    assert set(refusal.value.fields) == {"field"}


def test_a_time_without_a_zone_has_no_cell_and_is_a_refusal_that_names_the_field():
    kind = Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": ("at",)}, at=(datetime.datetime, ...)))
    with pytest.raises(InvalidMutation, match="time zone") as refusal:
        kind.layout.cut({"at": datetime.datetime(2030, 1, 1)}, "key", 1, 0)
    assert set(refusal.value.fields) == {"at"}


def test_a_value_that_is_none_of_an_enums_is_a_value_error():
    for stranger in ("medium", Colour.RED, 7):
        with pytest.raises(ValueError, match="not one of"):
            column_for(Size).cell()(stranger)


@pytest.mark.parametrize(
    "annotation",
    [
        bytes,
        datetime.date,
        datetime.timedelta,
        tuple[str, ...],
        frozenset[str],
        int | str,
        Access,
        Literal[True],
        Literal[b"a"],
        Literal["a", b"b"],
    ],
)
def test_a_field_without_a_fixed_width_is_no_column(annotation):
    with pytest.raises(TypeError, match=r"Doc\.field: a column is"):
        column_for(annotation)


def test_an_enum_of_more_than_255_values_is_no_column():
    wide = enum.StrEnum("Wide", {f"V{number}": f"v{number}" for number in range(256)})
    with pytest.raises(TypeError, match="255"):
        column_for(wide)
    fits = enum.StrEnum("Fits", {f"V{number}": f"v{number}" for number in range(255)})
    assert cell_of(fits, "v254") == 255


def test_a_column_of_a_field_that_is_not_there_names_it():
    with pytest.raises(TypeError, match="Doc declares the column 'nothing'"):

        class Doc(Entity, columns=("nothing",)):
            pass


def test_a_kind_has_at_most_32_columns():
    fields = {f"f{number}": (int, 0) for number in range(33)}
    assert (
        len(
            Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": tuple(fields)[:32]}, **fields)).columns
        )
        == 32
    )
    with pytest.raises(TypeError, match="more than 32"):
        Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": tuple(fields)}, **fields))


# --- text and time ----------------------------------------------------------------------------------------------------

HASHES = (
    "import sys; from solewriter.shared.kinds.columns import text_hash; print([text_hash(t) for t in sys.argv[1:]])"
)


@pytest.mark.parametrize("seed", ["0", "4242"])
def test_a_text_has_the_same_hash_in_every_process(seed):
    texts = ["", "a", "crawler", "ünï€", "x" * 5000]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", HASHES, *texts], env=env, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == str([text_hash(text) for text in texts])


def test_a_text_has_the_same_hash_on_every_day():
    assert text_hash("crawler") == 1486737271217626397
    assert text_hash("") == 13020603013274838756


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_a_hash_fits_a_cell_and_is_never_that_of_none(text):
    assert 0 < text_hash(text) < 2**64


def test_text_that_cannot_be_encoded_is_a_refusal_that_names_the_field():
    kind = Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": ("field",)}, field=(str, "")))
    with pytest.raises(InvalidMutation) as refusal:
        kind.layout.cut({"field": "\ud800"}, "key", 1, 0)
    assert set(refusal.value.fields) == {"field"}


@settings(max_examples=200, deadline=None)
@given(
    st.datetimes(
        timezones=st.just(UTC)
        | st.builds(datetime.timezone, st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23))),
        min_value=datetime.datetime(2, 1, 1),
        max_value=datetime.datetime(9998, 1, 1),
    )
)
def test_a_time_keeps_its_microsecond_in_any_zone(moment):
    assert from_us(to_us(moment)) == moment
    assert -(2**63) < to_us(moment) < 2**63


@settings(max_examples=200, deadline=None)
@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_microseconds_are_exact(time_us):
    assert to_us(from_us(time_us)) == time_us


# --- what readers learn -----------------------------------------------------------------------------------------------


def test_readers_without_the_class_learn_every_column_from_the_catalog():
    fields = {
        "size": (Size, Size.SMALL),
        "level": (Level, Level.LOW),
        "colour": (Colour | None, None),
        "letter": (Literal["a", None], None),  # noqa: PYI061 - that is the case
        "good": (bool, True),
        "count": (int | None, None),
        "weight": (float, 0.5),
        "at": (pydantic.AwareDatetime | None, None),
        "owner": (str, ""),
    }
    doc = Kind(create_model("Doc", __base__=Entity, __cls_kwargs__={"columns": tuple(fields)}, **fields))
    task = Kind(Task)
    tables = tuple(catalogs.Table(0, kind.columns) for kind in (task, doc))
    schemas = tuple(msgspec.structs.replace(kind.schema, code=code, kind=code) for code, kind in enumerate((task, doc)))
    catalog = catalogs.Catalog(MEMORY_VERSION, ("Task", "Doc"), schemas, tables)
    learned = catalogs.unpack(catalogs.pack(catalog) + b"\0\0\0")
    assert learned.tables == tables
    assert [schema.columns for schema in learned.schemas] == [task.columns, doc.columns]
    assert [schema.digest() for schema in learned.schemas] == [schema.digest() for schema in schemas]
    assert (learned.kind_code("Doc"), learned.kind_code("Ship")) == (1, None)


@pytest.mark.parametrize(
    "damaged",
    [
        catalogs.pack(catalogs.EMPTY)[:-1],
        b"\x05\0\0\0hello",
        catalogs.pack(msgspec.structs.replace(catalogs.EMPTY, version=MEMORY_VERSION + 1)),
    ],
    ids=["short", "other", "newer"],
)
def test_a_catalog_of_another_form_is_refused(damaged):
    assert catalogs.unpack(catalogs.pack(catalogs.EMPTY)) == catalogs.EMPTY
    with pytest.raises(LayoutMismatch, match="catalog"):
        catalogs.unpack(damaged)
