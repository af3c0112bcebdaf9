"""The engine's death in the middle of the work: a SIGKILL, as the kernel's OOM killer sends it, and the time after it.

A death while nobody asks for anything would show nothing. So the engine is stopped first, right behind a publish, when
the replies may not have left yet; it is killed when the agents wait for it, at least one of them with a request that it
never read. Nobody is told: supervisor, agents and parent find out by themselves.

How long there was no writer is said by the shared memory: from the kill to the first change that a reader sees.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from solewriter import Reader
from solewriter.agents.demo.crew import Crew
from solewriter.shared.folder import Whereabouts
from solewriter.shared.system.processes import runs

PUBLISH_S = 0.2  # for the publish behind which it is stopped
ASK_S = 0.2  # for a request to leave while it stands still; agents ask many times in that, unless they wait or end
POLL_S = 0.002  # between looks at what the agents have asked


class Outage:
    """One death of the engine, and its end."""

    def __init__(self) -> None:
        self.killed = False
        self.unanswered = 0  # requests that were on their way
        self.gap_s: float | None = None
        self._killed_at = 0.0
        self._revision = 0  # that the dead engine published last

    @property
    def lasts(self) -> bool:
        return self.killed and self.gap_s is None

    def strike(self, reader: Reader, crew: Crew) -> bool:
        """Kill the engine while requests are on their way. False if none was sent in time, or no engine is there."""
        with suppress(TimeoutError):
            reader.wait_for(reader.revision + 1, timeout_s=PUBLISH_S)
        with suppress(ProcessLookupError, ChildProcessError), stopped(reader.folder.whereabouts()) as engine:
            self.unanswered = await_request(crew)
            if self.unanswered:
                self._revision = reader.revision
                self._killed_at = time.monotonic()
                signal.pidfd_send_signal(engine, signal.SIGKILL)
                select.select([engine], [], [])  # until it is dead
                self.killed = True
        return self.killed

    def watch(self, reader: Reader, timeout_s: float) -> None:
        """Wait for the end of it, so long at most."""
        with suppress(TimeoutError):
            reader.wait_for(self._revision + 1, timeout_s)
            self.gap_s = time.monotonic() - self._killed_at


@contextmanager
def stopped(where: Whereabouts) -> Iterator[int]:
    """The pidfd of an engine, stopped meanwhile. Raises ProcessLookupError or ChildProcessError if it is gone."""
    engine = os.pidfd_open(where.pid)
    try:
        if not runs(where.pid, where.start_time):
            raise ProcessLookupError(f"pid {where.pid} is another process by now, or nobody's")
        signal.pidfd_send_signal(engine, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, engine, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        yield engine
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(engine, signal.SIGCONT)
        os.close(engine)


def await_request(crew: Crew) -> int:
    """How many agents wait for a stopped engine: when all do and one asked after it was stopped, or a moment later."""
    before = asking = crew.asking()
    deadline = time.monotonic() + ASK_S
    while time.monotonic() < deadline and not (len(asking) == len(crew.alive) and asking != before):
        time.sleep(POLL_S)
        asking = crew.asking()
    return len(asking)
