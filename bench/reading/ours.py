"""How we read: the contestants that those of the `rival_` modules are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from solewriter import Change, Entity, Range, Reader, Snapshot, TaskPriority, Watch, open_reader
from solewriter.bench.reading.passes import (
    COUNT_FEW,
    COUNT_MANY,
    GET_COLD,
    GET_RAW,
    GET_WARM,
    OURS,
    PIN,
    SCAN_COLD,
    SCAN_WARM,
    Contestant,
    Figure,
    Opening,
    Pass,
    Taken,
    timed,
)
from solewriter.bench.reading.population import Population, Run, RunStatus, Window, raw_gets


def getting(population: Population, ending: ExitStack, every: Sequence[str]) -> list[Contestant]:
    """Gets of the ids that the rounds ask for, which are `every` one of them, and pins.

    Cold: through a reader that has the memory mapped and has met no id before; each is asked for once. Warm: through
    one that has decoded every one of them.
    """
    model = population.model
    cold, warm = (_held(population.state, ending) for _ in range(2))
    raw = raw_gets(cold, model)
    raw(every)  # the pages are mapped; nothing is decoded
    typed = gets(warm, model)
    typed(every)
    reader = ending.enter_context(open_reader(population.state))
    return [
        Contestant(GET_RAW, OURS, "checksum verified, bytes", raw),
        Contestant(GET_COLD, OURS, "get", gets(cold, model)),
        Contestant(GET_WARM, OURS, "get", typed),
        Contestant(PIN, OURS, "snapshot() and close()", pins(reader)),
    ]


def asking(population: Population, ending: ExitStack, every: Sequence[Window]) -> list[Contestant]:
    """Scans and counts over all runs, nobody writing meanwhile; cold and warm as above."""
    cold, warm = (_held(population.state, ending) for _ in range(2))
    scan, again = scans(cold), scans(warm)
    again(every)
    counts(cold)(every)  # the columns are mapped, and numpy is imported; nothing is decoded
    return [
        Contestant(COUNT_FEW, OURS, "count", counts(cold)),
        Contestant(SCAN_COLD, OURS, "scan", scan),
        Contestant(SCAN_WARM, OURS, "scan", again),
    ]


def counting_many(population: Population, ending: ExitStack) -> list[Contestant]:
    return [Contestant(COUNT_MANY, OURS, "count", counts_of_many(_held(population.state, ending)))]


def _held(state: Path, ending: ExitStack) -> Snapshot:
    return ending.enter_context(ending.enter_context(open_reader(state)).snapshot())


# --- the loops -------------------------------------------------------------------------------------------------------


def gets(snapshot: Snapshot, model: type[Entity]) -> Pass:
    get = snapshot.get

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = get(model, id)
        return found

    return one_pass


def pins(reader: Reader) -> Pass:
    snapshot = reader.snapshot

    def one_pass(times: Sequence[object]) -> None:
        for _ in times:
            snapshot().close()

    return one_pass


def scans(snapshot: Snapshot) -> Pass:
    def one_pass(asked: Sequence[Window]) -> Any:
        for status, low, high in asked:
            found = snapshot.scan(Run, {"status": status, "score": Range(ge=low, lt=high)})
        return found

    return one_pass


def counts(snapshot: Snapshot) -> Pass:
    def one_pass(asked: Sequence[Window]) -> Any:
        for status, low, high in asked:
            found = snapshot.count(Run, {"status": status, "score": Range(ge=low, lt=high)})
        return found

    return one_pass


def counts_of_many(snapshot: Snapshot) -> Pass:
    def one_pass(asked: Sequence[tuple[RunStatus, TaskPriority]]) -> Any:
        for status, priority in asked:
            found = snapshot.count(Run, {"status": status, "priority": priority})
        return found

    return one_pass


# --- attaching and following -----------------------------------------------------------------------------------------


def opening(state: Path) -> Opening:
    """`open_reader` and its first snapshot, in a process that has imported what it takes."""

    def open_one() -> Callable[[], object]:
        reader = open_reader(state)
        snapshot = reader.snapshot()

        def close() -> None:
            snapshot.close()
            reader.close()

        return close

    return open_one


def replays(population: Population, rounds: int) -> tuple[Figure, Figure]:
    """One change of a feed that begins with the first entity ever made: as a Change, and with its `new` decoded. Each
    round has a reader of its own, so that every entity is decoded anew.
    """
    bare: list[Taken] = []
    typed: list[Taken] = []
    for _ in range(rounds):
        for taken, followed in ((bare, _changes), (typed, _new_ones)):
            with open_reader(population.state) as reader:
                watch = reader.watch(population.model, since=0, timeout_s=0)
                taken.append(timed(partial(followed, watch), population.ids))
    return Figure.of(bare), Figure.of(typed)


def _changes(watch: Watch, expected: Sequence[str]) -> None:
    followed = sum(1 for _ in watch)
    assert followed == len(expected), f"{followed} changes instead of {len(expected)}"


def _new_ones(watch: Watch, expected: Sequence[str]) -> None:
    followed = sum(1 for change in watch if isinstance(change, Change) and change.new is not None)
    assert followed == len(expected), f"{followed} changes instead of {len(expected)}"
