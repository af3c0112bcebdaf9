"""The memory of one epoch as a reader maps it: its root, its segments as they come and go, pins of its revisions."""

from __future__ import annotations

from solewriter.shared.errors import check_descriptors
from solewriter.shared.memory import catalog as catalogs
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.memory.heap import START, address_of
from solewriter.shared.memory.index import IndexReader
from solewriter.shared.memory.pin import Pin, Tables
from solewriter.shared.memory.revlog import RevisionLogReader
from solewriter.shared.memory.root import Root, RootReader
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.memory.table import TableReader


class _Files:
    """The segments of one epoch, by name."""

    def __init__(self, folder: str, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix

    def attach(self, *parts: object) -> Segment:
        """Raises EngineUnavailable where the reader has no descriptor left for it."""
        try:
            return Segment.attach(segment_path(self._folder, self._prefix, *parts))
        except OSError as error:
            check_descriptors(error)
            raise


class View:
    """The memory of one epoch. Raises FileNotFoundError if its root is gone, LayoutMismatch if it is of another
    format.
    """

    def __init__(self, folder: str, prefix: str, root: RootReader | None = None) -> None:
        self._folder = folder
        self.prefix = prefix
        attach = self._attach = _Files(folder, prefix).attach  # which knows no view: a view is freed when it is let go
        self.root = root or RootReader(attach("root"))
        # Threads share a view: what belongs together is one tuple, replaced as a whole.
        self._listed: tuple[tuple[int, int], dict[int, Segment]] = ((0, 0), {})  # by the root that was pinned last
        self._younger: dict[int, Segment] = {}
        self._indexes: dict[int, IndexReader] = {}
        self._tables: dict[tuple[int, int], TableReader] = {}
        self._revlog = RevisionLogReader(lambda number: attach("revlog", number))
        self._described = (0, Tables(catalogs.EMPTY))  # the number of a catalog, and what is known by it

    def pin(self) -> Pin:
        """The current revision, held. About 2 us when nothing had to be mapped."""
        while True:
            root = self.root.current()
            try:
                return Pin(self, root, self._heap_of(root), self._tables_of(root))
            except FileNotFoundError:
                if root.number == self.root.current().number:
                    raise

    def let_go(self) -> None:
        """Hold no heap segment until the next pin. Those that there are have theirs."""
        self._listed, self._younger = ((0, 0), {}), {}

    @property
    def maps_more(self) -> bool:
        """Whether anything but the root is mapped."""
        return bool(self._listed[1] or self._younger or self._indexes or self._tables)

    def bare(self) -> View:
        """The same memory, of which nothing but the root is mapped, and what is known of its kinds."""
        other = View(self._folder, self.prefix, self.root)
        number, tables = self._described
        other._described = number, Tables(tables.catalog)
        return other

    def _heap_of(self, root: Root) -> dict[int, Segment]:
        """The root's segments: the same dict as before, unless segments came or went."""
        listed, heap = self._listed
        wanted = (root.first_segment, root.last_segment)
        if listed != wanted:
            known = {**self._younger, **heap}
            numbers = range(root.first_segment, root.last_segment + 1)
            heap = {number: known.get(number) or self._attach("heap", number) for number in numbers}
            self._listed, self._younger = (wanted, heap), {}
        return heap

    def heap_segment(self, number: int) -> Segment:
        """A segment that is younger than the pin that met it. Raises FileNotFoundError."""
        segment = self._listed[1].get(number) or self._younger.get(number)
        if segment is None:
            segment = self._attach("heap", number)
            self._younger = {**self._younger, number: segment}
        return segment

    def _tables_of(self, root: Root) -> Tables:
        number, tables = self._described
        if root.catalog != number:
            tables = Tables(catalogs.unpack(self._attach("catalog", root.catalog).map[:]))
            self._described = root.catalog, tables
            there = {(kind, table.generation) for kind, table in enumerate(tables.catalog.tables)}
            for replaced in [one for one in tuple(self._tables) if one not in there]:
                self._tables.pop(replaced, None)  # who holds an older snapshot holds the table that it looked into
        return tables

    def begin_of(self, revision: int, root: Root) -> int:
        """An address from which all records above a revision can be walked to. Raises FileNotFoundError."""
        try:
            known = self._revlog.tail_after(revision, root.log_first, root.log_points)
        except FileNotFoundError:  # left out since: then from the beginning
            known = None
        return max(known or 0, address_of(root.first_segment, START))

    def index(self, kind: int) -> IndexReader:
        index = self._indexes.get(kind)
        if index is None:
            attach = self._attach
            index = self._indexes[kind] = IndexReader(lambda number: attach("index", kind, number))
        return index

    def table(self, kind: int, catalog: Catalog) -> TableReader:
        layout = catalog.tables[kind]
        found = self._tables.get((kind, layout.generation))
        if found is None:
            attach = self._attach
            found = TableReader(layout.columns, lambda number: attach("table", kind, layout.generation, number))
            self._tables[kind, layout.generation] = found
        return found
