"""A failpoint does what the variable says, where and when it says so, and nothing on any other day."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from solewriter.shared import failpoint
from solewriter.shared.failpoint import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
REACHING = """
import sys
from solewriter.shared import failpoint
for name in sys.argv[1:]:
    try:
        failpoint.reach(name)
        print(name, "passed")
    except OSError as error:
        print(name, error.errno, error)
    sys.stdout.flush()
"""


def child(variable, *names, **options):
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if variable is not None:
        env[VARIABLE] = variable
    command = [sys.executable, "-P", "-c", REACHING, *names]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def outcome(variable, *names):
    """(exit status, what each name ended in)."""
    with child(variable, *names) as process:
        out, _ = process.communicate()
    return process.returncode, out.splitlines()


@pytest.mark.parametrize("variable", [None, ""])
def test_without_the_variable_nothing_happens(variable):
    assert outcome(variable, "here", "there") == (0, ["here passed", "there passed"])


def test_in_this_process_every_name_passes():
    assert VARIABLE not in os.environ
    assert failpoint.reach("anywhere") is None


def test_other_names_pass():
    assert outcome("here:kill", "there", "her", "here.too") == (0, ["there passed", "her passed", "here.too passed"])


def test_kill_is_a_sigkill():
    assert outcome("here:kill", "there", "here", "there") == (-signal.SIGKILL, ["there passed"])


def test_exit_is_status_3_without_any_cleaning_up():
    assert outcome("here:exit", "there", "here", "there") == (3, ["there passed"])


@pytest.mark.parametrize(("action", "code"), [("raise", errno.EIO), ("full", errno.ENOSPC)])
def test_an_error_is_raised_once_and_names_itself(action, code):
    status, lines = outcome(f"here:{action}", "here", "here")
    assert status == 0
    assert lines[0].startswith(f"here {code} ")
    assert lines[0].endswith("(failpoint)")
    assert lines[1] == "here passed"


def test_stop_waits_until_it_is_continued():
    with child("here:stop", "there", "here", "there") as process:
        try:
            assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED).si_status == signal.SIGSTOP
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, out.splitlines()) == (0, ["there passed", "here passed", "there passed"])


@pytest.mark.parametrize("hit", [1, 2, 4])
def test_hit_waits_for_the_kth_time(hit):
    assert outcome(f"here:exit:hit={hit}", *["here"] * 5) == (3, ["here passed"] * (hit - 1))


def test_several_places_wait_each_for_itself():
    status, lines = outcome("a:raise, b:full:hit=2,c:exit", "b", "a", "b", "a", "c")
    assert status == 3
    assert [line.split()[:2] for line in lines] == [["b", "passed"], ["a", "5"], ["b", "28"], ["a", "passed"]]


@pytest.mark.parametrize(
    "variable", ["here", "here:", "here:explode", "here:kill:2", "here:kill:hit=x", "a:kill,b", ","]
)
def test_a_variable_that_says_nothing_stops_the_process_at_once(variable):
    with child(variable, "there") as process:
        out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert "FailpointError" in err
    assert "name:action[:hit=k]" in err


def reached_in_the_source() -> Iterator[str]:
    """The name at every `failpoint.reach`, as it is written there."""
    for room in ("shared", "engine_proc", "agents"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoint.reach":
                    yield ast.literal_eval(node.args[0])


def test_the_list_names_just_the_places_that_there_are():
    assert sorted(failpoint.NAMES) == sorted(reached_in_the_source()), "each name is one place"
