"""The journal: what is durable. A small protocol, so that a replicated log can stand in its place, and two journals
of it.

`FileJournal` is a chain of append-only files in the state folder. One write for each turn, plus one fdatasync for
`power`. Its laws: the first failed write or sync ends the process (a failed fsync must never be retried: the kernel
has marked the pages clean); only a full disk is survivable; a bad entry at the very end is a torn tail and is
dropped; any other bad entry, or a missing tail that was acked, is a refusal to start that names the place. Nothing is
guessed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

from solewriter.shared import entry as entries
from solewriter.shared import failpoint
from solewriter.shared.chain import journal_files
from solewriter.shared.config import JOURNAL_FILE_BYTES_FIRST, KIB, Limits
from solewriter.shared.entry import FILE_HEADER_BYTES, Entry, Private
from solewriter.shared.errors import EngineUnavailable, JournalCorrupt

ZEROS = bytes(256 * KIB)
_COMMITTED = struct.Struct("<QII")  # entry number, its crc, crc of these two
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(EngineUnavailable):
    """The journal's file system has no room: the engine refuses writes until it has."""


class Tail(NamedTuple):
    """The last committed entry."""

    number: int
    crc: int


class Missing(NamedTuple):
    """Committed entries that the files do not hold any more, and where they should be."""

    first: int
    last: int
    place: str


class Journal(Protocol):
    """Durable entries in order. Bodies do not know where they lie."""

    @property
    def tail(self) -> Tail: ...

    def replay(self) -> Iterator[Entry]:
        """Every entry still held, oldest first; once, before the first append. Raises JournalCorrupt."""

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        """Take the next entry; it is nowhere until `commit`."""

    async def commit(self, *, durable: bool) -> None:
        """Make it durable, if asked for to the journal's full level. Raises DiskFull and then holds nothing of it;
        any other OSError is the end of the process.
        """

    def trim(self, before: int) -> None:
        """Entries numbered below this may go."""

    def close(self) -> None: ...


class NoJournal:
    """`memory` durability: entries are counted and forgotten."""

    def __init__(self) -> None:
        self.tail = Tail(0, 0)
        self._next = Tail(0, 0)

    def replay(self) -> Iterator[Entry]:
        return iter(())

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        self._next = Tail(self.tail.number + 1, 0)

    async def commit(self, *, durable: bool) -> None:
        self.tail = self._next

    def trim(self, before: int) -> None:
        pass

    def close(self) -> None:
        pass


