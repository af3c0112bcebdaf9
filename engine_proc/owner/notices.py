"""What an owner is told of its engine, on the stderr that both have: that it died, hangs, or could not be started."""

from __future__ import annotations

import os
import select
import signal
import sys

_AT_ONCE_BYTES = select.PIPE_BUF  # what goes into a pipe that has room without waiting for a reader


def say(text: str, who: str = "solewriter") -> None:
    """One line, see `put`."""
    put(f"{who}: {text}\n")


def put(text: str) -> None:
    """On stderr. An owner may have none, and stdout is not for this; or one that is closed, its terminal gone, or of
    its own making: the engine is supervised, and serves, all the same. So it is, and the owner may fork, where nobody
    reads that: what stderr has no room for is not said, and its lock, for which a forked child would wait, not taken.
    """
    if sys.stderr is None:
        return
    try:
        try:
            fd = sys.stderr.fileno()
        except (AttributeError, OSError):  # one in memory, say
            sys.stderr.write(text)
        else:
            left = text.encode(errors="backslashreplace")
            while left and _has_room(fd):
                left = left[os.write(fd, left[:_AT_ONCE_BYTES]) :]
    except Exception:
        pass


def _has_room(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def ending(status: int) -> str:
    """How a process ended, by its status as `subprocess` gives it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time one
        return f"was killed by signal {-status}"
