"""From what is durable to what serves: replay the journal, judge what a restart may promise."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

from solewriter.engine_proc.journal import Journal
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.recovery import unread
from solewriter.engine_proc.recovery.newest import NewestOutcomes, NewestRecords
from solewriter.engine_proc.recovery.restoring import Restoring
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.state import State
from solewriter.shared import failpoint
from solewriter.shared.config import Limits
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch
from solewriter.shared.journal import life as lives
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_path
from solewriter.shared.journal.entry import (
    FILE_HEADER_BYTES,
    CheckpointName,
    Entry,
    Life,
    PrivateChanges,
    PrivateState,
)
from solewriter.shared.journal.setaside import starting_checkpoint


class Recovery:
    """Puts everything back: entities, sessions, outcomes."""

    def __init__(
        self, folder: Path, journal: Journal, state: State, sessions: Sessions, publisher: Publisher, limits: Limits
    ) -> None:
        self._folder = folder
        self._recent_bytes = limits.recent_bytes
        self._journal = journal
        self._state = state
        self._sessions = sessions
        self._publisher = publisher
        self._newest = NewestRecords(state, publisher)
        self._outcomes = NewestOutcomes(sessions, limits.window_max)
        self._last = lives.LastLife(folder, None)
        self._restoring: Restoring | None = None  # until the checkpoint is in memory
        self.private_bytes = 0  # of the whole private state

    @property
    def life(self) -> Life | None:
        """The last one that the journal knows of."""
        return self._last.life

    def run(self) -> Checkpoint | None:
        """The checkpoint with which it began, closed. Raises JournalCorrupt, LayoutMismatch, MemoryFull."""
        try:
            return self._run()
        except JournalCorrupt as error:
            if not error.place.startswith("checkpoint-"):
                raise
            raise JournalCorrupt(f"{error}. {self._way_around}", place=error.place) from error

    @property
    def _way_around(self) -> str:
        way = f"`solewriter repair {self._folder} --around-checkpoint` begins with an older one, and loses nothing"
        return f"Where history is kept, {way}"

    def _run(self) -> Checkpoint | None:
        found = self._journal.newest_whole()
        with ExitStack() as ending:
            checkpoint, first = None, 1
            if found is not None:
                self._last = lives.LastLife(self._folder, found)
                name = starting_checkpoint(self._folder, found[1].checkpoint)
                if name is not None:
                    checkpoint, first = ending.enter_context(self._open(name)), name.entry + 1
                    self._restoring = ending.enter_context(Restoring(checkpoint, self._publisher))
                    self._state.restore(checkpoint)
            with self._publisher.reclaimer.keeping_tombstones():
                self._replay(first)
        if self.life is not None and self.life.boot != lives.boot_id():
            self._state.coordination.leases.begin_anew(time.monotonic_ns() // 1000)
            self._sessions.begin_anew()
        return checkpoint

    def _open(self, name: CheckpointName) -> Checkpoint:
        path = checkpoint_path(self._folder, name.entry)
        try:
            checkpoint = Checkpoint(path)
        except FileNotFoundError:
            raise self._missing(path) from None
        except LayoutMismatch as error:
            raise LayoutMismatch(f"{error}. If no newer one wrote here, it is damaged. {self._way_around}") from error
        if checkpoint.state_id != self._journal.state_id:
            newest = journal_files(self._folder)[-1].name
            checkpoint.close()
            raise JournalCorrupt(f"{path.name} and {newest} are of different states", place=f"{path.name}:0")
        if checkpoint.name != name:
            checkpoint.close()
            raise JournalCorrupt(f"{path.name} is not the one that the journal names", place=f"{path.name}:0")
        return checkpoint

    def _missing(self, path: Path) -> JournalCorrupt:
        """A checkpoint goes when a newer one is named. Where that name is damaged, that is the place to look at."""
        for file in reversed(journal_files(self._folder)):
            if first_of(file) > self._last.whole_from and first_entry_of(file) is None:
                place = f"{file.name}:{FILE_HEADER_BYTES}"
                damaged = f"{file.name} is damaged at offset {FILE_HEADER_BYTES}, where a newer one may have been named"
                return JournalCorrupt(f"{damaged}: {path.name} is missing", place=place)
        return JournalCorrupt(f"{path.name} is missing", place=path.name)

    def _await_memory(self) -> None:
        """Whoever looks into memory, or adds to it, waits for what is on its way there."""
        if self._restoring is not None:
            restoring, self._restoring = self._restoring, None
            restoring.finish()
            failpoint.reach("recover.restored")
            self._state.tables.refit(self._state.kinds, restoring.tables)

    def _replay(self, first: int) -> None:
        """The entries behind the checkpoint: the most recent ones with all their records, others by their newest."""
        recent: deque[tuple[Entry, PrivateChanges]] = deque()
        held = 0
        for entry in self._journal.replay(first, self._last.may_be_cut, self._may_be_unsynced):
            said = entry.changes
            self._last.reach(entry.number, said.life)
            recent.append((entry, said))
            held += len(entry.bodies) + len(entry.said)
            while held > self._recent_bytes:
                oldest, told = recent.popleft()
                held -= len(oldest.bodies) + len(oldest.said)
                self._install_newest(oldest, told)
        self._await_memory()
        self._newest.install()
        for entry, said in recent:
            self._install(entry, said)
        self._outcomes.install()

    def _may_be_unsynced(self) -> bool:
        """Whether a sync may have failed of what was acked before, in another file than the last."""
        return self.life is not None and self.life.durability != "power"

    def _install_newest(self, entry: Entry, said: PrivateChanges) -> None:
        if said.slots or said.kinds or said.schemas:
            self._await_memory()
        if said.kinds or said.schemas:
            self._newest.install()
            self._install(entry, said)
            return
        self._newest.add(entry, said)
        self._install_private(entry, said)

    def _install(self, entry: Entry, said: PrivateChanges) -> None:
        if said.kinds or said.schemas:
            self._state.add_kinds(said.kinds, said.schemas)
        for position, body in enumerate(entry.records()):
            unread.install(self._publisher, self._state.install(body, said.slots.get(position)))
        if entry.bodies:
            unread.note(self._publisher, entry.revision)
            # as behind a turn: what a long replay left is not waited for
            self._publisher.reclaim(len(entry.bodies), self._state.revision, entry.number, self._state.counts)
        self._install_private(entry, said)

    def _install_private(self, entry: Entry, said: PrivateChanges) -> None:
        """What an entry says besides entities. What earlier ones say is in the whole private state."""
        if entry.number < self._last.whole_from:
            return
        sessions, outcomes = self._sessions, self._outcomes
        if said.whole is not None:  # the first entry of which anything is taken
            self.private_bytes = len(entry.said)
            sessions.restore(said.whole)
            self._state.restore_forgotten(said.whole.keys)
            self._state.coordination.leases.restore(said.whole.leases)
            self._state.coordination.cascades = set(said.whole.cascades)
        outcomes.add(entry)
        if said.forgotten_sessions or said.sessions or said.fenced_ids or said.waiting:
            outcomes.install()
        for request_id in said.fenced_ids:
            sessions.fence(request_id)
        sessions.forget(said.forgotten_sessions)
        for change in said.sessions:
            sessions.take(change)
        for number, sequence in said.waiting:
            sessions.wait(number, sequence)
        for lease in said.leases:
            self._state.coordination.leases.take(lease)
        self._state.coordination.cascades.update(said.cascades)


def private_state(checkpoint: CheckpointName, life: Life, state: State, sessions: Sessions) -> PrivateState:
    """Everything besides entities, to be written behind a checkpoint."""
    ids_forgotten, sequence_forgotten = sessions.forgotten
    return PrivateState(
        checkpoint=checkpoint,
        life=life,
        sessions=sessions.states(),
        request_ids=sessions.request_ids(),
        request_ids_forgotten=ids_forgotten,
        sequence_forgotten=sequence_forgotten,
        keys=[kind.forgotten for kind in state.kinds],
        leases=state.coordination.leases.all(),
        cascades=sorted(state.coordination.cascades),
    )


def history_of(before: Life | None) -> bytes:
    """The history id that goes on, or a new one where nobody can prove that nothing published was lost."""
    if before is None:
        return os.urandom(16)
    lossy = before.durability == "memory" or (before.durability == "process" and lives.rebooted_since(before))
    return os.urandom(16) if lossy else before.history
