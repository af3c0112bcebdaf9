"""Repair, because somebody asked for it: begin with an older checkpoint, or give up everything behind a revision.

A damaged checkpoint takes nothing along where an older one and the journal behind that are there: it is set aside, the
next start replays more, and makes a new one. Behind a cut everything is lost, acked or not, and revisions will be given
out again: so a copy of the folder is kept, the history id changes, and who holds an older one is told `Compacted`.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.engine_proc.journal import never
from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.recovery.copying import copy_beside, give
from solewriter.engine_proc.recovery.replay import Replay
from solewriter.shared.errors import EngineUnavailable, JournalCorrupt, LayoutMismatch
from solewriter.shared.folder import StateFolder
from solewriter.shared.frozen import INT_MAX
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import (
    committed_path,
    first_entry_of,
    first_of,
    journal_files,
    last_committed_in,
    named_checkpoints,
    newest_whole,
    state_id_of,
)
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import CheckpointName, Entry, Life, Private
from solewriter.shared.journal.life import LastLife
from solewriter.shared.journal.setaside import aside_files, aside_path, is_aside
from solewriter.shared.system.files import errors_naming, lasting_file, new_file, replace_file, sync_folder


def set_aside(folder: StateFolder) -> tuple[list[Path], int]:
    """Set the newest checkpoint aside, if it is damaged or missing, and older ones that are damaged as well. Returns
    what they are called now, and the entry behind which the next start begins. Raises Locked beside an engine;
    EngineUnavailable, with nothing changed, where all are sound, or the journal does not go back as far as to one that
    is, or to its beginning, or is damaged behind that.
    """
    _check_journal(folder.path)
    lock = Lock(folder)
    try:
        damaged, begin = _to_set_aside(folder.path)
        _check_start_behind(folder.path, begin)
        asides = [aside_path(folder.path, name.entry) for name in damaged]
        for name, aside in reversed([*zip(damaged, asides, strict=True)]):  # a kill in between: ask again
            try:
                os.rename(checkpoint_path(folder.path, name.entry), aside)
            except FileNotFoundError:
                os.close(new_file(aside))
        sync_folder(folder.path)
    finally:
        lock.release()
    return asides, begin


def _check_journal(folder: Path) -> None:
    """Of what is no state, a lock would be all that there is of one. Raises EngineUnavailable."""
    if not journal_files(folder):
        raise EngineUnavailable(f"nothing is journaled in {folder}: there is nothing to repair")


def why_refused(folder: Path) -> str:
    """Why a start would be refused for what is damaged, and what to do about it; empty where it would not be."""
    newest = next((name for name in named_checkpoints(folder) if not is_aside(folder, name.entry)), None)
    if newest is not None and not _is_sound(folder, newest):
        name = checkpoint_path(folder, newest.entry).name
        return f"a start is refused, for it begins with {name}: `solewriter repair {folder} --around-checkpoint`"
    try:
        _check_start_behind(folder, newest.entry if newest is not None else 0)
    except EngineUnavailable as error:
        return error.message + _least_lossy_cut(folder)
    return ""


def _least_lossy_cut(folder: Path) -> str:
    """The revision behind which a cut gives up least; empty where none can be found."""
    try:
        return f" {_find_cut(folder, INT_MAX)[0].revision}"
    except (EngineUnavailable, JournalCorrupt, LayoutMismatch, OSError):
        return ""


def _to_set_aside(folder: Path) -> tuple[list[CheckpointName], int]:
    """The checkpoints that are to be set aside, and the entry behind which a start can begin. 0: its beginning."""
    damaged: list[CheckpointName] = []
    files, begin = journal_files(folder), None
    for name in named_checkpoints(folder):
        path = checkpoint_path(folder, name.entry)
        if is_aside(folder, name.entry) or (begin is not None and not path.exists()):  # history that was trimmed
            continue
        if not _is_sound(folder, name):
            damaged.append(name)
        elif begin is None:
            if damaged and first_of(files[0]) > name.entry + 1:
                break  # it is about to be trimmed: its journal was
            begin = name.entry
    if begin is not None and not damaged:
        raise EngineUnavailable(f"{checkpoint_path(folder, begin)} is sound: there is nothing to set aside")
    if begin is None and not (damaged and files and first_of(files[0]) == 1):
        raise EngineUnavailable(
            f"{folder} has no older checkpoint with the journal behind it: use a backup, or --truncate-at"
            if damaged
            else f"a start on {folder} needs no checkpoint: there is nothing to set aside"
        )
    return damaged, begin or 0


def _check_start_behind(folder: Path, begin: int) -> None:
    """Read the journal as a start would that begins behind this entry. Raises EngineUnavailable where it is refused."""
    last = LastLife(folder, newest_whole(folder))
    try:
        state_id = state_id_of(journal_files(folder)[-1])
        replay = Replay(folder, state_id, last_committed_in(folder), begin + 1)
        for entry in replay.entries(last.may_be_cut):
            last.reach(entry.number, entry.lived)
    except (JournalCorrupt, LayoutMismatch) as error:
        raise EngineUnavailable(
            f"a start on {folder} that begins behind entry {begin} needs what is damaged ({error}): use a backup, or "
            "--truncate-at"
        ) from error


def _is_sound(folder: Path, name: CheckpointName) -> bool:
    try:
        return _has_checkpoint(folder, name)
    except (JournalCorrupt, LayoutMismatch):  # a flipped bit may look like a newer format
        return False


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
    changed, where nothing lies behind it, the journal does not go back so far, or the folder cannot be copied, or
    written to.
    """
    _check_journal(folder.path)
    lock = Lock(folder)
    try:
        if not os.access(folder.path, os.W_OK | os.X_OK, effective_ids=True):  # its files may be, for half of a cut
            raise EngineUnavailable(f"{folder.path} may not be written to: nothing was changed")
        cut, life = _find_cut(folder.path, revision)
        kept = copy_beside(folder.path)
        _cut(folder.path, cut, life)
    finally:
        lock.release()
    return cut, kept


