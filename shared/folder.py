"""The state folder: which files are in it, and `engine.json`, which names the running engine and its memory.

lock                    held by the engine (flock); its text names the holder
engine.json             pid, epoch and memory of the engine that serves now; replaced by an atomic rename
engine.sock             where agents say hello
memory-<prefix>.json    one for each set of segments that may exist: written before the first segment is made
journal-*.log, committed    the journal: its entries, and the number of the last one that was durable
journal.next, spare-*.log   its next file while it is made, and trimmed files that will be made into one
checkpoint-*            all entities behind a journal entry; `.tmp` while it is written
reserve                 room that is given back when the disk is full
"""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import msgspec

from solewriter.shared.config import POLL_MS_MAX
from solewriter.shared.errors import UNDECODABLE, EngineUnavailable, check_depth, safe_repr
from solewriter.shared.system.files import replace_file
from solewriter.shared.system.processes import peer_of, runs

SOCKET = "engine.sock"
PREFIX = re.compile("solewriter-[0-9a-z]{1,64}")  # of segments: what else a file names is none of ours, and is let be


def new_prefix() -> str:
    """A prefix for the names of one epoch's segments, which nobody else has or guesses."""
    return f"solewriter-{os.urandom(12).hex()}"


class Whereabouts(msgspec.Struct, frozen=True):
    """Which engine serves a state folder, and where its memory is."""

    format: int
    pid: int
    start_time: int
    epoch: int
    memory_dir: str
    prefix: str
    folder: bytes = b""  # the state folder, where a copy of that one says so, too


def unlike_a_folder(path: Path) -> str:
    """What is told of a path that may be mistyped, behind its name."""
    try:
        os.stat(f"{path}/.")
    except FileNotFoundError:
        return ", which is not there"
    except NotADirectoryError:
        return ", which is no folder"
    except OSError:
        pass
    return ""


