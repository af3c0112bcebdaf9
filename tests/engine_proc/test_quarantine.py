"""Whom a start suspects: what two deaths in a row named, and nobody else."""

from __future__ import annotations

import os
import shutil

import msgspec
import pytest

from solewriter.engine_proc.coordination.leases import loss_of
from solewriter.engine_proc.recovery.quarantine import LastWords, judge, last_words
from solewriter.engine_proc.session import QUARANTINED
from solewriter.engine_proc.sessions import ENGINE, Sessions
from solewriter.shared.config import KIB, MEMORY_VERSION, QUARANTINED_MAX, Limits
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.journal.entry import Lease, Life, Outcome, SessionChange
from solewriter.shared.memory.root import RootWriter
from solewriter.shared.memory.segment import Segment, remove_segments, segment_path
from solewriter.shared.system.processes import start_time_of
from solewriter.shared.wire import Status

ANN, BOB = 1, 2
GONE = 2**22 + 1  # no process has this id


@pytest.fixture
def sessions():
    made = Sessions(Limits())
    for number in (ANN, BOB):
        made.take(SessionChange(number, f"client {number}", "", 1, -1))
    return made


def life(epoch, before=None, words=None, sessions=None, leases=()):
    """The life of an engine that follows another one, of which it found these last words."""
    return judge(Life(epoch, b"h", "process", "boot", drained=False), before, words, sessions, leases)


def lives(sessions, *named):
    """Engines that die one after the other, each deciding this request, or none; the life of the last one to start."""
    now = life(1, None, None, sessions)
    for epoch, request in enumerate(named, 1):
        now = life(epoch + 1, now, LastWords(epoch, 1, request), sessions)
    return now


def test_two_deaths_in_a_row_and_not_one_quarantine_a_request(sessions):
    once = lives(sessions, (ANN, 7))
    assert (once.suspicion.session, once.suspicion.sequence, once.suspicion.deaths) == (ANN, 7, 1)
    assert once.quarantined == []
    twice = lives(sessions, (ANN, 7), (ANN, 7))
    assert (twice.suspicion, twice.quarantined) == (None, [(ANN, 7)])


@pytest.mark.parametrize("between", [None, (ANN, 8), (BOB, 7)])
def test_a_death_in_between_that_names_somebody_else_begins_anew(sessions, between):
    assert lives(sessions, (ANN, 7), between, (ANN, 7)).quarantined == []
    assert lives(sessions, (ANN, 7), between, (ANN, 7), (ANN, 7)).quarantined == [(ANN, 7)]


def test_a_death_is_counted_once_however_many_starts_look_at_it(sessions):
    now = life(1, None, None, sessions)
    for epoch in (2, 3, 4):
        now = life(epoch, now, LastWords(1, 1, (ANN, 7)), sessions)
    assert now.suspicion.deaths == 1
    assert life(5, now, LastWords(4, 1, (ANN, 7)), sessions).quarantined == [(ANN, 7)]


def test_a_request_with_an_outcome_is_beyond_suspicion(sessions):
    once = lives(sessions, (ANN, 7))
    sessions.remember([Outcome(ANN, 7, Status.APPLIED, 1, [])])
    again = life(3, once, LastWords(2, 1, (ANN, 7)), sessions)
    assert (again.suspicion, again.quarantined) == (None, [])


def test_a_claim_that_waits_has_no_outcome_yet(sessions):
    sessions.wait(ANN, 7)
    sessions.remember([Outcome(ANN, 8, Status.APPLIED, 1, [])])
    assert lives(sessions, (ANN, 7)).suspicion.deaths == 1
    assert lives(sessions, (ANN, 7), (ANN, 7)).quarantined == [(ANN, 7)]
    sessions.quarantine(ANN, 7, 1)
    assert sessions.outcome_of(ANN, 7).detail == QUARANTINED, "whoever asks is told so before it comes again"
    sessions.take(SessionChange(ANN, "client 1", "", 2, 9, "another one"))
    assert sessions.outcome_of(ANN, 7).detail == QUARANTINED, "and where it does not"


def test_the_loss_of_a_claim_is_known_by_the_claim_and_remembered_as_long_as_it_is_held(sessions):
    one, other = Lease(0, "a", 7, ANN), Lease(0, "a", 9, ANN)
    named = ENGINE, loss_of(one)
    once = life(2, life(1), LastWords(1, 1, named), sessions, [one])
    assert once.suspicion.deaths == 1
    assert life(3, once, LastWords(2, 1, named), sessions, [other]).suspicion is None
    twice = life(3, once, LastWords(2, 1, named), sessions, [one, other])
    assert twice.quarantined == [named]
    assert life(4, twice, LastWords(3, 1, (ANN, 1)), sessions, [one]).quarantined == [named]
    assert life(4, twice, None, sessions, [other]).quarantined == []