def _find_cut(folder: Path, revision: int) -> tuple[Cut, Life]:
    """The last entry that is not above a revision, and the life that it is of. All that a start needs up to there is
    read as it reads it: where that is damaged, a cut behind it would be for nothing.
    """
    checkpoint, needed = _checkpoint_below(folder, revision)
    begin = checkpoint.entry if checkpoint is not None else 0
    replay = Replay(folder, _state_id(folder, checkpoint), None, begin + 1)
    cut, life, why, all_read = None, None, "no whole entry is so old", False
    try:
        for entry in replay.entries(never):
            if entry.revision > revision:
                break
            walk, whole = replay.walk, entry.private.whole
            cut = Cut(walk.path, walk.at, entry.number, entry.crc, entry.revision)
            life = entry.private.life or (whole.life if whole is not None else life)
        else:
            all_read = True
    except (JournalCorrupt, LayoutMismatch, OSError) as error:  # behind the cut it goes with the rest
        if isinstance(error, OSError) and error.errno != errno.EIO:
            raise  # what may not be read is not damaged
        why = f"a start there needs what is damaged ({error}); an older revision may do"
    if cut is None or life is None or cut.number < needed:
        raise EngineUnavailable(f"{folder} cannot be cut back to revision {revision}: {why}")
    if all_read and _may_begin_behind(folder, begin):
        raise EngineUnavailable(f"nothing lies behind revision {cut.revision} in {folder}: nothing was changed")
    return cut, life


def _checkpoint_below(folder: Path, revision: int) -> tuple[CheckpointName | None, int]:
    """The checkpoint with which a start begins that ends at a revision, None: with the first entry; and the entry that
    such a start needs besides, because it holds the whole private state. Raises EngineUnavailable where there is none.
    """
    files = journal_files(folder)
    below = [
        (path, whole.checkpoint)
        for path in files
        if (first := _first_entry(path)) and first.revision <= revision and (whole := first.private.whole)
    ]
    needed = first_of(below[-1][0]) if below else 0
    while below and is_aside(folder, below[-1][1].entry):
        del below[-1]
    checkpoint = below[-1][1] if below else None
    try:
        reaches = _has_checkpoint(folder, checkpoint) if checkpoint is not None else files and first_of(files[0]) == 1
    except (JournalCorrupt, LayoutMismatch) as error:
        raise EngineUnavailable(f"{error}: set it aside first, with --around-checkpoint") from error
    if not reaches:
        raise EngineUnavailable(f"{folder} cannot be cut back to revision {revision}: no checkpoint is so old")
    return checkpoint, needed


def _may_begin_behind(folder: Path, begin: int) -> bool:
    """Whether a start that begins behind this entry reads the journal to its end: all that was committed is there."""
    try:
        _check_start_behind(folder, begin)
    except EngineUnavailable:
        return False
    return True


def _first_entry(path: Path) -> Entry | None:
    """The entry with which a file begins; None also where it cannot be read: whoever needs it will see."""
    try:
        return first_entry_of(path)
    except OSError:
        return None


def _state_id(folder: Path, begin: CheckpointName | None) -> bytes:
    """Whose state it is with which a start begins: with this checkpoint, or the first entry."""
    if begin is not None:
        with Checkpoint(checkpoint_path(folder, begin.entry)) as checkpoint:
            state_id: bytes = checkpoint.state_id
            return state_id
    return state_id_of(journal_files(folder)[0])


def _has_checkpoint(folder: Path, name: CheckpointName) -> bool:
    """Whether it is there: a start needs it. Raises JournalCorrupt if damaged."""
    try:
        with Checkpoint(checkpoint_path(folder, name.entry)) as checkpoint:
            checkpoint.verify()
            return checkpoint.name == name
    except FileNotFoundError:  # it was trimmed, and the file that names it holds later entries that were not
        return False


def _cut(folder: Path, cut: Cut, life: Life) -> None:
    """The rest goes: later files and checkpoints, then what follows in the file itself, where the life ends that was,
    and another history begins. What was committed is said last: until then no engine starts here.
    """
    ended = msgspec.structs.replace(life, history=os.urandom(16), drained=True)
    number, now_us = cut.number + 1, time.time_ns() // 1000
    packed, crc = entries.pack(number, cut.revision, now_us, cut.crc, [], Private(life=ended))
    with errors_naming(cut.path), os.fdopen(lasting_file(cut.path, made=False), "r+b") as file:
        _remove_behind(folder, cut)
        size = file.seek(0, os.SEEK_END)
        file.seek(cut.offset)
        file.write(packed.ljust(size - cut.offset, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    note, place = entries.committed_note(number, crc)
    noted = committed_path(folder)
    replace_file(noted, bytes(place) + note)
    give(noted, cut.path.stat())
    sync_folder(folder)


def _remove_behind(folder: Path, cut: Cut) -> None:
    for path in journal_files(folder):
        if path > cut.path:
            path.unlink()
    for number, path in (*checkpoint_files(folder).items(), *aside_files(folder).items()):
        if number > cut.number:
            path.unlink()
