"""`Sleeper`: one thread that sleeps on the head word of the memory, for all coroutines of a reader that wait for a
revision. It ends when nobody has waited for a moment.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from functools import partial

from solewriter.shared.errors import LayoutMismatch
from solewriter.shared.memory.root import RootReader

Waiter = asyncio.Future[None]


class Sleeper:
    """Wakes coroutines of one loop when their revision is there, when an engine follows, or when it is closed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backstop_s: float, is_left: Callable[[RootReader], bool]
    ) -> None:
        self._loop = loop
        self._backstop_s = backstop_s
        self._is_left = weakref.WeakMethod(is_left)  # weak: this thread would keep a reader that nobody has any more
        self._changed = threading.Condition()
        self._wanted: dict[Waiter, int] = {}
        self._lowest = 0  # of what is wanted; lower when somebody left
        self._root: RootReader | None = None
        self._thread: threading.Thread | None = None
        self._asked = False  # for a look, which the loop has not had yet

    async def until(self, root: RootReader, revision: int) -> None:
        """Until this revision is published in this memory, or perhaps will not be: look again."""
        waiter = self._loop.create_future()
        self._enter(root, waiter, revision)
        try:
            if root.current().revision < revision and not root.successor:  # looked at when nothing can be missed
                await waiter
        finally:
            with self._changed:
                self._wanted.pop(waiter, None)

    def _enter(self, root: RootReader, waiter: Waiter, revision: int) -> None:
        with self._changed:
            if root is not self._root:  # an engine followed: whoever waits on the older memory looks again
                self._root = root
                self._wake_all()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="solewriter-waiter", daemon=True)
                thread.start()  # where there can be no more of them, the next one who waits tries again
                self._thread = thread
            self._lowest = min(self._lowest, revision) if self._wanted else revision
            self._wanted[waiter] = revision
            self._changed.notify()

    def close(self) -> None:
        """Wake everybody; the thread ends."""
        with self._changed:
            self._wake_all()
            self._root = None
            self._changed.notify()

    def _look_on(self, root: RootReader) -> None:
        """Nothing happened for a while: whoever waits where nobody can say that another engine followed looks again."""
        self._asked = False
        is_left = self._is_left()
        if is_left is None or is_left(root):
            with self._changed:
                if root is self._root:
                    self._wake_all()

    def _wake_all(self) -> None:
        _wake(list(self._wanted))
        self._wanted.clear()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (root := self._next()) is not None:
            head = root.head
            if due := self._due(root):
                is_there = self._tell(partial(_wake, due))
            else:
                root.sleep(head, self._backstop_s)
                is_there = root.head != head or self._ask(root)
            if not is_there:
                return

    def _next(self) -> RootReader | None:
        """The memory to look at; None, and the thread is over, when nobody has waited for a backstop's time."""
        with self._changed:
            if not self._wanted and self._root is not None:
                self._changed.wait(self._backstop_s)
            if self._wanted:
                return self._root
            self._root = self._thread = None
            return None

    def _due(self, root: RootReader) -> list[Waiter]:
        """The waiters whose wait is over. The lock is taken only where there may be any."""
        try:
            newest, last = root.current().revision, root.successor > 0
        except LayoutMismatch:
            newest, last = 0, True  # whoever looks again is told
        if newest < self._lowest and not last:
            return []
        with self._changed:
            if root is not self._root:
                return []
            over = [waiter for waiter, revision in self._wanted.items() if last or revision <= newest]
            for waiter in over:
                del self._wanted[waiter]
            self._lowest = min(self._wanted.values(), default=0)
        return over

    def _ask(self, root: RootReader) -> bool:
        """Have the loop call `_look_on`, unless it has not done so since it was asked last: a loop that stands still
        collects no more of these calls. Returns what `_tell` does.
        """
        if self._asked and not self._loop.is_closed():
            return True
        self._asked = True
        return self._tell(partial(self._look_on, root))

    def _tell(self, call: Callable[[], None]) -> bool:
        """Have the loop call this. False where it is closed, with waiters left: then the thread ends."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            with self._changed:
                self._wanted.clear()
                self._root = self._thread = None
            return False
        return True


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
