"""A journal entry: one committed turn as bytes, and a journal file as a chain of them.

    file   = header entry*
    header = magic u64 | version u32 | crc u32 | state id, 16 bytes | first entry u64 | crc before it u32 | zeros to 64
    entry  = magic u32 | crc u32 | length u32 | crc of the previous entry u32 | number u64 | revision after it u64
             | time i64 (us) | length of the bodies u32 | length of the private part u32
             | bodies | private part | zeros to a multiple of 8

Little-endian. The crc is over all that follows it up to the length. Bodies are those of `record`; the private part is
msgpack (`Private`): outcomes, sessions, catalog, the engine's own life. Behind the last entry of a file are zeros, or,
where the file was made of a trimmed one, entries with lower numbers: that is the end. Anything else there is a torn
tail, or damage if an entry with a higher number follows.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from zlib_ng.zlib_ng import crc32

from solewriter.shared import record
from solewriter.shared.config import ALIGNMENT, JOURNAL_VERSION
from solewriter.shared.errors import UNDECODABLE, JournalCorrupt, LayoutMismatch, check_depth
from solewriter.shared.kinds.schema import Schema

ENTRY_MAGIC = int.from_bytes(b"SWJE", "little")
FILE_MAGIC = int.from_bytes(b"solejrnl", "little")
_HEAD = struct.Struct("<IIIIQQqII")
_CHECK = struct.Struct("<II")  # of it what the crc is not over: the magic, and the crc
_REST = struct.Struct("<IIQQqII")
HEAD_BYTES = _HEAD.size
_FILE = struct.Struct("<QII16sQI")
FILE_HEADER_BYTES = 64


class Tail(NamedTuple):
    """The last entry of a chain: what the next one follows."""

    number: int
    crc: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a request ended, as it was and will be told."""

    session: int
    sequence: int
    status: int
    revision: int
    detail: Any
    request_id: str | None = None  # the user's own
    digest: bytes | None = None  # of the request's content, where it has such an id


class SessionChange(msgspec.Struct, frozen=True, array_like=True):
    """A session as it is from this entry on."""

    session: int
    client_id: str
    name: str
    epoch: int
    last_sequence: int
    instance: str = ""  # which client object speaks for it: another one cannot send its frames again
    pid: int = 0  # of its process; 0: not known, as in another pid namespace; below 0: of another boot
    born: int = 0  # when that started, see `start_time_of`


class Suspicion(msgspec.Struct, frozen=True):
    """A request that was being decided when engines died, one after the other."""

    session: int
    sequence: int
    deaths: int
    epoch: int  # of the last of them: a death is counted once, however many starts look at it


class Life(msgspec.Struct, frozen=True):
    """The start or the clean end of an engine process."""

    epoch: int
    history: bytes
    durability: str
    boot: str  # of the machine: page cache that survived a kill did not survive a reboot
    drained: bool
    suspicion: Suspicion | None = None
    quarantined: list[tuple[int, int]] = []  # (session, sequence) of requests that are never decided any more


class CheckpointName(msgspec.Struct, frozen=True, array_like=True):
    """Which checkpoint: the entry behind which it was taken, and the sum of its directory, which sums up the rest."""

    entry: int
    crc: int


class SessionState(msgspec.Struct, frozen=True, array_like=True):
    """All that is remembered of a session."""

    change: SessionChange
    floor: int
    gaps: list[tuple[int, int]]
    fenced: list[int]
    outcomes: list[Outcome]  # the oldest first
    waiting: list[int] = []  # sequences of claims that were taken and are not answered


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who holds a task, and until when. As a change with token 0: nobody any more."""

    kind: int
    key: str
    token: int
    session: int
    lease_us: int = 0  # how long it was given; 0: as long as its process lives
    until_us: int = 0  # on CLOCK_MONOTONIC, in the boot of the life that journaled it


class PrivateState(msgspec.Struct, frozen=True):
    """Everything that an engine remembers besides entities, written behind a checkpoint: a replay that begins with the
    checkpoint takes its private part from here on.
    """

    checkpoint: CheckpointName
    life: Life
    sessions: list[SessionState]  # the longest silent first
    request_ids: list[tuple[str, Outcome]]  # the user's own, the oldest first
    request_ids_forgotten: bool
    sequence_forgotten: int  # the highest one of any session that was forgotten
    keys: list[tuple[int, dict[str, int]]]  # by kind: its base, and the last versions of forgotten keys
    leases: list[Lease] = []
    cascades: list[int] = []  # codes of the kinds in which some entity was ever to be cancelled with another


class Slots(msgspec.Struct, frozen=True, array_like=True):
    """Where the records of an entry go, all of one kind and none with a new key: so a start need not look for each key.
    Whoever finds that this does not fit the records looks for their keys.
    """

    kind: int
    slots: bytes  # u32 each, in the order of the records
    lengths: bytes  # u32 each, of the bodies

    @classmethod
    def of(cls, kind: int, slots: Iterable[int], lengths: Iterable[int]) -> Slots:
        return cls(kind, array("I", slots).tobytes(), array("I", lengths).tobytes())

    def unpack(self, size: int) -> tuple[Sequence[int], Sequence[int]]:
        """The slots and the lengths of the bodies; both empty where the bodies do not take `size` bytes together."""
        slots, lengths = memoryview(self.slots), memoryview(self.lengths)
        if len(slots) != len(lengths) or len(slots) % 4:
            return (), ()
        found: tuple[Any, Any] = slots.cast("I"), lengths.cast("I")
        return found if sum(found[1]) == size else ((), ())


class PrivateChanges(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a turn changed besides entities and outcomes. Unknown fields are ignored, so that newer engines may say
    more.
    """

    sessions: list[SessionChange] = []
    forgotten_sessions: list[int] = []
    fenced_ids: list[str] = []  # request ids that were answered NotApplied
    kinds: list[str] = []  # new ones, in the order of their codes
    schemas: list[Schema] = []  # new ones, in the order of their codes
    life: Life | None = None
    slots: dict[int, int] = {}  # by a record's position in the entry: that of a new key which took a used one
    known: Slots | None = None  # those of all records, where no key is new
    waiting: list[tuple[int, int]] = []  # (session, sequence) of claims that were taken and are not answered yet
    leases: list[Lease] = []
    cascades: list[int] = []
    whole: PrivateState | None = None  # then the entry says nothing else, and is the first one of its file


