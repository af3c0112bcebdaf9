"""The command line: `solewriter demo`, `serve`, `status`, `export`, `verify`, `repair` and `bench`.

Only this file and typer are imported before a command is chosen, so that `--help` answers at once. An error that the
user can do something about is one line on stderr and exit code 1; anything else is a traceback, because it is a bug.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from solewriter import __version__


class Program(TyperGroup):
    """The commands, and what they have in common: that stdout may take nothing, because it is a full disk, say."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError:
            try:
                print(flush=True)
            except OSError as error:
                sys.stdout = io.StringIO()  # at the exit nobody tries once more
                typer.echo(f"solewriter: this cannot be printed: {error}", err=True)
                sys.exit(1)
            raise


app = typer.Typer(
    cls=Program, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


class Durability(StrEnum):
    """The engine's words, once more: those are behind an import that `--help` should not wait for."""

    POWER = "power"
    PROCESS = "process"
    MEMORY = "memory"


DurabilityOption = Annotated[
    Durability, typer.Option(help="What an acked request survives: loss of power, any kill of a process, or nothing.")
]
FolderOfCode = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PATH]", exists=True, file_okay=False, resolve_path=True, show_default="the standard library",
        help="A folder of Python code.",
    ),
]  # fmt: skip


def named_folder(name: str) -> Path:
    """Raises BadParameter for no name, that of an unset variable say, which pathlib takes for the current folder."""
    return _path_of(name, "folder")


def named_file(name: str) -> Path:
    """Raises BadParameter, likewise."""
    return _path_of(name, "file")


def _path_of(name: str, what: str) -> Path:
    if not name:
        raise typer.BadParameter(f"the name of a {what} is empty")
    return Path(name)


def existing_folder(name: str) -> Path:
    """One that is there, though perhaps another user's. Raises BadParameter."""
    folder = named_folder(name)
    if not os.path.isdir(folder):
        raise typer.BadParameter(
            f"{name!r} is no folder" if os.path.lexists(folder) else f"there is no folder {name!r}"
        )
    return folder


ExistingFolder = Annotated[Path, typer.Argument(metavar="STATE", help="The state folder.", parser=existing_folder)]


def print_version(wanted: bool) -> None:
    if wanted:
        from solewriter.shared.build import BUILD

        typer.echo(f"solewriter {__version__}, {BUILD}")
        raise typer.Exit


@app.callback()
def solewriter(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A single-writer task and state engine: one process writes, every other process reads memory."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may be in letters that no terminal has


@app.command()
def demo(
    path: FolderOfCode = None,
    agents: Annotated[
        int | None, typer.Option(min=1, help="How many agent processes.", show_default="cores + 1")
    ] = None,
    calm: Annotated[bool, typer.Option("--calm", help="Kill nobody.")] = False,
    durability: DurabilityOption = Durability.PROCESS,
    state: Annotated[
        Path | None,
        typer.Option(help="A new state folder, which is kept.", show_default="a temporary one", parser=named_folder),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else on stdout.")] = False,
) -> None:
    """Measure a lot of Python code with many processes, kill one of them and then the engine, check every figure."""
    from rich.console import Console

    from solewriter.agents.demo.run import Job, demonstrate
    from solewriter.agents.demo.summary import table

    end_on_sigterm(128 + signal.SIGTERM)
    console = Console(stderr=as_json, markup=False, emoji=False)  # a file may be called a[b].py
    root = path or Path(sysconfig.get_path("stdlib")).resolve()
    with errors_in_one_line():
        summary = demonstrate(Job(root, agents or cores() + 1, calm, durability.value, state), console)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    else:
        console.print(table(summary))
    raise typer.Exit(0 if summary.ok else 1)


@app.command()
def serve(
    state: Annotated[
        Path, typer.Argument(metavar="STATE", help="The state folder; made if there is none.", parser=named_folder)
    ],
    models: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="A list of your Entity classes, such as `shop.models:MODELS`."),
    ] = None,
    durability: DurabilityOption = Durability.POWER,
    replace_hung: Annotated[
        bool, typer.Option("--replace-hung", help="Kill and restart an engine that shows no heartbeat for 10 s.")
    ] = False,
    memory_dir: Annotated[
        Path | None,
        typer.Option(help="The folder for the shared memory.", show_default="/dev/shm", parser=existing_folder),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="One of the bounds in `Limits`, such as history_s=86400. May be repeated."
        ),
    ] = None,
) -> None:
    """Serve a state folder until SIGTERM or Ctrl-C; restart the engine when it dies."""
    from solewriter.agents.cli.serving import imported_models, limits_of, serve_folder

    with errors_in_one_line():
        classes, limits = () if models is None else imported_models(models), limits_of(limit or (), memory_dir)
        end_on_sigterm(0)
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
        serve_folder(state, classes, durability.value, limits, replace_hung=replace_hung)


