"""Where a client or reader of `aio` may be used: the loop and the process in which it was made."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable

from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.lane import Lane


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

    def let_go(self, lane: Lane) -> None:
        """Close the lane of a client that nobody has any more, once the loop does not poll it. May be called from any
        thread, whether the loop runs or not.
        """
        try:
            self.loop.call_soon_threadsafe(self._leave, lane)
        except RuntimeError:  # it is closed
            lane.close()

    def _leave(self, lane: Lane) -> None:
        self.loop.remove_reader(lane.replies)
        self.loop.remove_writer(lane.requests)
        self.loop.call_soon(lane.close)  # one tick later, for uvloop may still poll it


def call_if_there(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method, if its object is still there. A loop keeps whatever it is to call: so it keeps no client that was
    forgotten.
    """
    call = method()
    if call is not None:
        call()


def wake(told: asyncio.Future[None]) -> None:
    """Wake whoever waits for this future, if anybody still does."""
    if not told.done():
        told.set_result(None)
