"""Forks agents and readers from a process that has imported everything, so that a kill costs milliseconds, not a start.

The program (`python -m solewriter.agents.testing.nursery STATE`) takes one JSON line at a time and answers each with
one. Its children's standard input is a pipe that ends when the campaign says so, or dies. When its own ends, its
children are killed, and if the campaign died before its engine, that is seen off. They die with it, too. It alone
signals them, as their parent: a process id that was not waited for is nobody else's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from solewriter.agents.testing import load
from solewriter.engine_proc.process import remove_orphans
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder

PR_SET_PDEATHSIG = 1
ENGINE = b"solewriter.engine_proc"  # in its command
DRAIN_MAX_S = 20.0  # of an engine without an owner


# --- the campaign's side ---------------------------------------------------------------------------------------------


class Nursery:
    """A running nursery. Not shared by threads."""

    def __init__(self, state: Path) -> None:
        self._dawn, self._dusk = os.pipe()  # the children's standard input, and what ends it
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "solewriter.agents.testing.nursery", str(state), str(self._dawn)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._dawn,),
                env={name: value for name, value in os.environ.items() if name != VARIABLE},
                start_new_session=True,  # Ctrl-C is the campaign's to handle
            )
        finally:
            os.close(self._dawn)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(words) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(f"the nursery ended with status {self._process.wait()}, asked for {words}")
        return msgspec.json.decode(line)

    def fork(self, arguments: Sequence[str]) -> int:
        """The process id of a new child that runs `load` with these."""
        pid: int = self._ask("fork", *arguments)
        return pid

    def signal(self, pid: int, number: int) -> None:
        """Harmless when it has ended."""
        self._ask("signal", pid, number)

    def wait(self, pid: int, *, kill: bool = False) -> int:
        """The exit status of a child that ends, or is killed."""
        status: int = self._ask("wait", pid, kill)
        return status

    def ended(self) -> dict[int, int]:
        """The exit statuses of those that ended by themselves since the last time."""
        return dict(self._ask("ended"))

    def say_goodnight(self) -> None:
        """The children's standard input ends: each of them finishes what it does, and ends."""
        if self._dusk >= 0:
            os.close(self._dusk)
            self._dusk = -1

    def close(self) -> None:
        """Nothing of it runs any more."""
        self.say_goodnight()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it ended before, and what it was asked is still in the buffer
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


# --- the program -----------------------------------------------------------------------------------------------------


class Parent:
    """The nursery's own side: what it is asked to do with its children."""

    def __init__(self, state: str, dawn: int) -> None:
        self._state = state
        self._dawn = dawn
        self._children: set[int] = set()

    def serve(self) -> None:
        """Until standard input ends."""
        words: dict[str, Callable[..., Any]] = {
            "fork": self._fork,
            "signal": self._signal,
            "wait": self._wait,
            "ended": self._ended,
        }
        for line in sys.stdin.buffer:
            word, *arguments = msgspec.json.decode(line)
            sys.stdout.buffer.write(msgspec.json.encode(words[word](*arguments)) + b"\n")
            sys.stdout.buffer.flush()

    def _fork(self, *arguments: str) -> int:
        pid = os.fork()
        if pid == 0:
            self._grow_up(arguments)
        self._children.add(pid)
        return pid

    def _grow_up(self, arguments: Sequence[str]) -> None:
        """In the child: run the program, and never come back."""
        status = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.dup2(self._dawn, 0)
            os.dup2(2, 1)  # the answers' pipe is the parent's
            os.close(self._dawn)
            load.main(arguments)
            status = 0
        except SystemExit as reason:
            print(reason.code, file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _signal(self, pid: int, number: int) -> None:
        if pid in self._children:
            os.kill(pid, number)

    def _wait(self, pid: int, kill: bool) -> int:
        if kill:
            os.kill(pid, signal.SIGKILL)
        self._children.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _ended(self) -> list[tuple[int, int]]:
        found = []
        for pid in [*self._children]:
            waited, status = os.waitpid(pid, os.WNOHANG)
            if waited:
                self._children.remove(pid)
                found.append((pid, os.waitstatus_to_exitcode(status)))
        return found

    def close(self) -> None:
        for pid in [*self._children]:
            self._wait(pid, True)
        see_off(StateFolder(self._state))


def see_off(folder: StateFolder) -> None:
    """An engine that its owner left behind ends by itself, unless somebody left it stopped; a dead one left memory."""
    holder = holder_of(folder)
    try:
        if ENGINE in Path(f"/proc/{holder}/cmdline").read_bytes():
            pidfd = os.pidfd_open(holder)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            select.select([pidfd], [], [], DRAIN_MAX_S)
    except OSError:
        pass  # there is none any more
    remove_orphans(folder)


def holder_of(folder: StateFolder) -> int:
    """Process id of the engine that took the lock last, while it starts, too; 0 if there was none."""
    try:
        said = folder.lock.read_text().removeprefix("pid ").strip()
    except OSError:
        return 0
    return int(said) if said.isdigit() else 0


def main(state: str, dawn: str) -> None:
    parent = Parent(state, int(dawn))
    gc.collect()
    gc.freeze()  # what the children share stays shared
    try:
        parent.serve()
    except BrokenPipeError:
        pass  # nobody hears the answer any more
    finally:
        parent.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
