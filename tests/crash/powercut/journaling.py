"""Stories of a journal alone: many quick ones, where the engine's would take milliseconds for each image."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from powercut.disk import cuts
from powercut.log import Log
from powercut.parts import local
from powercut.recorder import Recorder
from powercut.recovery import AGAIN, Refusal, Verdict, digest, drawn
from solewriter import Limits
from solewriter.engine_proc import filejournal as journals
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.shared import record
from solewriter.shared.config import KIB
from solewriter.shared.errors import SolewriterError
from solewriter.shared.journal.entry import Private

STATE = b"0123456789abcdef"
SMALL = Limits(journal_file_bytes=8 * KIB)
FIRST_FILE = 4 * KIB
NEVER = 10**9  # operations


class Opened:
    """A journal of a folder, replayed; its thread and its descriptors go with `kill`."""

    def __init__(self, folder: Path, power: bool, unsynced: bool = False) -> None:
        self._inside = f"{folder}/"
        self.loop = asyncio.new_event_loop()
        before, journals.JOURNAL_FILE_BYTES_FIRST = journals.JOURNAL_FILE_BYTES_FIRST, FIRST_FILE
        try:
            self.journal = FileJournal(folder, STATE, SMALL, local.AtOnce(), power=power)
            replay = self.journal.replay(1, lambda: not power, lambda: unsynced)
            self.found = [(one.number, b"".join(one.records())) for one in replay]
        except BaseException:
            self.kill()
            raise
        finally:
            journals.JOURNAL_FILE_BYTES_FIRST = before

    def commit(self, body: bytes, durable: bool) -> int:
        number = self.journal.tail.number + 1
        self.journal.append(number, number * 10, [body], Private())
        self.loop.run_until_complete(self.journal.commit(durable=durable))
        return number

    def stop(self) -> None:
        self.journal.close()
        self.kill()

    def kill(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        for fd, link in local.descriptors().items():
            if link.startswith(self._inside):
                os.close(fd)


def body_of(number: int, size: int) -> bytes:
    payload = random.Random(number).randbytes(size)
    return record.pack(0, 0, 1, 6, number, 1, 0, 2, number, b"t-%d" % number, b"", b"", b"", b"", b"", payload)


class Committed(NamedTuple):
    """An entry, and after how many operations its commit began and returned."""

    begun: int
    done: int
    durable: bool


@dataclass
class JournalStory:
    """What a journal was given. `bodies[n - 1]` is entry n."""

    power: bool
    log: Log = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    commits: list[Committed] = field(default_factory=list)

    def acked(self, at: int) -> int:
        """The last entry that must survive a cut there."""
        durable = [n for n, one in enumerate(self.commits, 1) if one.durable and one.done <= at]
        return max(durable, default=0) if self.power else 0

    def begun(self, at: int) -> int:
        return sum(one.begun < at for one in self.commits)


def journaled(
    folder: Path, power: bool, seed: int, count: int, *, fail_sync: int | None = None, early: bool = False
) -> JournalStory:
    """So many commits, in several lives. `early`: acked before they are committed. A failed sync ends a life."""
    state = folder / "state"
    shutil.rmtree(folder, ignore_errors=True)
    state.mkdir(parents=True)
    story, draw = JournalStory(power), random.Random(seed)
    with Recorder(state) as recorder:
        recorder.fail_sync = fail_sync
        opened = _opened(state, power)
        for _ in range(count):
            number, size, durable = len(story.bodies) + 1, draw.choice((0, 30, 300, 900)), draw.random() < 0.6
            begun = len(recorder.log)
            story.bodies.append(body_of(number, size))
            try:
                assert opened.commit(story.bodies[-1], durable) == number
                story.commits.append(Committed(begun, begun if early else len(recorder.log), durable))
                ends = draw.random() < 0.06
            except OSError:
                story.commits.append(Committed(begun, NEVER, durable))
                ends = True
            if ends:
                opened.stop() if draw.random() < 0.3 and story.commits[-1].done < NEVER else opened.kill()
                opened = _opened(state, power)
                del story.bodies[len(opened.found) :], story.commits[len(opened.found) :]
        opened.kill()
    story.log = recorder.log
    shutil.rmtree(folder)
    return story


def raised(folder: Path, fail_sync: int, count: int = 6) -> tuple[JournalStory, bool]:
    """A life that acks before it syncs, until a sync fails, or for long; then one of `power`, with so many commits.
    And whether a sync failed.
    """
    state = folder / "state"
    shutil.rmtree(folder, ignore_errors=True)
    state.mkdir(parents=True)
    story, failed = JournalStory(power=True), False
    with Recorder(state) as recorder:
        opened = Opened(state, power=False)
        recorder.fail_sync = recorder.syncs + fail_sync
        try:
            for number in range(1, 30):
                opened.commit(body_of(number, 900), durable=True)
        except OSError:
            failed = True
        recorder.fail_sync = None
        opened.kill()
        opened = Opened(state, power=True, unsynced=True)
        story.bodies = [body for _, body in opened.found]
        story.commits = [Committed(0, 0, durable=True)] * len(story.bodies)
        for number in range(len(story.bodies) + 1, len(story.bodies) + 1 + count):
            begun = len(recorder.log)
            story.bodies.append(body_of(number, 300))
            opened.commit(story.bodies[-1], durable=True)
            story.commits.append(Committed(begun, len(recorder.log), durable=True))
        opened.kill()
    story.log = recorder.log
    shutil.rmtree(folder)
    return story, failed


def _opened(state: Path, power: bool) -> Opened:
    """The next life, or the one after it where a sync fails in its recovery."""
    try:
        return Opened(state, power)
    except OSError:
        return Opened(state, power)


# --- recovery ---------------------------------------------------------------------------------------------------------


def recovered(folder: Path, power: bool) -> list[tuple[int, bytes]] | Refusal:
    try:
        opened = Opened(folder, power)
    except SolewriterError as error:
        return Refusal(type(error).__name__, str(error), True, getattr(error, "place", ""))
    except Exception as error:
        return Refusal(type(error).__name__, str(error), False)
    try:
        opened.commit(b"", durable=True)
        return opened.found
    finally:
        opened.kill()


def write(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, content)
        os.close(fd)


def wrongs(story: JournalStory, at: int, found: list[tuple[int, bytes]] | Refusal) -> Iterator[str]:
    if isinstance(found, Refusal):
        yield f"refused: {found.error}: {found.text}"
        return
    if len(found) < story.acked(at):
        yield f"lost: {story.acked(at)} was acked, and {len(found)} entries are there"
    if len(found) > story.begun(at):
        yield f"invented: {len(found)} of {story.begun(at)} entries"
    elif found != list(enumerate(story.bodies[: len(found)], 1)):
        yield "mixed: the entries are not those that were committed"


def judged(
    story: JournalStory, folder: Path, seed: int, *, names: str = "ordered", each: int = 10**9, since: int = 0
) -> Verdict:
    """As for an engine's story, cut from an operation on. What a first recovery left, with one more entry, is recovered
    again.
    """
    verdict, known = Verdict(), dict[bytes, tuple[list[tuple[int, bytes]] | Refusal, list[str]]]()
    for at, images in cuts(story.log, seed, names):
        if at < since:
            continue
        verdict.cuts += 1
        for image in drawn(images, each, seed + at):
            verdict.judged += 1
            key = digest(image.files)
            if key not in known:
                write(folder, image.files)
                found, again = recovered(folder, story.power), list[str]()
                if len(known) % AGAIN == 0 and not isinstance(found, Refusal):
                    second = recovered(folder, story.power)
                    if isinstance(second, Refusal) or second != [*found, (len(found) + 1, b"")]:
                        again = [f"not idempotent: {second}"[:300]]
                known[key] = found, again
            found, again = known[key]
            verdict.wrong += [f"cut {at}: {text} ({image.how})" for text in (*wrongs(story, at, found), *again)]
    verdict.images = len(known)
    shutil.rmtree(folder, ignore_errors=True)
    return verdict
