"""A stress for tearing, as a program: `python -m solewriter.agents.testing.tearing --reads 10_000_000 --seed 1`.

An engine with small segments, so that its memory is turned over many times; a writer at full speed, whose requests
keep what a ledger says true at every revision; readers that look in every way, at new snapshots and at old ones; and
followers of all changes. It ends when the readers have looked at so many entities and memory was turned over so many
times, prints one line of figures, and fails if anything did not fit.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from solewriter.agents.reader import open_reader
from solewriter.agents.testing.ledger import MODELS, Ledger, Writer
from solewriter.engine_proc.process import Engine
from solewriter.shared.config import KIB, Limits
from solewriter.shared.errors import SolewriterError, in_words
from solewriter.shared.folder import StateFolder

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.1)
SAID_MAX = 10  # violations of one process that are printed
LOOK_EVERY_S = 0.05  # for whether memory was turned over often enough
READY = b"ready\n"  # what a process prints that has begun
ENOUGH = b"enough\n"  # and a reader that has looked at its share


class Report(msgspec.Struct, frozen=True):
    """What one process did."""

    reads: int = 0
    snapshots: int = 0
    scans: int = 0
    changes_watched: int = 0
    resyncs: int = 0
    requests: int = 0
    violations: int = 0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them did."""

    seed: int
    reads: int
    snapshots: int
    scans: int
    changes_watched: int
    resyncs: int  # of followers that fell too far behind
    requests: int  # that were applied, each a revision
    turnovers: int  # segments of memory that were reclaimed
    violations: int
    seconds: float


# --- the processes ----------------------------------------------------------------------------------------------------


def write(state: str, seed: int, reads: int) -> Report:
    writer = Writer(StateFolder(state), Ledger(seed))
    os.write(1, READY)
    try:
        return Report(requests=writer.write(going_on))
    finally:
        writer.close()


def read(state: str, seed: int, reads: int) -> Report:
    from solewriter.agents.testing.auditor import Auditor, Notes  # numpy is only for those who look

    notes = Notes(said_of(f"reader {seed}"))
    with open_reader(state) as reader:
        auditor = Auditor(reader, seed, notes)
        os.write(1, READY)
        left = reads
        while going_on():
            auditor.look()
            if left and auditor.reads >= left:
                os.write(1, ENOUGH)
                left = 0
    return Report(auditor.reads, auditor.snapshots, auditor.scans, violations=notes.count)


def follow(state: str, seed: int, reads: int) -> Report:
    from solewriter.agents.testing.auditor import Notes
    from solewriter.agents.testing.follower import Follower

    notes = Notes(said_of(f"follower {seed}"))
    with open_reader(state) as reader:
        follower = Follower(reader, notes)
        os.write(1, READY)
        follower.follow(going_on)
    return Report(
        reads=follower.reads,
        changes_watched=follower.changes,
        resyncs=follower.resyncs,
        violations=notes.count,
    )


def going_on() -> bool:
    """Whether standard input is still open."""
    return not select.select([0], [], [], 0)[0]


def said_of(who: str) -> Any:
    """A listener that prints the first things that it hears."""
    left = iter(range(SAID_MAX))

    def say(text: str) -> None:
        if next(left, None) is not None:
            print(f"{who}: {text}", file=sys.stderr, flush=True)

    return say


ROLES = {"write": write, "read": read, "follow": follow}


class Child:
    """One of them, which ends when it is told to, or when this process does."""

    def __init__(self, role: str, state: Path, seed: int, reads: int = 0) -> None:
        command = [sys.executable, "-m", "solewriter.agents.testing.tearing", "--role", role, "--state", str(state)]
        self._process = subprocess.Popen(
            [*command, "--seed", str(seed), "--reads", str(reads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._role = role

    def wait_for(self, line: bytes) -> None:
        """Until it prints that. Raises RuntimeError if it failed before."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != line:
            self._failed()

    def check(self) -> None:
        """Raises RuntimeError if it has ended."""
        if self._process.poll() is not None:
            self._failed()

    def stop(self) -> Report:
        """What it did. Raises RuntimeError if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        said = self._process.stdout.read()
        if self._process.wait():
            self._failed()
        return msgspec.json.decode(said, type=Report)

    def _failed(self) -> None:
        raise RuntimeError(f"the process that should {self._role} ended with status {self._process.wait()}")

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


# --- all of it --------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Summary:
    """Raises RuntimeError if the engine or a process did not live through it."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="solewriter-tearing-", dir=options.folder) as folder, ExitStack() as stack:
        state = Path(folder) / "state"
        engine = stack.enter_context(Engine(state, models=MODELS, durability=options.durability, limits=SMALL))

        def started(role: str, count: int, reads: int = 0) -> list[Child]:
            children = [Child(role, state, options.seed + number, reads) for number in range(count)]
            for child in children:
                stack.callback(child.end)
            for child in children:
                child.wait_for(READY)
            return children

        writers = started("write", 1)
        followers = started("follow", options.followers)
        readers = started("read", options.readers, -(-options.reads // options.readers))
        for child in readers:
            child.wait_for(ENOUGH)
        while turned_over(state) < options.turnovers:  # on a machine whose readers are much faster than its writer
            for child in (*writers, *followers, *readers):
                child.check()
            time.sleep(LOOK_EVERY_S)
        reports = [child.stop() for child in (*readers, *followers, *writers)]
        turnovers = turned_over(state)
        if engine.restarts:
            raise RuntimeError("the engine died")
    return summed(reports, seed=options.seed, turnovers=turnovers, seconds=round(time.monotonic() - begun, 1))


def turned_over(state: Path) -> int:
    """How many segments of memory were reclaimed."""
    with open_reader(state) as reader, reader.snapshot() as snapshot:
        return int(snapshot.pin.root.first_segment) - 1


def summed(reports: Sequence[Report], **others: Any) -> Summary:
    """The sums of all reports, and what is known besides."""
    sums = {name: sum(getattr(report, name) for report in reports) for name in Report.__struct_fields__}
    return msgspec.convert({**sums, **others}, Summary)


def printed(summary: Summary) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in msgspec.structs.asdict(summary).items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tearing", description="Read beside a writer at full speed.")
    parser.add_argument("--reads", type=int, default=1_000_000, help="entities to look at, by all readers together")
    parser.add_argument("--turnovers", type=int, default=20, help="segments of memory that are reclaimed meanwhile")
    parser.add_argument("--seed", type=int, help="of what is asked and how it is looked at; random if not given")
    parser.add_argument("--readers", type=int, default=2, help="processes that look")
    parser.add_argument("--followers", type=int, default=1, help="processes that follow all changes")
    parser.add_argument("--durability", default="memory", help="of the engine")
    parser.add_argument("--folder", type=Path, help="where the state folder is made, and removed again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    try:
        if options.role:
            os.write(1, msgspec.json.encode(ROLES[options.role](options.state, options.seed, options.reads)))
            return 0
        summary = run(options)
    except (SolewriterError, RuntimeError) as error:
        sys.exit(f"tearing: {in_words(error)}")
    print(msgspec.json.encode(summary).decode() if options.json else printed(summary))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
