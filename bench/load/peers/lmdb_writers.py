"""LMDB with many writers: each agent has the environment open. A value is the version, then msgpack of the fields."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from solewriter.bench.kit.optional import required
from solewriter.bench.load.agent import Link
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import Answer, Fields, Refusal, Request, Step, Stored, in_batches
from solewriter.engine_proc.process import Durability

NAME = "LMDB"
SYNC: dict[Durability, bool] = {"power": True, "process": False}
MAP_BYTES = 1 << 34  # address space, not memory
VERSION = struct.Struct("<Q")
pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


def opened(folder: Path, *, sync: bool) -> Any:
    """Unsynced, it writes into its map: half of the processor time, and what dies is a process, not the page cache."""
    options = {"map_size": MAP_BYTES, "sync": sync, "metasync": sync, "writemap": not sync}
    return required("lmdb").open(str(folder), **options)


def alone(folder: Path) -> Any:
    """For this process, which must not write into any map: on a full disk that is the end of who does, by SIGBUS."""
    return required("lmdb").open(str(folder), map_size=MAP_BYTES, sync=False, lock=False)


class LmdbConnection:
    """One request is one transaction; a window is one transaction, too. Writers wait for each other's."""

    def __init__(self, folder: Path, sync: bool) -> None:
        self._environment = opened(folder, sync=sync)

    def one(self, request: Request) -> Answer:
        return self._exchange([request])[0]

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return in_batches(requests, window, self._exchange)

    def _exchange(self, requests: list[Request]) -> list[Answer]:
        with self._environment.begin(write=True) as transaction:
            return [[_applied(transaction, step) for step in request] for request in requests]

    def read(self, key: str) -> object:
        with self._environment.begin(buffers=True) as transaction:
            return unpack(transaction.get(key.encode())[VERSION.size :])

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        self._environment.close()


def _applied(transaction: Any, step: Step) -> int:
    key = step.key.encode()
    found = transaction.get(key)
    version = VERSION.unpack_from(found)[0] if found is not None else 0
    if step.expect is not None and step.expect != version:
        raise Refusal(f"{step.key} has version {version}, not {step.expect}")
    fields = {**unpack(found[VERSION.size :]), **step.fields} if found is not None else step.fields
    transaction.put(key, VERSION.pack(version + 1) + pack(fields))
    return int(version) + 1


class LmdbPeer:
    pids: list[int] = []  # noqa: RUF012  # nobody serves

    def __init__(self, folder: Path, sync: bool) -> None:
        self._folder, self._sync = folder, sync

    def load(self, tasks: Iterable[Fields]) -> None:
        with closing(alone(self._folder)) as environment, environment.begin(write=True) as transaction:
            for fields in tasks:
                transaction.put(fields["id"].encode(), VERSION.pack(1) + pack(fields))

    def link(self, number: int) -> Link:
        return LmdbConnection, (self._folder, self._sync)

    def stored(self) -> Iterator[Stored]:
        with closing(alone(self._folder)) as environment, environment.begin() as transaction:
            for key, value in transaction.cursor():
                yield key.decode(), VERSION.unpack_from(value)[0], unpack(value[VERSION.size :])


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    required("lmdb")
    setting.folder.mkdir()
    yield LmdbPeer(setting.folder, SYNC[setting.durability])


ENTRY = Entry(NAME, {"power": "sync", "process": "nosync, writemap"}, started, batch="a transaction a window")
