"""From what is durable to what serves: replay the journal, judge what a restart may promise, announce the new epoch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from solewriter.engine_proc.journal import FileJournal, Journal
from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.publisher import Publisher, remove_segments
from solewriter.engine_proc.sessions import Sessions, Told
from solewriter.engine_proc.state import State
from solewriter.shared.entry import Entry, Life, Outcome
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch, Locked
from solewriter.shared.folder import StateFolder, Whereabouts, runs
from solewriter.shared.memory.root import STOPPED, SUPERSEDED, succeed
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.wire import Status


def replay(journal: Journal, state: State, sessions: Sessions, publisher: Publisher) -> Life | None:
    """Put everything back: entities, sessions, outcomes. Returns the last life that the journal knows of."""
    life = None
    publisher.reclaimer.keeps_tombstones = True  # what was forgotten when says the journal
    for entry in journal.replay():
        if life is None and entry.number != 1:  # nothing is trimmed yet, so history begins with the first entry
            raise JournalCorrupt(
                f"the journal begins with entry {entry.number}: a file is missing", place=f"entry {entry.number}"
            )
        _install(entry, state, sessions, publisher)
        life = entry.private.life or life
    publisher.reclaimer.keeps_tombstones = False
    return life


def _install(entry: Entry, state: State, sessions: Sessions, publisher: Publisher) -> None:
    said = entry.private
    if said.kinds or said.schemas:
        state.add_kinds(said.kinds, said.schemas)
    for position, body in enumerate(entry.records()):
        publisher.install_recovered(state.install(body, said.slots.get(position)))
    if entry.bodies:
        publisher.note_recovered(entry.revision)
        publisher.reclaim(sys.maxsize, state.revision, entry.number, state.counts())
    sessions.forget(said.forgotten_sessions)
    for outcome in said.outcomes:
        sessions.remember(outcome[0], outcome[1], _told(outcome))
    for change in said.sessions:
        sessions.take(change)
    for request_id in said.fenced_ids:
        sessions.fence(request_id)


def _told(outcome: Outcome) -> Told:
    """As it was told, without addresses: the records lie elsewhere now."""
    _, _, status, revision, detail, request_id, digest = outcome
    if status == Status.APPLIED:
        detail = [(place[0], 0, *place[2:]) for place in detail]
    return Told(status, revision, detail, request_id, digest)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def history_of(journal: Journal, before: Life | None) -> bytes:
    """The history id that goes on, or a new one where nobody can prove that nothing published was lost.

    Raises JournalCorrupt where entries are missing that no legal loss explains.
    """
    if before is None:
        return os.urandom(16)
    rebooted = before.boot != boot_id() and not before.drained
    missing = journal.missing if isinstance(journal, FileJournal) else None
    if missing is not None and (before.durability == "power" or not rebooted):
        raise JournalCorrupt(
            f"entries {missing.first} to {missing.last} were committed and are not in the journal any more",
            place=missing.place,
        )
    lossy = before.durability == "memory" or (before.durability == "process" and rebooted)
    return os.urandom(16) if lossy else before.history


def remove_old_memory(folder: StateFolder, own_prefix: str) -> None:
    """Send the readers of earlier epochs to this one, then unlink what those left behind. Never a live engine's
    segments.
    """
    for old in folder.markers():
        if old.prefix == own_prefix or (old.pid != os.getpid() and runs(old.pid, old.start_time)):
            continue
        _succeed(old, SUPERSEDED)
        remove_segments(old.memory_dir, old.prefix)
        folder.marker(old.prefix).unlink(missing_ok=True)
    for unfinished in folder.path.glob("*.json.tmp"):  # of an engine that died while it wrote a small file
        unfinished.unlink(missing_ok=True)


def remove_orphans(folder: StateFolder) -> None:
    """After an engine that was killed and is not followed by another: tell its readers that it stopped, and give its
    memory back. Does nothing where another engine owns the folder, or the folder is gone.
    """
    try:
        lock = Lock(folder)
    except (OSError, Locked):
        return
    try:
        for old in folder.markers():
            if runs(old.pid, old.start_time):
                continue
            _succeed(old, STOPPED)
            remove_segments(old.memory_dir, old.prefix)
            folder.marker(old.prefix).unlink(missing_ok=True)
        folder.engine_json.unlink(missing_ok=True)
    finally:
        lock.release()


def _succeed(old: Whereabouts, how: int) -> None:
    try:
        succeed(Segment.attach(segment_path(old.memory_dir, old.prefix, "root"), writable=True), how)
    except (FileNotFoundError, LayoutMismatch, ValueError):
        pass  # it was never made, or is gone: nobody reads there
