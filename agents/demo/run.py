"""The demo as a whole: tasks from files, agents that work, one that dies, and at the end a check of everything.

The parent looks through shared memory alone. It writes only to create the tasks and to free those that a dead agent
held.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from solewriter import Client, Engine, Reader, Task, connect, open_reader
from solewriter.agents.demo.acks import Log, logged
from solewriter.agents.demo.check import Comparison, FinalState, Verdict, compare, verdict
from solewriter.agents.demo.crew import Crew, interrupt_orphans
from solewriter.agents.demo.plan import Plan, Unsuitable, planned
from solewriter.agents.demo.progress import Progress, progress_at
from solewriter.agents.demo.show import Show, view
from solewriter.agents.demo.summary import Summary
from solewriter.engine_proc.process import Durability

KILL_FROM = 0.4  # of all tasks completed: from here on, an agent is killed as soon as one is found in mid-task
LOOKS = 50  # looks of the parent on its way to the end: many more would take CPU time from the agents
LOOK_S = 0.2  # the longest time between two


@dataclass(frozen=True)
class Job:
    """What was asked for."""

    root: Path
    agents: int
    calm: bool  # nobody is killed
    durability: Durability
    state: Path | None  # None: in a temporary folder


@dataclass(frozen=True)
class Work:
    """How the agents' part went."""

    seconds: float
    killed: int
    failed: int
    taken_over: int


def demonstrate(job: Job, console: Console) -> Summary:
    """Do the job with many processes and check it with one. Raises Unsuitable for folders that it cannot begin with."""
    plan = planned(job.root)
    console.print(f"{plan.modules:,} modules in {plan.packages:,} packages below {job.root}", soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="solewriter-demo-") as folder:
        logs = Path(folder, "logs")
        logs.mkdir()
        with Engine(job.state or Path(folder, "state"), durability=job.durability) as engine:
            work = worked(job, plan, engine.state, logs, console)
            final = final_state(engine)
        told = verdict(logged(logs), final, dead=work.killed + work.failed)
    console.print("now the same in a single process, to compare")
    return summed_up(job, plan, work, final, told, compare(plan, final))


def worked(job: Job, plan: Plan, state: Path, logs: Path, console: Console) -> Work:
    """Let the agents do all of it."""
    started = time.perf_counter()
    with connect(state, name="parent") as client, Log(logs / "parent") as log:
        if client.reader.snapshot().counts["Task"]:
            raise Unsuitable(f"{state} holds tasks already: name a folder that does not exist yet")
        log.create(client, plan.tasks)
        crew = Crew(job.agents, state, job.root, logs)
        with open_reader(state) as reader, crew, view(console) as show:
            taken_over = supervise(crew, reader, show, client, log, kill=not job.calm)
            seconds = time.perf_counter() - started
    return Work(seconds, len(crew.killed), len(crew.failed), taken_over)


def supervise(crew: Crew, reader: Reader, show: Show, client: Client, log: Log, *, kill: bool) -> int:
    """Look until everything is completed or nobody is left; how many tasks of dead agents were freed on the way."""
    freed = 0
    while True:
        alive = crew.alive  # before the look: who ended after it cannot be missed
        with reader.snapshot() as snap:
            progress = progress_at(snap)
        show(progress, [agent.name for agent in crew.agents], crew.dead)
        if progress.done == progress.total or not alive:
            return freed
        due = kill and not crew.killed and len(alive) > 1 and progress.done >= KILL_FROM * progress.total
        if due and crew.strike(client, log):
            continue  # look again: it may hold another task by now
        freed += interrupt_orphans(progress.held, crew.dead, client, log)
        wait(reader, progress)


def wait(reader: Reader, progress: Progress) -> None:
    """Until there is something to see: a part of the way further, the end, or a moment later."""
    step = min(progress.total - progress.done, max(1, progress.total // LOOKS))
    try:
        reader.wait_for(progress.revision + step, timeout_s=LOOK_S)
    except TimeoutError:
        pass


def final_state(engine: Engine) -> FinalState:
    with open_reader(engine.state) as reader, reader.snapshot() as snap:
        return FinalState(snap.revision, {task.id: task for task in snap.entities(Task)}, engine.restarts)


def summed_up(job: Job, plan: Plan, work: Work, final: FinalState, told: Verdict, compared: Comparison) -> Summary:
    everything = compared.everything
    return Summary(
        ok=compared.matches and not (told.lost or told.duplicated or work.failed),
        modules=plan.modules,
        packages=plan.packages,
        unparsable=everything.unparsable,
        lines=everything.lines,
        functions=everything.functions,
        agents=job.agents,
        agents_killed=work.killed,
        agents_failed=work.failed,
        taken_over=work.taken_over,
        durability=job.durability,
        revision=final.revision,
        engine_restarts=final.engine_restarts,
        matches_single_process=compared.matches,
        seconds=round(work.seconds, 3),
        single_process_seconds=round(compared.seconds, 3),
        **asdict(told),
    )
