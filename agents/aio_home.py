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

    def check(self) -> None:
        """Raises EngineUnavailable, which is final, anywhere else."""
        if self.inherited:
            raise EngineUnavailable(
                f"this {self._what} belongs to the parent process: {self._opener}() again in the child", final=True
            )
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.loop:
            raise EngineUnavailable(
                f"this {self._what} belongs to another event loop: {self._opener}() again in this one", final=True
            )
