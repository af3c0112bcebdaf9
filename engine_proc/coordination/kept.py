"""What is made of all entities of a kind for a set of columns: so many of it as are kept, those that were asked last.

It is made before a request that needs it is decided (see `making`). Where more are needed at once than are kept, those
who wait would take them from each other for ever: so it is remembered which had to go before anybody asked them. Who
finds such a one waits no more, and makes it for itself alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from solewriter.shared.config import MISSED_MAX, VIEWS_MAX

T = TypeVar("T")
Names = tuple[str, ...]  # of columns, in their order


class Kept(Generic[T]):
    """The views, or tallies, of one kind by their columns: so many at most, and the longest unasked goes first."""

    def __init__(self) -> None:
        self.by_names: OrderedDict[Names, T] = OrderedDict()
        self._unasked: set[Names] = set()
        self._missed: deque[Names] = deque(maxlen=MISSED_MAX)

    def has(self, names: Names) -> bool:
        """Whether nobody needs to wait for it: it is here, or went so soon that making it again would be in vain."""
        return names in self.by_names or names in self._missed

    def begin(self, names: Names, one: T) -> Names | None:
        """Add one that is to be made. Returns the columns of the one that had to go for it, if any."""
        self.by_names[names] = one
        self._unasked.add(names)
        if len(self.by_names) <= VIEWS_MAX:
            return None
        oldest = next(iter(self.by_names))
        if oldest in self._unasked:
            self._missed.append(oldest)
        self.drop(oldest)
        return oldest

    def drop(self, names: Names) -> None:
        del self.by_names[names]
        self._unasked.discard(names)

    def ask(self, names: Names) -> T | None:
        """The one by these columns, which is now the last asked for; None where it had to go before."""
        if names in self.by_names:
            self.by_names.move_to_end(names)
            self._unasked.discard(names)
        elif names in self._missed:
            self._missed.remove(names)
        return self.by_names.get(names)
