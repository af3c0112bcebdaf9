"""An engine that stands alone: started, supervised and drained by a process that does nothing else."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import typer

from solewriter import Engine, Entity, Limits
from solewriter.engine_proc.process import Durability
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.errors import in_words
from solewriter.shared.folder import legible

NOT_THE_USERS = {"solewriter", "pydantic", *sys.stdlib_module_names}  # by the first part of a module's name


def serve_folder(
    state: Path,
    models: Iterable[type[Entity]],
    durability: Durability,
    limits: Limits,
    *,
    replace_hung: bool,
) -> None:
    """Serve until the engine ends for good, or a signal ends this process; then drain.

    Raises Locked if another engine owns the folder, EngineUnavailable with the reason if the engine was given up,
    BadParameter for models that no engine takes.
    """
    try:
        owned = Engine(state, models=models, durability=durability, limits=limits, replace_hung=replace_hung)
    except TypeError as error:
        raise typer.BadParameter(str(error), param_hint="--models") from error
    with owned as engine:
        typer.echo(f"serving {legible(str(engine.state))}, engine pid {engine.pid}, supervisor pid {os.getpid()}")
        engine.wait()


def limits_of(asked: Iterable[str], memory_dir: Path | None) -> Limits:
    """The usual ones, but for those that are asked for as `name=value`, and with the memory in this folder. Raises
    BadParameter.
    """
    try:
        limits = Limits(**dict(map(_limit, asked)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from error
    try:
        return limits if memory_dir is None else msgspec.structs.replace(limits, memory_dir=str(memory_dir))
    except ValueError as error:  # no UTF-8, say
        raise typer.BadParameter(str(error), param_hint="--memory-dir") from error


def _limit(asked: str) -> tuple[str, Any]:
    """A name, and the value that it gets. Raises ValueError."""
    name, _, value = asked.partition("=")
    kinds = {field.name: field.type for field in msgspec.structs.fields(Limits)}
    if kinds.get(name) is str:
        raise ValueError(f"{name} is given by --{name.replace('_', '-')}")
    if name not in kinds:
        near = " or ".join(get_close_matches(name, kinds)) or "solewriter.Limits"
        raise ValueError(f"{name!r} is no limit; see {near}")
    try:
        return name, kinds[name](value)
    except ValueError:
        wanted = "a whole number" if kinds[name] is int else "a number"
        raise ValueError(f"{name} is {wanted}, as in {name}={getattr(DEFAULT_LIMITS, name)}, not {value!r}") from None


def imported_models(place: str) -> tuple[type[Entity], ...]:
    """The Entity classes listed at `module:NAME`; the module may be in the current directory. Raises BadParameter; Exit
    when it was told where in the user's own code something else went wrong.
    """
    module_name, _, name = place.partition(":")
    if not (module_name and name) or module_name.startswith("."):  # a path, or relative to nothing
        raise typer.BadParameter(f"{place!r} is not of the form package.module:NAME", param_hint="--models")
    with suppress(FileNotFoundError):  # it was deleted
        sys.path.insert(0, os.getcwd())
    try:
        listed = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        if (where := place_of(error)) is None:
            raise typer.BadParameter(str(error), param_hint="--models") from error
        typer.echo(legible(f"solewriter: {where}: {in_words(error)}"), err=True)
        raise typer.Exit(1) from None
    if not isinstance(listed, list | tuple) or not all(map(is_entity, listed)):
        raise typer.BadParameter(f"{place} is not a list of Entity classes", param_hint="--models")
    return tuple(listed)


def place_of(error: Exception) -> str | None:
    """File and line of the user's code at which an error came up: of what is neither Python's, pydantic's nor ours.
    None where none of it ran.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in NOT_THE_USERS
    ]
    return places[-1] if places else None


def is_entity(listed: object) -> bool:
    return isinstance(listed, type) and issubclass(listed, Entity)
