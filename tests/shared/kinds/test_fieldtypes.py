"""Which field types a stored model may have: what is mutable or cannot be read back is refused, with what to use."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import pathlib
import typing
import uuid
from typing import Annotated, Any, ClassVar, Literal, NewType, Optional, Union

import pydantic
import pytest
import typing_extensions
from pydantic import ConfigDict, Field, create_model

from solewriter.shared.entity import Entity, Part
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kinds.fieldtypes import UnsuitableField, bare_type, nested_models
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Artifact, Criterion, Project, Task


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.Enum):
    RED = "red"


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Floating(enum.Enum):
    HALF = 0.5


class Empty(enum.Enum):
    pass


class Point(Part):
    x: int = 0


class Circle(Part):
    centre: Point = Point()


class Node(Part):
    below: tuple[Node, ...] = ()


class Soft(pydantic.BaseModel):
    x: int = 0


class Open(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Holder(Part):
    soft: Soft = Soft()


@dataclasses.dataclass(frozen=True)
class Record:
    x: int = 0


class Pair(typing.NamedTuple):
    x: int


class Keys(typing_extensions.TypedDict):
    x: int


class Arbitrary(Entity):
    """With it, pydantic takes types that it does not know."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


Name = NewType("Name", str)
Names = NewType("Names", list)
Tags = typing_extensions.TypeAliasType("Tags", dict[str, int])


def model_with(annotation, default=...):
    return create_model("Doc", __base__=Arbitrary, field=(annotation, default))


def refusal_of(annotation, default=...):
    with pytest.raises(UnsuitableField) as refusal:
        model_with(annotation, default)
    assert str(refusal.value).startswith("Doc.field")
    return str(refusal.value)


# --- mutable ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "instead"),
    [
        (list, "tuple[X, ...]"),
        (list[int], "tuple[X, ...]"),
        (typing.List[int], "tuple[X, ...]"),  # noqa: UP006 - the old spelling too
        (collections.abc.Sequence[int], "tuple[X, ...]"),
        (collections.abc.MutableSequence[int], "tuple[X, ...]"),
        (dict, "FrozenMap"),
        (dict[str, int], "FrozenMap"),
        (typing.Dict[str, int], "FrozenMap"),  # noqa: UP006 - the old spelling too
        (collections.abc.Mapping[str, int], "FrozenMap"),
        (collections.abc.MutableMapping[str, int], "FrozenMap"),
        (set, "frozenset[X]"),
        (set[int], "frozenset[X]"),
        (collections.abc.Set[int], "frozenset[X]"),
        (collections.abc.MutableSet[int], "frozenset[X]"),
        (bytearray, "bytes"),
        (Any, "Json"),
        (object, "Json"),
    ],
)
def test_a_mutable_type_is_refused_and_its_alternative_named(annotation, instead):
    assert f"use {instead}" in refusal_of(annotation)


@pytest.mark.parametrize(
    ("annotation", "instead"),
    [
        (tuple[list[int], ...], "tuple[X, ...]"),
        (tuple[int, dict[str, int]], "FrozenMap"),
        (tuple[tuple[set[int], ...], ...], "frozenset[X]"),
        (frozenset[tuple[list[int], ...]], "tuple[X, ...]"),
        (list[int] | None, "tuple[X, ...]"),
        (Optional[dict], "FrozenMap"),  # noqa: UP045 - the old spelling too
        (Union[int, list], "tuple[X, ...]"),  # noqa: UP007 - the old spelling too
        (Annotated[list[int], Field(max_length=3)], "tuple[X, ...]"),
        (tuple[Annotated[dict[str, int] | None, Field()], ...], "FrozenMap"),
        (Names, "tuple[X, ...]"),
        (Tags, "FrozenMap"),
        (tuple[Tags | None, ...], "FrozenMap"),
    ],
)
def test_a_mutable_type_is_found_wherever_it_is_nested(annotation, instead):
    assert f"use {instead}" in refusal_of(annotation)


def test_a_mutable_type_inside_a_part_is_refused_by_its_whole_path():
    class Inner(Part):
        tags: list[str]

    class Outer(Part):
        inner: tuple[Inner | None, ...] = ()

    assert "tags" in refusal_of(Outer)
    assert "Doc.field" in refusal_of(Inner | None)


@pytest.mark.parametrize("annotation", [Soft, Soft | None, tuple[Soft, ...], Holder])
def test_a_mutable_model_is_refused_wherever_it_is(annotation):
    assert "Soft is mutable" in refusal_of(annotation)


def test_an_entity_cannot_be_made_mutable_again():
    with pytest.raises(UnsuitableField, match="mutable"):

        class Loose(Entity):
            model_config = ConfigDict(frozen=False)


