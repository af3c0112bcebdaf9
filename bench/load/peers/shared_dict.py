"""`multiprocessing.Manager`: a dict of tasks in a server process, in the two ways in which it is used.

`dict` is its own dict and its own lock: get, look at the version, put, while the lock is held. `registered` is a class
of one's own that the server runs, so that a request is one call, and a window of them as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, SyncManager
from typing import Any

from solewriter.bench.kit.scratch import end_with_the_parent
from solewriter.bench.load.agent import Link
from solewriter.bench.load.crew import processes
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import Answer, Fields, Refusal, Request, Step, Stored, as_tuples, in_batches

NAME_DICT, NAME_REGISTERED = "Manager dict", "Manager class"
FILL_BATCH = 10_000

Tasks = dict[str, Fields]


def changed(get: Callable[[str], Fields | None], step: Step) -> Fields:
    """What a step makes of a task. Raises Refusal."""
    _, key, expect, fields = step
    old = get(key) or {}
    version = old.get("version", 0)
    if expect is not None and expect != version:
        raise Refusal(f"{key} has version {version}, not {expect}")
    return {**old, **fields, "version": version + 1}


# --- its own dict -----------------------------------------------------------------------------------------------------


class DictConnection:
    def __init__(self, tasks: Any, lock: Any) -> None:
        self._tasks, self._lock = tasks, lock

    def one(self, request: Request) -> Answer:
        with self._lock:
            new = {step.key: changed(self._tasks.get, step) for step in request}
            if len(new) == 1:
                ((key, fields),) = new.items()
                self._tasks[key] = fields
            else:
                self._tasks.update(new)
        return [fields["version"] for fields in new.values()]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        """It has no way to send several before the first is answered."""
        return map(self.one, requests)

    def read(self, key: str) -> object:
        return self._tasks[key]

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        pass


class DictPeer:
    def __init__(self, server: SyncManager) -> None:
        self._tasks, self._lock = server.dict(), server.Lock()
        self.pids = [server._process.pid]  # type: ignore[attr-defined]  # nothing else tells it

    def load(self, tasks: Iterable[Fields]) -> None:
        self._tasks.update({fields["id"]: {**fields, "version": 1} for fields in tasks})

    def link(self, number: int) -> Link:
        return DictConnection, (self._tasks, self._lock)

    def stored(self) -> Iterator[Stored]:
        return ((key, fields["version"], fields) for key, fields in self._tasks.copy().items())


@contextmanager
def dict_started(setting: Setting) -> Iterator[Peer]:
    server = SyncManager(ctx=processes())
    server.start(end_with_the_parent)
    with server:
        yield DictPeer(server)


# --- a class of one's own ---------------------------------------------------------------------------------------------


class Store:
    """Lives in the server, which has a thread for each agent."""

    def __init__(self) -> None:
        self._tasks: Tasks = {}
        self._lock = threading.Lock()

    def load(self, tasks: Tasks) -> None:
        self._tasks.update(tasks)

    def apply(self, requests: list[list[Step]]) -> list[list[int]]:
        answers = []
        for request in requests:
            with self._lock:
                new = {step[1]: changed(self._tasks.get, step) for step in request}
                self._tasks.update(new)
            answers.append([fields["version"] for fields in new.values()])
        return answers

    def get(self, key: str) -> Fields:
        return self._tasks[key]

    def copy(self) -> Tasks:
        return dict(self._tasks)


class StoreServer(BaseManager):
    """Serves one Store."""


StoreServer.register("Store", Store)


class StoreConnection:
    def __init__(self, store: Any) -> None:
        self._store = store

    def one(self, request: Request) -> Answer:
        answers: list[Answer] = self._store.apply(as_tuples([request]))
        return answers[0]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return in_batches(requests, window, self._exchange)

    def _exchange(self, requests: list[Request]) -> list[Answer]:
        answers: list[Answer] = self._store.apply(as_tuples(requests))
        return answers

    def read(self, key: str) -> object:
        return self._store.get(key)

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        pass


class StorePeer:
    def __init__(self, server: StoreServer) -> None:
        self._store: Any = server.Store()  # type: ignore[attr-defined]  # registered above
        self.pids = [server._process.pid]  # type: ignore[attr-defined]  # nothing else tells it

    def load(self, tasks: Iterable[Fields]) -> None:
        self._store.load({fields["id"]: {**fields, "version": 1} for fields in tasks})

    def link(self, number: int) -> Link:
        return StoreConnection, (self._store,)

    def stored(self) -> Iterator[Stored]:
        return ((key, fields["version"], fields) for key, fields in self._store.copy().items())


@contextmanager
def store_started(setting: Setting) -> Iterator[Peer]:
    server = StoreServer(ctx=processes())
    server.start(end_with_the_parent)
    with server:
        yield StorePeer(server)


ENTRIES = (
    Entry(NAME_DICT, {"memory": "dict() and Lock()"}, dict_started, batch="none: it cannot"),
    Entry(NAME_REGISTERED, {"memory": "a class, one call"}, store_started, batch="a call a window"),
)
