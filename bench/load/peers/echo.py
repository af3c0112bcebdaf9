"""The floors: what the way there and back costs when nothing is done at its end.

`pipe echo`: bytes of about the size of our requests and replies, by two system calls on each side. Asked for `power`,
it writes what our journal takes for as many updates, into the same kind of preallocated file, and syncs before it
replies. `queue echo`: the same through `multiprocessing.Queue`, with its pickling and its threads.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from solewriter.bench.kit.scratch import end_with_the_parent
from solewriter.bench.kit.workload import REPLY_BYTES, REQUEST_BYTES
from solewriter.bench.load.agent import Link
from solewriter.bench.load.crew import processes
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import Answer, Fields, Request, Stored, as_tuples, sliding
from solewriter.shared.config import FRAME_BATCH, MIB, READ_BYTES

NAME_PIPE, NAME_QUEUE = "pipe echo", "queue echo"
FILE_BYTES = 32 * MIB  # as large as a journal file of ours; written again from its beginning when it is full
ANSWER = (0,)


class EchoConnection:
    """What both kinds have in common: nothing is stored, so nothing is read."""

    def read(self, key: str) -> object:
        raise NotImplementedError

    def renewed(self) -> Callable[[str], object]:
        raise NotImplementedError

    def one(self, request: Request) -> Answer:
        self._send([request])
        self._receive()
        return ANSWER

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return sliding(requests, window, FRAME_BATCH, self._send, self._receive)

    def _send(self, requests: list[Request]) -> None:
        raise NotImplementedError

    def _receive(self) -> list[Answer]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class EchoPeer:
    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._server = processes().Process(target=target, args=arguments, daemon=True)
        self._server.start()
        self.pids = [self._server.pid] if self._server.pid else []

    def load(self, tasks: Iterable[Fields]) -> None:
        pass

    def link(self, number: int) -> Link:
        raise NotImplementedError

    def stored(self) -> Iterator[Stored]:
        return iter(())

    def end(self) -> None:
        self._server.kill()
        self._server.join()


# --- pipes ------------------------------------------------------------------------------------------------------------


class PipeConnection(EchoConnection):
    def __init__(self, asking: Pipe, answering: Pipe) -> None:
        self._asking, self._answering = asking, answering  # kept: they close with this
        self._write_fd, self._read_fd = asking.fileno(), answering.fileno()
        self._half = 0

    def _send(self, requests: list[Request]) -> None:
        os.write(self._write_fd, bytes(REQUEST_BYTES * len(requests)))

    def _receive(self) -> list[Answer]:
        count, self._half = divmod(self._half + len(os.read(self._read_fd, READ_BYTES)), REPLY_BYTES)
        return [ANSWER] * count


class PipePeer(EchoPeer):
    def __init__(self, setting: Setting) -> None:
        context = processes()
        asked = [context.Pipe(duplex=False) for _ in range(setting.agents_max)]
        answered = [context.Pipe(duplex=False) for _ in range(setting.agents_max)]
        self._ends = list(zip([writing for _, writing in asked], [reading for reading, _ in answered], strict=True))
        pairs = list(zip([reading for reading, _ in asked], [writing for _, writing in answered], strict=True))
        path = preallocated(setting.folder / "file") if setting.durability == "power" else None
        super().__init__(echo_pipes, (pairs, path, setting.entry_bytes))

    def link(self, number: int) -> Link:
        return PipeConnection, self._ends[number]


def echo_pipes(pairs: list[tuple[Pipe, Pipe]], path: Path | None, entry_bytes: int) -> None:
    end_with_the_parent()
    poll = select.epoll()
    answering = {asked.fileno(): answered.fileno() for asked, answered in pairs}
    for fd in answering:
        poll.register(fd, select.EPOLLIN)
    sync = synced(path, entry_bytes) if path else None
    half = dict.fromkeys(answering, 0)
    while True:
        counts = {}
        for fd, _ in poll.poll():
            counts[fd], half[fd] = divmod(half[fd] + len(os.read(fd, READ_BYTES)), REQUEST_BYTES)
        if sync is not None:
            sync(sum(counts.values()))
        for fd, count in counts.items():
            os.write(answering[fd], bytes(REPLY_BYTES * count))


def preallocated(path: Path) -> Path:
    """A file of zeros that are on the disk."""
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
    return path


def synced(path: Path, entry_bytes: int) -> Callable[[int], None]:
    """Writes so many entries, one behind the other, and waits until they are on the disk."""
    file, at = os.open(path, os.O_RDWR), 0

    def sync(entries: int) -> None:
        nonlocal at
        data = b"e" * (entry_bytes * entries)
        at = at if at + len(data) <= FILE_BYTES else 0
        os.pwrite(file, data, at)
        os.fdatasync(file)
        at += len(data)

    return sync


# --- queues -----------------------------------------------------------------------------------------------------------


class QueueConnection(EchoConnection):
    def __init__(self, number: int, asking: Any, answering: Any) -> None:
        self._number, self._asking, self._answering = number, asking, answering

    def _send(self, requests: list[Request]) -> None:
        self._asking.put((self._number, as_tuples(requests)))

    def _receive(self) -> list[Answer]:
        answers: list[Answer] = self._answering.get()
        return answers


class QueuePeer(EchoPeer):
    def __init__(self, setting: Setting) -> None:
        context = processes()
        self._asking = context.Queue()
        self._answering = [context.Queue() for _ in range(setting.agents_max)]
        super().__init__(echo_queue, (self._asking, self._answering))

    def link(self, number: int) -> Link:
        return QueueConnection, (number, self._asking, self._answering[number])


def echo_queue(asking: Any, answering: list[Any]) -> None:
    end_with_the_parent()
    while True:
        number, requests = asking.get()
        answering[number].put(list(repeat(ANSWER, len(requests))))


@contextmanager
def pipe_started(setting: Setting) -> Iterator[Peer]:
    yield from _started(PipePeer, setting)


@contextmanager
def queue_started(setting: Setting) -> Iterator[Peer]:
    yield from _started(QueuePeer, setting)


def _started(kind: Callable[[Setting], EchoPeer], setting: Setting) -> Iterator[Peer]:
    setting.folder.mkdir()
    peer = kind(setting)
    try:
        yield peer
    finally:
        peer.end()


ENTRIES = (
    Entry(
        NAME_PIPE,
        {"power": "and one fdatasync", "memory": ""},
        pipe_started,
        batch=f"frames of {FRAME_BATCH}",
        floor=True,
        workloads=("update-one",),
    ),
    Entry(
        NAME_QUEUE,
        {"memory": ""},
        queue_started,
        batch=f"frames of {FRAME_BATCH}",
        floor=True,
        workloads=("update-one",),
    ),
)
