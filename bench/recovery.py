"""How long a restart takes, and what the disk has to write: engines that are killed at work, and engines that work on.

    python -m solewriter.bench.recovery [--quick] [--json] [--sizes 10000,1000000] [--durability process,power]

Restarts: an engine is filled with full tasks whose descriptions do not compress, each of them a create, and then killed
with SIGKILL again and again, at random moments. `first ack` runs from the kill to the reply of a request that this
process sends right then; so it holds the detection of the death, the back-off of the supervisor (50 ms, as behind a
first death), the start of a Python process, recovery, and the way of the client to the next engine. Beside busy agents:
two processes send pipelined updates of random tasks all the time, and a kill every second lets few checkpoints be done.
`sustained`: the same agents, but for long before each kill: until the journal behind the newest checkpoint is as long,
within a tenth, as it becomes at all between two checkpoints. `quiet`: nobody else. `grown`: killed right behind the
last create. Every task is counted after every restart. `journal` is what had to be replayed, at the longest.

Writing: two agents update random tasks of 20,000, pipelined, as fast as they may. `journal` is what the turns' entries
take, headers and outcomes included; `written` is what reached the device of the folder, when everything that was dirty
had been waited for: journal files and their making, checkpoints, what the file system writes for itself, and what the
rest of the machine writes meanwhile, so an upper bound. History is kept to 16 MiB, so files are trimmed and used again.
The first of them are made new, for `power` of written zeros, so the first seconds, creates included, are told apart:
`from an empty folder`, until files were trimmed and the next of the trims that follow is done; from then on `used
again`. The goal is about the latter, which is what an engine that works on does.

The marks below the table are goals, judged by the figures of this run.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from solewriter import Client, Create, Engine, Limits, Task, Unavailable, Update, connect
from solewriter.bench.kit import arguments
from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.journaled import BehindCheckpoint, Journal
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.scratch import scratch_folder, tidy_when_told_to_end
from solewriter.bench.kit.table import described, table
from solewriter.bench.kit.workload import WINDOW, sample_task
from solewriter.engine_proc.process import Durability
from solewriter.shared.config import MIB
from solewriter.shared.journal.chain import first_of, journal_files

R = TypeVar("R", bound=msgspec.Struct)

AGENTS = 2
HISTORY_BYTES = 16 * MIB
TRIMS = 2  # before writing is measured
TRIMS_MAX_S = 120.0
LOOK_EVERY_S = 0.2  # at the journal, before files of it are gone
CYCLES, CYCLES_MAX_S = 2, 600.0  # from one checkpoint to the next, until it is known how long the journal becomes
LONG = 0.9  # of that length, at a kill under sustained load
SUSTAINED_KILLS_MAX = 5  # each of them is waited for
FROM_EMPTY, STEADY = "from an empty folder", "used again"  # journal files that are made, and that were trimmed before
WRITTEN_TASKS = 20_000
BACKOFF_S = 0.05  # a supervisor's first; here always, or it would take so many deaths for an engine that cannot live
PATIENT = Limits(
    start_timeout_s=600.0, connect_timeout_s=600.0, request_timeout_s=600.0, restart_backoff_max_s=BACKOFF_S,
    restarts_max=1_000,
)  # fmt: skip


class Restart(msgspec.Struct):
    """From the kill to the first ack, in milliseconds."""

    tasks: int
    durability: str
    beside: str  # "quiet", "busy agents", "sustained", "grown"
    kills: int
    p50_ms: float
    max_ms: float
    journal_mib: float  # behind the newest checkpoint, at the longest


class Writing(msgspec.Struct):
    """What was written while one engine worked."""

    durability: str
    files: str  # "from an empty folder", "used again"
    seconds: float
    journal_mib: float
    written_mib: float | None  # None where no device tells
    checkpoints: int

    @property
    def amplification(self) -> float | None:
        return None if self.written_mib is None else self.written_mib / self.journal_mib


class Plan(NamedTuple):
    sizes: Sequence[int]
    durabilities: Sequence[Durability]
    kills: int
    seconds: float  # of writing


def varied_task(number: int) -> Task:
    """A sample task with a description that nothing else repeats."""
    words = random.Random(number).randbytes(60).hex()
    return sample_task(number).model_copy(update={"description": words})


# --- agents -----------------------------------------------------------------------------------------------------------


def work(state: Path, tasks: int) -> None:
    """Update random tasks until standard input ends."""
    dice = random.Random(os.getpid())
    with connect(state, name="busy", limits=PATIENT) as client:
        print("ready", flush=True)
        while not _ended():
            mutations = [
                Update(Task.ref(f"task-{dice.randrange(tasks):06d}"), {"budget_limit": dice.random()})
                for _ in range(4 * WINDOW)
            ]
            with suppress(Unavailable):
                for reply in client.submit_many(mutations, window=WINDOW):
                    reply.check()


def _ended() -> bool:
    return bool(select.select([0], [], [], 0)[0])


@contextmanager
def busy_agents(state: Path, tasks: int) -> Iterator[None]:
    command = [sys.executable, "-m", "solewriter.bench.recovery", "--agent", str(state), "--tasks", str(tasks)]
    with ExitStack() as ending:
        for _ in range(AGENTS):
            agent = ending.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            )
            assert agent.stdin is not None
            assert agent.stdout is not None
            ending.callback(agent.wait)
            ending.callback(agent.stdin.close)
            agent.stdout.readline()
        yield


# --- restarts ---------------------------------------------------------------------------------------------------------


def restarts(folder: Path, plan: Plan) -> Iterator[Restart]:
    for durability in plan.durabilities:
        for tasks in plan.sizes:
            state = folder / f"{durability}-{tasks}"
            with (
                Engine(state, durability=durability, limits=PATIENT) as engine,
                connect(state, limits=PATIENT) as client,
            ):
                for reply in client.submit_many((Create(varied_task(n)) for n in range(tasks)), window=WINDOW):
                    reply.check()
                yield _killed(engine, client, tasks, "grown", 1)
                yield _killed(engine, client, tasks, "quiet", plan.kills)
                with busy_agents(state, tasks):
                    yield _killed(engine, client, tasks, "busy agents", plan.kills)
                    yield _killed(engine, client, tasks, "sustained", min(plan.kills, SUSTAINED_KILLS_MAX))


def _killed(engine: Engine, client: Client, tasks: int, beside: str, kills: int) -> Restart:
    dice, taken, longest, behind = random.Random(tasks), list[float](), 0, BehindCheckpoint(engine.state)
    for number in range(kills):
        if beside == "sustained":
            _await_longest(behind)
        elif beside != "grown":
            time.sleep(dice.uniform(0, 1))
        longest = max(longest, behind.bytes())
        begun = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        client.put(Task(title=f"{number}", id="after the kill"))
        taken.append((time.monotonic() - begun) * 1_000)
        with client.reader.snapshot() as snap:
            held = snap.counts["Task"]
        assert held == tasks + 1, f"{held} of {tasks + 1} tasks are there"
    taken.sort()
    return Restart(
        tasks, engine.durability, beside, kills, taken[len(taken) // 2], taken[-1], longest / MIB
    )  # fmt: skip


def _await_longest(behind: BehindCheckpoint) -> None:
    """Until the journal behind a checkpoint is about as long as it was when the last ones were named. The first of them
    is not counted: it may have begun before this load. Raises TimeoutError.
    """
    deadline, last, peaks = time.monotonic() + CYCLES_MAX_S, behind.bytes(), list[int]()
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {CYCLES_MAX_S:g} s {len(peaks)} checkpoints were made")
        time.sleep(LOOK_EVERY_S)
        found = behind.bytes()
        if found < last:  # a checkpoint was named
            peaks.append(last)
        elif len(peaks) > CYCLES and found >= LONG * max(peaks[-CYCLES:]):
            return
        last = found


# --- writing ----------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What there was at a moment."""

    moment: float
    written: int | None  # to the device, ever
    journal: int
    checkpoints: int

    @classmethod
    def now(cls, folder: Path, journal: Journal | None = None) -> Look:
        """Without a journal: before there is one."""
        written = device_written_bytes(folder)
        length, met = (journal.bytes(), len(journal.checkpoints)) if journal is not None else (0, 0)
        return cls(time.monotonic(), written, length, met)


