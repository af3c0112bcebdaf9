"""What the pages in docs/ show and say: their programs run, their tables are complete, their links lead somewhere.

A page's python blocks are one program, in the order in which they stand there, run as it stands. One that cannot run
says why, in a line before it: `<!-- fragment: reason -->`.
"""

from __future__ import annotations

import datetime
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pydantic
import pytest
from pydantic import AwareDatetime, BaseModel

import solewriter
from solewriter import (
    Change,
    Client,
    Engine,
    Entity,
    FrozenMap,
    InvalidQuery,
    Json,
    Limits,
    Part,
    Project,
    Range,
    Reader,
    Reply,
    Snapshot,
    Task,
    connect,
    errors,
)
from solewriter.agents.transaction import Transaction
from solewriter.shared.config import KIB, MIB
from solewriter.shared.kinds.fieldtypes import UnsuitableField
from solewriter.shared.mutations import Op

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = "```"


def program(page: Path) -> str:
    """The page with everything blanked that is not to be run, so that a traceback names the page's own lines."""
    lines, inside, before = [], False, ""
    for line in page.read_text().splitlines():
        if line.startswith(FENCE):
            inside = not inside and line == f"{FENCE}python" and not before.startswith("<!-- fragment: ")
            lines.append("")
        else:
            lines.append(line if inside else "")
        before = line
    return "\n".join(lines) + "\n"


def table(page: str, first_heading: str) -> list[list[str]]:
    """The cells of the table with this heading, row by row."""
    lines = (DOCS / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def code(cell: str) -> str:
    """What stands in backticks in a cell."""
    found = re.search(r"`([^`]+)`", cell)
    return found.group(1) if found else ""


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if program(page).strip()], ids=lambda page: page.name)
def test_a_page_is_a_program_that_runs_as_it_stands_there(page: Path, tmp_path: Path) -> None:
    written = tmp_path / page.with_suffix(".py").name
    written.write_text(program(page))
    ran = subprocess.run(
        [sys.executable, "-W", "error", written], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.fullmatch(
        r"(solewriter: the engine \(pid \d+\) was killed by SIGKILL: another one is started\n)*", ran.stderr
    )


def test_what_a_page_shows_of_tests_passes_as_it_stands_there(tmp_path: Path) -> None:
    shown = re.findall(
        r"<!-- fragment: pytest runs it.*?-->\n```python\n(.*?)```", (DOCS / "coordination.md").read_text(), re.S
    )
    (tmp_path / "test_shown.py").write_text("\n".join(shown))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "--basetemp", tmp_path / "base", "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


def test_the_pages_that_explain_by_showing_do_so() -> None:
    assert {page.name for page in PAGES if program(page).strip()} >= {
        "guarantees.md",
        "memory.md",
        "models.md",
        "reading.md",
    }


def test_a_fragment_says_why_it_is_one() -> None:
    for page in PAGES:
        for reason in re.findall(r"<!-- fragment:(.*?)-->", page.read_text()):
            assert len(reason.split()) > 2, f"{page.name}: {reason}"


# --- tables -----------------------------------------------------------------------------------------------------------


def every_error() -> set[str]:
    return {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.SolewriterError)
    }


def test_every_error_is_explained_once() -> None:
    explained = [code(row[0]) for row in table("guarantees.md", "error")]
    assert sorted(explained) == sorted(every_error())


def test_what_nothing_raises_is_said_to_be_raised_by_nothing() -> None:
    """Families aside, which are raised by their members."""
    raised = "".join(
        path.read_text()
        for room in ("shared", "engine_proc", "agents")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "errors.py" and "testing" not in path.parts
    )
    rows = {code(row[0]): row[1] for row in table("guarantees.md", "error")}
    families = {name for name, text in rows.items() if "the family" in text or "By itself" in text}
    quiet = {name for name, text in rows.items() if "nothing raises it yet" in text}
    assert {name for name in rows.keys() - families if not re.search(rf"\b{name}\(", raised)} == quiet


def shown(name: str, value: object) -> str:
    """A bound as the page writes it."""
    assert isinstance(value, int | float)
    if name.endswith("_s"):
        return f"{value:g} s"
    if "_bytes" in name:
        return f"{value // MIB} MiB" if value >= MIB else f"{value // KIB} KiB"
    return f"{value:,}"


def test_the_bounds_are_those_of_the_code() -> None:
    bounds = {code(bound): default for bound, default, _ in table("guarantees.md", "bound")}
    assert bounds.keys() == Limits.__annotations__.keys() - {"memory_dir"}
    for bound, default in bounds.items():
        assert default == shown(bound, getattr(Limits(), bound)), bound


# --- field types ------------------------------------------------------------------------------------------------------


