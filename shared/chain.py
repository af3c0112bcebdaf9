"""The journal's files as those see them who only read: who looks further back than memory goes.

Files are append-only. Closed ones never change; of the current one, what lies before a committed entry does not, and
committed is what a published root names. So nothing here waits for the engine, or is noticed by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from solewriter.shared import entry as entries
from solewriter.shared.entry import FILE_HEADER_BYTES, Entry
from solewriter.shared.errors import Compacted, JournalCorrupt


def journal_files(folder: Path) -> list[Path]:
    """All of them, oldest first. Empty where durability is `memory`."""
    return sorted(folder.glob("journal-*.log"))


def entries_to(folder: Path, last: int) -> Iterator[Entry]:
    """Every entry of the history up to the committed one numbered `last`, oldest first.

    Raises Compacted where the history's beginning is not there, or went while it was read; JournalCorrupt, naming the
    place, where an entry does not follow the one before it.
    """
    number, files = 0, journal_files(folder)
    if last and not files:
        raise _gone(f"nothing is journaled in {folder}")
    for path in files if last else ():
        buffer = _content(path)
        start = entries.read_file_header(path, buffer)
        if start.first != number + 1:
            if not number:
                raise _gone(f"the journal begins with entry {start.first}")
            raise JournalCorrupt(f"{path.name} does not follow entry {number}", place=f"{path.name}:0")
        at = FILE_HEADER_BYTES
        while number < last and (found := entries.unpack(buffer, at)) is not None:
            entry, _, at = found
            if entry.number != number + 1:
                raise JournalCorrupt(f"an entry does not follow entry {number}", place=f"{path.name}:{at}")
            number = entry.number
            yield entry
        if number == last:
            return
    if number < last:
        raise _gone(f"the journal in {folder} ends before entry {last}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _gone(f"{path.name} was trimmed meanwhile") from None


def _gone(why: str) -> Compacted:
    return Compacted(why, oldest=0)
