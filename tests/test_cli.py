"""The command line: quick to ask, serves until it is told, and says in one line what is wrong."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solewriter import Limits, OutcomeUnknown, RequestTooLarge, Task, __version__, connect, status_of
from solewriter.shared.build import BUILD
from solewriter.shared.folder import StateFolder, legible

SOLEWRITER = str(Path(sysconfig.get_path("scripts"), "solewriter"))
ANSWER_S = 60

Serve = Callable[..., subprocess.Popen[str]]


def solewriter(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SOLEWRITER, *arguments], capture_output=True, text=True, timeout=ANSWER_S, cwd=folder, check=False
    )


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(state, *options)`: a `solewriter serve` that serves."""
    started: list[subprocess.Popen[str]] = []

    def start(state: Path, *options: str, folder: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [SOLEWRITER, "serve", str(state), "--durability", "process", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], ANSWER_S)[0], "it says nothing"
        said = process.stdout.readline()
        assert said.startswith(f"serving {legible(str(state))}, engine pid "), (said, process.communicate())
        assert said.endswith(f", supervisor pid {process.pid}\n")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def told_to_end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(ANSWER_S)


def engine_pid(state: Path) -> int:
    return StateFolder(state).whereabouts().pid


# --- asking ----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, solewriter.agents.cli.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=ANSWER_S, check=True
    )
    assert not {"pydantic", "msgspec", "uvloop", "numpy", "cloudpickle", "multiprocessing"} & set(loaded.stdout.split())


def test_help_names_the_commands() -> None:
    said = solewriter("--help")
    assert said.returncode == 0
    assert "demo" in said.stdout
    assert "serve" in said.stdout


@pytest.mark.parametrize("command", ["serve", "status", "export", "verify", "repair"])
def test_the_folder_has_one_name_in_all_usages(command: str) -> None:
    said = solewriter(command, "--help")
    assert "STATE" in said.stdout.partition("\n\n")[0].split("Usage:")[1].splitlines()[0]
    assert "{state}" not in said.stdout


def test_version() -> None:
    assert solewriter("--version").stdout == f"solewriter {__version__}, {BUILD}\n"


def test_the_package_runs_as_its_command(tmp_path: Path) -> None:
    """For whoever has the interpreter at hand, and not its folder of scripts on the path."""
    for arguments in (["--version"], ["verify", "missing"], ["status", str(tmp_path)]):
        asked = [sys.executable, "-P", "-m", "solewriter", *arguments]
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_S, cwd=tmp_path, check=False)
        by_script = solewriter(*arguments, folder=tmp_path)
        assert (ran.returncode, ran.stdout, ran.stderr) == (by_script.returncode, by_script.stdout, by_script.stderr)


