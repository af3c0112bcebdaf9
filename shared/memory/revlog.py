"""The revision log: (revision, heap tail after it) points, append-only, so that a revision can be found in the heap.

A point is written only when the tail moved at least REVISION_LOG_STRIDE bytes since the last one, so the log stays a
small fraction of the heap; from the nearest point the heap itself is walked.
"""

from __future__ import annotations

from collections.abc import Callable

from solewriter.shared.config import REVISION_LOG_SEGMENT_BYTES, REVISION_LOG_STRIDE
from solewriter.shared.memory.segment import Segment

POINTS = REVISION_LOG_SEGMENT_BYTES // 16  # of one segment


class RevisionLogWriter:
    """Appends points. `reserve` before a commit makes sure that `append` behind it cannot fail."""

    def __init__(self, make: Callable[[int, int], Segment]) -> None:
        self._make = make  # (segment number, bytes) -> segment
        self._words: dict[int, memoryview[int]] = {}
        self._last_tail = 0
        self.first = 0
        self.points = 0

    def reserve(self) -> None:
        """Room for one more point. Raises MemoryFull."""
        number = self.points // POINTS
        if number not in self._words:
            self._words[number] = self._make(number, REVISION_LOG_SEGMENT_BYTES).words

    def append(self, revision: int, tail: int) -> None:
        if self.points and tail - self._last_tail < REVISION_LOG_STRIDE:
            return
        words, place = self._words[self.points // POINTS], self.points % POINTS * 2
        words[place] = revision
        words[place + 1] = tail
        self.points += 1
        self._last_tail = tail

    def forget_below(self, address: int) -> list[int]:
        """Leave out the segments of points that all lie below the heap's first address, but for the newest such point.
        Their numbers: to be unlinked when no root lists them any more.
        """
        forgotten = []
        while (self.first + 1) * POINTS < self.points and self._words[self.first + 1][1] <= address:
            del self._words[self.first]
            forgotten.append(self.first)
            self.first += 1
        return forgotten


class RevisionLogReader:
    """Binary search over the points that a root lists."""

    def __init__(self, attach: Callable[[int], Segment]) -> None:
        self._attach = attach
        self._words: dict[int, memoryview[int]] = {}

    def tail_after(self, revision: int, first_segment: int, points: int) -> int | None:
        """The newest known tail at which no record above `revision` had been written; None if the log begins later."""
        for number in list(self._words):  # of which other threads add and remove some
            if number < first_segment:
                self._words.pop(number, None)
        low, high = first_segment * POINTS, points
        while low < high:
            middle = (low + high) // 2
            if self._point(middle)[0] <= revision:
                low = middle + 1
            else:
                high = middle
        return self._point(low - 1)[1] if low > first_segment * POINTS else None

    def _point(self, number: int) -> tuple[int, int]:
        segment, place = number // POINTS, number % POINTS * 2
        words = self._words.get(segment)
        if words is None:
            words = self._words[segment] = self._attach(segment).words
        return words[place], words[place + 1]
