"""Whether a state folder is sound: everything in it is read, checked and replayed; nothing is written.

Every checksum, every number: entries follow each other, revisions have no gap, versions of an entity go up by one. The
journal is replayed in a plain dict, from the oldest checkpoint or the beginning on, and wherever another checkpoint was
taken, the digests of both states must be the same. Beside a running engine it reads up to what was committed when it
began.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from solewriter.shared import entry as entries
from solewriter.shared import record
from solewriter.shared.chain import first_of, journal_files, oldest_entry, opened
from solewriter.shared.checkpoint import Checkpoint, DigestOfState, checkpoint_files
from solewriter.shared.entry import FILE_HEADER_BYTES, Entry
from solewriter.shared.errors import Compacted, EngineUnavailable, JournalCorrupt


class Verified(NamedTuple):
    """What was found sound."""

    first_revision: int  # the oldest that can be looked back to
    revision: int
    entries: int
    records: int
    entities: int
    checkpoints: int
    torn_bytes: int  # behind the last entry: of one that was never committed
    digest: str  # of the newest state


def verify(folder: Path) -> Verified:
    """Read everything. Raises JournalCorrupt naming the first bad place, LayoutMismatch, EngineUnavailable for a folder
    without a journal.
    """
    if not journal_files(folder):
        raise EngineUnavailable(f"nothing is journaled in {folder}")
    committed = _committed(folder)
    try:
        begin = oldest_entry(folder)
    except Compacted as error:
        bad(f"no checkpoint is there from which the journal goes on: {error}", str(folder))
    replay = Replay(folder, begin)
    files = Files(folder)
    for entry, place in files.entries():
        if entry.number == committed[0] and entry.crc != committed[1]:
            bad(f"entry {entry.number} is not the one that was committed", place)
        if entry.number > begin:
            replay.follow(entry, place)
    if files.last < committed[0]:
        raise JournalCorrupt(
            f"entries {files.last + 1} to {committed[0]} were committed and are not in the journal any more",
            place=files.end,
        )
    return replay.verified(files.torn_bytes)


def _committed(folder: Path) -> tuple[int, int]:
    """Number and crc of the last entry that is known to be durable; 0 if none is."""
    try:
        return entries.last_committed((folder / "committed").read_bytes()) or (0, 0)
    except FileNotFoundError:
        return 0, 0


class Files:
    """The journal's files as one chain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state_id: bytes | None = None
        self._crc: int | None = None
        self.last = 0  # number of the last entry
        self.end = str(folder)  # the place behind it
        self.torn_bytes = 0

    def entries(self) -> Iterator[tuple[Entry, str]]:
        """Each with its place. Raises JournalCorrupt."""
        for path in journal_files(self._folder):
            buffer = path.read_bytes()
            self._begin(path, buffer)
            yield from self._of(path, buffer)

    def _begin(self, path: Path, buffer: bytes) -> None:
        start = entries.read_file_header(path, buffer)
        if self._state_id not in (None, start.state_id):
            bad(f"{path.name} belongs to another state", f"{path.name}:0")
        if start.first != first_of(path) or (self._crc is not None and start.first != self.last + 1):
            bad(f"{path.name} begins with entry {start.first}, and entry {self.last + 1} is next", f"{path.name}:0")
        if self._crc not in (None, start.previous_crc):
            bad(f"{path.name} does not follow entry {self.last}", f"{path.name}:0")
        self._state_id, self._crc, self.last = start.state_id, start.previous_crc, start.first - 1

    def _of(self, path: Path, buffer: bytes) -> Iterator[tuple[Entry, str]]:
        at = FILE_HEADER_BYTES
        while (found := entries.unpack(buffer, at)) is not None and found[0].number > self.last:
            entry, previous, behind = found
            if entry.number != self.last + 1 or previous != self._crc:
                bad(f"entry {entry.number} does not follow entry {self.last}", f"{path.name}:{at}")
            self.last, self._crc = entry.number, entry.crc
            yield entry, f"{path.name}:{at}"
            at = behind
        self.end = f"{path.name}:{at}"
        if entries.later_entry(buffer, at, self.last) is not None:
            bad(f"{path.name} is damaged at offset {at}: a later entry is whole", self.end)
        self.torn_bytes = entries.length_at(buffer, at) if found is None else 0


