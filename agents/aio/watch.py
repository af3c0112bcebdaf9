"""`AioWatch`: every change in order, for one event loop. It is a `Watch` that never waits: looking is done in a thread,
because it may have to read the journal, and the waiting is the reader's, one thread for all who wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Self

from solewriter.agents.aio.reader import Patience
from solewriter.agents.deadline import check_patience
from solewriter.agents.reading.decoding import Model, Several
from solewriter.agents.watch import Brought, Watch, by_name, retrieve_error
from solewriter.shared.where import copied_where

if TYPE_CHECKING:
    from solewriter.agents.aio.reader import AioReader
    from solewriter.shared.where import Where


class AioWatch(Generic[Brought]):
    """An async iterator of changes. Ends when nothing came for `timeout_s`; without it, never. Made by
    `AioReader.watch`; not to be iterated by two tasks.
    """

    def __init__(
        self, reader: AioReader, kind: Model | Several | None, id: str | None, since: int | None, where: Where | None,
        timeout_s: float | None, resync: bool,
    ) -> None:  # fmt: skip
        check_patience(timeout_s)
        memory, asked, kinds = reader.memory, copied_where(where), by_name(kind)
        models = None if kinds is None else [*kinds.values()]  # as they are listed now
        root = memory.mapped.root  # now, though the newest memory may be on its way
        self._reader = reader
        self._timeout_s = timeout_s
        self._patience = Patience(reader)
        self._since = root.current().revision if since is None else since
        history = root.history.hex()
        self._made: Callable[[], Watch[Brought]]
        self._made = lambda: Watch(memory, models, id, self._since, asked, None, resync, history)
        self._watch: Watch[Brought] | None = None
        self._looking: asyncio.Future[bool] | None = None  # it goes on when its caller is cancelled

    @property
    def revision(self) -> int:
        """The last revision of which all was brought: `since` for a watch that goes on from here."""
        return self._since if self._watch is None else self._watch.revision

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Brought:
        """Raises InvalidQuery, Compacted, EngineUnavailable as a `Watch` does."""
        memory, watch = self._reader.memory, self._watch
        if watch is not None and (change := watch.pop()) is not None:
            return change
        self._reader.check()
        loop = asyncio.get_running_loop()
        deadline = None if self._timeout_s is None else loop.time() + self._timeout_s
        if watch is None:
            watch = self._watch = await memory.look(self._made)
        is_new, last = True, None  # the newest revision when the patience was over: others may write without a pause
        while (change := watch.pop()) is None:
            if last is not None and (not is_new or watch.revision >= last):
                raise StopAsyncIteration
            root = (await memory.look(memory.view)).root
            if last is None and deadline is not None and loop.time() >= deadline:
                last = root.current().revision
            is_new = await self._look(watch)
            if is_new or last is not None:
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._patience.until(root, watch.revision + 1)
            except TimeoutError:
                raise StopAsyncIteration from None
        return change

    async def _look(self, watch: Watch) -> bool:
        if self._looking is None:
            self._looking = self._reader.beside(watch.take)
            self._looking.add_done_callback(retrieve_error)
        try:
            return await asyncio.shield(self._looking)
        finally:
            if self._looking.done():
                self._looking = None
