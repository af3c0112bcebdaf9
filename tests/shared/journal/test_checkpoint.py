"""A checkpoint that says what no engine wrote is refused with its place, though every sum in it is right."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zlib
from array import array
from zlib import crc32

import msgspec
import pytest

from solewriter.agents.verify import check_places
from solewriter.shared import record
from solewriter.shared.config import CHECKPOINT_THREADS, CHECKPOINT_VERSION, MIB
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch
from solewriter.shared.journal import checkpoint as checkpoints
from solewriter.shared.journal.checkpoint import (
    Block,
    Checkpoint,
    CheckpointWriter,
    Directory,
    IndexImage,
    Section,
    TableImage,
)
from solewriter.shared.memory.heap import PREFIX, START, address_of, padded

STATE = b"0123456789abcdef"
BODY = record.pack(0, 0, 1, 6, 1, 1, 0, 2, 3, b"t-1", b"ann", b"", b"", b"", b"", b"\x80")
HEAD = address_of(1, START)
LONG = os.urandom(MIB) + b"x" * 1_000  # two blocks


def segment_of(body):
    return bytearray(START) + PREFIX.pack(len(body), 0, 0) + body + bytes(padded(len(body)) - PREFIX.size - len(body))


@pytest.fixture
def write(tmp_path):
    """`write(heap, directory)`: the path of a checkpoint with these heap segments, or whatever `directory` makes of
    the sections that were written.
    """

    def written(heap, directory=lambda heap: Directory(1, 0, [], [], heap, 0, 0, [], bytes(16))):
        path = tmp_path / "checkpoint-1"
        path.unlink(missing_ok=True)
        writer = CheckpointWriter(path, STATE)
        writer.finish(1, directory([writer.add(one) for one in heap]))
        writer.close()
        return path

    return written


def other(**changes):
    """A directory whose first section says something else."""
    return lambda heap: Directory(
        1, 0, [], [], [msgspec.structs.replace(heap[0], **changes), *heap[1:]], 0, 0, [], bytes(16)
    )


def test_what_was_written_is_read(write):
    with Checkpoint(write([segment_of(BODY), LONG])) as one:
        one.verify()
        first, second = one.directory.heap
        assert [*checkpoints.Checkpoint.bytes_of(one, first)] == [*segment_of(BODY)]
        whole = bytearray(first.size + second.size + 8)
        with one.fill([(second, put_into(whole), first.size + 8), (first, put_into(whole), 0)]) as filling:
            filling.finish()
        assert whole == bytes(segment_of(BODY)) + bytes(8) + LONG


def put_into(whole):
    """Writes bytes at an offset of these."""

    def write(content, offset):
        whole[offset : offset + len(content)] = content

    return write


def test_who_gives_up_waits_for_what_was_begun_and_for_nothing_else(write, wait_until):
    """And Python's threads take turns as before."""
    gate, written = threading.Event(), []

    def slowly(content, offset):
        assert gate.wait(60)
        written.append(offset)

    def open_the_gate(filling):
        wait_until(lambda: filling._pending[-1].cancelled(), 20, "what was not begun is called off")
        gate.set()

    before = sys.getswitchinterval()
    with Checkpoint(write([LONG * 8])) as one:
        with one.fill([(one.directory.heap[0], slowly, 0)]) as filling:
            assert sys.getswitchinterval() < before
            later = threading.Thread(target=open_the_gate, args=[filling])
            later.start()
        later.join()
        assert len(written) <= CHECKPOINT_THREADS < len(one.directory.heap[0].blocks)
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("length", [0, 1, checkpoints.HEADER_BYTES - 1])
def test_a_file_shorter_than_its_header_is_damaged(tmp_path, length):
    path = tmp_path / "checkpoint-1"
    path.write_bytes(bytes(length))
    with pytest.raises(JournalCorrupt, match="shorter than its header") as caught:
        Checkpoint(path)
    assert caught.value.place == "checkpoint-1:0"


@pytest.mark.parametrize("version", [CHECKPOINT_VERSION + 1, 2**32 - 1])
def test_a_newer_format_is_another_library_not_damage(write, version):
    path = write([LONG])
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", version))
    with pytest.raises(LayoutMismatch, match=f"checkpoint format {version}"):
        Checkpoint(path)


def test_a_directory_that_was_flipped_in_one_bit_is_damage(write):
    path = write([LONG])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalCorrupt, match="damaged directory"):
        Checkpoint(path)


