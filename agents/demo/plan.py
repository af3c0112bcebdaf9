"""From files to tasks: one for each module, one for each package that depends on its modules, one for all packages.

Ids are names that people can read: `json/decoder.py` is a module, `json/` a package, `./` the modules outside of any,
and `everything` the last task. `project` is the package, so that tasks can be counted by it. What a task asks for is
`outcome`, which the agents and the single-process check call alike.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from solewriter import Task
from solewriter.agents.demo.measure import Figures, added, measured
from solewriter.shared.config import KEY_BYTES_MAX

LAST = "everything"
RETRIES = 100  # agents that may die of one task, before it is left to people
NOT_SOURCE = ("__pycache__", "site-packages", "dist-packages")
FAN_IN_MAX = 1_000  # dependencies of one task: 1,000 ids of 255 bytes still fit an entity and a frame


class Unsuitable(Exception):
    """The demo cannot begin with this folder; the message says why."""


@dataclass(frozen=True)
class Plan:
    """All tasks, each one after those that it depends on."""

    root: Path
    tasks: tuple[Task, ...]
    modules: int
    packages: int


def planned(root: Path) -> Plan:
    """The tasks for a folder of Python code. Raises Unsuitable if there is none in it."""
    packages: dict[str, list[Task]] = {}
    for file in python_files(root):
        package = f"{os.path.dirname(file) or '.'}/"
        module = Task(
            id=task_id(file), title=f"measure {file}", project=package, metadata={"file": file}, max_retries=RETRIES
        )
        packages.setdefault(package, []).append(module)
    if not packages:
        raise Unsuitable(f"there is no Python file in {root}")
    tasks = [module for modules in packages.values() for module in modules]
    count = len(tasks)
    ends = []
    for package, modules in packages.items():
        tasks.extend(sums(package, package, modules))
        ends.append(tasks[-1])
    tasks.extend(sums(LAST, LAST, ends))
    return Plan(root, tuple(tasks), count, len(packages))


def python_files(root: Path) -> Iterator[str]:
    """All modules below `root`, relative to it, in order; without hidden folders and names that cannot be printed."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_SOURCE and not name.startswith("."))
        for name in sorted(files):
            file = os.path.relpath(os.path.join(folder, name), root)
            if name.endswith(".py") and file.isprintable():
                yield file


def sums(name: str, project: str, parts: list[Task]) -> Iterator[Task]:
    """A task that depends on these; where they are too many for one, on tasks between. It comes last."""
    level = 0
    while len(parts) > FAN_IN_MAX:
        level += 1
        groups = [parts[start : start + FAN_IN_MAX] for start in range(0, len(parts), FAN_IN_MAX)]
        parts = [_sum(f"{name}#{level}.{number}", project, group) for number, group in enumerate(groups)]
        yield from parts
    yield _sum(name, project, parts)


def _sum(name: str, project: str, parts: list[Task]) -> Task:
    ids = tuple(part.id for part in parts)
    return Task(id=task_id(name), title=f"add up {name}", project=project, dependencies=ids, max_retries=RETRIES)


def task_id(name: str) -> str:
    """The name itself where it fits an id."""
    return name if len(name.encode()) <= KEY_BYTES_MAX else hashlib.sha256(name.encode()).hexdigest()


def outcome(task: Task, root: Path, figures_of: Callable[[str], Figures]) -> Figures:
    """What a task asks for: measure a module, or add up the figures of the tasks that it depends on."""
    if task.dependencies:
        return added(figures_of(part) for part in task.dependencies)
    return measured(root / task.metadata["file"])
