"""Journals and engines with one seeded bug each: images or flips catch every one, or they would prove nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from powercut.damage import all_missed, flips
from powercut.journaling import journaled
from powercut.journaling import judged as journal_judged
from powercut.recovery import Recoverer, judged
from powercut.story import CLIENTS, Play, lives, played

from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.shared.journal import entry as entries

pytestmark = pytest.mark.heavy

Patch = pytest.MonkeyPatch


def of_a_journal(place: Path, each: int = 6, **options: Any) -> list[str]:
    """What is wrong with the images of a journal as it is patched now."""
    story = journaled(place / "journal", True, 5, 30, **options)
    return journal_judged(story, place / "image", 5, each=each).wrong


def saying(wrong: list[str], what: str) -> list[str]:
    return [text for text in wrong if text.partition(": ")[2].startswith(what)]


@pytest.mark.heavy
def test_the_journal_without_a_bug_loses_nothing(place: Path) -> None:
    wrong = of_a_journal(place)
    assert not [text for what in ("lost", "mixed", "invented") for text in saying(wrong, what)]


def no_sync(patch: Patch) -> None:
    async def nothing(self: FileJournal) -> None: ...

    patch.setattr(FileJournal, "_sync", nothing)


def no_folder_sync(patch: Patch) -> None:
    patch.setattr(FileJournal, "sync_names", lambda self: None)


def no_sync_of_the_rewritten_tail(patch: Patch) -> None:
    rewriting, syncing = FileJournal._rewrite, FileJournal.sync_names

    def rewrite(self: FileJournal, *args: Any) -> None:
        real = os.fsync

        def sync_names(self: FileJournal) -> None:
            os.fsync = real
            syncing(self)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(os, "fsync", lambda fd: None)
            inner.setattr(FileJournal, "sync_names", sync_names)
            rewriting(self, *args)

    patch.setattr(FileJournal, "_rewrite", rewrite)


HEAVY = pytest.mark.heavy
LOSING = (no_sync, no_folder_sync, no_sync_of_the_rewritten_tail)


@HEAVY
@pytest.mark.parametrize("bug", LOSING)
def test_a_journal_that_syncs_too_little_loses_what_was_acked(
    place: Path, monkeypatch: Patch, bug: Callable[[Patch], None]
) -> None:
    bug(monkeypatch)
    wrong = of_a_journal(place)
    assert saying(wrong, "lost"), wrong[:5]
    monkeypatch.undo()
    assert not saying(of_a_journal(place), "lost")


def test_a_journal_that_is_acked_before_it_is_committed_loses_what_was_acked(place: Path) -> None:
    assert saying(of_a_journal(place, early=True), "lost")


@HEAVY
@pytest.mark.heavy
def test_a_header_that_is_written_behind_the_name_is_missed(place: Path, monkeypatch: Patch) -> None:
    def begin(self: FileJournal, fd: int, tail: Any) -> None:
        os.rename(self._folder / "journal.next", self._folder / f"journal-{tail.number + 1:020d}.log")
        self.sync_names()
        os.pwrite(fd, entries.file_header(self.state_id, tail.number + 1, tail.crc), 0)
        os.fdatasync(fd)
        self._continue(fd, entries.FILE_HEADER_BYTES, os.fstat(fd).st_size)

    monkeypatch.setattr(FileJournal, "_begin", begin)
    wrong = of_a_journal(place)
    assert [text for text in saying(wrong, "refused") if "header" in text], wrong[:5]


@HEAVY
def test_a_sync_that_is_tried_again_after_it_failed_loses_what_was_acked(place: Path, monkeypatch: Patch) -> None:
    async def stubborn(self: FileJournal) -> None:
        try:
            await syncing(self)
        except OSError:
            await syncing(self)

    syncing = FileJournal._sync
    failing = [number for number in range(4, 16) if saying(of_a_journal(place, 3, fail_sync=number), "lost")]
    assert not failing
    monkeypatch.setattr(FileJournal, "_sync", stubborn)
    failing = [number for number in range(4, 16) if saying(of_a_journal(place, 3, fail_sync=number), "lost")]
    assert len(failing) > 1, "the kernel has forgotten the pages, and the second sync says that all is well"


@HEAVY
@pytest.mark.heavy
def test_an_engine_that_replies_before_it_commits_loses_what_was_acked(
    place: Path, monkeypatch: Patch, interpreted: Callable[..., None]
) -> None:
    interpreted(SingleWriter)
    committing = SingleWriter._commit

    async def early(self: SingleWriter, turn: Any) -> None:
        if self._replies:
            self.reply()
        await committing(self, turn)

    monkeypatch.setattr(SingleWriter, "_commit", early)

    def script(play: Play) -> None:
        play.start(*CLIENTS)
        for number in range(6):
            play.turn(("ann", [("put", "t-1", None, f"{number}")]))

    story = played(place / "early", "power", script)
    wrong = judged(story, place / "image", 1, each=2).wrong
    assert saying(wrong, "lost"), wrong[:5]
    monkeypatch.undo()
    story = played(place / "in-time", "power", script)
    assert not saying(judged(story, place / "image", 1, each=1).wrong, "lost")


@HEAVY
def test_a_journal_without_checksums_takes_flipped_bits_for_the_truth(
    place: Path, monkeypatch: Patch, stores: Callable[..., Any]
) -> None:
    monkeypatch.setattr(entries, "crc32", lambda data: 0)
    story, files = stores("power", "kill", 4, 11)
    _, wrong = all_missed(Recoverer(place / "damaged", "power", story.sessions), story, files, flips(files, 171))
    assert [text for text in wrong if text.startswith("wrong")], wrong[:5]


def test_a_story_in_which_no_bug_is_seeded_has_every_kind_of_operation(place: Path) -> None:
    kinds = {operation.kind for operation in played(place / "kinds", "power", lives(1, 6)).log}
    assert kinds >= {"create", "write", "sync", "sync-folder", "rename", "unlink", "close", "mark"}
