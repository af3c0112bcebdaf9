"""`OfflineReader`: a state without an engine, from what its folder holds. Made by `open_reader(state, offline=True)`.

It shows what the next start would begin with: the newest checkpoint, and every whole entry of the journal behind it. It
takes one pass over the journal's files, and the memory of everything that lives. Nothing is written, no memory of an
engine is mapped, and one that runs does not notice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from solewriter.agents.reading.anyreader import AnyReader, closed_reader
from solewriter.agents.reading.journal import Files, retry_when_trimmed
from solewriter.agents.reading.past import Past, Viewed
from solewriter.shared.config import DEFAULT_LIMITS, MEMORY_VERSION, Limits
from solewriter.shared.journal.chain import checkpoint_to, first_entry, newest_whole
from solewriter.shared.journal.checkpoint import checkpoint_path
from solewriter.shared.journal.setaside import starting_checkpoint
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory.catalog import Catalog, Table
from solewriter.shared.memory.root import Root, root_of_files

_LATEST = 2**63 - 1  # no revision is above it


class _Ids(NamedTuple):
    """In place of the root of an engine's memory."""

    history: bytes
    pid: int = 0
    successor: int = 0


class NoMemory(NamedTuple):
    """In place of an engine's memory."""

    root: _Ids


class End(NamedTuple):
    """The newest state of a folder, in place of a pin: what `Past` is made beside."""

    view: NoMemory
    catalog: Catalog
    root: Root


class OfflineReader(AnyReader):
    """The state as it was when this was made: snapshots of it, and of what was earlier. Whoever wants to see what an
    engine did since makes another one; nothing here waits for anything, or watches.

    Raises EngineUnavailable for a folder without a journal (one of durability `memory`, say) or of another user,
    JournalCorrupt naming the place, LayoutMismatch for a newer format.
    """

    def __init__(self, state: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(state, limits)
        self._newest: Past | None = retry_when_trimmed(lambda: _newest(self.folder.path))

    @property
    def _opened(self) -> str:
        return f"open_reader({str(self.folder.path)!r}, offline=True)"

    def pin(self) -> Past:
        if self._newest is None:
            raise closed_reader()
        return self._newest

    def is_stale(self, view: Viewed) -> bool:
        return True

    def close(self) -> None:
        self._newest = None
        self.decoder.turn_to(None)


def _newest(folder: Path) -> Past:
    end = _end_of(folder)
    newest = Past(end, folder, end.root.revision)
    newest.advance(end.root.revision)
    return newest


def _begin(folder: Path) -> int | None:
    """The entry of the checkpoint with which a start begins; None where it has none, or it is not there."""
    found = newest_whole(folder)
    name = starting_checkpoint(folder, found[1].checkpoint) if found is not None else None
    there = name is not None and checkpoint_path(folder, name.entry).exists() and first_entry(folder) <= name.entry + 1
    return name.entry if there and name is not None else None


def _end_of(folder: Path) -> End:
    files, revision = Files(folder, _begin(folder)), None
    told: list[tuple[int, list[str], list[Schema]]] = []  # which kinds and schemas came with which entry
    for entry, _ in files.entries():
        private = entry.private
        if private.kinds or private.schemas:
            told.append((entry.number, private.kinds, private.schemas))
        if entry.number > files.begin:
            revision = entry.revision
    kinds, schemas, behind = list[str](), list[Schema](), 0
    checkpoint = checkpoint_to(folder, _LATEST if revision is None else revision)
    if checkpoint is not None:
        with checkpoint:
            directory, behind = checkpoint.directory, checkpoint.entry
            kinds, schemas = list(directory.kinds), list(directory.schemas)
            revision = directory.revision if revision is None else revision
    for number, more_kinds, more_schemas in told:
        if number > behind:
            kinds += more_kinds
            schemas += more_schemas
    tables = tuple(Table(0, _newest_schema(schemas, code).columns) for code in range(len(kinds)))
    root = root_of_files(revision or 0, files.last, oldest=0, kinds=())
    ids = _Ids(files.life.history if files.life is not None else b"")
    return End(NoMemory(ids), Catalog(MEMORY_VERSION, tuple(kinds), tuple(schemas), tables), root)


def _newest_schema(schemas: list[Schema], kind: int) -> Schema:
    return [schema for schema in schemas if schema.kind == kind][-1]
