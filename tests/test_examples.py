"""Every example is a program that runs by itself, and its exit code is 0 only if what it prints was checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints, run as a user runs it."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (
        re.sub(r"solewriter: the engine \(pid \d+\) was killed by SIGKILL: another one is started\n", "", ran.stderr)
        == ""
    )
    return ran.stdout


def numbers(pattern: str, printed: str) -> tuple[int, ...]:
    """The groups of the pattern's only match, as numbers."""
    (found,) = re.finditer(pattern, printed)
    return tuple(int(group.replace(",", "")) for group in found.groups())


def test_farm(tmp_path: Path) -> None:
    printed = run("farm.py", cwd=tmp_path)
    assert numbers(r"primes below 400,000: ([\d,]+) by 4 agents, ([\d,]+) by a sieve", printed) == (33_860, 33_860)
    ended = re.findall(r"(agent-\d): (\d+) tasks, exit code (-?\d+)", printed)
    assert sum(int(count) for _, count, _ in ended) == 40
    killed = {name for name, _, code in ended if code == "-9"}
    assert killed
    assert {code for _, _, code in ended} == {"0", "-9"}
    taken_over = re.findall(r"range-\d+: begun by (agent-\d), completed by (agent-\d) in attempt 2", printed)
    assert taken_over
    assert {begun for begun, _ in taken_over} <= killed
    assert {completed for _, completed in taken_over} & killed == set()


def test_assignment(tmp_path: Path) -> None:
    printed = run("assignment.py", cwd=tmp_path)
    advice = re.search(r"least loaded: (.*)", printed)
    assert advice is not None
    meant = json.loads(advice.group(1).replace("'", '"'))
    assert {name for id, name in meant.items() if id.startswith("writer")} <= {"ann", "bob"}
    assert {name for id, name in meant.items() if id.startswith("coder")} <= {"bob", "eve"}
    assert "night -> eve\n" in printed


def test_asyncio_agents(tmp_path: Path) -> None:
    printed = run("asyncio_agents.py", cwd=tmp_path)
    assert numbers(r"(\d+) tasks by (\d+) agents", printed) == (200, 20)
    assert numbers(r"the watcher was woken (\d+) times", printed) > (0,)
    assert "cancelled, and yet: Applied(reply=<Reply hasty-1: applied at revision 601>)" in printed


def test_own_models(tmp_path: Path) -> None:
    printed = run("own_models.py", cwd=tmp_path)
    for refused in (
        "{'score': 'Input should be less than or equal to 1'}",
        "{'steps.0.minutes': 'Input should be greater than 0'}",
        "{'colour': 'no such field'}",
        "{'stage': 'changes by a transition only'}",
        "Experiment 'exp-1' is draft and cannot become done; from there: running, dropped",
        "{'score': 'an experiment that is done has a score'}",
    ):
        assert f"refused: {refused}\n" in printed
    assert "stored:  exp-1, version 4, done, score 0.9\n" in printed
    assert "found:   ['exp-1']\n" in printed
    assert "by name: {" in printed


def test_dashboard(tmp_path: Path) -> None:
    printed = run("dashboard.py", cwd=tmp_path)
    tables = re.findall(r"^revision (\d+)(, stale)?", printed, re.MULTILINE)
    revisions = [int(revision) for revision, _ in tables]
    assert revisions == sorted(revisions)
    assert revisions[-1] == 18
    outage = [number for number, (_, stale) in enumerate(tables) if stale]
    assert outage
    assert outage[-1] < len(tables) - 1, "it goes on after the outage"
    assert "{'archived': 1}" in printed
    assert re.search(r"^  Sample +8$", printed, re.MULTILINE)
    assert numbers(r"engine restarts: (\d+)", printed) == (1,)


IMPORTED = r"^([\d,]+) tasks in [\d.]+ s, [\d,]+/s; revision ([\d,]+) -> ([\d,]+)$"


def imports(printed: str) -> list[tuple[int, ...]]:
    """(tasks, revision before, revision after) of each import."""
    found = re.findall(IMPORTED, printed, re.MULTILINE)
    return [tuple(int(number.replace(",", "")) for number in line) for line in found]


@pytest.mark.long
def test_import_of_a_hundred_thousand_tasks(tmp_path: Path) -> None:
    printed = run("import_tasks.py", cwd=tmp_path)
    assert imports(printed) == [(100_000, 0, 100_000), (100_000, 100_000, 100_000)]


def test_an_import_is_known_in_another_run_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    printed = run("import_tasks.py", "kept", "--count", "500", cwd=tmp_path)
    assert imports(printed) == [(500, 0, 500), (500, 500, 500)]
    printed = run("import_tasks.py", "kept", "--count", "700", cwd=tmp_path)
    assert imports(printed) == [(700, 500, 700), (700, 700, 700)]


def test_apply_with_retry(tmp_path: Path) -> None:
    printed = run("apply_with_retry.py", cwd=tmp_path)
    counted, stored = re.findall(r"\{'blue': (\d+), 'green': (\d+), 'red': (\d+)\}", printed)
    assert counted == stored
    assert sum(map(int, counted)) == 1_000
    retries, increments = numbers(r"([\d,]+) retries for ([\d,]+) increments", printed)
    assert increments == 1_000
    assert retries > 0, "four processes never met: then nothing was shown"


# --- of all of them ---------------------------------------------------------------------------------------------------


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in here] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_needs_nothing_but_what_is_installed(path: Path) -> None:
    imported = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert imported - sys.stdlib_module_names <= {"solewriter", "pydantic"}


def test_an_example_takes_a_folder_and_keeps_it(tmp_path: Path) -> None:
    run("own_models.py", "kept/deeper", cwd=tmp_path)
    assert list((tmp_path / "kept" / "deeper").glob("journal-*.log"))
