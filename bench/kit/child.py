"""The child's side of `children`: it is told its orders as its one argument, says `ready` when all that it needs is
made, is told the interval, works from then on, and says what it got done. It ends when its parent is gone before that.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TypeVar

import msgspec

from solewriter.bench.kit.measure import Interval

READY = b"ready\n"


class Order(msgspec.Struct, frozen=True):
    """What a child is to do; each program has its own kind of it."""

    @property
    def inherited(self) -> list[int]:
        """Descriptors of its parent that are its own, too."""
        return []


K = TypeVar("K", bound=Order)


def told(kind: type[K]) -> K:
    """The orders of this process. Ctrl-C at a terminal is the parent's to answer, which ends this process then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return msgspec.json.decode(sys.argv[1], type=kind)


def told_to_go() -> Interval:
    """Everything that takes time and is not measured is done: when to work."""
    os.write(1, READY)
    heard = sys.stdin.buffer.readline()
    if not heard:
        raise SystemExit(1)  # the parent is gone
    return msgspec.json.decode(heard, type=Interval)


def say(report: msgspec.Struct) -> None:
    os.write(1, msgspec.json.encode(report))
