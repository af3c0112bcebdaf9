"""How a start loads the blocks of a checkpoint into memory: several threads put them where they belong at once.

They decompress and copy, and hold the interpreter only in between. Python's threads take turns faster meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from solewriter.shared.config import CHECKPOINT_THREADS, FILLING_SWITCH_S

T = TypeVar("T")


class BlockLoader:
    """Blocks on their way to where `put` puts them, in threads beside the caller; a context manager."""

    def __init__(self, put: Callable[[T], None], blocks: Iterable[T]) -> None:
        self._before_s = sys.getswitchinterval()
        sys.setswitchinterval(FILLING_SWITCH_S)
        self._pool = ThreadPoolExecutor(CHECKPOINT_THREADS, "checkpoint")
        self._pending = [self._pool.submit(put, one) for one in blocks]

    def finish(self) -> None:
        """Wait until every block is where it belongs. Raises what the first block raised that failed: JournalCorrupt,
        MemoryFull.
        """
        for one in self._pending:
            one.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """What was not begun never is; what was is done."""
        self._pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(self._before_s)