@app.command()
def status(
    state: Annotated[
        Path | None,
        typer.Argument(
            metavar="STATE",
            help="The state folder.",
            show_default="./state if there is one, else this folder",
            parser=named_folder,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else on stdout.")] = False,
) -> None:
    """Say how an engine is, from its memory and files alone: also beside one that is hung or dead.

    Exit code 0: it serves.
    1: degraded (hung, starting, partly unreadable, or dead with its last snapshot still readable).
    2: not there (stopped, never started, dead and its memory gone, or not yours to look at).
    """
    from solewriter.agents.cli.describing import exit_code, status_json, status_lines
    from solewriter.agents.status import status_of

    with errors_in_one_line():
        found = status_of(state or (Path("state") if Path("state").is_dir() else Path()))
    typer.echo(status_json(found) if as_json else status_lines(found))
    raise typer.Exit(exit_code(found))


@app.command()
def export(
    state: ExistingFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new SQLite file.", parser=named_file)],
    revision: Annotated[
        int | None, typer.Option(min=0, help="Everything as it was then.", show_default="the newest")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of a file that is there.")] = False,
) -> None:
    """Write all entities, as they are at one revision, to an SQLite file: a table for each kind.

    From an engine's memory, which the engine does not notice; where none serves, from what the folder holds.
    """
    from solewriter.agents.cli.exporting import export_state

    end_on_sigterm(128 + signal.SIGTERM)
    with errors_in_one_line():
        told = export_state(state, revision, file, replace=replace)
    typer.echo(told)


@app.command()
def verify(
    state: ExistingFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else on stdout.")] = False,
) -> None:
    """Read everything that is journaled, check every sum, revision and version, replay it, and write nothing.

    Exit code 0: it is sound. 1: it is not, and the first bad place is named, and whether a start is refused for it; or
    it cannot be read.
    """
    from solewriter.agents.cli.checking import unsound_json, verified_json, verified_lines, verify_state

    with errors_in_one_line(told=unsound_json if as_json else None):
        found = verify_state(state)
    typer.echo(verified_json(found) if as_json else verified_lines(found))


@app.command()
def repair(
    state: ExistingFolder,
    around_checkpoint: Annotated[
        bool,
        typer.Option("--around-checkpoint", help="Begin with an older checkpoint than the newest: nothing is lost."),
    ] = False,
    truncate_at: Annotated[
        int | None, typer.Option(min=0, metavar="REVISION", help="The newest revision that is to stay.")
    ] = None,
) -> None:
    """Go around a damaged checkpoint, or give up everything behind a revision, acked or not.

    Where a start refuses the newest checkpoint, try `--around-checkpoint` first: the file is set aside, and the next
    start replays the journal from an older one on. What `--truncate-at` gives up is lost to everybody; a copy of the
    folder is kept beside it.
    """
    from solewriter.engine_proc.recovery.repair import set_aside, truncate
    from solewriter.shared.folder import StateFolder, legible

    if around_checkpoint is (truncate_at is not None):
        raise typer.BadParameter("say either --around-checkpoint or --truncate-at REVISION")
    with errors_in_one_line():
        if truncate_at is None:
            asides, begin = set_aside(StateFolder(state))
            names = ", ".join(path.name for path in asides)
            told = f"the next start begins behind entry {begin}; set aside: {names}"
        else:
            cut, kept = truncate(StateFolder(state), truncate_at)
            told = f"revision {cut.revision} is the newest now ({cut.path.name}:{cut.offset}); as it was: {kept}"
    typer.echo(legible(told))


@app.command(
    add_help_option=False,  # its options are the program's own, and so is what it says of them
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Measure the engine and its rivals under load, on this machine. `--quick` takes less than a minute."""
    # In place of this process: what the benchmark forks its agents from would import this program again for each.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "solewriter.bench.load", *context.args])


def end_on_sigterm(status: int) -> None:
    """Unwind the stack, so that engine and agents are ended in order; a second signal does not disturb that."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(status)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def errors_in_one_line(told: Callable[[Exception], str] | None = None) -> Iterator[None]:
    """An error that the library foresaw, or the system's, is for the user, not for a debugger. `told`: for stdout."""
    from solewriter import SolewriterError
    from solewriter.agents.demo.plan import Unsuitable

    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads what is said here: typer ends quietly
    except (SolewriterError, Unsuitable, OSError) as error:
        if told is not None:
            typer.echo(told(error))
        for line in (error, *getattr(error, "__notes__", ())):
            typer.echo(f"solewriter: {line}", err=True)
        raise typer.Exit(1) from None


def cores() -> int:
    return len(os.sched_getaffinity(0))
