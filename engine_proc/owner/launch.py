"""One engine process, seen from its owner: made by exec, heard over two pipes, known by its pidfd.

Started by exec, never by fork: nothing of the owner is re-imported, so it works in notebooks, scripts without a main
guard and daemonic children. The owner's models travel down an inherited pipe.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

from solewriter.engine_proc.channel import Channel, NotInTime
from solewriter.engine_proc.owner.orders import Orders, Ready, Register
from solewriter.engine_proc.owner.pickled import pickled, reloaded_since
from solewriter.engine_proc.recovery.leftovers import remove_unnamed
from solewriter.shared.config import POLL_MS_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, Locked
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.system.forks import forks_held_off
from solewriter.shared.system.interpreter import interpreter

STDERR = 2  # the highest of the standard descriptors

_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Child:
    """A process that will serve, once `begin` told it what."""

    def __init__(self) -> None:
        self._asking = threading.RLock()  # a signal handler may stop the engine in the middle of `register`
        self._asked = 0
        self._reloaded: set[str] = set()  # modules of the owner's since it was begun, which imports none twice
        self._orders: Orders | None = None
        self._process = self._exec()
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            self.kill()
            self._channel.close()
            raise

    def begin(self, orders: Callable[[], Orders]) -> None:
        """Wait until it serves. Raises Locked, EngineStartFailed with its own reason, when it does not come so far, and
        then it has ended; likewise what `orders` raises.

        `orders` is called, and may wait, while the process's interpreter starts, which takes most of the time.
        """
        try:
            self._tell(orders())
        except EngineStartFailed:
            self.close()
            raise
        except BaseException:
            self.kill()
            self.close()
            raise

    def _tell(self, orders: Orders) -> None:
        """Its orders, and wait for its first word. Raises its reason."""
        self._orders = orders
        timeout_s = orders.limits.start_timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            with suppress(BrokenPipeError):  # it died at once: its silence below says so
                self._channel.send(orders, timeout_s)
            ready = self._channel.receive(Ready, max(0.0, deadline - time.monotonic()))
        except NotInTime:
            self.kill()
            raise EngineStartFailed(f"the engine was not ready after start_timeout_s = {timeout_s} s") from None
        if ready is None:
            raise EngineStartFailed(f"the engine process ended with status {self.wait()} before it was ready")
        if ready.ok:
            return
        status = self.wait()
        if ready.error == "Locked":
            raise Locked(ready.message, holder=ready.holder)
        raise EngineStartFailed(f"the engine could not start: {ready.words}", status=status)

    def _exec(self) -> subprocess.Popen[bytes]:
        with forks_held_off, ExitStack() as theirs, ExitStack() as ours:  # Popen waits for the end of a pipe of its own
            reading, their_out = _pipe(ours, theirs)
            their_in, writing = _pipe(theirs, ours)
            process = subprocess.Popen(
                [*interpreter(), "-m", "solewriter.engine_proc", str(their_in), str(their_out)],
                pass_fds=(their_in, their_out),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's to handle
            )
            ours.pop_all()
            self._channel = Channel(reading, writing)
            _channels.add(self._channel)
        return process

    # --- while it serves ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    def register(
        self, models: Sequence[type[Entity]], before: Iterable[type[Entity]], timeout_s: float
    ) -> Ready | None:
        """Its answer to more models than those before; None if it died before it answered. Raises EngineUnavailable for
        no answer.
        """
        with self._asking:
            self._asked += 1
            deadline = time.monotonic() + timeout_s
            try:
                self._reloaded |= reloaded_since(before, models)
                schema_ids = [Kind(model).schema_id for model in models]
                self._channel.send(Register(pickled(models, self._reloaded), self._asked, schema_ids), timeout_s)
                while True:
                    answer = self._channel.receive(Ready, max(0.0, deadline - time.monotonic()))
                    if answer is None or answer.number == self._asked:
                        return answer
            except NotInTime:
                raise EngineUnavailable(
                    f"the engine (pid {self.pid}) did not answer in {timeout_s} s: the models may or may not be known"
                ) from None
            except BrokenPipeError:
                return None
            except (OSError, ValueError):  # of a pipe that a signal handler closed, or what that raised itself
                if self._channel.is_closed:
                    return None
                raise

    def ends_within(self, timeout_s: float) -> bool:
        """Whether it ended by then."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(min(timeout_s * 1000, POLL_MS_MAX)))

    def wait(self) -> int:
        """Its exit status, once it ended."""
        return self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, and return only when everything that it held is released."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of the pipes and the pidfd of one that has ended, and of what it left in memory, where nobody else
        would find it.
        """
        with self._asking:
            self._channel.close()
            os.close(self.pidfd)
        if (orders := self._orders) is not None:
            remove_unnamed(orders.folder, orders.limits.memory_dir, orders.prefix)


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """A pipe's two ends, to be closed by these."""
    reading, writing = map(_beyond_standard, os.pipe())
    reads.callback(os.close, reading)
    writes.callback(os.close, writing)
    return reading, writing


def _beyond_standard(fd: int) -> int:
    """Not under the number of a standard descriptor, which an owner may have closed: what a library prints there would
    be a word to the other side.
    """
    if fd > STDERR:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    finally:
        os.close(fd)


def _leave_channels_to_the_owner() -> None:
    """In a forked child: the end of a pipe tells the engine that its owner became another program."""
    for channel in list(_channels):
        channel.close()


os.register_at_fork(after_in_child=_leave_channels_to_the_owner)


def current_folder() -> str:
    """Empty where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def import_path(home: str) -> list[bytes]:
    """Where the owner looks for modules. What is relative there is so to `home`: by the next start the owner may have
    gone to another folder, or its own may be deleted.
    """
    base = os.fsencode(home)
    paths = [os.path.join(base, os.fsencode(path or "")) for path in sys.path]
    return [path for path in paths if os.path.isabs(path)]
