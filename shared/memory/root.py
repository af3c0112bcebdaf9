"""The root: the one segment that is known by name, and the ring of roots that makes a batch visible by a single store.

    0    magic u64 | layout version u32 | ring size u32 | epoch u64 | pid u64 | its start time u64 | started us i64
    48   history id, 16 bytes
    64   head u64: number of the newest published root; its low half is the futex that waiters sleep on
    128  live tail u64: end of the records whose heads and cells may be installed; moved before they are
    136  readable from u64: oldest heap segment that still holds its bytes
    144  heartbeat u64: CLOCK_MONOTONIC microseconds
    152  successor u64: 0 none, 1 superseded by a newer engine, 2 stopped
    160  session and sequence, u64 each, of the request that was taken up last
    176  durability u64: position in DURABILITIES
    184  sessions remembered u64 | 192  sessions connected u64: as of the last heartbeat
    200  heartbeat period u64, microseconds: 0 until the engine serves
    208  held bytes u64: of segments that no root lists, but older snapshots still map
    216  forgotten u64: revision of the youngest tombstone that was dropped; moved before its slot is vacated
    224  deciding u64: 1 while that request is being decided, 0 from the end of the turn's deciding on
    256  ring: root n lies in place n % ring size

A root is a header with a crc, then (slots u32, live u32) of each kind. To publish: fill the next place of the ring,
store the head word, wake. To pin: load the head, copy that root, check that the ring did not come round meanwhile and
that the crc holds.
"""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

from zlib_ng.zlib_ng import crc32

from solewriter.shared.config import DURABILITIES, KINDS_MAX, MEMORY_VERSION, PIN_TRIES, ROOT_RING
from solewriter.shared.errors import LayoutMismatch
from solewriter.shared.memory.futex import Word
from solewriter.shared.memory.segment import Segment

MAGIC = int.from_bytes(b"solewrit", "little")

_FIXED: Final = struct.Struct("<QIIQQQq16s")
_ROOT: Final = struct.Struct("<IIQQQQQQIIIIQ")
_KINDS: Final = struct.Struct("<II")
_PLACE_BYTES: Final = 640
_RING: Final = 256
ROOT_BYTES: Final = _RING + ROOT_RING * _PLACE_BYTES
assert _ROOT.size + KINDS_MAX * _KINDS.size <= _PLACE_BYTES

# Words, by their place.
_HEAD: Final = 8
_TAIL: Final = 16
READABLE: Final = 17
_HEARTBEAT: Final = 18
_SUCCESSOR: Final = 19
_DECIDING: Final = 20  # and 21
_DURABILITY: Final = 22
_SESSIONS: Final = 23
_CONNECTED: Final = 24
_PERIOD: Final = 25
_HELD: Final = 26
FORGOTTEN: Final = 27
_IN_DECIDE: Final = 28
_CATALOG: Final = 8  # of a place in the ring; the low half
SUPERSEDED, STOPPED = 1, 2


class Root(NamedTuple):
    """What one revision consists of. `kinds[code]` = (slots handed out, entities alive)."""

    number: int
    revision: int
    entry: int  # of the journal
    oldest: int  # the oldest revision of which, and behind which, every record is in memory
    whole: int  # the oldest revision of which every entity is: what was overtaken earlier may be gone
    tail: int
    first_segment: int
    last_segment: int
    catalog: int  # which catalog segment describes the kinds
    log_first: int  # first segment of the revision log
    log_points: int
    kinds: tuple[tuple[int, int], ...]


def root_of_files(revision: int, entry: int, oldest: int, kinds: tuple[tuple[int, int], ...]) -> Root:
    """A root for a state that was read from its folder: no memory is behind it."""
    return Root(
        number=0, revision=revision, entry=entry, oldest=oldest, whole=oldest, tail=0, first_segment=0, last_segment=0,
        catalog=0, log_first=0, log_points=0, kinds=kinds,
    )  # fmt: skip


class RootWriter:
    """The engine's half: nobody else writes the root."""

    def __init__(self, segment: Segment, epoch: int, pid: int, start_time: int, durability: str) -> None:
        self.segment = segment
        self._words = segment.words
        self._map = segment.map
        _FIXED.pack_into(
            segment.map, 0, MAGIC, MEMORY_VERSION, ROOT_RING, epoch, pid, start_time, time.time_ns() // 1000, bytes(16)
        )
        self._words[_DURABILITY] = DURABILITIES.index(durability)
        self._words[READABLE] = 1
        self._futex = Word(segment.map, _HEAD * 8)
        self._number = 0
        self._kinds: tuple[tuple[int, int], ...] = ()  # of the root that was filled last, and how they are written
        self._pairs = b""
        self.beat()

    def remember(self, history: bytes) -> None:
        """Set the history id, before this memory is announced."""
        self._map[48:64] = history

    def move_tail(self, tail: int) -> None:
        """Before any head or cell of the records below it is installed: scans look up singly what lies behind their
        own tail.
        """
        self._words[_TAIL] = tail

    def fill(self, root: Root) -> None:
        """Write the next root into the ring, where no reader looks yet. `root.number` is given here."""
        self._number += 1
        if root.kinds != self._kinds:
            self._kinds, self._pairs = root.kinds, b"".join([_KINDS.pack(*pair) for pair in root.kinds])
        body = _ROOT.pack(0, len(root.kinds), self._number, *root[1:11])[4:] + self._pairs
        place = _RING + self._number % ROOT_RING * _PLACE_BYTES
        self._map[place : place + 4 + len(body)] = crc32(body).to_bytes(4, "little") + body

    def show(self) -> None:
        """One store makes the filled root, and with it the whole batch, visible."""
        self._words[_HEAD] = self._number

    def wake(self) -> None:
        self._futex.wake()

    def beat(self, sessions: int = 0, connected: int = 0, period_us: int = 0) -> None:
        """Show that the engine lives, how many sessions it remembers and has connected, and when it beats again. The
        beat comes last: whoever sees it sees the counts.
        """
        self._words[_SESSIONS] = sessions
        self._words[_CONNECTED] = connected
        self._words[_PERIOD] = period_us
        self._words[_HEARTBEAT] = time.monotonic_ns() // 1000

    def expire(self, segment: int) -> None:
        """Before heap segments below this one lose their bytes."""
        self._words[READABLE] = max(self._words[READABLE], segment)

    def forget(self, revision: int) -> None:
        """Before the slots of tombstones up to this revision are vacated: whoever holds an older snapshot must not take
        an empty slot for an answer.
        """
        self._words[FORGOTTEN] = max(self._words[FORGOTTEN], revision)

    def hold(self, held_bytes: int) -> None:
        """Say how much memory only older snapshots keep."""
        self._words[_HELD] = held_bytes

    def begin_deciding(self, session: int, sequence: int) -> None:
        """Name the request being decided, for whoever finds this memory after the engine died in it."""
        words = self._words
        words[_DECIDING] = session
        words[_DECIDING + 1] = sequence
        words[_IN_DECIDE] = 1

    def end_deciding(self) -> None:
        """The request that `begin_deciding` named is decided: whatever ends the engine from now on, it is not that."""
        self._words[_IN_DECIDE] = 0

    def succeed(self, how: int) -> None:
        """Tell readers to look for the successor (SUPERSEDED) or that there is none (STOPPED)."""
        self._words[_SUCCESSOR] = how
        self.wake()


