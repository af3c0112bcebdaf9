"""What is asked of every system alike: plain values that each of them turns into its own words.

A request is one or more steps that happen together or not at all. Its answer is the new version of each step's entity.
In these measurements nothing is ever refused; a system that refuses raises, and its run is worth nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

Operation = Literal["create", "update", "transition"]
Fields = dict[str, Any]  # plain values, as JSON has them


class Step(NamedTuple):
    """Set these fields of one entity, whose version becomes the next one."""

    operation: Operation
    key: str
    expect: int | None  # the version that must be there, 0 for none; None: whatever is there
    fields: Fields  # of a create: all of them


Request = tuple[Step, ...]
Answer = Sequence[int]
Stored = tuple[str, int, Mapping[str, Any]]  # key, version, and at least CHECKED of its fields, where it has them
CHECKED = ("budget_limit", "status")


class Refusal(Exception):
    """A system did not do what was asked of it."""


class Connection(Protocol):
    """One agent's way to a system."""

    def one(self, request: Request) -> Answer:
        """Ask and wait for the answer. Raises whatever the system raises when it does not do it."""

    def many(self, requests: Iterable[Request], window: int) -> Iterator[Answer]:
        """The answers in the order of the requests, up to `window` of which may be on their way."""

    def read(self, key: str) -> object:
        """The newest state of an entity, as this system hands it out."""

    def renewed(self) -> Callable[[str], object]:
        """Reads that may all be of one moment, which is not before this call."""

    def close(self) -> None: ...


@runtime_checkable
class Forgetful(Protocol):
    """A connection that keeps what it reads, and can be told not to."""

    def renewed_anew(self) -> Callable[[str], object]:
        """As `renewed`, and each read makes its entity of what is stored, whether it changed or not."""


# --- what several of them send ----------------------------------------------------------------------------------------


def as_tuples(requests: Iterable[Request]) -> list[list[tuple[Any, ...]]]:
    """The steps of requests, to be pickled: in a third of the time that named ones take."""
    return [[tuple(step) for step in request] for request in requests]


def as_column(value: Any) -> Any:
    """A field's value, where a column holds one plain value: lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


# --- two ways to keep a window full -----------------------------------------------------------------------------------


def in_batches(
    requests: Iterable[Request], window: int, exchange: Callable[[list[Request]], Sequence[Answer]]
) -> Iterator[Answer]:
    """For whom the answers to a batch come together: a window is a batch."""
    source = iter(requests)
    while batch := list(islice(source, window)):
        yield from exchange(batch)


def sliding(
    requests: Iterable[Request],
    window: int,
    frame: int,
    send: Callable[[list[Request]], object],
    receive: Callable[[], Sequence[Answer]],
) -> Iterator[Answer]:
    """For whom answers come back by and by: whole frames leave as soon as the window has room for one."""
    source, frame = iter(requests), max(1, min(frame, window // 4))
    sent: deque[int] = deque()
    answered, exhausted = 0, False
    while sent or not exhausted:
        while not exhausted and sum(sent) - answered + frame <= window:
            batch = list(islice(source, frame))
            exhausted = len(batch) < frame
            if batch:
                send(batch)
                sent.append(len(batch))
        if sent:
            answers = receive()
            answered += len(answers)
            while sent and answered >= sent[0]:
                answered -= sent.popleft()
            yield from answers
