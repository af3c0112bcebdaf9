"""The demo as a whole: tasks from files, agents that work, one that dies, the engine that dies, a check of everything.

The parent looks through shared memory alone, and writes only to create the tasks. An agent that it killed is the
engine's business, and an engine the supervisor's: others go on with the task, the next engine with everything.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from solewriter import Client, Engine, Reader, Task, open_reader
from solewriter.agents.demo.acks import Log, Scribe, logged, unanswered
from solewriter.agents.demo.check import Comparison, FinalState, Verdict, compare, verdict
from solewriter.agents.demo.crew import Crew
from solewriter.agents.demo.outage import Outage
from solewriter.agents.demo.plan import Plan, Unsuitable, planned
from solewriter.agents.demo.progress import Progress, progress_at
from solewriter.agents.demo.show import Show, view
from solewriter.agents.demo.summary import Summary
from solewriter.engine_proc.process import Durability

KILL_AGENT_FROM = 0.4  # of all tasks completed: from here on, an agent is killed as soon as one is found in mid-task
KILL_ENGINE_FROM = 0.6  # and from here on the engine, as soon as it is found with requests on their way to it
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

    @property
    def kills_engine(self) -> bool:
        return not self.calm and self.durability != "memory"


@dataclass(frozen=True)
class Work:
    """How the agents' part went."""

    seconds: float
    killed: int
    failed: int
    outage: Outage


def demonstrate(job: Job, console: Console) -> Summary:
    """Do the job with many processes and check it with one. Raises Unsuitable for folders that it cannot begin with."""
    plan = planned(job.root)
    console.print(f"{plan.modules:,} modules in {plan.packages:,} packages below {job.root}", soft_wrap=True)
    if not (job.kills_engine or job.calm):
        said = "durability 'memory' promises nothing across a restart, so the engine is not killed"
        console.print(said, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="solewriter-demo-") as folder:
        logs = Path(folder, "logs")
        logs.mkdir()
        with Engine(job.state or Path(folder, "state"), durability=job.durability) as engine:
            work = worked(job, plan, engine.state, logs, console)
            final = final_state(engine)
        told = verdict(logged(logs), final, unanswered=sum(unanswered(log) > 0 for log in logs.iterdir()))
    console.print("now the same in a single process, to compare")
    return summed_up(job, plan, work, final, told, compare(plan, final))


def worked(job: Job, plan: Plan, state: Path, logs: Path, console: Console) -> Work:
    """Let the agents do all of it."""
    started = time.perf_counter()
    with Log(logs / "parent") as log, Scribe(state, "parent", log) as client:
        if client.reader.snapshot().counts["Task"]:
            raise Unsuitable(f"{state} holds tasks already: name a folder that does not exist yet")
        log.create(client, plan.tasks)
        crew = Crew(job.agents, state, job.root, logs)
        outage = Outage()
        with open_reader(state) as reader, crew, view(console) as show:
            supervise(job, crew, outage, reader, show, client)
            seconds = time.perf_counter() - started
    return Work(seconds, len(crew.killed), len(crew.failed), outage)


def supervise(job: Job, crew: Crew, outage: Outage, reader: Reader, show: Show, client: Client) -> None:
    """Look until everything is completed or nobody is left."""
    while True:
        alive = crew.alive  # before the look: who ended after it cannot be missed
        with reader.snapshot() as snap:
            progress = progress_at(snap)
        show(progress, [agent.name for agent in crew.agents], crew.dead)
        if progress.done == progress.total or not alive:
            return
        if outage.lasts:
            outage.watch(reader, LOOK_S)
            continue
        agent_due = not (job.calm or crew.killed) and len(alive) > 1 and progress.fraction >= KILL_AGENT_FROM
        if agent_due and crew.strike(client):
            continue  # look again: it may hold another task by now
        engine_due = job.kills_engine and not outage.killed and progress.fraction >= KILL_ENGINE_FROM
        if engine_due and outage.strike(reader, crew):
            continue  # look at what is left
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
        taken_over=final.taken_over,
        engine_killed=int(work.outage.killed),
        engine_unanswered=work.outage.unanswered,
        engine_restarts=final.engine_restarts,
        engine_gap_s=None if work.outage.gap_s is None else round(work.outage.gap_s, 3),
        durability=job.durability,
        revision=final.revision,
        matches_single_process=compared.matches,
        seconds=round(work.seconds, 3),
        single_process_seconds=round(compared.seconds, 3),
        **asdict(told),
    )
