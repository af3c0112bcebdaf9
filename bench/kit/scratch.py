"""What a benchmark puts into memory or starts beside itself goes with it, however it ends.

A shell waits for the end of a pipe that only this process holds open, and tidies then: also after a signal that nobody
can catch. The orderly end is the same: the pipe is closed, and the shell is waited for.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

# A line is the orderly end. An engine whose owner was killed drains first, and needs its folder until then:
# `engine.json` is the last that goes. One that was just starting makes its folder again.
REMOVE = """
PATH=/bin:/usr/bin
if ! read -r _; then
    tries=0
    while [ $tries -lt 100 ] && [ -n "$(find "$1" -name engine.json 2>/dev/null)" ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    tries=0
    while [ $tries -lt 10 ]; do rm -rf -- "$1"; sleep 0.2; tries=$((tries + 1)); done
fi
rm -rf -- "$1"
"""
END = """
"$@" &
read -r _
kill -KILL $!
wait $! 2>/dev/null
exit 0
"""
SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGINT raises already


@contextmanager
def scratch_folder(parent: Path, prefix: str = "solewriter-bench-") -> Iterator[Path]:
    """A new private folder, removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with _shell(REMOVE, [str(folder)]) as told:
            try:
                yield folder
            finally:
                told.write(b"\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # where the shell was not there yet


@contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A program that runs until the end of the `with`, or of this process. What it says is not heard."""
    with _shell(END, command):
        yield


@contextmanager
def _shell(script: str, arguments: Sequence[str]) -> Iterator[IO[bytes]]:
    """In a session of its own: what a terminal sends to a whole group must not end it before its work is done."""
    with subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        yield shell.stdin  # the exit closes the pipe and waits


def tidy_when_told_to_end() -> None:
    """Let signals that ask for an end raise SystemExit, so that every `with` is left in order."""
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # one is enough: the second must not interrupt the tidying
    raise SystemExit(128 + number)


def end_with_the_parent() -> None:
    """In a child of `multiprocessing`: who waits for requests or for answers outlives a parent that was killed, for
    ever. Ctrl-C at a terminal is the parent's to answer, which ends this process then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def taken_bytes(*paths: Path) -> int:
    """Bytes that files take, not how long they are: sparse ones take less."""
    return sum(path.lstat().st_blocks * 512 for path in paths if os.path.lexists(path))
