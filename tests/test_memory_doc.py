"""docs/memory.md says where every byte lies: what the code writes is read back here by the page's own tables.

A table of offsets is a list of (at, type, name). What the code wrote with known values is read at these places; and the
places together leave no gap, so a field that is added, moved or widened makes the page wrong, and a test fail.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter import Limits, Task
from solewriter.shared import config, record
from solewriter.shared.config import CHUNK_SLOTS, KIB, KINDS_MAX, MEMORY_VERSION, MIB, REVISION_LOG_STRIDE, ROOT_RING
from solewriter.shared.kinds.columns import Column
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory import catalog as catalogs
from solewriter.shared.memory.catalog import Catalog, Table
from solewriter.shared.memory.heap import END, START, HeapWriter
from solewriter.shared.memory.index import FIRST_LOG2, IndexWriter, key_hash
from solewriter.shared.memory.revlog import POINTS, RevisionLogWriter
from solewriter.shared.memory.root import ROOT_BYTES, STOPPED, SUPERSEDED, Root, RootWriter
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.table import TableWriter, offsets
from solewriter.shared.mutations import Op
from solewriter.shared.record import Flags

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "memory.md").read_text()
LETTERS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f64": "d"}

Place = tuple[int, str]  # offset, type as the page writes it


def table(*headings: str) -> list[list[str]]:
    """The cells of the one table with these headings, row by row, without backticks."""
    head = f"| {' | '.join(headings)} |\n"
    assert PAGE.count(head) == 1, head
    lines = PAGE.split(head)[1].splitlines()[1:]
    rows = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split(" | ")] for row in rows]


def places(*headings: str) -> dict[str, Place]:
    """What lies where: name -> (offset, type)."""
    return {row[2]: (int(row[0]), row[1]) for row in table(*headings)}


def read(buffer: Any, place: Place, start: int = 0) -> Any:
    return struct.unpack_from(f"<{LETTERS[place[1]]}", buffer, start + place[0])[0]


def width(place: Place) -> int:
    return struct.calcsize(LETTERS[place[1]])


def check_no_gap(found: dict[str, Place]) -> None:
    """Numbers follow one another from offset 0; the last row is what is not of a fixed width."""
    *numbers, last = found.values()
    end = 0
    for place in numbers:
        assert place[0] == end, place
        end += width(place)
    assert last[0] == end


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int, int], Segment]:
    """`make(number, size)`: a segment."""
    return lambda number, size: Segment.create(tmp_path / f"segment-{number}", size)


# --- the root ---------------------------------------------------------------------------------------------------------

WORDS = places("at", "type", "word", "says")
ONCE = {"magic", "layout version", "ring size", "epoch", "pid", "start time", "started", "history id", "durability"}
EPOCH, PID, START_TIME = 2**50 + 1, 4_000_001, 2**40 + 3


@pytest.fixture
def root(make: Callable[[int, int], Segment]) -> RootWriter:
    return RootWriter(make(0, ROOT_BYTES), EPOCH, PID, START_TIME, "process")


def test_what_a_root_begins_with_lies_where_the_page_says(root: RootWriter) -> None:
    written = root.segment.map
    rows = {row[2]: row[3] for row in table("at", "type", "word", "says")}
    assert written[:8].decode() == rows["magic"]
    assert read(written, WORDS["layout version"]) == MEMORY_VERSION
    assert read(written, WORDS["ring size"]) == ROOT_RING
    assert [read(written, WORDS[name]) for name in ("epoch", "pid", "start time")] == [EPOCH, PID, START_TIME]
    now_us = datetime.now(UTC).timestamp() * 1e6
    assert 0 <= now_us - read(written, WORDS["started"]) < 60e6
    for code, name in re.findall(r"(\d) (\w+)", rows["durability"]):
        assert config.DURABILITIES[int(code)] == name
    assert read(written, WORDS["durability"]) == config.DURABILITIES.index("process")
    assert f"1: superseded by a newer engine; {STOPPED}: stopped" in rows["successor"]
    assert SUPERSEDED == 1


def test_every_store_changes_the_words_that_the_page_names_and_nothing_else(root: RootWriter) -> None:
    big = 2**63 + 5
    stores: dict[tuple[str, ...], tuple[Callable[[], None], tuple[int, ...] | None]] = {
        ("live tail",): (lambda: root.move_tail(big), (big,)),
        ("head",): (lambda: (root.fill(a_root()), root.show())[0], None),
        ("readable from",): (lambda: root.expire(big), (big,)),
        ("forgotten",): (lambda: root.forget(big), (big,)),
        ("held bytes",): (lambda: root.hold(big), (big,)),
        ("session", "sequence", "deciding"): (lambda: root.begin_deciding(big, 7), (big, 7, 1)),
        ("successor",): (lambda: root.succeed(STOPPED), (STOPPED,)),
        ("sessions", "connected", "heartbeat period", "heartbeat"): (lambda: root.beat(3, 2, 1), None),
    }
    assert WORDS.keys() == {*ONCE, "ring", *(name for names in stores for name in names)}
    for names, (store, values) in stores.items():
        before = bytes(root.segment.map[: WORDS["ring"][0]])
        store()
        after = root.segment.map[: WORDS["ring"][0]]
        changed = {offset & -8 for offset in range(len(before)) if before[offset] != after[offset]}
        assert changed, names
        assert changed <= {WORDS[name][0] for name in names}, names
        if values is not None:
            assert tuple(read(after, WORDS[name]) for name in names) == values
    assert [read(root.segment.map, WORDS[name]) for name in ("sessions", "connected", "heartbeat period")] == [3, 2, 1]
    assert read(root.segment.map, WORDS["head"]) == 1
    root.remember(b"0123456789abcdef")
    at, size = WORDS["history id"]
    assert root.segment.map[at : at + int(size.removesuffix(" bytes"))] == b"0123456789abcdef"


def a_root(kinds: int = 3) -> Root:
    """Every field is another number."""
    fields = range(100, 100 + len(Root._fields) - 2)
    return Root(0, *fields, tuple((1_000 + kind, 2_000 + kind) for kind in range(kinds)))


def test_a_root_of_the_ring_lies_where_the_page_says(root: RootWriter) -> None:
    found = places("at", "type", "field", "says")
    check_no_gap(found)
    said = next(row[3] for row in table("at", "type", "word", "says") if row[2] == "ring")
    first, ring, step = map(int, re.fullmatch(r"root n lies at (\d+) \+ n % (\d+) \* (\d+)", said).groups())
    assert (first, ring) == (WORDS["ring"][0], ROOT_RING)
    wanted = a_root()
    for number in range(1, ROOT_RING + 3):
        root.fill(wanted)
        place = first + number % ring * step
        fields = {name: read(root.segment.map, found[name], place) for name in found if found[name][1] != "pairs"}
        of_the_code = {name.replace("_", " "): value for name, value in wanted._asdict().items() if name != "kinds"}
        assert fields == {**of_the_code, "number": number, "kinds": 3, "crc": fields["crc"]}
        pairs = place + found["kinds' counts"][0]
        assert tuple(struct.iter_unpack("<II", root.segment.map[pairs : pairs + 24])) == wanted.kinds
    assert found["kinds' counts"][0] + KINDS_MAX * 8 <= step
    assert first + ring * step == ROOT_BYTES


# --- the heap ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def heap(make: Callable[[int, int], Segment]) -> Iterator[HeapWriter]:
    small = Limits(heap_segment_bytes_first=4 * KIB, heap_segment_bytes_max=4 * KIB)
    with ThreadPoolExecutor(1) as beside:
        writer = HeapWriter(
            lambda number, size, _: make(number, size),
            small,
            beside,
            live_bytes=lambda: 0,
            has_free=lambda size: True,
        )
        yield writer
        beside.submit(lambda: None).result()


def test_a_prefix_lies_where_the_page_says(heap: HeapWriter) -> None:
    found = places("at", "type", "prefix", "says")
    *_, last = found.values()
    body = b"a body"
    first = heap.append(body, 7, 2**40)
    heap.flush()
    assert first & 0xFFFFFFFF == START == int(re.search(r"from offset (\d+) of each segment", PAGE)[1])
    written = heap.segments[1].map
    assert [read(written, place, START) for place in found.values()] == [len(body), 7, 2**40]
    behind = last[0] + width(last)
    assert written[START + behind : START + behind + len(body)] == body
    assert [place[0] for place in found.values()] == [0, 4, 8]
    assert f"fewer than {behind} bytes are left" in PAGE
    heap.append(bytes(3 * KIB), 0, 0)
    heap.reserve(3 * KIB, 1)
    end = 64 + 24 + 16 + 3 * KIB
    assert read(written, found["body length"], end) == END
    assert next(row[3] for row in table("at", "type", "prefix", "says")).startswith(f"{END:,}:")


def test_a_body_lies_where_the_page_says() -> None:
    found = places("at", "type", "body", "says")
    check_no_gap(found)
    texts = {
        "key": b"k" * 3, "actor": b"a" * 5, "reason": b"r" * 7, "request id": b"i" * 11, "cells": b"c" * 13,
        "old cells": b"o" * 17, "payload": b"p" * 19,
    }  # fmt: skip
    numbers = {
        "kind": 301, "schema": 302, "op": 3, "flags": 6, "revision": 2**40 + 1, "version": 2**40 + 2,
        "time": -(2**40), "session": 2**63 + 3, "sequence": 2**63 + 4,
    }  # fmt: skip
    body = record.pack(*numbers.values(), *texts.values())
    read_back = {name: read(body, place) for name, place in found.items() if place[1] != "bytes"}
    lengths = {f"{name} length": len(text) for name, text in texts.items()}
    assert read_back == {**numbers, **lengths, "length": len(body), "crc": read_back["crc"]}
    (order,) = [name for name, place in found.items() if place[1] == "bytes"]
    assert order.split(", ") == list(texts)
    assert body[found[order][0] :] == b"".join(texts.values())
    assert found[order][0] == record.HEADER_BYTES
    said = {row[2]: row[3] for row in table("at", "type", "body", "says")}
    assert {int(code): name for code, name in re.findall(r"(\d+) (\w+)", said["op"])} == {
        op.value: op.name.lower() for op in Op
    }
    named = re.fullmatch(r"(\d) tombstone, (\d) first and (\d) last of its request, (\d) relocated", said["flags"])
    assert tuple(map(int, named.groups())) == (Flags.DELETE, Flags.FIRST, Flags.LAST, Flags.RELOCATED)


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("level", "B", "enum", ("a", "b")),
    Column("on", "B", "bool"),
    Column("count", "q", "int"),
    Column("ratio", "d", "float"),
    Column("when", "q", "time"),
    Column("owner", "Q", "str"),
)


def test_a_chunk_lies_as_the_page_says(make: Callable[[int, int], Segment]) -> None:
    (_, head_type, head, _), (_, by_type, _, _), (_, alive_type, alive, _) = table(
        "order", "type", "array", "of a slot"
    )
    assert (head, by_type, alive) == ("head", "by type", "alive")
    types = {"enum": "u8", "bool": "u8", "int": "i64", "float": "f64", "time": "i64", "str": "u64"}
    made: list[Segment] = []
    writer = TableWriter(1, COLUMNS, lambda chunk, size: made.append(make(chunk, size)) or made[-1])
    writer.reserve(CHUNK_SLOTS + 1)
    cells = [2, 1, -3, 1.5, 4, 5]
    writer.install(CHUNK_SLOTS + 9, 2**40 + 1, list(enumerate(cells)), True)
    assert len(made) == 2
    at, found = 0, []
    for kind in (head_type, *(types[column.type] for column in COLUMNS), alive_type):
        found.append(read(made[1].map, (at + 9 * width((0, kind)), kind)))
        at += CHUNK_SLOTS * width((0, kind))
    assert found == [2**40 + 1, *cells, 1]
    assert at == offsets(COLUMNS)[-1]


def test_cells_are_what_the_page_says() -> None:
    rows = {row[0]: (row[1], row[2]) for row in table("column of", "cell", "None is")}
    for column, written in zip(COLUMNS, ("enum, literals", "bool", "int", "float", "datetime", "str"), strict=True):
        said, none = rows.pop(written)
        assert LETTERS[said.partition(":")[0]] == column.code
        nothing = column.cell()(None)
        assert math.isnan(nothing) if none == "NaN" else nothing == int(none.replace(",", "").replace("\u2212", "-"))
    assert not rows
    enum, boolean = COLUMNS[0].cell(), COLUMNS[1].cell()
    said = {row[0]: row[1] for row in table("column of", "cell", "None is")}
    assert said["enum, literals"].startswith("u8: 1 + position in the definition")
    assert (enum("a"), enum("b")) == (1, 2)
    assert said["bool"] == f"u8: {boolean(False)} false, {boolean(True)} true"
    assert COLUMNS[4].cell()(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)) == 1_000_000


# --- the index --------------------------------------------------------------------------------------------------------


def bits_of(whose: str, begins: str) -> tuple[int, int]:
    """Lowest bit and mask of the part that is called so."""
    parts = {}
    for said, part in table(f"bits of {whose}", "part"):
        high, low = map(int, said.split(" to "))
        parts[part] = low, (1 << high - low + 1) - 1
    assert sum(mask << low for low, mask in parts.values()) == 2**64 - 1, "every bit has its part"
    return next(place for part, place in parts.items() if part.startswith(begins))


def test_words_and_entries_of_an_index_are_what_the_page_says(make: Callable[[int, int], Segment]) -> None:
    segments: dict[int, Segment] = {}

    def remembered(number: int, size: int) -> Segment:
        segments[number] = make(number, size)
        return segments[number]

    writer = IndexWriter(remembered, lambda number: None)
    keys = [f"key {number}".encode() for number in range(20_000)]
    for slot, key in enumerate(keys):
        writer.reserve([key_hash(key)])
        writer.insert(key_hash(key), slot)
    assert len(segments) > 1
    segment, first, log2 = (
        bits_of("a word", begins) for begins in ("number of the segment", "first entry", "how many entries")
    )
    hashed, slot_bits = bits_of("an entry", "hash of the key"), bits_of("an entry", "slot + 1")
    for slot in range(0, len(keys), 97):
        wanted = key_hash(keys[slot])
        (word,) = struct.unpack_from("<Q", segments[0].map, (wanted & 0xFF) * 8)
        arena = segments[word >> segment[0] & segment[1]].map
        begin, entries = word >> first[0] & first[1], 1 << (word >> log2[0] & log2[1])
        place, slots = (wanted >> 8) % entries, []
        while (entry := struct.unpack_from("<Q", arena, (begin + place) * 8)[0]) != 0:
            if entry >> hashed[0] & hashed[1] == wanted:
                slots.append((entry >> slot_bits[0] & slot_bits[1]) - 1)
            place = (place + 1) % entries
        assert slot in slots
        assert entries >= 1 << FIRST_LOG2
    for said in ("the low 8 bits of its hash, the crc32", "entry (hash >> 8) % entries", "slot + 1"):
        assert said in PAGE


# --- log and catalog --------------------------------------------------------------------------------------------------


def test_the_revision_log_is_what_the_page_says(make: Callable[[int, int], Segment]) -> None:
    made: list[Segment] = []
    log = RevisionLogWriter(lambda number, size: made.append(make(number, size)) or made[-1])
    for number in range(1, 4):
        log.reserve()
        log.append(number, number * REVISION_LOG_STRIDE)
        log.append(number, number * REVISION_LOG_STRIDE + 8)
    assert [struct.unpack_from("<QQ", made[0].map, 16 * place) for place in range(3)] == [
        (number, number * REVISION_LOG_STRIDE) for number in range(1, 4)
    ]
    assert "Points of 16 bytes: u64 revision, u64 tail" in PAGE
    assert f"moved by {REVISION_LOG_STRIDE // KIB} KiB; {POINTS:,} points fill a segment" in PAGE


def test_the_catalog_is_what_the_page_says() -> None:
    schema = Schema(0, 0, "Doc", COLUMNS, {}, False)
    packed = catalogs.pack(Catalog(MEMORY_VERSION, ("Doc",), (schema,), (Table(4, COLUMNS),)))
    (length,) = struct.unpack_from("<I", packed)
    found = msgspec.msgpack.decode(packed[4 : 4 + length])
    said = re.search(r"a map of (`version`.*?)There is a new", PAGE, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", said)) == set(found)
    assert found["tables"][0][0] == 4


# --- segments and numbers ---------------------------------------------------------------------------------------------


def test_segments_have_the_names_and_sizes_that_the_page_gives(state: Path, client: Any) -> None:
    client.create(Task(title="x"))
    where = client.folder.whereabouts()
    sizes = {path.name: path.stat().st_size for path in Path(where.memory_dir).glob(f"{where.prefix}-*")}
    patterns = {
        row[1].partition(",")[0]: re.sub(r"<\w+>", r"\\d+", row[1].partition(",")[0])
        for row in table("segment", "name", "size")
    }
    for name in sizes:
        rest = name.removeprefix(f"{where.prefix}-")
        assert [pattern for pattern in patterns.values() if re.fullmatch(pattern, rest)], rest
    assert re.fullmatch(r"solewriter-[0-9a-f]{24}", where.prefix)
    said = {row[0]: row[2] for row in table("segment", "name", "size")}
    assert said["root"] == f"{sizes[f'{where.prefix}-root'] // KIB} KiB"
    chunk = offsets(Kind(Task).columns)[-1]
    assert said["table"].endswith(f"that of Task has {chunk // KIB:,} KiB")
    limits = Limits()
    assert said["heap"].startswith(f"{limits.heap_segment_bytes_first // MIB} MiB at first")
    assert f"{limits.heap_segment_bytes_max // MIB} MiB at most" in said["heap"]
    assert said["index"] == (
        f"{config.INDEX_ARENA_BYTES_FIRST // KIB} KiB at first, later half of what is in use, "
        f"{config.INDEX_ARENA_BYTES_MAX // MIB} MiB at most"
    )
    assert said["revision log"] == f"{config.REVISION_LOG_SEGMENT_BYTES // KIB} KiB"
    assert sizes[f"{where.prefix}-index-0-0"] == config.INDEX_ARENA_BYTES_FIRST
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in Path(where.memory_dir).glob(f"{where.prefix}-*"))


def test_the_numbers_are_those_of_the_code() -> None:
    rows = table("number", "in the code", "value")
    assert len(rows) > 10
    for _, name, value in rows:
        assert value == f"{getattr(config, name):,}", name
    assert f"above which memory is reclaimed | `RECLAIM_ABOVE` | {config.RECLAIM_ABOVE} |" in PAGE
    for said in (
        f"{config.CHUNK_SLOTS:,} slots and never moves",
        f"begins with {config.INDEX_WORDS} words",
        f"more than {config.RECLAIM_ABOVE} times those that live",
        f"after {Limits().wait_backstop_s} s at the latest",
        f"{ROOT_RING - 1} or more numbers on",
    ):
        assert said in re.sub(r"\s+", " ", PAGE), said


def test_what_is_overwritten_in_place_is_all_that_the_root_lets_be_overwritten() -> None:
    named = " ".join(row[0] for row in table("what", "width", "who stores it", "when"))
    for name in WORDS.keys() - ONCE - {"ring", "heartbeat period"}:
        assert name in named, name
