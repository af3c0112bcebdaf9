"""The do-it-yourself under load: its writer in a process, and agents whose frames hold as many requests as ours do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec

from solewriter import Task
from solewriter.bench.kit.scratch import end_with_the_parent
from solewriter.bench.load.agent import Link
from solewriter.bench.load.crew import processes
from solewriter.bench.load.peers import diy
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import Answer, Fields, Refusal, Request, Stored, as_tuples, sliding
from solewriter.engine_proc.process import Durability
from solewriter.shared.config import FRAME_BATCH

NAME = "do-it-yourself"
SYNCHRONOUS: dict[Durability, str] = {"power": "FULL", "process": "NORMAL"}
END_S = 10.0  # a writer's time to finish its batch


class DiyConnection:
    def __init__(self, path: Path, queue: Any, pipe: Pipe, number: int) -> None:
        self._queue, self._pipe, self._number = queue, pipe, number
        self._reading = sqlite3.connect(path)

    def one(self, request: Request) -> Answer:
        self._send([request])
        return self._receive()[0]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return sliding(requests, window, FRAME_BATCH, self._send, self._receive)

    def _send(self, requests: list[Request]) -> None:
        self._queue.put((self._number, as_tuples(requests)))

    def _receive(self) -> list[Answer]:
        answers: list[Any] = self._pipe.recv()
        for answer in answers:
            if type(answer) is str:
                raise Refusal(answer)
        return answers

    def read(self, key: str) -> object:
        (body,) = self._reading.execute("SELECT body FROM task WHERE id = ?", (key,)).fetchone()
        return Task.model_validate_json(body)

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        self._reading.close()


class DiyPeer:
    def __init__(self, setting: Setting) -> None:
        self._path = setting.folder / "tasks.sqlite"
        self._synchronous = SYNCHRONOUS[setting.durability]
        context = processes()
        self._queue = context.Queue()
        ends = [context.Pipe(duplex=False) for _ in range(setting.agents_max)]
        self._receiving = [receiving for receiving, _ in ends]
        self._sending = [sending for _, sending in ends]
        arguments = self._path, self._synchronous, self._queue, self._sending
        self._writer = context.Process(target=write, args=arguments, daemon=True)

    @property
    def pids(self) -> list[int]:
        return [self._writer.pid] if self._writer.pid else []

    def load(self, tasks: Iterable[Fields]) -> None:
        """Into the database, from which the writer begins."""
        with closing(diy.opened(self._path, "OFF")) as db:
            encode = msgspec.json.encode
            db.execute("BEGIN")
            db.executemany(
                "INSERT INTO task VALUES (?, 1, ?)", ((task["id"], encode({**task, "version": 1})) for task in tasks)
            )
            db.execute("COMMIT")
        self._writer.start()

    def link(self, number: int) -> Link:
        return DiyConnection, (self._path, self._queue, self._receiving[number], number)

    def stored(self) -> Iterator[Stored]:
        with closing(sqlite3.connect(self._path)) as db:
            for key, version, body in db.execute("SELECT id, version, body FROM task"):
                yield key, version, msgspec.json.decode(body)

    def end(self) -> None:
        if self._writer.pid:
            self._queue.put(None)
            self._writer.join(END_S)
            self._writer.kill()
            self._writer.join()
        for pipe in (*self._receiving, *self._sending):
            pipe.close()
        self._queue.close()
        self._queue.cancel_join_thread()  # an agent that was killed in the middle of a write holds its lock for ever


def write(path: Path, synchronous: str, queue: Any, pipes: list[Pipe]) -> None:
    """The target of the writer's process."""
    end_with_the_parent()
    diy.serve(path, synchronous, queue, pipes)


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    setting.folder.mkdir()
    peer = DiyPeer(setting)
    try:
        yield peer
    finally:
        peer.end()


ENTRY = Entry(
    NAME,
    {level: f"SQLite {synchronous}, WAL" for level, synchronous in SYNCHRONOUS.items()},
    started,
    validated=True,
    batch=f"frames of {FRAME_BATCH}",
)
