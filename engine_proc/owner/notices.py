"""What an owner is told of its engine, on stderr: that it died, hangs, or could not be started."""

from __future__ import annotations

import signal
import sys


def say(text: str) -> None:
    """One line. An owner may have no stderr, and stdout is not for this; or one that is closed, its terminal gone, or
    of its own making: the engine is supervised all the same.
    """
    if sys.stderr is None:
        return
    try:
        print(f"solewriter: {text}", file=sys.stderr)
    except Exception:
        pass


def ending(status: int) -> str:
    """How a process ended, by its status as `subprocess` gives it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time one
        return f"was killed by signal {-status}"
