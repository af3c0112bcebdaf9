"""What an older version of the library wrote is read; what a newer one wrote is refused, and nobody guesses at it.

`fixtures/journal-v1` holds state folders of version 0.1.0, and in `expected.json` what must be read from them for ever.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import msgspec
import pytest

from solewriter import (
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    LayoutMismatch,
    Task,
    connect,
    open_reader,
    status_of,
)
from solewriter.agents import session
from solewriter.agents.greeting import greet
from solewriter.agents.testing import read_history
from solewriter.shared import config
from solewriter.shared.folder import StateFolder
from solewriter.shared.handshake import Hello
from solewriter.shared.journal import entry as entries
from solewriter.shared.lane import Lane
from solewriter.shared.memory import catalog as catalogs
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.request_ids import new_client_id

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "journal-v1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
FIRST, LAST = 0, -1  # of the files of a journal


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    """The program that made the fixtures, and its models."""
    spec = importlib.util.spec_from_file_location("journal_v1", FIXTURES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def unpacked(state: Path) -> Callable[[str], Path]:
    """`unpacked(name)`: the state folder of a fixture."""

    def unpack(name: str) -> Path:
        state.mkdir(mode=0o700)
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None, "nothing but files"
                (state / member.name).write_bytes(content.read())
                (state / member.name).chmod(member.mode)
        return state

    return unpack


def journal(state: Path) -> list[Path]:
    return sorted(state.glob("journal-*.log"))


# --- older ------------------------------------------------------------------------------------------------------------


def test_the_fixtures_are_small_and_whole(unpacked):
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 100_000
    state = unpacked("killed")
    assert len(journal(state)) > 1, "there is more than one file"


@pytest.mark.parametrize("name", ["drained", "killed"])
def test_a_journal_of_the_first_version_is_read_as_it_was_meant(unpacked, start_engine, maker, name):
    """State, history, outcomes; and it goes on from there, today and after the next start."""
    state, expected = unpacked(name), EXPECTED[name]
    assert maker.as_kept(maker.history_of(state)) == expected["history"]
    engine = start_engine(state, models=maker.MODELS, durability="power")
    with connect(state, name="today") as client, open_reader(state) as reader:
        assert maker.as_kept(maker.state_of(reader)) == {name: expected[name] for name in maker.state_of(reader)}
        assert maker.as_kept(maker.outcomes_of(client)) == expected["outcomes"]
        task = client.create(Task(id="gone", title="back again"))
        assert task.version == 5, "versions of what was deleted go on"
        assert client.update(maker.WiderDoor.ref("d1"), width=3.0).weight == 5
    engine.stop()
    start_engine(state, models=maker.MODELS, durability="power")
    with open_reader(state) as reader:
        assert reader.get(Task, "gone") == task
        assert reader.revision == expected["revision"] + 2


def test_without_its_classes_it_is_read_by_name(unpacked, start_engine, maker):
    state, expected = unpacked("drained"), EXPECTED["drained"]
    start_engine(state, durability="power")
    with open_reader(state) as reader:
        snap = reader.snapshot()
        for kind, entities in expected["entities"].items():
            assert snap.ids(kind) == [one["id"] for one in entities]
            assert [one["version"] for one in snap.entities(kind)] == [one["version"] for one in entities]
        assert [(one["colour"], one["weight"]) for one in snap.scan("Door")] == [("red", 3), ("blue", 5), ("green", 5)]
        assert snap.count("Door", {"width": 1.25}) == 1


def test_a_newer_engine_may_say_more_in_an_entry(unpacked, start_engine, maker):
    """Unknown fields of the private part are left alone: that is no other format."""
    state = unpacked("drained")
    path, entry = last_entry(state)
    body = msgspec.msgpack.encode({"not_known_yet": [1, {"a": None}], "kinds": []})
    length = entries.HEAD_BYTES + len(body)
    rest = (
        struct.pack("<IIQQqII", length, entry.crc, entry.number + 1, entry.revision, entry.time_us, 0, len(body)) + body
    )
    place = end_of(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<II", entries.ENTRY_MAGIC, crc32(rest)) + rest)
    start_engine(state, models=maker.MODELS, durability="power")
    with open_reader(state) as reader:
        assert reader.revision == EXPECTED["drained"]["revision"]


def last_entry(state: Path) -> tuple[Path, entries.Entry]:
    path, at, entry = journal(state)[-1], entries.FILE_HEADER_BYTES, None
    buffer = path.read_bytes()
    while (found := entries.unpack(buffer, at)) is not None:
        entry, _, at = found
    assert entry is not None
    return path, entry


def end_of(path: Path) -> int:
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at)) is not None:
        at = found[2]
    return at


# --- newer: the journal -----------------------------------------------------------------------------------------------


def with_version(path: Path, version: int) -> None:
    """The same file as if another version had written it."""
    with path.open("r+b") as file:
        magic, _, _, state_id, first, previous = struct.unpack("<QII16sQI", file.read(44))
        crc = crc32(struct.pack("<I", version) + struct.pack("<16sQI", state_id, first, previous))
        file.seek(0)
        file.write(struct.pack("<QII16sQI", magic, version, crc, state_id, first, previous))


@pytest.mark.parametrize(("place", "version"), [(FIRST, config.JOURNAL_VERSION + 1), (LAST, 2**32 - 1)])
def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(unpacked, place, version):
    state = unpacked("killed")
    path = journal(state)[place]
    with_version(path, version)
    before = {one.name: one.read_bytes() for one in [*journal(state), state / "committed"]}
    with pytest.raises(EngineStartFailed, match=rf"LayoutMismatch: {path.name} has journal format {version}"):
        Engine(state, durability="power").start()
    with pytest.raises(LayoutMismatch, match=f"journal format {version}"):
        read_history(state)
    assert {one.name: one.read_bytes() for one in [*journal(state), state / "committed"]} == before
    assert status_of(state).engine == "stopped"
    with_version(path, config.JOURNAL_VERSION)
    with Engine(state, durability="power"), open_reader(state) as reader:
        assert reader.revision == EXPECTED["killed"]["revision"]


# --- newer: the memory ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(engine: Engine) -> Iterator[Segment]:
    """The root of a running engine, to be written; as it was, afterwards."""
    where = engine.folder.whereabouts()
    segment = Segment.attach(segment_path(where.memory_dir, where.prefix, "root"), writable=True)
    before = segment.map[:16]
    yield segment
    segment.map[:16] = before


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize(
    ("offset", "value"),
    [(8, config.MEMORY_VERSION + 1), (8, 2**32 - 1), (8, 0), (12, config.ROOT_RING * 2), (0, 1)],
    ids=["newer", "much newer", "older than any", "another ring", "another magic"],
)
def test_memory_of_another_version_is_refused_by_everybody_who_reads(engine, client, root, offset, value):
    client.put(Task(id="t", title="x"))
    root.map[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(LayoutMismatch, match="same version"):
        open_reader(engine.state)
    with connect(engine.state) as other:
        with pytest.raises(LayoutMismatch, match="same version"):
            other.get(Task, "t")
        with pytest.raises(LayoutMismatch):
            other.reader.watch(since=0)
    status = status_of(engine.state)
    assert status.revision is None
    assert any("same version" in problem for problem in status.problems)


@pytest.mark.usefixtures("shared_engine")
def test_a_catalog_of_another_version_is_refused(engine, client):
    """By those who come, and by those who are there when it is renewed."""
    client.create(Task(id="catalog", title="x"))
    where = engine.folder.whereabouts()
    segment = Segment.attach(segment_path(where.memory_dir, where.prefix, "catalog", 1), writable=True)
    before = segment.map[:]
    body = catalogs.unpack(before)
    for version in (config.MEMORY_VERSION + 1, 0):
        packed = catalogs.pack(msgspec.structs.replace(body, version=version))
        segment.map[: len(packed)] = packed
        with open_reader(engine.state) as reader, pytest.raises(LayoutMismatch, match=f"catalog has version {version}"):
            reader.snapshot()
    segment.map[:] = before
    with open_reader(engine.state) as reader:
        assert reader.get(Task, "catalog").title == "x"


def test_an_engine_that_follows_one_of_another_version_leaves_none_of_its_memory(state, start_engine, wait_until):
    """It does not read it: the journal is what it goes on from."""
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(id="t", title="x"))
        where = engine.folder.whereabouts()
        root = Segment.attach(segment_path(where.memory_dir, where.prefix, "root"), writable=True)
        root.map[8:12] = (config.MEMORY_VERSION + 1).to_bytes(4, "little")
        os.kill(engine.pid, 9)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        assert client.get(Task, "t").title == "x"
    assert [*Path(where.memory_dir).glob(f"{where.prefix}*")] == []


# --- newer: the wire --------------------------------------------------------------------------------------------------


def hello(**more: Any) -> Hello:
    words = {"wire": config.WIRE_VERSION, "client_id": new_client_id(), "name": "stranger", "pid": os.getpid()}
    return Hello(**{**words, "first": 0, "instance": "one", "resends": False, **more})


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("version", [config.WIRE_VERSION + 1, 2**31, 0, -1])
def test_a_hello_of_another_version_is_refused_for_good(engine, client, version):
    lane = Lane()
    try:
        welcome = greet(StateFolder(engine.state), hello(wire=version), lane, 5)
    finally:
        lane.close()
    assert (welcome.ok, welcome.refusal) == (False, "final")
    assert f"wire version {version} is not {config.WIRE_VERSION}" in welcome.reason
    assert client.create(Task(title="x")).version == 1, "nobody else is concerned"


@pytest.mark.usefixtures("shared_engine")
def test_a_client_of_another_version_is_told_at_once(engine, monkeypatch):
    monkeypatch.setattr(session, "WIRE_VERSION", config.WIRE_VERSION + 1)
    with pytest.raises(EngineUnavailable, match="one solewriter everywhere") as refused:
        connect(engine.state)
    assert refused.value.final


@pytest.mark.usefixtures("shared_engine")
def test_a_newer_client_may_say_more_in_its_hello(engine, client_of_a_raw_lane, monkeypatch):
    """Unknown words are left alone: that is no other version."""
    pack = msgspec.msgpack.encode
    monkeypatch.setattr(
        "solewriter.shared.handshake.pack_words",
        lambda words: (lambda body: struct.pack("<I", len(body)) + body)(
            pack({**msgspec.structs.asdict(words), "not_known_yet": [1, None]})
        ),
    )
    lane = client_of_a_raw_lane(engine.state)
    lane.write(lane.frame([Create(Task(id="hello", title="x"))]))
    assert lane.reply().status == 0