class StateFolder:
    """Paths and small files of one state folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises TypeError, ValueError for what names no folder: pathlib takes an empty name for the current one.
        FileNotFoundError for a relative one where the current folder was deleted.
        """
        name: Any = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(name, str):
            raise TypeError(f"a state is the path of a folder, as a str or a Path, not {safe_repr(path)}")
        if not name or "\0" in name:
            raise ValueError(f"a state is the path of a folder, not {safe_repr(path)}")
        try:
            self.path = Path(name).absolute()
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, "the current folder was deleted, to which this is relative", name
            ) from None

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def engine_json(self) -> Path:
        return self.path / "engine.json"

    def whereabouts(self) -> Whereabouts:
        """The engine that serves now, or served last. Raises EngineUnavailable if none did; so it does in a copy of the
        folder that it served.
        """
        try:
            found = whereabouts_in(self.engine_json)
            if self.is_of_another(found):
                raise FileNotFoundError(f"{self.engine_json} is of {os.fsdecode(found.folder)}")
            return found
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.not_served(error, to_reader=True) from None
        except UNDECODABLE as error:
            check_depth(error)
            raise EngineUnavailable(f"{self.engine_json} cannot be read ({error}): restart the engine") from error

    @property
    def is_served(self) -> bool:
        """Whether an engine serves now."""
        try:
            where = self.whereabouts()
        except EngineUnavailable:
            return False
        return runs(where.pid, where.start_time)

    def not_served(self, error: Exception, *, to_reader: bool = False) -> EngineUnavailable:
        """What is told where nobody answers. That nobody listens is said in words: errno has none for it."""
        final = is_no_folder(error)
        if not isinstance(error, (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)):
            return EngineUnavailable(f"no engine serves {self.path}: {error}", final=final)
        hint = f"start one by `with Engine({str(self.path)!r})` or `solewriter serve`"
        if to_reader and any(self.path.glob("journal-*.log")):
            hint += ", or read what it holds: open_reader(..., offline=True)"
        return EngineUnavailable(f"no engine serves {self.path}{self._unlike_a_state()}: {hint}", final=final)

    def _unlike_a_state(self) -> str:
        """What is told of a path that may be mistyped, where an engine would make a folder or has none so far."""
        if unlike := unlike_a_folder(self.path):
            return unlike
        try:
            names = os.listdir(self.path)
        except OSError:
            return ""
        served = SOCKET in names or any(name.startswith(("journal-", "checkpoint-")) for name in names)
        return "" if served else ", and none ever did"

    def announce(self, whereabouts: Whereabouts) -> None:
        """Name a new engine, atomically."""
        replace_file(self.engine_json, msgspec.json.encode(whereabouts))

    def marker(self, prefix: str) -> Path:
        return self.path / f"memory-{prefix}.json"

    def mark(self, whereabouts: Whereabouts) -> None:
        """Note a set of segments, before the first of them is made."""
        replace_file(self.marker(whereabouts.prefix), msgspec.json.encode(whereabouts))

    def markers(self) -> list[Whereabouts]:
        """Every set of segments that may exist."""
        found = []
        for path in self.path.glob("memory-*.json"):
            try:
                found.append(whereabouts_in(path))
            except (FileNotFoundError, *UNDECODABLE):
                path.unlink(missing_ok=True)  # it was being written when its engine died: no segment was made yet
        return found

    def is_of_another(self, memory: Whereabouts) -> bool:
        """Whether this names segments of another folder, which is there and names them: then this one is a copy of it.
        A folder that was moved, or is found by another path, is no other one.
        """
        try:
            other = StateFolder(os.fsdecode(memory.folder or os.fsencode(self.path)))
            return not other.path.samefile(self.path) and other.marker(memory.prefix).exists()
        except (OSError, ValueError):  # nobody may look there, or what names it is damaged
            return False

    # --- the socket ---------------------------------------------------------------------------------------------------

    def bound_socket(self) -> socket.socket:
        """The listening socket, only for this user. A socket address holds 107 bytes, so it is named through a
        descriptor.
        """
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (self.path / SOCKET).unlink(missing_ok=True)
        folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        before = os.umask(0o177)
        try:
            made.bind(f"/proc/self/fd/{folder}/{SOCKET}")
        finally:
            os.umask(before)
            os.close(folder)
        return made

    def connected_socket(self, timeout_s: float) -> socket.socket:
        """A connection to the engine, which is this user's. Raises OSError."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(min(timeout_s, POLL_MS_MAX / 1000))
        try:
            folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                made.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            finally:
                os.close(folder)
            uid = peer_of(made)[1]
            if uid != os.geteuid():
                raise PermissionError(errno.EACCES, f"uid {uid} listens there")
        except OSError:
            made.close()
            raise
        return made


def is_no_folder(error: Exception) -> bool:
    """Whether this says of a path that no engine can make a folder there either."""
    return isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def whereabouts_in(path: Path) -> Whereabouts:
    """What this file says. Raises what `UNDECODABLE` names, also for what is no prefix of segments or no name of a
    folder, and OSError.
    """
    # as text: of names that it does not know, msgspec would take any bytes
    found = msgspec.json.decode(path.read_bytes().decode(), type=Whereabouts)
    if PREFIX.fullmatch(found.prefix) is None:
        raise msgspec.ValidationError(f"no prefix of segments: {found.prefix!r:.100}")
    if not found.memory_dir.startswith("/") or "\0" in found.memory_dir:
        raise msgspec.ValidationError(f"no folder of memory: {found.memory_dir!r:.100}")
    return found


def unclosed_warning(what: str, folder: StateFolder) -> str:
    """What a ResourceWarning says of a client or reader that was forgotten."""
    return f"a {what} of {folder.path} was never closed: close() it, or use it in a `with`"


def not_picklable(what: str, way: str) -> TypeError:
    """What is raised where a client or reader is pickled, as an argument of a process that is spawned, say."""
    problem = f"a {what} belongs to the process that made it"
    return TypeError(f"{problem}; another one gets the path and opens its own: {way}")


def legible(text: str) -> str:
    """As it is, but for parts of names that are no UTF-8, which nothing encodes: those are escaped."""
    return text.encode(errors="backslashreplace").decode()
