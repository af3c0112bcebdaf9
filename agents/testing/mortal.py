"""An engine whose lives end as a plan says, and what is known of each death.

The supervisor that restarts it is also who kills it. A second thread looks after what nobody else can see in time: an
engine that stopped itself at a failpoint, while it starts perhaps, and journal files that may be trimmed before they
were kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from solewriter.agents.testing.nursery import holder_of
from solewriter.agents.testing.plan import Life
from solewriter.engine_proc.process import Engine
from solewriter.shared.errors import EngineStartFailed
from solewriter.shared.failpoint import VARIABLE

LOOK_S = 0.01  # between two looks of the second thread
SLICE_S = 0.02  # of a wait for a death that may be called off
TOLD = ("(failpoint)", "MemoryFull")  # says an engine that could not start, because a failpoint raised an error
EXIT_FAILED_WRITE = 5  # the status of one that served


class Span(NamedTuple):
    """One life. Times are of CLOCK_MONOTONIC, in ns; 0: it never came so far."""

    served_at: int
    died_at: int
    stopped_at: int  # for a while, by anybody
    violent: bool  # its end


class MortalEngine(Engine):
    """An engine that is killed again and again, until there is `peace`."""

    def __init__(
        self, state: Path, lives: Iterator[Life], note: Callable[[str], None], archive: Path, **options: Any
    ) -> None:
        super().__init__(state, **options)
        self.kills = 0
        self.spans: list[Span] = []
        self.failpoints_hit: Counter[str] = Counter()
        self.crashes: list[str] = []  # ends that nobody had planned
        self._lives = lives
        self._note = note
        self._archive = archive
        self._life = Life(0)
        self._served_at = 0
        self._killed = False  # by this process
        self._stopped_at = 0
        self._buried = 0  # the last process whose end was noted
        self._peace = threading.Event()
        self._over = threading.Event()
        self._second = threading.Thread(target=self._look_after, name="campaign-watch", daemon=True)
        self._second.start()

    def peace(self) -> None:
        """From now on nobody is killed. What lies in wait may still strike once."""
        self._peace.set()

    def strike(self, patience_s: float) -> None:
        """Kill the process that serves now, and wait for the next one. Raises TimeoutError."""
        before, deadline = self.restarts, time.monotonic() + patience_s
        self._note("SIGKILL of the engine")
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)
        while self.restarts == before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no engine follows in {patience_s} s")
            time.sleep(LOOK_S)

    def end(self) -> None:
        """Stop it, whatever state it is in; nothing of it runs any more."""
        self.peace()
        try:
            self.stop()
        finally:
            self._over.set()
            self._second.join()

    def begin(self) -> None:
        """Start it, again if a failpoint is in the way. Raises what else is."""
        while True:
            try:
                self.start()
                return
            except EngineStartFailed:
                if self.crashes:
                    raise

    # --- a life ------------------------------------------------------------------------------------------------------

    def _launch(self, *, backoff_s: float | None = None) -> None:
        self._life = Life(0) if self._peace.is_set() else next(self._lives)
        self._served_at, self._killed, self._stopped_at = 0, False, 0
        if self._life.failpoint:
            os.environ[VARIABLE] = self._life.failpoint
            self._note(f"the next life of the engine: {self._life.failpoint}")
        try:
            super()._launch(backoff_s=backoff_s)
        except EngineStartFailed as error:
            if not self._stopping.is_set():  # else it was told to end while it started
                self._bury(-signal.SIGKILL if "status -9" in str(error) else 1, str(error))
            raise
        finally:
            os.environ.pop(VARIABLE, None)
        self._served_at = time.monotonic_ns()

    def _watched(self, child: Any) -> int:
        """Its exit status, when it ended, as was planned."""
        if child.pid == self._buried:
            return super()._watched(child)  # the next one did not come so far
        self._trouble(child)
        status = super()._watched(child)
        self._buried = child.pid
        self._bury(status, "")
        return status

    def _trouble(self, child: Any) -> None:
        life = self._life
        if life.stopped_s and not life.failpoint and not self._ends_within(child, life.after_s / 2):
            self._note("SIGSTOP of the engine")
            self._stopped_at = time.monotonic_ns()
            child.signal(signal.SIGSTOP)
            self._ends_within(child, life.stopped_s)
            if life.goes_on:
                child.signal(signal.SIGCONT)
                self._ends_within(child, life.after_s / 2)
            elif self._quiet:
                child.signal(signal.SIGCONT)
        else:
            self._ends_within(child, life.after_s)
        if not self._quiet and not child.ends_within(0):
            self._note("SIGKILL of the engine")
            self._killed = True
            child.signal(signal.SIGKILL)

    @property
    def _quiet(self) -> bool:
        return self._peace.is_set() or self._stopping.is_set()

    def _ends_within(self, child: Any, seconds: float) -> bool:
        """Whether its life ended by then; at once when there is nothing to be done to it any more."""
        deadline = time.monotonic() + seconds
        while not self._quiet and (left := deadline - time.monotonic()) > 0:
            if child.ends_within(min(left, SLICE_S)):
                return True
        return self._quiet

    def _bury(self, status: int, said: str) -> None:
        """Note a death, and who is to blame."""
        self.kills += status == -signal.SIGKILL
        self.spans.append(Span(self._served_at, time.monotonic_ns(), self._stopped_at, status != 0))
        name, _, action = self._life.failpoint.partition(":")
        at_failpoint = (
            (action.startswith("kill") and status == -signal.SIGKILL)
            or (action.startswith(("raise", "full")) and (status == EXIT_FAILED_WRITE or any(map(said.count, TOLD))))
        )  # fmt: skip
        if at_failpoint and not self._killed:
            self.failpoints_hit[name] += 1
        elif status and not self._killed:
            self.crashes.append(f"the engine ended with status {status}, {self._life}: {said or 'served before'}")

    def _say(self, text: str) -> None:
        self._note(text)

    # --- the second thread -------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        while not self._over.wait(LOOK_S):
            self.keep_journal()
            pid = holder_of(self.folder)
            if ":stop" in self._life.failpoint and not self._stopped_at and _is_stopped(pid):
                self._wake(pid)

    def _wake(self, pid: int) -> None:
        """It stopped itself at its failpoint."""
        self._stopped_at = time.monotonic_ns()
        self.failpoints_hit[self._life.failpoint.partition(":")[0]] += 1
        self._over.wait(self._life.stopped_s)
        goes_on = self._life.goes_on or self._quiet
        if not goes_on:
            self._note("SIGKILL of the engine, stopped at its failpoint")
            self._killed = True
        try:
            os.kill(pid, signal.SIGCONT if goes_on else signal.SIGKILL)
        except ProcessLookupError:
            pass  # somebody killed it as it stood

    def keep_journal(self) -> None:
        """Each journal file has a second name in the archive, and is there when it was trimmed."""
        for path in self.folder.path.glob("journal-*.log"):
            kept = self._archive / path.name
            try:
                if not kept.exists() or not kept.samefile(path):  # a recovered tail is a new file
                    kept.unlink(missing_ok=True)
                    os.link(path, kept)
            except FileNotFoundError:
                pass  # trimmed in this moment; its successor is later than the one that was kept, or the history tells


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False
