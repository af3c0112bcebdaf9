"""What `solewriter export` does with a folder, and says of it."""

from __future__ import annotations

from pathlib import Path

from solewriter.agents.cli.describing import printable
from solewriter.agents.reader import Reader, open_reader
from solewriter.agents.reading.export import export
from solewriter.agents.reading.offline import OfflineReader
from solewriter.shared.errors import EngineUnavailable


def export_state(state: Path, revision: int | None, file: Path, *, replace: bool) -> str:
    """Write one revision, the newest if none is named, to a file; one line about that. Raises as `export` does, and as
    `at` does of a reader.
    """
    with reader_of(state) as reader:
        found = export(reader.snapshot() if revision is None else reader.at(revision), file, replace=replace)
    kinds = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
    return printable(f"revision {found.revision:,} is in {file}: {kinds or 'no entities'}")


def reader_of(state: Path) -> Reader | OfflineReader:
    """A reader of an engine's memory; where there is none, of what the folder holds. Raises EngineUnavailable for
    another user's.
    """
    try:
        return open_reader(state)
    except EngineUnavailable as error:
        if error.final:
            raise
        return open_reader(state, offline=True)
