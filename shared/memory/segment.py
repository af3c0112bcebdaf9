"""A segment: one shared mapping, a file of this user in a memory file system.

Not `multiprocessing.shared_memory`: its resource tracker unlinks live segments when a reader exits (cpython#82300),
it maps read-write, and it reserves nothing, so that a full file system ends in SIGBUS. Here the bytes are reserved
before they are mapped; readers map read-only and look at owner and mode first. A segment never shrinks and is never
closed by hand: the mapping goes when the last view of it does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path

from solewriter.shared import failpoint
from solewriter.shared.config import POPULATED_AT_ONCE
from solewriter.shared.errors import LayoutMismatch, MemoryFull

_POPULATE_WRITE = 23  # of madvise(2)
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


class Segment:
    """A mapping with its bytes (`map`) and its aligned 8-byte words (`words`), each stored and loaded by one
    instruction.
    """

    __slots__ = ("bytes", "map", "path", "size", "words")

    def __init__(self, path: Path, fd: int, size: int, writable: bool) -> None:
        self.path = path
        self.size = size
        if writable:  # populated: a page fault for every 4 KB would cost the writer a tenth of its time
            self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            if not _populate(self.map, size):
                self.map = mmap.mmap(fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            self.map = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("Q")

    @classmethod
    def create(cls, path: Path, size: int, spare: int = 0) -> Segment:
        """A new segment of `size` bytes, reserved and zero. Raises MemoryFull, naming the file system, if there is no
        room for it, or so much does not stay free besides.
        """
        return Blank(path, size).map_whole(spare)

    @classmethod
    def attach(cls, path: Path, *, writable: bool = False) -> Segment:
        """Map an existing segment. Raises FileNotFoundError if it is gone, LayoutMismatch if it is not this user's
        own.
        """
        fd = open_segment(path, writable=writable)
        try:
            if not writable:  # as long as this is mapped, which keeps the open file: the engine sees that it is read
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:  # being let go at this moment
                    raise FileNotFoundError(f"{path} is gone") from None
                if not os.fstat(fd).st_nlink:  # let go just before: nobody would know that it is mapped
                    raise FileNotFoundError(f"{path} is gone")
            return cls(path, fd, os.fstat(fd).st_size, writable)
        finally:
            os.close(fd)


class Blank:
    """A new segment that is written before it is mapped: pages that are written whole need not be made zero before, nor
    met one by one. `write` may be called from any thread. Raises FileExistsError, and MemoryFull where there may be no
    more files.
    """

    __slots__ = ("_fd", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise self._full(error, "another file (`df -i`)") from error

    def write(self, content: bytes, offset: int) -> None:
        """Raises MemoryFull."""
        try:
            while content:
                written = os.pwrite(self._fd, content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise self._full(error) from error

    def map_whole(self, spare: int = 0) -> Segment:
        """All of it, reserved, and zero where nothing was written. Raises MemoryFull, also where so much would not stay
        free besides, and then it is gone.
        """
        try:
            failpoint.reach("memory.grow")
            if spare and not has_free(self._fd, self.size + spare):
                raise OSError(errno.ENOSPC, "what is left is spared")
            os.posix_fallocate(self._fd, 0, self.size)
            return Segment(self.path, self._fd, self.size, writable=True)
        except OSError as error:
            self.path.unlink()
            if error.errno not in _FULL:
                raise
            raise self._full(error) from error
        finally:
            self.close()

    def _full(self, error: OSError, what: str = "") -> MemoryFull:
        where, what = self.path.parent, what or f"{self.size:,} bytes"
        if error.errno == errno.EFBIG:
            return MemoryFull(f"no file in {where} may have {self.size:,} bytes: raise that bound, `ulimit -f`")
        if error.errno == errno.ENOMEM:  # `where` may have room: it is not to be mapped, or not to be filled
            bounds = "the machine, its control group, or what one process may map (`ulimit -v`)"
            return MemoryFull(f"no memory for {what} of {where}: at its bound is {bounds}")
        way = "free space there, delete what is not needed, or set another memory_dir (`solewriter serve --memory-dir`)"
        return MemoryFull(f"no room for {what} in {where}: {way}")

    def close(self) -> None:
        """Nothing is written any more. Harmless when it was mapped or closed before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def has_free(where: int | str, size: int) -> bool:
    """Whether so much is free where this file or folder is, or nobody says how much there is."""
    found = os.statvfs(where)
    return not found.f_blocks or found.f_bavail * found.f_frsize >= size


def _populate(whole: mmap.mmap, size: int) -> bool:
    """Have all pages mapped by now. MAP_POPULATE does the same with the interpreter held: 64 MiB take 20 to 100 ms,
    and a turn would wait for that, though a thread beside the loop does it. False where the kernel is older than 5.14.
    """
    first = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    return not any(
        _madvise(first + start, min(POPULATED_AT_ONCE, size - start), _POPULATE_WRITE)
        for start in range(0, size, POPULATED_AT_ONCE)
    )


def open_segment(path: Path, *, writable: bool) -> int:
    """A descriptor of an existing segment, and of nothing else that somebody may have put there: where others may
    remove files, that can be a link to any file of this user. Raises FileNotFoundError if it is gone, OSError for a
    link, LayoutMismatch if it is not this user's own.
    """
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise LayoutMismatch(f"{path} is not a private file of this user: it will not be mapped")
    return fd


def is_mapped(fd: int) -> bool:
    """Whether anybody maps this file read-only: whoever does holds a shared flock on it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def punch(fd: int, size: int) -> None:
    """Take a segment's bytes away: whoever maps it reads zeros from now on."""
    with mmap.mmap(fd, size) as whole:
        whole.madvise(mmap.MADV_REMOVE)


def segment_path(folder: str, prefix: str, *parts: object) -> Path:
    """`<folder>/<prefix>-heap-1` and the like. The prefix holds a random nonce, new in every epoch."""
    return Path(folder) / "-".join([prefix, *map(str, parts)])


def remove_segments(folder: str, prefix: str, *, but_root: bool = False) -> None:
    """Unlink the segments of one epoch, or of a part of it: its prefix holds a nonce that no other epoch has."""
    for path in Path(folder).glob(f"{prefix}-*"):
        if not (but_root and path.name == f"{prefix}-root"):
            path.unlink(missing_ok=True)
