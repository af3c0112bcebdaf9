"""Redis as a rival: each entity a hash of its fields, each field's value as msgpack; read over a UNIX socket.

The server is started for the measurement: no TCP port, nothing is ever saved, and it ends with this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from solewriter import Entity
from solewriter.bench.kit.optional import NotHere
from solewriter.bench.kit.redis_server import redis_server
from solewriter.bench.reading.passes import GET_COLD, GET_RAW, Contestant, Pass
from solewriter.bench.reading.population import Population, fields_of, stored

WHO = "Redis"
PIPELINED = 100  # gets in one pipeline
ROWS = (
    (GET_RAW, "hgetall"),
    (GET_RAW, f"hgetall, pipelines of {PIPELINED}"),
    (GET_COLD, "hgetall, msgpack, model_validate"),
    (GET_COLD, f"the same, pipelines of {PIPELINED}"),
)
FILL_BATCH = 1_000


def contestants(
    folder: Path, population: Population, ending: ExitStack, memory_bytes: dict[str, int]
) -> list[Contestant]:
    """Gets, one by one and pipelined. Says in `memory_bytes` what the server takes for what it holds."""
    try:
        passes = _passes(folder, population, ending, memory_bytes)
    except NotHere as why:
        return [Contestant(measure, WHO, how, None, str(why)) for measure, how in ROWS]
    return [Contestant(measure, WHO, how, one, served=True) for (measure, how), one in zip(ROWS, passes, strict=True)]


def _passes(folder: Path, population: Population, ending: ExitStack, memory_bytes: dict[str, int]) -> list[Pass]:
    client, model = redis_server(folder, ending), population.model
    before = _used_bytes(client)
    _fill(client, population)
    memory_bytes[WHO] = _used_bytes(client) - before
    return [raw_gets(client), raw_pipelines(client), decoded_gets(client, model), decoded_pipelines(client, model)]


def _used_bytes(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _fill(client: Any, population: Population) -> None:
    pack, unpack, model = msgspec.msgpack.encode, msgspec.msgpack.decode, population.model
    with population.client.reader.snapshot() as snapshot:
        rows = stored(snapshot, model)
        while batch := list(islice(rows, FILL_BATCH)):
            pipeline = client.pipeline(transaction=False)
            for one in batch:
                fields = fields_of(model, one, unpack)
                pipeline.hset(one.key, mapping={name: pack(value) for name, value in fields.items()})
            pipeline.execute()


# --- the loops -------------------------------------------------------------------------------------------------------


def raw_gets(client: Any) -> Pass:
    hgetall = client.hgetall

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = hgetall(id)
        return found

    return one_pass


def raw_pipelines(client: Any) -> Pass:
    def one_pass(ids: Sequence[str]) -> Any:
        return deque(pipelined(client, ids), maxlen=1).pop()

    return one_pass


def decoded_gets(client: Any, model: type[Entity]) -> Pass:
    hgetall, validate, unpack = client.hgetall, model.model_validate, msgspec.msgpack.decode

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = validate({name.decode(): unpack(value) for name, value in hgetall(id).items()})
        return found

    return one_pass


def decoded_pipelines(client: Any, model: type[Entity]) -> Pass:
    validate, unpack = model.model_validate, msgspec.msgpack.decode

    def one_pass(ids: Sequence[str]) -> Any:
        for fields in pipelined(client, ids):
            found = validate({name.decode(): unpack(value) for name, value in fields.items()})
        return found

    return one_pass


def pipelined(client: Any, ids: Sequence[str]) -> Iterator[dict[bytes, bytes]]:
    for start in range(0, len(ids), PIPELINED):
        pipeline = client.pipeline(transaction=False)
        for id in ids[start : start + PIPELINED]:
            pipeline.hgetall(id)
        yield from pipeline.execute()
