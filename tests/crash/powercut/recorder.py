"""The recorder: stands in the functions of `os` by which files change, does what they do, and notes it.

It sees what this process does to the files directly in one folder, and to that folder's own name. A file that is
opened for writing by other means (`open`, `Path.write_bytes`) is an error: nothing may pass unseen. `replies` are the
pipes whose written bytes are noted too, as marks: what was told to somebody is what must be there afterwards.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from powercut.log import Log, Operation

WATCHED = (
    "open", "close", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "truncate", "posix_fallocate",
    "rename", "replace", "unlink", "remove", "mkdir",
)  # fmt: skip
REFUSED = ("writev", "pwritev", "sendfile", "copy_file_range", "link", "symlink", "splice")


def _place(folder: str) -> str:
    """Where a folder is that is named by a descriptor."""
    return os.readlink(folder) if os.path.dirname(folder) == "/proc/self/fd" else folder


class Recorder:
    """`with Recorder(folder) as recorder`: `recorder.log` grows while the block runs."""

    def __init__(
        self, folder: Path, keep: Callable[[Operation], object] | None = None, *, existing: bool = True
    ) -> None:
        self.folder = str(folder)
        self.log: Log = []
        self.replies: set[int] = set()  # inodes of pipes
        self.fail_sync: int | None = None  # the sync with this number fails with EIO, once
        self.syncs = 0
        self._keep = keep or self.log.append
        self._existing = existing  # note what is there at the beginning
        self._files: dict[int, int] = {}  # descriptor -> file; 0 the folder, -1 the one above it
        self._lock = threading.RLock()
        self._real = {name: getattr(os, name) for name in (*WATCHED, *REFUSED)}
        self._real_open = io.open
        self._tokens = 0

    def __enter__(self) -> Self:
        for path in sorted(Path(self.folder).glob("*")) if self._existing else ():
            if path.is_file():
                self._note_existing(path)
        for name in WATCHED:
            setattr(os, name, getattr(self, f"_{name}"))
        for name in REFUSED:
            setattr(os, name, self._refusing(name))
        io.open = self._io_open  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        io.open = self._real_open

    def mark(self, what: Any) -> None:
        """Note something between two operations."""
        self._note("mark", mark=what)

    def _note(self, kind: str, **fields: Any) -> None:
        with self._lock:
            self._keep(Operation(kind, **fields))

    def _note_existing(self, path: Path) -> None:
        """What is there when the recording begins counts as durable."""
        number, data = path.stat().st_ino, path.read_bytes()
        self._note("create", file=number, name=path.name)
        self._note("write", file=number, data=data)
        for kind, file in (("sync", number), ("sync-folder", 0)):
            self._note("begin", mark=[0, -number])
            self._note(kind, file=file, mark=[0, -number])

    def _name(self, path: Any) -> str | None:
        """The name of a file of the folder; None for any other."""
        if isinstance(path, int):
            return None
        folder, _, name = os.fspath(path).rpartition("/")
        return name if _place(folder) == self.folder else None

    # --- names -------------------------------------------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name, text = self._name(path), os.fspath(path)
        with self._lock:
            before = os.stat(text) if name is not None and os.path.exists(text) else None
            fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            if _place(text) in (self.folder, os.path.dirname(self.folder)):
                self._files[fd] = 0 if _place(text) == self.folder else -1
            elif name is not None:
                number = self._files[fd] = os.fstat(fd).st_ino
                if before is None and flags & os.O_CREAT:
                    self._note("create", file=number, name=name)
                elif before is not None and flags & os.O_TRUNC and before.st_size:
                    self._note("truncate", file=number)
        return fd

    def _io_open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+") and self._name(file) is not None:
            raise AssertionError(f"{file} is written behind the recorder's back")
        return self._real_open(file, mode, *args, **options)

    def _refusing(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> Any:
            if any((isinstance(one, int) and one in self._files) or self._is_inside(one) for one in args):
                raise AssertionError(f"os.{name} changes the folder, and the recorder does not know it")
            return self._real[name](*args, **options)

        return refuse

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and self._name(path) is not None

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if os.fspath(path) == self.folder:
            self._note("make-folder")

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        with self._lock:
            self._real["rename"](source, target, **options)
            old, new = self._name(source), self._name(target)
            if old is not None or new is not None:
                assert old is not None, "a file came into the folder from outside"
                assert new is not None, "a file left the folder"
                self._note("rename", name=old, to=new)

    _replace = _rename

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._lock:
            self._real["unlink"](path, dir_fd=dir_fd)
            if (name := self._name(path)) is not None:
                self._note("unlink", name=name)

    _remove = _unlink

    def _close(self, fd: int) -> None:
        with self._lock:
            self._real["close"](fd)
            if self._files.pop(fd, 0) > 0:
                self._note("close")

    # --- contents ----------------------------------------------------------------------------------------------------

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self._files:
            if self.replies and self._is_reply(fd):
                self.mark(["replies", os.fstat(fd).st_ino, bytes(data)])
            written: int = self._real["write"](fd, data)
            return written
        with self._lock:
            at = os.lseek(fd, 0, os.SEEK_CUR)
            written = self._real["write"](fd, data)
            self._note("write", file=self._files[fd], offset=at, data=bytes(data[:written]))
        return written

    def _is_reply(self, fd: int) -> bool:
        found = os.fstat(fd)
        return stat.S_ISFIFO(found.st_mode) and found.st_ino in self.replies

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            written: int = self._real["pwrite"](fd, data, offset)
            if fd in self._files:
                self._note("write", file=self._files[fd], offset=offset, data=bytes(data[:written]))
        return written

    def _ftruncate(self, fd: int, length: int) -> None:
        with self._lock:
            self._real["ftruncate"](fd, length)
            if fd in self._files:
                self._note("truncate", file=self._files[fd], length=length)

    def _truncate(self, path: Any, length: int) -> None:
        fd = path if isinstance(path, int) else self._open(path, os.O_RDWR)
        try:
            self._ftruncate(fd, length)
        finally:
            if fd is not path:
                self._close(fd)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            self._real["posix_fallocate"](fd, offset, length)
            if fd in self._files:
                self._note("allocate", file=self._files[fd], offset=offset, length=length)

    def _fsync(self, fd: int) -> None:
        self._sync(fd, "fsync")

    def _fdatasync(self, fd: int) -> None:
        self._sync(fd, "fdatasync")

    def _sync(self, fd: int, name: str) -> None:
        """A sync covers what was written before it began."""
        number = self._files.get(fd)
        if number is None:
            self._real[name](fd)
            return
        with self._lock:
            self._tokens += 1
            token = [os.getpid(), self._tokens]
            self._note("begin", mark=token)
            self.syncs += 1
            fails = self.syncs == self.fail_sync
        if fails:
            self._note("sync-failed", file=number, mark=token)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real[name](fd)
        kind = {0: "sync-folder", -1: "sync-parent"}.get(number, "sync")
        self._note(kind, file=max(number, 0), mark=token)
