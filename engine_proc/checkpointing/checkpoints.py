"""Checkpoints in the life of an engine: when one is due, and what may go when it is there.

A process of its own writes the file, a thread of this one waits for it and gives it its name. Then, between two turns,
everything that the engine remembers besides entities is journaled behind it: from that moment a start begins with this
checkpoint. Only then goes what no start needs, and no history that is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from solewriter.engine_proc.checkpointing.checkpoint import EngineGone, Made, Order
from solewriter.engine_proc.checkpointing.maker import NotMade
from solewriter.engine_proc.journal import Journal
from solewriter.engine_proc.lock import Lock
from solewriter.shared import failpoint
from solewriter.shared.config import (
    CHECKPOINT_LATE,
    CHECKPOINT_LIVE_MOST,
    CHECKPOINT_NICE,
    CHECKPOINT_RATIO,
    CHECKPOINT_SLOW,
    US_PER_S,
    Limits,
)
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch, in_words
from solewriter.shared.journal.chain import first_of, journal_files
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import CheckpointName, PrivateState
from solewriter.shared.journal.setaside import aside_files
from solewriter.shared.system.files import sync_folder


class Held(NamedTuple):
    """A checkpoint in the folder: what the bounds on history count of it, and what the next one waits for."""

    size: int
    time_us: int
    live_bytes: int = 0


class Checkpoints:
    """Makes checkpoints and gives up what they replace. `describe` returns what is journaled behind one."""

    def __init__(
        self,
        lock: Lock,
        journal: Journal,
        prefix: str,  # of the memory that is read
        limits: Limits,
        *,
        make: Callable[[Order], Made],
        waiter: Executor,  # a thread that is patient
        describe: Callable[[CheckpointName], PrivateState],
        log: Callable[[str], None],
        private_bytes: int = 0,  # of the journal that was replayed, those that were written behind the checkpoint
    ) -> None:
        self._lock = lock
        self._folder = lock.folder
        self._journal = journal
        self._prefix = prefix
        self._limits = limits
        self._make = make
        self._waiter = waiter
        self.describe = describe
        self._log = log
        self._running = False
        self._held = {entry: _held(path) for entry, path in checkpoint_files(self._folder).items()}
        self._since = private_bytes  # the journal's length behind the newest checkpoint and what belongs to it
        self._begun = 0  # its length behind the one that is being made
        self._grew = 0  # bytes of turns in the journal while the last one was made
        self._again_at = 0  # the journal's length from which on another one is tried, behind one that failed
        self._wanted = self._bytes_wanted(private_bytes)
        self._count = 0

    def _bytes_wanted(self, private_bytes: int) -> int:
        """Of turns in the journal behind a checkpoint, and behind so much that belongs to it, before the next one: by
        its own bytes for the sake of the disk, by those of its records in memory for that of the processor.
        """
        newest = self._held[max(self._held)] if self._held else Held(0, 0)
        for_disk = int(CHECKPOINT_RATIO * (newest.size + private_bytes))
        return max(self._limits.checkpoint_after_bytes, for_disk, min(newest.live_bytes, CHECKPOINT_LIVE_MOST))

    @property
    def due(self) -> bool:
        """Whether the journal has outgrown the state."""
        return not self._running and self._grown >= self._wanted and self._journal.length >= self._again_at

    @property
    def _grown(self) -> int:
        """Bytes of turns in the journal behind the newest checkpoint."""
        return self._journal.length - self._since

    # --- making ------------------------------------------------------------------------------------------------------

    def begin(self, done: Callable[[Made], None], unknown: tuple[int, ...] = ()) -> None:
        """Have the revision that is published now made into one. `done` is called in a thread, unless it fails. The
        classes of `unknown` kinds nobody knows here.
        """
        self._running, self._begun = True, self._journal.length
        failpoint.reach("checkpoint.begin")
        self._journal.make_ahead()
        self._waiter.submit(self._make_in_thread, done, 0 if self._is_urgent else CHECKPOINT_NICE, unknown)

    @property
    def _is_urgent(self) -> bool:
        """Whether the next one is late, or will take long: what grows meanwhile is the next replay."""
        return self._grown >= CHECKPOINT_LATE * self._wanted or self._grew >= CHECKPOINT_SLOW * self._wanted

    def _make_in_thread(self, done: Callable[[Made], None], nice: int, unknown: tuple[int, ...]) -> None:
        self._count += 1
        path = self._folder / f"checkpoint-{os.getpid()}-{self._count}.tmp"
        try:
            made = self._make(self._order(path, nice, unknown))
            self._lock.check()
            failpoint.reach("checkpoint.made")
            os.rename(path, checkpoint_path(self._folder, made.entry))
            failpoint.reach("checkpoint.renamed")
            self._journal.sync_names()
            done(made)
        except EngineGone:
            pass  # and nobody waits for it
        except NotMade as error:
            self.failed(error.message)
        except Exception as error:  # whatever it was, another one may be made
            self.failed(in_words(error))
        finally:
            path.unlink(missing_ok=True)

    def _order(self, path: Path, nice: int, unknown: tuple[int, ...]) -> Order:
        limits = self._limits
        sizes = limits.heap_segment_bytes_first, limits.heap_segment_bytes_max
        state_id, engine = self._journal.state_id, os.getpid()
        return Order(os.fsencode(path), limits.memory_dir, self._prefix, state_id, sizes, engine, nice, unknown)

    def failed(self, why: str) -> None:
        """Nothing is lost: the journal has everything. Another one is made when it has grown by half of the least."""
        self._log(f"a checkpoint was not made: {why}")
        self._again_at = self._journal.length + self._limits.checkpoint_after_bytes // 2
        self._running = False

    def given_up(self, made: Made, why: str) -> None:
        """The journal has no room for what belongs behind it: the file would only take more."""
        self._waiter.submit(checkpoint_path(self._folder, made.entry).unlink, missing_ok=True)
        self.failed(why)

    # --- what may go -------------------------------------------------------------------------------------------------

    def noted(self, made: Made, private_bytes: int, trimmed: Callable[[], None]) -> None:
        """It is in the journal: a start begins with it. `trimmed` is called in a thread, when another one may begin."""
        self._held[made.entry] = Held(made.size, made.time_us, made.live_bytes)
        self._since, self._wanted = self._begun + private_bytes, self._bytes_wanted(private_bytes)
        self._grew = self._grown
        self._waiter.submit(self._trim, made.entry, made.time_us, trimmed)

    def _trim(self, newest: int, now_us: int, trimmed: Callable[[], None]) -> None:
        """Give up what no start needs, and no history that is kept."""
        try:
            failpoint.reach("trim.begin")
            self._lock.check()  # or it is another state's history by now
            sizes = {first_of(path): path.stat().st_size for path in journal_files(self._folder)}
            oldest = oldest_kept(sizes, self._held, newest, now_us, self._limits)
            self._journal.trim(oldest + 1, self._lock.check)
            failpoint.reach("trim.journal")
            self._lock.check()
            for entry in [entry for entry in self._held if entry < oldest]:
                checkpoint_path(self._folder, entry).unlink(missing_ok=True)
                del self._held[entry]
            for entry, path in aside_files(self._folder).items():
                if entry < oldest:
                    path.unlink(missing_ok=True)
            failpoint.reach("trim.done")
        except Exception as error:  # what stays is looked at again behind the next checkpoint
            self._log(f"trimming: {in_words(error)}")
        self._running = False
        trimmed()


def oldest_kept(
    files: Mapping[int, int], checkpoints: Mapping[int, Held], newest: int, now_us: int, limits: Limits
) -> int:
    """The entry of the checkpoint with which the history begins that is kept: 0 for the beginning of all.

    `files`: bytes of each journal file by its first entry. History is all that lies before the newest checkpoint; it
    takes `history_bytes` at most, and does not reach back behind the newest checkpoint older than `history_s`.
    """
    kept, oldest_us = newest, now_us - int(limits.history_s * US_PER_S)
    ends = dict(pairwise([*sorted(files), newest + 1]))
    known = sorted(entry for entry in checkpoints if entry < newest)
    for entry in reversed([0, *known] if 1 in files else known):
        bytes_kept = sum(size for first, size in files.items() if first <= newest and ends.get(first, 0) > entry + 1)
        bytes_kept += sum(checkpoints[one].size for one in known if one >= entry)
        if bytes_kept > limits.history_bytes or checkpoints[kept].time_us <= oldest_us:
            break
        kept = entry
    return kept


def _held(path: Path) -> Held:
    try:
        with Checkpoint(path) as checkpoint:
            return Held(checkpoint.size, checkpoint.directory.time_us, checkpoint.directory.live_bytes)
    except (JournalCorrupt, LayoutMismatch):  # of the history only: the one that a start needs was read
        return Held(path.stat().st_size, 0)
    except PermissionError:  # of the history, too, and made another user's by a restore, say: it may be mended
        found = path.stat()
        return Held(found.st_size, found.st_mtime_ns // 1000)


def remove_unfinished(folder: Path, newest: int) -> None:
    """At a start, before anything else is journaled: what a dead engine's checkpoints left behind that the journal does
    not name. Where a power cut took the entries before one, later lives would find it ahead of their journal.
    """
    unnamed = [path for entry, path in checkpoint_files(folder).items() if entry > newest]
    left = [*folder.glob("checkpoint-*.tmp"), *unnamed]
    for path in left:
        path.unlink(missing_ok=True)
    if left:
        sync_folder(folder)
