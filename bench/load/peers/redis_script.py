"""Redis over a UNIX socket: each task a hash of its fields, and scripts that compare and set where the data is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from solewriter.bench.kit.optional import required
from solewriter.bench.kit.redis_server import redis_server, socket_of
from solewriter.bench.load.agent import Link
from solewriter.bench.load.peers.peer import Entry, Peer, Setting
from solewriter.bench.load.requests import (
    CHECKED,
    Answer,
    Fields,
    Refusal,
    Request,
    Step,
    Stored,
    as_column,
    in_batches,
)
from solewriter.engine_proc.process import Durability

NAME = "Redis"
FSYNC: dict[Durability, str] = {"power": "always", "process": "everysec"}
FILL_BATCH = 1_000

# Of one step: the version that must be there, 0 for none, or nothing at all; then fields and their values.
SET = """
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if ARGV[1] ~= '' and ARGV[1] ~= version then return redis.error_reply('it has version ' .. version) end
version = version + 1
redis.call('HSET', KEYS[1], 'version', version, unpack(ARGV, 2))
return version
"""
# Of several: all are compared before the first is set. Before each one's arguments stands how many there are.
SET_ALL = """
local at = 1
for _, key in ipairs(KEYS) do
    local expected = ARGV[at + 1]
    local version = redis.call('HGET', key, 'version') or '0'
    if expected ~= '' and expected ~= version then return redis.error_reply(key .. ' has version ' .. version) end
    at = at + 1 + ARGV[at]
end
local versions = {}
at = 1
for place, key in ipairs(KEYS) do
    versions[place] = redis.call('HINCRBY', key, 'version', 1)
    redis.call('HSET', key, unpack(ARGV, at + 2, at + ARGV[at]))
    at = at + 1 + ARGV[at]
end
return versions
"""


class RedisConnection:
    def __init__(self, socket: str) -> None:
        self._client: Any = required("redis").Redis(unix_socket_path=socket)
        self._set = self._client.script_load(SET)
        self._set_all = self._client.script_load(SET_ALL)

    def one(self, request: Request) -> Answer:
        told = self._client.execute_command(*self._command(request))
        return told if isinstance(told, list) else (told,)

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        return in_batches(requests, window, self._exchange)

    def _exchange(self, requests: list[Request]) -> list[Answer]:
        """redis-py's pipeline: all commands in one write, then all replies."""
        pipeline = self._client.pipeline(transaction=False)
        for request in requests:
            pipeline.execute_command(*self._command(request))
        return [told if isinstance(told, list) else (told,) for told in pipeline.execute()]

    def _command(self, request: Request) -> tuple[Any, ...]:
        if len(request) == 1:
            (step,) = request
            return ("EVALSHA", self._set, 1, step.key, *_arguments(step))
        keys, arguments = [step.key for step in request], list[Any]()
        for one in map(_arguments, request):
            arguments += (len(one), *one)
        return ("EVALSHA", self._set_all, len(keys), *keys, *arguments)

    def read(self, key: str) -> object:
        found = self._client.hgetall(key)
        if not found:
            raise Refusal(f"there is no {key}")
        return found

    def renewed(self) -> Callable[[str], object]:
        return self.read

    def close(self) -> None:
        self._client.close()


def _arguments(step: Step) -> list[Any]:
    found: list[Any] = ["" if step.expect is None else step.expect]
    for name, value in step.fields.items():
        found += (name, as_column(value))
    return found


class RedisPeer:
    def __init__(self, setting: Setting, ending: ExitStack) -> None:
        options = {"appendonly": "yes", "appendfsync": FSYNC[setting.durability]}
        self._client = redis_server(setting.folder, ending, **options)
        self._socket = socket_of(setting.folder, ending)
        self.pids = [int(self._client.info("server")["process_id"])]

    def load(self, tasks: Iterable[Fields]) -> None:
        source = iter(tasks)
        while batch := list(islice(source, FILL_BATCH)):
            pipeline = self._client.pipeline(transaction=False)
            for fields in batch:
                plain = {name: as_column(value) for name, value in fields.items()}
                pipeline.hset(fields["id"], mapping={**plain, "version": 1})
            pipeline.execute()

    def link(self, number: int) -> Link:
        return RedisConnection, (self._socket,)

    def stored(self) -> Iterator[Stored]:
        keys = self._client.scan_iter(count=FILL_BATCH)
        while batch := list(islice(keys, FILL_BATCH)):
            pipeline = self._client.pipeline(transaction=False)
            for key in batch:
                pipeline.hmget(key, "version", *CHECKED)
            for key, (version, *found) in zip(batch, pipeline.execute(), strict=True):
                pairs = zip(CHECKED, found, strict=True)
                yield key.decode(), int(version), {name: value.decode() for name, value in pairs if value is not None}


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    with ExitStack() as ending:
        yield RedisPeer(setting, ending)


ENTRY = Entry(
    NAME,
    {level: f"appendfsync {fsync}, EVALSHA" for level, fsync in FSYNC.items()},
    started,
    batch="redis-py's pipeline",
)