def writing(folder: Path, durability: Durability, seconds: float) -> Iterator[Writing]:
    """Of one engine: until its files are used again, and from then on."""
    state, limits = folder / f"writing-{durability}", msgspec.structs.replace(PATIENT, history_bytes=HISTORY_BYTES)
    empty = Look.now(folder)
    with Engine(state, durability=durability, limits=limits):
        with connect(state, limits=limits) as client:
            for reply in client.submit_many((Create(varied_task(n)) for n in range(WRITTEN_TASKS)), window=WINDOW):
                reply.check()
        journal = Journal(state)
        with busy_agents(state, WRITTEN_TASKS):
            _await_trims(state, journal)
            trimmed = Look.now(folder, journal)
            yield _written(durability, FROM_EMPTY, empty, trimmed)
            while time.monotonic() - trimmed.moment < seconds:
                journal.bytes()
                time.sleep(LOOK_EVERY_S)
            yield _written(durability, STEADY, trimmed, Look.now(folder, journal))


def _written(durability: Durability, files: str, before: Look, after: Look) -> Writing:
    none = before.written is None or after.written is None
    written = None if none else ((after.written or 0) - (before.written or 0)) / MIB
    seconds, journal = after.moment - before.moment, (after.journal - before.journal) / MIB
    return Writing(durability, files, seconds, journal, written, after.checkpoints - before.checkpoints)


