"""How much a journal holds, looked at from outside while an engine works on it and trims it."""

from __future__ import annotations

from pathlib import Path

from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files
from solewriter.shared.journal.entry import FILE_HEADER_BYTES


def used(buffer: bytes, first: int, behind: int = 0) -> int:
    """Bytes of the entries in a journal file that are numbered above `behind`."""
    at, number, found = FILE_HEADER_BYTES, first, 0
    while (length := entries.length_at(buffer, at)) and entries.number_at(buffer, at) == number:
        size = length + -length % 8
        found += size if number > behind else 0
        at += size
        number += 1
    return found


class Journal:
    """The bytes of all entries of a state folder, also of files that are trimmed while it is looked at; and which
    checkpoints were met meanwhile.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._closed: dict[str, int] = {}
        self.checkpoints: set[str] = set()

    def bytes(self) -> int:
        self.checkpoints.update(path.name for path in self._state.glob("checkpoint-*") if path.suffix != ".tmp")
        files = journal_files(self._state)
        for path in files[:-1]:
            if path.name not in self._closed:
                self._closed[path.name] = used(path.read_bytes(), first_of(path))
        return sum(self._closed.values()) + used(files[-1].read_bytes(), first_of(files[-1]))


class BehindCheckpoint:
    """The bytes of the entries that a start would replay: those behind the newest checkpoint that the journal names."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._named: dict[str, int] = {}  # by closed file, the checkpoint's entry that it names, or 0
        self._closed: dict[tuple[str, int], int] = {}  # by closed file and a checkpoint's entry, what is behind that

    def bytes(self) -> int:
        while True:
            try:
                files = journal_files(self._state)
                entry = max([0, *(self._named_by(path) for path in files)])
                return sum(self._behind(path, entry, last=path is files[-1]) for path in files)
            except FileNotFoundError:  # it was just being trimmed: look again
                continue

    def _named_by(self, path: Path) -> int:
        if path.name not in self._named:
            first = first_entry_of(path)
            if first is None:
                return 0  # it is about to be written
            whole = first.private.whole
            self._named[path.name] = whole.checkpoint.entry if whole is not None else 0
        return self._named[path.name]

    def _behind(self, path: Path, entry: int, *, last: bool) -> int:
        if last:
            return used(path.read_bytes(), first_of(path), entry)
        if (path.name, entry) not in self._closed:
            self._closed[path.name, entry] = used(path.read_bytes(), first_of(path), entry)
        return self._closed[path.name, entry]
