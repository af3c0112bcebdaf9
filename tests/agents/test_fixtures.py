"""The fixture for users' tests: what it gives, and what it says of an engine that died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import signal

import pytest

from solewriter import Entity, Limits, Task, connect, status_of, testing


class Job(Entity):
    seed: int = 0


def listed():
    yield Job


engine = testing.engine_fixture(models=listed())
shared = testing.engine_fixture(scope="module", limits=Limits(session_grace_s=1.0))
mortal = testing.engine_fixture(durability="process", may_die=True)
seen = []


@pytest.mark.parametrize("again", [False, True])
def test_each_has_an_engine_of_its_own(engine, again):
    assert engine.durability == "memory"
    with connect(engine.state) as client:
        client.create(Job(id="a"))  # a second time where it is another state
    assert all(status_of(one).engine == "stopped" for one in seen)
    seen.append(engine.state)


@pytest.mark.parametrize("version", [1, 2])
def test_a_module_shares_one(shared, version):
    assert shared.limits.session_grace_s == 1.0
    with connect(shared.state) as client:
        assert client.put(Task(id="a", title=str(version))).version == version


def test_one_may_be_stopped(engine):
    engine.stop()


def test_one_may_be_killed(mortal):
    with connect(mortal.state) as client:
        client.create(Task(id="a", title="a"))
        os.kill(mortal.pid, signal.SIGKILL)
        assert client.update(Task.ref("a"), title="b").version == 2


def test_one_that_dies_is_started_again(engine):
    os.kill(engine.pid, signal.SIGKILL)
    while not engine.restarts:
        pass


slow = testing.engine_fixture(limits=Limits(restart_backoff_s=30.0))


def test_one_that_dies_is_seen_before_that(slow):
    os.kill(slow.pid, signal.SIGKILL)
    while status_of(slow.state).engine == "alive":
        pass


def test_one_does_not_start(short):
    pytest.fail("it has no room")


short = testing.engine_fixture(limits=Limits(memory_dir="/nowhere"))
"""


def test_what_tests_are_given_and_what_they_are_told(tmp_path: Path) -> None:
    (tmp_path / "test_agents.py").write_text(TESTS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-W", "error", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/base"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    reports, _, told = ran.stdout.partition("short test summary info")  # where lines are cut, unless CI is set
    assert [line for line in ran.stdout.splitlines() if line.startswith("FAILED")] == [], ran.stdout
    assert "8 passed, 3 errors" in told, ran.stdout
    one, other, start = (line for line in told.splitlines() if line.startswith("ERROR"))
    assert "test_one_that_dies_is_started_again - " in one
    assert "test_one_that_dies_is_seen_before_that - " in other
    assert "test_one_does_not_start - solewriter.shared.errors." in start
    assert reports.count("died (how, is told on stderr) and lost all that it had: engine_fixture(may_die=True)") == 2
    assert "was killed by SIGKILL: another one is started" in ran.stdout


def test_nobody_else_needs_pytest(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["pytest"] = None
from solewriter import *
from solewriter.agents.cli import main
import solewriter.agents.testing
try:
    from solewriter import testing
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "import of pytest halted; None in sys.modules\n"
