"""How an engine is, seen from outside: from its state folder, its shared memory, and what the kernel says of it.

It never talks to the engine, writes nothing and takes no lock, so it answers beside an engine that is hung, stopped or
dead, and costs a healthy one nothing. What cannot be read is a problem in the answer, never an exception: whoever asks
for a status wants to hear exactly that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from solewriter.shared import entry as entries
from solewriter.shared.config import DEFAULT_LIMITS, STALE_BEATS, STATUS_LOOKS_MAX, US_PER_S
from solewriter.shared.errors import UNDECODABLE, EngineUnavailable, JournalCorrupt, LayoutMismatch
from solewriter.shared.folder import SOCKET, StateFolder, Whereabouts, whereabouts_in
from solewriter.shared.memory.root import ROOT_BYTES, STOPPED, Root, RootReader
from solewriter.shared.memory.segment import segment_path
from solewriter.shared.memory.view import View
from solewriter.shared.processes import process_state, runs
from solewriter.shared.request_ids import default_id

Condition = Literal["alive", "stale", "gone", "starting", "stopped", "absent"]
BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own blocks are
WHY_STALE = {  # by the kernel's letter for the state of the process
    "T": "its process is stopped by a signal (T): SIGCONT lets it go on",
    "t": "its process is stopped by a debugger (t)",
    "D": "its process is in uninterruptible sleep (D): it waits for a disk or a file system",
    "R": "its process computes (R) and does not come round",
    "S": "its process sleeps (S) and does not come round",
}


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `status_of` found. None where it is not known. Bytes are what files take, not how long they are."""

    folder: str
    engine: Condition
    """alive; stale: its process is there, and missed STALE_BEATS heartbeats; gone: its process died; starting: it
    serves nobody yet; stopped: nobody serves, somebody did; absent: nobody ever did, or the folder cannot be read"""
    detail: str = ""  # the condition in words, where there is more to say
    problems: tuple[str, ...] = ()  # what should be readable and is not
    pid: int | None = None
    process_state: str | None = None  # the kernel's letter: S sleeps, R runs, T is stopped, D waits for a disk ...
    starting_pid: int | None = None  # of an engine that is about to follow this one
    epoch: int | None = None
    uptime_s: float | None = None
    heartbeat_age_s: float | None = None
    heartbeat_period_s: float | None = None  # None before the first heartbeat of an engine that serves
    durability: str | None = None
    revision: int | None = None
    history_id: str | None = None
    entities: dict[str, int] | None = None  # alive ones of each kind
    sessions_remembered: int | None = None  # this and the next one as of the last heartbeat
    sessions_connected: int | None = None
    last_request: str | None = None  # request id of what an engine that is stale or gone took up last
    deciding: str | None = None  # the same, if the journal holds no outcome of it: the engine hangs or died in it
    memory_dir: str | None = None
    memory_segments: int = 0
    memory_bytes: int = 0
    memory_heap_bytes: int = 0
    memory_table_bytes: int = 0
    memory_index_bytes: int = 0
    memory_other_bytes: int = 0
    memory_held_bytes: int = 0  # besides: of segments that only readers' older snapshots keep, as of the last heartbeat
    leftover_bytes: int = 0  # memory of dead engines that nobody can read; the next start frees it
    journal_files: int = 0
    journal_bytes: int = 0
    journal_entry: int | None = None  # number of the newest one when `revision` was published


def status_of(state: str | os.PathLike[str]) -> EngineStatus:
    """The status of the engine of a state folder. Raises nothing for what it may find there.

    It is read part by part beside a running engine, so parts may be some turns apart; revision, entities and journal
    entry belong together.
    """
    folder = StateFolder(state)
    try:
        contents = _contents(folder)
        for _ in range(STATUS_LOOKS_MAX):
            status = _look(folder, contents)
            before, contents = contents, _contents(folder)
            if contents.announced == before.announced:
                break  # else another engine took over during the look, or this one stopped
    except OSError as error:
        return EngineStatus(folder=str(folder.path), engine="absent", detail=_why_absent(folder, error))
    return status


# --- the state folder ------------------------------------------------------------------------------------------------


class _Contents(NamedTuple):
    """What lies in a state folder."""

    names: list[str]
    announced: Whereabouts | None
    markers: list[Whereabouts]  # every set of segments that may exist
    problems: tuple[str, ...]

    @property
    def journal(self) -> list[str]:
        """Names of its files, oldest first."""
        return sorted(name for name in self.names if name.startswith("journal-") and name.endswith(".log"))


