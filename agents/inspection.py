"""An engine inspected without asking it: what lies in its state folder, what its memory holds and takes, and what
the kernel says of its process. Any of it may be missing, damaged or of a moment ago.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.shared.errors import UNDECODABLE, EngineUnavailable, LayoutMismatch
from solewriter.shared.folder import StateFolder, Whereabouts, whereabouts_in
from solewriter.shared.journal import entry as entries
from solewriter.shared.memory.root import ROOT_BYTES, Root, RootReader
from solewriter.shared.memory.segment import segment_path
from solewriter.shared.memory.view import View
from solewriter.shared.system.processes import process_state, runs

BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own blocks are


# --- the state folder -------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """What lies in a state folder. What a copy says of the engine of the folder that it was made of is left out."""

    names: list[str]
    announced: Whereabouts | None
    markers: list[Whereabouts]  # every set of segments that may exist
    problems: tuple[str, ...]

    @property
    def journal(self) -> list[str]:
        """Names of its files, oldest first."""
        return sorted(name for name in self.names if name.startswith("journal-") and name.endswith(".log"))


def contents_of(folder: StateFolder) -> Contents:
    """Raises OSError if the folder is not there, or not ours to look into."""
    names = os.listdir(folder.path)
    markers = []
    for name in names:
        if name.startswith("memory-") and name.endswith(".json"):
            try:
                marker = whereabouts_in(folder.path / name)
            except (FileNotFoundError, *UNDECODABLE):
                continue  # removed meanwhile, or its engine died while writing it: there is no memory of that name
            if not folder.is_of_another(marker):
                markers.append(marker)
    try:
        announced = whereabouts_in(folder.engine_json)
        return Contents(names, None if folder.is_of_another(announced) else announced, markers, ())
    except FileNotFoundError:
        return Contents(names, None, markers, ())
    except UNDECODABLE as error:  # then the newest marker is the best guess that there is
        newest = max(markers, key=lambda marker: marker.epoch, default=None)
        return Contents(names, newest, markers, (f"{folder.engine_json} cannot be read: {error}",))


def last_outcomes(folder: StateFolder, journal: list[str]) -> set[tuple[int, int]]:
    """(session, sequence) of the requests of the last journaled turn that decided any; behind a checkpoint, of all that
    are remembered: the turns before it may be trimmed.
    """
    for name in reversed(journal):
        buffer, at = (folder.path / name).read_bytes(), entries.FILE_HEADER_BYTES
        outcomes: list[entries.Outcome] = []
        number = 0
        while (found := entries.unpack(buffer, at)) is not None and found[0].number > number:
            said = found[0].private
            if said.whole is not None:
                outcomes = [outcome for session in said.whole.sessions for outcome in session.outcomes]
            outcomes = said.outcomes or outcomes
            number, at = found[0].number, found[2]
        if outcomes:
            return {(outcome.session, outcome.sequence) for outcome in outcomes}
    return set()


def disk_bytes_of(paths: Iterable[Path]) -> int:
    """Bytes that files take where they lie; none for one that went meanwhile."""
    taken = 0
    for path in paths:
        try:
            taken += path.lstat().st_blocks * BLOCK_BYTES
        except OSError:
            pass
    return taken


# --- the process -----------------------------------------------------------------------------------------------------


def process_state_of(where: Whereabouts) -> str | None:
    """The kernel's letter for the state of exactly this process; None if it is gone, be its pid another's now."""
    return (process_state(Path(f"/proc/{where.pid}")) or None) if runs(where.pid, where.start_time) else None


def uptime_s(where: Whereabouts) -> float:
    """Since the process began, by the clock that its start time is of."""
    began_s = where.start_time / os.sysconf("SC_CLK_TCK")
    return max(0.0, round(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 3))


# --- the memory ------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a reader finds in the memory of an epoch; what it should find and does not are problems."""

    reader: RootReader | None = None
    root: Root | None = None
    entities: dict[str, int] | None = None
    problems: tuple[str, ...] = ()


def inspect_memory(where: Whereabouts) -> Seen:
    """Raises nothing: what cannot be read is a problem."""
    path = segment_path(where.memory_dir, where.prefix, "root")
    try:
        if path.stat().st_size < ROOT_BYTES:
            return Seen(problems=(f"{path} is too short to be a root",))
        view = View(where.memory_dir, where.prefix)
        if not view.root.head:
            return Seen(view.root, problems=("nothing was published yet",))
        root = view.root.current()
    except (OSError, ValueError, LayoutMismatch, EngineUnavailable) as error:
        return Seen(problems=(_unreadable(error),))
    try:
        pin = view.pin()  # as any reader: all that it needs must be there
    except (OSError, ValueError, LayoutMismatch, EngineUnavailable) as error:
        return Seen(view.root, root, None, (_unreadable(error),))
    counts = zip(pin.catalog.kinds, pin.root.kinds, strict=False)
    return Seen(view.root, pin.root, {name: alive for name, (_, alive) in counts})


def _unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is gone: nobody can begin to read"
    return f"the memory cannot be read: {error}"


class Memory(msgspec.Struct, frozen=True):
    """Bytes that the segments of an epoch take, by what they are for."""

    segments: int
    heap: int
    table: int
    index: int
    other: int

    @property
    def bytes(self) -> int:
        return self.heap + self.table + self.index + self.other


def segment_bytes_of(where: Whereabouts) -> Memory:
    """All zero if its folder cannot be read."""
    prefix = f"{where.prefix}-"
    try:
        names = [name for name in os.listdir(where.memory_dir) if name.startswith(prefix)]
    except OSError:
        names = []
    of_part: dict[str, list[Path]] = {}
    for name in names:
        of_part.setdefault(name.removeprefix(prefix).partition("-")[0], []).append(Path(where.memory_dir, name))
    heap, table, index = (disk_bytes_of(of_part.pop(part, ())) for part in ("heap", "table", "index"))
    return Memory(len(names), heap, table, index, sum(map(disk_bytes_of, of_part.values())))
