"""A snapshot: every entity at one revision, typed. All that is read through one belongs together, while it is held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from solewriter.shared.entity import Entity, name_of
from solewriter.shared.errors import NotFound, check_descriptors, safe_repr
from solewriter.shared.system.forks import forks_held_off

if TYPE_CHECKING:
    from solewriter.agents.reading.anyreader import AnyReader
    from solewriter.agents.reading.past import Held
    from solewriter.agents.reading.query import Query
    from solewriter.shared.kinds.kind import Kind
    from solewriter.shared.where import Where

E = TypeVar("E", bound=Entity)
Plain = dict[str, Any]


class Snapshot:
    """An immutable view. Close it, or use it in a `with`, to let its memory go; forgetting it does the same."""

    __slots__ = ("_pin", "_reader", "history_id", "revision")

    def __init__(self, reader: AnyReader, pin: Held) -> None:
        self._reader = reader
        self._pin: Held | None = pin
        self.revision: int = pin.root.revision
        self.history_id: str = pin.view.root.history.hex()  # what a revision is meaningful together with

    @property
    def pin(self) -> Held:
        """The revision in memory. Raises ValueError after `close`."""
        if self._pin is None:
            raise ValueError("this snapshot is closed")
        return self._pin

    @property
    def stale(self) -> bool:
        """Whether the engine that published this is gone: it is whole, but nobody makes newer ones yet."""
        return self._reader.is_stale(self.pin.view)

    @overload
    def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    def get(self, kind: str, id: str) -> Plain | None: ...
    def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The entity, or None. A kind given by name yields a dict of plain values."""
        pin = self._pin or self.pin
        known = pin.found.get(kind)
        if known is not None and (seen := known.get(id)) is not None:
            words, place, address, revision, entity = seen
            if words[place] == address and revision <= self.revision:  # still its slot's newest, and of this snapshot
                return entity  # type: ignore[no-any-return] # what a reader keeps under a class is of that class
        found: E | Plain | None = self._reader.decoder.find(pin, kind, id)
        return found

    @overload
    def __getitem__(self, key: tuple[type[E], str]) -> E: ...
    @overload
    def __getitem__(self, key: tuple[str, str]) -> Plain: ...
    @overload
    def __getitem__(self, key: tuple[type[E] | str, str]) -> E | Plain: ...
    def __getitem__(self, key: tuple[type[E] | str, str]) -> E | Plain:
        """The entity. Raises NotFound, which is no KeyError: it says of what kind."""
        try:
            kind, id = key
        except (TypeError, ValueError):
            raise TypeError(f"what is asked for is a kind and an id, snap[Task, id], not {safe_repr(key)}") from None
        found: E | Plain | None = self.get(kind, id)
        if found is None:
            name = name_of(kind)
            raise NotFound(f"there is no {name} {id!r} at revision {self.revision}", kind=name, id=id)
        return found

    @overload
    def entities(self, kind: type[E]) -> Iterator[E]: ...
    @overload
    def entities(self, kind: str) -> Iterator[Plain]: ...
    def entities(self, kind: type[E] | str) -> Iterator[E] | Iterator[Plain]:
        """All entities of a kind, in the order of their places: of creation, but for the places of entities that were
        deleted long ago, which are used again.
        """
        pin = self.pin
        code = pin.catalog.kind_code(name_of(kind))
        for address in pin.addresses(code) if code is not None else ():
            entity = self._reader.decoder.decode(self._pin or self.pin, address, kind)  # closed meanwhile: no more
            if entity is not None:
                yield entity

    def model_of(self, name: str) -> type[Entity] | str:
        """The class that this reader knows for a kind; its name, where it knows none."""
        return self._reader.decoder.model_of(name)

    def kind_of(self, kind: type[Entity] | str) -> Kind | None:
        """What this reader knows of a kind's class."""
        return self._reader.decoder.kind_of(kind)

    # --- many at once ------------------------------------------------------------------------------------------------

    @overload
    def scan(
        self,
        kind: type[E],
        where: Where | None = None,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        after: E | str | None = None,
    ) -> list[E]: ...
    @overload
    def scan(
        self,
        kind: str,
        where: Where | None = None,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        after: Plain | str | None = None,
    ) -> list[Plain]: ...
    def scan(
        self,
        kind: type[E] | str,
        where: Where | None = None,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        after: E | Plain | str | None = None,
    ) -> list[E] | list[Plain]:
        """The entities that match, in the order of their places, or of a column (`"-created_at"`: the other way).

        `where` asks declared columns: a value, several of them (a list, tuple or set), a `Range`, or None for absence.
        `after` is the last entity of the page before, or its id: paging neither skips nor repeats what stays in its
        place, from snapshot to snapshot. Raises InvalidQuery, naming the columns, for a field that is none.
        """
        query = self._query(kind)
        addresses = query.addresses(where, order_by, limit, after) if query is not None else ()
        return self._reader.decoder.decode_all(self.pin, addresses, kind)

    def ids(
        self,
        kind: type[Entity] | str,
        where: Where | None = None,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        after: Entity | Plain | str | None = None,
    ) -> list[str]:
        """The ids of what `scan` finds, without decoding it."""
        query = self._query(kind)
        return query.ids(query.addresses(where, order_by, limit, after)) if query is not None else []

    def count(self, kind: type[Entity] | str, where: Where | None = None) -> int:
        """How many match."""
        query = self._query(kind)
        return query.count(where) if query is not None else 0

    def count_by(self, kind: type[Entity] | str, column: str, where: Where | None = None) -> dict[Any, int]:
        """How many of those that match have each value of a column."""
        query = self._query(kind)
        return query.count_by(column, where) if query is not None else {}

    def columns(self, kind: type[Entity] | str, where: Where | None = None) -> dict[str, Any]:
        """The declared columns of what matches, as numpy arrays in one order, which is that of `ids`.

        Integers as int64 (masked where None), floats as float64 (NaN), times as datetime64[us] (NaT), booleans as bool
        (as objects where some are None), texts and enum values as objects.
        """
        query = self._query(kind)
        return query.columns(where) if query is not None else {}

    def _query(self, kind: type[Entity] | str) -> Query | None:
        """None for a kind that nobody ever registered."""
        try:
            with forks_held_off:  # a child that came in the middle would wait for the end of the import for ever
                from solewriter.agents.reading.query import Query  # numpy takes 150 ms that only those pay who ask
        except OSError as error:
            check_descriptors(error)
            raise
        pin = self.pin
        code = pin.catalog.kind_code(name_of(kind))
        if code is None:
            return None
        decoder, lived_on = self._reader.decoder, partial(self._reader.lived_on, pin, code)
        return Query(pin, code, decoder.kind_of(kind), decoder.field_of(kind), lived_on)

    @property
    def counts(self) -> dict[str, int]:
        """How many entities of each kind there are."""
        pin = self.pin
        return {name: pin.root.kinds[code][1] for code, name in enumerate(pin.catalog.kinds)}

    def close(self) -> None:
        self._pin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a snapshot belongs to the process that took it; another one gets the path and the revision, and looks for "
            f"itself: {self._reader._opened}.at({self.revision})"
        )

    def __repr__(self) -> str:
        return "<Snapshot, closed>" if self._pin is None else f"<Snapshot of revision {self.revision}>"