def _contents(folder: StateFolder) -> _Contents:
    """Raises OSError if the folder is not there, or not ours to look into."""
    names = os.listdir(folder.path)
    markers = []
    for name in names:
        if name.startswith("memory-") and name.endswith(".json"):
            try:
                markers.append(whereabouts_in(folder.path / name))
            except (FileNotFoundError, *UNDECODABLE):
                pass  # removed meanwhile, or its engine died while writing it: there is no memory of that name
    try:
        return _Contents(names, whereabouts_in(folder.engine_json), markers, ())
    except FileNotFoundError:
        return _Contents(names, None, markers, ())
    except UNDECODABLE as error:  # then the newest marker is the best guess that there is
        newest = max(markers, key=lambda marker: marker.epoch, default=None)
        return _Contents(names, newest, markers, (f"{folder.engine_json} cannot be read: {error}",))


def _why_absent(folder: StateFolder, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {folder.path}"
    if isinstance(error, NotADirectoryError):
        return f"{folder.path} is no folder"
    if isinstance(error, PermissionError):
        return f"user {os.geteuid()} may not read {error.filename}: ask as the user who runs the engine"
    return str(error)


def _look(folder: StateFolder, contents: _Contents) -> EngineStatus:
    """The whole status, once."""
    dead = [one for one in contents.markers if one != contents.announced and not runs(one.pid, one.start_time)]
    status = EngineStatus(
        folder=str(folder.path),
        engine="stopped",
        problems=contents.problems,
        leftover_bytes=sum(_memory(one).bytes for one in dead),
        journal_files=len(contents.journal),
        journal_bytes=_taken(folder.path / name for name in (*contents.journal, "journal.next")),
    )
    if contents.announced is None:
        return _unannounced(status, contents)
    return _announced(status, folder, contents, contents.announced)


def _unannounced(status: EngineStatus, contents: _Contents) -> EngineStatus:
    """Nobody serves: not yet, not any more, or never did."""
    for one in contents.markers:
        if process_state := _process_state(one):
            reader = _seen(one).reader
            if reader is not None and reader.successor == STOPPED:
                return msgspec.structs.replace(status, detail=f"pid {one.pid} still gives its memory back")
            return msgspec.structs.replace(
                status,
                engine="starting",
                detail="it recovers, and serves nobody yet",
                pid=one.pid,
                process_state=process_state,
                epoch=one.epoch,
                uptime_s=_uptime_s(one),
            )
    if status.leftover_bytes:
        return msgspec.structs.replace(status, detail="an engine died here while it started or ended")
    if contents.journal:  # how the last one ended, or whether a start is refused, nobody says here
        return msgspec.structs.replace(status, detail="no engine runs; the next one goes on with what is journaled")
    if SOCKET in contents.names:
        return msgspec.structs.replace(status, detail="no engine runs, and nothing is journaled")
    return msgspec.structs.replace(status, engine="absent", detail=f"no engine ever served {status.folder}")


# --- an engine -------------------------------------------------------------------------------------------------------


def _announced(status: EngineStatus, folder: StateFolder, contents: _Contents, where: Whereabouts) -> EngineStatus:
    """An engine serves, or died serving."""
    now_us = time.monotonic_ns() // 1000  # before the heartbeat is read: a pause in between makes nobody look stale
    seen = _seen(where)
    process_state = _process_state(where)
    memory = _memory(where)
    following = [one.pid for one in contents.markers if one != where and runs(one.pid, one.start_time)]
    status = msgspec.structs.replace(
        status,
        pid=where.pid,
        process_state=process_state,
        starting_pid=following[0] if following else None,
        epoch=where.epoch,
        uptime_s=_uptime_s(where) if process_state else None,
        memory_dir=where.memory_dir,
        memory_segments=memory.segments,
        memory_bytes=memory.bytes,
        memory_heap_bytes=memory.heap,
        memory_table_bytes=memory.table,
        memory_index_bytes=memory.index,
        memory_other_bytes=memory.other,
    )
    if process_state or memory.segments:  # memory that went with its process is no surprise
        status = msgspec.structs.replace(status, problems=(*status.problems, *seen.problems))
    if seen.reader is not None and seen.root is not None:
        status = _with_root(status, seen.reader, seen.root, seen.entities, now_us)
    status = _judged(status)
    if seen.reader is not None and status.engine != "alive":
        status = _with_request(status, folder, contents.journal, seen.reader.deciding)
    return status


def _with_root(
    status: EngineStatus, reader: RootReader, root: Root, entities: dict[str, int] | None, now_us: int
) -> EngineStatus:
    """What the root says."""
    age_us = now_us - reader.heartbeat_us
    if status.process_state:
        age_us = max(0, age_us)  # negative otherwise only where a dead engine's machine was started again
    return msgspec.structs.replace(
        status,
        heartbeat_age_s=round(age_us / US_PER_S, 3) if age_us >= 0 else None,
        heartbeat_period_s=reader.heartbeat_period_us / US_PER_S or None,
        durability=reader.durability,
        revision=root.revision,
        history_id=reader.history.hex(),
        entities=entities,
        sessions_remembered=reader.sessions,
        sessions_connected=reader.connected,
        memory_held_bytes=reader.held_bytes,
        journal_entry=root.entry if reader.durability != "memory" else None,
    )


def _judged(status: EngineStatus) -> EngineStatus:
    """The engine's condition, from what was found."""
    if status.process_state is None:
        left = "the last snapshot is still readable" if status.revision is not None else "no snapshot can be read"
        return msgspec.structs.replace(status, engine="gone", detail=f"its process died; {left}")
    age_s, period_s = status.heartbeat_age_s, status.heartbeat_period_s
    if age_s is not None and age_s > (period_s * STALE_BEATS if period_s else DEFAULT_LIMITS.start_timeout_s):
        why = WHY_STALE.get(status.process_state, f"the state of its process is {status.process_state}")
        return msgspec.structs.replace(status, engine="stale", detail=why)
    return msgspec.structs.replace(status, engine="alive")


def _with_request(
    status: EngineStatus, folder: StateFolder, journal: list[str], request: tuple[int, int]
) -> EngineStatus:
    """What an engine that does not go on was at. The root names the last request taken up, whether it ended or not; its
    outcome would be in the journal, in the last turn that decided anything.
    """
    if not any(request):
        return status
    named = default_id(*request)
    try:
        ended = _last_outcomes(folder, journal) if journal else {request}
    except (OSError, JournalCorrupt) as error:
        problem = f"the journal cannot be read: {error}"
        return msgspec.structs.replace(status, last_request=named, problems=(*status.problems, problem))
    return msgspec.structs.replace(status, last_request=named, deciding=None if request in ended else named)


def _last_outcomes(folder: StateFolder, journal: list[str]) -> set[tuple[int, int]]:
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


# --- the process -----------------------------------------------------------------------------------------------------


def _process_state(where: Whereabouts) -> str | None:
    """The kernel's letter for the state of exactly this process; None if it is gone, be its pid another's now."""
    return (process_state(Path(f"/proc/{where.pid}")) or None) if runs(where.pid, where.start_time) else None


def _uptime_s(where: Whereabouts) -> float:
    """Since the process began, by the clock that its start time is of."""
    began_s = where.start_time / os.sysconf("SC_CLK_TCK")
    return max(0.0, round(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 3))


# --- the memory ------------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """What a reader finds in the memory of an epoch; what it should find and does not are problems."""

    reader: RootReader | None = None
    root: Root | None = None
    entities: dict[str, int] | None = None
    problems: tuple[str, ...] = ()


def _seen(where: Whereabouts) -> _Seen:
    path = segment_path(where.memory_dir, where.prefix, "root")
    try:
        if path.stat().st_size < ROOT_BYTES:
            return _Seen(problems=(f"{path} is too short to be a root",))
        view = View(where.memory_dir, where.prefix)
        if not view.root.head:
            return _Seen(view.root, problems=("nothing was published yet",))
        root = view.root.current()
    except (OSError, ValueError, LayoutMismatch, EngineUnavailable) as error:
        return _Seen(problems=(_unreadable(error),))
    try:
        pin = view.pin()  # as any reader: all that it needs must be there
    except (OSError, ValueError, LayoutMismatch, EngineUnavailable) as error:
        return _Seen(view.root, root, None, (_unreadable(error),))
    counts = zip(pin.catalog.kinds, pin.root.kinds, strict=False)
    return _Seen(view.root, pin.root, {name: alive for name, (_, alive) in counts})


def _unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is gone: nobody can begin to read"
    return f"the memory cannot be read: {error}"


class _Memory(msgspec.Struct, frozen=True):
    """Bytes that the segments of an epoch take, by what they are for."""

    segments: int
    heap: int
    table: int
    index: int
    other: int

    @property
    def bytes(self) -> int:
        return self.heap + self.table + self.index + self.other


def _memory(where: Whereabouts) -> _Memory:
    """All zero if its folder cannot be read."""
    prefix = f"{where.prefix}-"
    try:
        names = [name for name in os.listdir(where.memory_dir) if name.startswith(prefix)]
    except OSError:
        names = []
    of_part: dict[str, list[Path]] = {}
    for name in names:
        of_part.setdefault(name.removeprefix(prefix).partition("-")[0], []).append(Path(where.memory_dir, name))
    heap, table, index = (_taken(of_part.pop(part, ())) for part in ("heap", "table", "index"))
    return _Memory(len(names), heap, table, index, sum(map(_taken, of_part.values())))


def _taken(paths: Iterable[Path]) -> int:
    """Bytes that files take where they lie; none for one that went meanwhile."""
    taken = 0
    for path in paths:
        try:
            taken += path.lstat().st_blocks * BLOCK_BYTES
        except OSError:
            pass
    return taken
