"""Every system that there is something to say about, in the order in which tables show them."""

from __future__ import annotations

from solewriter.bench.load.peers import (
    diy_peer,
    echo,
    engine,
    lmdb_writers,
    ray_actor,
    redis_benchmark,
    redis_script,
    shared_dict,
    sqlite_writers,
)
from solewriter.bench.load.peers.peer import Entry

OURS = engine.NAME
CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        engine.ENTRY,
        diy_peer.ENTRY,
        sqlite_writers.ENTRY,
        redis_script.ENTRY,
        redis_benchmark.ENTRY,
        lmdb_writers.ENTRY,
        *shared_dict.ENTRIES,
        ray_actor.ENTRY,
        *echo.ENTRIES,
    )
}
