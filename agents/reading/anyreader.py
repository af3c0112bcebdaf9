"""What every reader answers, wherever it reads: snapshots, single entities, and what was earlier.

`Reader` reads an engine's memory, `OfflineReader` what a folder holds; each says with `pin` what is the newest.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from solewriter.agents.reading.decoding import Decoder
from solewriter.agents.snapshot import Plain, Snapshot
from solewriter.shared import record
from solewriter.shared.config import Limits, check_limits
from solewriter.shared.entity import Entity, name_of
from solewriter.shared.errors import EngineUnavailable, SnapshotExpired, checking_descriptors, safe_repr
from solewriter.shared.folder import StateFolder, not_picklable
from solewriter.shared.registry import Registry

if TYPE_CHECKING:
    from solewriter.agents.reading.change import Change
    from solewriter.agents.reading.past import Held, Viewed
    from solewriter.agents.reading.travel import Difference

E = TypeVar("E", bound=Entity)


def check_revision(revision: object) -> None:
    """Raises TypeError: nothing lies between two revisions."""
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"a revision is an int, not {safe_repr(revision)}")


def not_published(revision: int, newest: int, timeout_s: float | None) -> TimeoutError:
    return TimeoutError(f"revision {safe_repr(revision)} was not published in {timeout_s} s; the newest is {newest}")


def not_so(kind: type[Entity] | str, id: str, found: object, timeout_s: float | None) -> TimeoutError:
    return TimeoutError(f"{name_of(kind)} {id!r} did not become so in {timeout_s} s; it is {found!r}")


def not_so_many(kind: type[Entity] | str, where: object, count: int, timeout_s: float | None) -> TimeoutError:
    asked = f" that are {safe_repr(where)}" if where else ""
    return TimeoutError(f"the number of {name_of(kind)}{asked} did not become so in {timeout_s} s; it is {count}")


def plain_answer(holds: object) -> object:
    """What a predicate said. Raises TypeError for one that is async, of which nobody here waits for the answer."""
    if isinstance(holds, Awaitable):
        raise TypeError(f"a predicate says whether it holds, and gives nothing to await: {safe_repr(holds)}")
    return holds


def closed_reader() -> EngineUnavailable:
    return EngineUnavailable("this reader is closed, or its client", final=True)


class AnyReader(ABC):
    """A reader of one state folder, but for where it reads: subclasses say with `pin` what is newest there."""

    def __init__(self, state: str | os.PathLike[str], limits: Limits, registry: Registry | None = None) -> None:
        check_limits(limits)
        self.folder = StateFolder(state)
        self.decoder = Decoder(registry or Registry(), limits.reader_cache_max)

    @property
    def _opened(self) -> str:
        """How another process opens its own."""
        return f"open_reader({str(self.folder.path)!r})"

    @abstractmethod
    def pin(self) -> Held:
        """The newest revision, held."""

    @abstractmethod
    def is_stale(self, view: Viewed) -> bool:
        """Whether nobody makes newer revisions where this one was found."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was read; nothing more is. Snapshots that are held stay readable."""

    def snapshot(self) -> Snapshot:
        """The newest revision, held."""
        return Snapshot(self, self.pin())

    @property
    def revision(self) -> int:
        """The newest one."""
        return self.pin().root.revision

    @overload
    def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    def get(self, kind: str, id: str) -> Plain | None: ...
    def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The newest entity, or None."""
        while True:
            try:
                return self.snapshot().get(kind, id)
            except SnapshotExpired:
                pass  # this process was stopped in the middle: what was the newest is long gone

    # --- looking back ------------------------------------------------------------------------------------------------

    def at(self, revision: int) -> Snapshot:
        """Everything as it was at an earlier revision: from memory, or with one pass over the journal.

        Raises Compacted where neither goes so far back, InvalidQuery for a revision that is not published yet.
        """
        with checking_descriptors():
            from solewriter.agents.reading import travel

            return travel.at(self, revision)

    @overload
    def diff(self, since: int, until: int, kind: type[E]) -> list[Difference[E]]: ...
    @overload
    def diff(self, since: int, until: int, kind: str) -> list[Difference[Plain]]: ...
    @overload
    def diff(self, since: int, until: int, kind: None = None) -> list[Difference[Any]]: ...
    def diff(self, since: int, until: int, kind: type[Entity] | str | None = None) -> list[Difference[Any]]:
        """Every entity that is not the same at these two revisions, with both contents, in the order of its first
        change; of all kinds or one. Raises as `at` does.
        """
        with checking_descriptors():
            from solewriter.agents.reading import travel

            return travel.diff(self, since, until, kind)

    @overload
    def history(self, kind: type[E], id: str) -> Iterator[Change[E]]: ...
    @overload
    def history(self, kind: str, id: str) -> Iterator[Change[Plain]]: ...
    def history(self, kind: type[Entity] | str, id: str) -> Iterator[Change]:
        """Every change of one entity, the newest first; of a deleted one, too. Raises Compacted behind the oldest that
        is available, if there were others before it.
        """
        with checking_descriptors():
            from solewriter.agents.reading import travel
        return travel.history(self, kind, id)

    def before(self, pin: Held, found: record.Record) -> record.Record | None:
        """The record of the same entity before this one, from the journal; None if there was none. Raises Compacted."""
        with checking_descriptors():
            from solewriter.agents.reading import travel

            return travel.before(self, pin, found)

    def lived_on(self, pin: Held, kind: int, key: str, since: int, until: int) -> bool:
        """Whether the journal says that two versions of a key are of one life: no other one began between them."""
        with checking_descriptors():
            from solewriter.agents.reading import travel

            return travel.lived_on(self, pin, kind, key, since, until)

    def __reduce__(self) -> NoReturn:
        raise not_picklable("reader", self._opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