class Private(PrivateChanges, frozen=True, omit_defaults=True):
    """What a turn changed besides entities."""

    outcomes: list[Outcome] = []


class Owner(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Whose an outcome is: as much of it as tells who remembers it."""

    session: int
    sequence: int
    status: int
    revision: int
    detail: msgspec.Raw
    request_id: str | None


class Owners(msgspec.Struct, frozen=True):
    """The same of a whole entry, which takes half of the time that its outcomes take."""

    outcomes: list[Owner] = []


class Lived(msgspec.Struct, frozen=True):
    """The life that an entry, or its private state, tells of; nothing else of it is decoded."""

    life: Life | None = None
    whole: Lived | None = None


_decode_private = msgspec.msgpack.Decoder(Private).decode
_decode_changes = msgspec.msgpack.Decoder(PrivateChanges).decode
_decode_owners = msgspec.msgpack.Decoder(Owners).decode
_decode_lived = msgspec.msgpack.Decoder(Lived).decode
D = TypeVar("D")


class Entry(NamedTuple):
    """An entry, taken apart. `crc` chains the next one to it; `said` is its private part, not decoded yet."""

    number: int
    revision: int
    time_us: int
    crc: int
    bodies: bytes
    said: bytes

    @property
    def private(self) -> Private:
        """Decoded anew each time. Raises JournalCorrupt for what no engine wrote."""
        return self._decode_said(_decode_private)

    @property
    def changes(self) -> PrivateChanges:
        """`private` without the outcomes, which are most of it. Raises JournalCorrupt, likewise."""
        return self._decode_said(_decode_changes)

    @property
    def owners(self) -> list[Owner]:
        """Whose its outcomes are, in their order."""
        return self._decode_said(_decode_owners).outcomes

    @property
    def lived(self) -> Life | None:
        """The life that it tells of, by itself or in its private state."""
        told = self._decode_said(_decode_lived)
        return told.whole.life if told.whole is not None else told.life

    def _decode_said(self, decode: Callable[[bytes], D]) -> D:
        try:
            return decode(self.said)
        except UNDECODABLE as error:
            check_depth(error)
            where = f"entry {self.number}"
            raise JournalCorrupt(f"the private part of {where} cannot be read: {error}", place=where) from error

    def records(self) -> Iterator[bytes]:
        """Each body by itself. Raises JournalCorrupt where their lengths do not add up."""
        start = 0
        while start < len(self.bodies):
            length = record.length_at(self.bodies, start)
            if not record.HEADER_BYTES <= length <= len(self.bodies) - start:
                raise JournalCorrupt(f"a record of entry {self.number} has no length", place=f"entry {self.number}")
            yield self.bodies[start : start + length]
            start += length


def pack(
    number: int, revision: int, time_us: int, previous_crc: int, bodies: list[bytes], private: Private
) -> tuple[bytearray, int]:
    """An entry's bytes and its crc. They are put together once: a turn of large entities is megabytes."""
    said = msgspec.msgpack.encode(private)
    bodies_length = sum(map(len, bodies))
    length = HEAD_BYTES + bodies_length + len(said)
    rest = _REST.pack(length, previous_crc, number, revision, time_us, bodies_length, len(said))
    packed = bytearray().join((bytes(_CHECK.size), rest, *bodies, said, bytes(-length % ALIGNMENT)))
    crc = crc32(memoryview(packed)[_CHECK.size : length])
    packed[: _CHECK.size] = _CHECK.pack(ENTRY_MAGIC, crc)
    return packed, crc


def unpack(buffer: bytes | bytearray | memoryview, start: int) -> tuple[Entry, int, int] | None:
    """(entry, crc that it expects before it, offset behind it), or None if no whole entry begins at `start`.

    Raises JournalCorrupt where one does that says what no engine wrote.
    """
    if len(buffer) - start < HEAD_BYTES:
        return None
    magic, crc, length, previous, number, revision, time_us, bodies_length, said_length = _HEAD.unpack_from(
        buffer, start
    )
    if magic != ENTRY_MAGIC or length != HEAD_BYTES + bodies_length + said_length or start + length > len(buffer):
        return None
    if crc32(buffer[start + 8 : start + length]) != crc:
        return None
    middle = start + HEAD_BYTES + bodies_length
    bodies, said = bytes(buffer[start + HEAD_BYTES : middle]), bytes(buffer[middle : start + length])
    entry = Entry(number, revision, time_us, crc, bodies, said)
    return entry, previous, start + length + -length % ALIGNMENT


def file_header(state_id: bytes, first: int, previous_crc: int) -> bytes:
    rest = struct.pack("<16sQI", state_id, first, previous_crc)
    crc = crc32(struct.pack("<I", JOURNAL_VERSION) + rest)
    return _FILE.pack(FILE_MAGIC, JOURNAL_VERSION, crc, state_id, first, previous_crc).ljust(FILE_HEADER_BYTES, b"\0")


_COMMITTED = struct.Struct("<QII")  # entry number, its crc, crc of these two
COMMITTED_BYTES = 2 * _COMMITTED.size


def committed_note(number: int, crc: int) -> tuple[bytes, int]:
    """What the file `committed` says of the last durable entry, and where: two places take turns, so that one is
    always whole.
    """
    words = struct.pack("<QI", number, crc)
    return words + struct.pack("<I", crc32(words)), number % 2 * _COMMITTED.size


def last_committed(content: bytes) -> Tail | None:
    """The last durable entry, as `committed` has it; None where nothing of that is whole."""
    noted = None
    for start in range(0, len(content) - _COMMITTED.size + 1, _COMMITTED.size):
        number, crc, check = _COMMITTED.unpack_from(content, start)
        if check == crc32(content[start : start + 12]):
            noted = max(Tail(number, crc), noted or Tail(0, 0))
    return noted


class FileStart(NamedTuple):
    state_id: bytes
    first: int
    previous_crc: int


def read_file_header(path: Path, buffer: bytes) -> FileStart:
    """Raises JournalCorrupt for a damaged header, LayoutMismatch for a newer format."""
    if len(buffer) < FILE_HEADER_BYTES:
        raise JournalCorrupt(f"{path.name} is shorter than its header", place=f"{path.name}:0")
    magic, version, crc, state_id, first, previous_crc = _FILE.unpack_from(buffer, 0)
    if magic == FILE_MAGIC and not 1 <= version <= JOURNAL_VERSION:
        raise LayoutMismatch(
            f"{path.name} has journal format {version}; this version of solewriter reads up to {JOURNAL_VERSION}"
        )
    expected = crc32(struct.pack("<I", version) + struct.pack("<16sQI", state_id, first, previous_crc))
    if magic != FILE_MAGIC or crc != expected:
        raise JournalCorrupt(f"the header of {path.name} is damaged", place=f"{path.name}:0")
    return FileStart(state_id, first, previous_crc)


def later_entry(buffer: bytes | bytearray, start: int, number: int) -> int | None:
    """Offset of a whole entry numbered above `number` behind `start`: the proof that a bad one is damage, not a torn
    tail.
    """
    magic = ENTRY_MAGIC.to_bytes(4, "little")
    at = buffer.find(magic, start)
    while at >= 0:
        if at % ALIGNMENT == 0 and number_at(buffer, at) > number and unpack(buffer, at) is not None:
            return at
        at = buffer.find(magic, at + 1)
    return None


def later_entries(buffer: bytes, start: int, number: int) -> Iterator[Entry]:
    """All whole entries numbered above `number` behind `start`, whatever lies between."""
    while (at := later_entry(buffer, start, number)) is not None:
        found = unpack(buffer, at)
        assert found is not None, "it is whole"
        entry, _, start = found
        yield entry


def number_at(buffer: bytes | bytearray, start: int) -> int:
    """The number of the entry that begins at `start`."""
    return int.from_bytes(buffer[start + 16 : start + 24], "little")


def length_at(buffer: bytes, start: int) -> int:
    """Bytes of the entry that begins at `start`, if it is one; 0 if there is no magic."""
    if int.from_bytes(buffer[start : start + 4], "little") != ENTRY_MAGIC:
        return 0
    return int.from_bytes(buffer[start + 8 : start + 12], "little")
