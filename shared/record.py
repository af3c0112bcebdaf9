"""One committed change of one entity as bytes: the same bytes in memory, in the journal and in the feed.

    0   crc u32 | 4  length u32
    8   kind u16 | 10  schema u16 | 12  op u8 | 13  flags u8 | 14  key length u8 | 15  request id length u8
    16  revision u64 | 24  version u64 | 32  time i64 (us since 1970) | 40  session u64 | 48  sequence u64
    56  actor length u16 | 58  reason length u16 | 60  cells length u16 | 62  old cells length u16
    64  payload length u32
    68  key | actor | reason | request id | cells | old cells | payload

Little-endian. The crc is over all that follows it. Nothing in a body depends on where it lies, so it can be copied
anywhere. Whoever reads a few of these fields at once has a struct of them here; `reclaim` has one of its own, which
begins with a record's prefix in the heap.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from zlib_ng.zlib_ng import crc32

from solewriter.shared.errors import JournalCorrupt

_CRC: Final = struct.Struct("<I")
_CHECK: Final = struct.Struct("<II")
_HEADER: Final = struct.Struct("<IHHBBBBQQqQQHHHHI")
_WHOLE: Final = struct.Struct("<IIHHBBBBQQqQQHHHHI")
_STORED: Final = struct.Struct("<4xI2xHxB2x8xQ24x4xHHI")  # the parts of it that the engine decides on
_CONTENT: Final = struct.Struct("<4xIHHxBBxQQq24xI")  # those that a reader decodes an entity from
BEFORE_CELLS: Final = struct.Struct("<4xI2xHxBBB40xHH")
"""Of a body its length, schema and flags, and the lengths of what is between its header and its cells: its key, request
id, actor and reason"""
INSTALLED: Final = struct.Struct("<8xHHxBBxQ")
"""Of a body that a start puts back its kind, schema and flags, the length of its key, and its revision"""
OVERTAKEN: Final = struct.Struct("<4xI5xB")
"""Of a body that another one takes the place of its length and flags"""
KEYED: Final = struct.Struct("<4xIH4xB")
"""Of a body its length and kind, and the length of its key"""
HEADER_BYTES: Final = _WHOLE.size
REVISION_OFFSET: Final = 16  # of the u64 in a body, for readers that only ask how old a record is
CRC_BYTES: Final = 4  # at the beginning of a body
FLAGS_OFFSET: Final = 13  # of the byte in a body
KEY_LENGTH_OFFSET: Final = 14  # of the u8 in a body; the key itself follows the header
_pack_header: Final = _HEADER.pack
_unpack_stored: Final = _STORED.unpack_from

if TYPE_CHECKING:
    from mmap import mmap

    Buffer = bytes | bytearray | memoryview | mmap


class Flags:
    """What a record is besides a new content. Plain ints: they are combined once for every change."""

    DELETE: Final = 1  # a tombstone: the entity is gone, its version counts on
    FIRST: Final = 2  # of its request
    LAST: Final = 4  # of its request
    RELOCATED: Final = 8  # a copy of an older record, made when memory was reclaimed


class Record(NamedTuple):
    """A body, taken apart."""

    kind: int
    schema: int
    op: int
    flags: int
    revision: int
    version: int
    time_us: int
    session: int
    sequence: int
    key: str
    actor: str
    reason: str
    request_id: str
    cells: bytes
    old_cells: bytes
    payload: bytes

    @property
    def deleted(self) -> bool:
        return bool(self.flags & Flags.DELETE)


def pack(
    kind: int,
    schema: int,
    op: int,
    flags: int,
    revision: int,
    version: int,
    time_us: int,
    session: int,
    sequence: int,
    key: bytes,
    actor: bytes,
    reason: bytes,
    request_id: bytes,
    cells: bytes,
    old_cells: bytes,
    payload: bytes,
) -> bytes:
    """A body. Positional, because this runs once for every change."""
    keys, actors, reasons, ids = len(key), len(actor), len(reason), len(request_id)
    new, old, contents = len(cells), len(old_cells), len(payload)
    head = _pack_header(
        HEADER_BYTES + keys + actors + reasons + ids + new + old + contents,
        kind, schema, op, flags, keys, ids, revision, version, time_us, session, sequence,
        actors, reasons, new, old, contents,
    )  # fmt: skip
    body = b"".join((head, key, actor, reason, request_id, cells, old_cells, payload))
    return _CRC.pack(crc32(body)) + body


def is_whole(buffer: Buffer, start: int = 0) -> bool:
    """Whether the body at `start` is whole: its length is possible and its crc right."""
    if len(buffer) - start < HEADER_BYTES:
        return False
    crc, length = _CHECK.unpack_from(buffer, start)
    if not HEADER_BYTES <= length <= len(buffer) - start:
        return False
    return bool(crc32(memoryview(buffer)[start + 4 : start + length]) == crc)


def length_at(buffer: Buffer, start: int) -> int:
    return int.from_bytes(buffer[start + 4 : start + 8], "little")


def unpack(buffer: Buffer, start: int = 0) -> Record:
    """Take the body at `start` apart. Raises JournalCorrupt if its crc is wrong, or it says what nobody wrote."""
    try:
        return _unpack(buffer, start)
    except UnicodeDecodeError:
        raise _no_text(start) from None


def _no_text(start: int) -> JournalCorrupt:
    return JournalCorrupt(f"a record at offset {start} has a key or a text that is none", place=f"offset {start}")


def _unpack(buffer: Buffer, start: int) -> Record:
    if not is_whole(buffer, start):
        raise JournalCorrupt(f"a record at offset {start} fails its checksum", place=f"offset {start}")
    (
        _, length, kind, schema, op, flags, key_length, id_length, revision, version, time_us, session, sequence,
        actor_length, reason_length, cells_length, old_length, payload_length,
    ) = _WHOLE.unpack_from(buffer, start)  # fmt: skip
    at = start + HEADER_BYTES
    parts = key_length + id_length + actor_length + reason_length + cells_length + old_length + payload_length
    if length != HEADER_BYTES + parts:
        raise JournalCorrupt(f"a record at offset {start} is longer or shorter than its parts", place=f"offset {start}")
    key = str(buffer[at : at + key_length], "utf-8")
    at += key_length
    actor = str(buffer[at : at + actor_length], "utf-8") if actor_length else ""
    at += actor_length
    reason = str(buffer[at : at + reason_length], "utf-8") if reason_length else ""
    at += reason_length
    request_id = str(buffer[at : at + id_length], "utf-8") if id_length else ""
    at += id_length
    cells = bytes(buffer[at : at + cells_length])
    at += cells_length
    old_cells = bytes(buffer[at : at + old_length])
    at += old_length
    payload = bytes(buffer[at : at + payload_length])
    return Record(
        kind, schema, op, flags, revision, version, time_us, session, sequence,
        key, actor, reason, request_id, cells, old_cells, payload,
    )  # fmt: skip


class Content(NamedTuple):
    """What a reader decodes an entity from."""

    kind: int
    schema: int
    deleted: bool
    revision: int
    version: int
    time_us: int
    key: str
    payload: bytes


def unpack_content(buffer: Buffer, start: int) -> Content:
    """As `unpack`, without what only a feed needs. Raises JournalCorrupt if the crc is wrong, or text is no UTF-8."""
    if not is_whole(buffer, start):
        raise JournalCorrupt(f"a record at offset {start} fails its checksum", place=f"offset {start}")
    try:
        return content_at(buffer, start)
    except UnicodeDecodeError:
        raise _no_text(start) from None


def content_at(buffer: Buffer, start: int) -> Content:
    """The content of a body that is known to be whole: its crc is not looked at."""
    length, kind, schema, flags, key_length, revision, version, time_us, payload_length = _CONTENT.unpack_from(
        buffer, start
    )
    key_start, end = start + HEADER_BYTES, start + length
    return Content(
        kind,
        schema,
        flags & Flags.DELETE > 0,
        revision,
        version,
        time_us,
        str(buffer[key_start : key_start + key_length], "utf-8"),
        bytes(buffer[end - payload_length : end]),
    )


def stored_at(buffer: bytes | mmap, start: int) -> tuple[int, int, int, bool, bytes, bytes]:
    """(length, schema, version, deleted, cells, payload) of a body that this process wrote itself: its crc is not
    looked at.
    """
    length, schema, flags, version, cells_length, old_length, payload_length = _unpack_stored(buffer, start)
    behind = start + length
    payload_start = behind - payload_length
    cells_end = payload_start - old_length
    cells, payload = buffer[cells_end - cells_length : cells_end], buffer[payload_start:behind]
    return length, schema, version, flags & Flags.DELETE != 0, cells, payload


def key_at(buffer: Buffer, start: int) -> bytes:
    """The key of the body at `start`: all that an index lookup compares."""
    length = buffer[start + KEY_LENGTH_OFFSET]
    return bytes(buffer[start + HEADER_BYTES : start + HEADER_BYTES + length])


def revision_at(buffer: Buffer, start: int) -> int:
    """The revision of the body at `start`."""
    return int.from_bytes(buffer[start + REVISION_OFFSET : start + REVISION_OFFSET + 8], "little")


def flags_at(buffer: Buffer, start: int) -> int:
    """The flags of the body at `start`."""
    return int(buffer[start + FLAGS_OFFSET])


def deleted_at(buffer: Buffer, start: int) -> bool:
    """Whether the body at `start` is a tombstone."""
    return bool(buffer[start + FLAGS_OFFSET] & Flags.DELETE)


def version_at(buffer: Buffer, start: int) -> int:
    """The version of the body at `start`."""
    return int.from_bytes(buffer[start + 24 : start + 32], "little")


def kind_at(buffer: Buffer, start: int) -> int:
    """The kind's code of the body at `start`."""
    return int.from_bytes(buffer[start + 8 : start + 10], "little")
