"""The demo: its figures are right by themselves, its check can fail, the whole holds whoever dies in the middle."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from solewriter import (
    Client,
    Engine,
    EngineUnavailable,
    Reader,
    Require,
    Task,
    TaskStatus,
    open_reader,
)
from solewriter.agents.demo import plan as planning
from solewriter.agents.demo.acks import Line, Log, Scribe, logged, unanswered
from solewriter.agents.demo.check import FinalState, single_process, verdict
from solewriter.agents.demo.crew import Crew
from solewriter.agents.demo.measure import Figures, added, counted, measured
from solewriter.agents.demo.outage import Outage
from solewriter.agents.demo.plan import LAST, Unsuitable, planned
from solewriter.shared.config import DEFAULT_LIMITS

SOLEWRITER = str(Path(sysconfig.get_path("scripts"), "solewriter"))
FIELDS = {
    "ok", "modules", "acked", "conflicts", "lost", "duplicated", "agents_killed", "engine_killed", "engine_restarts",
    "engine_unanswered", "engine_gap_s", "matches_single_process", "seconds",
}  # fmt: skip
RUN_S = 100  # for a whole demo, on a machine that does other things too


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "complexity"),
    [
        ("def f(): pass", 1),
        ("def f(a):\n if a: pass\n elif a.b: pass\n else: pass", 3),
        ("def f(a, b, c): return a and b and c or a", 4),
        ("def f(a): return 1 if a else 2", 2),
        ("def f(a):\n for x in a:\n  while x: pass\n else: pass", 3),
        ("async def f(a):\n async for x in a: pass", 2),
        ("def f():\n try: pass\n except ValueError: pass\n except KeyError: pass\n finally: pass", 3),
        ("def f(a): return [x for y in a if y for x in y if x if not x.z]", 6),
        ("def f(a):\n match a:\n  case 1: pass\n  case [x] if x: pass\n  case _: pass", 3),
        ("def f(a):\n with a: assert a", 1),
        ("def f(a): return lambda x: x and a", 2),
    ],
)
def test_complexity_is_one_more_than_the_branches(code: str, complexity: int) -> None:
    figures = counted(ast.parse(code), 0)
    assert (figures.functions, figures.complexity, figures.complexity_max) == (1, complexity, complexity)


def test_a_nested_function_is_counted_by_itself() -> None:
    code = "def f(a):\n if a: pass\n def g(b):\n  if b and a: pass\n  if b: pass\n return a or g"
    figures = counted(ast.parse(code), 0)
    assert (figures.functions, figures.complexity, figures.complexity_max) == (2, 3 + 4, 4)


def test_code_outside_of_functions_has_no_complexity(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("import a, b\nfrom c import d\nif a and b:\n    class X:\n        y = 1 if a else 2\n")
    assert measured(module) == Figures(modules=1, lines=5, imports=2, classes=1)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"def f(:\n", "SyntaxError"),
        (b"x = 'a\0b'\n", "SyntaxError|ValueError"),
        (b"# coding: no-such\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"(" * 10_000, "SyntaxError|MemoryError"),
        (b"x = " + b"-" * 100_000 + b"1\n", "RecursionError|MemoryError"),
    ],
)
def test_an_unparsable_file_is_a_result_too(tmp_path: Path, content: bytes, error: str) -> None:
    module = tmp_path / "m.py"
    module.write_bytes(content)
    figures = measured(module)
    assert (figures.modules, figures.unparsable, figures.lines, figures.functions) == (1, 1, 1, 0)
    assert figures.error.startswith(tuple(error.split("|")))


def test_a_file_that_is_gone_is_a_result_too(tmp_path: Path) -> None:
    assert measured(tmp_path / "m.py").error == "FileNotFoundError: No such file or directory"


def test_a_deep_tree_is_walked_without_recursion() -> None:
    code = "def f(a): return " + "a." * 900 + "a"
    assert counted(ast.parse(code), 1).complexity == 1


def test_figures_add_up_and_keep_the_largest() -> None:
    parts = [
        Figures(1, 0, 10, 2, 1, 3, 9, 7),
        Figures(1, 1, 5, error="SyntaxError: x"),
        Figures(1, 0, 1, 1, 0, 0, 8, 8),
    ]
    assert added(parts) == Figures(3, 1, 16, 3, 1, 3, 17, 8)
    assert added([]) == Figures()


# --- planning --------------------------------------------------------------------------------------------------------


def test_a_package_depends_on_its_modules_and_the_last_task_on_the_packages(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "p/__init__.py", "p/q/m.py", "p/__pycache__/x.py", ".hidden/x.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    plan = planned(tmp_path)
    assert {task.id: task.dependencies for task in plan.tasks} == {
        "a.py": (), "b.py": (), "p/__init__.py": (), "p/q/m.py": (),
        "./": ("a.py", "b.py"), "p/": ("p/__init__.py",), "p/q/": ("p/q/m.py",), LAST: ("./", "p/", "p/q/"),
    }  # fmt: skip
    assert (plan.modules, plan.packages) == (4, 3)


def test_too_many_parts_for_one_task_are_added_up_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "FAN_IN_MAX", 3)
    for number in range(11):
        (tmp_path / f"m{number}.py").write_text("x = 1\n")
    plan = planned(tmp_path)
    before: set[str] = set()
    for task in plan.tasks:
        assert len(task.dependencies) <= 3
        assert set(task.dependencies) <= before, "a task comes after those that it depends on"
        before.add(task.id)
    assert single_process(plan)[LAST] == Figures(modules=11, lines=11)


def test_a_name_too_long_for_an_id_gets_another_one(tmp_path: Path) -> None:
    folder = tmp_path / ("p" * 200)
    folder.mkdir()
    (folder / ("m" * 100 + ".py")).write_text("x = 1\n")
    plan = planned(tmp_path)
    assert all(len(task.id.encode()) <= 255 for task in plan.tasks)
    assert single_process(plan)[LAST] == Figures(modules=1, lines=1)


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsuitable, match="no Python file"):
        planned(tmp_path)


# --- checking --------------------------------------------------------------------------------------------------------

TOLD = [
    Line("r-1", 1, "a", 1, "created"),
    Line("r-2", 2, "a", 2, "in_progress"),
    Line("s-1", 2, conflict=True),
    Line("r-3", 3, "a", 3, "completed"),
    Line("r-4", 3),
]
DONE = Task(id="a", title="a", version=3, status=TaskStatus.COMPLETED, assigned_to="x", result={})


def counts(lines: list[Line], task: Task, *, revision: int = 3, unanswered: int = 0) -> tuple[int, int, int, int]:
    found = verdict(lines, FinalState(revision, {task.id: task}, 0), unanswered=unanswered)
    return found.acked, found.conflicts, found.lost, found.duplicated


def test_a_clean_run_has_nothing_lost_and_nothing_twice() -> None:
    assert counts(TOLD, DONE) == (4, 1, 0, 0)


def test_an_acked_change_that_is_not_there_is_lost() -> None:
    assert counts(TOLD, DONE.model_copy(update={"version": 2}))[2] == 1
    assert counts(TOLD, DONE.model_copy(update={"result": None}))[2] == 1
    assert counts(TOLD, DONE, revision=2)[2] == 1
    assert counts([*TOLD, Line("r-5", 3, "b", 1, "created")], DONE)[2] == 1


def test_a_version_told_twice_or_to_nobody_was_applied_twice() -> None:
    assert counts([*TOLD, Line("s-2", 2, "a", 2, "in_progress")], DONE)[3] == 1
    assert counts(TOLD[:1] + TOLD[2:], DONE)[3] == 1
    assert counts(TOLD[:1] + TOLD[2:], DONE, unanswered=1)[3] == 0, "its process died before it wrote the line"
    again = DONE.model_copy(update={"version": 4})
    assert counts([*TOLD, Line("s-2", 4, "a", 4, "completed")], again, revision=4)[3] == 1


def test_a_line_cut_off_by_a_kill_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "agent-1").write_bytes(b'{"request":"r-1","revision":1,"task":"a","version":1}\n{"request":"r-2","revi')
    assert [line.request for line in logged(tmp_path)] == ["r-1"]


@pytest.mark.parametrize(
    ("content", "size"), [(b"", 0), (b"?\n", 2), (b"?\n{}\n", 0), (b"?\n{}\n?\n", 7), (b"?\n{}\n?", 0), (b"?\n\n", 0)]
)
def test_a_log_that_ends_with_a_question_awaits_its_answer(tmp_path: Path, content: bytes, size: int) -> None:
    (tmp_path / "agent-1").write_bytes(content)
    assert unanswered(tmp_path / "agent-1") == size


# --- killing the engine ----------------------------------------------------------------------------------------------


def test_whoever_writes_a_log_goes_on_with_the_next_engine(
    engine: Engine, client: Client, tmp_path: Path, wait_until: Any
) -> None:
    (logs := tmp_path / "logs").mkdir()
    with Log(logs / "parent") as log, Scribe(engine.state, "parent", log) as scribe:
        log.create(scribe, [Task(id="a", title="a")])
        os.kill(engine.pid, signal.SIGKILL)
        taken = scribe.claim(Task)
        assert scribe.claim(Task) is None
        assert scribe.submit(guards=[Require(taken)]).applied
        done = scribe.complete(taken)
        assert not scribe.submit(guards=[Require(taken)]).applied
    assert [(line.revision, line.version) for line in logged(logs)] == [(1, 1), (2, 2), (2, 0), (3, 3)]
    assert client.get(Task, "a") == done
    assert unanswered(logs / "parent") == 0
    wait_until(lambda: engine.restarts == 1, 5, "the supervisor has counted the restart")


def test_an_engine_that_nobody_asks_is_not_killed(
    engine: Engine, client: Client, reader: Reader, tmp_path: Path
) -> None:
    pid, outage = engine.pid, Outage()
    assert not outage.strike(reader, Crew(0, engine.state, tmp_path, tmp_path))
    assert client.create(Task(title="a")).version == 1, "it was stopped for a moment, and goes on"
    assert (engine.pid, engine.restarts) == (pid, 0)
    assert (outage.killed, outage.lasts, outage.unanswered, outage.gap_s) == (False, False, 0, None)


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A made-up package tree: some 10 ms of work in each module, so that there is a middle to die in."""
    root = tmp_path / "code"
    dice = random.Random(7)
    for number in range(40):
        module = root / dice.choice(("", "one", "two", "two/deep")) / f"m{number:02d}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("import os\n" + "".join(made_up_function(dice, name) for name in range(40)))
    (root / "one" / "[red]broken.py").write_text("def f(:\n")
    return root


