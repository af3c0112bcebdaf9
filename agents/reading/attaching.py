"""Whose memory a reader looks into: that of the newest engine, mapped; while none follows, that of the last one, stale.

It is looked for in `engine.json` when there is none, or when what is mapped says that another one followed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from solewriter.agents.reading.anyreader import AnyReader, closed_reader
from solewriter.shared.config import ATTACH_RETRY_S, Limits
from solewriter.shared.errors import EngineUnavailable, LayoutMismatch, check_descriptors
from solewriter.shared.folder import StateFolder, unclosed_warning
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.root import STOPPED, SUPERSEDED, RootReader
from solewriter.shared.memory.view import View
from solewriter.shared.registry import Registry
from solewriter.shared.system.processes import Process, runs

if TYPE_CHECKING:
    from solewriter.agents.reading.past import Viewed


class Vacancy:
    """How long nobody has followed an engine that was stopped, since somebody who waits first met it so."""

    def __init__(self, folder: StateFolder, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._since_s = 0.0

    def end(self) -> None:
        """Note that the engine was met serving, or another one was found."""
        self._since_s = 0.0

    def check(self, now_s: float) -> None:
        """Note that it was met stopped. Raises EngineUnavailable when none followed in `connect_timeout_s`."""
        self._since_s = self._since_s or now_s
        if now_s - self._since_s > self._limits.connect_timeout_s:
            raise EngineUnavailable(f"the engine of {self._folder.path} was stopped, and nobody started another one")


class AttachingReader(AnyReader):
    """Reads the memory of one state folder's engines. May be shared by threads."""

    _view: View | None = None
    is_anybodys = False  # opened by itself, to be closed by itself; else it is a client's

    def __init__(self, state: str | os.PathLike[str], limits: Limits, registry: Registry | None = None) -> None:
        super().__init__(state, limits, registry)
        self._limits = limits
        self._writer: Process | None = None  # whose memory it is
        self._vacancy = Vacancy(self.folder, limits)
        self._closed = False

    def view(self) -> View:
        """The memory of the newest engine. Raises EngineUnavailable if there is none, or this was closed."""
        if self._closed:
            raise closed_reader()
        return self._newest()

    def _newest(self) -> View:
        view = self._view
        if view is not None and not view.root.successor:
            return view
        del view  # whoever waits for the next one holds nothing of it
        return self._attach()

    def _attach(self) -> View:
        """Map the memory that `engine.json` names, and look again while it is being handed over. Raises
        EngineUnavailable where that takes longer than `connect_timeout_s`.
        """
        deadline = time.monotonic() + self._limits.connect_timeout_s
        while (view := self.try_attach(last=time.monotonic() > deadline)) is None:
            time.sleep(ATTACH_RETRY_S)
        return view

    def try_attach(self, *, last: bool) -> View | None:
        """Map the newest memory. None while it is being handed over from one engine to the next: then the caller looks
        again, or, if this is the `last` look, EngineUnavailable is raised.
        """
        known = self._view
        try:
            where = self.folder.whereabouts()
            if known is None or where.prefix != known.prefix:
                view = View(where.memory_dir, where.prefix)
                if view.root.head:
                    return self._use(view)
            elif not known.root.successor:
                return known
            elif known.root.successor == SUPERSEDED and known.maps_more:
                self._use(known.bare())  # a start had no room beside it: snapshots hold it, and nobody else any more
        except PermissionError as error:
            problem = f"{self.folder.path} is another user's: its memory cannot be read"
            raise EngineUnavailable(problem, final=True) from error
        except FileNotFoundError as error:
            if last:
                raise EngineUnavailable(
                    f"the engine of {self.folder.path} left no memory behind: start it again ({error})"
                ) from None
            return None
        except EngineUnavailable:
            if known is None or (last and known.root.successor == SUPERSEDED):
                raise
            if known.root.successor == SUPERSEDED:  # the one that followed it was stopped, and may have said more
                return None
            return known  # stopped: its last snapshot stays, marked stale
        except OSError as error:
            check_descriptors(error)
            raise EngineUnavailable(f"the memory of {self.folder.path} cannot be read: {error}") from error
        if last:
            raise EngineUnavailable(f"the engine of {self.folder.path} published nothing in connect_timeout_s")
        return None

    def _use(self, view: View) -> View:
        if self._closed:
            return view  # for what a reply brings: nothing stays mapped
        try:
            self._writer = Process(view.root.pid, view.root.start_time)
        except OSError as error:
            self._writer = None
            check_descriptors(error)
        self.decoder.turn_to(view)
        self._view = view
        self._vacancy.end()
        return view

    def is_stale(self, view: Viewed) -> bool:
        """Whether the engine that wrote this memory is gone, or followed by another one."""
        assert isinstance(view, View)
        if view.root.successor:
            return True
        if view is not self._view:  # that was closed, or turned to another engine
            return not runs(view.root.pid, view.root.start_time)
        died = self._died()
        if died:
            self.look_on()
        return died

    def _died(self) -> bool:
        """Whether the process that wrote this memory is gone."""
        writer = self._writer
        return writer is None or writer.died

    def look_on(self) -> None:
        """Turn to an engine that followed, without waiting for one; where others removed the memory of the one that
        died before, nobody can say so there any more.
        """
        view = self._view
        if view is not None and (view.root.successor or self._died()):
            with suppress(EngineUnavailable, LayoutMismatch):  # a later look may tell more
                self.try_attach(last=False)

    # --- what is newest -----------------------------------------------------------------------------------------------

    def pin(self) -> Pin:
        """The newest published revision, as it lies in memory."""
        return self._pin_in(self.view)

    def _pin_in(self, newest: Callable[[], View]) -> Pin:
        while True:
            view = newest()
            try:
                return view.pin()
            except FileNotFoundError as error:  # its segments went while they were being mapped: an engine followed
                if not view.root.successor:
                    problem = f"the memory of {self.folder.path} was removed under its engine: start it again ({error})"
                    raise EngineUnavailable(problem) from None
                if view.root.successor == STOPPED:
                    problem = (
                        f"the engine of {self.folder.path} was stopped, and this reader does not map all of its memory"
                    )
                    raise EngineUnavailable(f"{problem}: start it, or open_reader(..., offline=True)") from None

    def _pin_of(self, epoch: int) -> Pin:
        """A pin of this epoch's memory where it is mapped, whether an engine follows or not; else of the newest."""
        view = self._view
        if view is not None and view.root.epoch == epoch:
            try:
                return view.pin()
            except FileNotFoundError:
                pass
        return self._pin_in(self._newest)

    def sleep(self, root: RootReader, head: int, timeout_s: float) -> None:
        """Wait until the head word moves on, or so long. Raises EngineUnavailable when the engine was stopped and none
        followed in `connect_timeout_s`: nothing will happen here.
        """
        root.sleep(head, timeout_s)
        if root.successor == STOPPED:
            self._vacancy.check(time.monotonic())
            return
        self._vacancy.end()
        if root.head == head:
            self.look_on()

    # --- letting go ---------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Hold no memory until the next look, but what snapshots hold."""
        if self._view is not None:
            self._view.let_go()

    def close(self) -> None:
        """Let the memory go; whoever waits here in another thread is told. Snapshots that are held stay readable."""
        self._closed = True
        self._view = self._writer = None
        self.decoder.turn_to(None)

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Let go of the memory, and warn where this was opened by itself and nobody had closed it."""
        if self._view is not None:
            is_unclosed = not self._closed
            self.close()
            if is_unclosed and self.is_anybodys:
                warn(unclosed_warning("reader", self.folder), ResourceWarning, source=self)
