"""Requests that the express way takes one after the other, among others: as if each had been looked at by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.bench.steps import SESSION, Steps, steps
from solewriter.engine_proc import express
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.express import Express
from solewriter.engine_proc.session import NEVER
from solewriter.shared import failpoint, wire
from solewriter.shared.config import FRAME_REQUESTS_MAX
from solewriter.shared.errors import MemoryFull
from solewriter.shared.mutations import Op
from solewriter.shared.request_ids import default_id
from solewriter.shared.wire import PlainReply, Status

TASKS = 4
UPDATE, CREATE, DELETE, CLAIM = Op.UPDATE.value, Op.CREATE.value, Op.DELETE.value, Op.CLAIM.value


def request(*mutations: Any, request_id: str | None = None, deadline_us: int | None = None) -> Any:
    return [*mutations], [], request_id, deadline_us


def update(place: int, expect: int | None = None, **fields: Any) -> Any:
    return UPDATE, "Task", f"task-{place:06d}", expect, fields, "", None


places = st.integers(0, TASKS)  # the last one is created and deleted by requests only
fields = st.fixed_dictionaries(
    {},
    optional={
        "budget_limit": st.none() | st.floats(-1, 3),
        "title": st.sampled_from(["", "x", "y"]),
        "priority": st.sampled_from(["high", "odd"]),
        "tags": st.just(["a"]),
    },
)
updates = st.builds(
    lambda place, expect, fields: update(place, expect, **fields), places, st.none() | st.integers(1, 4), fields
)
others = st.one_of(
    st.builds(lambda place: (CREATE, "Task", f"task-{place:06d}", 0, {"title": "new"}, "", None), places),
    st.builds(lambda place: (DELETE, "Task", f"task-{place:06d}", None, None, "", None), places),
)
claims = st.builds(
    lambda until_us: (CLAIM, "Task", "*", None, {"count": 1, "where": {}, "until_us": until_us}, "", None),
    st.sampled_from([None, 2**62]),
)
requests = st.one_of(
    st.builds(request, updates),
    st.builds(request, updates),
    st.builds(request, others),
    st.builds(request, claims),
    st.builds(request, updates, updates),
    st.builds(lambda one, id: request(one, request_id=id), updates, st.sampled_from(["mine", "yours"])),
    st.builds(lambda one, due_us: request(one, deadline_us=due_us), updates, st.sampled_from([1, 2**62])),
    st.builds(lambda number: ("outcome", default_id(SESSION, number)), st.integers(0, 600)),
)


class Told:
    """An engine in this process, and what it answered to frames that were written by hand."""

    def __init__(self, engine: Steps) -> None:
        self.engine = engine
        os.set_blocking(engine._ours[1], False)

    def turn(self, frame: list[Any], number: int | None = None) -> list[PlainReply]:
        """The replies to this frame, decided in one turn; one that was sent before has its number."""
        engine = self.engine
        lane, taken = engine.lane, []
        lane._next_frame = engine._frame if number is None else number
        engine._frame += number is None
        lane._decode(wire.pack_frame(frame, engine.limits)[4:], taken)
        turn = engine.decided(taken)
        if not turn.empty:
            engine.merged(engine.committed(turn))
        try:
            engine.replied(turn)
        except BlockingIOError:
            return []  # there is no answer yet to claims that wait
        return wire.unpack_replies(bytearray(engine.sent))

    def content(self) -> list[Any]:
        state = self.engine.writer.state
        kind = state.named("Task")
        assert kind is not None
        found = [state.find(kind, f"task-{place:06d}") for place in range(TASKS + 1)]
        return [state.revision, [(one.version, one.alive, one.payload, one.block) if one else None for one in found]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


numbers = iter(range(1_000_000))


@pytest.fixture
def told(folder: Path) -> Iterator[Told]:
    with steps(folder / f"{next(numbers)}", "process", TASKS) as engine:
        yield Told(engine)


@settings(max_examples=60, deadline=None)
@given(frames=st.lists(st.lists(requests, min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_run_is_as_if_each_were_looked_at_by_itself(folder: Path, interpreted: Any, frames: list[list[Any]]) -> None:
    interpreted(SingleWriter)
    with (
        steps(folder / f"{next(numbers)}", "process", TASKS) as one,
        steps(folder / f"{next(numbers)}", "process", TASKS) as other,
    ):
        usual, general = Told(one), Told(other)
        with pytest.MonkeyPatch.context() as patch:
            for frame in frames:
                said = usual.turn(frame)
                with patch.context() as only_generally:
                    only_generally.setattr(Express, "take", lambda *given: 0)
                    assert said == general.turn(frame)
                assert usual.content() == general.content()


def test_those_behind_it_are_not_taken_before_what_it_leaves(told: Told) -> None:
    said = told.turn([
        request(update(0, 1, budget_limit=2.0)),
        request(update(1, 7, budget_limit=2.0)),  # a conflict
        request(update(0, 2, budget_limit=3.0)),
        ("outcome", default_id(SESSION, 0)),
        request((DELETE, "Task", "task-000000", None, None, "", None)),
        request(update(0, budget_limit=4.0)),
        request(update(2, budget_limit=4.0)),
    ])  # fmt: skip
    assert [one.status for one in said] == [
        Status.APPLIED, Status.REFUSED, Status.APPLIED, Status.ANSWER, Status.APPLIED, Status.REFUSED, Status.APPLIED,
    ]  # fmt: skip
    assert [one.detail[0] for one in said if one.status == Status.REFUSED] == ["VersionConflict", "NotFound"]
    revisions = [one.revision for one in said]
    assert revisions == sorted(revisions)
    assert revisions[-1] - revisions[0] == 3


def test_what_was_told_is_told_again_and_not_done_again(told: Told) -> None:
    number = told.engine._frame
    frame = [request(update(place, budget_limit=2.0)) for place in range(TASKS)]
    said, content = told.turn(frame), told.content()
    assert told.turn(frame, number) == said
    assert told.content() == content
    again = told.turn([*frame, request(update(0, budget_limit=3.0))], number)  # with one that is new
    assert again[:TASKS] == said
    assert [one.detail[0][0] for one in again[TASKS:]] == [3]


def test_what_never_will_be_applied_is_left_alone(told: Told) -> None:
    """Because somebody asked for its number before it came, in an earlier turn or in this one, or because engines died
    of it.
    """

    def coming(place: int, frames: int = 0) -> int:
        return (told.engine._frame + frames) * FRAME_REQUESTS_MAX + place

    told.engine.lane.session.quarantined[coming(1, frames=1)] = NEVER
    (asked,) = told.turn([("outcome", default_id(SESSION, coming(2, frames=1)))])
    assert asked.detail is None
    frame = [request(update(place, budget_limit=2.0)) for place in range(3)]
    said = told.turn([*frame, ("outcome", default_id(SESSION, coming(4))), request(update(3, budget_limit=2.0))])
    assert [one.status for one in said] == [
        Status.APPLIED, Status.REFUSED, Status.REFUSED, Status.ANSWER, Status.REFUSED,
    ]  # fmt: skip
    assert [one.detail[0] for one in said if one.status == Status.REFUSED] == ["Quarantined", "Fenced", "Fenced"]
    _, versions = told.content()
    assert [one and one[0] for one in versions] == [2, 1, 1, 1, None]


def test_where_memory_is_full_it_and_what_follows_is_told_so_and_nothing_changed(
    told: Told, monkeypatch: pytest.MonkeyPatch, interpreted: Any
) -> None:
    interpreted(SingleWriter)
    heap, content = told.engine._epoch.publisher.heap, told.content()

    def full(*given: Any) -> Any:
        raise MemoryFull("no room")

    monkeypatch.setattr(heap, "append", full)
    monkeypatch.setattr(heap, "reserve", full)
    said = told.turn([request(update(place, budget_limit=2.0)) for place in range(2)])
    assert [(one.status, one.detail[0]) for one in said] == [(Status.UNAVAILABLE, "MemoryFull")] * 2
    assert told.content() == content


def test_a_run_ends_at_the_bounds_of_a_turn(folder: Path) -> None:
    """Of requests, and of bytes: what is behind them waits, counted as given and not as taken."""
    with steps(folder / f"{next(numbers)}", "process", TASKS) as engine:
        lane, waiting = engine.lane, engine.writer.intake.waiting
        frame = [request(update(number % TASKS, budget_limit=float(number))) for number in range(10)]
        sizes = []
        for most, bytes_max in ((3, 1 << 20), (256, 1), (256, 1 << 20)):
            limits = msgspec.structs.replace(engine.limits, batch_max=most, turn_bytes_max=bytes_max)
            engine.writer._limits = engine.writer._express._limits = limits
            taken: list[Any] = []
            if not sizes:
                lane._next_frame = engine._frame
                lane._decode(wire.pack_frame(frame, engine.limits)[4:], taken)
            before = lane.taken
            turn = engine.decided(taken)
            engine.replied(engine.merged(engine.committed(turn)))
            sizes.append((len(turn.outcomes), lane.taken - before))
        assert sizes == [(3, 3), (1, 1), (6, 6)]
        assert not waiting


def test_who_waits_for_work_or_has_a_deadline_is_served_the_express_way_too(
    told: Told, monkeypatch: pytest.MonkeyPatch, interpreted: Any
) -> None:
    interpreted(SingleWriter)
    short: list[Any] = []
    true = express.update
    monkeypatch.setattr(express, "update", lambda turn, plain, *rest: short.append(plain) or true(turn, plain, *rest))
    session = told.engine.lane.session
    session.waiting.add(1)
    session.fenced.add(session.last + 10_000)
    late = request(update(1, budget_limit=2.0), deadline_us=1)
    frame = [
        request(update(0, budget_limit=2.0)),
        late,
        request(update(2, budget_limit=2.0), deadline_us=2**60),
        request(update(3, budget_limit=-1.0)),
        request(update(3, budget_limit=3.0)),
    ]
    said = told.turn(frame)
    assert [one.status for one in said] == [
        Status.APPLIED, Status.REFUSED, Status.APPLIED, Status.REFUSED, Status.APPLIED,
    ]  # fmt: skip
    assert [one.detail[0] for one in said if one.status == Status.REFUSED] == ["Expired", "InvalidMutation"]
    assert short == frame, "each was looked at once"


def test_each_request_is_begun_once(told: Told, monkeypatch: pytest.MonkeyPatch, interpreted: Any) -> None:
    interpreted(SingleWriter)
    reached: list[str] = []
    monkeypatch.setattr(failpoint, "reach", reached.append)
    good, invalid, conflict = update(0, budget_limit=2.0), update(0, budget_limit=-1.0), update(1, 9, title="x")
    told.turn([request(one) for one in (good, invalid, good, conflict, good, conflict, conflict, invalid)])
    assert reached.count("decide.begin") == 8
