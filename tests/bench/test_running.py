"""How every benchmark ends: with its answer, or in words."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

PROGRAM = """
import signal, sys
from pathlib import Path
from solewriter.bench.kit.running import answered

def run(folder, say):
    if sys.argv[2:]:
        signal.raise_signal(int(sys.argv[2]))
    return [folder.is_dir()]

answered("it", Path(sys.argv[1]), run, str, as_json=True)
"""


def ended(folder: Path, *words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


def test_an_answer_is_told_and_the_folder_is_gone(tmp_path: Path) -> None:
    done = ended(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[true]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_for_which_the_disk_is_full_ends_in_words(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = ended(tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "it: this cannot be printed: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_says_nothing_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    done = ended(tmp_path, str(int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert list(tmp_path.iterdir()) == []
