"""A lane: one agent's own `multiprocessing.Queue` and reply pipe. The private names of the queue are used here and
nowhere else.

One queue for each agent, because a SIGKILL inside `put` leaves a shared queue's lock held for ever (cpython#96062).
Frames are made and written in the caller's thread, because `put` pickles in a feeder thread that only prints its
failures (cpython#84376). A fork-context queue unlinks its semaphores at once; a spawn-context one would start a
resource tracker.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

from solewriter.shared.config import PIPE_BYTES
from solewriter.shared.system.forks import forks_held_off

_SCARCE = (errno.EMFILE, errno.ENFILE)
LENGTH_BYTES = 4  # the queue's own header: a big-endian int


def widen(fd: int) -> None:
    """Ask for the pipe size that a lane wants; the kernel may give less to a user with many pipes, which only costs
    speed.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


class NoLane(OSError):
    """No lane can be made here, whether an engine serves or not."""


class Lane:
    """The agent's ends of its lane: `requests` to write to, `replies` to read from, both non-blocking file descriptors.

    `theirs` are the two ends for the engine; `hand_over` closes them here once they were sent, so that the death of the
    engine is seen as a broken pipe and an end of file. Raises OSError.
    """

    def __init__(self) -> None:
        import multiprocessing  # 15 ms that only a process with a lane has to pay

        try:
            queue: Any = multiprocessing.get_context("fork").Queue()
        except OSError as error:
            if error.errno in _SCARCE:
                raise
            place = "/dev/shm, wherever memory_dir is"
            raise NoLane(f"no lane can be made, which takes some bytes of {place}: {error}") from error
        self._queue = queue
        self.replies, replies_out = os.pipe()
        self.requests = _take_over(queue._writer)
        self.theirs = (_take_over(queue._reader), replies_out)
        widen(self.requests)
        widen(self.replies)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self._closed = False

    def hand_over(self) -> None:
        with forks_held_off:  # a child that came in the middle would not close the rest
            theirs, self.theirs = self.theirs, (-1, -1)  # first: an interrupt must not close a number twice
            for fd in theirs:
                os.close(fd)

    def close(self) -> None:
        with forks_held_off:  # likewise
            if self._closed:
                return
            self._closed = True
            if self.theirs != (-1, -1):
                self.hand_over()
            os.close(self.requests)
            os.close(self.replies)


def _take_over(connection: Any) -> int:
    """The descriptor of one end of the queue, to be closed here alone: in a garbage cycle the queue's ends may be
    collected before whoever closes their lane, and the number be somebody else's by then.
    """
    fd: int = connection.fileno()
    connection._handle = None
    return fd
