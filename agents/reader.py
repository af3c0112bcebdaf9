"""`Reader`: shared memory as entities. It never talks to the engine, and a dead engine's last snapshot stays readable.

An unchanged entity is the same object in the next snapshot (`decoding`). When an engine is followed by another one, the
next snapshot is of the new one's memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from solewriter.agents.deadline import check_patience
from solewriter.agents.reading.anyreader import check_revision, not_published, not_so, not_so_many, plain_answer
from solewriter.agents.reading.attaching import AttachingReader
from solewriter.agents.snapshot import Plain, Snapshot
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import Compacted, SchemaMismatch, SnapshotExpired
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import differences
from solewriter.shared.memory.pin import Pin
from solewriter.shared.mutations import Result
from solewriter.shared.registry import Registry

if TYPE_CHECKING:
    from solewriter.agents.reading.change import Change
    from solewriter.agents.reading.decoding import Model, Several
    from solewriter.agents.reading.offline import OfflineReader
    from solewriter.agents.watch import Resync, Watch
    from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)


class Reader(AttachingReader):
    """Reads one state folder. May be shared by threads; survives restarts of the engine. Made by `open_reader`."""

    def __init__(
        self, state: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, registry: Registry | None = None
    ) -> None:
        super().__init__(state, limits, registry)
        self._checked: dict[str, tuple[str, int, Kind]] = {}  # classes that are the engine's

    # --- reading -----------------------------------------------------------------------------------------------------

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

        Raises TimeoutError; TypeError for an async predicate, of which nobody here waits for the answer.
        """
        check_patience(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            root = self.view().root
            head = root.head  # before the look, so that a change behind it is not slept through
            found = self.get(kind, id)
            if plain_answer(predicate(found)):
                return found
            if (left := self.left_s(deadline)) <= 0:
                raise not_so(kind, id, found, timeout_s)
            self.sleep(root, head, left)

    def wait_until_count(
        self,
        kind: Model,
        where: Where | None,
        predicate: Callable[[int], object],
        timeout_s: float | None = None,
    ) -> Snapshot:
        """Block until the predicate holds of how many entities of a kind match; the snapshot in which it does, held.
        They are counted again only when one of them changed, came or left.

        Raises as `wait_until` does; InvalidQuery.
        """
        check_patience(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        watch, count = None, 0
        while True:
            root = self.view().root
            head = root.head  # before the look, as above
            is_new, left = watch is None or watch.take(), self.left_s(deadline)
            if watch is None or watch.pop() is not None or (is_new and left <= 0):
                watch = self.watch(kind, where=where, resync=True)  # before the snapshot: it tells what is not in that
                snap = self.snapshot()
                try:
                    count = snap.count(kind, where)
                except SnapshotExpired:  # this process was stopped in the middle
                    watch = None
                    continue
                if plain_answer(predicate(count)):
                    return snap
                snap.close()
            if left <= 0:
                raise not_so_many(kind, where, count, timeout_s)
            if not is_new:
                self.sleep(root, head, left)

    @overload
    def watch(
        self, kind: type[E], *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> Watch[Change[E]]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: type[E], *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> Watch[Change[E] | Resync]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: str, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> Watch[Change[Plain]]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: str, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> Watch[Change[Plain] | Resync]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: Several | None = None, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: Literal[False] = False,
    ) -> Watch[Change]: ...  # fmt: skip
    @overload
    def watch(
        self, kind: Several | None = None, *, id: str | None = None, since: int | None = None,
        where: Where | None = None, timeout_s: float | None = None, resync: bool,
    ) -> Watch[Change | Resync]: ...  # fmt: skip
    def watch(
        self,
        kind: Model | Several | None = None,
        *,
        id: str | None = None,
        since: int | None = None,
        where: Where | None = None,
        timeout_s: float | None = None,
        resync: bool = False,
    ) -> Watch[Any]:
        """Every change behind revision `since` (default: from now on; 0 or below it: from the first one on), in order:
        of all kinds, of one or several, or of one entity by its kind and `id`.

        `where` asks declared columns; an entity that leaves the filter is a change, too. Ends when nothing came for
        `timeout_s`. What has left memory is read from the journal; what is not there either raises Compacted, or with
        `resync` is replaced by a Resync.
        """
        from solewriter.agents.watch import Watch

        return Watch(self, kind, id, since, where, timeout_s, resync)

    # --- what clients ask of it --------------------------------------------------------------------------------------

    def check_class(self, kind: Kind) -> None:
        """Raises SchemaMismatch if the engine knows this kind by another class: what one leaves out as a default, the
        other would read as another value.
        """
        if (view := self._view or self.view()).root.successor:
            self.look_on()  # the next engine may have another one
            view = self._view or view
        if self._checked.get(kind.name) == (view.prefix, view.root.catalog, kind):
            return
        pin = self.pin()
        code = pin.catalog.kind_code(kind.name)
        theirs = None if code is None else pin.catalog.newest_schema(code)
        if theirs is not None and theirs.digest() != kind.schema.digest():
            told = differences(theirs, kind.schema, kind.model.model_fields.keys())
            problem = f"the class {kind.name} of this process differs from the engine's: {told}"
            raise SchemaMismatch(f"{problem}: use one everywhere, or engine.register(...) this one", kind=kind.name)
        self._checked[kind.name] = (pin.view.prefix, pin.root.catalog, kind)

    def of_result(self, result: Result, epoch: int, model: type[E] | str) -> E | Plain | None:
        """The entity as a reply left it, also when this was closed. Raises Compacted if memory does not have that."""
        if not result.version:
            return None  # made and deleted in one request
        left: E | Plain | None
        try:
            left = self._entity_of(self._pin_of(epoch), result, epoch, model)
        except (FileNotFoundError, SnapshotExpired, Compacted):  # its memory was reclaimed, or went with its engine
            left = self._entity_of(self._pin_in(self._newest), result, epoch, model)
        return left

    def _entity_of(self, pin: Pin, result: Result, epoch: int, model: type[Entity] | str) -> Any:
        """The entity of a result, read in one pin. It is not kept: its next version follows soon."""
        if result.address and pin.view.root.epoch == epoch:
            try:
                return self.decoder.decode_anew(pin, result.address, model)
            except (FileNotFoundError, SnapshotExpired):
                pass  # its segment was reclaimed: it lives elsewhere, or not any more
        return self.decoder.decode_anew(pin, self._by_version(pin, result), model)

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
        from solewriter.agents.reading.offline import OfflineReader

        return OfflineReader(state, limits)
    reader = Reader(state, limits)
    reader.view()
    reader.is_anybodys = True
    return reader
