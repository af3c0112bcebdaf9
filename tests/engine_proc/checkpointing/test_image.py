"""What an image was made of is found again in the checkpoint that it was written to."""

from __future__ import annotations

import random
import struct

import pytest

from solewriter.engine_proc.checkpointing.image import DEAD, UNKNOWN, HeapImage, KindImage
from solewriter.shared import record
from solewriter.shared.config import CHUNK_SLOTS, KIB
from solewriter.shared.journal.checkpoint import Checkpoint, CheckpointWriter, Directory
from solewriter.shared.kinds.columns import Column
from solewriter.shared.memory.heap import START, padded

STATE = b"0123456789abcdef"
SIZE = Column("size", "q", "int")


def body_of(slot, size=20, flags=6):
    payload = random.Random(slot).randbytes(size)
    return record.pack(0, 0, 1, flags, slot + 1, 1, 0, 2, slot, b"k%d" % slot, b"", b"", b"", b"", b"", payload)


def block_of(slot):
    return struct.pack("<q", slot)


@pytest.fixture
def written(tmp_path):
    """`written(bodies, places, segment_bytes)`: a checkpoint of one kind with these bodies by slot."""
    opened = []

    def write(bodies, places, segment_bytes=4 * KIB, cells=block_of):
        writer = CheckpointWriter(tmp_path / f"checkpoint-{len(opened)}", STATE)
        heap, kind = HeapImage(writer.add, segment_bytes), KindImage((SIZE,), places)
        for piece in {slot // CHUNK_SLOTS for slot in bodies}:
            slots = [slot for slot in sorted(bodies) if slot // CHUNK_SLOTS == piece]
            found = [bodies[slot] for slot in slots]
            kind.put_all(
                slots, [record.key_at(body, 0) for body in found], heap.append_all(found, slots), [*map(cells, slots)]
            )
        table = kind.finish(writer.add, len(bodies))
        writer.finish(1, Directory(1, 0, ["Kind"], [], heap.finish(), 0, 0, [table], bytes(16)))
        writer.close()
        opened.append(Checkpoint(tmp_path / f"checkpoint-{len(opened)}"))
        return opened[-1]

    yield write
    for one in opened:
        one.close()


def test_every_record_is_found_by_its_key_and_in_its_order(written):
    bodies = {slot: body_of(slot, 20 + slot) for slot in range(0, 200, 2)}
    one = written(bodies, 200)
    one.verify()
    assert len(one.directory.heap) > 2, "it went on in another segment"
    assert dict(one.records()) == bodies
    for slot, body in bodies.items():
        assert one.record_of(0, f"k{slot}") == record.unpack(body)
    for kind, key in ((0, "k1"), (0, ""), (1, "k0")):
        assert one.record_of(kind, key) is None


def test_a_record_is_found_in_any_chunk_of_the_table(written):
    bodies = {slot: body_of(slot) for slot in (0, CHUNK_SLOTS - 1, CHUNK_SLOTS, CHUNK_SLOTS + 5)}
    one = written(bodies, CHUNK_SLOTS + 6)
    assert [len(chunk) for chunk in one.directory.tables[0].chunks] == [3, 3]
    for slot, body in bodies.items():
        assert one.record_of(0, f"k{slot}") == record.unpack(body)


def test_a_record_larger_than_a_segment_gets_one_of_its_own(written):
    bodies = {0: body_of(0), 1: body_of(1, 5 * KIB), 2: body_of(2)}
    one = written(bodies, 3)
    assert [section.size for section in one.directory.heap] == [START + padded(len(body)) for body in bodies.values()]
    assert dict(one.records()) == bodies
    first = written({0: body_of(0, 5 * KIB)}, 1)
    assert len(first.directory.heap) == 1, "no empty one before it"


def test_cells_that_the_maker_does_not_know_are_made_when_it_is_put_back(written):
    bodies = {slot: body_of(slot, flags=7 if slot == 2 else 6) for slot in range(4)}
    one = written(bodies, 4, cells=lambda slot: {1: UNKNOWN, 2: DEAD}.get(slot, block_of(slot * 10)))
    table = one.directory.tables[0]
    assert table.anew == [1]
    _, cells, live = (one.bytes_of(section) for section in table.chunks[0])
    assert struct.unpack("4q", cells) == (0, 0, 0, 30)
    assert list(live) == [1, 1, 0, 1]
