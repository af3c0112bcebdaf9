"""Deadlines of requests: the caller says how long from now, the request carries when, on a clock that all share.

That clock is CLOCK_MONOTONIC: every process of a machine reads the same one, a restart of the engine does not touch it,
and nobody sets it. Who has no deadline pays nothing for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import TypeVar

from solewriter.shared.config import US_PER_S
from solewriter.shared.errors import Expired, InvalidMutation, InvalidQuery, safe_repr
from solewriter.shared.wireform import Asked

T = TypeVar("T")
Timed = tuple[T, int | None]  # with its deadline
YEARS_S = 1e9  # longer than any machine runs: it fits the wire whatever the caller means by it


def deadline_us(deadline_s: float | None) -> int | None:
    """So many seconds from now, as a request carries it: microseconds of `time.monotonic`, or None without a deadline.
    Raises InvalidMutation for what is no number of seconds.
    """
    if deadline_s is None:
        return None
    try:
        if not math.isnan(deadline_s):
            return time.monotonic_ns() // 1000 + int(max(-YEARS_S, min(deadline_s, YEARS_S)) * US_PER_S)
    except (TypeError, OverflowError):
        pass  # told below
    raise no_time("deadline_s", deadline_s)


def with_deadlines(source: Iterable[T], deadline_s: float | None) -> Iterator[Timed[T]]:
    """What a source gives, each with its own deadline in microseconds (see `deadline_us`): so long from when it was
    taken from the source. Raises InvalidMutation for what is no number of seconds.
    """
    if deadline_us(deadline_s) is None:
        return zip(source, repeat(None))
    return ((one, deadline_us(deadline_s)) for one in source)


def no_time(name: str, value: object) -> InvalidMutation:
    """The error for an option that is no number of seconds, NaN say, which is neither before nor after anything."""
    problem = f"seconds from now, not {safe_repr(value)}"
    return InvalidMutation(f"{name} is {problem}", fields={name: problem})


def is_patience(timeout_s: float) -> bool:
    """Whether a clock can be set by it: by NaN none can, nor by a text."""
    try:
        return 0.0 + timeout_s >= -math.inf
    except (TypeError, OverflowError):
        return False


def check_patience(timeout_s: float | None) -> None:
    """Checks the `timeout_s` of a reader's call. Raises InvalidQuery for what is no number of seconds."""
    if timeout_s is not None and not is_patience(timeout_s):
        raise InvalidQuery(f"timeout_s is seconds from now, not {safe_repr(timeout_s)}", kind="")


def check_times(timeout_s: float | None, deadline_s: float | None) -> None:
    """Checks the times of a request that is sent later. Raises InvalidMutation for what is no number of seconds."""
    if timeout_s is not None and not is_patience(timeout_s):
        raise no_time("timeout_s", timeout_s)
    deadline_us(deadline_s)


def due_s(requests: Sequence[Asked]) -> float:
    """When it is too late to send any of these, which were made one after the other, on `time.monotonic`. Infinite
    without a deadline.
    """
    last = requests[-1]
    return math.inf if len(last) == 2 or last[3] is None else last[3] / US_PER_S


def expired_unsent() -> Expired:
    return Expired("the request's deadline passed before there was room to send it")
