"""`Reader`: shared memory as entities. It never talks to the engine, and a dead engine's last snapshot stays readable.

An unchanged entity is the same object in the next snapshot (`decoding`). When an engine is followed by another one, the
next snapshot is of the new one's memory.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from solewriter.agents.deadline import check_patience
from solewriter.agents.looking import Looking, check_revision, closed_reader, not_published
from solewriter.agents.snapshot import Plain
from solewriter.shared.config import ATTACH_RETRY_S, DEFAULT_LIMITS, Limits
from solewriter.shared.errors import (
    Compacted,
    EngineUnavailable,
    LayoutMismatch,
    SchemaMismatch,
    SnapshotExpired,
    check_descriptors,
)
from solewriter.shared.folder import Process, runs, unclosed
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.root import STOPPED, SUPERSEDED, RootReader
from solewriter.shared.memory.view import View
from solewriter.shared.models import Entity, name_of
from solewriter.shared.mutations import Result
from solewriter.shared.registry import Kind, Registry
from solewriter.shared.schema import differences

if TYPE_CHECKING:
    from solewriter.agents.change import Change
    from solewriter.agents.offline import OfflineReader
    from solewriter.agents.past import Viewed
    from solewriter.agents.watch import Resync, Watch
    from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)


class Reader(Looking):
    """Reads one state folder. May be shared by threads; survives restarts of the engine. Made by `open_reader`."""

    _view: View | None = None
    is_anybodys = False  # opened by itself, to be closed by itself; else it is a client's

    def __init__(
        self, state: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, registry: Registry | None = None
    ) -> None:
        super().__init__(state, limits, registry)
        self._limits = limits
        self._writer: Process | None = None  # whose memory it is
        self._checked: dict[str, tuple[str, int, Kind]] = {}  # classes that are the engine's
        self._stopped_at = 0.0  # when a wait first met an engine that was stopped, and no other one followed since
        self._closed = False

    # --- attaching ---------------------------------------------------------------------------------------------------

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
        """Map the memory that `engine.json` names; while it is being handed over, look again."""
        deadline = time.monotonic() + self._limits.connect_timeout_s
        while (view := self.attached(last=time.monotonic() > deadline)) is None:
            time.sleep(ATTACH_RETRY_S)
        return view

    def attached(self, *, last: bool) -> View | None:
        """The newest memory, or None while it is being handed over; the `last` look raises EngineUnavailable."""
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
        self._stopped_at = 0.0
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
                self.attached(last=False)

    # --- reading -----------------------------------------------------------------------------------------------------

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
                    problem = f"the engine of {self.folder.path} was stopped, and this reader maps none of its memory"
                    raise EngineUnavailable(f"{problem}: start it, or open_reader(..., offline=True)") from None

    @property
    def revision(self) -> int:
        """The newest published revision."""
        return self.view().root.current().revision

    def wait_for(self, revision: int, timeout_s: float | None = None) -> int:
        """Block until this revision is published; the newest one.

        Raises TimeoutError; EngineUnavailable when the engine was stopped and none followed in `connect_timeout_s`.
        """
        check_revision(revision)
        check_patience(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            root = self.view().root
            head = root.head
            if (newest := root.current().revision) >= revision:
                return newest
            if (left := self.left_s(deadline)) <= 0:
                raise not_published(revision, newest, timeout_s)
            self.sleep(root, head, left)

    def left_s(self, deadline: float | None) -> float:
        """For how long to sleep before another look; 0 or less when a caller's time is over."""
        backstop_s = self._limits.wait_backstop_s
        return backstop_s if deadline is None else min(backstop_s, deadline - time.monotonic())

    def sleep(self, root: RootReader, head: int, timeout_s: float) -> None:
        """Until the head word moves on, or so long. Raises EngineUnavailable when the engine was stopped and none
        followed in `connect_timeout_s`: nothing will happen here.
        """
        root.sleep(head, timeout_s)
        if root.successor != STOPPED:
            self._stopped_at = 0.0
            if root.head == head:
                self.look_on()
            return
        now = time.monotonic()
        self._stopped_at = self._stopped_at or now
        if now - self._stopped_at > self._limits.connect_timeout_s:
            raise EngineUnavailable(f"the engine of {self.folder.path} was stopped, and nobody started another one")

    @overload
    def wait_until(
        self, kind: type[E], id: str, predicate: Callable[[E | None], object], timeout_s: float | None = None
    ) -> E | None: ...
    @overload
    def wait_until(
        self, kind: str, id: str, predicate: Callable[[Plain | None], object], timeout_s: float | None = None
    ) -> Plain | None: ...
    def wait_until(
        self, kind: type[E] | str, id: str, predicate: Callable[[Any], object], timeout_s: float | None = None
    ) -> E | Plain | None:
        """Block until the predicate holds of this entity (None while there is none); the entity.

        Raises TimeoutError.
        """
        check_patience(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            root = self.view().root
            head = root.head  # before the look, so that a change behind it is not slept through
            found = self.get(kind, id)
            if predicate(found):
                return found
            if (left := self.left_s(deadline)) <= 0:
                raise TimeoutError(f"{name_of(kind)} {id!r} did not become so in {timeout_s} s; it is {found!r}")
            self.sleep(root, head, left)

    @overload
    def watch(
        self,
        kind: type[Entity] | str | None = None,
        *,
        since: int | None = None,
        where: Where | None = None,
        timeout_s: float | None = None,
        resync: Literal[False] = False,
    ) -> Watch[Change]: ...
    @overload
    def watch(
        self,
        kind: type[Entity] | str | None = None,
        *,
        since: int | None = None,
        where: Where | None = None,
        timeout_s: float | None = None,
        resync: bool,
    ) -> Watch[Change | Resync]: ...
    def watch(
        self,
        kind: type[Entity] | str | None = None,
        *,
        since: int | None = None,
        where: Where | None = None,
        timeout_s: float | None = None,
        resync: bool = False,
    ) -> Watch[Any]:
        """Every change behind revision `since` (default: from now on), in order: of all kinds or one.

        `where` asks declared columns; an entity that leaves the filter is a change, too. Ends when nothing came for
        `timeout_s`. What has left memory is read from the journal; what is not there either raises Compacted, or with
        `resync` is replaced by a Resync.
        """
        from solewriter.agents.watch import Watch

        return Watch(self, kind, since, where, timeout_s, resync)

    # --- what clients ask of it --------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Hold no memory until the next look, but what snapshots hold."""
        if self._view is not None:
            self._view.let_go()

    def check_class(self, kind: Kind) -> None:
        """Raises SchemaMismatch if the engine knows this kind by another class: what one leaves out as a default, the
        other would read as another value.
        """
        view = self._view or self.view()
        if self._checked.get(kind.name) == (view.prefix, view.catalog_number, kind):
            return
        pin = self.pin()
        view, catalog = pin.view, pin.catalog
        code = catalog.kind_code(kind.name)
        theirs = [schema for schema in catalog.schemas if schema.kind == code]
        if theirs and theirs[-1].digest() != kind.schema.digest():
            raise SchemaMismatch(
                f"the class {kind.name} of this process differs from the engine's: "
                f"{differences(theirs[-1], kind.schema, kind.model.model_fields.keys())}: use one everywhere, or "
                "engine.register(...) this one",
                kind=kind.name,
            )
        self._checked[kind.name] = (view.prefix, view.catalog_number, kind)

    def of_result(self, result: Result, epoch: int, model: type[E] | str) -> E | Plain | None:
        """The entity as a reply left it, also when this was closed. Raises Compacted if memory does not have that."""
        if not result.version:
            return None  # made and deleted in one request
        left: E | Plain | None
        try:
            left = self._left(self._pin_of(epoch), result, epoch, model)
        except (FileNotFoundError, SnapshotExpired, Compacted):  # its memory was reclaimed, or went with its engine
            left = self._left(self._pin_in(self._newest), result, epoch, model)
        return left

    def _left(self, pin: Pin, result: Result, epoch: int, model: type[Entity] | str) -> Any:
        """The same in one pin. It is not kept: its next version follows soon."""
        if result.address and pin.view.root.epoch == epoch:
            try:
                return self.decoder.fresh(pin, result.address, model)
            except (FileNotFoundError, SnapshotExpired):
                pass  # its segment was reclaimed: it lives elsewhere, or not any more
        return self.decoder.fresh(pin, self._by_version(pin, result), model)

    def _pin_of(self, epoch: int) -> Pin:
        """A pin of this epoch's memory where it is mapped, whether an engine follows or not; else of the newest."""
        view = self._view
        if view is not None and view.root.epoch == epoch:
            try:
                return view.pin()
            except FileNotFoundError:
                pass
        return self._pin_in(self._newest)

    def _by_version(self, pin: Pin, result: Result) -> int:
        code = pin.catalog.kind_code(result.kind)
        address = pin.find(code, result.id) if code is not None else 0
        try:
            while address:
                if pin.content(address).version == result.version:
                    return address
                address = pin.previous(address)
        except (FileNotFoundError, SnapshotExpired):
            pass
        raise Compacted(
            f"{result.kind} {result.id!r} at version {result.version} is not in memory any more", oldest=pin.root.oldest
        )

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the memory go; whoever waits here in another thread is told. Snapshots that are held stay readable."""
        self._closed = True
        self._view = self._writer = None
        self.decoder.turn_to(None)

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Nobody has this reader any more, nor a snapshot of it."""
        if self._view is not None:
            is_unclosed = not self._closed
            self.close()
            if is_unclosed and self.is_anybodys:
                warn(unclosed("reader", self.folder), ResourceWarning, source=self)


@overload
def open_reader(
    state: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, offline: Literal[False] = False
) -> Reader: ...
@overload
def open_reader(
    state: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, offline: Literal[True]
) -> OfflineReader: ...
@overload
def open_reader(
    state: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, offline: bool
) -> Reader | OfflineReader: ...
def open_reader(
    state: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, offline: bool = False
) -> Reader | OfflineReader:
    """Read the state that an engine publishes. Raises EngineUnavailable if no engine serves or served this folder.

    `offline`: read what the folder holds, checkpoint and journal, whether an engine runs or not; see OfflineReader.
    """
    if offline:
        from solewriter.agents.offline import OfflineReader

        return OfflineReader(state, limits)
    reader = Reader(state, limits)
    reader.view()
    reader.is_anybodys = True
    return reader
