"""`AioReader`: shared memory as entities, beside an event loop that is never blocked.

Reading is memory, so it is the synchronous `Reader` that reads. Only its waits are replaced: while the memory is being
handed from one engine to the next, the look is given up, and made again after a sleep of the loop's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, overload

from solewriter.agents.aio_home import Home
from solewriter.agents.aio_sleeper import Sleeper
from solewriter.agents.reader import Reader
from solewriter.agents.snapshot import Plain, Snapshot
from solewriter.shared.config import ATTACH_RETRY_S, DEFAULT_LIMITS, Limits
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.memory.view import View
from solewriter.shared.models import Entity
from solewriter.shared.registry import Registry

E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class HandedOver(Exception):
    """The memory is just going from one engine to the next: look again in a moment. Never leaves `looked`."""


class Memory(Reader):
    """A reader that never waits. Outside of `looked` it raises EngineUnavailable at once where it would have to."""

    def __init__(
        self, state: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, registry: Registry | None = None
    ) -> None:
        super().__init__(state, limits, registry)
        self._again = False

    def _attach(self, known: View | None) -> View:
        if self._closed:
            raise EngineUnavailable("this reader is closed", final=True)
        view = self.attached(known, last=not self._again)
        if view is None:
            raise HandedOver
        return view

    @property
    def revision(self) -> int:
        """The newest revision published in the memory that is mapped now."""
        return (self._view or self.view()).root.current().revision

    async def looked(self, look: Callable[[], T]) -> T:
        """What `look` finds in memory. Raises EngineUnavailable where that was not handed over in
        `connect_timeout_s`.
        """
        deadline = 0.0
        while True:
            self._again = not deadline or time.monotonic() < deadline
            try:
                return look()
            except HandedOver:
                deadline = deadline or time.monotonic() + self._limits.connect_timeout_s
            finally:
                self._again = False
            await asyncio.sleep(ATTACH_RETRY_S)


class AioReader:
    """Reads one state folder from one event loop; survives restarts of the engine. Made by `aio.open_reader`.

    It never blocks the loop. Raises EngineUnavailable in another loop, in a forked child, and after `close`.
    """

    def __init__(self, memory: Memory, limits: Limits) -> None:
        self._memory = memory
        self._limits = limits
        self._home = Home("reader", "aio.open_reader")
        self._sleeper = Sleeper(self._home.loop, limits.wait_backstop_s)

    async def snapshot(self) -> Snapshot:
        """The newest published revision, held: `with await reader.snapshot() as snap`."""
        self._home.check()
        return await self._memory.looked(self._memory.snapshot)

    @property
    def revision(self) -> int:
        """The newest revision published in the memory that is mapped now."""
        return self._memory.revision

    @overload
    async def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    async def get(self, kind: str, id: str) -> Plain | None: ...
    async def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The newest published entity, or None."""
        self._home.check()
        found: E | Plain | None = await self._memory.looked(lambda: self._memory.get(kind, id))
        return found

    async def wait_for(self, revision: int, timeout_s: float | None = None) -> int:
        """Wait until this revision is published; the newest one.

        Raises TimeoutError; EngineUnavailable when the engine was stopped and none followed in `connect_timeout_s`.
        """
        self._home.check()
        newest, stopped_at = 0, 0.0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    root = (await self._memory.looked(self._memory.view)).root
                    if (newest := root.current().revision) >= revision:
                        return newest
                    if root.successor:  # nothing will happen here, and there is no other memory yet
                        stopped_at = stopped_at or time.monotonic()
                        self._check_patience(stopped_at)
                        await asyncio.sleep(self._limits.wait_backstop_s)
                    else:
                        stopped_at = 0.0
                        await self._sleeper.until(root, revision)
        except TimeoutError:
            raise TimeoutError(
                f"revision {revision} was not published in {timeout_s} s; the newest is {newest}"
            ) from None

    def _check_patience(self, stopped_at: float) -> None:
        if time.monotonic() - stopped_at > self._limits.connect_timeout_s:
            raise EngineUnavailable(
                f"the engine of {self._memory.folder.path} was stopped, and nobody started another one"
            )

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let the memory go; whoever waits for a revision is told. Snapshots that are held stay readable."""
        if not self._home.inherited and not self._home.loop.is_closed():
            self._home.check()
            self._sleeper.close()
        self._memory.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
