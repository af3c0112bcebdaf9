"""The child process of the snapshot benchmark: a reader that sleeps until there is a new revision, and says when."""

from __future__ import annotations

import os
import struct
import time

import msgspec

from solewriter import Reader, open_reader
from solewriter.bench.kit.child import Order, say, told, told_to_go
from solewriter.bench.kit.measure import NS_PER_S, Interval

PROGRAM = "solewriter.bench.reading.waiting"
SEEN = struct.Struct("<QQ")  # a revision, and when it was seen: `time.monotonic_ns`


class Orders(Order, frozen=True):
    cpus: tuple[int, ...]
    state: str
    write_fd: int  # takes what was seen

    @property
    def inherited(self) -> list[int]:
        return [self.write_fd]


class Report(msgspec.Struct, frozen=True):
    seen: int


def main() -> None:
    orders = told(Orders)
    os.sched_setaffinity(0, orders.cpus)
    reader = open_reader(orders.state)
    known = reader.revision  # before anybody is told to go
    say(Report(see(reader, known, orders.write_fd, told_to_go())))


def see(reader: Reader, known: int, write_fd: int, interval: Interval) -> int:
    """Wait for one revision after the other behind the known one, and say when each was there."""
    seen = 0
    while (left_s := (interval.end_ns - time.monotonic_ns()) / NS_PER_S) > 0:
        try:
            known = reader.wait_for(known + 1, left_s)
        except TimeoutError:
            break
        os.write(write_fd, SEEN.pack(known, time.monotonic_ns()))
        seen += 1
    return seen


if __name__ == "__main__":
    main()
