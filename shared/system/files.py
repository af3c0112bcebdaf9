"""Small files: made, replaced, found by their names, and their names made durable; an error names the file it is of.

Where others may write to the folder, a link of theirs may stand in the way: a new file takes the place of whatever had
its name, and one that stays what it is is no link.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a change of names durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with errors_naming(folder):
            os.fsync(fd)
    finally:
        os.close(fd)


def files_named(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match the pattern, in the order of their names; none where there is no folder.
    Raises OSError where it cannot be looked into: `Path.glob` says nothing then, and finds none.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """An error of the system's that names no file, as those of reads and writes do, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def new_file(path: Path) -> int:
    """A descriptor of a new and empty file, whatever had its name: where others may write to the folder, that may be a
    link to any file of this user. Raises OSError.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def lasting_file(path: Path, *, made: bool = True) -> int:
    """A descriptor of a file that stays what it is, `made` if there is none. Raises OSError, for a link as well."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags | os.O_CREAT if made else flags, 0o600)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file so that it is the old one or the new one. Raises OSError, and then it is the old one."""
    fresh = path.with_suffix(path.suffix + ".tmp")
    fd = new_file(fresh)
    try:
        with errors_naming(fresh):
            if os.write(fd, content) != len(content):  # as on a disk that has room for a part of it
                raise OSError(errno.ENOSPC, f"no room for {path.name}")
            os.fsync(fd)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    os.rename(fresh, path)
