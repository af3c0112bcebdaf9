"""The workload `update-one`: what is stored before it, and the proof that each acknowledged update is there after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec

from solewriter import Client, Create, Engine, Entity, FrozenMap, Task, connect
from solewriter.engine_proc.process import Durability
from solewriter.shared.models import Criterion

WINDOW = 256  # in flight for each pipelined agent: the default bound of a session
LOAD_BATCH = 200  # creates in one request, where loading is not what is measured
REQUEST_BYTES, REPLY_BYTES = 88, 42  # what one update and its answer take on a lane, by themselves


def key_of(number: int) -> str:
    return f"task-{number:06d}"


def sample_task(number: int) -> Task:
    """A task of about 350 bytes of payload, in which every number takes the same room."""
    return Task(
        id=key_of(number),
        title=f"Index part {number:06d}",
        description="Read the part, extract names and dates, and write them to the shared index.".ljust(120, "."),
        project="archive",
        reviewers=("agent-7",),
        acceptance_criteria=(Criterion(description="every offset resolves"),),
        budget_limit=1.0,
        source="import",
        metadata=FrozenMap(shard=number % 64 + 128),
    )


def fill(client: Client, entities: Iterable[Entity]) -> None:
    """Create each of them, by a request of its own."""
    for reply in client.submit_many(map(Create, entities), window=WINDOW):
        reply.check()


def fill_in_batches(client: Client, entities: Iterable[Entity], each: int = LOAD_BATCH) -> None:
    """The same by few requests of many."""
    source = iter(entities)
    while batch := list(islice(source, each)):
        client.submit(*map(Create, batch)).check()


@contextmanager
def loaded_engine(folder: Path, durability: Durability, tasks: int) -> Iterator[tuple[Engine, Client]]:
    """A new engine that holds the tasks, each at version 1, and a client to look at them."""
    with Engine(folder / durability, durability=durability) as engine, connect(engine.state, name="bench") as client:
        fill(client, map(sample_task, range(tasks)))
        yield engine, client


class Tally(msgspec.Struct, frozen=True):
    """What the state adds up to. Two of them tell how many updates there were between."""

    revision: int
    versions: int
    whole: bool  # whether every task's field says the version that its update compared

    @classmethod
    def of(cls, client: Client) -> Tally:
        with client.reader.snapshot() as snapshot:
            tasks = list(snapshot.entities("Task"))
            whole = all(task["budget_limit"] == task["version"] for task in tasks)
            return cls(snapshot.revision, sum(task["version"] for task in tasks), whole)

    def grew_by(self, before: Tally, acked: int) -> bool:
        """Whether exactly these updates happened since."""
        return self.whole and self.revision - before.revision == acked and self.versions - before.versions == acked


def payload_bytes(client: Client) -> float:
    """The mean stored payload of a task: msgpack of its fields, without the record's header."""
    with client.reader.snapshot() as snapshot:
        pin = snapshot.pin
        kind = pin.catalog.kind_code(Task.kind_name)
        sizes = [len(pin.content(address).payload) for address in pin.addresses(kind)] if kind is not None else []
    return round(sum(sizes) / len(sizes), 1)
