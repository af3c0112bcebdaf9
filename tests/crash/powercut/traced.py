"""A real engine process, recorded from inside by the recorder and from outside by strace: they must have seen the same.

`play` is the story: two owners, an engine that is killed, one that is stopped, one more.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from powercut.log import Log, read_log, recording_children, shared
from powercut.recorder import Recorder

STORY = "import sys; from powercut.traced import play; play(*sys.argv[1:])"
CALLS = (
    "openat,open,creat,pwrite64,write,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,"
    "unlink,unlinkat,ftruncate,truncate,fallocate,mkdir,mkdirat,link,linkat,symlink,symlinkat,copy_file_range,sendfile,"
    "splice,mmap,syncfs,msync"
)


def record_here(folder: str, log: str) -> None:
    """From now on, to the end of this process and of those that it forks."""
    Recorder(Path(folder), shared(Path(log)), existing=False).__enter__()


# --- the story --------------------------------------------------------------------------------------------------------


def play(state: str, memory: str) -> None:
    """Requests, a kill, enough of them for a roll of files, a clean stop, one more life."""
    from solewriter import Engine, Limits, Task, connect

    limits = Limits(memory_dir=memory, heap_segment_bytes_first=256 * 1024, journal_file_bytes=1024 * 1024)
    with (
        Engine(state, durability="power", limits=limits) as engine,
        connect(state, name="one", limits=limits) as client,
    ):
        for number in range(3):
            client.create(Task(id=f"t-{number}", title="small"))
        os.kill(engine.pid, signal.SIGKILL)
        for number in range(4):
            client.create(Task(id=f"large-{number}", title="large", description=f"{number}" * 300_000))
        client.delete(Task.ref("t-1"))
    with Engine(state, durability="power", limits=limits), connect(state, name="two", limits=limits) as client:
        client.update(Task.ref("t-2"), title="again")


class Seen(NamedTuple):
    """What was done, to what, from where, how much."""

    kind: str
    name: str
    offset: int = 0
    length: int = 0
    to: str = ""


def traced(state: Path, memory: Path, scratch: Path) -> tuple[Log, list[Seen]]:
    """The story under strace: what the recorder noted, and what strace saw."""
    log, trace = scratch / "recorded", scratch / "trace"
    environment = {**os.environ, **recording_children(state, log), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={CALLS}", "-e", "signal=none"]
    subprocess.run(
        [*command, sys.executable, "-c", STORY, str(state), str(memory)],
        env=environment, check=True, timeout=100, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return read_log(log), list(seen_by_strace(trace.read_text(), state))


# --- what strace saw --------------------------------------------------------------------------------------------------

CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+)")
DESCRIPTOR = re.compile(r"^\d+<([^>]*?)(?: \(deleted\))?>")
FOLDER = re.compile(r"/proc/self/fd/\d+")  # which holds the lock names its folder by a descriptor
QUOTED = re.compile(r'"([^"]*)"')


def whole_lines(text: str) -> Iterator[str]:
    """Calls that others interrupted are put together again, where they ended."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)$", line):
            yield begun.pop(pid, "") + resumed[1]
        else:
            yield line


def seen_by_strace(text: str, state: Path) -> Iterator[Seen]:
    """The successful calls that change the files of the folder, in the recorder's words."""
    tracker = Tracker(state)
    for line in whole_lines(text):
        call = CALL.match(line)
        if call is not None and not call[4].startswith("-"):
            yield from tracker.take(call[2], call[3], int(call[4], 0))


