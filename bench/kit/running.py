"""How the program of a benchmark runs: in a folder of its own, which goes however it ends, and with one answer.

What comes next is said to whoever waits at a terminal; the answer goes to stdout, as tables or as one JSON object.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from solewriter.bench.kit.scratch import scratch_folder, tidy_when_told_to_end

R = TypeVar("R")
Say = Callable[[str], None]


def say(what: str) -> None:
    """What comes next: a run takes minutes."""
    if sys.stderr.isatty():
        print(f"... {what}", file=sys.stderr)


def answered(
    program: str, parent: Path, run: Callable[[Path, Say], R], printed: Callable[[R], str], *, as_json: bool
) -> R:
    """What `run` finds in a new folder, told. Raises SystemExit if it is interrupted, or cannot be told."""
    tidy_when_told_to_end()
    try:
        with scratch_folder(parent) as folder:
            results = run(folder, say)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    try:
        print(msgspec.json.encode(results).decode() if as_json else printed(results), flush=True)
    except OSError as error:  # stdout is a full disk, say
        sys.stdout = io.StringIO()  # at the exit nobody tries once more
        raise SystemExit(f"{program}: this cannot be printed: {error}") from None
    return results
