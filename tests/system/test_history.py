"""Whole runs under random faults, judged by the history checker.

Random agents and readers as processes; kills of the engine and of all of them; sessions resumed, and taken over while
their client is at work; frames written by hand, twice and out of order. Nothing acked is lost, nothing happens twice,
every reply is what a model says, and every snapshot is one revision.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from solewriter import (
    Create,
    Delete,
    Engine,
    Limits,
    Task,
    TaskStatus,
    Transition,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.testing import Evidence, Verdict, check, gather, read_history
from solewriter.agents.testing.evidence import Call
from solewriter.shared.errors import from_wire
from solewriter.shared.mutations import Mutation
from solewriter.shared.request_ids import session_number
from solewriter.shared.wire import Status

QUICK = Limits(  # small files and segments, and restarts without a pause
    heap_segment_bytes_first=256 * 1024,
    heap_segment_bytes_max=1024 * 1024,
    journal_file_bytes=1024 * 1024,
    restart_backoff_s=0.005,
    restart_backoff_max_s=0.02,
)
AGENTS, READERS = 3, 1
PROGRESS_S, RESTART_S, END_S = 60, 30, 30  # generous: the machine may be shared


# --- a campaign ------------------------------------------------------------------------------------------------------


class Worker(NamedTuple):
    """An agent or a reader, running."""

    role: str
    client_id: str
    process: subprocess.Popen[bytes]
    path: Path


class Campaign:
    """Processes that work, what is done to them, and what they say."""

    def __init__(
        self, engine: Engine, folder: Path, seed: int, wait_until: Callable[..., Any], raw_lane: Callable[..., Any]
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.chance = random.Random(seed)
        self.wait_until = wait_until
        self.raw_lane = raw_lane
        self.workers: list[Worker] = []
        self.kills = {"engine": 0, "agent": 0, "reader": 0}
        self._seed = seed
        self._count = 0
        self._acks = 0
        self._read: dict[Path, int] = {}
        folder.mkdir()
        self.evidence = Evidence(folder / "campaign.log")

    # --- who works ---------------------------------------------------------------------------------------------------

    def start(self, role: str, client_id: str = "", finish: tuple[Path, ...] = ()) -> Worker:
        """An agent (of a session that may have been another's) or a reader."""
        self._count += 1
        path = self.folder / f"{role}-{self._count}.log"
        options = ["--seed", str(self._seed * 1_000 + self._count)]
        if role == "agent":
            client_id = client_id or f"client-{self._count}"
            options += ["--client-id", client_id]
        for open_requests in finish:
            options += ["--finish", str(open_requests)]
        command = [sys.executable, "-m", "solewriter.agents.testing.load", role, self.engine.state, path, *options]
        self.workers.append(Worker(role, client_id, subprocess.Popen(command, stdin=subprocess.PIPE), path))
        return self.workers[-1]

    def some(self, role: str) -> Worker:
        """One that is at work already."""
        return self.chance.choice(self.wait_until(lambda: self._at_work(role), PROGRESS_S, f"an {role} at work"))

    def _at_work(self, role: str) -> list[Worker]:
        workers = [worker for worker in self.workers if worker.role == role and worker.path.exists()]
        return [worker for worker in workers if b"\n" in worker.path.read_bytes()[:4096]]

    def end(self, worker: Worker) -> int:
        """No more input for it; its exit status."""
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        self.workers.remove(worker)
        return worker.process.wait(END_S)

    # --- how far it is -----------------------------------------------------------------------------------------------

    def acks(self) -> int:
        """How many acks are in the evidence by now."""
        for path in self.folder.glob("*.log"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, line_end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole + line_end)
            self._acks += whole.count(b'"outcome":"applied"')
        return self._acks

    def until(self, acks: int) -> None:
        self.wait_until(lambda: self.acks() >= acks, PROGRESS_S, f"{acks} acks")

    # --- what is done to it ------------------------------------------------------------------------------------------

    def kill_engine(self) -> None:
        before = self.engine.restarts
        self.evidence.fault("SIGKILL of the engine")
        os.kill(self.engine.pid, signal.SIGKILL)
        self.kills["engine"] += 1
        self.wait_until(lambda: self.engine.restarts > before, RESTART_S, "a restart")

    def kill_agent(self) -> None:
        """Another one follows it, sometimes in its session, and sends again what it sent under ids of its own."""
        victim = self._killed("agent")
        self.start("agent", self.chance.choice(("", victim.client_id)), (victim.path,))

    def kill_reader(self) -> None:
        self._killed("reader")
        self.start("reader")

    def _killed(self, role: str) -> Worker:
        victim = self.some(role)
        self.evidence.fault(f"SIGKILL of {victim.path.stem}")
        victim.process.kill()
        self.kills[role] += 1
        assert self.end(victim) == -signal.SIGKILL
        return victim

    def take_over(self) -> None:
        """A second client of a session: the older one is told so, and ends."""
        older = self.some("agent")
        self.evidence.fault(f"the session of {older.path.stem} is taken over")
        self.start("agent", older.client_id)
        assert older.process.wait(PROGRESS_S) == 0
        self.end(older)

    def write_by_hand(self) -> None:
        HandWritten(self).run()

    def run(self, acks: int, faults: int) -> None:
        """Work until there are so many acks, and faults spread over them."""
        for _ in range(AGENTS):
            self.start("agent")
        for _ in range(READERS):
            self.start("reader")
        always = [self.kill_engine] * 4 + [self.kill_agent] * 3 + [self.take_over, self.kill_reader, self.write_by_hand]
        planned = always + self.chance.choices(always, k=max(0, faults - len(always)))
        self.chance.shuffle(planned)
        for number, fault in enumerate(planned, 1):
            self.until(acks * number // (len(planned) + 1))
            fault()
        self.until(acks)
        assert [self.end(worker) for worker in [*self.workers]] == [0] * (AGENTS + READERS)

    def verdict(self, acks_min: int) -> Verdict:
        """The last operation, the last look, and the judgement."""
        with connect(self.engine.state, name="campaign") as client, open_reader(self.engine.state) as reader:
            self.evidence.submit(client, Create(Task(title="the last operation")))
            final = self.evidence.look(reader)
        self.close()
        self.engine.stop()
        gathered = gather(sorted(self.folder.glob("*.log")))
        return check(gathered, read_history(self.engine.state), final, acks_min=acks_min)

    def close(self) -> None:
        """Nothing of it runs any more, however it ended."""
        for worker in [*self.workers]:
            worker.process.kill()
            self.end(worker)
        self.evidence.close()


class HandWritten:
    """A lane without a client: frames twice, in another order, and again on a later lane of the session."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._chance = campaign.chance
        self._evidence = campaign.evidence
        self._client_id = f"hand-{self._chance.randrange(10**9)}"
        self._session = session_number(self._client_id)
        self._frames: list[tuple[Call, bytes]] = []
        self._told: list[Any] = []

    def run(self) -> None:
        """Some replies are read, then the lane dies, perhaps with the engine; a later lane sends everything again."""
        lane = self._campaign.raw_lane(self._campaign.engine.state, client_id=self._client_id)
        for number in range(24):
            self._ask(lane, number)
        read = self._chance.randrange(len(self._frames))
        lane.write(b"".join(frame for _, frame in self._frames))
        for number in range(read):
            self._hear(number, lane.reply())
        if self._chance.random() < 0.5:
            self._campaign.kill_engine()
        lane.die()
        again = self._reconnected()
        known = self._chance.sample(range(read), read)  # in any order: these numbers were decided
        again.write(b"".join(self._frames[number][1] for number in (*known, *range(read, len(self._frames)))))
        for number in range(len(self._frames)):
            self._hear(number, again.reply())
        again.die()

    def _ask(self, lane: Any, number: int) -> None:
        """A request; or the one before once more, where it has an id that makes it the same."""
        if self._frames and self._frames[-1][0].own and self._chance.random() < 0.5:
            name, frame = self._frames[-1][0].name, self._frames[-1][1]
            call, _ = self._evidence.asking([self._newest], request_id=name)
            self._frames.append((call, frame))
            return
        self._newest = self._some_mutation(number)
        request_id = f"{self._client_id}-{number}" if self._chance.random() < 0.5 else None
        call, mutations = self._evidence.asking([self._newest], request_id=request_id)
        self._frames.append((call, lane.frame(mutations, request_id)))

    def _some_mutation(self, number: int) -> Mutation:
        id = f"hand-{self._chance.randrange(4)}"
        unique = f"{self._client_id}-{number}"
        return self._chance.choice(
            (
                Create(Task(title=unique, id=id)),
                Update(Task.ref(id), {"description": unique}),
                Update(Task.ref(id), {"description": unique}, expect=number),
                Transition(Task.ref(id), TaskStatus.ASSIGNED, {"assigned_to": unique}),
                Delete(Task.ref(id)),
            )
        )

    def _reconnected(self) -> Any:
        """A later lane of the session, once there is an engine again."""
        return self._campaign.wait_until(self._connected, RESTART_S, "a lane")

    def _connected(self) -> Any:
        try:
            return self._campaign.raw_lane(self._campaign.engine.state, client_id=self._client_id, resends=True)
        except (OSError, msgspec.MsgspecError):
            return None

    def _hear(self, number: int, reply: Any) -> None:
        """The first reply is evidence; a later one must be the same."""
        sequence, status, revision, detail = reply
        assert sequence == number << 8
        if number < len(self._told):
            assert _without_addresses(reply) == self._told[number], "a resend was told something else"
            return
        self._told.append(_without_addresses(reply))
        call = self._frames[number][0]
        request_id = call.name if call.own else f"{self._session:016x}-{sequence}"
        if status == Status.APPLIED:
            self._evidence.applied(call, request_id, revision, tuple(place[0] for place in detail))
        else:
            self._evidence.failed(call, from_wire(tuple(detail)), request_id, revision)


def _without_addresses(reply: Any) -> tuple[object, ...]:
    """A reply as it is told again after a restart: the records lie elsewhere then."""
    sequence, status, revision, detail = reply
    if status == Status.APPLIED:
        detail = [(place[0], *place[2:]) for place in detail]
    return sequence, status, revision, detail


@pytest.fixture
def start_campaign(
    state: Path, tmp_path: Path, start_engine: Any, wait_until: Any, client_of_a_raw_lane: Any
) -> Iterator[Callable[[str, int], Campaign]]:
    """`start_campaign(durability, seed)`: nothing of it is left afterwards."""
    started: list[Campaign] = []

    def start(durability: str, seed: int) -> Campaign:
        engine = start_engine(state, durability=durability, limits=QUICK)
        started.append(Campaign(engine, tmp_path / "evidence", seed, wait_until, client_of_a_raw_lane))
        return started[-1]

    yield start
    for campaign in started:
        campaign.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("durability", "seed", "acks", "faults"),
    [
        ("process", 1, 13_500, 12),
        ("power", 3, 6_500, 10),
        pytest.param("process", 2, 20_000, 40, marks=pytest.mark.long),
        pytest.param("power", 4, 20_000, 40, marks=pytest.mark.long),
    ],
)
def test_whatever_is_killed_nothing_acked_is_lost_or_happens_twice(start_campaign, durability, seed, acks, faults):
    campaign = start_campaign(durability, seed)
    campaign.run(acks, faults)
    verdict = campaign.verdict(acks)
    print(f"{durability}, seed {seed}: killed {campaign.kills}; {verdict}")
    assert verdict.violations == [], f"seed {seed}: {verdict}"
    assert campaign.kills["engine"] >= 4, campaign.kills
    assert verdict.looks >= 100, verdict
