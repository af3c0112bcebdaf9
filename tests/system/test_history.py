"""Whole runs under random faults, judged by the history checker.

Random agents and readers as processes; kills of the engine and of all of them; sessions resumed, and taken over while
their client is at work; frames written by hand, twice and out of order. Nothing acked is lost, nothing happens twice,
every reply is what a model says, and every snapshot is one revision.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter import Create, Delete, Limits, Task, TaskStatus, Transition, Update
from solewriter.agents.testing.crowd import Crowd
from solewriter.agents.testing.lines import Call
from solewriter.agents.testing.plan import Fault, Life, Plan
from solewriter.agents.testing.round import Bounds, Round
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
CROWD = Crowd(agents=3, readers=1, watchers=1, pause_s=0.0)
PROGRESS_S, RESTART_S = 240, 30  # generous: the machine may be shared
ENDLESS = 1 << 62


# --- a campaign ------------------------------------------------------------------------------------------------------


class Campaign(Round):
    """A round whose faults are spread over its acks, and in which some of the agents have no client."""

    def __init__(
        self, folder: Path, durability: str, seed: int, acks: int, faults: int,
        raw_lane: Callable[..., Any], wait_until: Callable[..., Any],
    ) -> None:  # fmt: skip
        self.chance = random.Random(seed)
        self.raw_lane = raw_lane
        self.wait_until = wait_until
        lives = repeat(Life(PROGRESS_S))  # until it is struck
        super().__init__(Plan(1, seed * 1_000, durability, QUICK, lives, self._faults(acks, faults)), folder, CROWD)

    def _faults(self, acks: int, faults: int) -> Iterator[Fault]:
        always = ["kill engine"] * 4 + ["kill agent"] * 3 + ["take over", "kill reader", "write by hand"]
        planned = always + self.chance.choices(always, k=max(0, faults - len(always)))
        self.chance.shuffle(planned)
        for number, what in enumerate([*planned, ""], 1):
            while self.workers.acks < acks * number // (len(planned) + 1):
                yield Fault("", 0.02)
            yield Fault(what, 0.0, self.chance.randrange(100), resumes=self.chance.random() < 0.5)

    def do(self, fault: Fault) -> None:
        match fault.what:
            case "":
                pass
            case "kill engine":
                self.engine.strike(RESTART_S)
            case "write by hand":
                HandWritten(self).run()
            case _:
                role = "reader" if "reader" in fault.what else "agent"
                self.wait_until(lambda: self.workers.some(role, 0), RESTART_S, f"an {role} at work")
                super().do(fault)


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
            self._campaign.engine.strike(RESTART_S)
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("durability", "seed", "acks", "faults"),
    [
        ("process", 1, 5_000, 8),
        pytest.param("process", 1, 13_500, 12, marks=pytest.mark.heavy),
        pytest.param("power", 3, 6_500, 10, marks=pytest.mark.heavy),
        pytest.param("process", 2, 20_000, 40, marks=pytest.mark.long),
        pytest.param("power", 4, 20_000, 40, marks=pytest.mark.long),
    ],
)
def test_whatever_is_killed_nothing_acked_is_lost_or_happens_twice(
    tmp_path, client_of_a_raw_lane, wait_until, durability, seed, acks, faults
):
    folder = tmp_path / "campaign"
    with Campaign(folder, durability, seed, acks, faults, client_of_a_raw_lane, wait_until) as campaign:
        outcome = campaign.run(Bounds(ENDLESS, ENDLESS, ENDLESS, time.monotonic() + PROGRESS_S))
    verdict = outcome.verdict
    print(f"{durability}, seed {seed}: killed {outcome.kills}; {verdict}")
    assert verdict.violations == [], f"seed {seed}: {verdict}"
    assert verdict.acks >= acks, verdict
    assert outcome.kills["engine"] >= 4, outcome.kills
    assert verdict.looks >= 100, verdict
