"""Redis's own figure for our script: `redis-benchmark`, a program in C that keeps no versions and so compares none."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from solewriter.bench.kit.optional import NotHere
from solewriter.bench.kit.redis_server import socket_of
from solewriter.bench.load.peers import redis_script
from solewriter.bench.load.peers.peer import Driven, Entry, Peer, Setting
from solewriter.bench.load.requests import Fields

NAME = "redis-benchmark"
PROBE = 20_000  # requests by which it is found out how many of them take the time that is asked for
PROBE_ONE_BY_ONE = 2_000
PATIENCE_S = 120.0
TOLD = {"rps", "p50_latency_ms"}  # columns of what it says


class BenchmarkPeer(redis_script.RedisPeer):
    """A server of its own, whose keys have the twelve digits that the program makes."""

    def __init__(self, program: str, setting: Setting, ending: ExitStack) -> None:
        super().__init__(setting, ending)
        self._program = program
        self._tasks = self._applied = 0
        self._address = socket_of(setting.folder, ending)
        self._script: str = self._client.script_load(redis_script.SET)

    def load(self, tasks: Iterable[Fields]) -> None:
        super().load(self._numbered(tasks))

    def _numbered(self, tasks: Iterable[Fields]) -> Iterator[Fields]:
        for number, fields in enumerate(tasks):
            self._tasks = number + 1
            yield {**fields, "id": f"task-{number:012d}"}

    def drive(self, agents: int, window: int, seconds: float, cpus: Sequence[int]) -> Driven:
        """About so many seconds, and whether the versions grew by as many as it says that it did."""
        probe = PROBE // window * window if window > 1 else PROBE_ONE_BY_ONE
        per_s = float(self._ran(agents, window, probe, cpus)["rps"])
        count = (
            int(max(probe, per_s * seconds)) // window * window
        )  # it rounds up to whole windows, and does not say so
        told = self._ran(agents, window, count, cpus)
        self._applied += probe + count
        versions = sum(version - 1 for _, version, _ in self.stored())
        faults = [] if versions == self._applied else [f"{self._applied} were asked for, and {versions} were done"]
        return Driven(float(told["rps"]), 1_000 * float(told["p50_latency_ms"]), faults)

    def _ran(self, agents: int, window: int, count: int, cpus: Sequence[int]) -> dict[str, Any]:
        command = [self._program, "-s", self._address, "-c", agents, "-P", window, "-n", count, "-r", self._tasks]
        command += ["--csv", "EVALSHA", self._script, 1, "task-__rand_int__", "", "budget_limit", "2.0"]
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)  # which it inherits
        try:
            said = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, check=True, timeout=PATIENCE_S
            ).stdout
        finally:
            os.sched_setaffinity(0, everywhere)
        return next(csv.DictReader(said.splitlines()))

    def check(self) -> None:
        """Before 6.2 it names no columns and tells no latency. Raises NotHere."""
        command = [self._program, "-s", self._address, "-c", "1", "-n", "1", "--csv", "PING"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S).stdout
        if not set(next(csv.reader(said.splitlines()), [])) >= TOLD:
            raise NotHere(f"{self._program} is too old: it tells no latency, which 6.2 does")


@contextmanager
def started(setting: Setting) -> Iterator[Peer]:
    program = shutil.which("redis-benchmark")
    if program is None:
        raise NotHere("no redis-benchmark on PATH")
    with ExitStack() as ending:
        peer = BenchmarkPeer(program, setting, ending)
        peer.check()
        yield peer


ENTRY = Entry(
    NAME,
    redis_script.ENTRY.how,
    started,
    batch="its own pipeline",
    workloads=("update-one",),
    loops=("one by one", "pipelined"),
    note="a client in C; no version is compared",
)