class Tracker:
    """What files there are, and how long: strace names calls, not what they come to."""

    def __init__(self, state: Path) -> None:
        self._state = str(state)
        self._sizes: dict[str, int] = {}
        self._positions: defaultdict[str, int] = defaultdict(int)

    def _name(self, path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        return name if folder == self._state or FOLDER.fullmatch(folder) else None

    def take(self, call: str, arguments: str, result: int) -> Iterator[Seen]:
        if call in ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat"):
            yield from self._of_names(call, QUOTED.findall(arguments))
            return
        if call in ("openat", "open", "creat"):
            yield from self._open(QUOTED.findall(arguments)[0], arguments)
            return
        fd = DESCRIPTOR.match(arguments)
        if call == "mmap":
            fds = re.findall(r"\d+<([^>]*)>", arguments)
            if fds and self._name(fds[0]) and "MAP_SHARED" in arguments and "PROT_WRITE" in arguments:
                yield Seen("mapped", fds[0])
            return
        path = fd[1] if fd is not None else (QUOTED.findall(arguments) or [""])[0]
        if path == self._state and call in ("fsync", "fdatasync"):
            yield Seen("sync-folder", "")
        elif (name := self._name(path)) is not None:
            yield self._of_contents(call, name, arguments, result)

    def _of_names(self, call: str, paths: list[str]) -> Iterator[Seen]:
        if call.startswith("mkdir"):
            if paths[0] == self._state:
                yield Seen("make-folder", "")
            return
        name = self._name(paths[0])
        if name is None:
            return
        size = self._sizes.pop(name, 0)
        if call.startswith("rename"):
            self._sizes[self._name(paths[1]) or ""] = size
            yield Seen("rename", name, to=self._name(paths[1]) or paths[1])
        else:
            yield Seen("unlink", name)

    def _open(self, path: str, arguments: str) -> Iterator[Seen]:
        name = self._name(path)
        if name is None or not re.search("O_WRONLY|O_RDWR", arguments):
            return
        self._positions[name] = 0
        if name not in self._sizes:
            yield Seen("create", name)
        elif "O_TRUNC" in arguments and self._sizes[name]:
            yield Seen("truncate", name)
        if name not in self._sizes or "O_TRUNC" in arguments:
            self._sizes[name] = 0

    def _of_contents(self, call: str, name: str, arguments: str, result: int) -> Seen:
        numbers = [int(one) for one in re.findall(r", (\d+)", arguments)]
        if call in ("fsync", "fdatasync"):
            return Seen("sync", name)
        if call == "ftruncate":
            self._sizes[name] = numbers[0]
            return Seen("truncate", name, length=numbers[0])
        if call == "fallocate":
            self._sizes[name] = max(self._sizes[name], sum(numbers[-2:]))
            return Seen("allocate", name, *numbers[-2:])
        if call in ("pwrite64", "write"):
            at = numbers[-1] if call == "pwrite64" else self._positions[name]
            self._positions[name] += 0 if call == "pwrite64" else result
            self._sizes[name] = max(self._sizes[name], at + result)
            return Seen("write", name, at, result)
        return Seen(call, name)  # nothing that the recorder knows: the comparison says so


# --- what the recorder noted ------------------------------------------------------------------------------------------


def seen_by_recorder(log: Log) -> Iterator[Seen]:
    """In words of names: each file under the one that it had then."""
    names: dict[int, str] = {}
    for one in log:
        if one.kind == "create":
            names[one.file] = one.name
            yield Seen("create", one.name)
        elif one.kind == "rename":
            names |= {file: one.to for file, name in names.items() if name == one.name}
            yield Seen("rename", one.name, to=one.to)
        elif one.kind == "unlink":
            yield Seen("unlink", one.name)
        elif one.kind in ("make-folder", "sync-folder"):
            yield Seen(one.kind, "")
        elif one.kind in ("write", "truncate", "allocate", "sync"):
            yield Seen(one.kind, names[one.file], one.offset, one.length or len(one.data))


def by_file(seen: list[Seen]) -> dict[str, list[Seen]]:
    """The order of what was done to each file, and that of all names under "": threads that work beside each other have
    no other order.
    """
    orders: dict[str, list[Seen]] = {}
    for one in seen:
        of_names = one.kind in ("create", "rename", "unlink", "make-folder", "sync-folder")
        orders.setdefault("" if of_names else one.name, []).append(one)
    return orders
