"""What a board says is ready is what looking at every task says, after any changes, in the order of claims."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator

from solewriter import Range, Task, TaskPriority, TaskStatus
from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.leases import Leases, ended_lease, renewed
from solewriter.engine_proc.coordination.making import Making
from solewriter.engine_proc.coordination.projects import Projects
from solewriter.engine_proc.coordination.tally import Tally
from solewriter.engine_proc.coordination.waiting import Line, LinesOfKind, Wish
from solewriter.shared.config import LINE_VALUES_MAX, STALE_MAX
from solewriter.shared.journal.entry import Lease
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.readiness import CLAIMABLE, has_attempts_left, is_met, state_of
from solewriter.shared.registry import Registry
from solewriter.shared.where import Demand, demands, plain_where, single

KIND = Registry().of(Task)
KEYS = [f"k{number}" for number in range(7)]
FIELDS = st.fixed_dictionaries(
    {
        "status": st.just("created") | st.sampled_from([status.value for status in TaskStatus]),
        "priority": st.sampled_from([priority.value for priority in TaskPriority]),
        "project": st.sampled_from(["", "p", "q"]),
        "dependencies": st.lists(st.sampled_from(KEYS), max_size=3, unique=True),
        "on_dependency_failure": st.sampled_from(["block", "cancel", "ignore"]),
        "attempts": st.integers(0, 2),
        "max_retries": st.integers(0, 1),
        "not_before": st.none() | st.integers(1, 100).map(from_us),
        "created_at": st.integers(1, 5).map(from_us),
    }
)
CHANGES = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | FIELDS), max_size=25)
WHERES: list[dict[str, Any]] = [
    {},
    {"project": "p"},
    {"project": ["", "q"], "priority": ["high", "low"]},
    {"created_at": Range(ge=from_us(3))},
    {"status": "failed"},
    {"parent_task_id": None},
]


def wanted(where: dict[str, Any]) -> list[Demand]:
    return demands(KIND, plain_where(KIND, where))


def stored(fields: dict[str, Any]) -> dict[str, Any]:
    """As a payload has them: without what is as by default."""
    defaults = KIND.schema.defaults
    return {name: value for name, value in fields.items() if value != defaults.get(name)}


def ready(tasks: dict[str, dict[str, Any]], now_us: int, kept: str, where: list[Demand]) -> list[str]:
    """By looking at every task."""

    def field(key: str):
        return lambda name: single(tasks[key].get(name, KIND.schema.defaults.get(name)))

    def is_ready(key: str) -> bool:
        ask, moment = field(key), tasks[key].get("not_before")
        return (
            ask("status") in CLAIMABLE
            and has_attempts_left(ask)
            and (moment is None or moment <= from_us(now_us))
            and ask("project") != kept
            and all(
                one in tasks and is_met(state_of(field(one)), ask("on_dependency_failure"))
                for one in tasks[key].get("dependencies", ())
            )
            and all(demand.holds(ask(demand.name)) for demand in where)
        )

    rank = {priority.value: place for place, priority in enumerate(TaskPriority)}
    return sorted(
        filter(is_ready, tasks),
        key=lambda key: (rank[field(key)("priority")], tasks[key].get("created_at"), KEYS.index(key)),
    )


def offered(board: Board, where: list[Demand], kept: str, most: int = 99) -> list[str]:
    found: list[str] = []

    def take(candidate: Any) -> bool:
        if candidate.key in found:
            return False
        found.append(candidate.key)
        return True

    board.ready.best(where, lambda project: project == kept, most, take)
    return found


@settings(max_examples=150)
@given(CHANGES, CHANGES, st.integers(0, 100), st.integers(0, 100))
def test_a_board_is_what_looking_at_everything_says(before, after, first_us, later_us):
    tasks: dict[str, dict[str, Any]] = {}
    board = Board(KIND, KIND.schema.defaults, tasks.get)
    for key, fields in before:
        tasks.pop(key, None)
        if fields is not None:
            tasks[key] = stored(fields)
    for key, fields in tasks.items():
        board.note(key, KEYS.index(key), fields)
    board.advance(first_us)
    for where in WHERES:
        assert offered(board, wanted(where), "") == ready(tasks, first_us, "", wanted(where))
        board.ready.resume("")
    for number, (key, fields) in enumerate(after):
        tasks.pop(key, None)
        if fields is not None:
            tasks[key] = stored(fields)
        board.note(key, KEYS.index(key), tasks.get(key))
        board.advance(first_us)
        where, kept = wanted(WHERES[number % len(WHERES)]), ("", "p", "q", "nobody's")[number % 4]
        assert offered(board, where, kept) == ready(tasks, first_us, kept, where)
        assert offered(board, where, kept, 1) == ready(tasks, first_us, kept, where)[:1]
        board.ready.resume(kept)
    now_us = max(first_us, later_us)
    board.advance(now_us)
    for where in WHERES:
        assert offered(board, wanted(where), "nobody's") == ready(tasks, now_us, "nobody's", wanted(where))
    board.advance(first_us)  # the clock is set back
    for where in WHERES:
        assert offered(board, wanted(where), "nobody's") == ready(tasks, first_us, "nobody's", wanted(where))
    board.advance(now_us)
    for where in WHERES:
        assert offered(board, wanted(where), "nobody's") == ready(tasks, now_us, "nobody's", wanted(where))
    coming = [one["not_before"] for key, one in tasks.items() if key not in ready(tasks, now_us, "nobody's", [])
              and key in ready({**tasks, key: {**one, "not_before": None}}, now_us, "nobody's", [])]  # fmt: skip
    assert (from_us(board.next_us) if board.next_us else None) == min(coming, default=None)


@settings(max_examples=150)
@given(CHANGES, CHANGES, st.integers(0, 3), st.integers(0, 100))
def test_a_board_that_is_made_while_tasks_change_is_the_same(before, after, steps, now_us):
    """Its keys are those of the beginning; of each, what there is when its turn comes. Likewise a view."""
    tasks = {key: stored(fields) for key, fields in before if fields is not None}
    board = Board(KIND, KIND.schema.defaults, tasks.get)
    shown = iter([*tasks])
    views = [board.ready.begin(("project",))]
    for key, fields in after:
        for known in islice(shown, steps):
            if known in tasks:
                board.note(known, KEYS.index(known), tasks[known])
        tasks.pop(key, None)
        if fields is not None:
            tasks[key] = stored(fields)
        board.note(key, KEYS.index(key), tasks.get(key))
        next(views[0], None)
        board.advance(now_us)
    for known in shown:
        if known in tasks:
            board.note(known, KEYS.index(known), tasks[known])
    board.advance(now_us)
    for _ in views[0]:
        pass
    for where in WHERES:
        assert offered(board, wanted(where), "nobody's") == ready(tasks, now_us, "nobody's", wanted(where))


def test_a_claim_of_many_takes_the_best_of_all_values_and_changes_nothing_by_itself():
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    projects = "pqprqqr"
    for slot, (key, project) in enumerate(zip(KEYS, projects, strict=True)):
        board.note(key, slot, {"project": project})
    for letters, where in (
        ("pqr", {}),
        ("pqr", {"project": ["p", "q", "r"]}),
        ("pq", {"project": ["q", "p"]}),
        ("pq", {"project": Range(le="q")}),
    ):
        meet = [key for key, one in zip(KEYS, projects, strict=True) if one in letters]
        for most in (9, 3, 9):
            assert offered(board, wanted(where), "nobody's", most) == meet[:most]


def test_what_nobody_depended_on_meanwhile_is_looked_at_anew():
    tasks: dict[str, dict[str, Any]] = {"a": {}, "b": {"dependencies": ["a"]}}
    board = Board(KIND, KIND.schema.defaults, tasks.get)

    def change(key: str, **fields: Any) -> None:
        tasks[key] = fields
        board.note(key, "abc".index(key), fields)

    for key, fields in tasks.items():
        change(key, **fields)
    assert offered(board, [], "nobody's") == ["a"]
    change("b")
    change("a", status="completed")
    change("c", dependencies=["a"])
    assert offered(board, [], "nobody's") == ["b", "c"]


def test_views_that_nobody_asks_do_not_grow_with_what_comes_and_goes():
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    made = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    assert offered(board, wanted({"project": "p"}), "") == []
    for _ in range(3 * STALE_MAX):
        board.note("t", 0, {"project": "q", "created_at": made})
        assert offered(board, wanted({"priority": "medium"}), "") == ["t"]
        board.note("t", 0, None)
    assert all(
        len(heap) <= STALE_MAX + 2 for view in board.ready._views.by_names.values() for heap in view.heaps.values()
    )
    board.note("t", 0, {"project": "p"})
    assert offered(board, wanted({"project": "p"}), "") == ["t"], "it is made again"


def test_what_is_to_come_later_does_not_grow_with_its_changes():
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    for number in range(3 * STALE_MAX):
        board.denied.add("t")
        board.note("t", 0, {"not_before": from_us(number + 1)})
    assert len(board._later) <= STALE_MAX + 2
    assert board.next_us == 3 * STALE_MAX
    assert not board.denied, "it is looked at anew"


def test_what_is_to_come_later_does_not_grow_with_changes_of_what_it_depends_on():
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    board.note("t", 0, {"dependencies": ["d"], "on_dependency_failure": "ignore", "not_before": from_us(9)})
    for attempts in (0, 1) * 3 * STALE_MAX:  # it is redriven, and fails for good
        board.note("d", 1, {"status": "failed", "attempts": attempts})
    assert len(board._later) <= STALE_MAX + 2
    for attempts in (0, 1):
        board.note("d", 1, {"status": "failed", "attempts": attempts})
        assert board.next_us == (9 if attempts else 0)
    board.advance(9)
    assert offered(board, [], "nobody's") == ["t"]


def test_what_a_project_keeps_back_does_not_grow_with_its_changes():
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    made = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    task = {"project": "p", "created_at": made, "dependencies": ["d"]}
    for number in range(100):
        board.note("d", 1, {"status": ("created", "completed")[number % 2]})
        board.note("t", 0, {**task, "priority": ("low", "high")[number % 2]})
        assert offered(board, wanted({"project": "p"}), "p") == []
    assert [[*kept] for kept in board.ready._aside.values()] == [["t"]]
    board.note("d", 1, None)
    assert not board.ready._aside, "it is not ready"
    board.note("d", 1, {"status": "completed"})
    assert offered(board, wanted({"project": "p"}), "p") == []
    board.ready.resume("p")
    assert offered(board, wanted({"project": "p"}), "") == ["t"]
    assert offered(board, wanted({"project": "p"}), "p") == []
    board.note("t", 0, None)
    assert not board.ready._aside


@given(CHANGES)
def test_a_tally_counts_what_is_there(changes):
    tasks: dict[str, dict[str, Any]] = {}
    for where in WHERES:
        some = sorted(wanted(where), key=lambda demand: demand.name)
        tally = Tally(tuple(demand.name for demand in some), KIND.schema.defaults)
        for key, fields in changes:
            tasks.pop(key, None)
            if fields is not None:
                tasks[key] = stored(fields)
            tally.note(key, tasks.get(key))
        defaults = KIND.schema.defaults
        meet = [one for one in tasks.values() if all(d.holds(one.get(d.name, defaults.get(d.name))) for d in some)]
        assert tally.count(some) == len(meet)
        tasks.clear()


LEASES = st.builds(
    Lease, st.integers(0, 1), st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 2), st.sampled_from([0, 10]),
    st.integers(0, 30),
)  # fmt: skip


@given(st.lists(LEASES, max_size=20), st.integers(0, 30))
def test_leases_are_the_last_ones_and_end_when_they_say(changes, now_us):
    leases, held = Leases(), dict[Any, Lease]()
    for lease in changes:
        leases.take(lease)
        held.pop((lease.kind, lease.key), None)
        if lease.token:
            held[lease.kind, lease.key] = lease
    assert {(one.kind, one.key): one for one in leases.all()} == held
    assert bool(leases) == bool(held)
    for session in (1, 2):
        assert leases.of_session(session) == [held[place] for place in sorted(held) if held[place].session == session]
    ends = [lease.until_us for lease in held.values() if lease.until_us]
    assert leases.next_us == min(ends, default=0)
    over = {place for place, lease in held.items() if lease.until_us and lease.until_us <= now_us}
    assert [(one.kind, one.key) for one in leases.over(now_us, 99)] == sorted(over)
    assert [one.until_us for one in leases.over(now_us, 1)] == sorted(ends)[: bool(over)]
    again = Leases()
    again.restore(leases.all())
    again.begin_anew(100)
    for place, lease in held.items():
        assert again.get(place) == (renewed(lease, lease.lease_us, 100) if lease.lease_us else lease)
        again.take(ended_lease(place))
    assert not again


def test_a_claim_looks_at_few_heaps_however_many_values_there_are():
    """Counted in candidates offered and heaps looked at: time would prove nothing."""
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    made = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    for n in range(5_000):
        board.note(f"t{n}", n, {"project": f"p{n}", "created_at": made})
    where = wanted({"project": "p77"})
    assert offered(board, where, "") == ["t77"]
    view = board.ready._views.by_names[("project",)]
    assert len(list(view.matching(where))) == 1
    assert len(view.heaps) == 5_000
    for number in range(5_000):
        board.note(f"t{number}", number, None)
    assert offered(board, wanted({"project": [f"p{n}" for n in range(5_000)]}), "") == []
    assert not view.heaps, "what is empty is not kept"


@pytest.mark.parametrize("most", [0, 1, 3])
def test_views_are_bounded(most):
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    board.note("a", 0, {})
    names = ["project", "priority", "type", "status", "parent_task_id", "assigned_to"]
    for number in range(2 ** len(names)):
        where = {name: None if name in ("parent_task_id", "assigned_to") else KIND.schema.defaults[name]
                 for place, name in enumerate(names) if number >> place & 1}  # fmt: skip
        assert offered(board, wanted(where), "nobody's", most) == ["a"][:most]
    assert len(board.ready._views.by_names) <= 16


@pytest.mark.parametrize("freezes", [False, True])
def test_what_is_made_is_frozen_where_that_was_said_and_not_wherever_something_is(freezes):
    """In an engine's process, that is. To ask the collector how much is frozen there takes longer than a slice."""
    making, made = Making(1.0), list[list[int]]()
    making.freezes = freezes
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        making.begin("things", (made.append([number]) for number in range(1_000)))
        making.go_on()
        frozen = gc.get_freeze_count() - before
    finally:
        gc.unfreeze()
    assert len(made) == 1_000
    assert (frozen >= 1_000) is freezes


