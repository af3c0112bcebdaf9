"""A checkpoint on its way into memory: segments that threads fill, while whoever waits for them reads keys and journal.

What is put back was made by an engine: heap segments, chunks of tables and arenas of indexes are written to their files
as they were, and mapped when all of it is there. Nobody else knows of them before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

from solewriter.engine_proc.publisher import Columnar, Publisher
from solewriter.engine_proc.recovery import unread
from solewriter.shared.journal.checkpoint import Checkpoint, Section, TableImage, Wanted
from solewriter.shared.memory.heap import PREFIX_BYTES
from solewriter.shared.memory.segment import Blank
from solewriter.shared.memory.table import offsets


class _OfKind(NamedTuple):
    """The table of one kind, and the memory into which its sections are read."""

    image: TableImage
    places: Columnar
    chunks: list[Blank]
    arena: list[Blank]


class Restoring:
    """One checkpoint, into the memory of a publisher that has published nothing; a context manager. Raises
    MemoryFull.
    """

    def __init__(self, checkpoint: Checkpoint, publisher: Publisher) -> None:
        self._directory = checkpoint.directory
        self._publisher = publisher
        self._wanted: list[Wanted] = []
        with ExitStack() as ending:
            self._ending = ending
            publisher.heap.make_way()
            self._heap = [
                self._file([section], [0, section.size + PREFIX_BYTES], "heap", number)
                for number, section in enumerate(self._directory.heap, 1)
            ]
            self._kinds = [self._of_kind(kind, image) for kind, image in enumerate(self._directory.tables)]
            self._filling = ending.enter_context(checkpoint.fill(self._wanted))
            self._ending = ending.pop_all()

    def _of_kind(self, kind: int, image: TableImage) -> _OfKind:
        self._publisher.add_table(image.columns)
        table, index = self._publisher.table(kind), self._publisher.index(kind)
        index.make_way()
        starts = [0, *offsets(image.columns)]
        chunks = [
            self._file(sections, starts, "table", kind, table.generation, number)
            for number, sections in enumerate(image.chunks)
        ]
        arena = [
            self._file([section], [0, section.size], "index", kind, number)
            for number, section in enumerate(image.index.segments)
        ]
        return _OfKind(image, (table, index), chunks, arena)

    def _file(self, sections: Sequence[Section], starts: Sequence[int], *parts: object) -> Blank:
        """A segment of these sections, each where it starts; the last start is the segment's end."""
        made = Blank(self._publisher.path(*parts), starts[-1])
        self._ending.callback(made.close)
        self._wanted += [(section, made.write, start) for section, start in zip(sections, starts[:-1], strict=True)]
        return made

    @property
    def tables(self) -> list[TableImage]:
        """What the checkpoint says of each kind."""
        return self._directory.tables

    def finish(self) -> None:
        """Until all of it is in memory. Raises JournalCorrupt, MemoryFull."""
        self._filling.finish()
        publisher, directory = self._publisher, self._directory
        sizes = [section.size for section in directory.heap]
        publisher.heap.restore([(made.map_whole(), size) for made, size in zip(self._heap, sizes, strict=True)])
        for image, (table, index), chunks, arena in self._kinds:
            table.restore([made.map_whole() for made in chunks])
            index.restore(image.index.counts, image.index.used, [made.map_whole() for made in arena])
        publisher.usage.add(directory.live_bytes, directory.tombstone_bytes)
        publisher.reclaimer.begin_behind(directory.revision)
        unread.note(publisher, directory.revision)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is written any more, finished or not."""
        self._ending.close()
