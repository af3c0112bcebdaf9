"""Makes one checkpoint, as a short-lived process of low priority: `python -m solewriter.engine_proc.checkpoint`.

It reads shared memory through a pin, as any reader does, so the engine neither waits nor knows. What it writes is on
disk and was read back before it says so; the engine gives it its name. If its engine dies, it ends as well; if it is
killed, nothing but an unfinished file is left, which goes then, or with the next start.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from solewriter.engine_proc.image import HeapImage, KindImage
from solewriter.shared import failpoint, record
from solewriter.shared.checkpoint import Checkpoint, CheckpointWriter, DigestOfState, Directory
from solewriter.shared.columns import Cell, unpacked
from solewriter.shared.config import HEAP_SEGMENT_SHARE
from solewriter.shared.errors import SolewriterError
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX_BYTES, padded
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.view import View

NICE = 5  # on busy processors still a fifth of one: a checkpoint that is never done would be a replay that never is
WHY_MAX = 500  # characters of what a failed one said
LOOK_EVERY = 4_096  # slots between two looks whether the engine still lives


class Order(msgspec.Struct, frozen=True):
    """What to make of which memory."""

    path: str  # of the new file
    memory_dir: str
    prefix: str
    state_id: bytes
    segment_bytes: tuple[int, int]  # of the heap, at least and at most
    engine: int  # its pid: nobody else waits for this


class Made(msgspec.Struct, frozen=True):
    """What was made."""

    entry: int
    crc: int
    size: int
    revision: int
    time_us: int


class EngineGone(SolewriterError):
    """Nobody waits for this checkpoint any more."""


def make(order: Order, is_wanted: Callable[[], bool] = lambda: True) -> Made:
    """Write the current revision, while it is wanted. Raises OSError, SolewriterError, and leaves no file then."""
    pin = View(order.memory_dir, order.prefix).pin()
    path = Path(order.path)
    try:
        return _made(path, pin, order, is_wanted)
    except (OSError, SolewriterError):
        path.unlink(missing_ok=True)
        raise


def _made(path: Path, pin: Pin, order: Order, is_wanted: Callable[[], bool]) -> Made:
    writer = CheckpointWriter(path, order.state_id)
    time_us = time.time_ns() // 1000
    try:
        directory = _written(writer, pin, order, time_us, is_wanted)
        failpoint.reach("checkpoint.written")
        name = writer.finish(pin.root.entry, directory)
    finally:
        writer.close()
    failpoint.reach("checkpoint.synced")
    with Checkpoint(path) as made:
        made.verify()
        return Made(name.entry, name.crc, made.size, pin.root.revision, time_us)


def _written(
    writer: CheckpointWriter, pin: Pin, order: Order, time_us: int, is_wanted: Callable[[], bool]
) -> Directory:
    least, most = order.segment_bytes
    span = sum(segment.size for segment in pin.heap.values())
    heap = HeapImage(writer.add, min(max(least, span // HEAP_SEGMENT_SHARE), most))
    digest, sizes, tables = DigestOfState(), {False: 0, True: 0}, []
    for kind, (places, alive) in enumerate(pin.root.kinds):
        image = KindImage(pin.catalog.tables[kind].columns, places)
        for slot, at, body in _records(pin, kind, is_wanted):
            deleted = record.deleted_at(body, 0)
            if deleted and _lives_elsewhere(pin, kind, at, body):
                continue
            address = heap.append(body, slot)
            image.put(slot, record.key_at(body, 0), address, _cells(pin, kind, slot, at, body), not deleted)
            sizes[deleted] += padded(len(body))
            if not deleted:
                digest.add(body)
        tables.append(image.finish(writer.add, alive))
    return Directory(
        pin.root.revision, time_us, list(pin.catalog.kinds), list(pin.catalog.schemas), heap.finish(), sizes[False],
        sizes[True], tables, digest.digest(),
    )  # fmt: skip


def _records(pin: Pin, kind: int, is_wanted: Callable[[], bool]) -> Iterator[tuple[int, int, bytes]]:
    """(slot, address, body) of every record of a kind, tombstones included. Raises SnapshotExpired, EngineGone."""
    for slot in range(pin.slots(kind)):
        if slot % LOOK_EVERY == 0 and not is_wanted():
            raise EngineGone("the engine is gone")
        if address := pin.at(kind, slot):
            segment, start = pin.segment(address >> 32), (address & OFFSET_MASK) + PREFIX_BYTES
            body = segment.map[start : start + record.length_at(segment.bytes, start)]
            if not record.checked(body):
                pin.content(address)  # says why: it was taken away, or is damaged
            yield slot, address, body


def _lives_elsewhere(pin: Pin, kind: int, address: int, tombstone: bytes) -> bool:
    """Whether a key was made again in another slot. A pin that outlived the tables finds what it had by its records
    alone, and among them tombstones that were forgotten before.
    """
    found = pin.find(kind, record.key_at(tombstone, 0).decode())
    return found not in (0, address) and pin.content(found).version > record.version_at(tombstone, 0)


def _cells(pin: Pin, kind: int, slot: int, address: int, body: bytes) -> Sequence[Cell] | None:
    """The cells of a record: its own, if it was written with the table's columns; those that the engine's class made of
    it, where they are still this record's; else None.
    """
    if record.deleted_at(body, 0):
        return ()
    columns = pin.catalog.tables[kind].columns
    _, schema, _, _, block, _ = record.held(body, 0)
    if pin.catalog.schemas[schema].columns == columns:
        return unpacked(columns, block)
    try:
        table = pin.live_table(kind)
        cells = [table.cell(slot, number) for number in range(len(columns))]
        return cells if table.head(slot) == address else None
    except FileNotFoundError:  # its columns are others by now
        return None


class Maker:
    """Has checkpoints made, each by a process of its own that is waited for."""

    def __init__(self) -> None:
        self._ends = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __call__(self, order: Order) -> Made:
        """Raises EngineGone after `close`, OSError with the reason if it failed."""
        with self._ends:
            if self._closed:
                raise EngineGone("the engine ends")
            child = self._child = subprocess.Popen(
                [sys.executable, "-m", "solewriter.engine_proc.checkpoint"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        said, why = child.communicate(msgspec.msgpack.encode(order))
        if child.returncode and self._closed:
            raise EngineGone("the engine ends")
        if child.returncode:
            raise OSError(f"status {child.returncode}: {why.decode(errors='replace').strip()[-WHY_MAX:]}")
        return msgspec.msgpack.decode(said, type=Made)

    def close(self) -> None:
        """End the process that makes one."""
        with self._ends:
            self._closed = True
            if self._child is not None and self._child.returncode is None:
                self._child.kill()


def main() -> int:
    """Take the order from standard input; say on standard output what was made."""
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # the engine's own bound is against hostile frames
    try:
        order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
        made = make(order, lambda: os.getppid() == order.engine)
    except (OSError, SolewriterError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
