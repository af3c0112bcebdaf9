"""What the threads of one client share: a lock, given up by whoever waits, and word of what happened meanwhile.

Ctrl-C may come at any instruction, and leaves every lock as it would have been. So it is a lock of the interpreter's
own, by itself: of a `Condition` the edges are Python, in which an interrupt keeps the lock for ever.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Monitor:
    """`with monitor.lock:` around everything else here."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._onlookers: list[threading.Lock] = []

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the lock: then this is a signal's handler, or an end that the garbage collection
        calls, in the middle of what the lock is for.
        """
        return bool(self.lock._is_owned())  # type: ignore[attr-defined] # every lock of this kind has it, for Condition

    def run_unlocked(self, wait: Callable[[], T]) -> T:
        """The result of `wait`, which is called with the lock released. The lock is held again when this ends, whatever
        was raised.
        """
        released, held = list[None](), list[bool]()
        interrupt: BaseException | None = None
        try:
            released.extend(map(operator.call, [self.lock.release]))  # in one call: no Ctrl-C comes before it is noted
            return wait()
        finally:
            while released and not held:  # who leaves without the lock cannot give it back
                try:
                    held.extend(map(operator.call, [self.lock.acquire]))
                except BaseException as error:
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def look_on(self, timeout_s: float) -> None:
        """Wait, with the lock released, until another thread calls `tell`, for `timeout_s` at most."""
        told = threading.Lock()
        told.acquire()
        self._onlookers.append(told)
        self.run_unlocked(lambda: told.acquire(timeout=timeout_s))
        if told in self._onlookers:
            self._onlookers.remove(told)

    def tell(self) -> None:
        """Wake every thread that looks on."""
        while self._onlookers:
            self._onlookers.pop().release()