class Replay:
    """The state as the journal tells it: of each key its newest body."""

    def __init__(self, folder: Path, begin: int) -> None:
        self._checkpoints = checkpoint_files(folder)
        self._newest: dict[tuple[int, bytes], bytes] = {}
        self._entries = self._records = self._compared = 0
        self._revision = self._first_revision = 0
        if begin:
            with opened(folder, begin) as checkpoint:
                self._begin_with(checkpoint)

    def _begin_with(self, checkpoint: Checkpoint) -> None:
        checkpoint.verify()
        for _, body in checkpoint.records():
            self._newest[record.kind_at(body, 0), record.key_at(body, 0)] = body
        self._revision = self._first_revision = checkpoint.directory.revision
        self._compare(checkpoint)

    def follow(self, entry: Entry, place: str) -> None:
        """One more entry. Raises JournalCorrupt."""
        self._entries += 1
        open_request = False
        for body in entry.records():
            if not record.checked(body):
                bad("a record fails its checksum", place)
            found = record.unpack(body)
            first, last = bool(found.flags & record.Flags.FIRST), bool(found.flags & record.Flags.LAST)
            if first is open_request or found.revision != self._revision + first:
                bad(f"a record of revision {found.revision} follows one of {self._revision}", place)
            self._revision, open_request = found.revision, not last
            self._follow_key(found, body, place)
        if open_request or entry.revision != self._revision:
            bad(f"the entry says revision {entry.revision}, its records end with {self._revision}", place)
        self._check_private(entry, place)
        if entry.number in self._checkpoints:
            with Checkpoint(self._checkpoints[entry.number]) as checkpoint:
                checkpoint.verify()
                self._compare(checkpoint)

    def _follow_key(self, found: record.Record, body: bytes, place: str) -> None:
        self._records += 1
        key = found.kind, record.key_at(body, 0)
        before = self._newest.get(key)
        if before is not None and found.version != record.version_at(before, 0) + 1:
            bad(f"version {found.version} of {found.key!r} follows {record.version_at(before, 0)}", place)
        if found.deleted and (before is None or record.deleted_at(before, 0)):
            bad(f"{found.key!r} is deleted, and was not there", place)
        self._newest[key] = body

    def _check_private(self, entry: Entry, place: str) -> None:
        whole = entry.private.whole
        if whole is not None and whole.checkpoint.entry >= entry.number:
            bad(f"entry {entry.number} names a checkpoint of later", place)
        if whole is not None and (path := self._checkpoints.get(whole.checkpoint.entry)) is not None:
            with Checkpoint(path) as checkpoint:
                if checkpoint.name != whole.checkpoint:
                    bad(f"{path.name} is not the one that entry {entry.number} names", f"{path.name}:0")

    def _compare(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.path.name
        if checkpoint.directory.revision != self._revision:
            bad(f"{name} is of revision {checkpoint.directory.revision}, not {self._revision}", f"{name}:0")
        if checkpoint.directory.digest != self._digest():
            bad(f"{name} holds another state than the journal tells", f"{name}:0")
        self._compared += 1

    def _digest(self) -> bytes:
        digest = DigestOfState()
        for body in self._alive():
            digest.add(body)
        return digest.digest()

    def _alive(self) -> Iterator[bytes]:
        return (body for body in self._newest.values() if not record.deleted_at(body, 0))

    def verified(self, torn_bytes: int) -> Verified:
        entities = sum(1 for _ in self._alive())
        return Verified(
            self._first_revision, self._revision, self._entries, self._records, entities, self._compared, torn_bytes,
            self._digest().hex(),
        )  # fmt: skip


def bad(what: str, place: str) -> NoReturn:
    raise JournalCorrupt(what, place=place)
