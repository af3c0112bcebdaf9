"""Checkpoints and trims with one seeded bug each: legal disks after a power cut, or the next start, catch every one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import pytest
from powercut.recovery import judged
from powercut.story import CLIENTS, Play, Story, played, turns

from solewriter.engine_proc import preallocation
from solewriter.engine_proc.betweenturns import BetweenTurns
from solewriter.engine_proc.checkpointing import checkpoints
from solewriter.engine_proc.checkpointing.checkpoint import Made
from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints, Held
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.engine_proc.preallocation import FilesAhead, FolderSync
from solewriter.engine_proc.recovery import recovery
from solewriter.shared.errors import SolewriterError
from solewriter.shared.journal.checkpoint import HEADER_BYTES, Checkpoint, CheckpointWriter, checkpoint_files
from solewriter.shared.journal.entry import CheckpointName, PrivateState

pytestmark = pytest.mark.heavy

Patch = pytest.MonkeyPatch
TURNS = 100  # several checkpoints and trims, and a journal file that is used again


def story_of(folder: Path) -> Story:
    def script(play: Play) -> None:
        draw = random.Random(1)
        play.start(*CLIENTS)
        turns(play, draw, TURNS)
        play.kill()
        play.start(*CLIENTS)
        turns(play, draw, 2)

    return played(folder, "power", script)


def wrongs(place: Path) -> list[str]:
    """What is wrong with the images of such a story, or with its own second start, as the engine is patched now."""
    folder = Path(mkdtemp(dir=place))
    try:
        story = story_of(folder)
    except SolewriterError as error:
        return [f"refused: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)
    return [text.partition(": ")[2] for text in judged(story, place / "image", 3, each=1).wrong]


def saying(wrong: list[str], what: str) -> list[str]:
    return [text for text in wrong if text.startswith(what)]


def no_bug(patch: Patch) -> None:
    """The engine as it is."""


def without_syncs(inner: Patch) -> None:
    inner.setattr(os, "fsync", lambda fd: None)
    inner.setattr(os, "fdatasync", lambda fd: None)


def checkpoint_not_synced(patch: Patch) -> None:
    def finish(self: CheckpointWriter, *given: Any) -> CheckpointName:
        with Patch.context() as inner:
            without_syncs(inner)
            return finishing(self, *given)

    finishing = CheckpointWriter.finish
    patch.setattr(CheckpointWriter, "finish", finish)


def folder_not_synced_behind_a_checkpoint(patch: Patch) -> None:
    def made(self: Checkpoints, *given: Any) -> None:
        with Patch.context() as inner:
            inner.setattr(FileJournal, "sync_names", lambda self: None)
            making(self, *given)

    making = Checkpoints._make_in_thread
    patch.setattr(Checkpoints, "_make_in_thread", made)


def folder_never_synced(patch: Patch) -> None:
    patch.setattr(checkpoints, "sync_folder", lambda folder: None)
    patch.setattr(preallocation, "sync_folder", lambda folder: None)


def trimmed_before_the_private_state_is_journaled(patch: Patch) -> None:
    async def hasty(self: BetweenTurns, made: Made) -> None:
        of = self._checkpoints
        assert of is not None
        of._held[made.entry] = Held(made.size, made.time_us)
        of._trim(made.entry, made.time_us, lambda: None)
        await noting(self, made)

    noting = BetweenTurns._note
    patch.setattr(BetweenTurns, "_note", hasty)


def unnamed_checkpoint_trusted(patch: Patch) -> None:
    def newest_whole(self: FileJournal) -> tuple[int, PrivateState] | None:
        found, files = naming(self), checkpoint_files(self._folder)
        if found is None or not files:
            return found
        with Checkpoint(files[max(files)]) as newest:
            return found[0], msgspec.structs.replace(found[1], checkpoint=newest.name)

    naming = FileJournal.newest_whole
    patch.setattr(FileJournal, "newest_whole", newest_whole)


def outcomes_forgotten(patch: Patch) -> None:
    def forgetting(*given: Any) -> PrivateState:
        whole = describing(*given)
        sessions = [msgspec.structs.replace(one, outcomes=[]) for one in whole.sessions]
        return msgspec.structs.replace(whole, sessions=sessions)

    describing = recovery.private_state
    patch.setattr(recovery, "private_state", forgetting)


def header_of_a_used_file_kept(patch: Patch) -> None:
    def prepare(self: FilesAhead, fd: int, size: int, *, fresh: bool) -> None:
        if fresh:
            preparing(self, fd, size, fresh=fresh)

    preparing = FilesAhead._prepare
    patch.setattr(FilesAhead, "_prepare", prepare)


def used_file_taken_before_its_old_name_is_gone(patch: Patch) -> None:
    def trim(self: FileJournal, before: int, still_owner: Callable[[], None]) -> None:
        with Patch.context() as inner:
            inner.setattr(FileJournal, "sync_names", lambda self: None)
            trimming(self, before, still_owner)

    def made(self: FilesAhead, size: int) -> int:
        with Patch.context() as inner:
            inner.setattr(FolderSync, "sync", lambda self: None)  # which makes up for it, before a file is used again
            return making(self, size)

    trimming, making = FileJournal.trim, FilesAhead._make_file
    patch.setattr(FileJournal, "trim", trim)
    patch.setattr(FilesAhead, "_make_file", made)


def damaged_behind_its_sync(patch: Patch) -> None:
    """The disk's own fault: it keeps something else than it was given."""

    def finish(self: CheckpointWriter, *given: Any) -> CheckpointName:
        name = finishing(self, *given)
        place = HEADER_BYTES + 20
        os.pwrite(self._fd, bytes([os.pread(self._fd, 1, place)[0] ^ 1]), place)
        return name

    finishing = CheckpointWriter.finish
    patch.setattr(CheckpointWriter, "finish", finish)


def damaged_and_not_verified(patch: Patch) -> None:
    damaged_behind_its_sync(patch)
    patch.setattr(Checkpoint, "verify", lambda self: None)


# --- each is caught ---------------------------------------------------------------------------------------------------

BUGS = [
    (checkpoint_not_synced, "refused"),
    (folder_never_synced, "lost"),
    (trimmed_before_the_private_state_is_journaled, "refused"),
    (unnamed_checkpoint_trusted, "outcome"),
    (outcomes_forgotten, "outcome"),
    (damaged_and_not_verified, "refused"),
]
HARMLESS = [  # alone: another step gives the same
    no_bug,
    damaged_behind_its_sync,  # it is read before it is named
    folder_not_synced_behind_a_checkpoint,  # the journal's next file syncs it, before the private state is in there
    header_of_a_used_file_kept,  # the new one is on disk before its name is
    used_file_taken_before_its_old_name_is_gone,  # what is behind that name is history, which no start reads
]


@pytest.mark.parametrize(("bug", "what"), [pytest.param(*bug, id=bug[0].__name__) for bug in BUGS])
def test_a_checkpoint_or_a_trim_with_a_seeded_bug_is_caught(
    place: Path, monkeypatch: Patch, bug: Callable[[Patch], None], what: str
) -> None:
    bug(monkeypatch)
    wrong = wrongs(place)
    assert saying(wrong, what), wrong[:5]


@pytest.mark.parametrize("bug", HARMLESS)
def test_what_another_step_makes_up_for_changes_no_image(
    place: Path, monkeypatch: Patch, bug: Callable[[Patch], None]
) -> None:
    bug(monkeypatch)
    assert wrongs(place) == []
