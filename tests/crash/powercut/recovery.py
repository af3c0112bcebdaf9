"""An image is recovered by the engine's own recovery, as after a reboot, and judged by what was told before the cut."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from powercut.disk import Image, cuts
from powercut.parts import local
from powercut.story import Entities, Story, entities_of, limits_for, living, without_addresses
from solewriter.engine_proc import filejournal as journals
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.start import Start
from solewriter.engine_proc.tuning import Threads
from solewriter.shared.config import KIB
from solewriter.shared.errors import SolewriterError
from solewriter.shared.journal import life
from solewriter.shared.memory.view import View

_boots = count(1)
AGAIN = 4  # of so many images one is recovered a second time, from what the first recovery left


class Found(NamedTuple):
    """What a recovery made of a folder."""

    revision: int
    entities: Entities  # without the deleted
    history: bytes
    outcomes: Mapping[tuple[int, int], tuple[int, int, Any]]
    tail: int  # the entry that notes this life


class Refusal(NamedTuple):
    """A recovery that ended with an error; `named`: one of the project's own. `place` is what it gives as such."""

    error: str
    text: str
    named: bool
    place: str = ""


Result = Found | Refusal


class Recoverer:
    """A folder in which one image after the other is recovered."""

    def __init__(self, folder: Path, durability: str, sessions: Iterable[int]) -> None:
        self.folder, self.durability, self.sessions = folder, durability, sorted(sessions)
        self.memory = folder / "memory"
        self.limits = limits_for(self.memory)

    def write(self, files: Mapping[str, bytes]) -> Path:
        """A fresh state folder that holds these files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        state = self.folder / "state"
        state.mkdir(parents=True, mode=0o700)
        self.memory.mkdir()
        for name, content in files.items():
            fd = os.open(state / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, content)
            os.close(fd)
        return state

    def recover(self, *, rebooted: bool = True) -> Result:
        """What the folder's files come to; its files are what that recovery leaves, killed at once."""
        real, first = life.boot_id, journals.JOURNAL_FILE_BYTES_FIRST
        journals.JOURNAL_FILE_BYTES_FIRST = 4 * KIB
        if rebooted:
            boot = f"boot {next(_boots)}"
            life.boot_id = lambda: boot
        try:
            return self._found()
        except SolewriterError as error:
            return Refusal(type(error).__name__, str(error), True, getattr(error, "place", ""))
        except Exception as error:
            return Refusal(type(error).__name__, str(error), named=False)
        finally:
            life.boot_id, journals.JOURNAL_FILE_BYTES_FIRST = real, first
            self._clean()

    def _found(self) -> Found:
        orders = Orders(str(self.folder / "state"), self.durability, self.limits, 0, [], local.NO_MODELS)
        at_once = Threads(local.AtOnce(), local.AtOnce(), local.AtOnce())  # others go on in the next one's folder
        epoch = Start(orders, at_once).recover()
        outcomes = {
            (number, told.sequence): (told.status, told.revision, without_addresses(told.status, told.detail))
            for number in self.sessions
            if (session := epoch.sessions.get(number)) is not None
            for told in session.outcomes
        }
        view = View(str(self.memory), epoch.publisher.prefix)
        return Found(epoch.state.revision, entities_of(view), epoch.life.history, outcomes, epoch.journal.tail.number)

    def _clean(self) -> None:
        """What the kernel does for a killed process, and a reboot for its memory."""
        inside = f"{self.folder}/state/"
        for fd, link in local.descriptors().items():
            if f"{link}/".startswith(inside):
                os.close(fd)
        for path in self.memory.iterdir():
            path.unlink()


# --- judging ----------------------------------------------------------------------------------------------------------


def wrongs(story: Story, at: int, result: Result) -> Iterator[str]:
    """What is wrong with this end of a story that was cut after `at` operations."""
    if isinstance(result, Refusal):
        yield f"refused: {result.error}: {result.text}"
        return
    acked = story.acked(at)
    last = max((ack.revision for ack in acked), default=0)
    kept = story.durability == "power" or any(begun < at and result.history == own for begun, own in story.histories)
    if kept and result.revision < last:
        yield f"lost: {last} was acked, and {result.revision} is there"
    if result.revision > story.newest(at):
        yield f"invented: revision {result.revision} of {story.newest(at)}"
        return
    if result.entities != living(story.states[result.revision]):
        yield f"mixed: at revision {result.revision} stands {result.entities}, not {story.states[result.revision]}"
    for ack in acked:
        known = result.outcomes.get((ack.session, ack.sequence))
        if known is None and not (kept and ack.changed):
            continue
        if known != (ack.status, ack.revision, ack.detail) and (kept or ack.revision <= result.revision):
            yield f"outcome: {ack} is remembered as {known}"
            return


def twice(first: Found, second: Result) -> Iterator[str]:
    """What is wrong where the recovered folder is recovered again."""
    if isinstance(second, Refusal):
        yield f"refused after a recovery: {second.error}: {second.text}"
    elif (first.revision, first.entities, first.outcomes) != (second.revision, second.entities, second.outcomes):
        yield "not idempotent: another recovery finds another state"
    elif second.tail <= first.tail:
        yield f"not appended: entry {first.tail} of the first recovery is gone"


@dataclass
class Verdict:
    """What a campaign came to."""

    images: int = 0  # different ones, all recovered
    cuts: int = 0
    judged: int = 0  # pairs of a cut and an image
    wrong: list[str] = field(default_factory=list)

    def kinds(self) -> set[str]:
        return {text.partition(": ")[2].partition(":")[0] for text in self.wrong}


def digest(files: Mapping[str, bytes]) -> bytes:
    found = blake2b(digest_size=16)
    for name in sorted(files):
        found.update(f"{name} {len(files[name])} ".encode())
        found.update(files[name])
    return found.digest()


def judged(story: Story, folder: Path, seed: int, *, names: str = "ordered", each: int = 10**9) -> Verdict:
    """Recover the images of a story, up to `each` of every cut, one in `AGAIN` of them twice; say what is wrong."""
    verdict, known = Verdict(), dict[bytes, tuple[Result, list[str]]]()
    recoverer = Recoverer(folder, story.durability, story.sessions)
    for at, images in cuts(story.log, seed, names):
        verdict.cuts += 1
        for image in drawn(images, each, seed + at):
            verdict.judged += 1
            key = digest(image.files)
            if key not in known:
                known[key] = _recovered(recoverer, image, again=len(known) % AGAIN == 0)
            result, again = known[key]
            verdict.wrong += [f"cut {at}: {text} ({image.how})" for text in (*wrongs(story, at, result), *again)]
    verdict.images = len(known)
    shutil.rmtree(folder, ignore_errors=True)
    return verdict


def drawn(images: Iterable[Image], each: int, seed: int) -> list[Image]:
    """So many of them, or all."""
    several = list(images)
    return several if len(several) <= each else random.Random(seed).sample(several, each)


def _recovered(recoverer: Recoverer, image: Image, *, again: bool) -> tuple[Result, list[str]]:
    recoverer.write(image.files)
    result = recoverer.recover()
    if not again or isinstance(result, Refusal):
        return result, []
    return result, list(twice(result, recoverer.recover()))
