"""Python's own search for garbage, while many objects are made that all stay: it would look through them over and over,
and take longer than making them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No search while this lasts, unless another thread wants one; whoever had switched it off finds it off."""
    collected = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if collected:
            gc.enable()