class FileJournal:
    """Files `journal-<first entry>.log`, the next one made ahead as `journal.next`, and `committed`, the last entry's
    number.
    """

    def __init__(self, folder: Path, state_id: bytes, limits: Limits, beside: Executor, *, power: bool) -> None:
        self._folder = folder
        self._state_id = state_id
        self._power = power
        self._beside = beside
        self._syncer = ThreadPoolExecutor(1, "journal-sync")  # never waits behind the zero-filling
        self._file_bytes = JOURNAL_FILE_BYTES_FIRST
        self._file_bytes_max = limits.journal_file_bytes
        self._next: Future[int] | None = None
        self._closing: Future[None] | None = None
        self._fd = -1
        self._offset = 0
        self._size = 0
        self._staged: tuple[bytes, Tail] | None = None
        self._tail = Tail(0, 0)
        self._committed_fd = os.open(folder / "committed", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.missing: Missing | None = None

    @property
    def tail(self) -> Tail:
        return self._tail

    # --- writing -----------------------------------------------------------------------------------------------------

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        packed, crc = entries.pack(self._tail.number + 1, revision, time_us, self._tail.crc, bodies, private)
        self._staged = (packed, Tail(self._tail.number + 1, crc))

    async def commit(self, *, durable: bool) -> None:
        assert self._staged is not None
        (packed, tail), self._staged = self._staged, None
        if self._offset + len(packed) > self._size:
            if self._power:  # entries that needed no sync themselves are what the next file is chained to
                await self._sync()
            self._roll(len(packed))
        failpoint.reach("commit.write")
        self._write(packed, self._offset)
        failpoint.reach("commit.written")
        if durable and self._power:
            await self._sync()
            failpoint.reach("commit.synced")
        self._offset += len(packed)
        self._tail = tail
        self._note_committed(tail)
        failpoint.reach("commit.noted")
        if self._closing is not None and self._closing.done():
            self._closing.result()
            self._closing = None
        if self._next is None and self._offset > self._size // 2:
            self._next = self._beside.submit(self._make_next, self._file_bytes)

    async def _sync(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._syncer, os.fdatasync, self._fd)

    def _write(self, data: bytes, offset: int) -> None:
        """All of it in its reserved place. A short write is an error like any other: the rest is not retried."""
        written = os.pwrite(self._fd, data, offset)
        if written != len(data):
            raise OSError(errno.EIO, f"wrote {written} of {len(data)} bytes to the journal")

    def _note_committed(self, tail: Tail) -> None:
        words = struct.pack("<QI", tail.number, tail.crc)
        os.pwrite(self._committed_fd, words + struct.pack("<I", crc32(words)), tail.number % 2 * _COMMITTED.size)

    def _make_next(self, size: int) -> int:
        """Zero-fill `journal.next`: an fdatasync in place costs half of one that extends."""
        path = self._folder / "journal.next"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            failpoint.reach("journal.prepare")
            for start in range(0, size, len(ZEROS)):
                block = ZEROS[: size - start]
                if os.write(fd, block) != len(block):
                    raise OSError(errno.ENOSPC, "no room for the next journal file")
            os.fsync(fd)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return fd

    def _roll(self, needed: int) -> None:
        """Go on in the next file. Raises DiskFull."""
        future, self._next = self._next, None
        try:
            fd = (
                future.result()
                if future is not None
                else self._make_next(max(self._file_bytes, FILE_HEADER_BYTES + needed))
            )
            if os.fstat(fd).st_size < FILE_HEADER_BYTES + needed:
                os.close(fd)
                fd = self._make_next(FILE_HEADER_BYTES + needed)
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(
                    f"no room for the journal in {self._folder}: free space there; reads go on meanwhile"
                ) from error
            raise
        self._begin(fd, self._tail)

    def _begin(self, fd: int, tail: Tail) -> None:
        """Make a zero-filled `journal.next` the current file."""
        header = entries.file_header(self._state_id, tail.number + 1, tail.crc)
        if os.pwrite(fd, header, 0) != len(header):
            raise OSError(errno.EIO, "wrote half a journal header")
        os.fdatasync(fd)
        failpoint.reach("journal.roll")
        os.rename(self._folder / "journal.next", self._folder / f"journal-{tail.number + 1:020d}.log")
        sync_folder(self._folder)
        failpoint.reach("journal.rolled")
        if self._closing is not None:
            self._closing.result()
        if self._fd >= 0:
            self._closing = self._beside.submit(_sync_and_close, self._fd, self._committed_fd)
        self._continue(fd, FILE_HEADER_BYTES, os.fstat(fd).st_size)

    def _continue(self, fd: int, offset: int, size: int) -> None:
        """Append to this file from now on; the one after it is twice as large."""
        self._fd, self._offset, self._size = fd, offset, size
        self._file_bytes = min(max(size * 2, JOURNAL_FILE_BYTES_FIRST), self._file_bytes_max)

    # --- recovery ----------------------------------------------------------------------------------------------------

    def replay(self) -> Iterator[Entry]:
        """Every entry of every file; then the last file is rewritten to new pages and synced, because pages that a
        failed fsync left behind may be readable and not on disk.
        """
        (self._folder / "journal.next").unlink(missing_ok=True)
        files = journal_files(self._folder)
        buffer, end, path = b"", FILE_HEADER_BYTES, None
        for position, path in enumerate(files):
            buffer = path.read_bytes()
            self._follow_on(path, entries.read_file_header(path, buffer), first=position == 0)
            end = yield from self._entries_of(path, buffer, last=position == len(files) - 1)
        if path is None:
            noted = self._read_committed()
            if noted is not None:
                raise JournalCorrupt(
                    f"{self._folder} once held {noted.number} entries, and has no journal file any more",
                    place=str(self._folder),
                )
            self._begin(self._make_next(self._file_bytes), self._tail)
        else:
            self._rewrite(path, buffer[:end], len(buffer))
        self._note_committed(self._tail)

    def _follow_on(self, path: Path, start: entries.FileStart, *, first: bool) -> None:
        if start.state_id != self._state_id:
            raise JournalCorrupt(f"{path.name} belongs to another state", place=f"{path.name}:0")
        if first:
            self._tail = Tail(start.first - 1, start.previous_crc)
        elif (start.first - 1, start.previous_crc) != self._tail:
            raise JournalCorrupt(
                f"{path.name} begins with entry {start.first}, but the files before it end with {self._tail.number}: "
                "one is missing",
                place=f"{path.name}:0",
            )

    def _entries_of(self, path: Path, buffer: bytes, *, last: bool) -> Generator[Entry, None, int]:
        """The entries of one file; returns the offset behind the last one."""
        at = FILE_HEADER_BYTES
        while (found := entries.unpack(buffer, at)) is not None:
            entry, previous, behind = found
            if entry.number != self._tail.number + 1 or previous != self._tail.crc:
                raise JournalCorrupt(
                    f"entry {entry.number} does not follow entry {self._tail.number}", place=f"{path.name}:{at}"
                )
            self._tail = Tail(entry.number, entry.crc)
            yield entry
            at = behind
        later = entries.later_entry(buffer, at, self._tail.number)
        if later is not None:
            raise JournalCorrupt(
                f"{path.name} is damaged at offset {at}: a later entry at {later} is whole", place=f"{path.name}:{at}"
            )
        if last:
            self._compare_committed(path, at)
        return at

    def _compare_committed(self, path: Path, at: int) -> None:
        """Notice a lost tail of acked entries. After a reboot without `power` it is no damage."""
        noted = self._read_committed()
        if noted is None or noted.number <= self._tail.number:
            return
        self.missing = Missing(self._tail.number + 1, noted.number, f"{path.name}:{at}")

    def _read_committed(self) -> Tail | None:
        best: Tail | None = None
        raw = os.pread(self._committed_fd, 2 * _COMMITTED.size, 0)
        for start in range(0, len(raw) - _COMMITTED.size + 1, _COMMITTED.size):
            number, crc, check = _COMMITTED.unpack_from(raw, start)
            if check == crc32(raw[start : start + 12]) and (best is None or number > best.number):
                best = Tail(number, crc)
        return best

    def _rewrite(self, path: Path, whole: bytes, size: int) -> None:
        fd = os.open(self._folder / "journal.next", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        data = whole + bytes(size - len(whole))
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, "no room to rewrite the tail of the journal")
        os.fsync(fd)
        failpoint.reach("recover.rewrite")
        os.rename(self._folder / "journal.next", path)
        sync_folder(self._folder)
        failpoint.reach("recover.rewritten")
        self._continue(fd, len(whole), size)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def trim(self, before: int) -> None:
        """Unlink closed files all of whose entries are numbered below `before`."""
        files = journal_files(self._folder)
        for path, following in pairwise(files):
            if int(following.stem.removeprefix("journal-")) <= before:
                path.unlink()
        sync_folder(self._folder)

    def close(self) -> None:
        """Sync what is there, at every level: a clean stop survives power loss."""
        if self._next is not None and self._next.exception() is None:
            os.close(self._next.result())
            (self._folder / "journal.next").unlink(missing_ok=True)
        if self._closing is not None:
            self._closing.result()
        if self._fd >= 0:  # it was replayed
            os.fdatasync(self._fd)
            os.fdatasync(self._committed_fd)
            os.close(self._fd)
        os.close(self._committed_fd)
        self._syncer.shutdown()


def _sync_and_close(fd: int, committed_fd: int) -> None:
    os.fdatasync(fd)
    os.fdatasync(committed_fd)
    os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make a change of names durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
