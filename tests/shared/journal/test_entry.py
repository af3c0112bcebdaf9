"""A journal entry is whole or it is none: cut short, overwritten or flipped in one bit, it is noticed."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared import record
from solewriter.shared.config import JOURNAL_VERSION
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch
from solewriter.shared.journal import entry
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, HEAD_BYTES, Life, Outcome, Private, SessionChange, Slots
from solewriter.shared.kinds.columns import Column
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.models import Task

U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
DETAILS = st.none() | st.lists(st.lists(U64, max_size=2), max_size=2) | st.dictionaries(TEXT, TEXT, max_size=2)
OUTCOMES = st.builds(
    Outcome, U64, U64, st.integers(0, 4), U64, DETAILS, st.none() | TEXT, st.none() | st.binary(max_size=16)
)
SCHEMAS = st.builds(
    Schema,
    code=st.integers(0, 9),
    kind=st.integers(0, 9),
    name=TEXT,
    columns=st.lists(
        st.builds(Column, name=TEXT, code=st.just("B"), type=st.just("enum"), values=st.just(("a", 1)))
    ).map(tuple),
    defaults=st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | st.lists(TEXT, max_size=2), max_size=2),
    stamped=st.booleans(),
)
LIVES = st.builds(Life, epoch=U64, history=st.binary(max_size=16), durability=TEXT, boot=TEXT, drained=st.booleans())
PRIVATES = st.builds(
    Private,
    outcomes=st.lists(OUTCOMES, max_size=3),
    sessions=st.lists(
        st.builds(
            SessionChange, session=U64, client_id=TEXT, name=TEXT, epoch=U64, last_sequence=st.integers(-1, 2**63)
        ),
        max_size=2,
    ),
    forgotten_sessions=st.lists(U64, max_size=2),
    fenced_ids=st.lists(TEXT, max_size=2),
    kinds=st.lists(TEXT, max_size=2),
    schemas=st.lists(SCHEMAS, max_size=1),
    life=st.none() | LIVES,
    known=st.none()
    | st.builds(Slots, kind=st.integers(0, 9), slots=st.binary(max_size=9), lengths=st.binary(max_size=9)),
)
BODIES = st.lists(
    st.builds(
        lambda key, payload: record.pack(1, 2, 3, 0, 4, 5, 6, 7, 8, key.encode(), b"", b"", b"", b"", b"", payload),
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.binary(max_size=40),
    ),
    max_size=4,
)

BODY = record.pack(0, 0, 1, 6, 1, 1, 1_893_456_000_000_000, 2, 3, b"t-1", b"ann", b"", b"", b"", b"", b"\x80")
SMALL, SMALL_CRC = entry.pack(
    7, 3, 1_893_456_000_000_000, 0xABCD, [BODY], Private(outcomes=[Outcome(2, 3, 0, 1, None)])
)
STATE = b"0123456789abcdef"
PLACE = Path("/state/journal-1.log")


# --- entries ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(U64, U64, st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), BODIES, PRIVATES, st.integers(0, 3))
def test_an_entry_reads_back_as_it_was(number, revision, time_us, previous, bodies, private, before):
    packed, crc = entry.pack(number, revision, time_us, previous, bodies, private)
    assert len(packed) % 8 == 0
    start = before * 8
    found, expected, behind = entry.unpack(bytes(start) + packed + b"\0" * 16, start)
    assert (found.number, found.revision, found.time_us, found.crc) == (number, revision, time_us, crc)
    assert (expected, behind) == (previous, start + len(packed))
    assert list(found.records()) == bodies
    assert found.private == private


def test_entries_lie_one_behind_another():
    packed, crc = entry.pack(8, 4, 0, SMALL_CRC, [], Private())
    found, _, behind = entry.unpack(SMALL + packed, 0)
    following, previous, end = entry.unpack(SMALL + packed, behind)
    assert (found.number, following.number) == (7, 8)
    assert previous == found.crc == SMALL_CRC
    assert (following.crc, end) == (crc, len(SMALL + packed))
    assert list(following.records()) == []


def test_every_single_flipped_bit_is_noticed():
    length = struct.unpack_from("<I", SMALL, 8)[0]
    for bit in range(length * 8):
        damaged = bytearray(SMALL + bytes(64))
        damaged[bit // 8] ^= 1 << bit % 8
        assert entry.unpack(bytes(damaged), 0) is None, f"bit {bit}"
    assert SMALL[length:] == bytes(len(SMALL) - length)


def test_an_entry_cut_short_at_any_byte_is_none():
    length = struct.unpack_from("<I", SMALL, 8)[0]
    for cut in range(length):
        assert entry.unpack(SMALL[:cut], 0) is None
        assert entry.unpack(b"12345678" + SMALL[:cut], 8) is None
    assert entry.unpack(SMALL[:length], 0) is not None


def test_an_entry_followed_by_zeros_from_any_byte_on_is_none():
    for cut in range(len(SMALL)):
        torn = SMALL[:cut] + bytes(len(SMALL) - cut)
        assert (entry.unpack(torn, 0) is None) == (torn != SMALL)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 8))
def test_other_bytes_are_no_entry(noise, start):
    assert entry.unpack(noise, start) is None
    assert entry.unpack(bytes(200), start) is None


def test_lengths_that_do_not_add_up_are_no_entry():
    for place in (8, 40, 44):
        for wrong in (0, 1, HEAD_BYTES, 2**32 - 1):
            damaged = bytearray(SMALL)
            damaged[place : place + 4] = wrong.to_bytes(4, "little")
            assert entry.unpack(bytes(damaged), 0) is None


def test_a_private_part_of_a_newer_engine_is_read_as_far_as_it_is_known():
    class Newer(Private, frozen=True):
        colours: tuple[str, ...] = ()

    packed, _ = entry.pack(1, 0, 0, 0, [], Newer(fenced_ids=["x"], colours=("green",)))
    assert entry.unpack(packed, 0)[0].private == Private(fenced_ids=["x"])


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 2**20)), min_size=1, max_size=9), st.data())
def test_slots_of_records_read_back_as_they_were_and_count_only_where_they_fit(told, data):
    slots, lengths = ([*one] for one in zip(*told, strict=True))
    packed, _ = entry.pack(1, 0, 0, 0, [], Private(known=Slots.of(3, slots, lengths)))
    known = entry.unpack(packed, 0)[0].changes.known
    assert known.kind == 3
    assert [[*one] for one in known.unpack(sum(lengths))] == [slots, lengths]
    assert known.unpack(sum(lengths) + 1) == ((), ())
    cut = data.draw(st.integers(1, len(known.slots)))
    for other in (Slots(3, known.slots[cut:], known.lengths), Slots(3, known.slots[cut:], known.lengths[cut:])):
        assert other.unpack(sum(lengths)) == ((), ())


def test_a_schema_travels_in_the_private_part():
    schema = Kind(Task).schema
    packed, _ = entry.pack(1, 0, 0, 0, [], Private(kinds=["Task"], schemas=[schema]))
    (learned,) = entry.unpack(packed, 0)[0].private.schemas
    assert learned.digest() == schema.digest()
    assert learned.columns == schema.columns


def test_an_empty_private_part_takes_one_byte():
    packed, _ = entry.pack(1, 1, 1, 0, [], Private())
    assert struct.unpack_from("<I", packed, 8)[0] == HEAD_BYTES + 1


# --- what lies behind a bad one ---------------------------------------------------------------------------------------


def chain(first, count, crc=0):
    """Entries of several lengths, one behind another, and where each begins."""
    choose = random.Random(first * 1000 + count)
    whole, starts = b"", []
    for number in range(first, first + count):
        starts.append(len(whole))
        packed, crc = entry.pack(number, number, 0, crc, [BODY] * choose.randrange(3), Private())
        whole += packed
    return whole, starts


@pytest.mark.parametrize("bad", range(5))
def test_a_whole_entry_behind_a_bad_one_is_found(bad):
    whole, starts = chain(1, 6)
    damaged = bytearray(whole)
    damaged[starts[bad] + 9] ^= 1
    assert entry.later_entry(bytes(damaged), starts[bad], bad) == starts[bad + 1]


def test_behind_the_last_entry_there_is_none():
    whole, starts = chain(1, 6)
    damaged = bytearray(whole + bytes(1000))
    damaged[starts[5] + 9] ^= 1
    assert entry.later_entry(bytes(damaged), starts[5], 5) is None
    assert entry.later_entry(whole + bytes(1000), len(whole), 6) is None
    assert entry.later_entry(b"", 0, 0) is None


def test_what_was_there_before_is_no_proof_of_damage():
    whole, starts = chain(1, 6)
    older, _ = chain(1, 3)
    assert entry.later_entry(whole[: starts[3]] + b"12345678" + older, starts[3], 3) is None


def test_only_an_aligned_entry_counts():
    whole, _ = chain(9, 1)
    assert entry.later_entry(b"SWJE" + bytes(4) + whole, 0, 1) == 8
    assert entry.later_entry(b"1234" + whole, 0, 1) is None


# --- file headers -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=16, max_size=16), U64, st.integers(0, 2**32 - 1))
def test_a_file_header_reads_back_as_it_was(state, first, previous):
    header = entry.file_header(state, first, previous)
    assert len(header) == FILE_HEADER_BYTES
    assert entry.read_file_header(PLACE, header + b"more") == (state, first, previous)


def test_every_flipped_bit_of_a_file_header_is_noticed():
    header = entry.file_header(STATE, 9, 8)
    for bit in range(44 * 8):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((JournalCorrupt, LayoutMismatch), match=r"journal-1\.log"):
            entry.read_file_header(PLACE, bytes(damaged))
    assert header[44:] == bytes(20)


@pytest.mark.parametrize("length", [0, 1, FILE_HEADER_BYTES - 1])
def test_a_file_shorter_than_its_header_is_corrupt(length):
    with pytest.raises(JournalCorrupt, match="shorter") as damage:
        entry.read_file_header(PLACE, entry.file_header(STATE, 1, 0)[:length])
    assert damage.value.place == "journal-1.log:0"


def test_a_zero_filled_file_is_corrupt():
    with pytest.raises(JournalCorrupt, match="damaged"):
        entry.read_file_header(PLACE, bytes(4096))


def test_a_newer_format_is_another_library_not_damage():
    header = bytearray(entry.file_header(STATE, 1, 0))
    header[8:12] = (JOURNAL_VERSION + 1).to_bytes(4, "little")
    with pytest.raises(LayoutMismatch, match=f"format {JOURNAL_VERSION + 1}.*up to {JOURNAL_VERSION}"):
        entry.read_file_header(PLACE, bytes(header))
