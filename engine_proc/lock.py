"""Ownership of a state folder: it is made where there is none, and who holds its lock is the single writer."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from solewriter.shared.errors import EngineUnavailable, Locked
from solewriter.shared.folder import StateFolder
from solewriter.shared.system.files import errors_naming, lasting_file, sync_folder

BY_DESCRIPTOR = re.compile(r"/proc/self/fd/\d+")
PID_DIGITS = 10  # more than any pid has: what was there before is written over


def make_folder(path: Path) -> None:
    """The state folder, whose name is durable like its content: where a power cut takes the name, it takes all."""
    above = [path.parent, *(one.parent for one in path.parents if not one.exists())]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:  # a file, or a link that leads nowhere
        raise EngineUnavailable(f"{path} is no folder, and none can be made there: {error.strerror}") from error
    for one in above:
        try:
            sync_folder(one)
        except PermissionError:
            pass  # it may be entered and not read, as others' homes: then it is older than this engine


class Lock:
    """Ownership of the state folder: a flock, and the file's identity. The descriptor never crosses a fork or exec."""

    def __init__(self, folder: StateFolder, *, again: bool = False) -> None:
        self._path = folder.lock
        try:
            self._fd = lasting_file(folder.lock, made=not again)
        except FileNotFoundError:
            if not again:
                raise
            raise EngineUnavailable(f"{folder.path} was deleted or emptied: no other state is begun") from None
        try:
            with errors_naming(folder.lock):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._fd)
            raise Locked(f"{folder.path} is owned by {holder}: stop that engine first", holder=holder) from None
        except BaseException:  # of a file system that knows no locks, say
            os.close(self._fd)
            raise
        self.folder_fd = -1
        try:
            os.pwrite(self._fd, f"pid {os.getpid():<{PID_DIGITS}}".encode(), 0)  # in place: a full disk has room for it
            own = os.fstat(self._fd)
            self._identity = (own.st_dev, own.st_ino)
            self.folder_fd = os.open(folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # which locks nothing
            self.check()  # or it was replaced just now
        except BaseException:
            self.release()
            raise

    @property
    def folder(self) -> Path:
        """The folder that is owned, wherever it is by now: what has its name meanwhile may be another engine's."""
        return Path(f"/proc/self/fd/{self.folder_fd}")

    def release(self) -> None:
        """Let go, also of what a fork meanwhile may have carried away."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        if self.folder_fd >= 0:
            os.close(self.folder_fd)

    def check(self) -> None:
        """Raises EngineUnavailable once the folder was moved, deleted or replaced."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise EngineUnavailable(f"the state folder is gone: {error}") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise EngineUnavailable(f"{self._path.parent} was replaced under the running engine")


def by_name(text: str) -> str:
    """What is said of files, with the names of folders that are named by a descriptor."""

    def name(found: re.Match[str]) -> str:
        try:
            return os.readlink(found[0])
        except OSError:  # it is closed by now
            return found[0]

    return BY_DESCRIPTOR.sub(name, text)
