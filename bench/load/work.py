"""The workloads: what is stored before, what each agent asks for, and what must be stored in the end.

An agent's share is a `Work`: it makes requests, hears their answers in order, and so knows every version of what it
changed. What the agents know in the end is added up by `evidence.py` and compared with what the system holds.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from solewriter.bench.kit.workload import key_of, sample_task
from solewriter.bench.load.requests import Answer, Fields, Request, Step

CYCLE = ("assigned", "in_progress", "in_review", "blocked")  # a task's way round, once it was created
TRANSACTION_STEPS = 4
READS_IN_20 = 19  # of `read-mostly`
LARGE_CHARACTERS = 16_000  # of a description: with everything else the entity takes 16 KB
HOT = 0  # the number of the task that everybody changes


class Share(NamedTuple):
    """Which part of the whole is one agent's."""

    number: int  # of this agent
    agents: int
    versions: array[int]  # of its own tasks: those numbered number, number + agents, ...
    created: int  # entities that an agent of this number created before
    tasks: int  # of all agents together


class Work:
    """What one agent does. Answers are told in the order of the requests."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.applied = 0  # steps that were answered

    def next(self) -> Request | str:
        """The next request, or the key of an entity to read."""
        raise NotImplementedError

    def told(self, answer: Answer) -> None:
        self.applied += len(answer)


class OwnTasks(Work):
    """Rounds over the agent's own tasks in an order of its own: neighbours in memory are not neighbours in time."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self.versions = share.versions
        self.keys = [key_of(share.number + place * share.agents) for place in range(len(share.versions))]
        self._order = random.Random(share.number).sample(range(len(self.keys)), len(self.keys))
        self._at = -1
        self._open: deque[int] = deque()

    def place(self) -> int:
        """The place of the task whose turn it is."""
        self._at = at = (self._at + 1) % len(self._order)
        place = self._order[at]
        self._open.append(place)
        return place

    def told(self, answer: Answer) -> None:
        for version in answer:
            self.versions[self._open.popleft()] = version
        self.applied += len(answer)


class Updates(OwnTasks):
    def next(self) -> Request | str:
        return (self.step(),)

    def step(self) -> Step:
        """Compare-and-set of the one field; its value says the version that it belongs to."""
        place = self.place()
        version = self.versions[place]
        return Step("update", self.keys[place], version, {"budget_limit": version + 1.0})


class Transactions(Updates):
    def next(self) -> Request | str:
        return tuple([self.step() for _ in range(TRANSACTION_STEPS)])


class Transitions(OwnTasks):
    def next(self) -> Request | str:
        place = self.place()
        version = self.versions[place]
        fields: Fields = {"status": status_at(version + 1)}
        if fields["status"] == "assigned":
            fields["assigned_to"] = f"agent-{self.share.number}"
        return (Step("transition", self.keys[place], version, fields),)


class Creates(Work):
    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._like = fields_of(0)
        self._next = share.created

    def next(self) -> Request | str:
        key = f"new-{self.share.number:02d}-{self._next:09d}"
        self._next += 1
        return (Step("create", key, 0, {**self._like, "id": key, "title": f"Index {key}"}),)


class HotKey(Work):
    """Everybody sets the same field of the same entity, whatever is there: compared, all but one of them would lose."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._value = 1.0 + share.number / share.agents

    def next(self) -> Request | str:
        self._value += 1.0
        return (Step("update", key_of(HOT), None, {"budget_limit": self._value}),)


class ReadMostly(Updates):
    """Reads of any task, of other agents' too, and an update of an own one now and then."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._dice = random.Random(share.number)

    def next(self) -> Request | str:
        if self._dice.random() * 20 < READS_IN_20:
            return key_of(int(self._dice.random() * self.share.tasks))
        return super().next()


# --- the list ---------------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    """One of them. `holds` says whether a stored entity of this version may have these fields."""

    name: str
    share: Callable[[Share], Work]
    holds: Callable[[int, Mapping[str, Any]], bool]
    characters: int = 120  # of a description
    steps: int = 1  # of one request
    pipelined: bool = True  # whether there is any sense in a window of several requests
    reads: bool = False

    def population(self, tasks: int) -> Iterator[Fields]:
        """The fields of all tasks, each of which is stored at version 1 before."""
        return (fields_of(number, self.characters) for number in range(tasks))


def _budget_says_version(version: int, fields: Mapping[str, Any]) -> bool:
    return float(fields["budget_limit"]) == version


def _status_says_version(version: int, fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("status", "created") == status_at(version))


def _as_created(version: int, fields: Mapping[str, Any]) -> bool:
    return version == 1 and float(fields["budget_limit"]) == 1


def _ever_higher(version: int, fields: Mapping[str, Any]) -> bool:
    """Nobody can say whose value is the last one of a hot key; but all agents together set no higher one."""
    return 1 <= float(fields["budget_limit"]) <= version + 1


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("update-one", Updates, _budget_says_version),
        Workload("create", Creates, _as_created),
        Workload("transition-cycle", Transitions, _status_says_version),
        Workload("transaction-4", Transactions, _budget_says_version, steps=TRANSACTION_STEPS),
        Workload("hot-key", HotKey, _ever_higher),
        Workload("read-mostly", ReadMostly, _budget_says_version, pipelined=False, reads=True),
        Workload("large", Updates, _budget_says_version, characters=LARGE_CHARACTERS),
    )
}


def fields_of(number: int, characters: int = 120) -> Fields:
    """A task of about 350 bytes of payload, as the plain values that differ from a task's defaults."""
    task = sample_task(number)
    return {
        "id": task.id,
        "title": task.title,
        "description": task.description.ljust(characters, "."),
        "project": task.project,
        "reviewers": list(task.reviewers),
        "acceptance_criteria": [{"description": one.description} for one in task.acceptance_criteria],
        "budget_limit": task.budget_limit,
        "source": task.source,
        "metadata": dict(task.metadata),
    }


def status_at(version: int) -> str:
    return "created" if version == 1 else CYCLE[(version - 2) % len(CYCLE)]


def shares(versions: array[int], created: Iterable[int], agents: int) -> list[Share]:
    """The whole, cut up for so many agents."""
    before = dict(enumerate(created))
    return [
        Share(number, agents, versions[number::agents], before.get(number, 0), len(versions))
        for number in range(agents)
    ]
