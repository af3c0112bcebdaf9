"""docs/reference.md has every public name, method and parameter as the code has it, and nothing that does not exist."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer

import solewriter
from solewriter import (
    Applied,
    Budget,
    Change,
    Client,
    Difference,
    Engine,
    EngineStatus,
    Limits,
    NotApplied,
    OfflineReader,
    Reader,
    Reason,
    Ref,
    Reply,
    Resync,
    Snapshot,
    Transaction,
    Watch,
    aio,
    errors,
    testing,
)
from solewriter.agents.aio.watch import AioWatch
from solewriter.agents.cli.main import app
from solewriter.agents.reading.anyreader import AnyReader
from solewriter.shared.mutations import FROM_TARGET

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "reference.md").read_text()
DOTS = 'reason="", request_id=None, timeout_s=None'

# Without an underscore, because other files of the package call them. They are nobody else's.
INTERNAL: dict[type, set[str]] = {
    Client: {"check_mutation"},
    AnyReader: {"before", "decoder", "is_stale", "lived_on", "pin"},
    Reader: {
        "check_class",
        "is_anybodys",
        "left_s",
        "let_go",
        "look_on",
        "of_result",
        "sleep",
        "try_attach",
        "view",
    },
    Snapshot: {"kind_of", "model_of", "pin"},
    Watch: {"pop", "take"},
}
SPEAKERS = {
    "an engine's": Engine,
    "a client's": Client,
    "a transaction's": Transaction,
    "a reader's": Reader,
    "a snapshot's": Snapshot,
}
VALUES = (Reply, Applied, NotApplied, Change, Watch, Resync, Difference, Ref, Reason, Budget, EngineStatus)


def rows(first_heading: str) -> list[list[str]]:
    """The cells of the table with this heading, row by row."""
    _, _, behind = PAGE.partition(f"| {first_heading} |")
    lines = behind.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def told() -> list[str]:
    """What stands in backticks in the first column of any table."""
    firsts = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    return [word for first in firsts for word in words(first)]


def name_of(word: str) -> str:
    return re.sub(r"\(.*|\[.*", "", word)


def written(call: str) -> list[tuple[str, str, str | None]]:
    """The parameters of a call on the page: name, kind and default."""
    (function,) = ast.parse(f"def {re.sub(r'^(aio|testing)[.]', '', call.replace('…', DOTS))}: ...").body
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + [ast.unparse(one) for one in given.defaults]
    kinds = ["POSITIONAL_ONLY"] * len(given.posonlyargs) + ["POSITIONAL_OR_KEYWORD"] * len(given.args)
    found = [(one.arg, kind, default) for one, kind, default in zip(positional, kinds, defaults, strict=True)]
    if given.vararg:
        found.append((given.vararg.arg, "VAR_POSITIONAL", None))
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append((one.arg, "KEYWORD_ONLY", default and ast.unparse(default)))
    if given.kwarg:
        found.append((given.kwarg.arg, "VAR_KEYWORD", None))
    return found


def real(found: Any) -> list[tuple[str, str, str | None]]:
    """The same of what is there, without `self`."""
    parameters = [one for one in inspect.signature(found).parameters.values() if one.name != "self"]
    return [(one.name, one.kind.name, default_of(one)) for one in parameters]


def default_of(parameter: inspect.Parameter) -> str | None:
    default = parameter.default
    if default is parameter.empty:
        return None
    if default is FROM_TARGET:
        return "FROM_TARGET"
    if isinstance(default, Limits):
        return "Limits()"
    if isinstance(default, type):
        return default.__name__
    return "{}" if "factory" in repr(default) else repr(default)


def attributes(owner: type) -> set[str]:
    """Public ones, also those that its `__init__`, or that of a class above it, gives it."""
    given = {
        name
        for above in owner.__mro__
        if "__init__" in vars(above) and above.__module__.startswith("solewriter")
        for name in re.findall(r"\bself\.([a-z]\w*)(?:: [^=]+)? = ", inspect.getsource(above))
    }
    above = {name for one in owner.__mro__ if one.__module__.startswith("solewriter") for name in vars(one)}
    public = {name for name in above | given if not name.startswith("_")}
    return public - set().union(*(names for one, names in INTERNAL.items() if issubclass(owner, one)))


def test_every_public_name_is_on_the_page() -> None:
    assert set(solewriter.__all__) - {name_of(word) for word in words(PAGE)} == set()
    without_a_row = {"Client", "Transaction", "Reader", "OfflineReader", "Snapshot", "aio", "errors"}  # but a table
    assert set(solewriter.__all__) - {name_of(word) for word in told()} == without_a_row
    assert {f"aio.{name}" for name in aio.__all__} <= {name_of(word) for word in words(PAGE)}


@pytest.mark.parametrize("heading", SPEAKERS)
def test_every_method_is_on_the_page_with_its_parameters(heading: str) -> None:
    owner = SPEAKERS[heading]
    calls = [word for row in rows(heading) for word in words(row[0]) if word != "snap[kind, id]"]
    assert sorted(map(name_of, calls)) == sorted(attributes(owner))
    for call in calls:
        found = getattr(owner, name_of(call), None)
        assert ("(" in call) == inspect.isfunction(found), call
        if "(" in call:
            assert written(call) == real(found), call


def test_what_stands_by_itself_is_on_the_page_with_its_parameters() -> None:
    headings = ("a way in", "a function of a snapshot", "a name", "a mutation", "an operation")
    calls = [word for heading in headings for row in rows(heading) for word in words(row[0])]
    assert len(calls) == len(set(calls))
    for call in calls:
        room, _, name = name_of(call).rpartition(".")
        found = getattr({"": solewriter, "aio": aio, "testing": testing}[room], name)
        if "(" in call:
            assert written(call) == real(found), call


@pytest.mark.parametrize(
    ("blocking", "awaited"), [(Client, aio.AioClient), (Reader, aio.AioReader), (Transaction, aio.AioTransaction)]
)
def test_asyncio_has_the_same_methods_with_the_same_parameters(blocking: type, awaited: type) -> None:
    for name in attributes(blocking):
        found = getattr(blocking, name, None)
        if inspect.isfunction(found):
            theirs = getattr(awaited, name)
            assert real(theirs) == real(found), name
            plain = not inspect.iscoroutinefunction(theirs)
            gathers = blocking is Transaction or name in ("attempt", "hold", "holds", "transaction")
            assert plain == (gathers or name in ("submit_many", "work", "watch", "history")), name
    assert attributes(Watch) <= set(dir(AioWatch))


def test_an_offline_reader_has_what_the_page_says() -> None:
    said = {name_of(word) for row in rows("a reader's") for word in words(row[0])}
    assert said - attributes(OfflineReader) == {"wait_for", "wait_until", "wait_until_count", "watch"}
    assert attributes(OfflineReader) <= said


def test_every_value_that_is_handed_out_has_what_the_page_says() -> None:
    told_of = {words(row[0])[0]: {name_of(word) for word in words(row[2])} for row in rows("a value")}
    assert told_of.keys() == {value.__name__ for value in VALUES}
    for value in VALUES:
        has = set(getattr(value, "__annotations__", {})) if value in (Reason, Budget) else set()
        assert told_of[value.__name__] - {"str"} == (attributes(value) | has) - {"count", "index"}, value


def test_every_enum_has_the_members_that_the_page_says() -> None:
    said = {words(row[0])[0]: words(row[1]) for row in rows("an enum")}
    public = {name: getattr(solewriter, name) for name in solewriter.__all__}
    enums = {name: found for name, found in public.items() if isinstance(found, type) and issubclass(found, Enum)}
    assert said == {name: [member.name for member in found] for name, found in enums.items()}


def test_every_error_is_on_the_page_with_what_it_carries() -> None:
    every = {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.SolewriterError)
    }
    said = {words(row[0])[0]: set(words(row[4])) for row in rows("name")}
    carried = {name: set(vars(found).get("__annotations__", {})) - {"known"} for name, found in every.items()}
    carried["SolewriterError"] = {"message", "details"}
    assert said == carried
    assert all(hasattr(errors.Refused("it was"), name) for name in carried["Refused"])


def test_no_class_is_named_that_does_not_exist() -> None:
    known = {*solewriter.__all__, *dir(builtins), *(f"aio.{name}" for name in aio.__all__), "FROM_TARGET"}
    for word in words(PAGE):
        name = name_of(word)
        if re.fullmatch(r"(aio\.)?[A-Z]\w*[a-z]\w*", name):
            assert name in known, word


def test_every_command_is_on_the_page_with_its_options() -> None:
    commands = typer.main.get_group(app).commands
    there = {
        name: [option for one in command.params for option in one.opts if option.startswith("--")]
        for name, command in commands.items()
    }
    said = {call.split()[0]: options for call, *options in (words(row[0]) for row in rows("a command"))}
    assert set(said) == set(there)
    for name, options in said.items():
        assert sorted(options) == sorted(set(there[name]) - {"--help"}), name
