"""What a system has to be able to do to be put under load, and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from solewriter.bench.load.agent import Link, Loop
from solewriter.bench.load.requests import Fields, Stored
from solewriter.engine_proc.process import Durability


class Setting(NamedTuple):
    """What a system is started with."""

    folder: Path  # its own, and not there yet; on the disk that is measured
    durability: Durability
    agents_max: int  # how many of them may be connected at once
    entry_bytes: int  # what our journal takes for one small update: what a floor writes to be compared with us


class Peer(Protocol):
    """A system that serves, or files that are there to be used."""

    @property
    def pids(self) -> list[int]:
        """Its server's processes; none where agents do all the work themselves."""

    def load(self, tasks: Iterable[Fields]) -> None:
        """Store these, each at version 1. Once, before any agent comes."""

    def link(self, number: int) -> Link:
        """How this agent connects."""

    def stored(self) -> Iterator[Stored]:
        """Everything that is stored, in any order, while no agent works."""


class Driven(NamedTuple):
    """What a program found out that brings its own agents. Not all percentiles that we ask of ourselves are told."""

    per_s: float
    p50_us: float
    faults: list[str]


@runtime_checkable
class SelfDriven(Protocol):
    """A system that comes with a program of its own to put it under load."""

    def drive(self, agents: int, window: int, seconds: float, cpus: Sequence[int]) -> Driven:
        """About so many seconds of it, on these CPUs."""


class Entry(NamedTuple):
    """One system in the catalog. `start` raises NotHere."""

    name: str
    how: dict[Durability, str]  # the setting that makes each promise that it can make
    start: Callable[[Setting], AbstractContextManager[Peer]]
    validated: bool = False  # whether what is stored passed the model's validation where it is stored
    batch: str = ""  # what a window of requests is to it
    floor: bool = False  # it stores nothing: it is what the way there and back costs
    workloads: tuple[str, ...] = ()  # only these; all of them if none is named
    loops: tuple[Loop, ...] = ()  # likewise
    note: str = ""  # what has to be known to compare it
