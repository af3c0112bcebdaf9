"""`Watch`: every change of a state in order, none twice and none missed, for `for` and for `async for`.

A slow watcher slows nobody: it reads the heap behind a revision, at its own pace. One that fell so far behind that the
memory was given back is told so by Compacted, or, with `resync=True`, by a Resync with a whole snapshot, and goes on
from there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, Self

from solewriter.agents.deadline import check_patience
from solewriter.agents.reader import Reader
from solewriter.agents.reading.anyreader import check_revision
from solewriter.agents.reading.change import Change, Published, is_first
from solewriter.agents.reading.conditions import Condition, conditions
from solewriter.agents.reading.decoding import Model, Several
from solewriter.agents.reading.feed import Feed
from solewriter.agents.snapshot import Snapshot
from solewriter.shared.config import WATCH_BATCH
from solewriter.shared.entity import check_id, name_of
from solewriter.shared.errors import Compacted, InvalidQuery, SnapshotExpired, safe_repr
from solewriter.shared.kinds.columns import Cell
from solewriter.shared.system.forks import forks_held_off
from solewriter.shared.where import copied_where

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from solewriter.agents.reading.scan import CellsOfRecords
    from solewriter.shared.where import Where
else:
    from typing import TypeVar


class Resync:
    """Changes were missed: here is everything as it is now, and the changes behind it follow."""

    __slots__ = ("_behind", "snapshot")

    def __init__(self, snapshot: Snapshot, behind: int = 0) -> None:
        self.snapshot = snapshot
        self._behind = behind  # the last revision before what was missed

    @property
    def revision(self) -> int:
        return self.snapshot.revision


if TYPE_CHECKING:
    Brought = TypeVar("Brought", bound=Change | Resync, default=Change | Resync, covariant=True)
else:
    Brought = TypeVar("Brought", covariant=True)  # which has defaults since 3.13


class Watch(Generic[Brought]):
    """An iterator of changes, and an async one. Ends when nothing came for `timeout_s`; without it, never.

    Not to be shared by threads. Made by `Reader.watch`.
    """

    def __init__(
        self, reader: Reader, kind: Model | Several | None, id: str | None, since: int | None, where: Where | None,
        timeout_s: float | None, resync: bool, history_id: str | None = None,
    ) -> None:  # fmt: skip
        self._kinds = by_name(kind)
        (name, *more) = self._kinds or ("", "")
        if where and more:
            raise InvalidQuery("where asks for columns of one kind: name it", kind="")
        if id is not None:
            check_id(id)
            if more:
                raise InvalidQuery("an id is that of one kind: name it", kind="")
        if since is not None:
            check_revision(since)
        check_patience(timeout_s)
        self._reader = reader
        self._id = id
        self._where = copied_where(where)
        self._timeout_s = timeout_s
        self._resync = resync
        with reader.snapshot() as now:
            code = now.pin.catalog.kind_code(name) if where else None
            if code is not None:  # what cannot be asked is refused here, not at the first change
                conditions(name, now.pin.catalog.tables[code].columns, where)
            feed = Feed(reader, now.revision if since is None else max(0, since), history_id or now.history_id)
        # Where it is, and what it took up to there: stored at once, so that Ctrl-C in a look comes before or behind.
        self._looked: tuple[Feed, deque[Any]] = feed, deque()  # of Change, and Resync where that was asked for
        self._begun = time.monotonic()  # when it was asked for the next change
        self._last: int | None = None  # the newest revision when the patience for that was over
        self._looking: asyncio.Future[bool] | None = None  # in a thread; it goes on when its caller is cancelled

    @property
    def revision(self) -> int:
        """The last revision of which all was brought: `since` for a watch that goes on from here."""
        feed, waiting = self._looked
        if not waiting:
            return feed.since
        first = waiting[0]
        return first._behind if isinstance(first, Resync) else first.revision - 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Brought:
        self._begun, self._last = time.monotonic(), None
        while not (waiting := self._looked[1]):
            if not self._wait():
                raise StopIteration
        change: Brought = waiting[0]
        del waiting[0]  # by no call: behind one Ctrl-C may come, and the change would be nowhere
        return change

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Brought:
        self._begun, self._last = time.monotonic(), None
        while not (waiting := self._looked[1]):
            if self._looking is None:
                self._looking = asyncio.get_running_loop().run_in_executor(None, self._wait)
                self._looking.add_done_callback(retrieve_error)
            try:
                going_on = await asyncio.shield(self._looking)
            finally:  # one that failed is over as well
                if self._looking.done():
                    self._looking = None
            if not going_on:
                raise StopAsyncIteration
        change: Brought = waiting.popleft()
        return change

    # --- taking ------------------------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Take what there is, or sleep until there may be something; False when the patience is over, and what had been
        published by then was looked at: while others write without a pause, there is always more.
        """
        root = self._reader.view().root
        head = root.head  # before the look, so that a change behind it is not slept through
        is_new = self.take()
        left = self._reader.left_s(None if self._timeout_s is None else self._begun + self._timeout_s)
        if self._looked[1] or (is_new and left > 0):
            return True
        if left <= 0:
            self._last = root.current().revision if self._last is None else self._last
            return is_new and self.revision < self._last
        self._reader.sleep(root, head, left)
        return True

    def pop(self) -> Brought | None:
        """The next of those that `take` found; None where there is none of them left."""
        waiting = self._looked[1]
        return waiting.popleft() if waiting else None

    def take(self) -> bool:
        """Look for what is new; whether there was anything, wanted or not. One that fails took nothing."""
        waiting = self._looked[1]
        try:
            feed, published, wanted = self._next()
        except Compacted:
            if not self._resync:
                raise
            snapshot = self._reader.snapshot()
            resync = Resync(snapshot, self._looked[0].since)
            feed = Feed(self._reader, snapshot.revision, snapshot.history_id)
            self._looked = feed, deque([*waiting, resync])
            return True
        self._looked = feed, deque([*waiting, *map(self._change, wanted)])
        return bool(published)

    def _next(self) -> tuple[Feed, list[Published], list[Published]]:
        """What is published next, which of it is wanted, and the feed behind that."""
        feed = self._looked[0].fresh()
        try:
            published = feed.take(WATCH_BATCH)
            return feed, published, [one for one in published if self._wants(one)]
        except _Untold:
            feed = self._looked[0].fresh()
            feed.turn_to_journal()
            published = self._take_from_journal(feed)
            return feed, published, [one for one in published if self._wants(one)]

    def _take_from_journal(self, feed: Feed) -> list[Published]:
        try:
            return feed.take_journaled(WATCH_BATCH)
        except Compacted as gone:
            raise Compacted(
                f"whether changes behind revision {feed.since} left what `where` asks for is not known any more: these "
                f"columns are newer, what was before has left memory, and {gone.__cause__ or gone}; take a new "
                "snapshot, or watch with resync=True",
                oldest=self._reader.revision,
            ) from gone

    def _change(self, one: Published) -> Change:
        name = one.pin.catalog.kinds[one.record.kind]
        model = self._reader.decoder.model_of(name) if self._kinds is None else self._kinds[name]
        return Change(self._reader, one, name, model)

    def _wants(self, one: Published) -> bool:
        """Whether it is of what is asked for, and met the conditions before or does so now."""
        if self._kinds is None:
            return True
        code = one.record.kind
        model = self._kinds.get(name := one.pin.catalog.kinds[code])
        if model is None or (self._id is not None and one.record.key != self._id):
            return False
        if not self._where:
            return True
        with forks_held_off:  # as the import of `Query` in snapshot.py
            from solewriter.agents.reading.scan import CellsOfRecords

        cells_of = CellsOfRecords(one.pin.catalog, code, self._reader.decoder.kind_of(model))
        demands = conditions(name, one.pin.catalog.tables[code].columns, self._where)
        return _is_met(demands, cells_of(one.record)) or _is_met(demands, self._cells_before(one, cells_of, demands))

    def _cells_before(
        self, one: Published, cells_of: CellsOfRecords, demands: list[Condition]
    ) -> Sequence[Cell] | None:
        """Of the record that this one took the place of; where that is gone, by the block that this one has of it.
        Raises _Untold where that has not what is asked for.
        """
        try:
            before = one.before()
            return cells_of(before) if before is not None else None
        except (FileNotFoundError, SnapshotExpired):
            if is_first(one.pin, one.record):
                return None
            catalog, code = one.pin.catalog, one.record.kind
            schema, columns = catalog.schemas[one.record.schema], catalog.tables[code].columns
            if not all(schema.has_cells_for(columns[demand.place]) for demand in demands):
                raise _Untold from None
            return schema.cells(columns, one.record.old_cells, dict, catalog.defaults(code))


class _Untold(Exception):
    """Memory does not tell whether a change is wanted: the journal does. Never leaves a watch."""


def by_name(kind: Model | Several | None) -> dict[str, Model] | None:
    """What is asked for, by the names of the kinds; None for all. Raises TypeError, InvalidQuery."""
    if kind is None:
        return None
    several: Iterable[Any] = kind if isinstance(kind, list | tuple | AbstractSet) else [kind]
    asked: dict[str, Model] = {}
    for one in several:
        if asked.setdefault(name := name_of(one), one) != one:
            raise InvalidQuery(f"{name} is asked for as {safe_repr(asked[name])} and as {safe_repr(one)}", kind=name)
    if not asked:
        raise InvalidQuery("no kind is asked for, so nothing would ever come", kind="")
    return asked


def retrieve_error(looking: asyncio.Future[bool]) -> None:
    """How a look failed whose caller was cancelled is told to whoever asks next, and where nobody does, to nobody."""
    if not looking.cancelled():
        looking.exception()


def _is_met(demands: list[Condition], cells: Sequence[Cell] | None) -> bool:
    return cells is not None and all(demand.holds(cells[demand.place]) for demand in demands)
