"""What type checkers promise a user: the front door gives the types that were put in. Needs mypy, so it is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USER_CODE = "tests/typing/user_code.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def mypy(*arguments: str) -> tuple[int, str]:
    """Exit status and words of mypy, with the project's own settings unless told otherwise."""
    pytest.importorskip("mypy")
    found = {**os.environ, "MYPYPATH": ".links"}
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=ROOT, env=found, capture_output=True, text=True
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_typed_program_keeps_its_types_and_its_mistakes_are_found() -> None:
    status, words = mypy(USER_CODE)
    theirs = [line for line in words.splitlines() if line.startswith(USER_CODE)]
    assert theirs == []
    assert status in (0, 1), words  # 1: errors elsewhere, which the test below reports; 2: mypy itself failed


@pytest.mark.parametrize("settings", [(), ("--config-file=", "--strict")], ids=["ours", "with no plugin"])
def test_the_examples_are_strictly_typed(settings: tuple[str, ...]) -> None:
    examples = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py"))
    status, words = mypy(*settings, *examples)
    assert [line for line in words.splitlines() if line.startswith("examples/")] == []
    assert status in (0, 1), words  # as above


def test_the_package_is_strictly_typed() -> None:
    status, words = mypy()
    assert status == 0, words
