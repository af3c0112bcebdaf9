"""A start: from the owner's orders to all that an epoch of a state folder is made of, before the first hello.

The folder is owned first. What is durable is put back into new memory, which its marker names before there is any; the
life that begins is journaled; then readers are told where to look, and only then goes what dead engines left. A start
that fails leaves no memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import NamedTuple

from solewriter.engine_proc.adoption import check_fit
from solewriter.engine_proc.checkpointing.checkpoints import remove_unfinished
from solewriter.engine_proc.checkpointing.maker import Maker
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.engine_proc.journal import Journal, NoJournal
from solewriter.engine_proc.lock import Lock, make_folder
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import unpickled
from solewriter.engine_proc.preallocation import with_room
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.recovery import leftovers, quarantine, recovery
from solewriter.engine_proc.recovery.recovery import Recovery
from solewriter.engine_proc.recovery.replay import check_empty
from solewriter.engine_proc.sessions import ENGINE, Sessions
from solewriter.engine_proc.state import State
from solewriter.engine_proc.tuning import Threads, threads_beside
from solewriter.shared import failpoint
from solewriter.shared.config import BACKLOG, MEMORY_VERSION, Limits
from solewriter.shared.errors import EngineUnavailable, MemoryFull, SolewriterError
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.journal import life as lives
from solewriter.shared.journal.chain import journal_files, last_committed_in, state_id_of
from solewriter.shared.journal.entry import Life, Private
from solewriter.shared.registry import Registry
from solewriter.shared.system.processes import start_time_of


class Epoch(NamedTuple):
    """What one epoch of one state folder is made of."""

    orders: Orders
    lock: Lock
    threads: Threads
    maker: Maker
    journal: Journal
    publisher: Publisher
    state: State
    sessions: Sessions
    life: Life
    private_bytes: int  # of the journal that was replayed: see `Checkpoints`
    supervisor: int  # the process that started this one

    @property
    def folder(self) -> StateFolder:
        return self.orders.folder

    @property
    def limits(self) -> Limits:
        return self.orders.limits

    def close(self) -> None:
        """After a clean end: nothing of it stays in memory."""
        self.journal.close()
        self.folder.engine_json.unlink(missing_ok=True)
        self.remove_memory()
        self.folder.marker(self.publisher.prefix).unlink(missing_ok=True)
        self.threads.journal.shutdown()

    def remove_memory(self) -> None:
        """With what is just being made: else that would stay."""
        self.threads.memory.shutdown(cancel_futures=True)
        self.publisher.remove()


def started(orders: Orders) -> tuple[Epoch, socket.socket]:
    """An epoch, and where agents wait for it. Raises SolewriterError, OSError, and then no memory of it stays."""
    start = Start(orders)
    try:
        start.time_budget.install()
        listening = start.listen()
        return start.recover(), listening
    except MemoryFull as error:
        start.abandon()
        leftovers.remove_old_memory(start.folder, "", but_roots=True)  # it makes room for the next attempt
        raise MemoryFull(f"{error}{leftovers.still_mapped(start.folder)}") from error
    except (SolewriterError, OSError):
        start.abandon()
        raise


class Start:
    """Recovers one epoch of a state folder, whose lock it holds from its making on: `recover`, or else `abandon`."""

    def __init__(self, orders: Orders, threads: Threads | None = None) -> None:
        self.orders = orders
        self.limits = orders.limits
        self.folder = orders.folder
        self._supervisor = os.getppid()
        if not orders.again:
            make_folder(self.folder.path)
        self.lock = Lock(self.folder, again=orders.again)
        self.threads = threads or threads_beside()
        self._maker = Maker(self.lock.folder_fd)
        sys.path += [path for path in map(os.fsdecode, orders.sys_path) if path not in sys.path]
        self._registry = Registry(unpickled(orders.models))
        self.time_budget = TimeBudget(self.limits.decide_timeout_s)
        self._own: Whereabouts | None = None  # once there may be memory of this epoch

    def listen(self) -> socket.socket:
        """Agents may come from now on, and wait here until somebody lets them in: who finds nobody looks again, later
        and later, and would still sleep when this engine is ready.
        """
        listening = self.folder.bound_socket()
        listening.listen(BACKLOG)
        return listening

    def recover(self) -> Epoch:
        """Everything that must be true before the first hello."""
        with os.scandir(self.limits.memory_dir):
            pass  # what cannot be listed would never be given back
        journal = self._open_journal()
        own = self._note_memory()
        epoch = self._put_back(journal, self._make_memory(own), own.epoch)
        self._begin_life(epoch)
        self._show(epoch, own)
        leftovers.remove_old_memory(self.folder, own.prefix)
        failpoint.reach("recover.done")
        return epoch

    def _open_journal(self) -> Journal:
        files, memory = journal_files(self.folder.path), self.orders.durability == "memory"
        if not files:
            check_empty(self.folder.path, last_committed_in(self.folder.path), ran=self.orders.again and not memory)
        if memory:
            if files:
                raise EngineUnavailable(
                    f"{self.folder.path} holds a durable state, and durability='memory' would not write to it: "
                    "use 'process' or 'power', or another folder"
                )
            return NoJournal()
        # Of the newest one, which every start reads: older ones may be history, and damaged.
        state_id = state_id_of(files[-1]) if files else os.urandom(16)
        return FileJournal(
            self.lock.folder, state_id, self.limits, self.threads.journal, power=self.orders.durability == "power"
        )

    def _note_memory(self) -> Whereabouts:
        """Where what is published will be."""
        own = self._own = Whereabouts(
            MEMORY_VERSION,
            os.getpid(),
            start_time_of(os.getpid()),
            time.time_ns() // 1_000_000,
            self.limits.memory_dir,
            self.orders.prefix,
            os.fsencode(self.folder.path),
        )
        with_room(self.lock.folder, lambda: leftovers.note_memory(self.folder, own))
        return own

    def _make_memory(self, own: Whereabouts) -> Publisher:
        """Empty."""
        return Publisher(own, self.orders.durability, self.limits, self.threads.memory)

    def _put_back(self, journal: Journal, publisher: Publisher, number: int) -> Epoch:
        """The state and the sessions as the journal has them; the life that begins now."""
        state = State(self._registry, publisher, self.limits, self.time_budget)
        sessions = Sessions(self.limits)
        recovered = Recovery(self.lock.folder, journal, state, sessions, publisher, self.limits)
        checkpoint = recovered.run()
        remove_unfinished(self.lock.folder, checkpoint.entry if checkpoint is not None else 0)
        return Epoch(
            self.orders,
            self.lock,
            self.threads,
            self._maker,
            journal,
            publisher,
            state,
            sessions,
            self._life(number, recovered.life, state, sessions),
            recovered.private_bytes,
            self._supervisor,
        )

    def _life(self, number: int, before: Life | None, state: State, sessions: Sessions) -> Life:
        """The one that begins now."""
        life = Life(number, recovery.history_of(before), self.orders.durability, lives.boot_id(), drained=False)
        leases = state.coordination.leases.all()
        return quarantine.judge(life, before, quarantine.last_words(self.folder), sessions, leases)

    def _begin_life(self, epoch: Epoch) -> None:
        """Its first entry; kinds that are new come with it."""
        state, journal = epoch.state, epoch.journal
        check_fit(state, epoch.publisher, self._registry)
        new = state.new_kinds(self._registry)
        state.add_kinds(new.kinds, new.schemas)
        private = Private(kinds=new.kinds, schemas=new.schemas, life=epoch.life)
        journal.append(state.revision, time.time_ns() // 1000, [], private)
        asyncio.run(journal.commit(durable=True))
        for session, sequence in epoch.life.quarantined:
            epoch.sessions.quarantine(session, sequence, state.revision)
            if session == ENGINE:
                state.coordination.leases.deadly.add(sequence)

    def _show(self, epoch: Epoch, own: Whereabouts) -> None:
        """What was recovered is published, and readers are told where."""
        state, publisher, entry = epoch.state, epoch.publisher, epoch.journal.tail.number
        publisher.root.remember(epoch.life.history)
        publisher.describe([kind.name for kind in state.kinds], state.schemas)
        publisher.reserve({}, {})
        publisher.publish([], state.revision, entry, state.counts())
        state.forget(publisher.reclaim(0, state.revision, entry, state.counts))
        failpoint.reach("recover.published")
        with_room(self.lock.folder, lambda: self.folder.announce(own))
        failpoint.reach("recover.announced")

    def abandon(self) -> None:
        """After a start that failed: no memory of this epoch stays, also where the folder is gone that says so."""
        self.time_budget.end()
        self.threads.memory.shutdown(cancel_futures=True)
        if self._own is not None:
            leftovers.give_back(self.folder, self._own)
