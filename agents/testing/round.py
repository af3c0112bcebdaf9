"""One round of a campaign: an empty state, processes that work on it, what the plan does to them, and the judgement."""

from __future__ import annotations

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
from solewriter.agents.testing.crowd import TICK_S, Crowd, Workers
from solewriter.agents.testing.evidence import Evidence
from solewriter.agents.testing.history import read_history
from solewriter.agents.testing.lines import APPLIED, Gathered, gather
from solewriter.agents.testing.load import PATIENT
from solewriter.agents.testing.mortal import MortalEngine, Span
from solewriter.agents.testing.plan import Fault, Plan
from solewriter.shared.entity import Entity
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.models import Task
from solewriter.shared.mutations import Create
from solewriter.shared.readiness import HELD

COUNT_S = 0.1  # between two looks at how many acks there are
LOSS_S = 1.0  # for taking back what dead agents had, behind the grace of those that are not known to be dead
WHOLE_CAMPAIGN = ("too few acks", "no fault")  # what is asked of all rounds together


class Bounds(NamedTuple):
    """A round is over at its own number of acks, at the deadline, or when the whole campaign has all that it wants."""

    round_acks: int
    acks: int
    kills: int
    deadline: float  # CLOCK_MONOTONIC


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
        self._counted_at = 0.0
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
        self.workers = Workers(folder, self.engine.state, plan.seed, crowd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.workers.say_goodnight()
            self.engine.end()
        finally:
            self.workers.close()
            self.evidence.close()

    # --- the whole of it ---------------------------------------------------------------------------------------------

    def run(self, bounds: Bounds) -> Outcome:
        begun = time.monotonic()
        self.engine.begin()
        self.workers.begin()
        for fault in self.plan.faults:
            self._wait(fault.after_s, bounds)
            if self._over(bounds):
                break
            self.do(fault)
        self.engine.peace()
        self.workers.settle()
        return self._judged(time.monotonic() - begun)

    def _over(self, bounds: Bounds) -> bool:
        if self.workers.failed or self.engine.crashes or self.engine.failure or time.monotonic() > bounds.deadline:
            return True
        acks, kills = self.workers.acks, self.workers.kills
        enough = acks >= bounds.acks and min(kills["agent"], kills["reader"], self.engine.kills) >= bounds.kills
        return enough or acks >= bounds.round_acks

    def _wait(self, seconds: float, bounds: Bounds) -> None:
        """So long; meanwhile those that were stopped go on, and who ended is noticed."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            self.workers.wake(now)
            self.workers.sweep()
            if now - self._counted_at > COUNT_S:
                self._counted_at = now
                self.workers.count()
            if now >= until or self._over(bounds):
                return
            time.sleep(min(TICK_S, until - now))

    # --- what is done to it ------------------------------------------------------------------------------------------

    def do(self, fault: Fault) -> None:
        verb, _, role = fault.what.partition(" ")
        if fault.what == "stop and start":
            self.evidence.fault("the engine is stopped and started")
            self.engine.stop()
            self.engine.begin()
        elif (worker := self.workers.some("agent" if fault.what == "take over" else role, fault.whom)) is None:
            return  # there is none at work just now
        elif verb == "kill":
            self.evidence.fault(f"SIGKILL of {worker.path.stem}")
            self.workers.kill(worker, resumes=fault.resumes)
        elif verb == "stop":
            self.evidence.fault(f"SIGSTOP of {worker.path.stem} for {fault.for_s} s")
            self.workers.stop(worker, fault.for_s)
        else:
            self.evidence.fault(f"the session of {worker.path.stem} is taken over")
            self.workers.take_over(worker)

    # --- the end -----------------------------------------------------------------------------------------------------

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
        failed = (*self.workers.failed, *self._failed, *engine.crashes)
        found = [Violation(0, "a process failed", what) for what in failed]
        found += [violation for violation in verdict.violations if violation.name not in WHOLE_CAMPAIGN]
        return Outcome(
            verdict._replace(violations=found),
            {"engine": engine.kills, **self.workers.kills},
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
