"""What is journaled and what reaches the disk while one engine works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter import Engine, connect
from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.journaled import Journal
from solewriter.bench.kit.workload import fill
from solewriter.bench.restarting.busy import PATIENT, busy_agents, varied_task
from solewriter.engine_proc.process import Durability
from solewriter.shared.config import MIB
from solewriter.shared.journal.chain import first_of, journal_files

WRITTEN_TASKS = 20_000
HISTORY_BYTES = 16 * MIB
TRIMS = 2  # before writing is measured
TRIMS_MAX_S = 120.0
LOOK_EVERY_S = 0.2  # at the journal, before files of it are gone
FROM_EMPTY, STEADY = "from an empty folder", "used again"  # journal files that are made, and that were trimmed before


class Writing(msgspec.Struct):
    """What was written while one engine worked."""

    durability: str
    files: str  # "from an empty folder", "used again"
    seconds: float
    journal_mib: float
    written_mib: float | None  # None where no device tells
    checkpoints: int

    @property
    def amplification(self) -> float | None:
        return None if self.written_mib is None else self.written_mib / self.journal_mib


class Look(NamedTuple):
    """What there was at a moment."""

    moment: float
    written: int | None  # to the device, ever
    journal: int
    checkpoints: int

    @classmethod
    def now(cls, folder: Path, journal: Journal | None = None) -> Look:
        """Without a journal: before there is one."""
        written = device_written_bytes(folder)
        length, met = (journal.bytes(), len(journal.checkpoints)) if journal is not None else (0, 0)
        return cls(time.monotonic(), written, length, met)


def writing(folder: Path, durability: Durability, seconds: float) -> Iterator[Writing]:
    """Of one engine: until its files are used again, and from then on."""
    state, limits = folder / f"writing-{durability}", msgspec.structs.replace(PATIENT, history_bytes=HISTORY_BYTES)
    empty = Look.now(folder)
    with Engine(state, durability=durability, limits=limits):
        with connect(state, limits=limits) as client:
            fill(client, map(varied_task, range(WRITTEN_TASKS)))
        journal = Journal(state)
        with busy_agents(state, WRITTEN_TASKS):
            _await_trims(state, journal)
            trimmed = Look.now(folder, journal)
            yield _written(durability, FROM_EMPTY, empty, trimmed)
            while time.monotonic() - trimmed.moment < seconds:
                journal.bytes()
                time.sleep(LOOK_EVERY_S)
            yield _written(durability, STEADY, trimmed, Look.now(folder, journal))


def _written(durability: Durability, files: str, before: Look, after: Look) -> Writing:
    none = before.written is None or after.written is None
    written = None if none else ((after.written or 0) - (before.written or 0)) / MIB
    seconds, journal = after.moment - before.moment, (after.journal - before.journal) / MIB
    return Writing(durability, files, seconds, journal, written, after.checkpoints - before.checkpoints)


def _await_trims(state: Path, journal: Journal) -> None:
    """Some time after the first files were trimmed. TimeoutError when that does not happen."""
    deadline, beginnings = time.monotonic() + TRIMS_MAX_S, {1}
    while len(beginnings) <= TRIMS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {TRIMS_MAX_S:g} s the journal was trimmed {len(beginnings) - 1} times")
        journal.bytes()
        beginnings.add(first_of(journal_files(state)[0]))
        time.sleep(LOOK_EVERY_S)
