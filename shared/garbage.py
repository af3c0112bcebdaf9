"""Python's own search for garbage, while many objects are made that all stay: it would look through them over and over,
and take longer than making them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_waits = False  # the search, and it goes on later


@contextmanager
def uncollected() -> Iterator[None]:
    """No search while this lasts, unless another thread wants one; whoever had switched it off finds it off."""
    global _waits
    collected = gc.isenabled()
    try:
        if collected:
            _waits = True
            gc.disable()
        yield
    finally:
        if collected:
            gc.enable()
            _waits = False


def _go_on() -> None:
    """In a child: the thread that would have gone on with the search is not there."""
    global _waits
    if _waits:
        gc.enable()
        _waits = False


os.register_at_fork(after_in_child=_go_on)
