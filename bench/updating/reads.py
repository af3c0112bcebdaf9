"""Each kind of read by itself, one reader, beside whoever writes: passes over the next few tasks, none of them twice on
end.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

from solewriter import Snapshot, Task, open_reader
from solewriter.bench.kit.measure import NS_PER_US, Interval

PASS_READS = 1_000  # between two looks at the clock


class Reads:
    """One reader, its snapshot held all the time, and the kinds of read as passes over the next few tasks."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._reader = open_reader(state)
        self._held = self._reader.snapshot()
        ids = [task.id for task in self._held.entities(Task)]  # and every one is decoded now
        random.Random(0).shuffle(ids)
        self._batches = itertools.cycle([ids[start : start + PASS_READS] for start in range(0, len(ids), PASS_READS)])

    def measured_us(self, interval: Interval) -> dict[str, float]:
        """Microseconds of one read of each kind, one kind after the other, each with its share of the interval."""
        kinds = {
            "pin and close": self._pins,
            "get, warm": self._warm,
            "get, cold": self._cold,
            "get, raw": self._raw,
            "pin, get newest": self._newest,
        }
        found_us: dict[str, float] = {}
        for name, one_pass in kinds.items():
            now_ns = time.monotonic_ns()
            until_ns = now_ns + (interval.end_ns - now_ns) // (len(kinds) - len(found_us))
            found_us[name] = self._per_read_us(one_pass, until_ns)
        return found_us

    def _per_read_us(self, one_pass: Callable[[list[str]], int], until_ns: int) -> float:
        """Passes until then, at least one, after one that warms up. A pass returns its nanoseconds."""
        one_pass(next(self._batches))
        taken_ns = reads = 0
        while not reads or time.monotonic_ns() < until_ns:
            batch = next(self._batches)
            taken_ns += one_pass(batch)
            reads += len(batch)
        return round(taken_ns / reads / NS_PER_US, 3)

    def _pins(self, ids: list[str]) -> int:
        begun_ns = time.monotonic_ns()
        for _ in ids:
            self._reader.snapshot().close()
        return time.monotonic_ns() - begun_ns

    def _warm(self, ids: list[str]) -> int:
        """From the held snapshot: nothing is decoded. What a writer changed is found as it was."""
        return _timed_gets(self._held, ids)

    def _cold(self, ids: list[str]) -> int:
        """A new reader for each pass, so that every get decodes; opening it is not counted."""
        with open_reader(self._state) as reader, reader.snapshot() as snapshot:
            snapshot.get(Task, "")  # maps what every get needs
            return _timed_gets(snapshot, ids)

    def _raw(self, ids: list[str]) -> int:
        """The record found and its checksum verified, its payload not decoded."""
        pin = self._reader.snapshot().pin
        kind = pin.catalog.kind_code(Task.kind_name)
        assert kind is not None
        begun_ns = time.monotonic_ns()
        for id in ids:
            pin.content(pin.find(kind, id))
        return time.monotonic_ns() - begun_ns

    def _newest(self, ids: list[str]) -> int:
        """A pin for each get; what a writer changed since the last one is decoded."""
        begun_ns = time.monotonic_ns()
        for id in ids:
            self._reader.get(Task, id)
        return time.monotonic_ns() - begun_ns


def _timed_gets(snapshot: Snapshot, ids: list[str]) -> int:
    begun_ns = time.monotonic_ns()
    for id in ids:
        snapshot.get(Task, id)
    return time.monotonic_ns() - begun_ns
