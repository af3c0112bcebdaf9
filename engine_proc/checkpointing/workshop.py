"""The process that makes checkpoints, as `maker` starts it: `python -m` with this module's name, and a priority.

It begins beside an engine that may be busy, and on its processor: so what it needs is imported at a lower priority, by
a thread. Who has a low one cannot have a higher one again; the first thread keeps its own, for orders that press.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable


def at_priority(nice: int, deed: Callable[[], object]) -> None:
    """Done by a thread that is as nice as that, or as this one if that is more."""

    def do() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))  # of a thread, on Linux
        deed()

    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def main(nice: int) -> int:
    """The status with which the process ends."""
    at_priority(nice, lambda: importlib.import_module("solewriter.engine_proc.checkpointing.maker"))
    from solewriter.engine_proc.checkpointing import maker

    return maker.main()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
