"""Makes one checkpoint, in a process beside the engine (`maker`).

It reads shared memory through a pin, as any reader does, so the engine neither waits nor knows. What it writes is on
disk and was read back before it says so; the engine gives it its name. Nothing of the memory is held behind its end.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.engine_proc.checkpointing.image import DEAD, UNKNOWN, CellBlock, HeapImage, KindImage
from solewriter.shared import failpoint, record
from solewriter.shared.config import CHECKPOINT_NICE, CHECKPOINT_PIECE_SLOTS, HEAP_SEGMENT_SHARE
from solewriter.shared.errors import SolewriterError
from solewriter.shared.journal.checkpoint import Checkpoint, CheckpointWriter, Directory
from solewriter.shared.journal.statedigest import DigestOfState
from solewriter.shared.kinds.columns import format_of
from solewriter.shared.memory.heap import padded
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.view import View


class Order(msgspec.Struct, frozen=True):
    """What to make of which memory."""

    path: bytes  # of the new file
    memory_dir: str
    prefix: str
    state_id: bytes
    segment_bytes: tuple[int, int]  # of the heap, at least and at most
    engine: int  # its pid: nobody else waits for this
    nice: int = CHECKPOINT_NICE
    unknown: tuple[int, ...] = ()  # the kinds whose classes the engine does not know


class Made(msgspec.Struct, frozen=True):
    """The name and the size of a checkpoint that was written."""

    entry: int
    crc: int
    size: int
    live_bytes: int  # of the records in it, as memory has them
    revision: int
    time_us: int


class EngineGone(SolewriterError):
    """Nobody waits for this checkpoint any more."""


def make(order: Order, is_wanted: Callable[[], bool] = lambda: True) -> Made:
    """Write the current revision, while it is wanted. Raises OSError, SolewriterError, and leaves no file then."""
    pin = View(order.memory_dir, order.prefix).pin()
    path = Path(os.fsdecode(order.path))
    try:
        return _write_and_verify(path, pin, order, is_wanted)
    except (OSError, SolewriterError):
        path.unlink(missing_ok=True)
        raise


def _write_and_verify(path: Path, pin: Pin, order: Order, is_wanted: Callable[[], bool]) -> Made:
    writer = CheckpointWriter(path, order.state_id)
    time_us = time.time_ns() // 1000
    try:
        directory = _write_state(writer, pin, order, time_us, is_wanted)
        failpoint.reach("checkpoint.written")
        name = writer.finish(pin.root.entry, directory)
    finally:
        writer.close()
    failpoint.reach("checkpoint.synced")
    with Checkpoint(path) as made:
        made.verify()
        return Made(name.entry, name.crc, made.size, directory.live_bytes, pin.root.revision, time_us)


def _write_state(
    writer: CheckpointWriter, pin: Pin, order: Order, time_us: int, is_wanted: Callable[[], bool]
) -> Directory:
    """Write the heap's and the tables' sections; what the file's end says of them."""
    least, most = order.segment_bytes
    span = sum(segment.size for segment in pin.heap.values())
    heap = HeapImage(writer.add, min(max(least, span // HEAP_SEGMENT_SHARE), most))
    digest, live_bytes, dead_bytes, tables = DigestOfState(), 0, 0, []
    for kind, (places, alive) in enumerate(pin.root.kinds):
        image = KindImage(pin.catalog.tables[kind].columns, places)
        for piece in _pieces(pin, kind, is_wanted, is_known=kind not in order.unknown):
            image.put_all(piece.slots, piece.keys, heap.append_all(piece.bodies, piece.slots), piece.cells)
            live = [body for body, cells in zip(piece.bodies, piece.cells, strict=True) if cells is not DEAD]
            dead = [body for body, cells in zip(piece.bodies, piece.cells, strict=True) if cells is DEAD]
            live_bytes += sum(map(padded, map(len, live)))
            dead_bytes += sum(map(padded, map(len, dead)))
            digest.add_all(live)
        tables.append(image.finish(writer.add, alive))
    return Directory(
        pin.root.revision, time_us, list(pin.catalog.kinds), list(pin.catalog.schemas), heap.finish(), live_bytes,
        dead_bytes, tables, digest.digest(),
    )  # fmt: skip


class _Piece(NamedTuple):
    """Records of one chunk, tombstones included, in the order of their slots."""

    slots: list[int]
    bodies: list[bytes]
    keys: list[bytes]
    cells: list[CellBlock]


def _pieces(pin: Pin, kind: int, is_wanted: Callable[[], bool], *, is_known: bool = True) -> Iterator[_Piece]:
    """All records of a kind. Raises SnapshotExpired, JournalCorrupt, EngineGone."""
    behind, cells_of, parts_of = pin.slots(kind), _cutter(pin, kind, is_known), record.BEFORE_CELLS.unpack_from
    for first in range(0, behind, CHECKPOINT_PIECE_SLOTS):
        if not is_wanted():
            raise EngineGone("the engine is gone")
        slots = range(first, min(first + CHECKPOINT_PIECE_SLOTS, behind))
        piece = _Piece([], [], [], [])
        for slot, address in zip(slots, pin.at_all(kind, slots), strict=True):
            if not address:
                continue
            body = pin.body(address)
            _, schema, flags, key_length, *before = parts_of(body)
            cells_at = record.HEADER_BYTES + key_length
            key = body[record.HEADER_BYTES : cells_at]
            if flags & record.Flags.DELETE:
                if _lives_elsewhere(pin, kind, address, body):
                    continue
                cells: CellBlock = DEAD
            else:
                cells = cells_of(slot, address, schema, body, cells_at + sum(before))
            piece.slots.append(slot)
            piece.bodies.append(body)
            piece.keys.append(key)
            piece.cells.append(cells)
        if piece.slots:
            yield piece


def _lives_elsewhere(pin: Pin, kind: int, address: int, tombstone: bytes) -> bool:
    """Whether a key was made again in another slot. A pin that outlived the tables finds what it had by its records
    alone, and among them tombstones that were forgotten before.
    """
    found = pin.find(kind, record.key_at(tombstone, 0).decode())
    return found not in (0, address) and pin.content(found).version > record.version_at(tombstone, 0)


def _cutter(pin: Pin, kind: int, is_known: bool) -> Callable[[int, int, int, bytes, int], CellBlock]:
    """The function from a record (slot, address, schema, body, and where in it cells begin) to its cells: its own, if
    it was written with the table's columns; those that the engine's class, where one is known, made of it, where they
    are still this record's.
    """
    columns = pin.catalog.tables[kind].columns
    same = {schema.code for schema in pin.catalog.schemas if schema.kind == kind and schema.columns == columns}
    packed = struct.Struct(format_of(columns))
    size = packed.size

    def cells_of(slot: int, address: int, schema: int, body: bytes, start: int) -> CellBlock:
        if schema in same:
            return body[start : start + size]
        if not is_known:
            return UNKNOWN
        try:
            table = pin.live_table(kind)
            cells = [table.cell(slot, number) for number in range(len(columns))]
            return packed.pack(*cells) if table.head(slot) == address else UNKNOWN
        except FileNotFoundError:  # its columns are others by now
            return UNKNOWN

    return cells_of
