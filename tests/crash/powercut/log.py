"""What a process did to the files of one folder, in order: the ground of every image of a disk.

A file is known by its number (the inode's), never by its name: names are what `create`, `rename` and `unlink` change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve().parent


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step. Which fields mean something depends on its kind:

    create (file, name)   truncate (file, length)   allocate (file, length: the least size after it)
    write (file, offset, data)   rename (name, to)   unlink (name)   close (file)
    begin (mark: a token), then sync (file, mark), sync-folder (mark), sync-parent (mark), or sync-failed (file, mark)
    make-folder: the folder itself   mark (mark: whatever the scenario notes here, a reply that left say)
    """

    kind: str
    file: int = 0
    name: str = ""
    to: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""
    mark: Any = None

    @property
    def shape(self) -> tuple[str, int, str, str, int, int]:
        """What a tracer outside of the process sees of it."""
        return self.kind, self.file, self.name, self.to, self.offset, self.length or len(self.data)


Log = list[Operation]


def shared(path: Path) -> Callable[[Operation], None]:
    """Notes operations in a file, behind those of every other process that does so, each by a single append."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    write = os.write  # not the recorder's, which comes to stand there

    def keep(operation: Operation) -> None:
        body = msgspec.msgpack.encode(operation)
        data = len(body).to_bytes(4, "little") + body
        if write(fd, data) != len(data):
            raise OSError(f"half an operation was noted in {path}")

    return keep


def recording_children(folder: Path, log: Path) -> dict[str, str]:
    """The environment in which Python processes note what they do in the folder, as `shared` does."""
    paths = [str(HERE / "hook"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "POWERCUT_RECORD": f"{folder}:{log}"}


def read_log(path: Path) -> Log:
    """What `shared` noted."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        found.append(msgspec.msgpack.decode(data[at + 4 : end], type=Operation))
        at = end
    return found