def test_letters_that_the_terminal_does_not_have_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an engine would not serve for them, and a repair would not tell where its copy is."""
    state = tmp_path / "\u65e5"
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with subprocess.Popen([SOLEWRITER, "serve", str(state)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"serving {tmp_path}/\\u65e5, engine pid ")
        process.terminate()
    told = solewriter("status", str(state))
    assert (told.stdout.splitlines()[0], told.stderr) == (f"folder   {tmp_path}/\\u65e5", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status"]], ids=" ".join)
def test_what_cannot_be_printed_is_told_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        asked = [SOLEWRITER, *arguments]
        told = subprocess.run(
            asked, stdout=full, stderr=subprocess.PIPE, text=True, timeout=ANSWER_S, cwd=tmp_path, check=False
        )
    assert (told.returncode, told.stderr) == (
        1, "solewriter: this cannot be printed: [Errno 28] No space left on device\n"
    )  # fmt: skip


# --- serve -----------------------------------------------------------------------------------------------------------


def test_limits_are_those_that_are_asked_for(tmp_path: Path, serve: Serve) -> None:
    process = serve(tmp_path / "s", "--limit", "entity_bytes_max=1_000", "--limit", "heartbeat_s=0.25")
    with connect(tmp_path / "s", name="agent") as client, pytest.raises(RequestTooLarge, match="the bound is 1,000"):
        client.create(Task(title="x", description="y" * 2_000))
    assert status_of(tmp_path / "s").heartbeat_period_s == 0.25
    assert told_to_end(process) == 0


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("history=4", "'history' is no limit; see history_s or history_bytes"),
        ("?", "'?' is no limit; see solewriter.Limits"),
        ("window_max=1.5", "window_max is a whole number, as in window_max=256, not '1.5'"),
        ("window_max", "window_max is a whole number, as in window_max=256, not ''"),
        ("heartbeat_s=soon", "heartbeat_s is a number, as in heartbeat_s=1.0, not 'soon'"),
        ("window_max=0", "window_max must be more than 0"),
        ("memory_dir=/tmp", "memory_dir is given by --memory-dir"),
    ],
)  # fmt: skip
def test_what_is_no_limit_is_refused_with_what_is_one(asked: str, why: str, tmp_path: Path) -> None:
    told = solewriter("serve", "s", "--limit", asked, folder=tmp_path)
    assert told.returncode == 2
    assert why in " ".join(told.stderr.replace("│", " ").split())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "asked",
    [
        "serve", "serve state --memory-dir", "demo --calm --state", "status", "export", "verify",
        "repair --around-checkpoint", "repair --truncate-at 0",
    ],
)  # fmt: skip
def test_no_folder_is_meant_that_nobody_named(asked: str, tmp_path: Path) -> None:
    """As by a variable that is not set: that would be the current one, whatever is in there."""
    told = solewriter(*asked.split(), "", folder=tmp_path)
    assert told.returncode == 2
    assert "the name of a folder is empty" in told.stderr
    assert not [*tmp_path.iterdir()]


def test_a_folder_whose_name_is_no_utf8_is_served(tmp_path: Path, serve: Serve) -> None:
    state = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    process = serve(state)
    with connect(state, name="agent") as client:
        client.create(Task(title="x"))
    assert told_to_end(process) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_drains_and_ends_well_when_told(state: Path, serve: Serve, number: signal.Signals) -> None:
    process = serve(state)
    with connect(state, name="tester") as client:
        task = client.create(Task(title="kept"))
    assert told_to_end(process, number) == 0
    assert not StateFolder(state).engine_json.exists(), "a drained engine is announced no more"
    serve(state)
    with connect(state) as client:
        assert client.get(Task, task.id) == task


def test_serve_puts_the_memory_where_it_is_told(state: Path, serve: Serve, tmp_path: Path) -> None:
    """What an engine without room for its memory says may be done."""
    (tmp_path / "memory").mkdir()
    process = serve(state, "--memory-dir", "memory", folder=tmp_path)
    assert StateFolder(state).whereabouts().memory_dir == str(tmp_path / "memory")
    with connect(state) as client:
        assert client.create(Task(title="x")).version == 1
    assert told_to_end(process) == 0
    assert list((tmp_path / "memory").iterdir()) == []


@pytest.mark.parametrize("name", [b"missing", b"file", b"caf\xe9"])
def test_a_memory_folder_that_cannot_be_one_is_a_usage_error(state: Path, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "file").touch()
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    refused = solewriter("serve", str(state), "--memory-dir", os.fsdecode(name), folder=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "--memory-dir" in refused.stderr
    assert not state.exists()


def test_serve_restarts_a_dead_engine(state: Path, serve: Serve) -> None:
    process = serve(state)
    with connect(state) as client:
        task = client.create(Task(title="kept"))
        os.kill(engine_pid(state), signal.SIGKILL)
        assert client.update(task, title="changed").version == 2
    assert told_to_end(process) == 0


def test_a_folder_that_is_served_already_is_refused_and_its_holder_named(state: Path, serve: Serve) -> None:
    serve(state)
    second = solewriter("serve", str(state))
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr == f"solewriter: {state} is owned by pid {engine_pid(state)}: stop that engine first\n"
    with connect(state) as client:
        assert client.create(Task(title="served")).version == 1


def test_serve_ends_with_the_reason_when_the_engine_gave_up(
    state: Path, serve: Serve, remove_memory: Callable[[Path], None]
) -> None:
    process = serve(state)
    with connect(state, limits=Limits(connect_timeout_s=1)) as client:
        (state / "lock").rename(state / "not the lock")  # to the engine: somebody replaced its folder
        with pytest.raises(OutcomeUnknown):  # it was sent, and nobody is left to say how it ended
            client.create(Task(title="never"))
    _, complaints = process.communicate(timeout=ANSWER_S)
    remove_memory(state)  # an engine that lost its folder touches nothing in it any more
    assert process.returncode == 1
    assert complaints.splitlines()[-1].startswith(f"solewriter: {state} was moved, deleted or replaced")


def test_a_state_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    refused = solewriter("serve", str(tmp_path / "state"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("solewriter: ")
    assert "Traceback" not in refused.stderr


# --- models ----------------------------------------------------------------------------------------------------------

MODELS = """
from solewriter import Entity

