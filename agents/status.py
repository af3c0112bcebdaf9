"""How an engine is, seen from outside: from its state folder, its shared memory, and what the kernel says of it.

It never talks to the engine, writes nothing and takes no lock, so it answers beside an engine that is hung, stopped or
dead, and costs a healthy one nothing. What cannot be read is a problem in the answer, never an exception: whoever asks
for a status wants to hear exactly that.
"""

from __future__ import annotations

import os
import time
from typing import Literal

import msgspec

from solewriter.agents.inspection import (
    Contents,
    contents_of,
    disk_bytes_of,
    inspect_memory,
    last_outcomes,
    process_state_of,
    segment_bytes_of,
    uptime_s,
)
from solewriter.shared.config import DEFAULT_LIMITS, STALE_BEATS, STATUS_LOOKS_MAX, US_PER_S
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.folder import SOCKET, StateFolder, Whereabouts
from solewriter.shared.memory.root import STOPPED, Root, RootReader
from solewriter.shared.request_ids import default_id
from solewriter.shared.system.processes import runs

Condition = Literal["alive", "stale", "gone", "starting", "stopped", "absent"]
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
        contents = contents_of(folder)
        for _ in range(STATUS_LOOKS_MAX):
            status = _inspect(folder, contents)
            before, contents = contents, contents_of(folder)
            if contents.announced == before.announced:
                break  # else another engine took over during the look, or this one stopped
    except OSError as error:
        return EngineStatus(folder=str(folder.path), engine="absent", detail=_why_absent(folder, error))
    return status


def _why_absent(folder: StateFolder, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {folder.path}"
    if isinstance(error, NotADirectoryError):
        return f"{folder.path} is no folder"
    if isinstance(error, PermissionError):
        return f"user {os.geteuid()} may not read {error.filename}: ask as the user who runs the engine"
    return str(error)


def _inspect(folder: StateFolder, contents: Contents) -> EngineStatus:
    """The whole status, once."""
    dead = [one for one in contents.markers if one != contents.announced and not runs(one.pid, one.start_time)]
    status = EngineStatus(
        folder=str(folder.path),
        engine="stopped",
        problems=contents.problems,
        leftover_bytes=sum(segment_bytes_of(one).bytes for one in dead),
        journal_files=len(contents.journal),
        journal_bytes=disk_bytes_of(folder.path / name for name in (*contents.journal, "journal.next")),
    )
    if contents.announced is None:
        return _without_engine(status, contents)
    return _with_engine(status, folder, contents, contents.announced)


def _without_engine(status: EngineStatus, contents: Contents) -> EngineStatus:
    """Nobody serves: not yet, not any more, or never did."""
    for one in contents.markers:
        if process_state := process_state_of(one):
            reader = inspect_memory(one).reader
            if reader is not None and reader.successor == STOPPED:
                return msgspec.structs.replace(status, detail=f"pid {one.pid} still gives its memory back")
            return msgspec.structs.replace(
                status,
                engine="starting",
                detail="it recovers, and serves nobody yet",
                pid=one.pid,
                process_state=process_state,
                epoch=one.epoch,
                uptime_s=uptime_s(one),
            )
    if status.leftover_bytes:
        return msgspec.structs.replace(status, detail="an engine died here while it started or ended")
    if contents.journal:  # how the last one ended, or whether a start is refused, nobody says here
        return msgspec.structs.replace(status, detail="no engine runs; the next one goes on with what is journaled")
    if SOCKET in contents.names:
        return msgspec.structs.replace(status, detail="no engine runs, and nothing is journaled")
    return msgspec.structs.replace(status, engine="absent", detail=f"no engine ever served {status.folder}")


def _with_engine(status: EngineStatus, folder: StateFolder, contents: Contents, where: Whereabouts) -> EngineStatus:
    """An engine serves, or died serving."""
    now_us = time.monotonic_ns() // 1000  # before the heartbeat is read: a pause in between makes nobody look stale
    seen = inspect_memory(where)
    process_state = process_state_of(where)
    memory = segment_bytes_of(where)
    following = [one.pid for one in contents.markers if one != where and runs(one.pid, one.start_time)]
    status = msgspec.structs.replace(
        status,
        pid=where.pid,
        process_state=process_state,
        starting_pid=following[0] if following else None,
        epoch=where.epoch,
        uptime_s=uptime_s(where) if process_state else None,
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
    status = _with_condition(status)
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


def _with_condition(status: EngineStatus) -> EngineStatus:
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
        ended = last_outcomes(folder, journal) if journal else {request}
    except (OSError, JournalCorrupt) as error:
        problem = f"the journal cannot be read: {error}"
        return msgspec.structs.replace(status, last_request=named, problems=(*status.problems, problem))
    return msgspec.structs.replace(status, last_request=named, deciding=None if request in ended else named)
