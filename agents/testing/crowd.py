"""Who works on a state in a round: agents, readers and watchers, each a process that may be stopped, killed, or made to
share its session with another one.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.agents.testing.nursery import Nursery

TICK_S = 0.01  # between two looks at who ended, and who is to go on
END_S = 30.0  # patience with those that were told to end: the machine may be shared
ACKED = b'"outcome":"applied"'


class Crowd(NamedTuple):
    """How many of each work at once, and how long an agent pauses on average, so that others have the processor."""

    agents: int = 4
    readers: int = 2
    watchers: int = 1
    pause_s: float = 0.02


class Worker(msgspec.Struct):
    """An agent, a reader or a watcher, running."""

    role: str
    client_id: str
    pid: int
    path: Path
    read: int = 0  # bytes of its evidence
    leaving: bool = False  # its session was given to another


class Workers:
    """All of a round, forked by a nursery, which they never outlive. Each has a file of evidence in the folder."""

    def __init__(self, folder: Path, state: Path, seed: int, crowd: Crowd) -> None:
        self.acks = 0  # that were written down, as of the last count
        self.kills = Counter(agent=0, reader=0, watcher=0)
        self.failed: list[str] = []  # who ended unasked, or does not end
        self._folder = folder
        self._state = state
        self._seed = seed
        self._crowd = crowd
        self._workers: list[Worker] = []
        self._count = 0
        self._due: list[tuple[float, int]] = []  # who was stopped, and when it goes on
        self._shared: set[str] = set()  # sessions that two spoke for
        self._settling = False
        self._nursery = Nursery(state)

    def begin(self) -> None:
        """As many of each as there are to be."""
        for role, count in (
            ("agent", self._crowd.agents), ("reader", self._crowd.readers), ("watcher", self._crowd.watchers)
        ):  # fmt: skip
            for _ in range(count):
                self.start(role)

    def start(self, role: str, client_id: str = "", finish: tuple[Path, ...] = ()) -> None:
        self._count += 1
        path = self._folder / f"{role}-{self._count}.log"
        options = ["--seed", str(self._seed + self._count), "--pause-s", str(self._crowd.pause_s)]
        if role == "agent":
            client_id = client_id or f"client-{self._count}"
            options += ["--client-id", client_id]
        for open_requests in finish:
            options += ["--finish", str(open_requests)]
        pid = self._nursery.fork([role, str(self._state), str(path), *options])
        self._workers.append(Worker(role, client_id, pid, path))

    def some(self, role: str, whom: int) -> Worker | None:
        """One that is at work already."""
        found = [one for one in self._workers if one.role == role and not one.leaving and _has_written(one.path)]
        return found[whom % len(found)] if found else None

    def sweep(self) -> None:
        """Who ended by itself was told to, or failed."""
        for pid, status in self._nursery.ended().items():
            worker = next(worker for worker in self._workers if worker.pid == pid)
            self._left(worker)
            if status or not (worker.leaving or worker.client_id in self._shared):
                self.failed.append(f"{worker.path.stem} ended by itself with status {status}")
            elif not self._settling:
                self._one_is_left(worker.client_id)

    def _one_is_left(self, client_id: str) -> None:
        """Of two that spoke for a session. Which of them was told that it is the older one, an engine's death decides:
        both say hello to the next one.
        """
        left = [worker for worker in self._workers if worker.client_id == client_id]
        for worker in left:
            worker.leaving = False
        if not left:
            self.start("agent")

    def _left(self, worker: Worker) -> None:
        self.acks += _more_acks(worker)
        self._workers.remove(worker)
        self._due = [entry for entry in self._due if entry[1] != worker.pid]

    def kill(self, worker: Worker, *, resumes: bool) -> None:
        """Another one follows it; of an agent, one that sends again what it sent under ids of its own."""
        status = self._nursery.wait(worker.pid, kill=True)
        self._left(worker)
        if status != -signal.SIGKILL and (status or worker.client_id not in self._shared):  # else told that it is older
            self.failed.append(f"{worker.path.stem} ended by itself with status {status}")
        self.kills[worker.role] += 1
        if worker.role == "agent":
            self.start("agent", worker.client_id if resumes else "", (worker.path,))
        else:
            self.start(worker.role)

    def stop(self, worker: Worker, for_s: float) -> None:
        self._nursery.signal(worker.pid, signal.SIGSTOP)
        self._due.append((time.monotonic() + for_s, worker.pid))

    def wake(self, now: float) -> None:
        """Those that were stopped for long enough go on."""
        for due, pid in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove((due, pid))
            self._nursery.signal(pid, signal.SIGCONT)

    def take_over(self, worker: Worker) -> None:
        """Another one speaks for its session, too."""
        worker.leaving = True
        self._shared.add(worker.client_id)
        self.start("agent", worker.client_id)

    def count(self) -> None:
        self.acks += sum(map(_more_acks, self._workers))

    def settle(self) -> None:
        """Everybody finishes what it does, and ends."""
        self._settling = True
        for _, pid in self._due:
            self._nursery.signal(pid, signal.SIGCONT)
        for worker in self._workers:
            worker.leaving = True
        self.say_goodnight()
        deadline = time.monotonic() + END_S
        while self._workers and time.monotonic() < deadline:
            self.sweep()
            time.sleep(TICK_S)
        self.failed += [f"{worker.path.stem} does not end" for worker in self._workers]

    def say_goodnight(self) -> None:
        self._nursery.say_goodnight()

    def close(self) -> None:
        self._nursery.close()


def _has_written(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _more_acks(worker: Worker) -> int:
    """How many acks were written down since the last time."""
    try:
        with worker.path.open("rb") as file:
            file.seek(worker.read)
            whole, line_end, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return 0
    worker.read += len(whole + line_end)
    return whole.count(ACKED)
