"""Our engine, by what everybody may call: `submit` and `submit_many`, whose replies tell versions as a rival's do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from solewriter import Client, Create, Engine, Limits, Reader, Task, Transition, Update, connect, open_reader
from solewriter.bench.kit.workload import LOAD_BATCH, fill_in_batches
from solewriter.bench.load.agent import Link
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import Answer, Fields, Request, Step, Stored
from solewriter.shared.mutations import Mutation

NAME = "solewriter"
LOAD_CHARACTERS = 400_000  # of descriptions in one request: a frame holds a mebibyte


class EngineConnection:
    def __init__(self, state: str, number: int) -> None:
        self._state = state
        self._client: Client = connect(state, name=f"bench-{number}")
        self._forgetful: Reader | None = None

    def one(self, request: Request) -> Answer:
        reply = self._client.submit(*map(_mutation, request)).check()
        return [result.version for result in reply.results]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        asked = ([*map(_mutation, request)] for request in requests)
        for reply in self._client.submit_many(asked, window=window):
            yield [result.version for result in reply.check().results]

    def read(self, key: str) -> object:
        return self._client.get(Task, key)

    def renewed(self) -> Callable[[str], object]:
        return _read_from(self._client.reader)

    def renewed_anew(self) -> Callable[[str], object]:
        if self._forgetful is None:
            self._forgetful = open_reader(self._state, limits=Limits(reader_cache_max=0))
        return _read_from(self._forgetful)

    def close(self) -> None:
        self._client.close()
        if self._forgetful is not None:
            self._forgetful.close()


def _read_from(reader: Reader) -> Callable[[str], object]:
    get = reader.snapshot().get
    return lambda key: get(Task, key)


def _mutation(step: Step) -> Mutation:
    operation, key, expect, fields = step
    if operation == "update":
        return Update(Task.ref(key), fields, expect)
    if operation == "transition":
        rest = dict(fields)
        return Transition(Task.ref(key), rest.pop("status"), rest, expect)
    return Create(Task.model_validate(fields))


class EnginePeer:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def pids(self) -> list[int]:
        return [self.engine.pid]

    def load(self, tasks: Iterable[Fields]) -> None:
        source = map(Task.model_validate, tasks)
        first = next(source)  # as long as all the others are
        with connect(self.engine.state, name="bench") as client:
            each = min(LOAD_BATCH, LOAD_CHARACTERS // len(first.description))
            fill_in_batches(client, chain([first], source), each)

    def link(self, number: int) -> Link:
        return EngineConnection, (str(self.engine.state), number)

    def stored(self) -> Iterator[Stored]:
        with open_reader(self.engine.state) as reader, reader.snapshot() as snapshot:
            for task in snapshot.entities("Task"):
                yield task["id"], task["version"], task


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    with Engine(Path(setting.folder), durability=setting.durability) as engine:
        yield EnginePeer(engine)


ENTRY = Entry(
    NAME,
    {"power": "fdatasync each turn", "process": "write each turn", "memory": "no journal"},
    started,
    validated=True,
    batch="frames of 32",
)
