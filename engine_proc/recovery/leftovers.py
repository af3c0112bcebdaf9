"""What dead engines left in memory: their readers are told what comes, and their segments are given back.

The law: a set of segments has its marker in the state folder before the first of them is made, and until the last of
them is gone, so that whoever starts an engine or sees one off finds all of them. A live engine's are never touched, nor
those of the folder of which this one is a copy.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from solewriter.engine_proc.lock import Lock
from solewriter.shared.config import MAPPING_SHOWN
from solewriter.shared.errors import EngineUnavailable, LayoutMismatch
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.memory.root import STOPPED, SUPERSEDED, succeed
from solewriter.shared.memory.segment import Segment, remove_segments, segment_path
from solewriter.shared.system.processes import runs

_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def note_memory(folder: StateFolder, own: Whereabouts) -> None:
    """Of a new engine, and of the one before it. Raises OSError."""
    note_last_memory(folder)
    folder.mark(own)


def note_last_memory(folder: StateFolder) -> None:
    """What served last, `engine.json` names as well: where its marker is missing or damaged, it is written again. Else
    nobody would send its readers on, or give its memory back. Raises OSError.
    """
    try:
        last = folder.whereabouts()
    except EngineUnavailable:
        return
    roots = [segment_path(old.memory_dir, old.prefix, "root") for old in folder.markers() if old.prefix == last.prefix]
    if not any(map(os.path.exists, roots)):
        folder.mark(last)


def give_back(folder: StateFolder, memory: Whereabouts) -> None:
    """Its segments, and only then their marker: where somebody dies in between, the next one goes on."""
    with _if_somewhere():
        remove_segments(memory.memory_dir, memory.prefix)
    folder.marker(memory.prefix).unlink(missing_ok=True)


def remove_old_memory(folder: StateFolder, own_prefix: str, *, but_roots: bool = False) -> None:
    """Send the readers of earlier epochs to this one, then unlink what those left behind. Never a live engine's
    segments. With `but_roots` the next start still learns there how they ended.
    """
    for old in folder.markers():
        if old.prefix == own_prefix or (old.pid != os.getpid() and runs(old.pid, old.start_time)):
            continue
        if folder.is_of_another(old):
            continue
        with suppress(PermissionError):  # see `remove_orphans`
            _succeed(old.memory_dir, old.prefix, SUPERSEDED)
            if but_roots:
                with _if_somewhere():
                    remove_segments(old.memory_dir, old.prefix, but_root=True)
            else:
                give_back(folder, old)
    for unfinished in folder.path.glob("*.json.tmp"):  # of an engine that died while it wrote a small file
        unfinished.unlink(missing_ok=True)


def still_mapped(folder: StateFolder) -> str:
    """Behind a start that found no room, and took dead engines' memory away: who maps it all the same, and so keeps it;
    "" if nobody is seen to.
    """
    prefixes = b"|".join(old.prefix.encode() for old in folder.markers() if not folder.is_of_another(old))
    theirs = re.compile(rb"/(?:%s)-(?!root\b)" % prefixes)  # who waits for the next engine maps the root, and no more
    found = [pid for pid in _processes() if prefixes and theirs.search(_maps_of(pid))]
    if not found:
        return ""
    named = ", ".join(map(str, found[:MAPPING_SHOWN])) + (", ..." if len(found) > MAPPING_SHOWN else "")
    who = f"process {named}" if len(found) == 1 else f"{len(found)} processes ({named})"
    return (
        f". What a dead engine left is still mapped by {who}: readers and clients let go of it when they are used or "
        "closed, but for snapshots that are held"
    )


def _processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _maps_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:  # it ended, or is another user's
        return b""


def remove_orphans(folder: StateFolder, pid: int = 0) -> None:
    """After an engine that was killed and is not followed by another: tell its readers that it stopped, and give its
    memory back. With a `pid` only that of this one, which never served: what others left says how they ended. Does
    nothing where another engine owns the folder, or the folder is gone.
    """
    try:
        lock = Lock(folder)
    except (OSError, EngineUnavailable):  # Locked, say
        return
    try:
        with suppress(OSError):  # no room, say
            note_last_memory(folder)
        stay = False
        for old in folder.markers():
            if runs(old.pid, old.start_time) or folder.is_of_another(old):
                continue
            if pid and old.pid != pid:
                stay = True
                continue
            with suppress(PermissionError):  # another user's, whose folder this was: the note stays, for who may do it
                _succeed(old.memory_dir, old.prefix, STOPPED)
                give_back(folder, old)
        if not stay:
            folder.engine_json.unlink(missing_ok=True)
    finally:
        lock.release()


def remove_unnamed(folder: StateFolder, memory_dir: str, prefix: str) -> None:
    """After the end of the engine that had this prefix, by its owner: give its memory back where the folder does not
    name it any more, as one that was deleted under it. Nobody else would find it.
    """
    with suppress(OSError):  # nobody may look there now, say
        if not folder.marker(prefix).exists():
            _succeed(memory_dir, prefix, STOPPED)
            remove_segments(memory_dir, prefix)


def _succeed(memory_dir: str, prefix: str, how: int) -> None:
    with suppress(LayoutMismatch, ValueError), _if_somewhere():
        succeed(Segment.attach(segment_path(memory_dir, prefix, "root"), writable=True), how)


@contextmanager
def _if_somewhere() -> Iterator[None]:
    """Memory may never have been made, or be gone, or what names it is damaged: nobody reads there."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
