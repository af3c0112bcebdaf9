"""The journal walked as one chain, file by file: by a start, by who looks whether all is sound, by who looks back.

A walk is shown the files in their order, by whoever reads them as he must: from a disk that nobody else writes to, or
beside an engine. It gives their entries, and says where and why the chain ends although there is more. What that means,
damage or what a power cut took, it does not judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.frozen import INT_MAX
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import compacted, files_from, first_entry, first_of, read_file, state_id_in
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Entry, Tail


class Walk:
    """Each entry follows the one before it, by its number and by the sum of that. What is damaged before the entry
    `needed` is passed over: nobody asked for it. `noted` is the last durable entry, as it was noted elsewhere.
    """

    def __init__(self, needed: int, state_id: bytes | None = None, noted: Tail | None = None) -> None:
        self._needed = needed
        self._state_id = state_id  # None: that of the first file
        self.noted = noted or Tail(0, 0)
        self.number, self._crc = 0, 0  # of the last entry
        self.path, self.at = Path(), 0  # behind it: the file, and the offset there, which is 0 before there is one
        self.broken = ""  # why the chain ends there, if this file holds more

    @property
    def tail(self) -> Tail:
        """The last entry."""
        return Tail(self.number, self._crc)

    @property
    def place(self) -> str:
        """Behind the last entry."""
        return f"{self.path.name}:{self.at}"

    def enter(self, path: Path, buffer: bytes) -> bool:
        """Go on in this file, of which the header is enough here; False where it does not follow. Raises JournalCorrupt
        where it is none of this journal, LayoutMismatch.
        """
        start = entries.read_file_header(path, buffer)
        if start.state_id != (self._state_id or start.state_id):
            raise JournalCorrupt(f"{path.name} belongs to another state", place=f"{path.name}:0")
        if start.first != first_of(path):
            raise JournalCorrupt(f"{path.name} begins with entry {start.first}", place=f"{path.name}:0")
        before = Tail(start.first - 1, start.previous_crc)
        if self.at and before != self.tail:
            return False
        self._state_id, self.path, self.at = start.state_id, path, FILE_HEADER_BYTES
        self.number, self._crc = before
        return True

    def entries(self, buffer: bytes | bytearray, last: int = INT_MAX) -> Iterator[tuple[Entry, int]]:
        """Those of this file up to the one numbered `last`, each with the offset where it begins; of a buffer that was
        read again, those that follow. Raises JournalCorrupt where the noted one is another.
        """
        name, view, at = self.path.name, memoryview(buffer), self.at  # of which nothing is copied to be summed up
        number, crc, noted = self.number, self._crc, self.noted.number
        self.broken = ""
        while number < last:
            found = entries.unpack(view, at)
            if found is None or found[0].number <= number:
                later = entries.later_entry(buffer, at, number)
                if later is None:
                    return
                if not number + 1 < entries.number_at(buffer, later) <= self._needed:
                    self.broken = f"{name} is damaged at offset {at}: a later entry at {later} is whole"
                    return
                at, found = later, entries.unpack(view, later)
                assert found is not None, "it is whole"
                number, crc = found[0].number - 1, found[1]  # what lay between nobody asked for
            entry, previous, behind = found
            if entry.number != number + 1 or previous != crc:
                self.broken = f"entry {entry.number} does not follow entry {number}"
                return
            number, crc = entry.number, entry.crc
            if number == noted and crc != self.noted.crc:
                what = f"entry {number} is not the one that was committed: the file is another state's"
                raise JournalCorrupt(what, place=f"{name}:{at}")
            self.number, self._crc, self.at = number, crc, behind
            yield entry, at
            at = behind

    def lacks(self, newest_checkpoint: int) -> str:
        """Why what was walked is not all that was committed, if the note or the newest checkpoint says so. Not where
        that was taken one entry later: so much may be written and not on disk, at every level.
        """
        last, noted, newest = self.number, self.noted.number, newest_checkpoint
        if noted > last:
            return f"entries {last + 1} to {noted} were committed and are not in the journal any more"
        if newest <= last + 1:
            return ""
        return (
            f"checkpoint-{newest:020d} was taken behind entry {newest}, and the journal ends with entry {last}: files "
            "of it are missing, or older ones are in their place"
        )


def entries_between(folder: Path, first: int, last: int) -> Iterator[Entry]:
    """Every entry from the one numbered `first` up to the committed one numbered `last`, oldest first.

    Raises Compacted where the first ones are not there, or went while they were read, or the journal was cut;
    JournalCorrupt, naming the place, where an entry does not follow the one before it, or a file is another state's.
    """
    if last < first:
        return
    first_entry(folder)
    files = files_from(folder, first)
    if files and first_of(files[0]) > first:
        raise compacted(f"the journal begins with entry {first_of(files[0])}")
    walk = Walk(first, state_id_in(folder))
    for path in files:
        if walk.number >= last:
            return
        buffer = read_file(path)
        if not walk.enter(path, buffer):
            what = f"{path.name} does not follow entry {walk.number}"
            if first_of(path) > walk.number + 1:
                what = (
                    f"entry {walk.number + 1} is not in {walk.path.name}, and {path.name} begins with a later one: "
                    "what lay between is damaged, or a file is missing"
                )
            raise JournalCorrupt(what, place=walk.place)
        for entry, _ in walk.entries(buffer, last):
            if entry.number >= first:
                yield entry
        if walk.broken:
            raise JournalCorrupt(walk.broken, place=walk.place)
    if walk.number < last:
        raise compacted(f"the journal in {folder} ends before entry {last}")
