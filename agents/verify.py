"""Whether a state folder is sound: everything in it is read, checked and replayed; nothing is written.

Every checksum, every number: entries follow each other, revisions have no gap, versions of an entity go up by one, and
never down where it was deleted and perhaps forgotten. The journal is replayed in a plain dict, from the oldest
checkpoint or the beginning on, and wherever another checkpoint was taken, the digests of both states must be the same.
Beside a running engine it reads up to what was committed when it began.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from solewriter.agents.reading.journal import Files, raise_corrupt, retry_when_trimmed
from solewriter.shared import record
from solewriter.shared.errors import Compacted
from solewriter.shared.journal.chain import named_checkpoints, open_checkpoint
from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files, checkpoint_path
from solewriter.shared.journal.entry import Entry
from solewriter.shared.journal.setaside import is_aside
from solewriter.shared.journal.statedigest import DigestOfState


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
    drops: tuple[int, int] | None = None  # the first and the last entry behind that, which the next start will give up


def verify(folder: Path) -> Verified:
    """Read everything. Raises JournalCorrupt naming the first bad place, LayoutMismatch, EngineUnavailable for a folder
    without a journal.
    """
    return retry_when_trimmed(lambda: _verify(folder))


def _verify(folder: Path) -> Verified:
    files = Files(folder)
    replay = Replay(folder, files.begin)
    for entry, place in files.entries():
        if entry.number > files.begin:
            replay.follow(entry, place)
    return replay.finish(files.torn_bytes, files.drops)


class Replay:
    """The state as the journal tells it: of each key its newest body."""

    def __init__(self, folder: Path, begin: int) -> None:
        self._folder = folder
        self._checkpoints = checkpoint_files(folder)
        self._newest: dict[tuple[int, bytes], bytes] = {}
        self._entries = self._records = self._compared = 0
        self._revision = self._first_revision = 0
        if begin:
            with open_checkpoint(folder, begin) as checkpoint:
                self._begin_with(checkpoint)

    def _begin_with(self, checkpoint: Checkpoint) -> None:
        checkpoint.verify()
        for _, body in checkpoint.records():
            self._newest[record.kind_at(body, 0), record.key_at(body, 0)] = body
        self._revision = self._first_revision = checkpoint.directory.revision
        self._compare(checkpoint)

    def follow(self, entry: Entry, place: str) -> None:
        """Check the next entry of the journal, and take its records. Raises JournalCorrupt, naming `place`."""
        self._entries += 1
        open_request = False
        for body in entry.records():
            if not record.is_whole(body):
                raise_corrupt("a record fails its checksum", place)
            found = record.unpack(body)
            first, last = bool(found.flags & record.Flags.FIRST), bool(found.flags & record.Flags.LAST)
            if first is open_request or found.revision != self._revision + first:
                raise_corrupt(f"a record of revision {found.revision} follows one of {self._revision}", place)
            self._revision, open_request = found.revision, not last
            self._follow_key(found, body, place)
        if open_request or entry.revision != self._revision:
            raise_corrupt(f"the entry says revision {entry.revision}, its records end with {self._revision}", place)
        self._check_private(entry, place)
        if entry.number in self._checkpoints:
            with open_checkpoint(self._folder, entry.number) as checkpoint:
                checkpoint.verify()
                self._compare(checkpoint)

    def _follow_key(self, found: record.Record, body: bytes, place: str) -> None:
        self._records += 1
        key = found.kind, record.key_at(body, 0)
        before = self._newest.get(key)
        gone = before is None or record.deleted_at(before, 0)
        least = record.version_at(before, 0) + 1 if before is not None else 1
        if found.version < least or (found.version > least and not gone):  # what is gone may have been forgotten
            raise_corrupt(f"version {found.version} of {found.key!r} follows {least - 1}", place)
        if found.deleted and gone:
            raise_corrupt(f"{found.key!r} is deleted, and was not there", place)
        self._newest[key] = body

    def _check_private(self, entry: Entry, place: str) -> None:
        whole = entry.private.whole
        if whole is not None and whole.checkpoint.entry >= entry.number:
            raise_corrupt(f"entry {entry.number} names a checkpoint of later", place)
        if whole is not None and whole.checkpoint.entry in self._checkpoints:
            with open_checkpoint(self._folder, whole.checkpoint.entry) as checkpoint:
                if checkpoint.name != whole.checkpoint:
                    name = checkpoint.path.name
                    raise_corrupt(f"{name} is not the one that entry {entry.number} names", f"{name}:0")

    def _compare(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.path.name
        check_places(checkpoint)
        if checkpoint.directory.revision != self._revision:
            raise_corrupt(f"{name} is of revision {checkpoint.directory.revision}, not {self._revision}", f"{name}:0")
        if checkpoint.directory.digest != self._digest():
            raise_corrupt(f"{name} holds another state than the journal tells", f"{name}:0")
        self._compared += 1

    def _digest(self) -> bytes:
        digest = DigestOfState()
        digest.add_all(self._live_bodies())
        return digest.digest()

    def _live_bodies(self) -> Iterator[bytes]:
        return (body for body in self._newest.values() if not record.deleted_at(body, 0))

    def _check_beginning(self) -> None:
        """A start needs the newest checkpoint, or that it was set aside."""
        newest = next(named_checkpoints(self._folder), None)
        if newest is None or newest.entry in self._checkpoints or is_aside(self._folder, newest.entry):
            return
        if (
            next(named_checkpoints(self._folder), None) != newest
            or checkpoint_path(self._folder, newest.entry).exists()
        ):
            raise Compacted("checkpoints were made meanwhile", oldest=0)
        name = checkpoint_path(self._folder, newest.entry).name
        raise_corrupt(f"{name} is missing, and a start begins with it", f"{name}:0")

    def finish(self, torn_bytes: int, drops: tuple[int, int] | None = None) -> Verified:
        """What was found, behind the last entry. Raises JournalCorrupt where the checkpoint is missing that a start
        needs.
        """
        self._check_beginning()
        entities = sum(1 for _ in self._live_bodies())
        return Verified(
            self._first_revision, self._revision, self._entries, self._records, entities, self._compared, torn_bytes,
            self._digest().hex(), drops,
        )  # fmt: skip


def check_places(checkpoint: Checkpoint) -> None:
    """A start puts a checkpoint back as it is: each record must be where its key's slot says, and nowhere else."""
    name, tables = checkpoint.path.name, checkpoint.directory.tables
    keys = [checkpoint.keys(kind) for kind in range(len(tables))]
    heads = [checkpoint.heads(kind) for kind in range(len(tables))]
    found, alive = [0] * len(tables), [0] * len(tables)
    for address, slot, body in checkpoint.placed_records():
        kind, key = record.kind_at(body, 0), record.key_at(body, 0).decode()
        if kind >= len(tables) or slot >= len(keys[kind]) or keys[kind][slot] != key or heads[kind][slot] != address:
            raise_corrupt(f"{name} does not find {key!r} where it lies", f"{name}:0")
        found[kind] += 1
        alive[kind] += not record.deleted_at(body, 0)
    said = [sum(1 for head in one if head) for one in heads]
    if found != said or alive != [table.alive for table in tables]:
        raise_corrupt(f"{name} has other entities than it says", f"{name}:0")