@pytest.mark.parametrize("collects", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_what_looks_for_garbage_does_so_behind_a_slice_as_it_did_before(collects, fails):
    def steps() -> Iterator[None]:
        seen.append(gc.isenabled())
        yield
        if fails:
            raise MemoryError

    making, seen, before = Making(1.0), list[bool](), gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        making.begin("things", steps())
        with pytest.raises(MemoryError) if fails else nullcontext():
            making.go_on()
        assert seen == [False]
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "project": st.sampled_from(
            [
                ["p", *map(str, range(LINE_VALUES_MAX))],
                "p",
                ["p", "q"],
                Range(ge="p"),
                Range(gt="p"),
                Range(lt="q", ge=""),
            ]
        ),
        "priority": st.sampled_from(["high", Range(ge="medium"), Range(le="high", gt="critical"), Range()]),
        "created_at": st.sampled_from(
            [*(Range(ge=from_us(n), lt=from_us(n + 2)) for n in range(6)), Range(le=from_us(3))]
        ),
        "parent_task_id": st.sampled_from([None, Range(ge="")]),
    },
)


def line_for(where: dict[str, Any], number: int, kind: Kind = KIND) -> Line:
    asked = demands(kind, plain_where(kind, where))
    line = Line(wish := Wish(0, repr((number, where)).encode(), asked, 0), number)
    line.note(wish, -1)
    return line


