"""Any bytes, and what was valid and is damaged: every decoder gives a value, or one of the errors that it documents.

The short form runs with the suite, the same properties with a hundred times the examples are `heavy`.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solewriter.shared import handshake, record, wire, wirecheck, wireform
from solewriter.shared.config import FRAME_REQUESTS_MAX, MEMORY_VERSION, Limits
from solewriter.shared.errors import (
    BadRequest,
    EngineUnavailable,
    InvalidMutation,
    JournalCorrupt,
    LayoutMismatch,
    RequestTooLarge,
)
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Life, Private, SessionChange
from solewriter.shared.kinds.columns import Column
from solewriter.shared.memory import catalog
from solewriter.shared.memory.catalog import Catalog, Table
from solewriter.shared.models import Task
from solewriter.shared.registry import Registry
from solewriter.shared.request_ids import own_id

LIMITS = Limits()
EXAMPLES = pytest.mark.parametrize("examples", [80, pytest.param(8_000, marks=pytest.mark.long)])


# --- damage -----------------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


@st.composite
def damaged(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of these, after one to four of: a bit flipped, a length overwritten, cut, bytes put in, doubled, spliced."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["flip", "length", "cut", "insert", "double", "splice"]))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "length":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(EXTREMES) | st.integers(0, 2**64 - 1)) % 2 ** (8 * width)
            data[at : at + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=12))
        elif how == "double":
            data[at:at] = data[at : at + 32]
        elif how == "splice":
            data[at:] = draw(st.sampled_from(valid))[at:]
    return bytes(data)


def shaken(examples: int, strategy: st.SearchStrategy[bytes], check: Callable[[bytes], object]) -> None:
    """Check so many examples; whatever `check` raises is a failure."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def run(data: bytes) -> None:
        check(data)

    run()


# --- frames -----------------------------------------------------------------------------------------------------------


def a_request(value: object) -> object:
    return ([(3, "Task", "t", 1, {"metadata": {"x": value}}, "why", None)], [(1, "Task", "t", 2)], "mine", 7)


FRAMES = [
    pickle.dumps([a_request(value)] * count, 5)
    for value, count in [
        (None, 1), ([1, 2.5, True, b"b", "é", {"a": ()}], 1), (("x" * 300, 2**40, -1), 3), ([["ha"] * 9] * 9, 2),
        (list(range(40)), 1),
    ]
]  # fmt: skip
CODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
SOUP = st.lists(
    st.sampled_from(CODES) | st.sampled_from([b"\x01", b"x\n", b"1\n", b"\x8c\x02os", b"K\x01", b"\x94", b"(", b"]"])
    | st.binary(max_size=9),
    max_size=40,
).map(lambda parts: b"\x80\x05](" + b"".join(parts) + b"e.")  # fmt: skip


def check_frame(body: bytes) -> None:
    """Plain data within the caps, or a refusal; and the same as in any other life of the engine."""
    try:
        requests = wire.unpack_frame(body)
    except BadRequest:
        return
    assert 0 < len(requests) <= FRAME_REQUESTS_MAX
    budget = LIMITS.frame_nodes_max
    for request in requests:
        try:
            budget = wirecheck.check_request(request, budget, LIMITS)
        except (BadRequest, InvalidMutation, RequestTooLarge):
            budget -= wirecheck.count_parts(request, budget)
            continue
        finally:
            assert 0 <= budget <= LIMITS.frame_nodes_max
        plain_within_caps(request, LIMITS.frame_depth_max + 6)
        assert len(wireform.digest(request)) == 16


