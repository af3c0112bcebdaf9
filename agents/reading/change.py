"""`Change`: one change of one entity, as a watch brings it and a history lists it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from solewriter.agents.reading.anyreader import AnyReader
from solewriter.agents.reading.decoding import Model
from solewriter.agents.reading.past import Held
from solewriter.shared.errors import SnapshotExpired, SolewriterError
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.mutations import Op
from solewriter.shared.record import Record
from solewriter.shared.request_ids import default_id

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Changed = TypeVar("Changed", default=Any, covariant=True)
else:
    from typing import TypeVar

    Changed = TypeVar("Changed", covariant=True)  # which has defaults since 3.13


class Published(NamedTuple):
    """One record of a feed, and a revision pinned behind it, which holds what it takes to decode it."""

    pin: Held
    address: int  # 0 for one that was read from the journal
    record: Record
    earlier: Record | None = None  # of its entity, the one before it, where that was read from the journal
    is_cut: bool = False  # the journal's oldest one: none before it is known, and there may have been one

    def before(self) -> Record | None:
        """The record that this one took the place of. Raises FileNotFoundError, SnapshotExpired where it is gone."""
        if not self.address or self.earlier is not None:
            return self.earlier
        address = self.pin.previous(self.address)
        return self.pin.whole(address) if address else None


class Change(Generic[Changed]):
    """One change of one entity, as it was committed: a `Change[Task]`, where tasks were asked for.

    `mutation` is what was asked for (create, update, claim ...), of several in one request the last; `old` and `new`
    are the entity before and after, None where there was or is none. Where what was before has left memory already,
    `old` takes a pass over the journal, and raises Compacted if it is not there either. Pickling one asks for both;
    where one cannot be had, whoever unpickles it gets that error for it, too.
    """

    __slots__ = ("_model", "_published", "_reader", "_record", "kind")

    def __init__(self, reader: AnyReader, published: Published, kind: str, model: Model) -> None:
        self._reader = reader
        self._published = published
        self._record = published.record
        self._model = model
        self.kind = kind

    @property
    def id(self) -> str:
        return self._record.key

    @property
    def mutation(self) -> str:
        return Op(self._record.op).name.lower()

    @property
    def revision(self) -> int:
        return self._record.revision

    @property
    def version(self) -> int:
        return self._record.version

    @property
    def time(self) -> datetime:
        return from_us(self._record.time_us)

    @property
    def actor(self) -> str:
        """The name of the client that asked for it."""
        return self._record.actor

    @property
    def reason(self) -> str:
        return self._record.reason

    @property
    def request_id(self) -> str:
        """What names the request: the user's own id, or the client's."""
        found = self._record
        return found.request_id or default_id(found.session, found.sequence)

    @property
    def new(self) -> Changed | None:
        pin, address, found, *_ = self._published
        if address:
            try:
                return self._decode(pin, address)
            except SnapshotExpired:
                pass  # taken away since, but it was read as a whole
        return self._of_record(pin, found)

    @property
    def old(self) -> Changed | None:
        pin, address, found, earlier, is_cut = self._published
        if earlier is None and (address or is_cut) and not is_first(pin, found):
            try:
                if address and (before := pin.previous(address)):
                    return self._decode(pin, before)
            except (FileNotFoundError, SnapshotExpired):
                is_cut = True
            if is_cut or found.revision < pin.root.oldest:  # a start puts records back without those before them
                earlier = self._reader.before(pin, found)
        return self._of_record(pin, earlier)

    def _decode(self, pin: Held, address: int) -> Changed | None:
        entity: Changed | None = self._reader.decoder.decode(pin, address, self._model)
        return entity

    def _of_record(self, pin: Held, found: Record | None) -> Changed | None:
        entity: Changed | None = self._reader.decoder.of_record(pin.catalog, found, self._model)
        return entity

    def __reduce__(self) -> tuple[Any, ...]:
        """Addresses mean nothing where this process's mappings are not."""
        content = [_had(lambda: self.new), _had(lambda: self.old)]
        return _HandedOn, (self._record._replace(cells=b"", old_cells=b"", payload=b""), self.kind, *content)

    def __repr__(self) -> str:
        return f"<Change {self.mutation} of {self.kind} {self.id!r} to version {self.version} at {self.revision}>"


class _HandedOn(Change[Any]):
    """One that came from another process: with what it was before and after, or why that could not be had there."""

    __slots__ = ("_new", "_old")

    def __init__(self, record: Record, kind: str, new: Any, old: Any) -> None:
        self._record = record
        self.kind = kind
        self._new = new
        self._old = old

    @property
    def new(self) -> Any:
        return _entity_or_raise(self._new)

    @property
    def old(self) -> Any:
        return _entity_or_raise(self._old)


def _had(look: Callable[[], Any]) -> Any:
    """What `look` returns, or the SolewriterError that it raises, as a value: see `_entity_or_raise`."""
    try:
        return look()
    except SolewriterError as error:
        return error


def _entity_or_raise(had: Any) -> Any:
    if isinstance(had, SolewriterError):
        raise had.with_traceback(None)
    return had


def is_first(pin: Held, found: Record) -> bool:
    """Whether a record says itself that there was no entity before it: then it has no cells of one."""
    return found.version == 1 or (not found.old_cells and bool(pin.catalog.schemas[found.schema].columns))
