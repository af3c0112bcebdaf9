"""The journal's files, read at a start: every entry follows the one before it, or the place where it does not is named.
Damage before the first entry that is asked for is passed over: that is history, which whoever looks back meets.

What is read is changed by nobody here; what there is to do about it, `FileJournal.replay` does when all was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from solewriter.shared import entry as entries
from solewriter.shared.chain import ends_early, first_of, journal_files, newest_checkpoint
from solewriter.shared.checkpoint import checkpoint_files
from solewriter.shared.entry import FILE_HEADER_BYTES, Entry, Tail
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.files import naming


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
    """One reading. `noted` is the last durable entry, as it was noted outside of these files."""

    def __init__(self, folder: Path, state_id: bytes, noted: Tail | None) -> None:
        self._folder = folder
        self._named = str(folder.resolve())  # for people: whoever holds its lock names it by a descriptor
        self._state_id = state_id
        self._noted = noted
        self.tail = Tail(0, 0)
        self.length = 0  # bytes of the entries that were asked for
        self.read: tuple[Path, int] | None = None  # the place behind the last of them, so far
        self.missing: Missing | None = None
        self.last: Kept | None = None  # None: there is no file yet
        self.before: Kept | None = None  # the one before it
        self.earlier: list[Path] = []  # all those before it
        self.lost: list[Path] = []  # those behind it, which are given up

    def entries(self, first: int, may_be_cut: Callable[[], bool]) -> Iterator[Entry]:
        """Every entry from `first` on. Raises JournalCorrupt. See `Journal.replay`."""
        files = self._files_from(first)
        if not files:
            check_empty(self._folder, self._noted)
        newest = newest_checkpoint(self._folder)
        buffer = spare = bytearray()  # of two files, in turns: new memory for each would take as long as reading it
        for position, path in enumerate(files):
            with naming(path), path.open("rb", buffering=0) as file:
                header = file.read(FILE_HEADER_BYTES)
                if not self._follows(path, header, may_be_cut, first=position == 0):
                    self._give_up(files[position:], path, 0)
                    break
                buffer, spare = _read(file, header, spare), buffer
            at, cut = yield from self._entries_of(path, buffer, first, may_be_cut)
            self.earlier, self.before = files[:position], self.last
            self.last = Kept(path, memoryview(buffer)[:at], len(buffer))
            if cut or position == len(files) - 1:
                self._give_up(files[position + 1 :], path, at)
                break
        if self.missing is not None and not may_be_cut():  # and everything is as it was, for whoever looks into it
            raise JournalCorrupt(
                f"entries {self.missing.first} to {self.missing.last} were committed and are not in the journal any "
                "more",
                place=self.missing.place,
            )
        if (why := ends_early(self.tail.number, newest)) and not may_be_cut():
            end = f"{self.last.path.name}:{len(self.last.content)}" if self.last is not None else self._named
            raise JournalCorrupt(why, place=end)

    def _files_from(self, first: int) -> list[Path]:
        """The files from the one that holds this entry on."""
        files = journal_files(self._folder)
        before = [path for path in files if first_of(path) <= first]
        if files and not before:
            raise JournalCorrupt(
                f"the journal begins with entry {first_of(files[0])}, and entry {first} is needed: a file is missing",
                place=f"entry {first}",
            )
        return files[len(before) - 1 :] if before else []

    def _give_up(self, files: list[Path], path: Path, at: int) -> None:
        """What follows this place, if anything does; of it, what was committed is missing."""
        self.lost = files
        if self._noted is not None and self._noted.number > self.tail.number:
            self.missing = Missing(self.tail.number + 1, self._noted.number, f"{path.name}:{at}")

    def _follows(self, path: Path, header: bytes, may_be_cut: Callable[[], bool], *, first: bool) -> bool:
        """Whether a file follows the one before it. Raises JournalCorrupt if not, unless it may be cut there."""
        start = entries.read_file_header(path, header)
        if start.state_id != self._state_id:
            raise JournalCorrupt(f"{path.name} belongs to another state", place=f"{path.name}:0")
        if start.first != first_of(path):
            raise JournalCorrupt(f"{path.name} begins with entry {start.first}", place=f"{path.name}:0")
        if first:
            self.tail = Tail(start.first - 1, start.previous_crc)
        elif (start.first - 1, start.previous_crc) != self.tail:
            if may_be_cut():
                return False
            assert self.last is not None
            place = f"{self.last.path.name}:{len(self.last.content)}"
            raise JournalCorrupt(
                f"{place}: entry {self.tail.number} is the last one there, but {path.name} begins with entry "
                f"{start.first}: what lay between is damaged, or a file is missing",
                place=place,
            )
        return True

    def _entries_of(
        self, path: Path, buffer: bytearray, first: int, may_be_cut: Callable[[], bool]
    ) -> Generator[Entry, None, tuple[int, bool]]:
        """The entries of one file from `first` on; returns the offset behind the last one, and whether later ones are
        to be given up.
        """
        at, view = FILE_HEADER_BYTES, memoryview(buffer)  # of which nothing is copied to be summed up
        while True:
            found = entries.unpack(view, at)
            if found is None or found[0].number <= self.tail.number:
                later = entries.later_entry(buffer, at, self.tail.number)
                if later is None or not self.tail.number + 1 < entries.number_at(buffer, later) <= first:
                    break
                at, found = later, entries.unpack(view, later)
                assert found is not None
                self.tail = Tail(found[0].number - 1, found[1])  # what lay between nobody asked for
            entry, previous, behind = found
            if entry.number != self.tail.number + 1 or previous != self.tail.crc:
                if may_be_cut():
                    return at, True
                raise JournalCorrupt(
                    f"entry {entry.number} does not follow entry {self.tail.number}", place=f"{path.name}:{at}"
                )
            self.tail = Tail(entry.number, entry.crc)
            if self._noted is not None and self.tail.number == self._noted.number and self.tail != self._noted:
                raise JournalCorrupt(
                    f"entry {entry.number} is not the one that was committed: the file is another state's",
                    place=f"{path.name}:{at}",
                )
            if entry.number >= first:
                self.length += behind - at
                self.read = path, behind
                yield entry
            at = behind
        if later is not None and not may_be_cut():
            raise JournalCorrupt(
                f"{path.name} is damaged at offset {at}: a later entry at {later} is whole", place=f"{path.name}:{at}"
            )
        return at, later is not None


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
