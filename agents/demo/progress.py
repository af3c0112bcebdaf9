"""How far the job is, said by one snapshot: pure, and the same for the display and for the parent's decisions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from solewriter import Snapshot, Task, TaskStatus


@dataclass
class Share:
    """One package: how many of its tasks are done, and how many somebody works at."""

    total: int = 0
    done: int = 0
    busy: int = 0


@dataclass
class Progress:
    """Everything that there is to see at one revision."""

    revision: int
    engine: int  # process id of the one that published this
    stale: bool  # it is gone, and the next one is not there yet
    total: int = 0
    done: int = 0
    packages: dict[str, Share] = field(default_factory=dict)
    held: dict[str, Task] = field(default_factory=dict)  # by agent: what it works at
    completed: Counter[str] = field(default_factory=Counter)  # by agent

    def take_in(self, task: Task) -> None:
        """Count one task."""
        share = self.packages.setdefault(task.project, Share())
        self.total += 1
        share.total += 1
        agent = task.assigned_to or ""
        if task.status is TaskStatus.COMPLETED:
            self.done += 1
            share.done += 1
            self.completed[agent] += 1
        elif task.status is TaskStatus.IN_PROGRESS:
            share.busy += 1
            self.held[agent] = task

    @property
    def fraction(self) -> float:
        """How much of it is done, from 0 to 1."""
        return self.done / max(1, self.total)

    @property
    def busiest(self) -> list[tuple[str, Share]]:
        """Packages that were begun and are not finished, the largest first."""
        begun = [
            (name, share)
            for name, share in self.packages.items()
            if share.done < share.total and (share.done or share.busy)
        ]
        return sorted(begun, key=lambda item: (-item[1].total, item[0]))


def progress_at(snap: Snapshot) -> Progress:
    """How far the job is at this snapshot."""
    progress = Progress(snap.revision, snap.pin.view.root.pid, snap.stale)
    for task in snap.entities(Task):
        progress.take_in(task)
    return progress