def test_what_is_quarantined_is_remembered_as_long_as_its_session_and_not_suspected_again(sessions):
    twice = lives(sessions, (ANN, 7), (ANN, 7))
    clean = life(5, twice, None, sessions)
    assert (clean.suspicion, clean.quarantined) == (None, [(ANN, 7)])
    named = life(6, clean, LastWords(5, 1, (ANN, 7)), sessions)
    assert (named.suspicion, named.quarantined) == (None, [(ANN, 7)])
    sessions.forget([ANN])
    assert life(7, named, LastWords(6, 1, (ANN, 8)), sessions).quarantined == []


def test_a_request_of_a_session_that_was_forgotten_is_nobodys(sessions):
    once = lives(sessions, (ANN, 7))
    sessions.forget([ANN])
    assert life(3, once, LastWords(2, 1, (ANN, 7)), sessions).suspicion is None


def test_the_quarantined_are_bounded_and_the_oldest_forgotten_first(sessions):
    full = Life(1, b"h", "process", "boot", False, quarantined=[(ANN, 1_000 + one) for one in range(QUARANTINED_MAX)])
    once = life(3, full, LastWords(2, 1, (ANN, 7)), sessions)
    twice = life(4, once, LastWords(3, 1, (ANN, 7)), sessions)
    assert twice.quarantined == [*full.quarantined[1:], (ANN, 7)]


# --- what memory says -------------------------------------------------------------------------------------------------


@pytest.fixture
def dead(tmp_path):
    """`dead(epoch)`: what is left in memory of an engine whose process is gone; None for one that made no root."""
    (tmp_path / "state").mkdir()
    folder = StateFolder(tmp_path / "state")

    def left(epoch, made=True):
        prefix = f"solewriter-{epoch}"
        where = Whereabouts(MEMORY_VERSION, GONE, 12345, epoch, str(tmp_path), prefix, os.fsencode(folder.path))
        folder.marker(prefix).write_bytes(msgspec.json.encode(where))
        if not made:
            return None
        return RootWriter(
            Segment.create(segment_path(str(tmp_path), prefix, "root"), 64 * KIB), epoch, GONE, 12345, "power"
        )

    left.folder = folder
    yield left
    for old in folder.markers():
        remove_segments(old.memory_dir, old.prefix)


def test_the_request_that_the_last_engine_was_deciding_is_found_in_its_memory(dead):
    assert last_words(dead.folder) is None
    for epoch in (1, 3, 2):
        root = dead(epoch)
        root.beat(period_us=1_000)
        root.begin_deciding(ANN, epoch)
    assert last_words(dead.folder) == (3, GONE, (ANN, 3))


def test_an_engine_that_died_between_two_requests_names_nobody(dead):
    root = dead(1)
    root.beat(period_us=1_000)
    assert last_words(dead.folder) == (1, GONE, None)


def test_engines_that_never_served_or_left_no_memory_are_no_witnesses(dead):
    """A start that fails changes nothing: the one before it is asked."""
    root = dead(1)
    root.beat(period_us=1_000)
    root.begin_deciding(ANN, 7)
    dead(2)
    dead(3, made=False)
    damaged = dead(4)
    damaged.segment.map[:8] = bytes(8)
    assert last_words(dead.folder) == (1, GONE, (ANN, 7))


def test_an_engine_that_lives_says_no_last_words(dead):
    root = dead(1)
    root.beat(period_us=1_000)
    where = Whereabouts(
        MEMORY_VERSION, os.getpid(), start_time_of(os.getpid()), 1, str(dead.folder.path.parent), "solewriter-1"
    )
    dead.folder.marker("solewriter-1").write_bytes(msgspec.json.encode(where))
    assert last_words(dead.folder) is None


def test_what_the_engine_of_a_copied_folder_was_deciding_is_not_asked_of_the_copy(dead, tmp_path):
    """That memory is the other folder's, and stays: the copy would count the same death again and again."""
    root = dead(1)
    root.beat(period_us=1_000)
    root.begin_deciding(ANN, 7)
    copied = StateFolder(shutil.copytree(dead.folder.path, tmp_path / "copy"))
    assert last_words(copied) is None
    assert last_words(dead.folder) == (1, GONE, (ANN, 7))
