"""The agents as the demo's parent sees them: processes that it starts, and one that it kills.

A dead agent is not replaced: the engine sees that it ended, and the others take over.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from solewriter import Client, Require, Task
from solewriter.agents.demo import agent
from solewriter.agents.demo.acks import unanswered
from solewriter.agents.demo.progress import progress_at

END_S = 10.0  # for an agent to end once everything is completed


class Crew:
    """The agents' processes, all of them ended when the `with` does."""

    def __init__(self, count: int, state: Path, root: Path, logs: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        names = [f"agent-{number}" for number in range(1, count + 1)]
        self._logs = logs
        self.agents: list[BaseProcess] = [
            spawn.Process(target=agent.run, name=name, args=(state, root, name, logs / name), daemon=True)
            for name in names
        ]
        self.killed: list[str] = []

    @property
    def alive(self) -> list[BaseProcess]:
        return [process for process in self.agents if process.is_alive()]

    @property
    def dead(self) -> list[str]:
        """Who ended before everything was completed, by our hand or by a fault."""
        return [process.name for process in self.agents if process.exitcode not in (None, 0)]

    @property
    def failed(self) -> list[str]:
        return [name for name in self.dead if name not in self.killed]

    def asking(self) -> dict[str, int]:
        """Who of the living waits for an answer of the engine, and where in its log it asked."""
        logs = {process.name: self._logs / process.name for process in self.alive}
        return {name: place for name, log in logs.items() if log.exists() and (place := unanswered(log))}

    def strike(self, client: Client) -> bool:
        """Kill one agent, by SIGKILL, in the middle of a task. False if none was found in the middle of one."""
        for victim in shuffled(self.alive):
            stop(victim)
            if holds_a_task(victim.name, client):
                victim.kill()
                victim.join()
                self.killed.append(victim.name)
                return True
            resume(victim)
        return False

    def __enter__(self) -> Self:
        # Ctrl-C reaches the whole group, and is ours to handle. Who ignores it from the first instruction on says
        # nothing while it imports.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in self.agents:
            process.start()
        signal.signal(signal.SIGINT, before)  # not where we were told to end meanwhile, which goes on without it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.agents:
            process.join(END_S if error is None else 0)
            if process.is_alive():
                process.kill()
                process.join()


def shuffled(processes: list[BaseProcess]) -> list[BaseProcess]:
    return random.sample(processes, len(processes))


def stop(process: BaseProcess) -> None:
    """Stop a child, and return only when it does nothing any more."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def resume(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)


def holds_a_task(name: str, client: Client) -> bool:
    """Whether this stopped agent is in the middle of a task, and has not just sent its result.

    What it sent before it was stopped is in its lane already: it is decided no later than the turn of our own request.
    """
    with client.reader.snapshot() as snap:
        task = progress_at(snap).held.get(name)
    if task is None:
        return False
    if not client.submit(guards=[Require(task)]).applied:
        return False
    return client.get(Task, task.id) == task
