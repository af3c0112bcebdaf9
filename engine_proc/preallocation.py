"""The file after the current one, made beside the loop, so that a full disk shows here and a sync in it costs half.

For `power` it is of zeros that are on disk: an fdatasync in place costs half of one that extends. Else its first block
is. A trimmed file serves as well, and costs nothing: its header is cleared, and the entries behind have lower numbers
than any that will follow. A reserve is held that only what tidies up may use, when the disk is full: the note of a
clean end, say.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from solewriter.shared import failpoint
from solewriter.shared.config import KIB, RESERVE_BYTES, SPARE_FILES_MAX
from solewriter.shared.journal.entry import FILE_HEADER_BYTES
from solewriter.shared.system.files import errors_naming, lasting_file, new_file, sync_folder

ZEROS = bytes(256 * KIB)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCARCE = (errno.EMFILE, errno.ENFILE)
T = TypeVar("T")


class FolderSync:
    """Makes changes of names in the folder durable, whoever made them, in any thread. Syncs happen one at a time, and
    none after one that failed: the kernel reports a failure only once, and says behind it that all is well, though what
    is lost may be the name of the journal's next file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._one = threading.Lock()
        self.failure: OSError | None = None

    def sync(self) -> None:
        """Raises OSError."""
        with self._one:
            self.check()
            try:
                sync_folder(self._folder)
            except OSError as error:
                if error.errno not in SCARCE:  # for want of a descriptor the kernel was not asked
                    self.failure = error
                raise

    def check(self) -> None:
        """Raises the OSError of the one that failed."""
        if self.failure is not None:
            raise self.failure


class FilesAhead:
    """`journal.next`, the spare files that it may be made of, and the reserve."""

    def __init__(self, folder: Path, beside: Executor, spare_bytes: int, *, zeroed: bool) -> None:
        self._folder = folder
        self.names = FolderSync(folder)
        self._spare_bytes = spare_bytes
        self._beside = beside
        self._zeroed = zeroed
        self._next: Future[int] | None = None
        self.path = folder / "journal.next"  # of the next file, until it has its number
        self._reserve = folder / "reserve"
        self._drop_small()

    @property
    def is_begun(self) -> bool:
        """Whether the next file is being made, or is there."""
        return self._next is not None

    def begin(self, size: int) -> None:
        """Make the next file, of so many bytes at least, in a thread."""
        self._next = self._beside.submit(self._make_with_reserve, size)

    async def until_made(self) -> None:
        """Return when `take` need not wait for the thread any more."""
        if self._next is not None and not self._next.done():
            with suppress(OSError):  # which `take` raises
                await asyncio.wrap_future(self._next)

    def take(self, needed: int, wanted: int) -> int:
        """A descriptor of `journal.next` with `needed` bytes at least; with `wanted` bytes where it must be made now.
        Raises OSError.
        """
        future, self._next = self._next, None
        fd = -1
        if future is not None:
            try:
                fd = future.result()
            except OSError as error:
                if error.errno not in FULL:
                    raise
        if fd < 0:  # or there was no room for it, and may be by now
            fd = self._make_with_reserve(max(wanted, needed))
        if os.fstat(fd).st_size < needed:
            os.close(fd)
            fd = self._make_with_reserve(needed)
        return fd

    def take_reserved(self, needed: int) -> int | None:
        """The same, made of the reserve; None if that is too little, and then it is held again."""
        self._reserve.unlink(missing_ok=True)
        try:
            return self._make_file(needed)
        except OSError as error:
            if error.errno not in FULL:
                raise
        with suppress(OSError):
            self._hold_reserve()
        return None

    def _make_with_reserve(self, size: int) -> int:
        """The next file, with the reserve held beside it. Raises OSError where there is no room for both."""
        fd = self._make_file(size)
        try:
            self._hold_reserve()
        except OSError:
            os.close(fd)
            self.path.unlink(missing_ok=True)
            raise
        return fd

    def _make_file(self, size: int) -> int:
        failpoint.reach("journal.prepare")
        spare = next(iter(self._spares(size)), None)
        if spare is not None:
            os.rename(spare, self.path)
            self.names.sync()  # while a power cut can bring its old name back, its content stays
        fd = new_file(self.path) if spare is None else lasting_file(self.path, made=False)
        try:
            with errors_naming(self.path):
                self._prepare(fd, size, fresh=spare is None)
            failpoint.reach("journal.prepared")
        except OSError:
            os.close(fd)
            self.path.unlink(missing_ok=True)
            raise
        return fd

    def _prepare(self, fd: int, size: int, *, fresh: bool) -> None:
        """With a block on disk for the header, which will be synced while a turn waits."""
        header = bytes(FILE_HEADER_BYTES)
        if fresh:
            fill(fd, header, size, zeroed=self._zeroed)
            os.fsync(fd)
        else:
            _write(fd, header, 0)
            os.fdatasync(fd)

    def _spares(self, size: int) -> list[Path]:
        """Those of so many bytes at least: of smaller ones, which another bound left, nothing is made."""
        found: list[Path] = []
        for path in self._folder.glob("spare-*.log"):
            with suppress(FileNotFoundError):  # it is the next file by now
                if not path.is_symlink() and path.stat().st_size >= size:
                    found.append(path)
        return sorted(found)

    def _drop_small(self) -> None:
        """Those that a lower bound left: with this one none is made of them, so that they would stay for ever."""
        for path in self._folder.glob("spare-*.log"):
            with suppress(FileNotFoundError):
                if path.lstat().st_size < self._spare_bytes:
                    path.unlink()

    def keep(self, path: Path) -> None:
        """A trimmed file: for later, if it is as large as later ones and nobody keeps it under another name, or not at
        all. Its name is gone from the history when the folder was synced.
        """
        found = path.lstat()
        alone = found.st_nlink == 1
        if alone and found.st_size == self._spare_bytes and len(self._spares(self._spare_bytes)) < SPARE_FILES_MAX:
            os.rename(path, path.with_name(path.name.replace("journal-", "spare-")))
        else:
            path.unlink()

    def _hold_reserve(self) -> None:
        """Raises OSError where there is no room for it."""
        if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
            return  # all of it: an engine may have died between its name and its bytes
        fd = new_file(self._reserve)
        try:
            with errors_naming(self._reserve):
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """No next file is needed."""
        if self._next is not None and self._next.exception() is None:
            os.close(self._next.result())
            self.path.unlink(missing_ok=True)


def with_room(folder: Path, step: Callable[[], T]) -> T:
    """A step of a start, by the folder's owner; on a full disk once more, in the room of what was only held for later.
    Raises what the step does.
    """
    try:
        return step()
    except OSError as error:
        if error.errno not in FULL or not _give_back(folder):
            raise
    return step()


def _give_back(folder: Path) -> bool:
    """Spare files, the reserve, and checkpoints that a dead engine did not finish; whether there were any."""
    held = [path for name in ("spare-*.log", "reserve", "checkpoint-*.tmp") for path in folder.glob(name)]
    for path in held:
        path.unlink(missing_ok=True)
    return bool(held)


def fill(fd: int, content: bytes | memoryview, size: int, *, zeroed: bool) -> None:
    """Make a file of so many bytes, which begins with this and goes on with zeros: written ones where they are wanted.
    Raises OSError.
    """
    os.posix_fallocate(fd, 0, size)  # a full disk shows before anything is written
    _write(fd, content, 0)
    for start in range(len(content), size, len(ZEROS)) if zeroed else ():
        _write(fd, ZEROS[: size - start], start)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, "no room for a journal file")
