"""A checkpoint: all entities at one revision as a file, in the form in which memory has them.

    file   = header | blocks | directory
    header = magic u64 | version u32 | crc u32 | state id, 16 bytes | entry u64 | offset of the directory u64
             | its length u32 | its crc u32 | zeros to 64

Little-endian. The header's crc is over all that follows it. The directory is msgpack (`Directory`): it says what is
there and where, and sums up every block, so its crc stands for the whole file. A section is what goes into one place in
memory, cut into blocks of a mebibyte, each compressed by itself: one frame of Zstandard (RFC 8878). In format 1 it was
a stream of zlib (RFC 1950), which took four times as long to make and twice to read; it is still read. Heap segments
are whole, prefixes included, their records' `previous` 0; heads, cells and live bytes are those of the table's chunks.
So a checkpoint is put back by copying; nothing in it is decoded but the keys.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
from zlib_ng.zlib_ng import crc32

from solewriter.shared import record
from solewriter.shared.config import (
    BLOCK_BYTES,
    CHECKPOINT_LEVEL,
    CHECKPOINT_THREADS,
    CHECKPOINT_VERSION,
    CHUNK_SLOTS,
)
from solewriter.shared.errors import UNDECODABLE, JournalCorrupt, LayoutMismatch, check_depth
from solewriter.shared.journal.blockloader import BlockLoader
from solewriter.shared.journal.entry import CheckpointName
from solewriter.shared.kinds.columns import Column
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX, PREFIX_BYTES, START, address_of, padded
from solewriter.shared.system.files import files_named

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = int.from_bytes(b"solechkp", "little")
_HEADER = struct.Struct("<QII16sQQII")
_SUMMED = struct.Struct("<16sQQII")
HEADER_BYTES = 64

Write = Callable[[bytes, int], None]
"""Puts bytes at an offset; called from any thread"""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """A part of a section, as it is stored."""

    offset: int
    length: int
    crc: int


class Section(msgspec.Struct, frozen=True, array_like=True):
    """What goes into one place; its bytes are those of its blocks, decompressed."""

    size: int
    blocks: list[Block]


Wanted = tuple[Section, Write, int]
"""A section, and where it goes: what it is written with, and at which offset"""


class IndexImage(msgspec.Struct, frozen=True):
    """An index: its arena's segments in order, the words first in the first one."""

    counts: list[int]  # keys in each region
    used: int  # entries of the last segment
    segments: list[Section]


class TableImage(msgspec.Struct, frozen=True):
    """A kind: the columns that it is stored with, its keys by slot (None for a slot that nobody has), its chunks."""

    columns: tuple[Column, ...]
    places: int
    alive: int
    keys: Section  # msgpack of a list
    chunks: list[list[Section]]  # of each chunk the heads, each column, the live bytes
    index: IndexImage
    anew: list[int]  # slots whose cells have to be made of their records


class Directory(msgspec.Struct, frozen=True):
    """What a checkpoint holds."""

    revision: int
    time_us: int
    kinds: list[str]
    schemas: list[Schema]
    heap: list[Section]
    live_bytes: int  # of records that are no tombstones
    tombstone_bytes: int
    tables: list[TableImage]
    digest: bytes  # of the state: see `statedigest`


def checkpoint_path(folder: Path, entry: int) -> Path:
    """The path of the checkpoint behind an entry."""
    return folder / f"checkpoint-{entry:020d}"


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by the entries that they were taken behind, the oldest first."""
    paths = files_named(folder, "checkpoint-*")
    return {entry: path for path in paths if (entry := entry_named(path.name)) is not None}


def entry_named(name: str) -> int | None:
    """The entry that a checkpoint was taken behind, by its name; None where that is another file's."""
    number = name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else None


# --- writing ---------------------------------------------------------------------------------------------------------


class CheckpointWriter:
    """Writes a new file, section after section; threads compress one while the next one is put together."""

    def __init__(self, path: Path, state_id: bytes) -> None:
        self._state_id = state_id
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._offset = HEADER_BYTES
        self._pool = ThreadPoolExecutor(CHECKPOINT_THREADS, "checkpoint")
        self._pending: tuple[Section, list[Future[bytes]]] | None = None

    def add(self, content: bytes | bytearray | memoryview) -> Section:
        """The next section, whose content does not change any more. Where its blocks went it knows when the next one
        comes, or with `finish`.
        """
        whole = memoryview(content).cast("B")
        pieces = [whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES)]
        blocks = [self._pool.submit(zstd.compress, piece, CHECKPOINT_LEVEL) for piece in pieces]
        self._write_pending()
        section = Section(len(whole), [])
        self._pending = section, blocks
        return section

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        section, blocks = self._pending
        self._pending = None
        for block in blocks:
            stored = block.result()
            self._write(stored, self._offset)
            section.blocks.append(Block(self._offset, len(stored), crc32(stored)))
            self._offset += len(stored)

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written

    def finish(self, entry: int, directory: Directory) -> CheckpointName:
        """The directory and the header, all of it on disk."""
        self._write_pending()
        packed = msgspec.msgpack.encode(directory)
        self._write(packed, self._offset)
        rest = _SUMMED.pack(self._state_id, entry, self._offset, len(packed), crc32(packed))
        head = struct.pack("<QII", MAGIC, CHECKPOINT_VERSION, crc32(rest)) + rest
        self._write(head.ljust(HEADER_BYTES, b"\0"), 0)
        os.fsync(self._fd)
        return CheckpointName(entry, crc32(packed))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        os.close(self._fd)


def _decompress(stored: bytes, version: int) -> bytes | None:
    """A block's content; None if it is none."""
    try:
        if version == 1:
            return zlib.decompress(stored)
        decompressor = zstd.ZstdDecompressor()
        raw = decompressor.decompress(stored, BLOCK_BYTES)
        return raw if decompressor.eof and not decompressor.unused_data else None
    except (zlib.error, zstd.ZstdError):
        return None


