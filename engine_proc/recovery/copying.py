"""A copy of a state folder as it is, kept before anything is taken from it: whole, on disk, and its owner's."""

from __future__ import annotations

import os
import shutil
import stat
import time
from io import FileIO
from pathlib import Path

from solewriter.shared.config import MIB
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import SOCKET


def copy_beside(folder: Path) -> Path:
    """Copy the folder as it is, beside it, onto disk; where the copy is. Raises EngineUnavailable where that cannot be;
    then there is nothing of it.
    """
    real = folder.resolve()  # of a path that ends with `..`, what is beside it would be inside
    kept = real.with_name(f"{real.name}.before-repair-{time.time_ns()}")
    try:
        kept.mkdir(mode=0o700)  # its files become private one by one, and it is as open as the folder in the end
        ignored = shutil.ignore_patterns(SOCKET)
        shutil.copytree(real, kept, ignore=ignored, copy_function=_copy, dirs_exist_ok=True)
        give(kept, real.stat())
        os.sync()  # the copy is there before anything goes
    except OSError as error:
        shutil.rmtree(kept, ignore_errors=True)
        raise EngineUnavailable(f"{folder} cannot be copied, and so nothing was changed: {_first(error)}") from error
    return kept


def _first(error: OSError) -> str:
    """Of many errors of a copy; and of which file it is."""
    if not isinstance(error, shutil.Error):
        return str(error)
    source, _, why = error.args[0][0]
    return str(why) if str(source) in str(why) else f"{why}: {str(source)!r}"


def _copy(source: str, copy: str) -> None:
    """One file, with its mode and times. What cannot be read is there as it is, under this name as well: no cut writes
    to it.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        _link(source, copy, error)
        return
    try:
        found = os.fstat(fd)  # of what is copied, whatever has its name by now
        with open(copy, "xb", buffering=0) as made:
            unreadable = _copy_content(fd, made)
            os.fchmod(made.fileno(), stat.S_IMODE(found.st_mode))
        os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        give(Path(copy), found)
    finally:
        os.close(fd)
    if unreadable is not None:
        os.unlink(copy)
        _link(source, copy, unreadable)


def _copy_content(fd: int, made: FileIO) -> OSError | None:
    """What kept it from being read. Raises what keeps the copy from being written."""
    while True:
        try:
            piece = os.read(fd, MIB)
        except OSError as error:
            return error
        if not piece:
            return None
        while piece:
            piece = piece[made.write(piece) :]


def _link(source: str, copy: str, why: OSError) -> None:
    """Raises the reason where that cannot be either: it is another user's, say."""
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        raise why from None


def give(path: Path, owner: os.stat_result) -> None:
    """What root makes in another user's folder is that user's: no engine of theirs could read it otherwise. Not what
    somebody puts a link to in its place.
    """
    if os.geteuid() != owner.st_uid:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
