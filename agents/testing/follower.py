"""Follows a ledger's changes, and notes what is missing, comes twice or out of order, or does not fit what was before.

A follower that falls too far behind is told so, and goes on from a whole snapshot; everything between two of those is
checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solewriter.agents.reader import Reader
from solewriter.agents.reading.change import Change
from solewriter.agents.testing.auditor import Notes
from solewriter.agents.testing.ledger import MOVED, Account, Left, Right, Stone, Tally
from solewriter.agents.watch import Resync
from solewriter.shared.entity import Entity
from solewriter.shared.errors import Compacted

PATIENCE_S = 0.2  # with a ledger in which nothing happens
CHANGING: tuple[type[Entity], ...] = (Account, Left, Right, Tally)
Key = tuple[str, str]


class Follower:
    """One watch, and everything that is stored as it should be by the changes so far."""

    def __init__(self, reader: Reader, notes: Notes) -> None:
        self._notes = notes
        snapshot = reader.snapshot()
        self._known = _all(snapshot)
        self._watch = reader.watch(since=snapshot.revision, timeout_s=PATIENCE_S, resync=True)
        self._revision = snapshot.revision  # of the last change
        self._request: dict[Key, Change] = {}  # the changes of one revision so far
        self._made = 0  # by how much they changed the sum of all accounts
        self.changes = self.resyncs = self.reads = 0
        self.gone = 0  # old entities that were not in memory any more

    def follow(self, going_on: Callable[[], bool]) -> None:
        """Every change until then."""
        while going_on():
            for change in self._watch:
                if isinstance(change, Resync):
                    self._begin_again(change)
                else:
                    with self._notes.whatever_fails(str(change)):
                        self.take(change)
                if not going_on():
                    return

    def _begin_again(self, resync: Resync) -> None:
        """What was missed is in the snapshot. The last request may have been seen in part."""
        self._notes.fits(resync.revision >= self._revision, "a resync went back", self._revision, resync.revision)
        self._forget()
        self._revision = resync.revision
        self._known = _all(resync.snapshot)
        self.resyncs += 1

    def take(self, change: Change) -> None:
        """The next change."""
        fits, key = self._notes.fits, (change.kind, change.id)
        if change.revision != self._revision:
            self._whole()
            fits(change.revision == self._revision + 1, "a revision is missing", self._revision, change)
            self._revision = change.revision
        fits(key not in self._request, "a change came twice", change)
        self._request[key] = change
        self.changes += 1
        if change.kind == Stone.kind_name:
            fits(False, "a stone has changed", change)
        else:
            self._compare(change, key, change.new)

    def _compare(self, change: Change, key: Key, new: Any) -> None:
        """What it says with what was there before."""
        fits, before = self._notes.fits, self._known.pop(key, None)
        try:
            fits(change.old == before, "what was there before is another", change, change.old, before)
        except Compacted:
            self.gone += 1
        if before is not None:
            self.reads += 1
            fits(change.version == before.version + 1, "a version is missing", change, before)
        expected = {(False, True): "create", (True, True): "update", (True, False): "delete"}
        fits(change.mutation == expected.get((before is not None, new is not None)), "another mutation", change)
        if new is not None:
            self.reads += 1
            fits((new.version, new.at) == (change.version, change.revision), "another entity", change, new)
            self._known[key] = new
            if isinstance(new, Account) and isinstance(before, Account):
                self._made += new.amount - before.amount

    def _whole(self) -> None:
        """The changes of one request: money only moves, halves go together, and the tally is there."""
        if not self._request:
            return
        fits, changes = self._notes.fits, self._request.values()
        kinds = [change.kind for change in changes]
        fits(kinds.count("Account") == MOVED and kinds.count("Tally") == 1, "a request is torn", *changes)
        halves = ({id for name, id in self._request if name == kind.kind_name} for kind in (Left, Right))
        fits(next(halves) == next(halves), "halves do not go together", *changes)
        fits(self._made == 0, "money was made", self._made, *changes)
        self._forget()

    def _forget(self) -> None:
        self._request.clear()
        self._made = 0


def _all(snapshot: Any) -> dict[Key, Entity]:
    return {(model.kind_name, one.id): one for model in CHANGING for one in snapshot.entities(model)}
