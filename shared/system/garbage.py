"""Python's own search for garbage, while many objects are made that all stay: it would look through them over and over,
and take longer than making them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_off: set[object] = set()  # those who switched it off, and go on; each takes away only itself, so this needs no lock


@contextmanager
def gc_paused() -> Iterator[None]:
    """The cyclic garbage collector is off while this lasts. Another thread may switch it on meanwhile; where it was off
    before, it stays off.
    """
    collected, this = gc.isenabled(), object()
    try:
        if collected:
            _off.add(this)
            gc.disable()
        yield
    finally:
        if collected:
            gc.enable()
            _off.discard(this)


def _go_on() -> None:
    """In a forked child: the thread that would have switched the collector on again is not there."""
    if _off:
        gc.enable()
        _off.clear()


os.register_at_fork(after_in_child=_go_on)
