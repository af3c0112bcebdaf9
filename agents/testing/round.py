"""One round of a campaign: an empty state, processes that work on it, what the plan does to them, and the judgement."""

from __future__ import annotations

import signal
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from solewriter.agents.client import connect
from solewriter.agents.reader import Reader, open_reader
from solewriter.agents.testing.accounts import Violation
from solewriter.agents.testing.checker import Verdict, check
from solewriter.agents.testing.evidence import Evidence
from solewriter.agents.testing.history import read_history
from solewriter.agents.testing.lines import APPLIED, Gathered, gather
from solewriter.agents.testing.load import PATIENT
from solewriter.agents.testing.mortal import MortalEngine, Span
from solewriter.agents.testing.nursery import Nursery
from solewriter.agents.testing.plan import Fault, Plan
from solewriter.shared.entity import Entity
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.models import Task
from solewriter.shared.mutations import Create
from solewriter.shared.readiness import HELD

TICK_S = 0.01  # between two looks at who ended, and who is to go on
COUNT_S = 0.1  # between two looks at how many acks there are
END_S = 30.0  # patience with those that were told to end: the machine may be shared
LOSS_S = 1.0  # for taking back what dead agents had, behind the grace of those that are not known to be dead
ACKED = b'"outcome":"applied"'
WHOLE_CAMPAIGN = ("too few acks", "no fault")  # what is asked of all rounds together


class Crowd(NamedTuple):
    """How many of each work at once, and how long an agent pauses on average, so that others have the processor."""

    agents: int = 4
    readers: int = 2
    watchers: int = 1
    pause_s: float = 0.02


class Bounds(NamedTuple):
    """A round is over at its own number of acks, at the deadline, or when the whole campaign has all that it wants."""

    round_acks: int
    acks: int
    kills: int
    deadline: float  # CLOCK_MONOTONIC


class Worker(msgspec.Struct):
    """An agent, a reader or a watcher, running."""

    role: str
    client_id: str
    pid: int
    path: Path
    read: int = 0  # bytes of its evidence
    leaving: bool = False  # its session was given to another


class Outcome(msgspec.Struct, frozen=True):
    """What came of a round."""

    verdict: Verdict
    kills: dict[str, int]
    failpoints_hit: Counter[str]
    first_ack_ms: list[float]  # from an engine's death to the first ack of the next life
    restarts: int
    seconds: float


