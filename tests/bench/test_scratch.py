"""What a benchmark leaves behind: nothing, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solewriter.bench.kit.scratch import scratch_folder

# It starts what begins with a folder of its own, as an engine does, when the first one is gone already; and is killed.
KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from solewriter.bench.kit.scratch import scratch_folder

with scratch_folder(Path(sys.argv[1])) as folder:
    late = 'while [ -e "$1" ]; do sleep 0.01; done; mkdir -p "$1/state"; : >"$1/state/lock"; : >"$2"'
    subprocess.Popen(["/bin/sh", "-c", late, "sh", str(folder), sys.argv[2]], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

# Ctrl-C when the folder is there, and the shell that would remove it is not.
INTERRUPTED = """
import sys
from pathlib import Path
from solewriter.bench.kit.scratch import scratch_folder

def interrupt(event, _):
    if event == "subprocess.Popen":
        raise KeyboardInterrupt

sys.addaudithook(interrupt)
with scratch_folder(Path(sys.argv[1])):
    pass
"""


def test_what_an_engine_makes_that_was_just_starting_is_removed_too(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    parent, made = tmp_path / "parent", tmp_path / "made"
    parent.mkdir()
    ended = subprocess.run([sys.executable, "-P", "-c", KILLED, str(parent), str(made)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    wait_until(made.exists, 10, "the folder that was made again")
    wait_until(lambda: not list(parent.iterdir()), 10, "its removal")


def test_an_orderly_end_removes_at_once_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        (folder / "a" / "b").mkdir(parents=True)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_end_at_the_very_beginning_leaves_no_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", INTERRUPTED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.stderr.endswith("KeyboardInterrupt\n")
    assert list(tmp_path.iterdir()) == []