@settings(max_examples=200)
@given(st.lists(ASKED, max_size=8), st.lists(FIELDS, min_size=1, max_size=4))
def test_those_are_looked_at_who_may_have_what_became_ready(asked, tasks):
    board = Board(KIND, KIND.schema.defaults, dict[str, Any]().get)
    of_kind, lines = LinesOfKind(board.ready.came), [line_for(where, number) for number, where in enumerate(asked)]
    for line in lines:
        of_kind.add(line)
    for number, fields in enumerate(tasks):
        board.note(
            KEYS[number], number, stored({**fields, "status": "created", "dependencies": [], "not_before": None})
        )
    of_kind.look(board.ready)

    def may_have(line: Line) -> bool:
        """Of one task, whether it has it; of several, at least whether one of them has it."""
        return any(all(demand.holds(single(task[demand.name]) if demand.name in task else None)
                       for demand in line.wish.demands) for task in tasks)  # fmt: skip

    assert [line.number for line in of_kind.due.values()] == sorted(line.number for line in of_kind.due.values())
    due, wanted_by = {line.number for line in of_kind.due.values()}, {line.number for line in lines if may_have(line)}
    assert due >= wanted_by
    if len(tasks) == 1:
        assert due == wanted_by


class Odd(Task, columns=("shade", "at")):
    shade: Annotated[int, AfterValidator(lambda value: 1 // (value - 7) and value)] = 1
    at: datetime.datetime | None = None


@pytest.mark.parametrize(
    ("where", "fields"),
    [({"shade": Range(ge=100)}, {"shade": 7}), ({"at": Range(ge=from_us(1))}, {"at": datetime.datetime(2030, 1, 1)})],
)
def test_who_asks_for_an_order_that_only_a_claim_can_tell_looks_at_whatever_becomes_ready(where, fields):
    kind = Registry().of(Odd)
    board = Board(kind, kind.schema.defaults, dict[str, Any]().get)
    of_kind = LinesOfKind(board.ready.came)
    of_kind.add(line := line_for(where, 0, kind))
    board.note("a", 0, fields)
    of_kind.look(board.ready)
    assert [*of_kind.due.values()] == [line]


def test_of_projects_whose_tasks_are_gone_nothing_is_kept():
    projects = Projects(lambda project: None)
    for number in range(100):
        projects.note_cost((0, "moved"), {"project": f"p{number}", "cost": 0.1})
        projects.note_cost((0, f"t{number}"), {"project": f"p{number}", "cost": 0.2})
        projects.note_cost((0, f"t{number}"), None)
    assert projects._spent.keys() == {"p99"}