class Doc(Entity, columns=("owner",)):
    owner: str

MODELS = [Doc]
NOTHING = [int]
"""


def test_models_of_the_current_folder_are_served(tmp_path: Path, state: Path, serve: Serve) -> None:
    (tmp_path / "shop_models.py").write_text(MODELS)
    serve(state, "--models", "shop_models:MODELS", folder=tmp_path)
    code = (
        "import sys; from shop_models import Doc; from solewriter import connect\n"
        "with connect(sys.argv[1]) as client: print(client.create(Doc(id='d', owner='me')).owner)"
    )
    agent = subprocess.run(
        [sys.executable, "-c", code, str(state)],
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert agent.stdout == "me\n", agent.stderr


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("shop_models", "not of the form"),
        ("", "not of the form"),
        ("./shop_models.py:MODELS", "not of the form"),
        ("no_such_module:MODELS", "No module named"),
        ("shop_models:MISSING", "MISSING"),
        ("shop_models:NOTHING", "not a list of Entity classes"),
    ],
)
def test_models_that_cannot_be_found_are_a_usage_error(tmp_path: Path, place: str, complaint: str) -> None:
    (tmp_path / "shop_models.py").write_text(MODELS)
    refused = solewriter("serve", "state", "--models", place, folder=tmp_path)
    assert refused.returncode == 2
    assert complaint in " ".join(refused.stderr.replace("│", " ").split())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('class Doc(Entity, columns=("nope",)): pass', "TypeError: Doc declares the column 'nope'"),
        ("class Doc(Entity):\n    tags: list[str] = []", "UnsuitableField: "),
        ("Entity.nope", "AttributeError: "),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError: "),
        ("open('no such file')", "FileNotFoundError: "),
        ("assert not Entity", "AssertionError\n"),
    ],
)
def test_what_a_module_of_models_raises_is_one_line_with_its_place(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "shop_parts.py").write_text(f"from solewriter import Entity\n\n{line}\n")
    (tmp_path / "shop_models.py").write_text("from shop_parts import *\nMODELS = []\n")
    refused = solewriter("serve", "state", "--models", "shop_models:MODELS", folder=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"solewriter: {tmp_path / 'shop_parts.py'}:3: {complaint}")
    assert "Traceback" not in refused.stderr
    assert "File " not in refused.stderr
    assert not (tmp_path / "state").exists()


def test_models_that_an_engine_refuses_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "shop_models.py").write_text(
        "from solewriter import Entity\n\nclass Task(Entity): pass\n\nTAKEN = [Task]\n"
    )
    refused = solewriter("serve", "state", "--models", "shop_models:TAKEN", folder=tmp_path)
    assert refused.returncode == 2
    assert "the name Task is taken" in " ".join(refused.stderr.replace("│", " ").split())
    assert not (tmp_path / "state").exists()
