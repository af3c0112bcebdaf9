"""`AioReader`: shared memory as entities, beside an event loop that is never blocked.

Reading is memory, so it is the synchronous `Reader` that reads. Only its waits are replaced: while the memory is being
handed from one engine to the next, the look is given up, and made again after a sleep of the loop's.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, overload

from solewriter.agents.aio.home import Home
from solewriter.agents.aio.opening import Opening
from solewriter.agents.aio.sleeper import Sleeper
from solewriter.agents.deadline import check_patience
from solewriter.agents.reader import Reader
from solewriter.agents.reading.anyreader import check_revision, closed_reader, not_published, not_so, not_so_many
from solewriter.agents.reading.attaching import Vacancy
from solewriter.agents.snapshot import Plain, Snapshot
from solewriter.shared.config import ATTACH_RETRY_S, DEFAULT_LIMITS, LOOKING_THREADS, WATCH_BATCH, Limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import Compacted, SnapshotExpired
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.view import View
from solewriter.shared.registry import Registry

if TYPE_CHECKING:
    from solewriter.agents.aio.watch import AioWatch
    from solewriter.agents.reading.change import Change
    from solewriter.agents.reading.decoding import Model, Several
    from solewriter.agents.reading.travel import Difference
    from solewriter.agents.watch import Resync
    from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class HandedOver(Exception):
    """The memory is just going from one engine to the next: look again in a moment. Never leaves `look`."""


class Memory(Reader):
    """What a client and a reader of asyncio look into: a reader that never waits. Within `look` it gives the look up
    where it would have to, to be made again; outside of it, it raises EngineUnavailable at once.
    """

    def __init__(
        self, state: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, registry: Registry | None = None
    ) -> None:
        super().__init__(state, limits, registry)
        self._is_made_again = False  # the look that is under way, should it be given up
        self._thread = threading.get_ident()  # the loop's; what is looked at beside it may wait

    def _attach(self) -> View:
        if self._closed:
            raise closed_reader()
        if threading.get_ident() != self._thread:
            return super()._attach()
        view = self.try_attach(last=not self._is_made_again)
        if view is None:
            raise HandedOver
        return view

    @property
    def revision(self) -> int:
        """The newest revision published in the memory that is mapped now."""
        return self.mapped.root.current().revision

    @property
    def mapped(self) -> View:
        """The memory as it was mapped last, whether it is the newest or not."""
        return self._view or self.view()

    def is_left(self, root: RootReader) -> bool:
        """Whether another memory than this one is to be looked into: of an engine that followed one which died, say."""
        self.look_on()
        return self._view is None or self._view.root is not root

    async def look(self, read: Callable[[], T]) -> T:
        """What `read` finds in memory. It is called anew where the memory was handed over meanwhile.
        Raises EngineUnavailable where that takes longer than `connect_timeout_s`.
        """
        deadline = 0.0
        while True:
            self._is_made_again = not deadline or time.monotonic() < deadline
            try:
                return read()
            except HandedOver:
                deadline = deadline or time.monotonic() + self._limits.connect_timeout_s
            finally:
                self._is_made_again = False
            await asyncio.sleep(ATTACH_RETRY_S)


class Patience:
    """How one call waits: while the engine is one that was stopped, only until another one should have followed."""

    def __init__(self, reader: AioReader) -> None:
        self._reader = reader
        self._vacancy = Vacancy(reader.memory.folder, reader.limits)

    async def until(self, root: RootReader, revision: int) -> None:
        """Until this revision may be published. Raises EngineUnavailable when the engine was stopped and none followed
        in `connect_timeout_s`.
        """
        if root.successor:  # nothing will happen here, and nobody followed yet
            self._vacancy.check(time.monotonic())
            await asyncio.sleep(self._reader.limits.wait_backstop_s)
        else:
            self._vacancy.end()
            await self._reader.until(root, revision)


class AioReader:
    """Reads one state folder from one event loop; survives restarts of the engine. Made by `aio.open_reader`.

    It never blocks the loop. Raises EngineUnavailable in another loop, in a forked child, and after `close`.
    """

    def __init__(self, memory: Memory, limits: Limits) -> None:
        self.memory = memory
        self.limits = limits
        self._home = Home("reader", "aio.open_reader")
        self._sleeper = Sleeper(self._home.loop, limits.wait_backstop_s, memory.is_left)
        self._threads: ThreadPoolExecutor | None = None

    @property
    def is_here(self) -> bool:
        """Whether this is the loop in which it was made, in that process."""
        return self._home.is_here

    def check(self) -> None:
        """Raises EngineUnavailable anywhere else."""
        self._home.check()

    async def snapshot(self) -> Snapshot:
        """The newest published revision, held: `with await reader.snapshot() as snap`."""
        self._home.check()
        return await self.memory.look(self.memory.snapshot)

    @property
    def revision(self) -> int:
        """The newest revision published in the memory that is mapped now."""
        return self.memory.revision

    @overload
    async def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    async def get(self, kind: str, id: str) -> Plain | None: ...
    async def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The newest published entity, or None."""
        self._home.check()
        found: E | Plain | None = await self.memory.look(lambda: self.memory.get(kind, id))
        return found

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def wait_for(self, revision: int, timeout_s: float | None = None) -> int:
        """Wait until this revision is published; the newest one.

        Raises TimeoutError; EngineUnavailable when the engine was stopped and none followed in `connect_timeout_s`.
        """
        self._home.check()
        check_revision(revision)
        check_patience(timeout_s)
        newest, patience = 0, Patience(self)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    root = (await self.memory.look(self.memory.view)).root
                    if (newest := root.current().revision) >= revision:
                        return newest
                    await patience.until(root, revision)
        except TimeoutError:
            raise not_published(revision, newest, timeout_s) from None

    @overload
    async def wait_until(
        self, kind: type[E], id: str, predicate: Callable[[E | None], object], timeout_s: float | None = None
    ) -> E | None: ...
    @overload
    async def wait_until(
        self, kind: str, id: str, predicate: Callable[[Plain | None], object], timeout_s: float | None = None
    ) -> Plain | None: ...
    async def wait_until(
        self, kind: type[E] | str, id: str, predicate: Callable[[Any], object], timeout_s: float | None = None
    ) -> E | Plain | None:
        """Wait until the predicate, a plain or an async function, holds of this entity (None while there is none); the
        entity. Raises TimeoutError.
        """
        self._home.check()
        check_patience(timeout_s)
        found: E | Plain | None = None
        patience = Patience(self)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                while True:
                    root = (await self.memory.look(self.memory.view)).root
                    seen = root.current().revision  # before the look, so that a change behind it is not slept through
                    found = await self.get(kind, id)
                    holds = predicate(found)
                    if await holds if inspect.isawaitable(holds) else holds:
                        return found
                    await patience.until(root, seen + 1)
        except TimeoutError:
            if not limit.expired():
                raise  # the predicate's own
            raise not_so(kind, id, found, timeout_s) from None

    async def wait_until_count(
        self,
        kind: Model,
        where: Where | None,
        predicate: Callable[[int], object],
        timeout_s: float | None = None,
    ) -> Snapshot:
        """Wait until the predicate, a plain or an async function, holds of how many entities of a kind match; the
        snapshot in which it does, held. As `Reader.wait_until_count` otherwise.
        """
        check_patience(timeout_s)
        deadline = None if timeout_s is None else self._home.loop.time() + timeout_s
        while True:
            watch = self.watch(kind, where=where, resync=True)  # first, so that nothing is slept through
            snap = await self.snapshot()
            try:
                count = await self.beside(partial(snap.count, kind, where))
            except SnapshotExpired:  # this process was stopped in the middle
                continue
            try:
                async with asyncio.timeout_at(deadline) as limit:
                    holds = predicate(count)
                    if await holds if inspect.isawaitable(holds) else holds:
                        return snap
                    snap.close()
                    await anext(watch)
            except TimeoutError:
                if not limit.expired():
                    raise  # the predicate's own
                raise not_so_many(kind, where, count, timeout_s) from None

    @overload
    def watch(
        self, kind: type[E], *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> AioWatch[Change[E]]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: type[E], *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> AioWatch[Change[E] | Resync]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: str, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> AioWatch[Change[Plain]]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: str, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> AioWatch[Change[Plain] | Resync]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: Several | None = None, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> AioWatch[Change]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: Several | None = None, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> AioWatch[Change | Resync]: ...  # fmt: skip
    def watch(
        self,
        kind: Model | Several | None = None,
        *,
        id: str | None = None,
        since: int | None = None,
        where: Where | None = None,
        timeout_s: float | None = None,
        resync: bool = False,
    ) -> AioWatch[Any]:
        """Every change behind revision `since` (default: from now on), in order: `async for change in
        reader.watch(...)`. As `Reader.watch` otherwise.
        """
        from solewriter.agents.aio.watch import AioWatch

        self._home.check()
        return AioWatch(self, kind, id, since, where, timeout_s, resync)

    async def until(self, root: RootReader, revision: int) -> None:
        """Until this revision is published in this memory, or perhaps will not be: look again."""
        await self._sleeper.until(root, revision)

    # --- looking back ------------------------------------------------------------------------------------------------

    async def at(self, revision: int) -> Snapshot:
        """Everything as it was at an earlier revision. Raises Compacted, InvalidQuery."""
        return await self._beside(lambda: self.memory.at(revision))

    @overload
    async def diff(self, since: int, until: int, kind: type[E]) -> list[Difference[E]]: ...
    @overload
    async def diff(self, since: int, until: int, kind: str) -> list[Difference[Plain]]: ...
    @overload
    async def diff(self, since: int, until: int, kind: None = None) -> list[Difference[Any]]: ...
    async def diff(self, since: int, until: int, kind: type[Entity] | str | None = None) -> list[Difference[Any]]:
        """Every entity that is not the same at these two revisions. Raises Compacted, InvalidQuery."""
        return await self._beside(lambda: self.memory.diff(since, until, kind))

    @overload
    def history(self, kind: type[E], id: str) -> AsyncIterator[Change[E]]: ...
    @overload
    def history(self, kind: str, id: str) -> AsyncIterator[Change[Plain]]: ...
    async def history(self, kind: type[Entity] | str, id: str) -> AsyncIterator[Change]:
        """Every change of one entity, the newest first. Raises Compacted behind the oldest that is available, if there
        were others before it.
        """
        source = self.memory.history(kind, id)
        end: Compacted | None = None

        def some() -> list[Change]:
            nonlocal end
            taken: list[Change] = []
            try:
                taken.extend(islice(source, WATCH_BATCH))
            except Compacted as error:
                end = error
            return taken

        while taken := await self._beside(some):
            for change in taken:
                yield change
        if end is not None:
            raise end

    async def _beside(self, work: Callable[[], T]) -> T:
        """What may read the journal is done in a thread, once the memory is mapped."""
        self._home.check()
        await self.memory.look(self.memory.view)
        return await self.beside(work)

    def beside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Done in a thread of this reader's own: the loop's may be full of who waits for what this brings."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(LOOKING_THREADS, "solewriter-looks")
        return self._home.loop.run_in_executor(self._threads, work)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let the memory go; whoever waits for a revision is told. Snapshots that are held stay readable."""
        if not self._home.inherited and not self._home.loop.is_closed():
            self._home.check()
            self._sleeper.close()
        if self._threads is not None and not self._home.inherited:
            self._threads.shutdown(wait=False)
        self.memory.close()

    def __reduce__(self) -> NoReturn:
        self.memory.__reduce__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def open_reader(state: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Opening[AioReader]:
    """Read the state that an engine publishes: `async with open_reader(...) as reader`, or `reader = await
    open_reader(...)`. Raises EngineUnavailable if no engine serves or served this folder.
    """

    async def opened() -> AioReader:
        memory = Memory(state, limits)
        await memory.look(memory.view)
        memory.is_anybodys = True
        return AioReader(memory, limits)

    return Opening(opened)
