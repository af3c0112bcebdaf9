"""`FileJournal`: the journal as a chain of append-only files in the state folder. One write for each turn, plus one
fdatasync for `power`.

Its laws: the first failed write or sync ends the process (a failed fsync must never be retried: the kernel has marked
the pages clean); only a full disk is survivable; for `power` at most one entry is ever written and not on disk, so a
bad entry at the very end is a torn tail and is dropped, and any other bad entry, or a missing tail that was on disk, is
a refusal to start that names the place. Nothing is guessed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from solewriter.engine_proc.journal import DiskFull, never
from solewriter.engine_proc.preallocation import FULL, FilesAhead, fill, with_room
from solewriter.engine_proc.recovery.replay import Missing, Replay
from solewriter.engine_proc.tuning import thread_beside
from solewriter.shared import failpoint
from solewriter.shared.config import JOURNAL_FILE_BYTES_FIRST, SYNC_BESIDE_S, SYNC_KEPT, Limits
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import committed_path, first_of, journal_files, journal_path, newest_whole
from solewriter.shared.journal.entry import COMMITTED_BYTES, FILE_HEADER_BYTES, Entry, Private, PrivateState, Tail
from solewriter.shared.system.files import errors_naming, lasting_file, new_file, replace_file


class Staged(NamedTuple):
    """An appended entry, until its commit."""

    packed: bytearray
    tail: Tail
    whole: bool  # it holds the whole private state, and begins a file
    life: bool  # it is on disk at every level, before it is committed

    @property
    def lasting(self) -> bool:
        """What was before it is on disk before it is written; and it may use what little room is left."""
        return self.whole or self.life


class FileJournal:
    """Files `journal-<first entry>.log`, and `committed`, the number of the last entry that was on disk (`power`) or
    written.
    """

    def __init__(self, folder: Path, state_id: bytes, limits: Limits, beside: Executor, *, power: bool) -> None:
        self._folder = folder
        self.state_id = state_id
        self._power = power
        self._beside = beside
        self._syncer = thread_beside("journal-sync")  # never waits behind the zero-filling
        self._sync_s = 0.0  # that a sync may take: the slowest one of late
        self._file_bytes = JOURNAL_FILE_BYTES_FIRST  # of the next file
        self._file_bytes_max = limits.journal_file_bytes
        self._ahead = FilesAhead(folder, beside, limits.journal_file_bytes, zeroed=power)
        self._closing: Future[None] | None = None  # the file before the current one, synced beside the loop
        self._fd = -1  # of the current file
        self._offset = 0  # in it, of the next entry
        self._size = 0  # of it, zeros included
        self._staged: Staged | None = None
        self._tail = Tail(0, 0)  # of what was committed
        self._on_disk = True  # all that was committed
        self.length = 0
        self._committed_fd = _note_of(committed_path(folder))
        self.missing: Missing | None = None  # what the replay found to be lost

    @property
    def tail(self) -> Tail:
        return self._tail

    # --- writing -----------------------------------------------------------------------------------------------------

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        packed, crc = entries.pack(self._tail.number + 1, revision, time_us, self._tail.crc, bodies, private)
        tail = Tail(self._tail.number + 1, crc)
        self._staged = Staged(packed, tail, whole=private.whole is not None, life=private.life is not None)

    async def commit(self, *, durable: bool) -> None:
        assert self._staged is not None
        self._ahead.names.check()
        staged, self._staged = self._staged, None
        packed = staged.packed
        if (self._power or staged.lasting) and not self._on_disk:
            await self._sync()  # so a hole in the journal is never the work of a power cut
        if staged.whole or self._offset + len(packed) > self._size:
            await self._until_closed()
            await self._ahead.until_made()
            self._roll(len(packed), staged.lasting)
        failpoint.reach("commit.write")
        self._write(packed, self._offset)
        failpoint.reach("commit.written")
        self._on_disk = False
        if staged.life or (durable and self._power):
            await self._sync()
            failpoint.reach("commit.synced")
        self._offset += len(packed)
        self.length += len(packed)
        self._tail = staged.tail
        if self._on_disk or not self._power:
            self._note_committed(staged.tail)
        failpoint.reach("commit.noted")
        if self._closing is not None and self._closing.done():
            self._closing.result()
            self._closing = None
        if self._offset > self._size // 2:
            self.make_ahead()

    def settle(self) -> Future[None] | None:
        """Through a descriptor of its own: the kernel tells each of them that a sync failed."""
        if self._on_disk:
            return None
        try:
            fd = os.open(journal_files(self._folder)[-1], os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # for want of descriptors
            _timed_sync(self._fd)
            self._on_disk = True
            return None
        return self._syncer.submit(_sync_then_close, fd)

    def make_ahead(self) -> None:
        if not self._ahead.is_begun:
            self._ahead.begin(self._file_bytes)

    async def _sync(self) -> None:
        """At once where it is one turn's and the disk is quick: to have it done beside the loop takes as long again.
        Else beside it.
        """
        if self._power and self._sync_s <= SYNC_BESIDE_S:
            took_s = _timed_sync(self._fd)
        else:
            took_s = await asyncio.get_running_loop().run_in_executor(self._syncer, _timed_sync, self._fd)
        self._sync_s = max(took_s, SYNC_KEPT * self._sync_s)
        self._on_disk = True

    def _write(self, data: bytearray, offset: int) -> None:
        """All of it in its reserved place. A short write is an error like any other: the rest is not retried."""
        written = os.pwrite(self._fd, data, offset)
        if written != len(data):
            raise OSError(errno.EIO, f"wrote {written} of {len(data)} bytes to the journal")

    def _note_committed(self, tail: Tail) -> None:
        note, place = entries.committed_note(tail.number, tail.crc)
        os.pwrite(self._committed_fd, note, place)

    def _roll(self, needed: int, tidying: bool) -> None:
        """Go on in the next file. Raises DiskFull."""
        needed += FILE_HEADER_BYTES
        try:
            fd = self._ahead.take(needed, self._file_bytes)
        except OSError as error:
            if error.errno not in FULL:
                raise
            reserved = self._ahead.take_reserved(needed) if tidying else None
            if reserved is None:
                raise self._full(error, max(needed, self._file_bytes)) from error
            fd = reserved
        self._begin(fd, self._tail)

    def _full(self, error: OSError, size: int) -> DiskFull:
        where = self._folder.resolve()
        if error.errno == errno.EFBIG:
            told = f"no file in {where} may have the {size:,} bytes of the journal's next one"
            way = "raise that bound, `ulimit -f`, or lower journal_file_bytes"
        else:
            told, way = f"no room for the journal in {where}", "free space there, or keep less history (history_bytes)"
        return DiskFull(f"{told}: {way}; reads go on meanwhile")

    async def _until_closed(self) -> None:
        """Return when the file before the current one is closed, which is done beside the loop: so of the files before
        the last one, only one may not be on disk. Raises its OSError.
        """
        closing, self._closing = self._closing, None
        if closing is not None:
            await asyncio.wrap_future(closing)

    def _begin(self, fd: int, tail: Tail) -> None:
        """Make `journal.next` the current file."""
        header = entries.file_header(self.state_id, tail.number + 1, tail.crc)
        if os.pwrite(fd, header, 0) != len(header):
            raise OSError(errno.EIO, "wrote half a journal header")
        os.fdatasync(fd)
        failpoint.reach("journal.roll")
        os.rename(self._ahead.path, journal_path(self._folder, tail.number + 1))
        self.sync_names()
        failpoint.reach("journal.rolled")
        if self._fd >= 0:
            self._closing = self._beside.submit(_end_file, self._fd, self._committed_fd)
        self._continue(fd, FILE_HEADER_BYTES, os.fstat(fd).st_size)

    def _continue(self, fd: int, offset: int, size: int) -> None:
        """Append to this file from now on; the one after it is twice as large."""
        self._fd, self._offset, self._size = fd, offset, size
        self._file_bytes = min(max(size * 2, JOURNAL_FILE_BYTES_FIRST), self._file_bytes_max)

    # --- recovery ----------------------------------------------------------------------------------------------------

    def newest_whole(self) -> tuple[int, PrivateState] | None:
        return newest_whole(self._folder)

    def replay(
        self, first: int = 1, may_be_cut: Callable[[], bool] = never, unsynced: Callable[[], bool] = never
    ) -> Iterator[Entry]:
        """Every entry of the files from the one that holds `first`; then all of it is on disk: the last file is
        rewritten to new pages, because pages that a failed fsync left behind may be readable and not on disk. So is the
        one before it where that fsync came behind its last ack.
        """
        self._ahead.path.unlink(missing_ok=True)
        replay = Replay(self._folder, self.state_id, self._read_committed(), first)
        yield from replay.entries(may_be_cut)
        self._tail, self.length, self.missing = replay.walk.tail, replay.length, replay.missing
        self._go_on_behind(replay, unsynced)
        self._note_replayed()

    def _go_on_behind(self, replay: Replay, unsynced: Callable[[], bool]) -> None:
        """All that was read is on disk, and the last file of it, or a first one, is the current file."""
        if replay.last is None:
            self._begin(self._ahead.take(FILE_HEADER_BYTES, self._file_bytes), self._tail)
            return
        for path in replay.earlier:  # which a killed engine may have left to the kernel
            if replay.before is not None and path == replay.before.path and unsynced():
                self._rewrite(*replay.before)
                os.close(self._fd)
                self._fd = -1
            else:
                _sync_file(path)
        self._rewrite(*replay.last)
        for path in replay.lost:
            path.unlink()
        if replay.lost:
            self.sync_names()

    def _note_replayed(self) -> None:
        """A loss that was accepted is noted so that no later start meets it again, not even behind a power cut."""
        if self.missing is None:
            self._note_committed(self._tail)
            return
        os.ftruncate(self._committed_fd, 0)
        self._note_committed(self._tail)
        os.fdatasync(self._committed_fd)

    def _read_committed(self) -> Tail | None:
        return entries.last_committed(os.pread(self._committed_fd, COMMITTED_BYTES, 0))

    def _rewrite(self, path: Path, whole: memoryview, size: int) -> None:
        fd = with_room(self._folder, lambda: self._copied(whole, size))
        with errors_naming(self._ahead.path):
            os.fsync(fd)
        failpoint.reach("recover.rewrite")
        os.rename(self._ahead.path, path)
        self.sync_names()
        failpoint.reach("recover.rewritten")
        self._continue(fd, len(whole), size)

    def _copied(self, whole: memoryview, size: int) -> int:
        """A descriptor of `journal.next`, which is this and zeros. Raises OSError, and then there is no such file."""
        path = self._ahead.path
        fd = new_file(path)
        try:
            with errors_naming(path):
                fill(fd, whole, size, zeroed=self._power)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd

    # --- the rest ----------------------------------------------------------------------------------------------------

    def trim(self, before: int, still_owner: Callable[[], None]) -> None:
        for path, following in pairwise(journal_files(self._folder)):
            if first_of(following) <= before:
                still_owner()
                self._ahead.keep(path)
                failpoint.reach("trim.file")
        self.sync_names()

    def sync_names(self) -> None:
        self._ahead.names.sync()

    def close(self) -> None:
        """Sync what is there, at every level: a clean stop survives power loss."""
        self._ahead.close()
        if self._closing is not None:
            self._closing.result()
        if self._fd >= 0:  # it was replayed
            os.fdatasync(self._fd)
            self._note_committed(self._tail)
            os.fdatasync(self._committed_fd)
            os.close(self._fd)
        os.close(self._committed_fd)
        self._syncer.shutdown()


def _note_of(path: Path) -> int:
    """A descriptor of `committed`, which is written in place: so it is a new one where the file has other names, as
    behind `cp -l`. No other file is written again under them.
    """
    fd = lasting_file(path)
    if os.fstat(fd).st_nlink == 1:
        return fd
    noted = os.pread(fd, COMMITTED_BYTES, 0)
    os.close(fd)
    replace_file(path, noted)
    return lasting_file(path, made=False)


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with errors_naming(path):
            os.fdatasync(fd)
    finally:
        os.close(fd)


def _timed_sync(fd: int) -> float:
    """Put on disk what this descriptor's file holds; how many seconds that took."""
    begun = time.monotonic()
    os.fdatasync(fd)
    return time.monotonic() - begun


def _sync_then_close(fd: int) -> None:
    """With a descriptor that was opened only for this."""
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _end_file(fd: int, committed_fd: int) -> None:
    """The journal went on in another file: this one, and that it was committed, are on disk."""
    os.fdatasync(fd)
    os.fdatasync(committed_fd)
    os.close(fd)
