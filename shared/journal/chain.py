"""The journal's files and checkpoints as those see them who only read: who looks further back than memory goes.

Files are append-only. Of the current one, what lies before a committed entry does not change, and committed is what a
published root names. Older ones go when their history is over, and a file may be written again then, under another
name: a content counts only if the file still had its name after it was read. So nothing here waits for the engine, or
is noticed by it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from solewriter.shared.errors import Compacted, JournalCorrupt
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, CheckpointName, Entry, Life, PrivateState, Tail
from solewriter.shared.system.files import errors_naming, files_named


def journal_files(folder: Path) -> list[Path]:
    """The journal files of a folder, the oldest first; none where durability is `memory`."""
    return files_named(folder, "journal-*.log")


def journal_path(folder: Path, first: int) -> Path:
    """The path of the journal file that begins with the entry of this number."""
    return folder / f"journal-{first:020d}.log"


def committed_path(folder: Path) -> Path:
    """The path of the file that notes the last entry that is known to be durable."""
    return folder / "committed"


def first_of(path: Path) -> int:
    """The number of the entry that a journal file begins with, by its name. Raises JournalCorrupt for another name."""
    number = path.stem.removeprefix("journal-")
    if not number.isdigit():
        raise JournalCorrupt(f"{path.name} is no name of a journal file", place=path.name)
    return int(number)


def files_from(folder: Path, first: int) -> list[Path]:
    """The journal files from the one that holds this entry on, the oldest first; all of them where none holds it."""
    files = journal_files(folder)
    while len(files) > 1 and first_of(files[1]) <= first:
        del files[0]
    return files


def state_id_of(path: Path) -> bytes:
    """The id of the state that a journal file is of, as its header has it. Raises FileNotFoundError, JournalCorrupt,
    and LayoutMismatch for a newer format.
    """
    with errors_naming(path), path.open("rb") as file:
        return entries.read_file_header(path, file.read(FILE_HEADER_BYTES)).state_id


def state_id_in(folder: Path) -> bytes:
    """The id of the state that a folder holds: that of the newest file, with which every start begins. Raises Compacted
    where no file is left, and else as `state_id_of`.
    """
    try:
        return state_id_of(journal_files(folder)[-1])
    except (IndexError, FileNotFoundError):
        raise compacted(f"nothing is journaled in {folder} any more") from None


def first_entry_of(path: Path) -> Entry | None:
    """The entry with which a journal file begins; None where it is not whole."""
    with errors_naming(path), path.open("rb") as file:
        head = file.read(FILE_HEADER_BYTES + entries.HEAD_BYTES)
        data = head + file.read(max(0, entries.length_at(head, FILE_HEADER_BYTES) - entries.HEAD_BYTES))
    found = entries.unpack(data, FILE_HEADER_BYTES)
    return found[0] if found is not None and found[0].number == first_of(path) else None


def named_checkpoints(folder: Path) -> Iterator[CheckpointName]:
    """The checkpoints that the journal names, whether their files are there or not, the newest first. A journal file
    that is trimmed meanwhile is passed over.
    """
    return (whole.checkpoint for _, whole in _wholes(folder))


def newest_whole(folder: Path) -> tuple[int, PrivateState] | None:
    """The newest entry that holds the whole private state, and its number; None where all begins with entry 1."""
    return next(_wholes(folder), None)


def _wholes(folder: Path) -> Iterator[tuple[int, PrivateState]]:
    for path in reversed(journal_files(folder)):
        try:
            first = first_entry_of(path)
        except FileNotFoundError:
            continue
        if first is not None and (whole := first.private.whole) is not None:
            yield first.number, whole


def first_entry(folder: Path) -> int:
    """The oldest entry that the files hold without a gap up to the newest. Raises Compacted where there are none."""
    files = journal_files(folder)
    if not files:
        raise compacted(f"nothing is journaled in {folder}")
    return first_of(files[0])


def last_committed_in(folder: Path) -> Tail | None:
    """The last entry that is known to be durable; None where `committed` tells of none."""
    try:
        return entries.last_committed(committed_path(folder).read_bytes())
    except FileNotFoundError:
        return None


def newest_checkpoint(folder: Path) -> int:
    """The entry behind which the newest checkpoint was taken, named by the journal or not; 0 where there is none."""
    return max(checkpoint_files(folder), default=0)


def lives_behind(folder: Path, number: int) -> Iterator[Life]:
    """The lives that whole entries numbered above this one tell of, whatever lies between. Files that end before it are
    not read: they may be history that the disk does not give back. Raises Compacted for a file that is trimmed
    meanwhile.
    """
    for path in files_from(folder, number + 1):
        for entry in entries.later_entries(read_file(path), FILE_HEADER_BYTES, number):
            if (life := entry.changes.life) is not None:
                yield life


def check_history(folder: Path, history: bytes, last: int | None = None) -> None:
    """Raises Compacted where the journal tells of other histories only, and this one is known: another state's is in
    its place. Most often it is enough to look how the files begin.

    Of what no engine holds any more, `last` is the entry up to which it goes: if that is of another history by now, the
    journal was cut, and written anew.
    """
    files, others = journal_files(folder)[::-1], False
    if last is not None and _history_at(files, last) not in (None, history):
        raise compacted(f"the journal in {folder} was cut, and is of another history behind that")
    for lives in chain(map(_life_at_first, files), map(_lives_in, files)):
        for life, _ in lives:
            if life.history == history:
                return
            others = True
    if others and history:
        raise compacted(f"the journal in {folder} is of another history")


def _history_at(files: list[Path], last: int) -> bytes | None:
    """The history to which this entry belongs, as far as these files, the newest first, tell it."""
    for path in files:
        if first_of(path) <= last:
            told = [life.history for life, number in _lives_in(path) if number <= last]
            if told:
                return told[-1]
    return None


def _life_at_first(path: Path) -> Iterator[tuple[Life, int]]:
    """The life that the first entry of a journal file tells of, if it does, and the entry's number."""
    try:
        first = first_entry_of(path)
    except FileNotFoundError:  # trimmed meanwhile
        return
    if first is not None and (life := first.lived) is not None:
        yield life, first.number


