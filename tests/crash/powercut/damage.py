"""Faults of a disk that no power cut explains: cuts and foreign bytes behind the last entry, flipped bits, files that
are missing, empty, half or in each other's place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from powercut.recovery import Found, Recoverer, Refusal, Result
from powercut.story import Story, living
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.entry import FILE_HEADER_BYTES

Files = Mapping[str, bytes]


class Damaged(NamedTuple):
    """A folder with one fault, the names of the files that are not as they were, and what was done to them."""

    files: dict[str, bytes]
    names: tuple[str, ...]
    what: str
    places: tuple[str, ...] = ()  # what a refusal may name instead


def journals(files: Files) -> list[str]:
    return sorted(name for name in files if name.startswith("journal-"))


def ends(content: bytes, *, padded: bool = True) -> list[tuple[int, int]]:
    """(offset behind it, revision after it) of each entry of a journal file, with or without what fills it up."""
    at, found = FILE_HEADER_BYTES, []
    while (one := entries.unpack(content, at)) is not None:
        length = int.from_bytes(content[at + 8 : at + 12], "little")
        found.append((one[2] if padded else at + length, one[0].revision))
        at = one[2]
    return found


# --- the last file's end ----------------------------------------------------------------------------------------------


def tails(files: Files, stale: bytes, seed: int, step: int = 1) -> Iterator[tuple[int, Damaged]]:
    """(offset, the folder whose last journal file ends there, or goes on with other bytes), for every `step`-th one."""
    draw, name = random.Random(seed), journals(files)[-1]
    content = files[name]
    end = ends(content)[-1][0]
    for at in range(0, end + 1, step):
        rest = len(content) - at
        for what, tail in (
            ("cut", b""),
            ("zeros", bytes(rest)),
            ("garbage", draw.randbytes(rest)),
            ("stale", (stale[at:] + bytes(rest))[:rest]),
        ):
            yield at, Damaged({**files, name: content[:at] + tail}, (name,), f"{what} from {at} on in {name}")


def stale_tails(files: Files, stale: bytes) -> Iterator[Damaged]:
    """Whole entries of another file right behind the last one, beginning with each of them."""
    name = journals(files)[-1]
    content, begin = files[name], ends(files[journals(files)[-1]])[-1][0]
    for at, _ in [(FILE_HEADER_BYTES, 0), *ends(stale)]:
        tail = (stale[at:] + bytes(len(content)))[: len(content) - begin]
        yield Damaged({**files, name: content[:begin] + tail}, (name,), f"entries from {at} on of an older file")


# --- bits and whole files ---------------------------------------------------------------------------------------------


ZEROS_LOOKED_AT = 256  # bytes behind the last entry of which each bit is flipped; behind them, one of ZEROS_STEP
ZEROS_STEP = 16


def flips(files: Files, step: int = 1) -> Iterator[Damaged]:
    """Every `step`-th bit of every file, one at a time; some of the zeros far behind the last entry: all are alike."""
    place = 0
    for name in sorted(files):
        content = bytearray(files[name])
        used = len(files[name].rstrip(b"\0")) + ZEROS_LOOKED_AT
        for bit in range(len(content) * 8):
            place += 1
            if place % step or (bit // 8 >= used and place // step % ZEROS_STEP):
                continue
            content[bit // 8] ^= 1 << bit % 8
            yield Damaged({**files, name: bytes(content)}, (name,), f"bit {bit % 8} of byte {bit // 8} of {name}")
            content[bit // 8] ^= 1 << bit % 8


def misplaced(files: Files, others: Files) -> Iterator[Damaged]:
    """Each file missing, empty, half, or with the content of another of its kind, here or in `others`. Where a file is
    missing or from elsewhere, the entries that are not there are a name for it, or the file that does not fit to it.
    """
    for damaged in _misplaced(files, others):
        yield damaged._replace(places=("entry", "entries", "journal-", "checkpoint-"))


def _misplaced(files: Files, others: Files) -> Iterator[Damaged]:
    for name, content in files.items():
        rest = {other: held for other, held in files.items() if other != name}
        yield Damaged(rest, (name,), f"{name} is missing")
        yield Damaged({**rest, name: b""}, (name,), f"{name} is empty")
        yield Damaged({**rest, name: content[: len(content) // 2]}, (name,), f"{name} is half")
        for other in rest:
            if kind(other) == kind(name) and other > name:
                swapped = {**files, name: files[other], other: content}
                yield Damaged(swapped, (name, other), f"{name} and {other} are swapped")
                yield Damaged({**files, name: files[other]}, (name,), f"{name} holds what {other} holds")
        for other in others:
            if kind(other) == kind(name):
                yield Damaged({**files, name: others[other]}, (name,), f"{name} is another folder's {other}")


def kind(name: str) -> str:
    """What a file is for."""
    return name.partition("-")[0].partition(".")[0]


# --- judging ----------------------------------------------------------------------------------------------------------


def missed(story: Story, whole: Found, damaged: Damaged, result: Result) -> Iterator[str]:
    """What is wrong with a result that is neither the whole state nor a refusal that names the file.

    Where nothing is promised after a reboot, as in `process`, a shorter history under another history id is right, too.
    """
    if isinstance(result, Refusal):
        said = f"{result.place} {result.text}"
        if not result.named or not any(name in said for name in (*damaged.names, *damaged.places)):
            yield f"no named refusal: {result.error}: {result.text} ({damaged.what})"
        return
    if result.revision >= len(story.states) or result.entities != living(story.states[result.revision]):
        yield f"wrong: revision {result.revision} is {result.entities} ({damaged.what})"
    elif story.durability == "power" or result.history == whole.history:
        if result.revision < whole.revision:
            yield f"shorter: {result.revision} of {whole.revision} ({damaged.what})"
        elif result.outcomes != whole.outcomes:
            yield f"wrong outcomes ({damaged.what})"


def all_missed(recoverer: Recoverer, story: Story, files: Files, cases: Iterator[Damaged]) -> tuple[int, list[str]]:
    """How many cases there were, and what was wrong with them."""
    recoverer.write(files)
    whole = recoverer.recover(rebooted=False)
    assert isinstance(whole, Found)
    count, wrong = 0, []
    for damaged in cases:
        recoverer.write(damaged.files)
        wrong += missed(story, whole, damaged, recoverer.recover(rebooted=story.durability == "power"))
        count += 1
    return count, wrong