def test_a_model_that_takes_any_field_would_lose_them_and_is_refused():
    assert "Open" in refusal_of(Open)
    with pytest.raises(UnsuitableField, match="would be lost"):

        class Anything(Entity):
            model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    ("annotation", "default", "instead"),
    [
        (FrozenMap, {}, "FrozenMap()"),
        (Json, [1], "()"),
        (Json, {"a": 1}, "FrozenMap()"),
        (tuple[str, ...], ["a"], "()"),
        (frozenset[str], {"a"}, "frozenset()"),
        (tuple[str, ...], Field(default_factory=list), "()"),
        (FrozenMap, Field(default_factory=dict), "FrozenMap()"),
        (tuple[Json, ...], ([],), "an immutable one"),
    ],
)
def test_a_mutable_default_is_refused(annotation, default, instead):
    refusal = refusal_of(annotation, default)
    assert "default" in refusal
    assert f"use {instead}" in refusal


def test_a_field_that_is_only_known_by_an_alias_could_not_be_read_back_and_is_refused():
    class Aliased(Part):
        from_: str = Field(alias="from")

    assert "from_" in refusal_of(Aliased)
    assert "populate_by_name" in refusal_of(str, Field(validation_alias="text"))


@pytest.mark.parametrize("switch", ["populate_by_name", "validate_by_name"])
def test_an_alias_beside_the_name_is_read_back(switch):
    class Aliased(Entity):
        model_config = ConfigDict(**{switch: True})
        from_: str = Field(alias="from")
        to: str = Field("b", serialization_alias="nach")

    kind = Kind(Aliased)
    entity = kind.validate({"id": "d", "from": "a"})
    assert kind.decode_entity(kind.schema, "d", 0, 0, kind.payload(kind.stored_fields(entity))) == entity


@pytest.mark.parametrize(
    "alias",
    ["size", pydantic.AliasChoices("field", "other", "size"), pydantic.AliasPath("size", 0), "version"],
    ids=str,
)
def test_an_alias_that_is_another_fields_name_is_refused(alias):
    """The field would be read back with the other one's value."""

    class Named(Entity):
        model_config = ConfigDict(populate_by_name=True)

    with pytest.raises(UnsuitableField, match=r"Doc\.field: its alias '(size|version)' is the name of another field"):
        create_model("Doc", __base__=Named, field=(int, Field(1, validation_alias=alias)), size=(int, 2))


def test_an_alias_by_which_nothing_is_read_may_be_anything():
    class Swapped(Entity):
        model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
        one: int = Field(1, alias="two")
        two: int = Field(2, alias="one")

    kind = Kind(Swapped)
    entity = kind.validate({"id": "d", "one": 3, "two": 4})
    assert kind.decode_entity(kind.schema, "d", 0, 0, kind.payload(kind.stored_fields(entity))) == entity
    assert (entity.one, entity.two) == (3, 4)


@pytest.mark.parametrize(
    "annotation",
    [
        Size,
        tuple[int, ...],
        frozenset[str],
        decimal.Decimal,
        uuid.UUID,
        datetime.date,
        datetime.timedelta,
        pydantic.AwareDatetime,
        tuple[Size, ...],
    ],
)
def test_what_is_parsed_when_it_is_read_cannot_be_strict(annotation):
    """It was written, and then nobody could read it."""
    for strict in (Annotated[annotation, pydantic.Strict()], Annotated[annotation, Field(strict=True)]):
        assert "strict" in refusal_of(strict)
        assert "strict" in refusal_of(strict | None)
        assert "strict" in refusal_of(Point | tuple[strict, ...])
    with pytest.raises(UnsuitableField, match="strict"):
        create_model("Doc", __base__=Entity, __cls_kwargs__={"strict": True}, field=(annotation, ...))


def test_what_is_stored_as_it_is_may_be_strict():
    class Exact(Part):
        model_config = ConfigDict(strict=True)
        x: int = 0

    class Doc(Entity):
        model_config = ConfigDict(strict=True)
        count: int
        share: float | None
        raw: bytes
        letter: Literal["a", 1]
        data: FrozenMap
        what: Json
        inner: Exact
        size: Size = Field(strict=False)
        numbers: Annotated[tuple[pydantic.StrictInt, ...], Field(strict=False)]
        created_at: pydantic.AwareDatetime | None = None
        updated_at: pydantic.AwareDatetime | None = None

    kind = Kind(Doc)
    plain = {"count": 1, "share": 0.5, "raw": b"a", "letter": 1, "data": {"a": [1]}, "what": [1], "inner": {"x": 1}}
    entity = kind.validate({**plain, "size": "small", "numbers": [1], "id": "d", "created_at": None})
    again = kind.decode_entity(kind.schema, "d", 0, 0, kind.payload(kind.stored_fields(entity)))
    assert again == entity.model_copy(update={"updated_at": again.updated_at})