def succeed(segment: Segment, how: int) -> None:
    """Say in the root of a dead engine how it is succeeded (SUPERSEDED, STOPPED), and wake its readers."""
    segment.words[_SUCCESSOR] = how
    Word(segment.map, _HEAD * 8).wake()


class RootReader:
    """The readers' half. Raises LayoutMismatch for a root of another format."""

    def __init__(self, segment: Segment) -> None:
        self.words = segment.words
        self._map = segment.map
        magic, layout, ring, self.epoch, self.pid, self.start_time, _, self.history = _FIXED.unpack_from(segment.map, 0)
        known = self.words[_DURABILITY] < len(DURABILITIES)
        if magic != MAGIC or layout != MEMORY_VERSION or ring != ROOT_RING or not known:
            raise LayoutMismatch(
                f"{segment.path} has layout {layout}, this library reads {MEMORY_VERSION}: "
                "use the same version as the engine"
            )
        self._futex = Word(segment.map, _HEAD * 8)

    @property
    def head(self) -> int:
        """Number of the newest root; 0 before the first publish."""
        return self.words[_HEAD]

    @property
    def catalog(self) -> int:
        """Number of the newest catalog."""
        return self.words[(_RING + self.words[_HEAD] % ROOT_RING * _PLACE_BYTES >> 3) + _CATALOG] & 0xFFFFFFFF

    @property
    def live_tail(self) -> int:
        return self.words[_TAIL]

    @property
    def readable_from(self) -> int:
        return self.words[READABLE]

    @property
    def successor(self) -> int:
        return self.words[_SUCCESSOR]

    @property
    def heartbeat_us(self) -> int:
        return self.words[_HEARTBEAT]

    @property
    def heartbeat_period_us(self) -> int:
        """How often the engine beats; 0 as long as it only recovers."""
        return self.words[_PERIOD]

    @property
    def sessions(self) -> int:
        """Sessions that the engine remembered at its last heartbeat."""
        return self.words[_SESSIONS]

    @property
    def connected(self) -> int:
        """Sessions that had a lane at the engine's last heartbeat."""
        return self.words[_CONNECTED]

    @property
    def forgotten(self) -> int:
        """Revision of the youngest tombstone that was dropped."""
        return self.words[FORGOTTEN]

    @property
    def held_bytes(self) -> int:
        """Memory that only older snapshots keep, as of the last heartbeat."""
        return self.words[_HELD]

    @property
    def durability(self) -> str:
        return DURABILITIES[self.words[_DURABILITY]]

    @property
    def deciding(self) -> tuple[int, int]:
        """(session, sequence) of the request that was taken up last; zeros before the first one."""
        return self.words[_DECIDING], self.words[_DECIDING + 1]

    @property
    def died_deciding(self) -> tuple[int, int] | None:
        """Of an engine that is dead: (session, sequence) of the request in which it died; None if it was at none."""
        return self.deciding if self.words[_IN_DECIDE] else None

    def current(self) -> Root:
        """The newest published root, whole."""
        for _ in range(PIN_TRIES):
            number = self.words[_HEAD]
            place = _RING + number % ROOT_RING * _PLACE_BYTES
            copy = self._map[place : place + _PLACE_BYTES]
            if self.words[_HEAD] - number >= ROOT_RING - 1:
                continue
            fields = _ROOT.unpack_from(copy)
            end = _ROOT.size + fields[1] * _KINDS.size
            if end <= _PLACE_BYTES and fields[2] == number and crc32(copy[4:end]) == fields[0]:
                return Root._make((*fields[2:], tuple(_KINDS.iter_unpack(copy[_ROOT.size : end]))))
        raise LayoutMismatch("the root of the shared memory cannot be read: its checksum fails")

    def sleep(self, head: int, timeout_s: float) -> None:
        """Sleep until the head word moves on from `head`, somebody wakes us, or the time is over."""
        self._futex.wait(head & 0xFFFFFFFF, timeout_s)
