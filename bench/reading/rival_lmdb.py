"""LMDB as a rival: the same keys and payload bytes, in the memory file system that our segments lie in.

It is used as somebody would who knows it: filled in the order of the keys, buffers instead of copies, one held read
transaction. Beside it, in an environment of its own, lies what somebody would store without us: one msgpack map of an
entity's fields, for pydantic to validate.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from solewriter import Entity
from solewriter.bench.kit.optional import NotHere, required
from solewriter.bench.kit.scratch import taken_bytes
from solewriter.bench.reading.passes import GET_COLD, GET_RAW, GET_WARM, PIN, Contestant, Opening, Pass
from solewriter.bench.reading.population import Decode, Population, decoder, fields_of, stored

HEAD = struct.Struct("<Qq")  # version and time, before the payload: what our records say in their header
HEAD_BYTES = HEAD.size
MAP_BYTES = 1 << 32  # address space, not memory
WHO = "LMDB"
ROWS = (
    (GET_RAW, "buffer, not verified"),
    (GET_RAW, "buffer, crc32 of it"),
    (GET_COLD, "get, our decoder"),
    (GET_COLD, "get, msgpack, model_validate"),
    (GET_WARM, "get, dict of decoded by its bytes"),
    (PIN, "begin() and abort()"),
)


def contestants(
    folder: Path, population: Population, ending: ExitStack, every: Sequence[str], memory_bytes: dict[str, int]
) -> list[Contestant]:
    """Gets of the ids that the rounds ask for, which are `every` one of them, and pins. Says in `memory_bytes` what our
    records take there.
    """
    try:
        passes = _passes(folder, population, ending, every, memory_bytes)
    except NotHere as why:
        return [Contestant(measure, WHO, how, None, str(why)) for measure, how in ROWS]
    return [Contestant(measure, WHO, how, one) for (measure, how), one in zip(ROWS, passes, strict=True)]


def _passes(
    folder: Path, population: Population, ending: ExitStack, every: Sequence[str], memory_bytes: dict[str, int]
) -> list[Pass]:
    module = required("lmdb")
    decode = decoder(population.client.reader.snapshot(), population.model)
    _fill(module, folder, population)
    memory_bytes[WHO] = taken_bytes(folder / "records" / "data.mdb")
    records, plain = _opened(module, folder / "records"), _opened(module, folder / "plain")
    ending.callback(records.close)
    ending.callback(plain.close)
    buffers = ending.enter_context(records.begin(buffers=True)).get
    copies = ending.enter_context(records.begin()).get
    raw, cold = raw_gets(buffers), decoded_gets(buffers, decode)
    raw(every)  # the pages are mapped
    return [
        raw,
        checked_gets(buffers),
        cold,
        plain_gets(ending.enter_context(plain.begin(buffers=True)).get, population.model),
        cached_gets(copies, {copies(id.encode()): cold([id]) for id in every}),
        pins(records),
    ]


def _fill(module: Any, folder: Path, population: Population) -> None:
    """Two environments: of our records, and of what somebody would store without us."""
    pack, unpack, model = msgspec.msgpack.encode, msgspec.msgpack.decode, population.model
    folder.mkdir()
    options = {"map_size": MAP_BYTES, "sync": False, "metasync": False, "writemap": True}
    with (
        module.open(str(folder / "records"), **options) as records,
        module.open(str(folder / "plain"), **options) as plain,
        records.begin(write=True) as filling,
        plain.begin(write=True) as filling_plain,
        population.client.reader.snapshot() as snapshot,
    ):
        for one in stored(snapshot, model):  # in the order of their keys, so that no page is split
            key = one.key.encode()
            filling.put(key, HEAD.pack(one.version, one.time_us) + one.payload, append=True)
            filling_plain.put(key, pack(fields_of(model, one, unpack)), append=True)


def _opened(module: Any, folder: Path) -> Any:
    return module.open(str(folder), readonly=True, map_size=MAP_BYTES, readahead=False)


def opening(folder: Path) -> Opening:
    """Opens what was filled before, and is not open now. Raises NotHere."""
    module = required("lmdb")

    def open_one() -> Callable[[], object]:
        environment = _opened(module, folder / "records")
        transaction = environment.begin(buffers=True)

        def close() -> None:
            transaction.abort()
            environment.close()

        return close

    return open_one


# --- the loops -------------------------------------------------------------------------------------------------------


def raw_gets(get: Callable[[bytes], Any]) -> Pass:
    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = get(id.encode())
        return found

    return one_pass


def checked_gets(get: Callable[[bytes], Any]) -> Pass:
    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = crc32(get(id.encode()))
        return found

    return one_pass


def decoded_gets(get: Callable[[bytes], Any], decode: Decode) -> Pass:
    head = HEAD.unpack_from

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            value = get(id.encode())
            version, time_us = head(value)
            found = decode(id, version, time_us, value[HEAD_BYTES:])
        return found

    return one_pass


def plain_gets(get: Callable[[bytes], Any], model: type[Entity]) -> Pass:
    validate, unpack = model.model_validate, msgspec.msgpack.decode

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = validate(unpack(get(id.encode())))
        return found

    return one_pass


def cached_gets(get: Callable[[bytes], bytes], decoded: dict[bytes, Any]) -> Pass:
    """The value itself says whether the entity is still the same. Of the keys that such a dict may have, this one
    makes the fastest loop.
    """

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = decoded[get(id.encode())]
        return found

    return one_pass


def pins(environment: Any) -> Pass:
    begin = environment.begin

    def one_pass(times: Sequence[object]) -> None:
        for _ in times:
            begin(buffers=True).abort()

    return one_pass
