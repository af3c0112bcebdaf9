"""The journal as the next start would read it, for whoever only reads: all of it that counts, or what is bad about it.

An engine may go on beside that, and trim what is old: whoever reads begins again then, with what is left. What a start
takes for the loss of a power cut below `power` is no damage: it ends the journal here as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from solewriter.shared.errors import Compacted, EngineUnavailable, JournalCorrupt, checking_descriptors
from solewriter.shared.folder import unlike_a_folder
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import (
    files_from,
    first_of,
    journal_files,
    last_committed_in,
    newest_checkpoint,
    newest_whole,
    oldest_entry,
    read_file,
)
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Entry, Life
from solewriter.shared.journal.life import LastLife
from solewriter.shared.journal.walk import Walk

R = TypeVar("R")
TRIES = 10  # an engine trims behind a checkpoint, and to make one takes longer than to read it


def retry_when_trimmed(read: Callable[[], R]) -> R:
    """The result of `read`, which is called again where a running engine trimmed the oldest part meanwhile. Raises
    Compacted where that happens again and again; EngineUnavailable where it may not read, or cannot for want of
    descriptors.
    """
    try:
        with checking_descriptors():
            for _ in range(TRIES - 1):
                try:
                    return read()
                except Compacted:  # what is left is looked at again
                    pass
            return read()
    except PermissionError as error:
        raise EngineUnavailable(f"{error.filename} is another user's: it cannot be read", final=True) from error


class _Cut(Exception):
    """A power cut may have taken what follows, or it is damaged; and no start needs it."""


class Files:
    """The journal's files as one chain, up to what was committed at least, or to where a start would end it. Raises
    JournalCorrupt; Compacted where something was trimmed meanwhile; EngineUnavailable for a folder without a journal.
    """

    def __init__(self, folder: Path, begin: int | None = None) -> None:
        """All of them; or only what lies behind the entry `begin`, as a start looks at it."""
        if not journal_files(folder):
            raise EngineUnavailable(f"nothing is journaled in {folder}{unlike_a_folder(folder)}")
        noted = last_committed_in(folder)
        self._newest = newest_checkpoint(folder)  # before the journal is read, which goes on beside an engine
        self._last = LastLife(folder, newest_whole(folder))
        try:
            self.begin = begin or oldest_entry(folder)  # the entry behind which the state can be told
        except Compacted as error:
            raise_corrupt(f"no checkpoint is there from which the journal goes on: {error}", str(folder))
        self._paths = files_from(folder, begin + 1) if begin else journal_files(folder)
        if first_of(self._paths[0]) > self.begin + 1:
            raise Compacted(f"the journal begins with {self._paths[0].name}", oldest=0)
        self._walk = Walk(begin + 1 if begin else 0, noted=noted)
        self.torn_bytes = 0
        self.drops: tuple[int, int] | None = None  # entries behind the last one, which the next start will give up

    def entries(self) -> Iterator[tuple[Entry, str]]:
        """Each with its place. Raises JournalCorrupt, Compacted."""
        try:
            yield from self._whole()
        except _Cut:
            self.drops = self.last + 1, self._highest()

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self._walk.number

    @property
    def life(self) -> Life | None:
        """The last one that they tell of."""
        return self._last.life

    def _whole(self) -> Iterator[tuple[Entry, str]]:
        for path in self._paths:
            for entry, place in self._of(path):
                self._last.reach(entry.number, entry.lived)
                yield entry, place
        if why := self._walk.lacks(self._newest):
            self._cut_or_bad(why, self._walk.place)

    def _cut_or_bad(self, what: str, place: str) -> NoReturn:
        """What a start may explain by a power cut is not bad."""
        if self._last.may_be_cut():
            raise _Cut
        raise_corrupt(what, place)

    def _highest(self) -> int:
        """The last entry that there was, as far as can be seen."""
        number = max(self.last, self._walk.noted.number, first_of(self._paths[-1]) - 1, self._newest)
        buffers = map(read_file, self._paths)
        later = (entry.number for one in buffers for entry in entries.later_entries(one, FILE_HEADER_BYTES, number))
        return max(later, default=number)

    def _enter(self, path: Path, buffer: bytes) -> None:
        walk = self._walk
        if walk.enter(path, buffer):
            return
        if (first := first_of(path)) != walk.number + 1:
            what = f"entry {walk.number + 1} is not at {walk.place}, and {path.name} begins with {first}"
            self._cut_or_bad(what, walk.place)
        self._cut_or_bad(f"{path.name} does not follow entry {walk.number}", f"{path.name}:0")

    def _of(self, path: Path) -> Iterator[tuple[Entry, str]]:
        walk, buffer, read = self._walk, read_file(path), b""
        self._enter(path, buffer)
        while buffer != read:
            read = buffer
            for entry, at in walk.entries(buffer):
                yield entry, f"{path.name}:{at}"
            if walk.broken:
                buffer = read_file(path)  # beside an engine, the look may have met an entry before it was whole
        if walk.broken:
            self._cut_or_bad(walk.broken, walk.place)
        self.torn_bytes = entries.length_at(buffer, walk.at) if entries.unpack(buffer, walk.at) is None else 0


def raise_corrupt(what: str, place: str) -> NoReturn:
    raise JournalCorrupt(what, place=place)
