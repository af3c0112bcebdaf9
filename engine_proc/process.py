"""`Engine`: the single writer of a state folder, as its owner has it: to be started, told more models, stopped, and
waited for. That its process is there, and another one when it died, is `owner.supervising`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

import msgspec

from solewriter.engine_proc.owner.launch import current_folder, import_path
from solewriter.engine_proc.owner.listed import by_kind
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import pickled
from solewriter.engine_proc.owner.supervising import Stopping, Supervising
from solewriter.engine_proc.recovery.leftovers import (
    remove_orphans as remove_orphans,  # who sees off an engine needs it, too
)
from solewriter.shared.config import DEFAULT_LIMITS, DURABILITIES, Limits, check_limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, MemoryFull, SchemaMismatch
from solewriter.shared.folder import StateFolder, legible

Durability = Literal["power", "process", "memory"]
_NOT_NOW = {"MemoryFull": MemoryFull, "DiskFull": EngineUnavailable, "EngineUnavailable": EngineUnavailable}
_TOLD = {SchemaMismatch.__name__, *_NOT_NOW}  # by this process's own errors; of others the name says what they are


class Engine(Supervising):
    """The single writer of a state folder, in a process of its own; a context manager.

    `models`: your Entity subclasses. `durability`: "power" (an acked request survives power loss), "process" (it
    survives any kill of any process), "memory" (nothing is promised across a restart). With `detach` the engine
    outlives its owner; otherwise it drains and ends when the owner's process does. An engine that does not beat for
    `limits.hang_timeout_s` is reported on stderr and by `hung`; with `replace_hung` it is killed and started again,
    unless it is stopped or waits for a disk. Raises TypeError for a model that cannot be stored; from `start`, Locked
    if another engine owns the folder, and EngineStartFailed with the process's own reason otherwise.
    """

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        models: Iterable[type[Entity]] = (),
        durability: Durability = "power",
        limits: Limits = DEFAULT_LIMITS,
        detach: bool = False,
        replace_hung: bool = False,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}")
        check_limits(limits)
        super().__init__(
            StateFolder(state),
            # Readers look for it from elsewhere, and so does the next process, where the owner is in another folder.
            msgspec.structs.replace(limits, memory_dir=os.path.abspath(limits.memory_dir)),
            by_kind(models, twins=False),  # what cannot be stored is found here, in the owner's traceback
            replace_hung=replace_hung,
        )
        self.durability = durability
        self.detach = detach
        self._home = current_folder()
        self._registering = threading.Lock()
        self._starts = threading.RLock()  # held by `start`; whoever stops the engine in between waits for its end
        self._owner = 0  # the process that started it: a forked child of that one has a copy of this object

    # --- public ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        """The state folder: what `connect` and `open_reader` take."""
        return self.folder.path

    @property
    def pid(self) -> int:
        """Process id of the engine that serves now, or died last. Raises EngineUnavailable where none is to serve."""
        return self._serving().pid

    def start(self) -> Self:
        """Start the engine and wait until it serves. Raises EngineUnavailable if it is stopped meanwhile."""
        with self._starts:
            self._begin_anew()
            self._owner = os.getpid()
            try:
                self._launch()
            except (Stopping, EngineStartFailed):
                if not self._stopping.is_set():
                    raise
                raise EngineUnavailable(f"the engine of {self.state} was stopped while it started") from None
            try:
                self._have_supervised()
            except BaseException:  # there is no thread to be had: it would lock the folder, and die for good
                self._end_unsupervised()
                raise
        return self

    def register(self, *models: type[Entity]) -> None:
        """Make more models known to the running engine and to those that follow it, or newer classes of known ones.

        A class that is defined again, in a notebook say, takes the place of the one before; what is stored keeps its
        content, and fields that it lacks get the new class's defaults. Returns when the engine accepts requests about
        them. Raises TypeError for a model that cannot be stored, SchemaMismatch for one that the engine cannot load
        or that does not fit what is stored, MemoryFull or EngineUnavailable if it has no room or cannot be asked.
        """
        if self._owner not in (0, os.getpid()):
            raise EngineUnavailable(f"the engine of {self.state} belongs to the parent process: register there")
        with self._registering:
            self._register(models)

    def _register(self, models: tuple[type[Entity], ...]) -> None:
        answer = self._make_known(models)
        if not answer.ok:
            said = answer.message if answer.error in _TOLD else answer.words
            why = f"the engine does not take {', '.join(model.__name__ for model in models)}: {said}"
            if (not_now := _NOT_NOW.get(answer.error)) is not None:
                raise not_now(why)
            raise SchemaMismatch(why, kind=", ".join(model.kind_name for model in models))

    def stop(self) -> None:
        """Drain and end: what was accepted is finished, what was not is told so. Harmless when stopped before, and in a
        forked child of its owner.
        """
        if os.getpid() != self._owner:
            return
        self._stopping.set()
        starting = self._starting
        if starting is not None and not starting.ended:
            starting.signal(signal.SIGTERM)  # which ends it at once, while it recovers: all of that is done again
        with self._starts:
            self._end()

    def wait(self) -> None:
        """Block until the engine ended for good. Raises the reason if it was given up. At once in a forked child of its
        owner.
        """
        if (ended := self._unsupervised) is not None and os.getpid() == self._owner:
            ended.wait()
        if self.failure is not None:
            raise self.failure.with_traceback(None)  # which would grow each time

    def __enter__(self) -> Self:
        return self.start()

    def __reduce__(self) -> NoReturn:
        path = str(self.state)
        raise TypeError(
            f"an engine belongs to its owner; another process gets the path, and connects: connect({path!r})"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.detach:
            self.stop()

    # --- the process --------------------------------------------------------------------------------------------------

    def _orders(self, backoff_s: float | None) -> Orders:
        if self._stopping.wait(backoff_s or 0.0):
            raise Stopping
        return Orders(
            state=legible(str(self.state)),
            durability=self.durability,
            limits=self.limits,
            owner_pid=0 if self.detach else os.getpid(),
            sys_path=import_path(self._home),
            models=pickled(list(self._models.values())),
            exact=os.fsencode(self.state),
            again=backoff_s is not None,
        )