class Labels(pydantic.RootModel[FrozenMap]):
    model_config = ConfigDict(frozen=True)


def test_a_model_of_a_bare_value_is_refused():
    """It was stored as a map with one key, and read back as one that holds such a map."""
    assert "Labels" in refusal_of(Labels)
    assert "type" in refusal_of(Labels | None)


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")  # that it shadows something
@pytest.mark.parametrize("name", ["ref", "register", "mro"])
def test_a_field_by_the_name_of_a_method_says_that_it_has_no_default(name):
    """pydantic would take the method for the default."""

    def make(*default):
        return type("Doc", (Entity,), {"__annotations__": {name: str}, "__module__": __name__} | dict(default))

    with pytest.raises(UnsuitableField, match=rf"Doc\.{name}.*Field\(\.\.\.\)"):
        make()
    doc = make((name, Field(...)))
    assert Kind(doc).validate({name: "x"}).__dict__[name] == "x"


# --- not plain data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        complex,
        range,
        memoryview,
        pathlib.Path,
        type,
        type[int],
        collections.deque,
        collections.deque[int],
        collections.Counter,
        collections.abc.Callable[[], int],
        collections.abc.Iterator[int],
        Record,
        Pair,
        Keys,
        pydantic.SecretStr,
        pydantic.HttpUrl,
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(annotation):
    assert refusal_of(annotation).startswith("Doc.field: ")


@pytest.mark.parametrize("annotation", [Mixed, Floating, Empty])
def test_an_enum_has_values_of_one_storable_type(annotation):
    assert "all str or all int" in refusal_of(annotation)


@pytest.mark.parametrize("annotation", [tuple, frozenset])
def test_a_container_says_what_it_holds(annotation):
    assert "say what it holds" in refusal_of(annotation)


@pytest.mark.parametrize(
    "annotation", [pydantic.PastDatetime, pydantic.FutureDatetime, pydantic.PastDate, pydantic.FutureDate | None]
)
def test_a_type_whose_validity_depends_on_the_clock_is_refused(annotation):
    assert "use AwareDatetime" in refusal_of(annotation) or "use datetime.date" in refusal_of(annotation)


@pytest.mark.parametrize(
    "annotation", [enum.Enum("Huge", {"A": 2**63}), enum.IntEnum("Low", {"A": 1, "B": -(2**63) - 1}), Literal[2**70]]
)
def test_numbers_of_an_enum_that_pydantic_does_not_read_are_refused(annotation):
    assert "63 bits and a sign" in refusal_of(annotation)


@pytest.mark.parametrize("annotation", [Literal[Size.SMALL], Literal[Colour.RED, "x"]])
def test_enum_members_in_a_literal_are_refused(annotation):
    assert "use the enum" in refusal_of(annotation)


@pytest.mark.parametrize(
    "item",
    [
        int | str,
        int | None,
        Point,
        FrozenMap,
        Json,
        Colour,
        tuple[int, str],
        frozenset[int],
        datetime.datetime,
        datetime.time,
    ],
)
def test_a_frozenset_of_what_has_no_order_is_refused(item):
    assert "use tuple[X, ...]" in refusal_of(frozenset[item])


# --- unions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        str | Size,
        Size | Literal["a"],
        int | Level,
        Point | Circle,
        Point | FrozenMap,
        tuple[int, ...] | frozenset[int],
        tuple[int, ...] | tuple[str, ...],
        str | datetime.date,
        decimal.Decimal | uuid.UUID,
        Json | None,
        Json | int,
        str | Annotated[int | Size, Field()],
        Annotated[Json, Field()] | str,
    ],
)
def test_members_of_a_union_that_are_stored_alike_are_refused(annotation):
    assert "look alike" in refusal_of(annotation)