def made_up_function(dice: random.Random, number: int) -> str:
    conditions = "".join(
        f"    if a > {n} and b[{n}] < a * {n}:\n        a += b[{n}]\n" for n in range(dice.randrange(6))
    )
    return f"def f{number}(a, b):\n{conditions}    return [x for x in b if x] or a\n\n\n"


def demo(code: Path, *options: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """One run of the real thing: what it says, and how it ended."""
    ended = subprocess.run(
        [SOLEWRITER, "demo", str(code), "--json", "--agents", "2", *options],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )
    return json.loads(ended.stdout), ended


def engine_said(said: dict[str, Any]) -> tuple[Any, ...]:
    """What became of the engine: killed, requests on their way, restarts, seconds without a writer."""
    return said["engine_killed"], said["engine_unanswered"], said["engine_restarts"], said["engine_gap_s"]


def assert_clean(said: dict[str, Any], ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 0, (said, ended.stderr)
    assert said.keys() >= FIELDS
    assert "Traceback" not in ended.stderr
    assert (said["ok"], said["matches_single_process"], said["lost"], said["duplicated"]) == (True, True, 0, 0)
    assert (said["modules"], said["unparsable"], said["packages"]) == (41, 1, 4)
    assert said["seconds"] > 0


def test_many_processes_come_to_what_one_does_and_a_state_folder_that_was_named_is_kept(
    code: Path, state: Path
) -> None:
    said, ended = demo(code, "--calm", "--state", str(state), "--durability", "power")
    assert_clean(said, ended)
    tasks = 41 + 4 + 1
    assert (said["agents_killed"], said["taken_over"]) == (0, 0)
    assert engine_said(said) == (0, 0, 0, None)
    assert said["acked"] == said["revision"] == 3 * tasks, "created, taken, done; each of them one revision"
    assert any(state.iterdir())
    again = subprocess.run(
        [SOLEWRITER, "demo", str(code), "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert again.returncode == 1
    assert again.stderr == f"solewriter: {state} holds tasks already: name a folder that does not exist yet\n"


def test_an_agent_and_the_engine_killed_in_the_middle_cost_nothing(code: Path) -> None:
    said, ended = demo(code)
    assert_clean(said, ended)
    tasks = 41 + 4 + 1
    assert (said["agents_killed"], said["taken_over"]) == (1, 1)
    assert said["revision"] == 3 * tasks + 2, "one task was interrupted and taken again"
    killed, asking, restarts, gap_s = engine_said(said)
    assert (killed, restarts) == (1, 1)
    assert 1 <= asking <= 2, "requests of agents were on their way"
    assert DEFAULT_LIMITS.restart_backoff_s < gap_s < said["seconds"]


@pytest.mark.long
def test_an_only_agent_goes_on_with_the_next_engine(code: Path) -> None:
    said, ended = demo(code, "--agents", "1")
    assert_clean(said, ended)
    assert said["agents_killed"] == 0, "nobody would be left"
    assert engine_said(said)[:3] == (1, 1, 1)


@pytest.mark.heavy
def test_an_engine_that_may_forget_is_not_killed(code: Path) -> None:
    said, ended = demo(code, "--durability", "memory")
    assert_clean(said, ended)
    assert said["agents_killed"] == 1
    assert engine_said(said) == (0, 0, 0, None)
    assert "durability 'memory' promises nothing across a restart, so the engine is not killed\n" in ended.stderr


def test_too_little_work_to_die_in_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("x = 1\n")
    said, ended = demo(tmp_path)
    assert (ended.returncode, said["ok"], said["lost"], said["duplicated"]) == (0, True, 0, 0), (said, ended.stderr)
    killed, asking, restarts, gap_s = engine_said(said)
    assert restarts == killed, "what did not happen is not claimed"
    assert killed or (asking == 0 and gap_s is None), "a gap may have no end where nothing was left to do"


@pytest.mark.long
def test_an_engine_that_others_kill_too_costs_nothing_either(code: Path, state: Path, wait_until: Any) -> None:
    with running(code, "--json", "--agents", "3", "--state", str(state)) as process:
        reader = wait_until(lambda: opened(state), 30, "the engine serves")
        reader.wait_for(46 + 10, timeout_s=30)  # all tasks are created, and some are done
        os.kill(reader.folder.whereabouts().pid, signal.SIGKILL)
        reader.close()
        said = json.loads(process.communicate(timeout=RUN_S)[0])
    assert process.returncode == 0, said
    assert (said["ok"], said["lost"], said["duplicated"]) == (True, 0, 0)
    assert (said["engine_killed"], said["engine_restarts"]) == (1, 2)


@pytest.mark.heavy
def test_what_an_engine_forgot_is_found_out(code: Path, state: Path, wait_until: Any) -> None:
    with running(code, "--json", "--calm", "--durability", "memory", "--state", str(state)) as process:
        reader = wait_until(lambda: opened(state), 30, "the engine serves")
        reader.wait_for(46 + 10, timeout_s=30)
        os.kill(reader.folder.whereabouts().pid, signal.SIGKILL)
        reader.close()
        said = json.loads(process.communicate(timeout=RUN_S)[0])
    assert process.returncode == 1
    assert (said["ok"], said["matches_single_process"]) == (False, False)
    assert said["lost"] >= 46


def test_agents_that_just_begin_leave_ctrl_c_to_their_parent(engine: Engine, tmp_path: Path) -> None:
    """Else each of them shows in which import it was interrupted."""
    (logs := tmp_path / "logs").mkdir()
    before = signal.getsignal(signal.SIGINT)
    with Crew(2, engine.state, tmp_path, logs) as crew:
        assert signal.getsignal(signal.SIGINT) is before
        for process in crew.agents:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
    assert [process.exitcode for process in crew.agents] == [0, 0], "there was nothing to do"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.heavy)])
@pytest.mark.heavy
def test_a_demo_that_is_told_to_end_leaves_nothing_behind(
    code: Path, state: Path, wait_until: Any, number: signal.Signals
) -> None:
    with running(code, "--state", str(state)) as process:
        reader = wait_until(lambda: opened(state), 30, "the engine serves")
        reader.wait_for(46 + 5, timeout_s=30)
        reader.close()
        process.send_signal(number)
        said, _ = process.communicate(timeout=RUN_S)
    assert process.returncode not in (0, None)
    assert "every figure" not in said


@pytest.mark.heavy
def test_plain_output_ends_with_the_summary(code: Path) -> None:
    with running(code) as process:
        said, complaints = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, complaints
    assert "46 of 46 tasks completed" in said
    assert "equal to that of a single process" in said
    assert len(set(re.findall(r"engine (\d+) serves", said))) == 2
    assert len(re.findall(r"engine \d+ is dead, the next one is on its way", said)) == 1
    assert re.search(r"no writer +for \d\.\d\d s, from the kill to the next change that readers saw", said)
    assert "\x1b" not in said, "no colours in a pipe"


@contextmanager
def running(code: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [SOLEWRITER, "demo", str(code), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def opened(state: Path) -> Reader | None:
    try:
        return open_reader(state)
    except EngineUnavailable:
        return None
