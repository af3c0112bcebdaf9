"""`python -m solewriter.engine_proc READ_FD WRITE_FD`: how an owner starts the engine process. Not for people."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from contextlib import suppress

gc.disable()  # nothing that imports and recovery make is garbage; `freeze_garbage` enables it

from solewriter.engine_proc.channel import Channel  # noqa: E402 (behind the line above, or it is in vain)
from solewriter.engine_proc.owner import exits  # noqa: E402
from solewriter.engine_proc.owner.notices import put  # noqa: E402
from solewriter.engine_proc.owner.orders import Orders, refused  # noqa: E402
from solewriter.engine_proc.server import run  # noqa: E402


def main(read_fd: int, write_fd: int) -> int:
    hold_standard_descriptors()
    forget_owners_signals()
    for fd in (read_fd, write_fd):
        os.set_inheritable(fd, False)
    channel = Channel(read_fd, write_fd)
    orders = channel.receive(Orders)
    if orders is None:
        return exits.FAILED  # the owner died before it said anything
    try:
        return run(orders, channel)
    except Exception as error:
        with suppress(OSError):  # the owner is gone
            channel.send(refused(error))
        put(traceback.format_exc())
        os._exit(exits.FAILED)


def hold_standard_descriptors() -> None:
    """Those that the owner had closed lead nowhere. Else the next file that is opened gets such a number, the journal
    say, and what some library prints is written into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # stdin, stdout, stderr
        os.set_inheritable(fd, True)  # to the process that makes checkpoints
    os.close(fd)
    if sys.stderr is None:  # then what is printed there would go to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as this process)


def forget_owners_signals() -> None:
    """What an owner blocks or ignores, and for reasons of its own, passes through exec: then nothing could end this
    process, nor a validator that loops, and the ends of its own children would be lost.
    """
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
