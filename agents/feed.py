"""The feed: every record behind a revision, in order, none twice and none missed, straight from the heap.

No engine is involved: a feed is a place in the heap up to which it was read. When an engine follows, that place is
found again in the new memory, by revision and by how much of that revision was read.
"""

from __future__ import annotations

from typing import NamedTuple

from solewriter.agents.reader import Reader
from solewriter.shared import record
from solewriter.shared.errors import Compacted, EngineUnavailable, SnapshotExpired
from solewriter.shared.memory.heap import PREFIX_BYTES, padded, walk
from solewriter.shared.memory.root import STOPPED
from solewriter.shared.memory.view import Pin, View
from solewriter.shared.record import Flags


class Published(NamedTuple):
    """One record of a feed, and the revision pinned behind it, which holds what it takes to decode it."""

    pin: Pin
    address: int
    record: record.Record


class Feed:
    """Reads on behind `since`, which is exclusive. Raises Compacted where what follows it is not in memory any more."""

    def __init__(self, reader: Reader, since: int, history_id: str) -> None:
        self._reader = reader
        self.since = since  # the last revision that was taken as a whole
        self._within = 0  # records taken of the one after it
        self._skip = 0  # of them, those that are met once more in another memory
        self._history_id = history_id
        self._view: View | None = None
        self._address = 0

    def take(self, limit: int) -> list[Published]:
        """The next records, at most so many; none if nothing new is published."""
        view = self._reader.view()
        pin = view.pin()
        taken: list[Published] = []
        try:
            if view is not self._view:
                self._begin(view, pin)
            begun = self._address >> 32
            for address, segment, place in walk(pin.segment, self._address, pin.root.tail):
                body = place + PREFIX_BYTES
                self._address = address + padded(record.length_at(segment.bytes, body))
                if self._is_new(record.revision_at(segment.bytes, body), record.flags_at(segment.bytes, body)):
                    taken.append(Published(pin, address, pin.whole(address)))
                    if len(taken) == limit:
                        break
            if begun < view.root.readable_from:  # after the look: what was taken away meanwhile reads as nothing new
                raise self._compacted(pin)
        except (FileNotFoundError, SnapshotExpired):
            if view.root.successor == STOPPED:
                raise EngineUnavailable("the engine was stopped, and its memory is gone") from None
            raise self._compacted(pin) from None
        return taken

    def _begin(self, view: View, pin: Pin) -> None:
        """Find the place in a memory that was not read before."""
        if view.root.history.hex() != self._history_id:
            raise Compacted(
                f"revision {self.since} belongs to another history: the engine could not prove that nothing published "
                "was lost since; take a new snapshot",
                oldest=pin.root.oldest,
            )
        if self.since + 1 < pin.root.oldest:
            raise self._compacted(pin)
        self._address = view.begin_of(self.since, pin.root)
        self._skip = self._within
        self._view = view

    def _is_new(self, revision: int, flags: int) -> bool:
        """Whether this record was not taken before; if so, it is now."""
        if revision <= self.since or flags & Flags.RELOCATED:
            return False
        if self._skip:
            self._skip -= 1
            return False
        if flags & Flags.LAST:
            self.since, self._within = revision, 0
        else:
            self._within += 1
        return True

    def _compacted(self, pin: Pin) -> Compacted:
        return Compacted(
            f"what happened behind revision {self.since} is not in memory any more; the oldest revision there is "
            f"{pin.root.oldest}: take a new snapshot, or watch with resync=True",
            oldest=pin.root.oldest,
        )
