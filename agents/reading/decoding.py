"""`Decoder`: records as entities, and what is kept of them.

Records never change, so an entity is kept by its record's address, and by its key together with where its slot's head
lies: as long as that points to the same record, the next look needs nothing else. All of that is of one epoch's memory;
what is read elsewhere, in an older memory or in the journal, is decoded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

from solewriter.agents.reading.past import Held
from solewriter.shared import record
from solewriter.shared.config import DECODED_AT_ONCE
from solewriter.shared.entity import Entity, check_id, name_of
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.view import View
from solewriter.shared.registry import Registry
from solewriter.shared.system.garbage import gc_paused

Model = type[Entity] | str
"""A class, or a kind's name: then what is decoded are dicts of the caller's own"""
Several = list[Any] | tuple[Any, ...] | AbstractSet[Any]
"""Of these; which no text is, to type checkers neither"""

_NOTHING: dict[str, Any] = {}


class Decoder:
    """Decodes for one reader. May be shared by threads."""

    def __init__(self, registry: Registry, cache_max: int) -> None:
        self._registry = registry
        self._cache_max = cache_max
        # One tuple: what a thread decodes of an older memory is not put beside what is of the next one.
        self._kept: tuple[View | None, dict[tuple[int, Model], Any]] = (None, {})

    def turn_to(self, view: View | None) -> None:
        """Keep what is of this memory from now on."""
        self._kept = view, {}

    # --- entities ----------------------------------------------------------------------------------------------------

    def find(self, pin: Held, kind: Model, id: str) -> Any:
        """The entity under a key, or None."""
        if isinstance(pin, Pin) and (seen := pin.found.get(kind, _NOTHING).get(id)) is not None:
            words, place, *_ = seen
            if address := pin.find_again(words, place, id):
                return self._keep_anew(pin, kind, id, address, words, place)
        check_id(id)
        code = pin.catalog.kind_code(name_of(kind))
        if code is None:
            return None
        address, slot = pin.place(code, id)
        if not address:
            return None
        if slot < 0 or isinstance(kind, str) or pin.view is not self._kept[0]:
            return self.decode(pin, address, kind)
        return self._keep_anew(pin, kind, id, address, *pin.live_table(code).place(slot))

    def _keep_anew(self, pin: Held, kind: Model, id: str, address: int, words: memoryview[int], place: int) -> Any:
        """The entity of the record that was found under its slot's head, which lies there."""
        content = pin.read(address)
        view, cache = self._kept  # of the next engine's memory perhaps, whose records have the same addresses
        known = pin.found.setdefault(kind, {})
        seen = known.get(id)
        if seen is not None and seen[3] == content.revision:
            entity = seen[4]  # it was only moved
        elif pin.view is not view or (entity := cache.get((address, kind))) is None:
            entity = self.of_record(pin.catalog, content, kind)
        if entity is not None and words[place] == address and self._has_room(known):
            known[id] = words, place, address, content.revision, entity
        return entity

    def decode(self, pin: Held, address: int, kind: Model) -> Any:
        """The entity of a record; None of a tombstone."""
        view, cache = self._kept
        if isinstance(kind, str) or pin.view is not view or not isinstance(pin, Pin):
            return self.decode_anew(pin, address, kind)
        cached = cache.get((address, kind))
        if cached is not None:
            return cached
        entity = self.decode_anew(pin, address, kind)
        if entity is not None and self._has_room(cache):
            cache[address, kind] = entity
        return entity

    def decode_all(self, pin: Held, addresses: Iterable[int], kind: Model) -> list[Any]:
        """The entities of many records, None of tombstones."""
        made: list[Any] = []
        left = iter(addresses)
        while piece := list(islice(left, DECODED_AT_ONCE)):
            with gc_paused():
                made += [self.decode(pin, address, kind) for address in piece]
        return made

    def decode_anew(self, pin: Held, address: int, kind: Model) -> Any:
        """The entity of a record, neither taken from what is kept nor put there."""
        return self.of_record(pin.catalog, pin.read(address), kind)

    def of_record(self, catalog: Catalog, found: record.Content | record.Record | None, kind: Model) -> Any:
        """The entity of a record's content; None of a tombstone, or of none. Raises SchemaMismatch."""
        if found is None or found.deleted:
            return None
        schema = catalog.schemas[found.schema]
        if isinstance(kind, str):
            return schema.values(found.key, found.version, found.time_us, found.payload)
        known = self._registry.of(kind)
        return known.decode_entity(schema, found.key, found.version, found.time_us, found.payload)

    def _has_room(self, cache: dict[Any, Any]) -> bool:
        """Make room for one more, at the cost of the oldest; False for a reader that keeps nothing."""
        if len(cache) >= self._cache_max:
            for oldest in list(islice(cache, 1 + len(cache) // 8)):
                cache.pop(oldest, None)
        return self._cache_max > 0

    # --- models ------------------------------------------------------------------------------------------------------

    def model_of(self, kind: str) -> Model:
        """The class of a kind, where one is known here; else its name."""
        known = self._registry.get(kind)
        return kind if known is None else known.model

    def kind_of(self, kind: Model) -> Kind | None:
        """What is known here of a class, or of the class of a kind's name."""
        return self._registry.get(kind) if isinstance(kind, str) else self._registry.of(kind)

    def field_of(self, kind: Model) -> Callable[[str, Any], Any]:
        """The function from a field's name and plain value to the value that the model has there."""
        if isinstance(kind, str):
            return lambda name, value: value
        return self._registry.of(kind).field
