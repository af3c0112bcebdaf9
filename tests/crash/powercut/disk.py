"""Which disks a power cut may leave behind, rebuilt from a log of operations.

The model is that of a Linux file system under the page cache, and no kinder than it has to be:

- A sector of 512 bytes reaches the disk whole, at any time and in any order. So after a cut each sector of a file holds
  what it held at *some* moment since the last sync of that file that began after it was written: never a later write
  without the earlier one to the same sector, but one write may be torn between sectors, lost, or kept without those
  before it.
- A file's length is at one of its moments, too; what is within it and was never written reads as zeros.
- A truncation is in the journal of the file system: what is written after it is never seen without it.
- Names change atomically. Those that no sync of the folder covers have happened up to some point (`names="ordered"`, as
  on ext4, xfs and btrfs), or any of them has without any other (`names="any"`, all that POSIX promises).
- Syncing a file says nothing about its name, and renaming it nothing about its content.
- A failed sync loses the right to hope: the kernel marks the pages clean, so what was pending then may never reach the
  disk, whatever later syncs say, until it is written again.

All combinations are given where there are few, and a sample by a seed where there are many: everything lost or kept,
each single write lost or kept alone or the last to be kept, the last one torn either way, and random ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import NamedTuple

from powercut.log import Log, Operation

SECTOR = 512
FEW = 48  # combinations up to which all are given
NEAR = 6  # writes that are looked at one by one; those before them were the newest at an earlier cut

Names = dict[str, int]
Content = tuple[str, bytes]  # how it came about, and what it is


class Image(NamedTuple):
    """One legal disk: files by name, after so many operations of the log."""

    at: int
    files: dict[str, bytes]
    how: str


class Piece(NamedTuple):
    """A pending change of a file: bytes at a place, or only a length."""

    offset: int
    data: bytes
    size: int  # of the file after it
    doomed: bool  # a sync failed since

    @property
    def sectors(self) -> range:
        return range(self.offset // SECTOR, -(-(self.offset + len(self.data)) // SECTOR)) if self.data else range(0)


class File:
    """One file: what is surely on the disk, and what may be."""

    def __init__(self) -> None:
        self.durable = b""
        self._base = b""  # what the pending pieces are written over: not the same after a truncation
        self._pieces: list[tuple[int, Piece]] = []
        self._size = 0
        self._contents: list[Content] | None = None

    def write(self, index: int, offset: int, data: bytes) -> None:
        self._size = max(self._size, offset + len(data))
        self._pieces.append((index, Piece(offset, data, self._size, False)))
        self._contents = None

    def truncate(self, index: int, length: int) -> None:
        if length >= self._size:
            self._size = length
            self._pieces.append((index, Piece(0, b"", length, False)))
        else:
            self._base, self._pieces, self._size = self.now()[:length], [], length
        self._contents = None

    def now(self) -> bytes:
        """What a read gives."""
        return self._made({}, len(self._pieces), len(self._pieces))

    def sync(self, begun: int) -> None:
        """What was written before is durable, but for sectors that an earlier failure left clean."""
        before = [piece for index, piece in self._pieces if index < begun]
        fresh = {sector for piece in before if not piece.doomed for sector in piece.sectors}
        content = bytearray(self._base.ljust(max([len(self._base), *(piece.size for piece in before)]), b"\0"))
        lost = []
        for piece in before:
            for part in _parts(piece):
                if part.offset // SECTOR in fresh:
                    content[part.offset : part.offset + len(part.data)] = part.data
                else:
                    lost.append((-1, part))
        self.durable = self._base = bytes(content)
        self._pieces = [*lost, *((index, piece) for index, piece in self._pieces if index >= begun)]
        self._contents = None

    def doom(self, begun: int) -> None:
        """A sync failed: what it should have covered will not be written by itself any more."""
        self._pieces = [
            (index, piece._replace(doomed=True) if index < begun else piece) for index, piece in self._pieces
        ]
        self._contents = None

    # --- after a cut -------------------------------------------------------------------------------------------------

    def contents(self, draw: random.Random) -> list[Content]:
        """What it may hold; first everything, then nothing of what is pending."""
        if self._contents is None:
            found: dict[bytes, str] = {}
            for how, content in self._variants(draw):
                found.setdefault(content, how)
            self._contents = [(how, content) for content, how in found.items()]
        return self._contents

    def _variants(self, draw: random.Random) -> Iterator[Content]:
        count = len(self._pieces)
        yield "all", self.now()
        yield "none", self.durable
        if self._base != self.durable:
            yield "truncated", self._base
        if not count:
            return
        versions = self._versions()
        yield "only its length", self._made({}, 0, count)
        several = 1
        for one in versions.values():
            several *= len(one)
        if several <= FEW:
            for picked in product(*versions.values()):
                chosen = dict(zip(versions, picked, strict=True))
                yield f"sectors {chosen}", self._made(chosen, 0, count)
            return
        yield from self._one_by_one(count)
        for _ in range(NEAR):
            chosen = {sector: draw.choice(one) for sector, one in versions.items()}
            yield f"sectors {chosen}", self._made(chosen, 0, count)

    def _one_by_one(self, count: int) -> Iterator[Content]:
        for number in range(max(0, count - NEAR), count):
            own = self._pieces[number][1].sectors
            yield f"without {number}", self._made(dict.fromkeys(own, number), count, count)
            yield f"only {number}", self._made(dict.fromkeys(own, number + 1), 0, number + 1)
            yield f"up to {number}", self._made({}, number + 1, number + 1)
        last = self._pieces[-1][1].sectors
        for cut in islice(last, 1, None, max(1, len(last) // 8)):
            yield f"torn before {cut}", self._made(dict.fromkeys(range(cut, last.stop), count - 1), count, count)
            yield f"torn behind {cut}", self._made(dict.fromkeys(range(last.start, cut), count - 1), count, count)

    def _versions(self) -> dict[int, list[int]]:
        """Of each sector: after how many of the pieces it looks in which way."""
        versions: dict[int, list[int]] = {}
        for number, (_, piece) in enumerate(self._pieces):
            for sector in piece.sectors:
                versions.setdefault(sector, [0]).append(number + 1)
        return versions

    def _made(self, kept: Mapping[int, int], others: int, sized: int) -> bytes:
        """With each sector as it was after so many of the pieces, `kept` or `others`, and the length after `sized`."""
        size = max([len(self._base), *(piece.size for _, piece in self._pieces[:sized])])
        content = bytearray(self._base.ljust(size, b"\0"))
        for number, (_, piece) in enumerate(self._pieces):
            for sector in piece.sectors:
                if number < kept.get(sector, others):
                    begin = max(piece.offset, sector * SECTOR)
                    end = min(piece.offset + len(piece.data), (sector + 1) * SECTOR, size)
                    if begin < end:
                        content[begin:end] = piece.data[begin - piece.offset : end - piece.offset]
        return bytes(content)


def _parts(piece: Piece) -> Iterator[Piece]:
    """A piece's sectors, one by one."""
    for sector in piece.sectors:
        begin = max(piece.offset, sector * SECTOR)
        data = piece.data[begin - piece.offset : (sector + 1) * SECTOR - piece.offset]
        yield piece._replace(offset=begin, data=data)


