"""Programs that measure: each prints aligned tables and can write JSON, and its `--help` says what it measures.

    solewriter bench                        the engine and its rivals under the same load         load/
    python -m solewriter.bench.throughput   updates by a client's own verbs, reads, and a floor   updating/
    python -m solewriter.bench.snapshot     every way of reading, beside rivals                   reading/
    python -m solewriter.bench.claims       claims, by how many tasks are ready                   claiming/
    python -m solewriter.bench.recovery     restarts, and what a disk has to write                restarting/
    python -m solewriter.bench.overload     what floods cost those who take no part in them       flood/

What all of them are made with is in kit/. `steps` takes the turns of an engine step by step, for tests that count or
time one of them.
"""
