"""What the engine knows of a kind: who has which slot, and how far the keys came that nobody has any more."""

from __future__ import annotations

from typing import cast

from solewriter.shared.kinds.columns import Column
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import Schema


class KindState:
    """One kind: its model, if it is registered here, the schema that new records get, and the slots of its keys."""

    __slots__ = ("_forgotten", "alive", "base", "code", "free", "kind", "name", "places", "schema", "slots")

    def __init__(self, code: int, name: str, schema: Schema, kind: Kind | None) -> None:
        self.code = code
        self.name = name
        self.schema = schema
        self.kind = kind
        self.slots: dict[str, int] = {}
        self.places = 0  # slots handed out so far, free ones included
        self.free: dict[int, None] = {}  # slots whose keys were forgotten; the last one is taken first
        self.alive = 0
        self.base = 0  # no key that has no record is at a lower version
        self._forgotten: dict[str, int] = {}  # the last versions of keys that were deleted, and have no record any more

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that its class declares; without one, those of its newest schema."""
        return self.kind.columns if self.kind is not None else self.schema.columns

    def restore(self, keys: list[str | None], alive: int) -> None:
        """From a checkpoint: the keys by slot, None where nobody has it."""
        slots: dict[str | None, int] = dict(zip(keys, range(len(keys)), strict=True))
        if slots.pop(None, None) is not None:
            self.free = dict.fromkeys([slot for slot, key in enumerate(keys) if key is None])
        self.slots = cast("dict[str, int]", slots)
        self.places, self.alive = len(keys), alive

    def take(self, key: str, slot: int) -> None:
        """A key is in a slot from now on: a free one, or the next one of all."""
        self.slots[key] = slot
        if slot == self.places:
            self.places += 1
        else:
            del self.free[slot]
        self.unforget(key)

    def unforget(self, key: str) -> None:
        """Drop the version that is remembered of a key: it has a record again, which says it."""
        self._forgotten.pop(key, None)

    def forget(self, key: str, version: int, keys_max: int) -> None:
        """A key's tombstone is gone: its slot is free, and its last version is remembered for a while, then for all."""
        self.free[self.slots.pop(key)] = None
        if len(self._forgotten) >= keys_max:
            self.base = max(self.base, 0 if keys_max else version, *self._forgotten.values())
            self._forgotten.clear()
        if keys_max:
            self._forgotten[key] = version

    @property
    def forgotten(self) -> tuple[int, dict[str, int]]:
        """What no record says: the base, and the last versions of forgotten keys."""
        return self.base, self._forgotten

    def restore_forgotten(self, base: int, keys: dict[str, int]) -> None:
        self.base, self._forgotten = base, keys

    def last_version(self, key: str) -> int:
        """A version that a key without a record never went beyond."""
        return self._forgotten.get(key, self.base)
