"""What is done between two turns, by the single writer too: models that become known, checkpoints that begin and end.

Each comes through the inbox, as requests do, and waits for the end of the turn that runs, not for requests before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from solewriter.engine_proc import adoption as adoptions
from solewriter.engine_proc.checkpointing.checkpoint import Made
from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints
from solewriter.engine_proc.journal import DiskFull, Journal
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.state import State
from solewriter.shared import failpoint
from solewriter.shared.errors import EngineUnavailable, MemoryFull, SolewriterError
from solewriter.shared.journal.entry import CheckpointName, Private
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.system.garbage import gc_paused

T = TypeVar("T")


class Registration:
    """Models that the owner wants known."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = kinds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Finished(NamedTuple):
    """A checkpoint that was made."""

    made: Made


class Settled(NamedTuple):
    """What was journaled is on disk, or could not be brought there: what waits for that."""

    done: Future[None]
    then: Callable[[], Awaitable[None]]


class Look(NamedTuple):
    """A checkpoint may be due, though nobody asks for anything."""


Item = Registration | Finished | Settled | Look


class BetweenTurns:
    """Does, one at a time, what no turn may be in the middle of. `checkpoints` is None where nothing is durable."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        publisher: Publisher,
        inbox: asyncio.Queue[Any],
        still_owner: Callable[[], None],
        checkpoints: Checkpoints | None,
    ) -> None:
        self._state = state
        self._journal = journal
        self._publisher = publisher
        self._inbox = inbox
        self._still_owner = still_owner
        self._checkpoints = checkpoints

    async def run(self, item: Item) -> None:
        if isinstance(item, Registration):
            await self._adopt(item)
        elif isinstance(item, Finished):
            await self._when_settled(partial(self._note, item.made))
        elif isinstance(item, Settled):
            item.done.result()  # a failed sync ends the engine
            await item.then()
        else:
            self.look()

    def refuse(self, item: Item) -> None:
        """Refuse what comes while the engine ends. A checkpoint that is not journaled is removed by the next start."""
        if isinstance(item, Registration):
            item.done.set_exception(EngineUnavailable("the engine is stopping"))

    def _append(self, private: Private) -> None:
        """Append an entry that changes no entity."""
        self._still_owner()  # what it is of may have taken long
        self._journal.append(self._state.revision, time.time_ns() // 1000, [], private)

    def _publish(self) -> None:
        """Publish the same revision again, as of the newest entry. Room was reserved."""
        self._publisher.publish([], self._state.revision, self._journal.tail.number, self._state.counts())

    # --- models ------------------------------------------------------------------------------------------------------

    async def register(self, kinds: Sequence[Kind]) -> None:
        """Know these models from the next turn on. Raises SolewriterError, with everything as before."""
        registration = Registration(kinds)
        self._inbox.put_nowait([registration])
        await registration.done

    async def _in_slices(self, steps: Generator[None, None, T]) -> T:
        """Run these steps to their end, and return what they do. No turn is taken meanwhile, but between two slices
        lanes are read, and the heart beats: many entities take longer than an engine may be silent.
        """
        slice_s = self._state.coordination.limits.making_slice_s
        until = time.monotonic() + slice_s
        while True:
            try:
                next(steps)
            except StopIteration as done:
                made: T = done.value
                return made
            if time.monotonic() >= until:
                await asyncio.sleep(0)
                until = time.monotonic() + slice_s

    async def _adopt(self, registration: Registration) -> None:
        """Make models known. What is new of them is journaled before anybody can use it."""
        state, publisher = self._state, self._publisher
        try:
            adoption = await self._in_slices(adoptions.prepare(state, publisher, registration.kinds))
        except SolewriterError as error:
            registration.done.set_exception(error)
            return
        if adoption.brings_nothing:
            adoptions.adopt(state, publisher, adoption)
            state.coordination.discard()  # a newer class may have other columns
            registration.done.set_result(None)
            return
        try:
            publisher.reserve({}, {})
            self._append(adoption.private)
            await self._journal.commit(durable=True)
        except (MemoryFull, DiskFull) as error:
            adoptions.forgo(state, publisher, adoption)
            registration.done.set_exception(error)
            return
        adoptions.adopt(state, publisher, adoption)
        state.coordination.discard()
        self._publish()
        registration.done.set_result(None)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Begin a checkpoint where one is due: of everything so far, so the newest entry is published first, which may
        have changed no entity.
        """
        if self._checkpoints is None or not self._checkpoints.due:
            return
        try:
            self._publisher.reserve({}, {})
        except MemoryFull as error:
            self._checkpoints.failed(str(error))
            return
        self._publish()
        send = self._sender()
        unknown = tuple([kind.code for kind in self._state.kinds if kind.kind is None])
        self._checkpoints.begin(lambda made: send(Finished(made)), unknown)

    def look_later(self, seconds: float) -> None:
        """Look when so many seconds are over."""
        asyncio.get_running_loop().call_later(seconds, self._inbox.put_nowait, [Look()])

    def _sender(self) -> Callable[[Item], None]:
        """A function that puts an item into the inbox from any thread."""
        loop, inbox = asyncio.get_running_loop(), self._inbox

        def send(item: Item) -> None:
            with suppress(RuntimeError):  # the loop ended: there will be no other turn
                loop.call_soon_threadsafe(inbox.put_nowait, [item])

        return send

    async def _when_settled(self, then: Callable[[], Awaitable[None]]) -> None:
        """Do this between two turns, when all is on disk that is journaled by now. Turns go on meanwhile: what was only
        written may be megabytes.
        """
        done = self._journal.settle()
        if done is None:
            await then()
        else:
            send = self._sender()
            done.add_done_callback(lambda done: send(Settled(done, then)))

    async def _note(self, made: Made) -> None:
        """Journal behind a checkpoint what no reader sees; once that is on disk, a start begins with the checkpoint."""
        checkpoints = self._checkpoints
        assert checkpoints is not None, "one was made"
        before = self._journal.length
        with gc_paused():
            self._append(Private(whole=checkpoints.describe(CheckpointName(made.entry, made.crc))))
        try:
            await self._journal.commit(durable=True)
        except DiskFull as error:
            checkpoints.given_up(made, str(error))
            return
        failpoint.reach("checkpoint.journaled")
        await self._when_settled(partial(self._noted, made, self._journal.length - before))

    async def _noted(self, made: Made, private_bytes: int) -> None:
        checkpoints, send = self._checkpoints, self._sender()
        assert checkpoints is not None, "one was made"
        checkpoints.noted(made, private_bytes, lambda: send(Look()))
