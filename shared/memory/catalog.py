"""The catalog: which kinds and schemas there are, for readers that do not have the classes. One small segment per
change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from solewriter.shared.config import MEMORY_VERSION
from solewriter.shared.errors import UNDECODABLE, LayoutMismatch, check_depth
from solewriter.shared.kinds.columns import Column
from solewriter.shared.kinds.schema import Schema


class Table(msgspec.Struct, frozen=True, array_like=True):
    """How a kind's table is laid out in this epoch; a new generation when its columns changed."""

    generation: int
    columns: tuple[Column, ...]


class Catalog(msgspec.Struct, frozen=True):
    """All kinds and all schemas ever seen, each by its code, and the table of each kind."""

    version: int
    kinds: tuple[str, ...]
    schemas: tuple[Schema, ...]
    tables: tuple[Table, ...]

    def kind_code(self, name: str) -> int | None:
        return self.kinds.index(name) if name in self.kinds else None

    def defaults(self, kind: int) -> Mapping[str, Any]:
        """Plain values of the fields that the newest schema of a kind has a default for."""
        newest = self.newest_schema(kind)
        return {} if newest is None else newest.defaults

    def newest_schema(self, kind: int) -> Schema | None:
        """That of the class by which a kind is known."""
        return next((schema for schema in reversed(self.schemas) if schema.kind == kind), None)


EMPTY = Catalog(MEMORY_VERSION, (), (), ())


def pack(catalog: Catalog) -> bytes:
    body = msgspec.msgpack.encode(catalog)
    return len(body).to_bytes(4, "little") + body


def unpack(buffer: bytes) -> Catalog:
    """Raises LayoutMismatch for bytes that are no catalog of this version."""
    length = int.from_bytes(buffer[:4], "little")
    try:
        catalog = msgspec.msgpack.decode(buffer[4 : 4 + length], type=Catalog)
    except UNDECODABLE as error:
        check_depth(error)
        raise LayoutMismatch(f"the catalog of kinds cannot be read: {error}") from error
    if catalog.version != MEMORY_VERSION:
        raise LayoutMismatch(f"the catalog has version {catalog.version}, this library reads {MEMORY_VERSION}")
    return catalog