def _lives_in(path: Path) -> Iterator[tuple[Life, int]]:
    """The lives that the entries of a journal file tell of, as far as it is whole, each with its entry's number."""
    buffer, at = read_file(path), FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at)) is not None:
        if (life := found[0].lived) is not None:
            yield life, found[0].number
        at = found[2]


def read_file(path: Path) -> bytes:
    """The bytes of a journal file; of the newer one, where a start has just written it anew under the same name. Raises
    Compacted where it was trimmed meanwhile.
    """
    try:
        while True:
            with errors_naming(path), path.open("rb") as file:
                found = file.read()
                if os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
                    return found
    except FileNotFoundError:
        raise compacted(f"{path.name} was trimmed meanwhile") from None


def oldest_entry(folder: Path) -> int:
    """The entry behind which what can be looked back to begins: 0, or that of the oldest checkpoint from which on all
    journal files are there. Raises Compacted.
    """
    first = first_entry(folder)
    if first == 1:
        return 0
    for entry in checkpoint_files(folder):
        if entry + 1 >= first:
            return entry
    raise compacted(f"the journal begins with entry {first}")


def open_checkpoint(folder: Path, entry: int) -> Checkpoint:
    """The checkpoint behind an entry, to be closed by the caller. Raises Compacted where it was trimmed, and else as
    `Checkpoint`.
    """
    try:
        return Checkpoint(checkpoint_path(folder, entry))
    except FileNotFoundError:
        raise compacted(f"the checkpoint behind entry {entry} was trimmed meanwhile") from None


def own_checkpoint(folder: Path, entry: int) -> Checkpoint:
    """As `open_checkpoint`. Raises JournalCorrupt also for one of another state, of another folder's backup say."""
    found = open_checkpoint(folder, entry)
    try:
        if found.state_id != state_id_in(folder):
            name = found.path.name
            raise JournalCorrupt(f"{name} and the journal are of different states", place=f"{name}:0")
    except BaseException:
        found.close()
        raise
    return found


def checkpoint_to(folder: Path, revision: int) -> Checkpoint | None:
    """The newest checkpoint that is not above a revision, opened; None where all begins with entry 1. Raises Compacted,
    JournalCorrupt.
    """
    oldest, begin = oldest_entry(folder), 0
    for entry in [entry for entry in reversed(checkpoint_files(folder)) if entry >= oldest]:
        found = own_checkpoint(folder, entry)
        if found.directory.revision <= revision:
            return found
        begin = found.directory.revision
        found.close()
    if oldest:
        raise Compacted(f"the journal and its checkpoints go back to {begin}", oldest=begin)
    return None


def compacted(why: str) -> Compacted:
    """The error that says that the journal does not go back so far, or not any more. Whoever knows what memory still
    holds corrects its `oldest`, which is 0 here.
    """
    return Compacted(why, oldest=0)