def plain_within_caps(value: object, depth: int) -> None:
    assert depth > 0
    assert type(value) in (dict, list, tuple, str, int, float, bool, bytes, type(None))
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            plain_within_caps(item, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            plain_within_caps(item, depth - 1)


@EXAMPLES
def test_damaged_frames_are_plain_data_or_refused(examples):
    shaken(examples, damaged(*FRAMES), check_frame)


def test_a_value_that_nothing_can_hold_is_refused_by_its_field():
    check_frame(pickle.dumps([a_request({"id": "\ud800"}), a_request({"id": [2**64]})], 5))


@EXAMPLES
def test_soups_of_opcodes_are_plain_data_or_refused(examples):
    shaken(examples, SOUP | st.binary(max_size=200), check_frame)


# --- replies and words ------------------------------------------------------------------------------------------------

REPLIES = [
    wire.pack_replies([(1, 0, 9, [(2, 77, "Task", "t")])]),
    wire.pack_replies([(2, 1, 9, ("NotFound", "no", {"id": "é"})), (3, 3, 9, None)]) + wire.pack_replies([]),
]
HELLO = handshake.Hello(wire=1, client_id="c", name="ünï", pid=7, first=3, instance="i", resends=True)
WELCOME = handshake.Welcome(ok=True, session=2**64 - 1, epoch=2, first=3, engine_pid=9, memory_epoch=4, window=256)
WORDS = [msgspec.msgpack.encode(words) for words in (HELLO, WELCOME)]
NESTED = st.integers(0, 30_000).map(lambda depth: WORDS[0][:1] + b"\xa1x" + b"\x91" * depth + b"\xc0" + WORDS[0][1:])


def check_replies(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        replies = wire.unpack_replies(buffer)
    except LayoutMismatch:
        return
    assert all(type(one.sequence) is int and type(one.status) is int for one in replies)
    assert data.endswith(buffer)


def check_words(data: bytes) -> None:
    try:
        assert type(handshake.unpack_hello(data)) is handshake.Hello
    except BadRequest:
        pass
    try:
        assert type(handshake.unpack_welcome(data)) is handshake.Welcome
    except LayoutMismatch:
        pass


@EXAMPLES
def test_any_replies_are_replies_or_of_another_layout(examples):
    bodies = st.binary(max_size=60).map(lambda body: struct.pack("<I", len(body)) + body)
    shaken(examples, damaged(*REPLIES) | st.binary(max_size=60) | bodies, check_replies)


@EXAMPLES
def test_any_words_are_a_hello_or_a_welcome_or_refused(examples):
    shaken(examples, damaged(*WORDS) | st.binary(max_size=60) | NESTED, check_words)


@pytest.mark.parametrize("inside", [b"\x91" * 60_000 + b"\xc0", b"\x81\xc0" * 30_000 + b"\xc0", b"\xa1\xff"])
def test_a_hello_that_is_nested_deep_or_no_text_is_refused(inside):
    known = msgspec.msgpack.encode({**msgspec.structs.asdict(HELLO), "name": "NAME"})
    for body in (b"\x88" + known[1:] + b"\xa1x" + inside, known.replace(b"\xa4NAME", inside)):
        check_words(body)
    with pytest.raises(BadRequest, match="cannot be read"):
        handshake.unpack_hello(known.replace(b"\xa4NAME", inside))


@pytest.mark.parametrize("length", [handshake.HANDSHAKE_BYTES_MAX + 1, 2**32 - 1])
def test_words_longer_than_any_are_refused_by_their_header(length):
    with pytest.raises(BadRequest, match="bound"):
        handshake.words_length(struct.pack("<I", length))


# --- what is stored ---------------------------------------------------------------------------------------------------

BODIES = [
    record.pack(1, 2, 3, 3, 9, 4, 5, 6, 7, "clé".encode(), b"actor", "raison é".encode(), b"", b"c" * 8, b"", b"\x80"),
    record.pack(0, 0, 6, 1, 1, 1, 0, 2**64 - 1, 0, b"k", b"", b"", b"mine", b"", b"old", b""),
]
SAID = [
    Private(),
    Private(
        outcomes=[(1, 2, 0, 3, [(1, 0, "Task", "t")], None, None), (1, 3, 1, 3, ("NotFound", "é", {}), "x", b"d" * 16)],
        sessions=[SessionChange(1, "c", "n", 2, 3, "i")],
        kinds=["Task"],
        schemas=[Registry().of(Task).schema],
        life=Life(1, b"h" * 16, "power", "boot", drained=False),
        slots={0: 7},
    ),
]
ENTRIES = [entries.pack(7, 9, 5, 11, BODIES[:count], said)[0] for count, said in enumerate(SAID, 1)]
HEADER = entries.file_header(b"s" * 16, 7, 11)


def with_its_crc(data: bytes, crc_at: int, begin: int, length_at: int) -> bytes:
    """The same, made whole again: damage that no checksum sees."""
    if len(data) < length_at + 4:
        return data
    length = int.from_bytes(data[length_at : length_at + 4], "little")
    end = length if begin <= length <= len(data) else len(data)
    whole = bytearray(data)
    whole[length_at : length_at + 4] = end.to_bytes(4, "little")
    whole[crc_at : crc_at + 4] = crc32(whole[begin:end]).to_bytes(4, "little")
    return bytes(whole)


def check_entry(data: bytes) -> None:
    for one in (data, with_its_crc(data, 4, 8, 8)):
        try:
            found = entries.unpack(one, 0)
            if found is not None:
                for body in found[0].records():
                    check_record(body)
            entries.later_entry(one, 0, 0)
        except JournalCorrupt:
            pass


def check_header(data: bytes) -> None:
    try:
        assert len(entries.read_file_header(Path("journal-x.log"), data).state_id) == 16
    except (JournalCorrupt, LayoutMismatch):
        pass


def check_record(data: bytes) -> None:
    for one in (data, with_its_crc(data, 0, 4, 4)):
        whole = record.is_whole(one)
        for read in (lambda one: record.unpack(one), lambda one: record.unpack_content(one, 0)):
            try:
                read(one)
                assert whole
            except JournalCorrupt:
                pass


@EXAMPLES
def test_any_entry_is_read_or_none_or_corrupt(examples):
    shaken(examples, damaged(*ENTRIES) | st.binary(max_size=120), check_entry)


@EXAMPLES
def test_any_file_header_is_read_or_corrupt(examples):
    shaken(examples, damaged(HEADER) | st.binary(max_size=FILE_HEADER_BYTES * 2), check_header)


@EXAMPLES
def test_any_record_is_read_or_corrupt(examples):
    shaken(examples, damaged(*BODIES) | st.binary(max_size=160), check_record)


@pytest.mark.parametrize(
    "said",
    [b"\xc1", b"\x81\xa8outcomes\x07", b"\x81\xa5kinds\x91\xa1\xff", b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0", b""],
)
def test_an_entry_that_is_whole_and_says_what_cannot_be_read_is_corrupt(said):
    """Not an error of the decoder: recovery has to name it."""
    length = entries.HEAD_BYTES + len(said)
    rest = struct.pack("<IIQQqII", length, 0, 7, 9, 0, 0, len(said)) + said
    data = struct.pack("<II", entries.ENTRY_MAGIC, crc32(rest)) + rest
    entry, _, _ = entries.unpack(b"\0" * 64 + data, 64)
    with pytest.raises(JournalCorrupt, match="entry 7") as corrupt:
        entry.private  # noqa: B018 (decoded when it is asked for)
    assert corrupt.value.place == "entry 7"


@pytest.mark.parametrize("bodies", [b"\0" * 80, b"\0" * 3, BODIES[0] + b"\0" * 8, BODIES[0][:-1]])
def test_an_entry_whose_records_do_not_add_up_is_corrupt(bodies):
    """A length of zero would never end."""
    entry, _, _ = entries.unpack(entries.pack(7, 9, 0, 0, [bodies], Private())[0], 0)
    with pytest.raises(JournalCorrupt, match="entry 7"):
        list(entry.records())


@pytest.mark.parametrize("place", ["key", "actor", "reason", "request_id"])
def test_a_record_whose_text_is_none_is_corrupt(place):
    texts = {"key": b"k", "actor": b"a", "reason": b"r", "request_id": b"i", place: b"\xff"}
    body = record.pack(1, 2, 3, 3, 9, 4, 5, 6, 7, *texts.values(), b"", b"", b"")
    assert record.is_whole(body)
    with pytest.raises(JournalCorrupt, match="text"):
        record.unpack(body)
    if place == "key":
        with pytest.raises(JournalCorrupt, match="text"):
            record.unpack_content(body, 0)


# --- small things -----------------------------------------------------------------------------------------------------

CATALOGS = [
    catalog.pack(one)
    for one in (
        catalog.EMPTY,
        Catalog(MEMORY_VERSION, ("Task", "é"), (), (Table(1, (Column("status", "B", "enum", ("a", 1)),)),)),
    )
]
NAMED = msgspec.json.encode(Whereabouts(MEMORY_VERSION, 1, 2, 3, "/dev/shm", "solewriter-x"))


def check_catalog(data: bytes) -> None:
    try:
        assert catalog.unpack(data).version == MEMORY_VERSION
    except LayoutMismatch:
        pass


@EXAMPLES
def test_any_catalog_is_read_or_of_another_layout(examples):
    shaken(examples, damaged(*CATALOGS) | st.binary(max_size=60), check_catalog)


@EXAMPLES
def test_any_engine_json_names_an_engine_or_says_that_none_is_there(examples, tmp_path):
    folder = StateFolder(tmp_path)

    def check(data: bytes) -> None:
        folder.engine_json.write_bytes(data)
        with contextlib.suppress(EngineUnavailable):
            assert type(folder.whereabouts()) is Whereabouts
        folder.marker("x").write_bytes(data)
        assert len(folder.markers()) <= 1

    shaken(examples, damaged(NAMED) | st.binary(max_size=60), check)


@EXAMPLES
def test_any_text_is_an_id_of_ours_or_somebody_elses(examples):
    def check(data: bytes) -> None:
        found = own_id(data.decode(errors="replace")[:60])
        assert found is None or (0 <= found[0] < 2**64 and found[1] >= 0)

    shaken(examples, damaged(b"0123456789abcdef-77") | st.binary(max_size=60), check)
