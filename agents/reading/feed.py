"""The feed: every record behind a revision, in order, none twice and none missed.

Straight from the heap: a feed is a place in it up to which it was read. When an engine follows, that place is found
again in the new memory, by revision and by how much of that revision was read. What has left memory is read from the
journal, from a checkpoint before it on, because a change brings what was before it; then memory again. No engine is
involved.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Self

from solewriter.agents.reader import Reader
from solewriter.agents.reading.change import Published
from solewriter.agents.reading.past import Past
from solewriter.agents.reading.travel import where_it_begins
from solewriter.shared import record
from solewriter.shared.errors import Compacted, SnapshotExpired, checking_descriptors, safe_repr
from solewriter.shared.memory.heap import PREFIX_BYTES, padded, walk
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.root import STOPPED
from solewriter.shared.memory.view import View
from solewriter.shared.record import Flags


class Feed:
    """Reads on behind `since`, which is exclusive. Raises Compacted where what follows it is not available any more.

    One that failed in the middle of a look, by Ctrl-C say, has lost what it had taken: whoever wants that again looks
    with a `fresh` one, and goes on with that when it has what it found.
    """

    def __init__(self, reader: Reader, since: int, history_id: str) -> None:
        self._reader = reader
        self.since = since  # the last revision that was taken as a whole
        self._within = 0  # records taken of the one after it
        self._skip = 0  # of them, those that are met once more in another memory, or in the journal
        self._history_id = history_id
        self._prefix = ""  # of the memory that it reads in, which is not held for that
        self._address = 0
        self._journaled: Iterator[Published] | None = None

    def fresh(self) -> Self:
        """Another one at the same place. What is being read from the journal is its own from now on: this one would
        begin with that anew.
        """
        other = copy(self)
        self._journaled = None
        return other

    def take(self, limit: int) -> list[Published]:
        """The next records, at most so many; none if nothing new is published."""
        if self._journaled is not None:
            try:
                if taken := self.take_journaled(limit):
                    return taken
            except Compacted:
                if not self._is_in_memory():
                    raise
            self._journaled = None
        view = self._reader.view()
        try:
            pin = view.pin()
            return self._from_memory(view, pin, limit)
        except (FileNotFoundError, SnapshotExpired):
            if view.root.successor == STOPPED:
                return []  # its memory is gone, and there is no other one yet
            if not view.root.successor:
                self._journaled = self._from_journal(view.pin())
            return self.take(limit)

    def turn_to_journal(self) -> None:
        """Read on in the journal, which has what was before each change, though memory has the change itself."""
        self._journaled = self._from_journal(self._reader.view().pin())

    def take_journaled(self, limit: int) -> list[Published]:
        """The next ones of those that the journal has. Raises Compacted where it was trimmed meanwhile, though memory
        may have them.
        """
        taken: list[Published] = []
        try:
            for one in self._journaled or ():
                if self._is_new(one.record):
                    taken.append(one)
                    if len(taken) == limit:
                        break
        except Compacted:
            if not taken:
                raise
        return taken

    # --- from memory -------------------------------------------------------------------------------------------------

    def _is_in_memory(self) -> bool:
        """Whether what comes next is."""
        try:
            return self.since + 1 >= self._reader.view().pin().root.oldest
        except (FileNotFoundError, SnapshotExpired):
            return False

    def _from_memory(self, view: View, pin: Pin, limit: int) -> list[Published]:
        """Raises FileNotFoundError or SnapshotExpired where what comes next has left it."""
        if view.prefix == self._prefix:
            try:
                return self._walk(pin, limit)
            except (FileNotFoundError, SnapshotExpired):
                pass  # the place up to which it was read is gone; what comes next may be there
        self._begin(view, pin)
        return self._walk(pin, limit)

    def _walk(self, pin: Pin, limit: int) -> list[Published]:
        taken: list[Published] = []
        begun = self._address >> 32
        try:
            for address, segment, place in walk(pin.segment, self._address, pin.root.tail):
                body = place + PREFIX_BYTES
                found = pin.whole(address) if self._is_wanted(segment.bytes, body) else None
                self._address = address + padded(record.length_at(segment.bytes, body))
                if found is not None and self._is_new(found):
                    taken.append(Published(pin, address, found))
                    if len(taken) == limit:
                        break
            pin.segment(begun)  # after the look: what was taken away meanwhile reads as nothing new
        except (FileNotFoundError, SnapshotExpired):
            if not taken:
                raise
            self._prefix = ""
        return taken

    def _begin(self, view: View, pin: Pin) -> None:
        """Find the place in a memory that was not read before."""
        self._check_history(view, pin)
        self._check_published(pin)
        self._skip = self._within
        if self.since + 1 < pin.root.oldest:
            raise FileNotFoundError
        self._address = view.begin_of(self.since, pin.root)
        self._prefix = view.prefix

    def _check_history(self, view: View, pin: Pin) -> None:
        if view.root.history.hex() != self._history_id:
            raise Compacted(
                f"revision {self.since} belongs to another history: the engine could not prove that nothing published "
                "was lost since; take a new snapshot",
                oldest=pin.root.oldest,
            )

    def _check_published(self, pin: Pin) -> None:
        """What comes up to there would be left out, and nobody would know."""
        if self.since > pin.root.revision:
            raise Compacted(
                f"there is no revision {safe_repr(self.since)} here; the newest is {pin.root.revision}: it is of "
                "another state, or this one was put back; take a new snapshot, or watch with resync=True",
                oldest=pin.root.oldest,
            )

    def _is_wanted(self, buffer: memoryview, body: int) -> bool:
        return record.revision_at(buffer, body) > self.since and not record.flags_at(buffer, body) & Flags.RELOCATED

    # --- from the journal --------------------------------------------------------------------------------------------

    def _from_journal(self, pin: Pin) -> Iterator[Published]:
        """What is journaled behind `since`, up to a revision that was published when this began."""
        self._prefix, self._skip = "", self._within
        return _walk_journal(pin, self._reader.folder.path, self.since)

    def _is_new(self, found: record.Record) -> bool:
        """Whether this record, of a revision behind `since`, was not taken before; if so, it is now."""
        if self._skip:
            self._skip -= 1
            return False
        if found.flags & Flags.LAST:
            self.since, self._within = found.revision, 0
        else:
            self._within += 1
        return True


def _walk_journal(pin: Pin, folder: Path, since: int) -> Iterator[Published]:
    """No method, and told no error: what it holds on to must not hold on to its feed, or both would stay for long."""
    try:
        with checking_descriptors():
            past = Past(pin, folder, since)
            past.advance(since)
            for found, before in past.changes(pin.root.revision):
                yield Published(pin, 0, found, before)
                if found.flags & Flags.LAST:
                    since = found.revision
    except Compacted as gone:
        raise Compacted(
            f"what happened behind revision {safe_repr(since)} is not available any more: memory goes back to revision "
            f"{pin.root.oldest}, and {gone}; take a new snapshot, or watch with resync=True",
            oldest=where_it_begins(gone, pin.root.oldest),
        ) from gone
