"""Repair: give up everything behind a revision, because somebody asked for it. A copy of the folder is kept.

What follows the cut is lost, acked or not, and revisions will be given out again: so the history id changes, and who
holds an older one is told `Compacted`.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.engine_proc.lock import Lock
from solewriter.shared import entry as entries
from solewriter.shared.chain import first_entry_of, first_of, journal_files
from solewriter.shared.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.entry import FILE_HEADER_BYTES, Entry, Life, Private
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import StateFolder, replace_file, sync_folder


class Cut(NamedTuple):
    """Where a journal ends from now on."""

    path: Path
    offset: int
    number: int  # of the last entry that stays
    crc: int
    revision: int


def truncate(folder: StateFolder, revision: int) -> tuple[Cut, Path]:
    """Make `revision`, or where a turn made several at once the last one before that turn, the newest. Returns where
    that is, and the copy of the folder as it was. Raises Locked beside an engine; EngineUnavailable, with nothing
    changed, where the journal does not go back so far.
    """
    lock = Lock(folder)
    try:
        cut, life = _found(folder.path, revision)
        kept = folder.path.with_name(f"{folder.path.name}.before-repair-{time.time_ns()}")
        shutil.copytree(folder.path, kept, ignore=shutil.ignore_patterns("engine.sock"))
        os.sync()  # the copy is there before anything goes
        _cut(folder.path, cut, life)
    finally:
        lock.release()
    return cut, kept


def _found(folder: Path, revision: int) -> tuple[Cut, Life]:
    """The last entry that is not above a revision, and the life that it is of."""
    files = journal_files(folder)
    wholes = [(path, first) for path in files if (first := first_entry_of(path)) and first.private.whole]
    below = [(path, first) for path, first in wholes if first.revision <= revision]
    if not (_has_checkpoint(folder, below[-1][1]) if below else files and first_of(files[0]) == 1):
        raise EngineUnavailable(f"{folder} cannot be cut back to revision {revision}: no checkpoint is so old")
    begin = below[-1][0] if below else files[0]
    cut, life = None, None
    for path in [path for path in files if path >= begin]:
        buffer, at = path.read_bytes(), FILE_HEADER_BYTES
        number = first_of(path) - 1
        if cut is not None and cut.number != number:
            break
        while (found := entries.unpack(buffer, at)) is not None and found[0].number == number + 1:
            entry, _, at = found
            if entry.revision > revision:
                break
            whole = entry.private.whole
            life = entry.private.life or (whole.life if whole is not None else life)
            number, cut = entry.number, Cut(path, at, entry.number, entry.crc, entry.revision)
        else:
            continue
        break
    if cut is None or life is None:
        raise EngineUnavailable(f"{folder} cannot be cut back to revision {revision}: no whole entry is so old")
    return cut, life


def _has_checkpoint(folder: Path, first: Entry) -> bool:
    """Whether the checkpoint is there that this entry names: a start needs it. Raises JournalCorrupt if damaged."""
    named = first.private.whole
    assert named is not None, "it holds the whole private state"
    try:
        with Checkpoint(checkpoint_path(folder, named.checkpoint.entry)) as checkpoint:
            checkpoint.verify()
            return checkpoint.name == named.checkpoint
    except FileNotFoundError:  # it was trimmed, and the file of this entry holds later ones that were not
        return False


def _cut(folder: Path, cut: Cut, life: Life) -> None:
    """The rest goes: later files and checkpoints, then what follows in the file itself, where the life ends that was,
    and another history begins. What was committed is said last: until then no engine starts here.
    """
    for path in journal_files(folder):
        if path > cut.path:
            path.unlink()
    for number, path in checkpoint_files(folder).items():
        if number > cut.number:
            path.unlink()
    ended = msgspec.structs.replace(life, history=os.urandom(16), drained=True)
    number, now_us = cut.number + 1, time.time_ns() // 1000
    packed, crc = entries.pack(number, cut.revision, now_us, cut.crc, [], Private(life=ended))
    with cut.path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(cut.offset)
        file.write(packed.ljust(size - cut.offset, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    note, place = entries.committed_note(number, crc)
    replace_file(folder / "committed", bytes(place) + note)
    sync_folder(folder)
