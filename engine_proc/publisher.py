"""The writing half of the shared memory: appends records, makes a turn visible, wakes whoever waits.

Three steps, in this order, and nothing else ever writes there. `heap.reserve` and `heap.append` put records behind the
tail, where nobody looks; `reserve` makes sure that what follows cannot fail; `publish`, after the commit, moves the
tail, installs heads, cells and keys, and shows the new root by one store. Until `publish`, `reset` undoes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from solewriter.engine_proc.reclaim import Dropped, Reclaimer, Usage
from solewriter.shared import failpoint
from solewriter.shared.config import MEMORY_VERSION, Limits
from solewriter.shared.errors import MemoryFull
from solewriter.shared.folder import Whereabouts
from solewriter.shared.kinds.columns import Cells, Column
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory import catalog as catalogs
from solewriter.shared.memory.catalog import Catalog, Table
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX_BYTES, START, HeapWriter, address_of
from solewriter.shared.memory.index import IndexWriter, key_hash
from solewriter.shared.memory.revlog import RevisionLogWriter
from solewriter.shared.memory.root import ROOT_BYTES, STOPPED, SUPERSEDED, Root, RootWriter
from solewriter.shared.memory.segment import Segment, has_free, remove_segments, segment_path
from solewriter.shared.memory.table import TableWriter

if TYPE_CHECKING:
    from mmap import mmap

Columnar = tuple[TableWriter, IndexWriter[Segment]]
"""Where the entities of one kind are found"""


class Installed(msgspec.Struct, frozen=True, gc=False):
    """One record as the memory needs it: where it is, what its slot shall say, and what it takes the place of."""

    kind: int
    slot: int
    address: int
    cells: Cells  # those that are new
    new_key: bytes | None  # of a slot that is used for the first time
    alive: bool
    size: int  # bytes in the heap
    overtaken: int  # the same of the slot's record before it; 0: there is none
    overtaken_alive: bool  # and whether that was no tombstone


class Publisher:
    """All segments of one epoch, where its `own` whereabouts say. Raises MemoryFull where room is made, never in
    `publish`.
    """

    def __init__(self, own: Whereabouts, durability: str, limits: Limits, beside: Executor) -> None:
        self.prefix = own.prefix
        self._folder = own.memory_dir
        self._beside = beside
        self._tables: list[TableWriter] = []
        self._indexes: list[IndexWriter[Segment]] = []
        self._catalog_number = 0
        self._generations = 0  # of all tables
        root = self._make(ROOT_BYTES, "root")
        self.root = RootWriter(root, own.epoch, own.pid, own.start_time, durability)
        self.usage = Usage()
        self.heap = HeapWriter(
            lambda number, size, spare: Segment.create(self.path("heap", number), size, spare),
            limits,
            beside,
            live_bytes=self.usage.live,
            has_free=lambda size: has_free(self._folder, size),
        )
        self.reclaimer = Reclaimer(self.heap, self.usage, limits, self._tables)
        self.revlog = RevisionLogWriter(lambda number, size: self._make(size, "revlog", number))

    def _make(self, size: int, *parts: object) -> Segment:
        return Segment.create(self.path(*parts), size)

    def path(self, *parts: object) -> Path:
        return segment_path(self._folder, self.prefix, *parts)

    def add_table(self, columns: Sequence[Column], made: Columnar | None = None) -> None:
        """The table and index of the next kind, where need be made now. Raises MemoryFull."""
        table, index = made or self.new_table(len(self._tables), columns)
        self._tables.append(table)
        self._indexes.append(index)

    def new_table(self, kind: int, columns: Sequence[Column]) -> Columnar:
        """A table and an index for a kind that is not there yet. Raises MemoryFull."""
        index = IndexWriter(
            lambda number, size: self._make(size, "index", kind, number),
            lambda number: self.path("index", kind, number).unlink(),
            self._beside,
        )
        return self._table(kind, columns), index

    def remove_new_table(self, kind: int, made: Columnar) -> None:
        """Remove a table and an index from `new_table` that are not used after all."""
        self.remove_table(kind, made[0])
        remove_segments(self._folder, f"{self.prefix}-index-{kind}")

    def table(self, kind: int) -> TableWriter:
        return self._tables[kind]

    def index(self, kind: int) -> IndexWriter[Segment]:
        return self._indexes[kind]

    def _table(self, kind: int, columns: Sequence[Column]) -> TableWriter:
        generation = self._generations = self._generations + 1
        return TableWriter(
            generation,
            columns,
            lambda chunk, size: self._make(size, "table", kind, generation, chunk),
            self._beside,
        )

    def other_table(self, kind: int, columns: Sequence[Column], slots: int) -> TableWriter:
        """A table of the same slots with other columns, to be filled, and then used by `replace_table`. Raises
        MemoryFull.
        """
        table = self._table(kind, columns)
        try:
            table.reserve(slots)
        except MemoryFull:
            self.remove_table(kind, table)
            raise
        return table

    def replace_table(self, kind: int, table: TableWriter) -> None:
        """Use this table from now on. Snapshots that never looked into the old one walk their records instead."""
        self.remove_table(kind, self._tables[kind])
        self._tables[kind] = table

    def remove_table(self, kind: int, table: TableWriter) -> None:
        table.end()
        remove_segments(self._folder, f"{self.prefix}-table-{kind}-{table.generation}")

    def columns(self, kind: int) -> tuple[Column, ...]:
        return self._tables[kind].columns

    def describe(self, kinds: Sequence[str], schemas: Sequence[Schema]) -> None:
        """A new catalog of kinds, seen with the next publish. Raises MemoryFull."""
        self.prepare_catalog(kinds, schemas, self._tables)
        self.use_catalog()

    def prepare_catalog(self, kinds: Sequence[str], schemas: Sequence[Schema], tables: Sequence[TableWriter]) -> None:
        """The next catalog, for `use_catalog` or `drop_catalog`. Raises MemoryFull."""
        layouts = tuple(Table(table.generation, table.columns) for table in tables)
        body = catalogs.pack(Catalog(MEMORY_VERSION, tuple(kinds), tuple(schemas), layouts))
        segment = self._make(len(body), "catalog", self._catalog_number + 1)
        segment.map[: len(body)] = body

    def use_catalog(self) -> None:
        self._catalog_number += 1

    def drop_catalog(self) -> None:
        self.path("catalog", self._catalog_number + 1).unlink(missing_ok=True)

    def newest(self, kind: int, slot: int) -> tuple[int, mmap, int]:
        """A slot's newest published record: its address, and where its body lies."""
        address = self._tables[kind].head(slot)
        return address, self.heap.segments[address >> 32].map, (address & OFFSET_MASK) + PREFIX_BYTES

    def at(self, address: int) -> tuple[mmap, int]:
        """Where the body at an address lies."""
        return self.heap.segments[address >> 32].map, (address & OFFSET_MASK) + PREFIX_BYTES

    # --- before the commit -------------------------------------------------------------------------------------------

    def reserve(self, slots: Mapping[int, int], new_keys: dict[int, list[tuple[bytes, int]]]) -> None:
        """Make sure of room for the new keys of each kind, in so many slots, and for a point of the revision log."""
        for kind, keys in new_keys.items():
            self._tables[kind].reserve(slots[kind])
            try:
                self._indexes[kind].tidy()  # first: it makes no room for what comes
            except MemoryFull:
                pass  # later: nothing depends on it
            self._indexes[kind].reserve([key_hash(key) for key, _ in keys])
        self.revlog.reserve()

    def reset(self, tail: int) -> None:
        """Forget what was appended since the tail stood there."""
        self.heap.reset(tail)

    # --- after the commit --------------------------------------------------------------------------------------------

    def publish(
        self, installed: Sequence[Installed], revision: int, entry: int, kinds: Sequence[tuple[int, int]]
    ) -> None:
        """Make a committed turn visible as a whole."""
        self.heap.flush()
        tail = self.heap.tail
        self.root.move_tail(tail)
        failpoint.reach("publish.tail-moved")
        self.usage.count_installed(installed)
        for one in installed:
            self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
            if one.new_key is not None:
                self._indexes[one.kind].insert(key_hash(one.new_key), one.slot)
        failpoint.reach("publish.installed")
        self.revlog.append(revision, tail)
        self._fill(revision, entry, kinds)
        failpoint.reach("publish.filled")
        self.root.show()
        failpoint.reach("publish.shown")
        self.root.wake()

    def _fill(self, revision: int, entry: int, kinds: Sequence[tuple[int, int]]) -> None:
        self.root.fill(
            Root(
                0, revision, entry, self.reclaimer.oldest, self.reclaimer.whole, self.heap.tail, self.heap.first,
                self.heap.last, self._catalog_number, self.revlog.first, self.revlog.points, tuple(kinds),
            )
        )  # fmt: skip

    def reclaim(
        self, written: int, revision: int, entry: int, kinds: Callable[[], Sequence[tuple[int, int]]]
    ) -> Sequence[Dropped]:
        """Between two turns: move live records out of the oldest segments while too much is dead, as far as is due
        behind so many bytes that were written. A revision says the same before and after; nobody is woken. Returns the
        tombstones that were dropped, whose slots are free.
        """
        dropped: list[Dropped] = []
        budget = self.reclaimer.budget(written)
        if self.heap.short and self.reclaimer.condemned:
            self.let_go()
        while budget > 0 and self.reclaimer.due:
            before = self.reclaimer.looked
            dropped += self._reclaim_slice(budget, revision, entry, kinds())
            if self.reclaimer.looked == before:
                break  # no room to copy to
            budget -= self.reclaimer.looked - before
        return dropped

    def _reclaim_slice(self, budget: int, revision: int, entry: int, kinds: Sequence[tuple[int, int]]) -> list[Dropped]:
        """Reclaim one segment, or up to so many bytes of it; the tombstones that were dropped."""
        reclaimer = self.reclaimer
        moved, dropped = reclaimer.move(budget)
        self.heap.flush()
        self.root.move_tail(self.heap.tail)
        failpoint.reach("reclaim.moved")
        for kind, slot, address in moved:
            self._tables[kind].point(slot, address)
        self._vacate(dropped)
        emptied = reclaimer.condemn(revision) if reclaimer.emptied else None
        forgotten = self.revlog.forget_below(address_of(self.heap.first, START)) if emptied is not None else ()
        self._fill(revision, entry, kinds)
        failpoint.reach("reclaim.filled")
        self.root.show()
        failpoint.reach("reclaim.shown")
        if emptied is not None:
            reclaimer.bury(emptied)
            self.let_go()
        for number in forgotten:
            self.path("revlog", number).unlink()
        failpoint.reach("reclaim.done")
        return dropped

    def drop(self, kind: int, slot: int) -> Dropped:
        """A slot's tombstone goes at once, which only a start may want: see `recovery.unread`."""
        dropped = self.reclaimer.drop(kind, slot)
        self._vacate([dropped])
        return dropped

    def _vacate(self, dropped: Sequence[Dropped]) -> None:
        """Empty the slots of dropped tombstones, and take their keys out of the indexes."""
        if dropped:
            self.root.forget(max(one.revision for one in dropped))
            failpoint.reach("reclaim.forgotten")
        for one in dropped:
            self._tables[one.kind].vacate(one.slot)
            self._indexes[one.kind].leave(key_hash(one.key), one.slot)

    def let_go(self) -> None:
        """Give back segments that nobody maps any more, or for too long."""
        held = self.reclaimer.held_bytes
        self.reclaimer.let_go(self.root.expire)
        self.root.hold(self.reclaimer.held_bytes)
        if self.reclaimer.held_bytes < held:
            self.heap.look_again()

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def gone(self) -> str:
        """The name of the root if others removed it, so that nobody finds this memory any more; else empty."""
        path = self.path("root")
        try:
            path.lstat()
        except FileNotFoundError:
            return str(path)
        except OSError:
            pass  # nobody can tell just now
        return ""

    def desert(self) -> None:
        """Once `gone`: send its readers to the next engine, which cannot: it does not find this memory either."""
        self.root.succeed(SUPERSEDED)

    def remove(self) -> None:
        """Tell readers that nobody will publish again, and remove every segment of this epoch."""
        self.root.succeed(STOPPED)
        remove_segments(self._folder, self.prefix)
