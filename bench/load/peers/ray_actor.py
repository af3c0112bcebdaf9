"""Ray: an actor that holds a dict, on one machine, and agents that are drivers of their own.

Its server is the actor's process; the processes that Ray starts besides, which only take part in finding the actor, are
not counted.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from solewriter.bench.kit.optional import required
from solewriter.bench.kit.scratch import scratch_folder
from solewriter.bench.load.agent import Link
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.peers.shared_dict import Store
from solewriter.bench.load.requests import Answer, Fields, Request, Stored, as_tuples, sliding
from solewriter.shared.config import FRAME_BATCH

NAME = "Ray actor"
ACTOR, NAMESPACE = "store", "bench"
QUIET = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}


class RayStore(Store):
    """The same class as a `Manager` serves: calls come one after the other."""

    def pid(self) -> int:
        return os.getpid()


class RayConnection:
    def __init__(self, address: str) -> None:
        self._ray = required("ray")
        self._driver = not self._ray.is_initialized()  # else this is the process that started it all
        if self._driver:
            self._ray.init(address=address, **QUIET)
        self._store = self._ray.get_actor(ACTOR)
        self._open: deque[Any] = deque()

    def one(self, request: Request) -> Answer:
        self._send([request])
        return self._receive()[0]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return sliding(requests, window, FRAME_BATCH, self._send, self._receive)

    def _send(self, requests: list[Request]) -> None:
        self._open.append(self._store.apply.remote(as_tuples(requests)))

    def _receive(self) -> list[Answer]:
        answers: list[Answer] = self._ray.get(self._open.popleft())
        return answers

    def read(self, key: str) -> object:
        return self._ray.get(self._store.get.remote(key))

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        if self._driver:
            self._ray.shutdown()


class RayPeer:
    def __init__(self, ray: Any, address: str) -> None:
        self._ray, self._address = ray, address
        self._store = ray.remote(RayStore).options(name=ACTOR).remote()
        self.pids = [ray.get(self._store.pid.remote())]

    def load(self, tasks: Iterable[Fields]) -> None:
        self._ray.get(self._store.load.remote({fields["id"]: {**fields, "version": 1} for fields in tasks}))

    def link(self, number: int) -> Link:
        return RayConnection, (self._address,)

    def stored(self) -> Iterator[Stored]:
        held = self._ray.get(self._store.copy.remote())
        return ((key, fields["version"], fields) for key, fields in held.items())


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    ray = required("ray")
    itself = psutil.Process()
    with scratch_folder(
        Path(tempfile.gettempdir()), "r"
    ) as short:  # sockets lie deep in it, their address holds 107 bytes
        told_to_end, before = signal.getsignal(signal.SIGTERM), {*itself.children(recursive=True)}
        context = ray.init(num_cpus=1, include_dashboard=False, _temp_dir=str(short), **QUIET)
        signal.signal(signal.SIGTERM, told_to_end)  # it puts a handler of its own there
        started_by_it = {*itself.children(recursive=True)} - before
        try:
            yield RayPeer(ray, context.address_info["address"])
        finally:
            ray.shutdown()
            for process in started_by_it:
                with suppress(psutil.NoSuchProcess):
                    process.kill()  # some of them notice by and by only that they are alone


ENTRY = Entry(
    NAME, {"memory": "an actor, one call"}, started, batch=f"calls of {FRAME_BATCH}", note="CPU: of the actor alone"
)
