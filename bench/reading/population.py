"""What is stored for the measurements of reading: the two kinds, how they are loaded, and what is asked of records raw.

The functions below the last rule know how records lie in memory; nothing else in these benchmarks does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from solewriter import Client, Engine, Entity, Limits, Snapshot, Task, TaskPriority, connect, status_of
from solewriter.bench.kit.placement import pin
from solewriter.bench.kit.workload import fill_in_batches, sample_task
from solewriter.bench.reading.passes import Pass
from solewriter.shared import record
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX_BYTES, padded
from solewriter.shared.memory.pin import Pin
from solewriter.shared.registry import Registry


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Run(Entity, columns=("status", "priority", "score")):
    """A small thing of which there are many."""

    status: RunStatus = RunStatus.QUEUED
    priority: TaskPriority = TaskPriority.LOW
    score: float = 0.0
    worker: str = ""
    steps: int = 0  # what the updates change


STATUSES, PRIORITIES = tuple(RunStatus), tuple(TaskPriority)
SCORES = 1_000_003  # a prime: scores are spread over [0, 1), and no two of a million runs have the same one


def sample_run(number: int) -> Run:
    status, priority, score = run_columns(number)
    return Run(
        id=f"run-{number:07d}", status=status, priority=priority, score=score, worker=f"worker-{number % 64:02d}"
    )


def run_columns(number: int) -> tuple[RunStatus, TaskPriority, float]:
    return STATUSES[number % 4], PRIORITIES[number // 4 % 4], number * 7_919 % SCORES / SCORES


class Window(NamedTuple):
    """A question that few runs meet: this status, and a score from `low` to below `high`."""

    status: RunStatus
    low: float
    high: float


def windows(number: int) -> list[Window]:
    """Questions whose answers have nothing in common: a quarter of a thousandth of all runs each."""
    return [Window(RunStatus.FAILED, place / 1_000, (place + 1) / 1_000) for place in range(number)]


# --- an engine with a population -------------------------------------------------------------------------------------


class Population(NamedTuple):
    """An engine that holds so many entities of one kind, and a client of it."""

    engine: Engine
    client: Client
    model: type[Entity]
    ids: list[str]

    def __str__(self) -> str:
        return f"{len(self.ids):,} {self.model.kind_name}"

    @property
    def state(self) -> Path:
        return self.engine.state

    def shuffled(self) -> list[str]:
        """Neighbours in memory are not neighbours in time."""
        return random.Random(len(self.ids)).sample(self.ids, len(self.ids))


@contextmanager
def populated(
    folder: Path, model: type[Task | Run], count: int, *, spin_s: float, cpus: Sequence[int]
) -> Iterator[Population]:
    """A new engine, "memory" durable, on these CPUs, with so many entities. Its segments lie in the folder, beside its
    state.
    """
    limits = Limits(memory_dir=str(folder), spin_s=spin_s)
    made: Callable[[int], Task | Run] = sample_task if model is Task else sample_run
    state = folder / f"{model.kind_name}-{count}".lower()
    with (
        Engine(state, models=[Run], durability="memory", limits=limits) as engine,
        connect(state, name="bench") as client,
    ):
        pin(engine.pid, cpus)
        ids: list[str] = []

        def entities() -> Iterator[Task | Run]:
            for number in range(count):
                entity = made(number)
                ids.append(entity.id)
                yield entity

        fill_in_batches(client, entities())
        yield Population(engine, client, model, ids)


def shared_bytes(state: Path) -> int:
    """Memory that the segments of a state take, those included that only older snapshots keep."""
    status = status_of(state)
    return status.memory_bytes + status.memory_held_bytes


# --- records ---------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """One entity as the readers' decoder takes it."""

    key: str
    version: int
    time_us: int
    payload: bytes


Decode = Callable[[str, int, int, Any], Entity]  # key, version, time and payload of a record -> the entity


def decoder(snapshot: Snapshot, model: type[Entity]) -> Decode:
    """The very function that a reader makes entities with, for records as they are written now."""
    catalog = snapshot.pin.catalog
    code = catalog.kind_code(model.kind_name)
    schema = [schema for schema in catalog.schemas if schema.kind == code][-1]
    return partial(Registry().of(model).decode_entity, schema)


def stored(snapshot: Snapshot, model: type[Entity]) -> Iterator[Stored]:
    """All entities of a kind, in the order in which they were created."""
    pin = snapshot.pin
    for address in pin.addresses(_code(snapshot, model)):
        found = pin.content(address)
        yield Stored(found.key, found.version, found.time_us, found.payload)


def fields_of(model: type[Entity], one: Stored, unpack: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """The fields that differ from their defaults, as plain values: what somebody would store without us."""
    fields = {**unpack(one.payload), "id": one.key, "version": one.version}
    if "updated_at" in model.model_fields:
        fields["updated_at"] = from_us(one.time_us)
    return fields


def raw_gets(snapshot: Snapshot, model: type[Entity]) -> Pass:
    """The record found and its checksum verified; its payload is bytes, not decoded."""
    find, content, code = snapshot.pin.find, snapshot.pin.content, _code(snapshot, model)

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = content(find(code, id))
        return found

    return one_pass


def live_record_bytes(snapshot: Snapshot, model: type[Entity]) -> int:
    """Bytes that the newest records take in the heap, each with its prefix and padding."""
    pin, total = snapshot.pin, 0
    assert isinstance(pin, Pin)  # memory, not the journal
    for address in pin.addresses(_code(snapshot, model)):
        body = (address & OFFSET_MASK) + PREFIX_BYTES
        total += padded(record.length_at(pin.segment(address >> 32).bytes, body))
    return total


def _code(snapshot: Snapshot, model: type[Entity]) -> int:
    code = snapshot.pin.catalog.kind_code(model.kind_name)
    assert code is not None
    return code
