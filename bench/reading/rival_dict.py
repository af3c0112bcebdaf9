"""`multiprocessing.Manager().dict()` as a rival: the entities themselves, pickled at every get by a server process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.managers import SyncManager
from typing import Any

from solewriter.bench.kit.scratch import end_with_the_parent
from solewriter.bench.reading.passes import GET_COLD, Contestant, Pass
from solewriter.bench.reading.population import Population

WHO = "Manager().dict()"
FILL_BATCH = 10_000


def contestants(population: Population, ending: ExitStack) -> list[Contestant]:
    return [Contestant(GET_COLD, WHO, "get, pickled", gets(filled(population, ending)), served=True)]


def filled(population: Population, ending: ExitStack) -> Any:
    """A dict in a new server, which ends with this process. Spawned: this process has threads by now."""
    server = SyncManager(ctx=multiprocessing.get_context("spawn"))
    server.start(end_with_the_parent)
    ending.enter_context(server)
    shared = server.dict()
    with population.client.reader.snapshot() as snapshot:
        for start in range(0, len(population.ids), FILL_BATCH):
            ids = population.ids[start : start + FILL_BATCH]
            shared.update({id: snapshot[population.model, id] for id in ids})
    return shared


def gets(shared: Any) -> Pass:
    get = shared.get

    def one_pass(ids: Sequence[str]) -> Any:
        for id in ids:
            found = get(id)
        return found

    return one_pass