# --- reading ---------------------------------------------------------------------------------------------------------


class Checkpoint:
    """A file, read. Raises FileNotFoundError, JournalCorrupt naming the place, LayoutMismatch for a newer format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> None:
        head = self._read(HEADER_BYTES, 0)
        if len(head) < HEADER_BYTES:
            raise self._damaged("is shorter than its header", 0)
        magic, version, crc, self.state_id, self.entry, offset, length, self.crc = _HEADER.unpack_from(head)
        if magic == MAGIC and version > CHECKPOINT_VERSION:
            raise LayoutMismatch(
                f"{self.path.name} has checkpoint format {version}; this version of solewriter reads up to "
                f"{CHECKPOINT_VERSION}"
            )
        self._version = version
        if magic != MAGIC or version < 1 or crc != crc32(head[16 : _HEADER.size]) or any(head[_HEADER.size :]):
            raise self._damaged("has a damaged header", 0)
        packed = self._read(length, offset)
        if len(packed) != length or crc32(packed) != self.crc or os.fstat(self._fd).st_size != offset + length:
            raise self._damaged("has a damaged directory", offset)
        try:
            self.directory = msgspec.msgpack.decode(packed, type=Directory)
        except UNDECODABLE as error:
            check_depth(error)
            raise self._damaged(f"has a directory that cannot be read ({error})", offset) from error

    @property
    def name(self) -> CheckpointName:
        return CheckpointName(self.entry, self.crc)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def bytes_of(self, section: Section) -> bytes:
        return b"".join(map(self._raw, section.blocks))

    def fill(self, wanted: Iterable[Wanted]) -> BlockLoader:
        """Begin to put sections where they belong. Before this is closed, end what is returned."""
        return BlockLoader(self._write_block, _placed_blocks(wanted))

    def _write_block(self, one: PlacedBlock) -> None:
        raw = self._raw(one.block)
        if len(raw) != one.length:
            raise self._damaged("has a block of another size than its directory says", one.block.offset)
        one.write(raw, one.offset)

    def _raw(self, block: Block) -> bytes:
        stored = self._read(block.length, block.offset)
        if len(stored) == block.length and crc32(stored) == block.crc:
            raw = _decompress(stored, self._version)
            if raw is not None:
                return raw
        raise self._damaged("has a damaged block", block.offset)

    def _read(self, length: int, offset: int) -> bytes:
        """What the disk does not give back is damaged like what it gives back as something else."""
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._damaged(f"cannot be read ({error.strerror})", offset) from error

    def sections(self) -> Iterator[Section]:
        """All of them."""
        yield from self.directory.heap
        for table in self.directory.tables:
            yield table.keys
            yield from table.index.segments
            for chunk in table.chunks:
                yield from chunk

    def keys(self, kind: int) -> list[str | None]:
        """The keys of a kind by slot; None where nobody has one."""
        return msgspec.msgpack.decode(self.bytes_of(self.directory.tables[kind].keys), type=list[str | None])

    def record_of(self, kind: int, key: str) -> record.Record | None:
        """The record of one key; None if there is none."""
        keys = self.keys(kind) if kind < len(self.directory.tables) else []
        if key not in keys:
            return None
        slot = keys.index(key)
        heads = self.bytes_of(self.directory.tables[kind].chunks[slot // CHUNK_SLOTS][0])
        address = int.from_bytes(heads[slot % CHUNK_SLOTS * 8 :][:8], "little")
        segment = self.bytes_of(self.directory.heap[(address >> 32) - 1])
        return record.unpack(segment, (address & OFFSET_MASK) + PREFIX_BYTES)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(slot, body) of everything, tombstones included. Raises JournalCorrupt."""
        for _, slot, body in self.placed_records():
            yield slot, body

    def placed_records(self) -> Iterator[tuple[int, int, bytes]]:
        """(address, slot, body) of every record, tombstones included. Raises JournalCorrupt."""
        for number, section in enumerate(self.directory.heap, 1):
            segment, at = self.bytes_of(section), START
            while at < section.size:
                length, slot, _ = PREFIX.unpack_from(segment, at)
                body = segment[at + PREFIX_BYTES : at + PREFIX_BYTES + length]
                if not record.is_whole(body):
                    raise self._damaged("has a record that fails its checksum", section.blocks[0].offset)
                yield address_of(number, at), slot, body
                at += padded(length)

    def heads(self, kind: int) -> memoryview[int]:
        """The addresses of a kind's records by slot; 0 where nobody has one."""
        parts = [self.bytes_of(chunk[0]) for chunk in self.directory.tables[kind].chunks]
        return memoryview(b"".join(parts)).cast("Q")

    def verify(self) -> None:
        """Read everything. Raises JournalCorrupt naming the first bad place."""
        for section in self.sections():
            if sum(len(self._raw(block)) for block in section.blocks) != section.size:
                raise self._damaged("has a section of another size than its directory says", section.blocks[0].offset)

    def _damaged(self, what: str, offset: int) -> JournalCorrupt:
        return JournalCorrupt(f"{self.path.name} {what}", place=f"{self.path.name}:{offset}")

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PlacedBlock(NamedTuple):
    """A block, and where its bytes go."""

    block: Block
    length: int
    write: Write
    offset: int


def _placed_blocks(wanted: Iterable[Wanted]) -> Iterator[PlacedBlock]:
    for section, write, offset in wanted:
        for number, block in enumerate(section.blocks):
            start = number * BLOCK_BYTES
            yield PlacedBlock(block, min(BLOCK_BYTES, section.size - start), write, offset + start)
