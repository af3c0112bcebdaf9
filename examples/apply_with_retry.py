"""Counting together: several processes increment the same counters with `apply`, and no increment is lost.

`client.apply(target, fn)` reads the entity, lets `fn` say what shall be different, and writes that under the version
that was read. When somebody else was faster it does so again with the newest one: `fn` may run several times, so it
only computes. Nobody holds a lock, so a process that dies in the middle holds up nobody.

    python apply_with_retry.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from solewriter import Engine, Entity, FrozenMap, connect

PROCESSES, INCREMENTS = 4, 250
COLOURS = ("red", "green", "blue")


class Tally(Entity):
    counts: FrozenMap = FrozenMap()


def one_more(colour: str, tries: list[str], tally: Tally) -> dict[str, FrozenMap]:
    """The changed fields of a tally with one more of this colour."""
    tries.append(colour)
    return {"counts": tally.counts | {colour: tally.counts.get(colour, 0) + 1}}


def count(state: Path) -> tuple[Counter[str], int]:
    """The whole life of one process: what it counted, and how often it was overtaken."""
    colours, tries = random.choices(COLOURS, k=INCREMENTS), list[str]()
    with connect(state) as client:
        for colour in colours:
            client.apply(Tally.ref("colours"), partial(one_more, colour, tries))
    return Counter(colours), len(tries) - len(colours)


def main(state: Path) -> bool:
    """Whether the counters say exactly what the processes did."""
    with Engine(state, models=[Tally], durability="process") as engine, connect(engine.state) as client:
        client.create(Tally(id="colours"))
        spawn = get_context("spawn")
        together = spawn.Barrier(PROCESSES).wait  # or the first would be done before the last one has begun
        with ProcessPoolExecutor(PROCESSES, mp_context=spawn, initializer=together) as pool:
            told = list(pool.map(count, [engine.state] * PROCESSES))
        tally = client.reader.snapshot()[Tally, "colours"]
    done = sum((counted for counted, _ in told), Counter[str]())
    print(f"{PROCESSES} processes counted {dict(sorted(done.items()))}")
    print(f"the entity says     {dict(sorted(tally.counts.items()))}, version {tally.version:,}")
    print(f"{sum(retries for _, retries in told):,} retries for {done.total():,} increments")
    return tally.counts == done and tally.version == 1 + PROCESSES * INCREMENTS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        right = main(Path(sys.argv[1] if sys.argv[1:] else folder))
    sys.exit(not right)
