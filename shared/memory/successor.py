"""The next segment of a row of them, made beside the loop before anybody needs it: zeroing and mapping it takes two
milliseconds for each MiB, and more where the machine is busy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

S = TypeVar("S")


class Successor(Generic[S]):
    """Holds at most one. Raises nothing: where none could be made `take` gives none, and who needs one makes it, and
    meets the error.
    """

    def __init__(self, make: Callable[[int, int], S], beside: Executor | None) -> None:
        self._make = make  # (segment number, bytes) -> segment
        self._beside = beside  # None: nothing is made before it is needed
        self._coming: Future[S] | None = None

    @property
    def due(self) -> bool:
        """Whether none is there or under way."""
        return self._coming is None and self._beside is not None

    @property
    def missed(self) -> bool:
        """Whether there was no room for the one that was asked for."""
        coming = self._coming
        return coming is not None and coming.done() and coming.exception() is not None

    def prepare(self, number: int, size: int) -> None:
        """Have it made, when one is due."""
        if self._coming is None and self._beside is not None:
            self._coming = self._beside.submit(self._make, number, size)

    def take(self) -> S | None:
        """The one that was made, and nothing is under way any more. None: whoever needs one makes it."""
        coming, self._coming = self._coming, None
        if coming is None or coming.cancel() or coming.exception() is not None:
            return None
        return coming.result()
