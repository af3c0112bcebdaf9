"""What the engine asks of the interpreter and the kernel for its own process: garbage, bytes, descriptors, threads."""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from solewriter.shared.config import BACKLOG, DESCRIPTORS_EACH, DESCRIPTORS_KEPT, KIB


def freeze_garbage() -> None:
    """What imports and recovery made lives long: collections of it would show up as latency. Not even one before this:
    it would take as long as a twentieth of the start, to find a few hundred objects.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    gc.enable()


def limit_data(headroom: int) -> None:
    """A soft limit a little above what is used now, so that a bomb in a frame meets MemoryError."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # out of descriptors: the limit of a second ago will do
        return
    used = next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmData"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = min(used + headroom, sys.maxsize)  # the system's calls take no more
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def raise_descriptor_limit() -> None:
    """Three descriptors for each agent: the usual soft limit of 1,024 ends at 340 agents."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_descriptors_left(agents: int, wanted: int = 0) -> None:
    """Beside so many agents, for so many besides those that are kept for the engine itself: the journal's next file is
    not to find that a lane got the last one. Raises OSError. They are counted only where they may be few.
    """
    bound, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = min(DESCRIPTORS_KEPT, bound // 8)
    few = bound < DESCRIPTORS_EACH * (agents + BACKLOG)
    if few and len(os.listdir("/proc/self/fd")) + wanted > bound - kept:
        raise OSError(errno.EMFILE, f"too many open files: all but {kept}, which are for the engine")


class Threads(NamedTuple):
    """For what is done beside the loop, one thread for each."""

    journal: Executor
    checkpoints: Executor  # it waits for those who make them
    memory: Executor  # a turn may wait for it, and not for zeros on disk


def threads_beside() -> Threads:
    return Threads(thread_beside("ahead"), thread_beside("checkpoint"), thread_beside("memory"))


def thread_beside(name: str) -> ThreadPoolExecutor:
    """It begins now: where agents take all that a user may have, there is none to be had by the time when it is needed,
    which may be behind a commit.
    """
    made = ThreadPoolExecutor(1, name)
    made.submit(int)
    return made