def _await_trims(state: Path, journal: Journal) -> None:
    """Some time after the first files were trimmed. TimeoutError when that does not happen."""
    deadline, beginnings = time.monotonic() + TRIMS_MAX_S, {1}
    while len(beginnings) <= TRIMS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {TRIMS_MAX_S:g} s the journal was trimmed {len(beginnings) - 1} times")
        journal.bytes()
        beginnings.add(first_of(journal_files(state)[0]))
        time.sleep(LOOK_EVERY_S)


# --- the program ------------------------------------------------------------------------------------------------------


def marks(rows: Sequence[Restart], written: Sequence[Writing]) -> dict[str, bool]:
    """Each goal, and whether it was reached."""
    found = {
        f"write amplification, {row.durability} <= 2": row.amplification <= 2
        for row in written
        if row.files == STEADY and row.amplification is not None and row.checkpoints  # the largest that is written
    }
    for row in rows:
        bound = {10_000: 500 if row.beside == "quiet" else 1_000, 1_000_000: 5_000}.get(row.tasks)
        if bound is not None:
            name = f"first ack, {row.tasks:,} tasks, {row.durability}, {row.beside} <= {bound} ms"
            found[name] = row.max_ms <= bound
    return found


def printed(facts: dict[str, str | int], rows: Sequence[Restart], written: Sequence[Writing]) -> str:
    head = ["tasks", "durability", "beside", "kills", "p50 ms", "max ms", "journal MiB"]
    first = table(head, [msgspec.structs.astuple(row) for row in rows])
    head = ["durability", "files", "seconds", "journal MiB", "written MiB", "checkpoints", "amplification"]
    second = table(head, [(*msgspec.structs.astuple(row), row.amplification) for row in written])
    reached = "\n".join(f"{'reached' if ok else 'MISSED '}  {name}" for name, ok in marks(rows, written).items())
    return f"{described(facts)}\n\nRestart: from the kill to the first ack\n{first}\n\nWriting\n{second}\n\n{reached}"


def told(row: R) -> R:
    """The same row, said as soon as it is there: a run takes minutes."""
    print(f"... {msgspec.json.encode(row).decode()}", file=sys.stderr, flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m solewriter.bench.recovery", description=(__doc__ or "")[:120])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer kills: some two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--sizes", type=arguments.numbers, help="how many tasks, separated by commas")
    parser.add_argument(
        "--durability", type=arguments.durabilities, default="process,power", help="levels, separated by commas"
    )
    parser.add_argument("--kills", type=arguments.number, help="of each engine in each surrounding")
    parser.add_argument("--seconds", type=arguments.seconds, help="of writing")
    parser.add_argument(
        "--folder", type=arguments.existing_folder, default=Path(tempfile.gettempdir()), help="where states are put"
    )
    parser.add_argument("--agent", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.agent is not None:
        work(given.agent, given.tasks)
        return 0
    plan = Plan(
        given.sizes or ((2_000,) if given.quick else (10_000, 1_000_000)),
        given.durability,
        given.kills or (3 if given.quick else 20),
        given.seconds or (3.0 if given.quick else 30.0),
    )
    tidy_when_told_to_end()

    with scratch_folder(given.folder) as folder:
        facts = machine(folder)
        rows = [told(row) for row in restarts(folder, plan)]
        written = [told(row) for durability in plan.durabilities for row in writing(folder, durability, plan.seconds)]
    found = {"machine": facts, "restarts": rows, "writing": written, "marks": marks(rows, written)}
    print(msgspec.json.encode(found).decode() if given.json else printed(facts, rows, written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
