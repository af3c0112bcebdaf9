"""The journal: what is durable. A small protocol, so that a replicated log can stand in its place.

Its journals are `FileJournal` (`filejournal`) and, for `memory`, one that keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol

from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.journal.entry import Entry, Private, PrivateState, Tail


class DiskFull(EngineUnavailable):
    """The journal's file system has no room: the engine refuses writes until it has."""


def never() -> bool:
    return False


class Journal(Protocol):
    """Durable entries in order. Bodies do not know where they lie."""

    @property
    def tail(self) -> Tail: ...

    @property
    def state_id(self) -> bytes:
        """What all files of one state have in common."""

    @property
    def length(self) -> int:
        """Bytes of the entries that were replayed and committed: what has to be replayed grows with it."""

    def newest_whole(self) -> tuple[int, PrivateState] | None:
        """The newest entry that holds the whole private state, and its number; None where all begins with entry 1."""

    def replay(
        self, first: int = 1, may_be_cut: Callable[[], bool] = never, unsynced: Callable[[], bool] = never
    ) -> Iterator[Entry]:
        """Every entry from this one on, oldest first; once, before the first append. Raises JournalCorrupt.

        `may_be_cut` tells, of what was replayed so far, whether entries may legally have been lost behind it, in any
        order: then what follows the first bad one is dropped. Where they may not, nothing is changed. `unsynced` tells
        at the end whether the last life acked what was only written.
        """

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        """Take the next entry; it is nowhere until `commit`."""

    async def commit(self, *, durable: bool) -> None:
        """Make it durable, if asked for to the journal's full level. Raises DiskFull and then holds nothing of it;
        any other OSError is the end of the process.
        """

    def settle(self) -> Future[None] | None:
        """Bring what was committed so far onto the disk, whatever the journal's level, while others commit. None where
        it is there. An OSError is the end of the process.
        """

    def make_ahead(self) -> None:
        """The whole private state is coming, and begins a file: have that made beside the loop."""

    def trim(self, before: int, still_owner: Callable[[], None]) -> None:
        """Entries numbered below this may go. Runs in a thread beside the commits. `still_owner` is asked before each
        step, and raises once what is there is another state's.
        """

    def sync_names(self) -> None:
        """Changes of names in the folder are durable; from any thread. Raises OSError, and then no `commit` follows."""

    def close(self) -> None: ...


class NoJournal:
    """`memory` durability: entries are counted and forgotten."""

    def __init__(self) -> None:
        self.tail = Tail(0, 0)
        self._next = Tail(0, 0)
        self.length = 0
        self.state_id = b""

    def newest_whole(self) -> tuple[int, PrivateState] | None:
        return None

    def replay(
        self, first: int = 1, may_be_cut: Callable[[], bool] = never, unsynced: Callable[[], bool] = never
    ) -> Iterator[Entry]:
        return iter(())

    def append(self, revision: int, time_us: int, bodies: list[bytes], private: Private) -> None:
        self._next = Tail(self.tail.number + 1, 0)

    async def commit(self, *, durable: bool) -> None:
        self.tail = self._next

    def settle(self) -> Future[None] | None:
        return None

    def make_ahead(self) -> None:
        pass

    def trim(self, before: int, still_owner: Callable[[], None]) -> None:
        pass

    def sync_names(self) -> None:
        pass

    def close(self) -> None:
        pass