class SomePart(Part):
    value: int = 0


class OtherPart(Part):
    other: int = 0


class TaggedPart(Part):
    tag: Literal["some", "other"]
    value: int = 0


class MutableModel(BaseModel):
    value: int = 0


class MixedEnum(Enum):
    TEXT = "text"
    NUMBER = 1


class TextEnum(Enum):
    TEXT = "text"


NAMES = {**vars(typing), **vars(pydantic), **globals(), "date": datetime.date}


NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
ALLOWED: dict[str, tuple[Any, Any, Any]] = {  # as the page writes it: the type, a value, that value read by name
    "str": (str, "a", "a"),
    "int": (int, 1, 1),
    "float": (float, 1.5, 1.5),
    "bool": (bool, True, True),
    "bytes": (bytes, b"a", b"a"),
    "None": (None, None, None),
    'Literal["a", "b"]': (Literal["a", "b"], "a", "a"),
    "AwareDatetime": (AwareDatetime, NOW, NOW),
    "datetime": (datetime.datetime, datetime.datetime(2026, 11, 22), "2026-11-22T00:00:00"),
    "date": (datetime.date, datetime.date(2026, 11, 22), "2026-11-22"),
    "time": (datetime.time, datetime.time(12), "12:00:00"),
    "timedelta": (datetime.timedelta, datetime.timedelta(1), "P1D"),
    "Decimal": (Decimal, Decimal("1.5"), "1.5"),
    "UUID": (UUID, UUID(int=1), str(UUID(int=1))),
    "tuple[X, ...]": (tuple[int, ...], (1, 2), [1, 2]),
    "tuple[X, Y]": (tuple[int, str], (1, "a"), [1, "a"]),
    "frozenset[X]": (frozenset[str], frozenset({"b", "a"}), ["a", "b"]),
    "FrozenMap": (FrozenMap, FrozenMap(a=(1, 2)), {"a": [1, 2]}),
    "Part": (SomePart, SomePart(value=3), {"value": 3}),
    "Json": (Json, {"a": [1]}, {"a": [1]}),
    "X | None": (int | None, None, None),
}


def model_with(*types: Any) -> type[Entity]:
    """An entity with a field of each of these types, called `field_0` and so on."""
    fields: dict[str, Any] = {f"field_{number}": (one, ...) for number, one in enumerate(types)}
    return pydantic.create_model("Doc", __base__=Entity, __module__=__name__, **fields)


@pytest.mark.parametrize(
    ("refused", "said", "instead"), [[code(cell) for cell in row] for row in table("models.md", "refused")]
)
def test_a_refused_type_is_refused_with_what_the_page_says(refused: str, said: str, instead: str) -> None:
    with pytest.raises(UnsuitableField, match=re.escape(said)):
        model_with(eval(refused, NAMES))
    model_with(eval(instead, NAMES))


def test_an_allowed_type_is_stored_and_read_by_name_as_the_page_says(state: Path, start_engine: Any) -> None:
    rows = table("models.md", "allowed")
    assert set(re.findall(r"`([^`]+)`", " ".join(row[0] for row in rows))) == set(ALLOWED)
    model = model_with(*(one for one, _, _ in ALLOWED.values()))
    entity = model(id="all", **{f"field_{number}": value for number, (_, value, _) in enumerate(ALLOWED.values())})
    start_engine(state, models=[model])
    with connect(state) as client:
        stored = client.create(entity)
        assert stored == entity.model_copy(update={"version": 1})
        named = client.get("Doc", "all")
    assert named is not None
    for number, (written, (_, _, plain)) in enumerate(ALLOWED.items()):
        found, said = named[f"field_{number}"], next(row[1] for row in rows if f"`{written}`" in row[0])
        assert found == plain, written
        assert type(found).__name__ in said or "the same" in said or said in ("plain data", "as the member"), written


# --- columns ----------------------------------------------------------------------------------------------------------


class Probe(Entity, columns=("a_literal", "a_bool", "a_int", "a_float", "a_datetime", "a_str")):
    a_literal: Literal["c", "a", "b"] | None = None
    a_bool: bool | None = None
    a_int: int | None = None
    a_float: float | None = None
    a_datetime: AwareDatetime | None = None
    a_str: str | None = None


VALUES: dict[str, tuple[Any, ...]] = {  # in the order in which they sort
    "literal": ("a", "b", "c"),
    "bool": (False, True),
    "int": (-1, 0, 5),
    "float": (-1.5, 0.0, 2.5),
    "datetime": (NOW, NOW + datetime.timedelta(1)),
    "str": ("A", "a", "\u00e4"),
}
ARRAYS = {
    "literal": "object", "bool": "bool", "int": "int64", "float": "float64", "datetime": "datetime64[us]",
    "str": "object",
}  # fmt: skip


