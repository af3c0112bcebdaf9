"""`python -m solewriter.engine_proc ORDERS_FD READY_FD`: how an owner starts the engine process. Not for people."""

from __future__ import annotations

import os
import sys
import traceback

import msgspec

from solewriter.engine_proc.server import EXIT_FAILED, Orders, Ready, run


def main(orders_fd: int, ready_fd: int) -> int:
    with os.fdopen(orders_fd, "rb", closefd=False) as pipe:
        length = int.from_bytes(pipe.read(8), "little")
        orders = msgspec.msgpack.decode(pipe.read(length), type=Orders)
    told = False

    def ready(words: Ready) -> None:
        nonlocal told
        told = True
        os.write(ready_fd, msgspec.msgpack.encode(words))
        os.close(ready_fd)

    try:
        return run(orders, ready, orders_fd)
    except Exception as error:
        traceback.print_exc()
        if not told:
            ready(Ready(ok=False, error=type(error).__name__, message=str(error)))
        sys.stderr.flush()
        os._exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
