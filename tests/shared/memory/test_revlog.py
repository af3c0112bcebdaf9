"""The revision log knows a place in the heap for every revision: never behind it, and never far before it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared.config import REVISION_LOG_STRIDE
from solewriter.shared.errors import MemoryFull
from solewriter.shared.memory import revlog
from solewriter.shared.memory.revlog import POINTS, RevisionLogReader, RevisionLogWriter
from solewriter.shared.memory.segment import Segment


class Log:
    """A revision log in a folder, and every (revision, tail) that was published."""

    def __init__(self, folder):
        self.folder = folder
        self.room = True
        self.made = []
        self.writer = RevisionLogWriter(self.make)
        self.reader = RevisionLogReader(lambda number: Segment.attach(folder / f"revlog-{number}"))
        self.published = []

    def make(self, number, size):
        if not self.room:
            raise MemoryFull("no room")
        self.made.append(number)
        return Segment.create(self.folder / f"revlog-{number}", size)

    def publish(self, revision, tail):
        self.writer.reserve()
        self.writer.append(revision, tail)
        self.published.append((revision, tail))

    def tail_after(self, revision):
        return self.reader.tail_after(revision, self.writer.first, self.writer.points)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


STEPS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 900) | st.sampled_from([REVISION_LOG_STRIDE, 5 * REVISION_LOG_STRIDE, 1 << 32]),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, start=st.integers(0, 2**40), gap=st.integers(0, 3))
def test_the_place_of_a_revision_is_never_behind_it_and_never_far_before_it(tmp_path_factory, steps, start, gap):
    log = Log(tmp_path_factory.mktemp("revlog"))
    revision, tail = start, 64
    for more, moved in steps:
        revision, tail = revision + more, tail + moved
        log.publish(revision, tail)
    for asked in {start, *(known + gap for known, _ in log.published), *(known - 1 for known, _ in log.published)}:
        found = log.tail_after(asked)
        known = [tail for revision, tail in log.published if revision <= asked]
        if not known:
            assert found is None
            continue
        assert found <= known[-1]
        assert known[-1] - found < REVISION_LOG_STRIDE
        assert found in known


def test_an_empty_log_knows_nothing(log):
    assert log.tail_after(0) is None
    assert log.tail_after(2**63) is None
    assert log.made == []


def test_a_point_is_written_only_where_the_heap_moved_on(log):
    tail = 64
    for revision in range(1, 1_001):
        log.publish(revision, tail)
        tail += REVISION_LOG_STRIDE // 10
    assert 90 <= log.writer.points <= 100


def test_the_log_goes_on_over_segments(log):
    count = 2 * POINTS + 10
    for revision in range(1, count + 1):
        log.publish(revision * 3, revision * REVISION_LOG_STRIDE)
    assert log.writer.points == count
    assert log.made == [0, 1, 2]
    for revision in itertools.chain(range(1, 30), range(POINTS - 2, POINTS + 3), range(2 * POINTS - 2, count + 1)):
        assert log.tail_after(revision * 3) == revision * REVISION_LOG_STRIDE
        assert log.tail_after(revision * 3 + 2) == revision * REVISION_LOG_STRIDE
    assert log.tail_after(2) is None


def test_a_reader_is_bound_to_what_its_root_lists(log):
    for revision in range(1, 11):
        log.publish(revision, revision * REVISION_LOG_STRIDE)
    assert log.reader.tail_after(10, 0, 4) == 4 * REVISION_LOG_STRIDE
    assert log.reader.tail_after(3, 0, 4) == 3 * REVISION_LOG_STRIDE
    assert log.reader.tail_after(3, 0, 0) is None


def test_what_is_older_than_the_first_segment_is_unknown(log):
    for revision in range(1, POINTS + 11):
        log.publish(revision, revision * REVISION_LOG_STRIDE)
    (log.folder / "revlog-0").unlink()
    reader = RevisionLogReader(lambda number: Segment.attach(log.folder / f"revlog-{number}"))
    assert reader.tail_after(POINTS, 1, log.writer.points) is None
    assert reader.tail_after(POINTS + 5, 1, log.writer.points) == (POINTS + 5) * REVISION_LOG_STRIDE


def test_room_that_was_reserved_and_not_used_is_there_next_time(log):
    for _ in range(3):
        log.writer.reserve()
    assert log.made == [0]
    log.room = False
    for revision in range(1, POINTS + 1):
        log.publish(revision, revision * REVISION_LOG_STRIDE)
    for _ in range(2):
        with pytest.raises(MemoryFull):
            log.writer.reserve()
    assert log.tail_after(POINTS) == POINTS * REVISION_LOG_STRIDE
    log.room = True
    log.publish(POINTS + 1, (POINTS + 1) * REVISION_LOG_STRIDE)
    assert log.tail_after(POINTS + 1) == (POINTS + 1) * REVISION_LOG_STRIDE


def test_threads_that_look_at_once_find_their_places(log, at_step, interpreted):
    """Each of its own root, so what one has no use for any more another one reads."""
    interpreted(revlog)
    for number in range(3 * POINTS):
        log.publish(number + 1, number * REVISION_LOG_STRIDE)
    steps, reached, newer = 0, [""], []
    while reached:
        steps += 1
        newer.clear()
        with at_step(steps, lambda: newer.append(log.reader.tail_after(9_000, 2, 3 * POINTS)), revlog) as reached:
            assert log.reader.tail_after(5, 0, 3 * POINTS) == 4 * REVISION_LOG_STRIDE, reached
        assert newer == [8_999 * REVISION_LOG_STRIDE] * len(reached)
        log.reader = RevisionLogReader(log.reader._attach)
        assert log.tail_after(POINTS + 1) == POINTS * REVISION_LOG_STRIDE
    assert steps > 10