class Round:
    """A context manager: nothing of it runs behind it, however it ends."""

    def __init__(self, plan: Plan, folder: Path, crowd: Crowd, models: Iterable[type[Entity]] = ()) -> None:
        self.plan = plan
        self.folder = folder
        self.kills = Counter(engine=0, agent=0, reader=0, watcher=0)
        self._crowd = crowd
        self._workers: list[Worker] = []
        self._count = 0
        self.acks = 0
        self._counted_at = 0.0
        self._due: list[tuple[float, int]] = []  # who was stopped, and when it goes on
        self._shared: set[str] = set()  # sessions that two spoke for
        self._settling = False
        self._failed: list[str] = []
        folder.mkdir(parents=True)
        (folder / "archive").mkdir()
        about = {"number": plan.number, "durability": plan.durability, "limits": plan.limits}
        (folder / "plan.json").write_bytes(msgspec.json.encode(about))
        self.evidence = Evidence(folder / "campaign.log")
        self.engine = MortalEngine(
            folder / "state", plan.lives, self.evidence.fault, folder / "archive",
            models=models, durability=plan.durability, limits=plan.limits, replace_hung=True,
        )  # fmt: skip
        self._nursery = Nursery(folder / "state")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self._nursery.say_goodnight()
            self.engine.end()
        finally:
            self._nursery.close()
            self.evidence.close()

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def run(self, bounds: Bounds) -> Outcome:
        begun = time.monotonic()
        self.engine.begin()
        for role, count in (
            ("agent", self._crowd.agents), ("reader", self._crowd.readers), ("watcher", self._crowd.watchers)
        ):  # fmt: skip
            for _ in range(count):
                self.start(role)
        for fault in self.plan.faults:
            self._wait(fault.after_s, bounds)
            if self._over(bounds):
                break
            self.do(fault)
        self._settle()
        return self._judged(time.monotonic() - begun)

    def _over(self, bounds: Bounds) -> bool:
        if self._failed or self.engine.crashes or self.engine.failure or time.monotonic() > bounds.deadline:
            return True
        wanted = (self.kills["agent"], self.kills["reader"], self.engine.kills)
        enough = self.acks >= bounds.acks and min(wanted) >= bounds.kills
        return enough or self.acks >= bounds.round_acks

    def _wait(self, seconds: float, bounds: Bounds) -> None:
        """So long; meanwhile those that were stopped go on, and who ended is noticed."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for due, pid in [entry for entry in self._due if entry[0] <= now]:
                self._due.remove((due, pid))
                self._nursery.signal(pid, signal.SIGCONT)
            self._sweep()
            if now - self._counted_at > COUNT_S:
                self._counted_at = now
                self.acks += sum(map(_more_acks, self._workers))
            if now >= until or self._over(bounds):
                return
            time.sleep(min(TICK_S, until - now))

    # --- who works ---------------------------------------------------------------------------------------------------

    def start(self, role: str, client_id: str = "", finish: tuple[Path, ...] = ()) -> None:
        self._count += 1
        path = self.folder / f"{role}-{self._count}.log"
        options = ["--seed", str(self.plan.seed + self._count), "--pause-s", str(self._crowd.pause_s)]
        if role == "agent":
            client_id = client_id or f"client-{self._count}"
            options += ["--client-id", client_id]
        for open_requests in finish:
            options += ["--finish", str(open_requests)]
        pid = self._nursery.fork([role, str(self.engine.state), str(path), *options])
        self._workers.append(Worker(role, client_id, pid, path))

    def some(self, role: str, whom: int) -> Worker | None:
        """One that is at work already."""
        found = [one for one in self._workers if one.role == role and not one.leaving and _has_written(one.path)]
        return found[whom % len(found)] if found else None

    def _sweep(self) -> None:
        """Who ended by itself was told to, or failed."""
        for pid, status in self._nursery.ended().items():
            worker = next(worker for worker in self._workers if worker.pid == pid)
            self._left(worker)
            if status or not (worker.leaving or worker.client_id in self._shared):
                self._failed.append(f"{worker.path.stem} ended by itself with status {status}")
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

    # --- what is done to it ------------------------------------------------------------------------------------------

    def do(self, fault: Fault) -> None:
        verb, _, role = fault.what.partition(" ")
        if fault.what == "stop and start":
            self.evidence.fault("the engine is stopped and started")
            self.engine.stop()
            self.engine.begin()
        elif (worker := self.some("agent" if fault.what == "take over" else role, fault.whom)) is None:
            return  # there is none at work just now
        elif verb == "kill":
            self._kill(worker, fault)
        elif verb == "stop":
            self.evidence.fault(f"SIGSTOP of {worker.path.stem} for {fault.for_s} s")
            self._nursery.signal(worker.pid, signal.SIGSTOP)
            self._due.append((time.monotonic() + fault.for_s, worker.pid))
        else:
            self.evidence.fault(f"the session of {worker.path.stem} is taken over")
            worker.leaving = True
            self._shared.add(worker.client_id)
            self.start("agent", worker.client_id)

    def _kill(self, worker: Worker, fault: Fault) -> None:
        """Another one follows it; of an agent, one that sends again what it sent under ids of its own."""
        self.evidence.fault(f"SIGKILL of {worker.path.stem}")
        status = self._nursery.wait(worker.pid, kill=True)
        self._left(worker)
        if status != -signal.SIGKILL and (status or worker.client_id not in self._shared):  # else told that it is older
            self._failed.append(f"{worker.path.stem} ended by itself with status {status}")
        self.kills[worker.role] += 1
        if worker.role == "agent":
            self.start("agent", worker.client_id if fault.resumes else "", (worker.path,))
        else:
            self.start(worker.role)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Everybody finishes what it does, and ends."""
        self.engine.peace()
        self._settling = True
        for _, pid in self._due:
            self._nursery.signal(pid, signal.SIGCONT)
        for worker in self._workers:
            worker.leaving = True
        self._nursery.say_goodnight()
        deadline = time.monotonic() + END_S
        while self._workers and time.monotonic() < deadline:
            self._sweep()
            time.sleep(TICK_S)
        self._failed += [f"{worker.path.stem} does not end" for worker in self._workers]

    def _judged(self, seconds: float) -> Outcome:
        """The last operation, the last look, and what the checker says."""
        state = self.engine.state
        if self.engine.failure is None:
            with connect(state, name="campaign", limits=PATIENT) as client, open_reader(state) as reader:
                self._await_losses(reader)
                self.evidence.submit(client, Create(Task(title="the last operation")))
                final = self.evidence.look(reader)
            self.engine.end()
            self.evidence.close()
            gathered = gather(sorted(self.folder.glob("*.log")))
            try:
                history = read_history(state, archives=[self.folder / "archive"])
                verdict = check(gathered, history, final, acks_min=1)
            except JournalCorrupt as error:
                self._failed.append(f"the journal cannot be read: {error}")
                verdict = Verdict([])
        else:
            self._failed.append(f"the engine was given up: {self.engine.failure}")
            gathered, verdict = Gathered([], {}, [], {}), Verdict([])
        return self._outcome(gathered, verdict, seconds)

    def _await_losses(self, reader: Reader) -> None:
        """The engine takes back what agents had that have ended. Where it does not, the checker says so."""
        deadline = time.monotonic() + self.plan.limits.session_grace_s + LOSS_S
        while time.monotonic() < deadline:
            with reader.snapshot() as snap:
                if not any(task.claim and task.status in HELD for task in snap.entities(Task)):
                    return
            time.sleep(TICK_S)

    def _outcome(self, gathered: Gathered, verdict: Verdict, seconds: float) -> Outcome:
        engine = self.engine
        found = [Violation(0, "a process failed", what) for what in (*self._failed, *engine.crashes)]
        found += [violation for violation in verdict.violations if violation.name not in WHOLE_CAMPAIGN]
        return Outcome(
            verdict._replace(violations=found),
            {**self.kills, "engine": engine.kills},
            engine.failpoints_hit,
            first_acks_ms(engine.spans, gathered),
            engine.restarts,
            seconds,
        )


def first_acks_ms(spans: list[Span], gathered: Gathered) -> list[float]:
    """Of each violent death: how long until an agent was told an ack by the next life. A life that nobody got an ack
    of, because it died first or was stopped, has no say.
    """
    answers = [attempt.answer for attempt in gathered.attempts if attempt.answer is not None]
    acked = sorted(answer.at for answer in answers if answer.outcome == APPLIED)
    found = []
    for dead, following in pairwise(spans):
        place = bisect_left(acked, following.served_at)
        if not dead.violent or not following.served_at or place == len(acked):
            continue
        first = acked[place]
        if first < following.died_at and not 0 < following.stopped_at < first:
            found.append((first - dead.died_at) / 1e6)
    return found


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
