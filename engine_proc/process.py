"""`Engine`: an engine process seen from its owner. Starts it by exec, waits until it serves, restarts it when it dies.

Started by exec, never by fork: nothing of the owner is re-imported, so it works in notebooks, scripts without a main
guard and daemonic children. The owner's models travel down an inherited pipe. One thread waits for the process to
end.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import cloudpickle
import msgspec

from solewriter.engine_proc.server import NEVER_RESTART, Orders, Ready
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, Locked
from solewriter.shared.folder import StateFolder
from solewriter.shared.models import Entity
from solewriter.shared.registry import Registry

Durability = Literal["power", "process", "memory"]
DURABILITIES = ("power", "process", "memory")
STOP_MARGIN_S = 5.0  # beyond the drain time-out: closing files and giving back memory


class Engine:
    """The single writer of a state folder, in a process of its own; a context manager.

    `models`: your Entity subclasses. `durability`: "power" (an acked request survives power loss), "process" (it
    survives any kill of any process), "memory" (nothing is promised across a restart). With `detach` the engine
    outlives its owner; otherwise it drains and ends when the owner's process does. Raises, from `start`: Locked if
    another engine owns the folder, EngineStartFailed with the process's own reason otherwise; TypeError for a model
    that cannot be stored.
    """

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        models: Iterable[type[Entity]] = (),
        durability: Durability = "power",
        limits: Limits = DEFAULT_LIMITS,
        detach: bool = False,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}")
        self.folder = StateFolder(state)
        self.limits = limits
        self.durability = durability
        self.detach = detach
        self._models = list(models)
        Registry(self._models)  # a model that cannot be stored is found here, in the owner's traceback
        self.restarts = 0
        self.failure: EngineUnavailable | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None

    # --- public ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        """The state folder: what `connect` and `open_reader` take."""
        return self.folder.path

    @property
    def pid(self) -> int:
        """Process id of the engine that serves now. Raises EngineUnavailable when there is none."""
        process = self._process
        if process is None:
            raise self.failure or EngineUnavailable(f"the engine of {self.state} is not running")
        return process.pid

    def start(self) -> Self:
        """Start the engine and wait until it serves."""
        if self._process is not None:
            raise RuntimeError("this engine was started already")
        self._stopping.clear()
        self._process = self._launch()
        self._supervisor = threading.Thread(target=self._supervise, name="solewriter-supervisor", daemon=True)
        self._supervisor.start()
        return self

    def stop(self) -> None:
        """Drain and end: what was accepted is finished, leftovers get no answer. Harmless when stopped before."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if self._supervisor is not None:
            self._supervisor.join(self.limits.drain_timeout_s + STOP_MARGIN_S)
            if self._supervisor.is_alive():
                raise EngineUnavailable(
                    f"the engine (pid {process.pid}) does not end: look at its state before you kill it"
                )
        self._process = None

    def wait(self) -> None:
        """Block until the engine ended for good. Raises the reason if it was given up."""
        if self._supervisor is not None:
            self._supervisor.join()
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.detach:
            self.stop()

    # --- the process -------------------------------------------------------------------------------------------------

    def _launch(self) -> subprocess.Popen[bytes]:
        """Exec one engine process and wait for its word."""
        orders = msgspec.msgpack.encode(
            Orders(
                state=str(self.state),
                durability=self.durability,
                limits=self.limits,
                owner_pid=0 if self.detach else os.getpid(),
                sys_path=[path or os.getcwd() for path in sys.path],
                models=_pickled(self._models),
            )
        )
        orders_in, orders_out = os.pipe()
        ready_in, ready_out = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, *_same_flags(), "-m", "solewriter.engine_proc", str(orders_in), str(ready_out)],
                pass_fds=(orders_in, ready_out),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's to handle
            )
        except BaseException:
            os.close(orders_out)
            os.close(ready_in)
            raise
        finally:
            os.close(orders_in)
            os.close(ready_out)
        try:
            with os.fdopen(orders_out, "wb") as pipe:
                pipe.write(len(orders).to_bytes(8, "little") + orders)
        except BrokenPipeError:
            pass  # it died at once: its silence below says so
        self._await_ready(process, ready_in)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], ready_in: int) -> None:
        """Wait for the word of a new process. Raises its reason."""
        with os.fdopen(ready_in, "rb") as pipe:
            readable, _, _ = select.select([pipe], [], [], self.limits.start_timeout_s)
            said = pipe.read() if readable else None
        if said is None:
            process.kill()
            process.wait()
            raise EngineStartFailed(f"the engine was not ready after start_timeout_s = {self.limits.start_timeout_s} s")
        if not said:
            raise EngineStartFailed(f"the engine process ended with status {process.wait()} before it was ready")
        ready = msgspec.msgpack.decode(said, type=Ready)
        if ready.ok:
            return
        status = process.wait()
        if ready.error == "Locked":
            raise Locked(ready.message, holder=ready.message)
        raise EngineStartFailed(f"the engine could not start: {ready.error}: {ready.message}", status=status)

    def _supervise(self) -> None:
        """Wait for the process; start it again when it died, within a budget and ever more slowly."""
        recent: deque[float] = deque()
        while self._process is not None:
            status = self._process.wait()
            if self._stopping.is_set() or status == 0:
                return
            if status in NEVER_RESTART:
                self.failure = EngineUnavailable(
                    f"the engine ended with status {status}: it would not help to start it again"
                )
                return
            now = time.monotonic()
            while recent and now - recent[0] > self.limits.restart_window_s:
                recent.popleft()
            if len(recent) >= self.limits.restarts_max:
                self.failure = EngineUnavailable(
                    f"the engine died {len(recent)} times in {self.limits.restart_window_s:.0f} s: given up"
                )
                return
            backoff = min(
                self.limits.restart_backoff_s * 2 ** max(0, len(recent) - 1), self.limits.restart_backoff_max_s
            )
            recent.append(now)
            if self._stopping.wait(backoff if recent else 0):
                return
            self._restart()
            if self._stopping.is_set() and self._process is not None:
                self._process.send_signal(signal.SIGTERM)  # `stop` was called while it started, and told the one before

    def _restart(self) -> None:
        try:
            self._process = self._launch()
            self.restarts += 1
        except Locked as error:
            self.failure = error
            self._process = None
        except EngineStartFailed as error:
            if getattr(error, "status", None) in NEVER_RESTART:
                self.failure = error
                self._process = None
            print(f"solewriter: {error}", file=sys.stderr)  # the loop sees the dead process and backs off


def _pickled(models: list[type[Entity]]) -> bytes:
    """The owner's classes for the engine: by name from modules that it can import, by value from all others."""
    names = {base.__module__ for model in models for base in model.__mro__}
    by_value = [sys.modules[name] for name in names if name in sys.modules and not _importable(name)]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(models)
        return pickled
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _importable(name: str) -> bool:
    """Whether another process with the same path would find the package of this module. `__main__` is by value
    anyway.
    """
    top = name.partition(".")[0]
    if top == "__main__":
        return True
    try:  # not importlib.util.find_spec: that answers for whatever is loaded, from wherever
        return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)
    except (ImportError, ValueError):
        return False


def _same_flags() -> list[str]:
    """The interpreter's options that matter to a child."""
    return [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