@pytest.mark.parametrize(
    "annotation",
    [
        pydantic.AwareDatetime | str,  # crosses the wire as text
        pydantic.AwareDatetime | datetime.date,
        datetime.datetime | datetime.date,
        datetime.datetime | str,  # a naive one is stored as text
        bytes | datetime.date,  # text is valid bytes
        float | decimal.Decimal,
        int | decimal.Decimal,
        bool | decimal.Decimal,
        int | Size,
        float | Level,
        datetime.timedelta | float,
        Annotated[int, Field(ge=0)] | uuid.UUID | None,
        tuple[int | datetime.date, ...],
    ],
)
def test_members_of_a_union_that_would_be_parsed_as_each_other_are_refused(annotation):
    assert "cannot be told apart" in refusal_of(annotation)


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (int | str, (1, "1")),
        (str | bytes, ("a", b"a")),
        (bool | int | float | str | bytes | None, (True, 1, 1.0, "1", b"1", None)),
        (float | int, (1, 1.0)),
        (Literal["1", None] | int, ("1", 1, None)),  # noqa: PYI061 - that is the case
        (datetime.date | None, (datetime.date(2030, 1, 1), None)),
        (Point | None, (Point(x=1), None)),
        (Point | tuple[int, ...] | str, (Point(x=1), (1,), "1")),
        (datetime.date | Point | tuple[str, ...], (datetime.date(2030, 1, 1), Point(), ("a",))),
        (frozenset[str] | FrozenMap | None, (frozenset({"a"}), FrozenMap(a=1), None)),
    ],
)
def test_members_of_a_union_with_different_shapes_are_read_back_as_themselves(annotation, values):
    kind = Kind(model_with(annotation))
    for value in values:
        entity = kind.model(id="d", field=value)
        again = kind.decode_entity(kind.schema, "d", 0, 0, kind.payload(kind.stored_fields(entity)))
        assert again == entity
        assert type(again.field) is type(value)


# --- allowed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        int,
        float,
        bool,
        bytes,
        None,
        datetime.datetime,
        pydantic.AwareDatetime,
        pydantic.NaiveDatetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
        FrozenMap,
        Json,
        Size,
        Level,
        Colour,
        Name,
        Literal["a", "b"],
        Literal["a", 1],
        Point,
        Circle,
        Node,
        Optional[str],  # noqa: UP045 - the old spelling too
        Union[int, None],  # noqa: UP007 - the old spelling too
        Annotated[int, Field(ge=0)],
        Annotated[str, pydantic.AfterValidator(str.lower)] | None,
        pydantic.PositiveInt,
        tuple[int, ...],
        tuple[int, str, Point],
        tuple[()],
        tuple[tuple[Json, ...], ...],
        frozenset[Size],
        frozenset[Annotated[str, Field(min_length=1)]],
        frozenset[pydantic.AwareDatetime],
    ],
)
def test_plain_immutable_types_are_allowed(annotation):
    assert model_with(annotation).model_fields["field"].is_required()
    assert model_with(annotation | None if annotation not in (None, Json) else annotation, None)


@pytest.mark.parametrize("model", [Task, Project])
def test_our_own_models_obey(model):
    assert Kind(model).name == model.__name__


def test_class_variables_and_properties_are_no_fields():
    class Doc(Entity):
        cache: ClassVar[dict[str, int]] = {}

        @property
        def tags(self) -> list[str]:
            return []

    assert set(Doc.model_fields) == {"id", "version"}


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")  # that it shadows something
@pytest.mark.parametrize("name", ["kind_name", "column_names", "lifecycle"])
def test_a_field_cannot_be_called_like_what_a_class_says_of_itself(name):
    with pytest.raises(TypeError, match=f"{name!r}"):
        create_model("Doc", __base__=Entity, **{name: (str, "x")})


# --- forward references -----------------------------------------------------------------------------------------------


def test_a_model_that_refers_to_itself_is_checked_once():
    class Tree(Entity):
        root: Node
        beside: tuple[Node, ...] = ()

    assert Tree(root=Node(below=(Node(),))).root.below == (Node(),)


def test_a_type_that_is_named_before_it_exists_is_checked_at_registration():
    class Early(Entity):
        later: Later  # noqa: F821 - that is the case
        good: int = 0

    assert not Early.__pydantic_complete__
    early_namespace = {"Later": list[int]}
    Early.model_rebuild(_types_namespace=early_namespace)
    with pytest.raises(UnsuitableField, match=r"Early\.later.*use tuple"):
        Kind(Early)


def test_a_suitable_type_that_is_named_before_it_exists_is_registered():
    class Early(Entity):
        later: Later  # noqa: F821 - that is the case

    Early.model_rebuild(_types_namespace={"Later": tuple[int, ...]})
    assert Kind(Early).validate({"later": [1]}).later == (1,)


# --- looking into types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "bare", "optional"),
    [
        (int, int, False),
        (int | None, int, True),
        (Optional[Name], str, True),  # noqa: UP045 - the old spelling too
        (Annotated[Annotated[int, Field()] | None, Field()], int, True),
        (Size, Size, False),
    ],
)
def test_the_type_behind_annotations_aliases_and_none(annotation, bare, optional):
    assert bare_type(annotation)[0] is bare
    if not hasattr(annotation, "__metadata__"):
        assert bare_type(annotation)[1] is optional


def test_the_models_inside_a_model():
    assert set(nested_models(Task)) == {Artifact, Criterion}
    assert list(nested_models(model_with(tuple[Point | None, ...]))) == [Point]
    assert list(nested_models(Project)) == []
