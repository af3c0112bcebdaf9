"""What came and waits for a turn. All of it comes through the inbox, a lane's requests, hellos and occasions among it,
and is put behind what its session has waiting; what is done between two turns stands before all of them.

The end comes through the inbox, too: what was before it is still taken.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from solewriter.engine_proc.betweenturns import Item
from solewriter.engine_proc.coordination.making import Making
from solewriter.engine_proc.fairness import FairQueueing, SessionQueue
from solewriter.engine_proc.newcomer import Newcomer
from solewriter.engine_proc.tending import Occasion
from solewriter.shared.request_ids import session_number


class Intake:
    """Sorts what came into what turns serve. While something is being made there are turns even if nothing came."""

    def __init__(self, inbox: asyncio.Queue[Any], making: Making, spin_s: float) -> None:
        self.waiting = FairQueueing()  # of (lane, sequence, request), Newcomer and Occasion
        self.between_turns: deque[Item] = deque()  # all of them before the next turn
        self._inbox = inbox
        self._making = making
        self._spin_s = spin_s
        self._ended = False  # the end was met: nothing behind it is taken
        self._waited_s = 1.0  # for the last item that had to be waited for

    def open(self) -> None:
        """Up to the next end."""
        self._ended = False

    async def take(self) -> bool:
        """Take what there is, and await the first where there is nothing. False when nothing will come any more."""
        if self.waiting.holding and not self._making:
            self.waiting.let_go()
        if self.waiting or self.between_turns or self._making:
            await asyncio.sleep(0)  # who answers, connects or dies has been waiting for as long as the last turn took
        elif not self._ended:
            self.waiting.rest()
            self.put(await self._next())
        self.take_more()
        return bool(self.waiting or self.between_turns or self._making)

    def take_more(self) -> bool:
        """What has come meanwhile, up to the end; whether there was anything."""
        inbox, came = self._inbox, False
        while not (self._ended or inbox.empty()):
            self.put(inbox.get_nowait())
            came = True
        return came

    def take_rest(self) -> None:
        """What has come, also behind the end."""
        while not self._inbox.empty():
            self.put(self._inbox.get_nowait() or ())

    def put(self, items: Sequence[Any] | None) -> None:
        """Behind what its session has waiting. All of an item of the inbox is of one lane; None is the end."""
        if items is None:
            self._ended = True
        elif not items:
            return
        elif items[0].__class__ is tuple:
            self.waiting.add(items[0][0].queue, items)
        elif isinstance(items[0], Newcomer):  # behind the requests of its session that came before it
            self.waiting.add(SessionQueue(session_number(items[0].hello.client_id)), items)
        elif isinstance(items[0], Occasion):  # likewise
            self.waiting.add(SessionQueue(items[0].session), items)
        else:
            self.between_turns.extend(items)

    async def _next(self) -> Any:
        """The next item of the inbox; without sleeping for a moment, where the last one came within such a moment."""
        inbox, spin_s, begun = self._inbox, self._spin_s, time.monotonic()
        if self._waited_s < spin_s:
            while inbox.empty() and time.monotonic() - begun < spin_s:
                os.sched_yield()  # to the agent whose request it would be, where they share a processor
                await asyncio.sleep(0)
        item = await inbox.get()
        self._waited_s = time.monotonic() - begun
        return item