class NameChange(NamedTuple):
    """A name that comes or goes."""

    index: int
    file: int
    gone: str
    come: str


class Disk:
    """The folder on its disk, while the log goes on."""

    def __init__(self, names: str = "ordered") -> None:
        self._any = names == "any"
        self._files: dict[int, File] = {}
        self._names: Names = {}  # as the process sees them
        self._durable: Names = {}
        self._changes: list[NameChange] = []
        self._begun: dict[tuple[int, int], int] = {}
        self.folder_made = self.folder_durable = False

    def take(self, index: int, operation: Operation) -> None:
        """The next operation."""
        kind, file = operation.kind, operation.file
        if kind == "create":
            self._files[file] = File()
            self._rename(index, file, "", operation.name)
        elif kind == "rename":
            self._rename(index, self._names[operation.name], operation.name, operation.to)
        elif kind == "unlink" and operation.name in self._names:
            self._rename(index, self._names[operation.name], operation.name, "")
        elif kind == "write":
            self._files[file].write(index, operation.offset, operation.data)
        elif kind == "truncate":
            self._files[file].truncate(index, operation.length)
        elif kind == "allocate":
            at_least = operation.offset + operation.length
            self._files[file].truncate(index, max(at_least, len(self._files[file].now())))
        elif kind == "begin":
            self._begun[self._token(operation)] = index
        elif kind in ("sync", "sync-failed", "sync-folder"):
            self._sync(kind, file, self._begun.pop(self._token(operation)))
        elif kind == "make-folder":
            self.folder_made = True
        elif kind == "sync-parent":
            self.folder_durable = self.folder_made

    def _token(self, operation: Operation) -> tuple[int, int]:
        return operation.mark[0], operation.mark[1]

    def _rename(self, index: int, file: int, gone: str, come: str) -> None:
        change = NameChange(index, file, gone, come)
        _apply(self._names, change)
        self._changes.append(change)

    def _sync(self, kind: str, file: int, begun: int) -> None:
        if kind == "sync":
            self._files[file].sync(begun)
        elif kind == "sync-failed":
            if file:
                self._files[file].doom(begun)
        else:
            for change in self._changes:
                if change.index < begun:
                    _apply(self._durable, change)
            self._changes = [change for change in self._changes if change.index >= begun]

    def now(self) -> dict[str, bytes]:
        """What a read gives: everything is there."""
        return {name: self._files[file].now() for name, file in self._names.items()}

    # --- after a cut -------------------------------------------------------------------------------------------------

    def images(self, at: int, draw: random.Random) -> Iterator[Image]:
        """Every disk that a cut may leave now, or a sample of them."""
        for how, names in self._all_names(draw):
            for label, files in self._all_files(names, draw):
                yield Image(at, files, f"names {how}; {label}")

    def _all_names(self, draw: random.Random) -> Iterator[tuple[str, Names]]:
        changes = self._changes
        picks = {tuple(range(count)) for count in range(len(changes) + 1)}
        if self._any and 2 ** len(changes) <= FEW:
            picks |= {
                tuple(place for place, kept in enumerate(mask) if kept) for mask in product((0, 1), repeat=len(changes))
            }
        elif self._any:
            everything = range(len(changes))
            picks |= {tuple(one for one in everything if one != gone) for gone in everything}
            picks |= {(one,) for one in everything}
            picks |= {tuple(one for one in everything if draw.random() < 0.5) for _ in range(NEAR)}
        for pick in sorted(picks, key=lambda one: (-len(one), one)):
            names = dict(self._durable)
            for place in pick:
                _apply(names, changes[place])
            yield f"{[changes[place][2:] for place in range(len(changes)) if place not in pick]} not done", names

    def _all_files(self, names: Names, draw: random.Random) -> Iterator[tuple[str, dict[str, bytes]]]:
        contents = {name: self._files[file].contents(draw) for name, file in names.items()}
        settled = {name: held[0][1] for name, held in contents.items() if len(held) == 1}
        open_ = {name: held for name, held in contents.items() if len(held) > 1}
        several = 1
        for held in open_.values():
            several *= len(held)
        picks: Iterator[tuple[Content, ...]]
        picks = product(*open_.values()) if several <= FEW else _sampled(list(open_.values()), draw)
        for pick in picks:
            chosen = dict(zip(open_, pick, strict=True))
            label = ", ".join(f"{name}: {how}" for name, (how, _) in chosen.items())
            yield label, settled | {name: content for name, (_, content) in chosen.items()}


