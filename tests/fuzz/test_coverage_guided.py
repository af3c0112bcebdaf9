"""The decoders under atheris, for a bounded number of runs, from a corpus of valid and poisoned bytes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from solewriter.shared import handshake, record
from solewriter.shared.journal import entry
from solewriter.shared.journal.entry import Private
from solewriter.shared.memory import catalog
from solewriter.shared.wire import pack_replies

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed here"),
]
RUNS, SECONDS, RUNS_LEAST = 20_000, 60, 500  # whichever comes first; a busy machine does less
BODY = record.pack(1, 2, 3, 3, 9, 4, 5, 6, 7, b"key", b"actor", b"reason", b"id", b"cells", b"", b"\x80")
HELLO = handshake.Hello(wire=1, client_id="c", name="n", pid=7, first=3, instance="i", resends=True)
VALID = {
    "words": [
        msgspec.msgpack.encode(HELLO),
        msgspec.msgpack.encode(handshake.Welcome(ok=True)),
        pack_replies([(1,) * 4]),
    ],
    "stored": [
        entry.pack(7, 9, 5, 11, [BODY], Private(kinds=["Task"]))[0],
        entry.file_header(b"s" * 16, 7, 11),
        catalog.pack(catalog.EMPTY),
    ],
}


@pytest.mark.parametrize("name", ["frames", "careful_frames", "words", "stored"])
def test_a_decoder_under_a_coverage_guided_fuzzer_raises_what_it_documents(tmp_path, poison, name):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = VALID.get(name) or [body for body in poison["corpus"]().values() if len(body) < 1_000]
    for number, body in enumerate(seeds):
        (corpus / f"{number}").write_bytes(body)
    target = Path(__file__).with_name("target.py")
    options = [
        f"-runs={RUNS}",
        "-max_len=1024",
        f"-max_total_time={SECONDS}",
        "-timeout=20",
        "-seed=1",
        "-print_final_stats=1",
        str(corpus),
    ]
    ran = subprocess.run(
        [sys.executable, "-P", str(target), name, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-4_000:]
    runs = re.search(r"stat::number_of_executed_units: (\d+)", ran.stderr)
    assert runs is not None
    assert int(runs[1]) >= RUNS_LEAST
