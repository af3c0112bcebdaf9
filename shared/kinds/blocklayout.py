"""Where a kind's columns stand in the block of cells that each of its records carries, and how that block is made.

A whole block is cut from an entity's fields; a change cuts only the cells that it touches anew. The cells of `version`
and `updated_at` are the engine's own: they are made at every change, and of what the record says itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from solewriter.shared.errors import InvalidMutation
from solewriter.shared.kinds.columns import Cell, Cells, Column, format_of

_OWN_CELLS: Final = ("updated_at", "version")
_OWN: Final = struct.Struct("<qq")  # both of them, where they are the last ones, in this order
_OWN_BYTES: Final = _OWN.size
_pack_own: Final = _OWN.pack


class BlockLayout:
    """Makes the blocks of cells of one kind. `defaults` are its fields where they are not stored."""

    def __init__(self, kind_name: str, columns: Sequence[Column], defaults: Mapping[str, Any]) -> None:
        names = [column.name for column in columns]
        self._kind_name = kind_name
        self._block = struct.Struct(format_of(columns))
        self._blank = bytes(self._block.size)
        self._own_places = [(place, name == "version") for place, name in enumerate(names) if name in _OWN_CELLS]
        self._own_are_last = tuple(names[-2:]) == _OWN_CELLS  # then `recut` packs them alone
        self._updated_place, self._version_place = len(names) - 2, len(names) - 1
        made = {
            column.name: (place, column.cell(), defaults.get(column.name))
            for place, column in enumerate(columns)
            if column.name not in _OWN_CELLS
        }
        self.id_is_column = "id" in made
        self._cutters = [(name, cell, default) for name, (_, cell, default) in made.items()]
        self._changing = {name: found for name, found in made.items() if name != "id"}
        self._changing_names = frozenset(self._changing)

    def cut(self, stored: Mapping[str, Any], key: str, version: int, now_us: int) -> tuple[bytes, Cells]:
        """The block of all cells, and the cells. Raises InvalidMutation for a value that has none."""
        if self.id_is_column:
            stored = {**stored, "id": key}
        find = stored.get
        try:
            values = [cell(find(name, default)) for name, cell, default in self._cutters]
        except ValueError:
            return self.recut(self._blank, stored, self._changing, version, now_us)  # which names the field
        for place, is_version in self._own_places:
            values.insert(place, version if is_version else now_us)
        return self._block.pack(*values), tuple(enumerate(values))

    def recut(
        self, block: bytes, stored: Mapping[str, Any], names: Iterable[str], version: int, now_us: int
    ) -> tuple[bytes, Cells]:
        """The block with some fields' cells and the engine's own made anew; these cells. That of the id stays, which no
        field says. Raises InvalidMutation.
        """
        if self._own_are_last and self._changing_names.isdisjoint(names):
            own = (self._updated_place, now_us), (self._version_place, version)
            return block[:-_OWN_BYTES] + _pack_own(now_us, version), own
        cells: list[tuple[int, Cell]] = []
        for name in names:
            if name in self._changing:
                place, cell, default = self._changing[name]
                try:
                    cells.append((place, cell(stored.get(name, default))))
                except ValueError as error:
                    raise InvalidMutation(f"{self._kind_name}.{name}: {error}", fields={name: str(error)}) from None
        cells += [(place, version if is_version else now_us) for place, is_version in self._own_places]
        values = list(self._block.unpack(block))
        for place, made in cells:
            values[place] = made
        return self._block.pack(*values), cells
