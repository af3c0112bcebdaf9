"""`WaitQueue`: coroutines that wait for room in the window of their client, in the order in which they came.

Claims that wait leave room for others (see `admission`), and once they have all of theirs, others pass them in line.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import copy

from solewriter.agents.admission import claims_too_many, is_pressing
from solewriter.agents.pending import Sent
from solewriter.agents.session import AgentSession
from solewriter.shared.errors import SolewriterError
from solewriter.shared.wireform import Asked

Place = asyncio.Future[list[Sent]]


class WaitQueue:
    """The calls of one client that wait, each with its requests. Falsy while none does."""

    def __init__(self, session: AgentSession) -> None:
        self._session = session
        self._all: OrderedDict[Place, Sequence[Asked]] = OrderedDict()
        self._pressing: OrderedDict[Place, Sequence[Asked]] = OrderedDict()  # of those, what are no claims that wait

    def __len__(self) -> int:
        return len(self._all)

    def before(self, requests: Sequence[Asked]) -> int:
        """How many go before these requests, should they come now."""
        if not self._all:
            return 0
        return len(self._pressing if is_pressing(requests) and self._lets_pass() else self._all)

    def _lets_pass(self) -> bool:
        return claims_too_many(self._session, len(next(iter(self._all.values())))) > 0

    def join(self, place: Place, requests: Sequence[Asked]) -> None:
        self._all[place] = requests
        if is_pressing(requests):
            self._pressing[place] = requests

    def first(self) -> tuple[Place, Sequence[Asked]]:
        """Who is sent next, and what."""
        return next(iter((self._pressing if self._pressing and self._lets_pass() else self._all).items()))

    def leave(self, place: Place) -> bool:
        """Whether it stood there still."""
        self._pressing.pop(place, None)
        return self._all.pop(place, None) is not None

    def pressing_requests(self) -> Iterator[Sequence[Asked]]:
        """What somebody wants to send still, and is no claim that waits."""
        return (requests for place, requests in self._pressing.items() if not place.done())

    def refuse(self, error: SolewriterError) -> None:
        """Nothing of theirs was sent, and nothing will be."""
        for place in self._all:
            if not place.done():
                place.set_exception(copy(error))
        self._all.clear()
        self._pressing.clear()