def _sampled(open_: list[list[Content]], draw: random.Random) -> Iterator[tuple[Content, ...]]:
    """Everything kept, everything lost, each in each way beside both, and some of all."""
    kept, lost = [held[0] for held in open_], [held[1] for held in open_]
    for rest in (kept, lost):
        yield tuple(rest)
        for place, held in enumerate(open_):
            for one in held:
                yield (*rest[:place], one, *rest[place + 1 :])
    for _ in range(NEAR):
        yield tuple(draw.choice(held) for held in open_)


def _apply(names: Names, change: NameChange) -> None:
    if change.gone and names.get(change.gone) == change.file:
        del names[change.gone]
    if change.come:
        names[change.come] = change.file


CHANGES = frozenset(
    {"create", "rename", "unlink", "write", "truncate", "allocate", "sync", "sync-folder", "sync-failed"}
)


def cuts(log: Log, seed: int, names: str = "ordered") -> Iterator[tuple[int, Iterator[Image]]]:
    """(operations done, the images of a cut there), before every change of the disk and at the end: so each set of
    images is met with all that was told until the next change.
    """
    disk = Disk(names)
    for index, operation in enumerate(log):
        if operation.kind in CHANGES:
            yield index, disk.images(index, random.Random(f"{seed} {index}"))
        disk.take(index, operation)
    yield len(log), disk.images(len(log), random.Random(f"{seed} end"))


def disk_after(log: Log, names: str = "ordered") -> Disk:
    """The disk behind the whole log."""
    disk = Disk(names)
    for index, operation in enumerate(log):
        disk.take(index, operation)
    return disk