def test_columns_are_compared_and_sorted_as_the_page_says(state: Path, start_engine: Any) -> None:
    """The rows of the page are all that a column can be."""
    rows = {code(row[0]) or "literal": row[1:] for row in table("reading.md", "a column of")}
    assert rows.keys() == VALUES.keys()
    start_engine(state, models=[Probe])
    with connect(state) as client:
        for name, values in VALUES.items():
            for number, value in enumerate((*reversed(values), None)):
                client.create(Probe(id=f"{name}-{number}", **{f"a_{name}": value}))
        snap = client.reader.snapshot()
        for name, (ranged, _, ascending, descending, arrays) in rows.items():
            field, (*values, nothing) = f"a_{name}", [f"{name}-{number}" for number in range(len(VALUES[name]) + 1)]
            for order_by, where in ((field, ascending), (f"-{field}", descending)):
                wanted = values[::-1] if order_by == field else values
                wanted = [nothing, *wanted] if where.startswith("first") else [*wanted, nothing]
                assert [id for id in snap.ids(Probe, order_by=order_by) if id.startswith(name)] == wanted, order_by
            above = {field: Range(gt=VALUES[name][0])}
            if ranged == "no":
                with pytest.raises(InvalidQuery):
                    snap.count(Probe, above)
            else:
                assert snap.ids(Probe, above) == values[:-1]
            found = snap.columns(Probe, {field: list(VALUES[name])})[field]
            assert found.dtype == ARRAYS[name]
            assert ARRAYS[name] in arrays or (ARRAYS[name] == "object" and "objects" in arrays)


# --- words ------------------------------------------------------------------------------------------------------------

SPEAKERS = {
    "client": Client,
    "tx": Transaction,
    "reply": Reply,
    "snap": Snapshot,
    "reader": Reader,
    "engine": Engine("never started"),
    "Task": Task,
    "change": Change,
}
FILES = {"engine.json", "engine.sock"}  # that are called as if they were attributes of one


def test_every_word_that_is_said_to_be_here_is_here() -> None:
    for row in table("vocabulary.md", "elsewhere"):
        for word in re.findall(r"`([^`]+)`", " ".join(row[1:])):
            speaker, _, attribute = re.sub(r"\W*\(.*", "", word).partition(".")
            if speaker in SPEAKERS and attribute:
                assert attribute in dir(SPEAKERS[speaker]), word
            elif speaker[0].isupper():
                assert speaker in solewriter.__all__, word


def test_every_attribute_that_a_page_names_is_there() -> None:
    for page in PAGES:
        for speaker, attribute in re.findall(rf"`({'|'.join(SPEAKERS)})\.(\w+)", page.read_text()):
            named = f"{speaker}.{attribute}"
            assert named in FILES or has(SPEAKERS[speaker], attribute), f"{page.name}: {named}"


def has(speaker: Any, attribute: str) -> bool:
    """Whether a class, or an object, has it, be it that its `__init__` gives it."""
    return attribute in dir(speaker) or f"self.{attribute} = " in inspect.getsource(speaker.__init__)


def test_a_change_has_what_the_page_says_and_nothing_else() -> None:
    said = re.findall(r"`(\w+)`", " ".join(row[0] for row in table("reading.md", "a change has")))
    assert sorted(said) == sorted(name for name in dir(Change) if not name.startswith("_"))
    mutations = next(row[1] for row in table("reading.md", "a change has") if row[0] == "`mutation`")
    assert re.findall(r"`(\w+)`", mutations) == [op.name.lower() for op in Op if op is not Op.RENEW]  # no version


@pytest.mark.parametrize(("heading", "model"), [("a task's field", Task), ("a project's field", Project)])
def test_the_fields_of_the_house_are_told_one_by_one_and_its_columns_marked(heading: str, model: type[Entity]) -> None:
    rows = table("coordination.md", heading)
    fields = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(fields) == sorted(set(model.model_fields))
    columns = [name for row in rows for name in re.findall(r"`(\w+)`\*", row[0])]
    assert sorted(columns) == sorted(model.column_names)


@pytest.mark.parametrize(("heading", "model"), [("a task that is", Task), ("a project that is", Project)])
def test_the_steps_of_the_house_are_those_of_the_page(heading: str, model: type[Entity]) -> None:
    assert model.lifecycle is not None
    told: dict[str, list[str]] = {}
    for begin, ends in table("coordination.md", heading):
        for state in re.findall(r"`(\w+)`", begin):
            told[state] = sorted(re.findall(r"`(\w+)`", ends))
    assert told == {begin: sorted(ends) for begin, ends in model.lifecycle.steps.items()}


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            yield target


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
