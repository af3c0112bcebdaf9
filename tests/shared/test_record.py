"""A record is the same wherever its bytes lie, and no damaged bit of it goes unnoticed."""

from __future__ import annotations

import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared import record
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.record import HEADER_BYTES, REVISION_OFFSET, Flags, Record

TEXT = st.characters(codec="utf-8")
U64 = st.integers(0, 2**64 - 1)
U16 = st.integers(0, 2**16 - 1)
PARTS = {
    "kind": U16,
    "schema": U16,
    "op": st.integers(0, 255),
    "flags": st.integers(0, 15),
    "revision": U64,
    "version": U64,
    "time_us": st.integers(-(2**63), 2**63 - 1),
    "session": U64,
    "sequence": U64,
    "key": st.text(TEXT, min_size=1, max_size=60),
    "actor": st.text(TEXT, max_size=20),
    "reason": st.text(TEXT, max_size=60),
    "request_id": st.text(TEXT, max_size=60),
    "cells": st.binary(max_size=40),
    "old_cells": st.binary(max_size=40),
    "payload": st.binary(max_size=200),
}
RECORDS = st.builds(Record, **PARTS)

SMALL = Record(
    1,
    2,
    3,
    Flags.FIRST | Flags.LAST,
    41,
    7,
    1_893_456_000_000_000,
    99,
    5,
    "käy",
    "ann",
    "why",
    "mine",
    b"cells",
    b"old",
    b"payload",
)


def body_of(one):
    texts = {name: getattr(one, name).encode() for name in ("key", "actor", "reason", "request_id")}
    return record.pack(*one._replace(**texts))


def offset_by_hand(buffer, offset, form):
    return struct.unpack_from(form, buffer, offset)[0]


# --- round trip -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(RECORDS)
def test_a_record_reads_back_as_it_was(one):
    body = body_of(one)
    assert record.is_whole(body)
    assert record.unpack(body) == one
    assert record.length_at(body, 0) == len(body)


@settings(max_examples=100, deadline=None)
@given(RECORDS, st.binary(max_size=30), st.binary(max_size=30))
def test_it_can_lie_anywhere_in_any_kind_of_memory(one, before, behind):
    body = body_of(one)
    start = len(before)
    whole = before + body + behind
    mapped = mmap.mmap(-1, len(whole))
    mapped[:] = whole
    for buffer in (whole, bytearray(whole), memoryview(whole), mapped):
        assert record.is_whole(buffer, start)
        assert record.unpack(buffer, start) == one
        assert record.length_at(buffer, start) == len(body)
        assert whole[start : start + record.length_at(buffer, start)] == body
    mapped.close()


@settings(max_examples=100, deadline=None)
@given(RECORDS, st.binary(max_size=30))
def test_what_is_read_in_part_is_the_same(one, before):
    whole, start = before + body_of(one), len(before)
    assert record.unpack_content(whole, start) == (
        one.kind,
        one.schema,
        one.deleted,
        one.revision,
        one.version,
        one.time_us,
        one.key,
        one.payload,
    )
    stored = (one.schema, one.version, one.deleted, one.cells, one.payload)
    assert record.stored_at(whole, start) == (len(whole) - start, *stored)
    assert record.key_at(whole, start) == one.key.encode()
    assert record.flags_at(whole, start) == one.flags
    assert record.deleted_at(whole, start) == one.deleted == bool(one.flags & Flags.DELETE)
    assert offset_by_hand(whole, start + REVISION_OFFSET, "<Q") == one.revision


def test_the_layout_is_the_one_that_is_written_down():
    body = body_of(SMALL)
    assert HEADER_BYTES == 68
    assert [offset_by_hand(body, place, "<H") for place in (8, 10)] == [1, 2]
    assert list(body[12:16]) == [3, 6, 4, 4]
    assert [offset_by_hand(body, place, "<Q") for place in (16, 24, 32, 40, 48)] == [
        41,
        7,
        1_893_456_000_000_000,
        99,
        5,
    ]
    assert body[HEADER_BYTES:] == "käyannwhymine".encode() + b"cellsoldpayload"


def test_each_flag_is_one_bit():
    assert [Flags.DELETE, Flags.FIRST, Flags.LAST, Flags.RELOCATED] == [1, 2, 4, 8]


def test_the_longest_texts_fit():
    one = SMALL._replace(
        key="k" * 255, request_id="é" * 127, actor="a" * 65_535, reason="r" * 65_535, payload=bytes(600_000)
    )
    assert record.unpack(body_of(one)) == one


@pytest.mark.parametrize(
    "too_much",
    [
        {"key": "k" * 256},
        {"request_id": "é" * 128},
        {"actor": "a" * 65_536},
        {"reason": "r" * 65_536},
        {"cells": bytes(65_536)},
        {"kind": 2**16},
        {"revision": 2**64},
        {"version": -1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_fit_is_never_cut(too_much):
    with pytest.raises(struct.error):
        body_of(SMALL._replace(**too_much))


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_single_flipped_bit_is_noticed():
    body = body_of(SMALL)
    behind = body + bytes(64)
    for bit in range(len(body) * 8):
        damaged = bytearray(behind)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not record.is_whole(damaged), f"bit {bit}"
        for read in (record.unpack, record.unpack_content):
            with pytest.raises(JournalCorrupt, match="offset 0") as damage:
                read(damaged, 0)
            assert damage.value.place == "offset 0"


def test_a_record_cut_short_at_any_byte_is_noticed():
    body = body_of(SMALL)
    for length in range(len(body)):
        assert not record.is_whole(body[:length])
        assert not record.is_whole(b"xxxxx" + body[:length], 5)
        with pytest.raises(JournalCorrupt):
            record.unpack(body[:length])
        with pytest.raises(JournalCorrupt):
            record.unpack_content(body[:length], 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_other_bytes_are_no_record(noise):
    assert not record.is_whole(noise)
    with pytest.raises(JournalCorrupt):
        record.unpack(noise)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, 10_000, 2**32 - 1])
def test_an_impossible_length_is_noticed(length):
    body = bytearray(body_of(SMALL))
    body[4:8] = length.to_bytes(4, "little")
    assert not record.is_whole(body)