@pytest.mark.parametrize("directory", [{}, {"revision": "x"}, [], "directory"], ids=repr)
def test_a_directory_that_no_engine_wrote_is_damage(write, directory):
    with pytest.raises(JournalCorrupt, match="directory that cannot be read"):
        Checkpoint(write([LONG], lambda heap: directory))


@pytest.mark.parametrize("size", [len(LONG) - 1, len(LONG) + 1])
def test_a_section_of_another_size_is_damage_however_it_is_read(write, size):
    with Checkpoint(write([LONG], other(size=size))) as one:
        with pytest.raises(JournalCorrupt, match="section of another size"):
            one.verify()
        with (
            one.fill([(one.directory.heap[0], put_into(bytearray(size)), 0)]) as filling,
            pytest.raises(JournalCorrupt, match="block of another size"),
        ):
            filling.finish()


def with_block(path, stored, version=CHECKPOINT_VERSION):
    """The file with this as its only block, and its sum right."""
    offset = checkpoints.HEADER_BYTES
    with Checkpoint(path) as one:
        directory = msgspec.structs.replace(
            one.directory, heap=[Section(7, [Block(offset, len(stored), crc32(stored))])]
        )
    packed = msgspec.msgpack.encode(directory)
    rest = struct.pack("<16sQQII", STATE, 1, offset + len(stored), len(packed), crc32(packed))
    head = struct.pack("<QII", checkpoints.MAGIC, version, crc32(rest)) + rest
    path.write_bytes(head.ljust(offset, b"\0") + stored + packed)
    return path


def test_what_was_compressed_by_the_first_format_is_read(write):
    with Checkpoint(with_block(write([LONG]), zlib.compress(b"content"), version=1)) as one:
        one.verify()
        assert one.bytes_of(one.directory.heap[0]) == b"content"


FRAME = checkpoints.zstd.compress(b"content")


@pytest.mark.parametrize(
    ("version", "stored"),
    [
        (1, b""), (1, b"no zlib"), (1, zlib.compress(b"content")[:-3]),
        (2, b""), (2, b"no frame"), (2, FRAME[:-3]), (2, FRAME + b"more"), (2, zlib.compress(b"content")),
    ],
)  # fmt: skip
def test_a_block_that_was_never_compressed_is_damage(write, version, stored):
    with (
        Checkpoint(with_block(write([LONG]), stored, version)) as one,
        pytest.raises(JournalCorrupt, match="damaged block") as caught,
    ):
        one.verify()
    assert caught.value.place == f"checkpoint-1:{checkpoints.HEADER_BYTES}"


def test_a_record_that_fails_its_checksum_is_damage_whatever_the_blocks_say(write):
    with Checkpoint(write([segment_of(BODY)])) as one:
        assert list(one.records()) == [(0, BODY)]
    flipped = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with Checkpoint(write([segment_of(flipped)])) as one, pytest.raises(JournalCorrupt, match="fails its checksum"):
        list(one.records())


@pytest.mark.parametrize(
    ("keys", "heads", "alive", "problem"),
    [
        (["t-1", None], [HEAD, 0], 1, None),
        (["t-2", None], [HEAD, 0], 1, "does not find 't-1' where it lies"),
        ([None, "t-1"], [0, HEAD], 1, "does not find 't-1' where it lies"),
        (["t-1", None], [HEAD + 8, 0], 1, "does not find 't-1' where it lies"),
        (["t-1", "t-2"], [HEAD, HEAD], 1, "has other entities than it says"),
        (["t-1", None], [HEAD, 0], 2, "has other entities than it says"),
    ],
)
def test_verify_finds_a_record_that_is_not_where_its_slot_says(tmp_path, keys, heads, alive, problem):
    """Every sum is right: whoever made it was wrong."""
    writer = CheckpointWriter(tmp_path / "checkpoint-1", STATE)
    heap, slots = [writer.add(segment_of(BODY))], writer.add(array("Q", heads))
    table = TableImage(
        (), len(keys), alive, writer.add(msgspec.msgpack.encode(keys)), [[slots, writer.add(bytes(len(keys)))]],
        IndexImage([], 0, []), [],
    )  # fmt: skip
    writer.finish(1, Directory(1, 0, ["Task"], [], heap, 0, 0, [table], bytes(16)))
    writer.close()
    with Checkpoint(tmp_path / "checkpoint-1") as one:
        if problem is None:
            check_places(one)
            return
        with pytest.raises(JournalCorrupt, match=problem):
            check_places(one)
