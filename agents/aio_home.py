"""Where a client or reader of `aio` may be used: the loop and the process in which it was made."""

from __future__ import annotations

import asyncio
import os

from solewriter.shared.errors import EngineUnavailable


class Home:
    """One loop of one process. `opener` is the function that makes another one elsewhere."""

    def __init__(self, what: str, opener: str) -> None:
        self._what = what
        self._opener = opener
        self._pid = os.getpid()
        self.loop = asyncio.get_running_loop()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child of the process where it was made."""
        return os.getpid() != self._pid

    @property
    def is_here(self) -> bool:
        """Whether this is that loop, in that process."""
        try:
            return not self.inherited and asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False  # no loop at all

    def check(self) -> None:
        """Raises EngineUnavailable, which is final, anywhere else."""
        if self.is_here:
            return
        whose, where = ("the parent process", "the child") if self.inherited else ("another event loop", "this one")
        raise EngineUnavailable(f"this {self._what} belongs to {whose}: {self._opener}() again in {where}", final=True)
