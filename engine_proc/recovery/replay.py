"""The journal's files, read at a start: every entry follows the one before it, or the place where it does not is named.
Damage before the first entry that is asked for is passed over: that is history, which whoever looks back meets.

What is read is changed by nobody here; what there is to do about it, `FileJournal.replay` does when all was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.journal.chain import files_from, first_of, newest_checkpoint
from solewriter.shared.journal.checkpoint import checkpoint_files
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Entry, Tail
from solewriter.shared.journal.walk import Walk
from solewriter.shared.system.files import errors_naming


class Missing(NamedTuple):
    """Committed entries that the files do not hold any more, and where they should be."""

    first: int
    last: int
    place: str


class Kept(NamedTuple):
    """A file, and what of it stays."""

    path: Path
    content: memoryview
    size: int


class Replay:
    """One reading, of what follows from the entry `first` on. `noted` is the last durable entry, as it was noted
    outside of these files.
    """

    def __init__(self, folder: Path, state_id: bytes, noted: Tail | None, first: int) -> None:
        self._folder = folder
        self._noted = noted
        self._first = first
        self.walk = Walk(first, state_id, noted)
        self.length = 0  # bytes of the entries that were asked for
        self.missing: Missing | None = None
        self.last: Kept | None = None  # None: there is no file yet
        self.before: Kept | None = None  # the one before it
        self.earlier: list[Path] = []  # all those before it
        self.lost: list[Path] = []  # those behind it, which are given up

    def entries(self, may_be_cut: Callable[[], bool]) -> Iterator[Entry]:
        """Every entry from `first` on. Raises JournalCorrupt. See `Journal.replay`."""
        files = files_from(self._folder, self._first)
        if not files:
            check_empty(self._folder, self._noted)
        elif (begin := first_of(files[0])) > self._first:
            what = f"the journal begins with entry {begin}, and entry {self._first} is needed: a file is missing"
            raise JournalCorrupt(what, place=f"entry {self._first}")
        newest, walk, place = newest_checkpoint(self._folder), self.walk, ""
        buffer = spare = bytearray()  # of two files, in turns: new memory for each would take as long as reading it
        for position, path in enumerate(files):
            with errors_naming(path), path.open("rb", buffering=0) as file:
                header = file.read(FILE_HEADER_BYTES)
                if not walk.enter(path, header):
                    if not may_be_cut():
                        raise JournalCorrupt(
                            f"{place}: entry {walk.number} is the last one there, but {path.name} begins with entry "
                            f"{first_of(path)}: what lay between is damaged, or a file is missing",
                            place=place,
                        )
                    place = f"{path.name}:0"
                    break
                buffer, spare = _read(file, header, spare), buffer
            for entry, at in walk.entries(buffer):
                if entry.number >= self._first:
                    self.length += walk.at - at
                    yield entry
            place = walk.place
            if walk.broken and not may_be_cut():
                raise JournalCorrupt(walk.broken, place=place)
            self.earlier, self.before, self.lost = files[:position], self.last, files[position + 1 :]
            self.last = Kept(path, memoryview(buffer)[: walk.at], len(buffer))
            if walk.broken:
                break
        if (why := walk.lacks(newest)) and not may_be_cut():  # and everything is as it was, for whoever looks into it
            raise JournalCorrupt(why, place=place)
        if walk.noted.number > walk.number:
            self.missing = Missing(walk.number + 1, walk.noted.number, place)


def check_empty(folder: Path, noted: Tail | None, *, ran: bool = False) -> None:
    """A folder without a journal is a new state, if nothing says otherwise: `noted`, or that one `ran` there a moment
    ago. Raises JournalCorrupt.
    """
    if noted is not None:
        what = f"once held {noted.number} entries"
    elif checkpoint_files(folder):
        what = "holds checkpoints"
    elif ran:
        what = "was an engine's a moment ago"
    else:
        return
    named = str(folder.resolve())
    raise JournalCorrupt(f"{named} {what}, and has no journal file any more", place=named)


def _read(file: FileIO, header: bytes, used: bytearray) -> bytearray:
    """All of a file, whose header was read, in a buffer that was used before where it has the same size."""
    size = os.fstat(file.fileno()).st_size
    buffer = used if len(used) == size else bytearray(size)
    view, at = memoryview(buffer), len(header)
    view[:at] = header
    while count := file.readinto(view[at:]):
        at += count
    return buffer
