"""Everything of coordination that belongs to the state: boards by kind, leases, paused projects.

Boards and the like are made when a request first needs one, before it is decided, by a look at every entity of the kind
(see `making`): so nobody who does not coordinate pays for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.entities import Entities
from solewriter.engine_proc.coordination.kept import Kept, Names
from solewriter.engine_proc.coordination.leases import Leases
from solewriter.engine_proc.coordination.making import Making, Unready
from solewriter.engine_proc.coordination.projects import Projects
from solewriter.engine_proc.coordination.tally import Tally
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.shared.config import Limits
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Project
from solewriter.shared.mutations import Guard, Op
from solewriter.shared.readiness import DEPENDS, ENDING
from solewriter.shared.wireform import PlainRequest

if TYPE_CHECKING:
    from solewriter.engine_proc.decide import Draft, Step
    from solewriter.engine_proc.turn import Turn
    from solewriter.shared.where import Demand

_CREATE, _CANCEL, _DELETE, _CLAIM = (op.value for op in (Op.CREATE, Op.CANCEL, Op.DELETE, Op.CLAIM))
_UPDATE, _ALTER = Op.UPDATE.value, Op.ALTER.value
_NONE = Guard.REQUIRE_NONE.value
COSTS = frozenset({"cost", "project"})
OF_PROJECTS = frozenset({"status", "budget_limit", "on_budget"})  # that keep tasks back
ALONE = "alone"  # in place of a state, that nothing is cancelled with what is interrupted


class Coordination:
    """What deciding asks about many tasks at once. What the turn that is being decided has changed counts already."""

    def __init__(self, limits: Limits, time_budget: TimeBudget) -> None:
        self.limits = limits
        self.time_budget = time_budget
        self.leases = Leases()
        self.cascades: set[int] = set()  # kinds in which some entity was ever to be cancelled with another
        self.boards: dict[int, Board] = {}  # those that are being made, too, and so are the others
        self.tallies: dict[int, Kept[Tally]] = {}  # by kind
        self._heeded: dict[int, frozenset[str]] = {}  # by kind: fields whose changes matter here
        self.making = Making(limits.making_slice_s)
        self.idle = True  # nobody coordinates: requests about one entity's plain fields need not be looked at
        self._projects: Projects | None = None  # None: not looked yet
        self._entities = Entities()

    def begin(self, turn: Turn) -> None:
        """Another turn."""
        self._entities.turn = turn
        self.making.begin_turn()
        self.idle = not (self.boards or self.leases.by_place or self.cascades or self.tallies)

    def passes(self, turn: Turn, request: PlainRequest) -> bool:
        """Whether a request is none of its business, where somebody coordinates: it updates one entity, that nobody
        holds or was kept from, in fields that nobody heeds.
        """
        if request[1] or len(request[0]) != 1:
            return False
        op, name, key, _, fields, _, _ = request[0][0]
        kind = turn.named(name)
        if op != _UPDATE or kind is None or not fields:
            return False
        heeded = self._heeded.get(kind.code)
        if heeded is None:
            heeded = self._heeded[kind.code] = self._fields_heeded(kind)
        board = self.boards.get(kind.code)
        if board is not None and key in board.denied:
            return False
        return heeded.isdisjoint(fields) and turn.lease((kind.code, key)) is None

    def _fields_heeded(self, kind: KindState) -> frozenset[str]:
        tallies = self.tallies.get(kind.code)
        names = {name for columns in (tallies.by_names if tallies is not None else ()) for name in columns}
        if kind.kind is not None and _is_of_projects(kind.kind):
            names |= OF_PROJECTS
        if kind.kind is not None and kind.kind.claimable:
            board = self.boards.get(kind.code)
            names |= DEPENDS | ENDING | COSTS | (board.attended if board is not None else frozenset())
        return frozenset(names)

    # --- made at first need ------------------------------------------------------------------------------------------

    def attends(self, turn: Turn, request: PlainRequest) -> bool:
        """Whether a request has anything to do with coordination; then all that deciding it will look at is there.
        Raises Unready while it is not.
        """
        attended, ready = not self.idle or bool(request[1]), True
        for op, name, _, _, fields, _, what in request[0]:
            if op == _CLAIM:
                attended = True
                ready &= self._can_claim(turn, name, fields)
            elif _depends(fields) or (what is not None and op == _CANCEL) or self._may_end_others(turn, op, fields):
                attended = True
                ready &= self._has_board(turn, name)
            elif (op > _DELETE and op != _ALTER) or self._may_link(turn, name):
                attended = True
        for code, name, _, said in request[1]:
            if code == _NONE:
                ready &= self._can_count(turn, name, said)
        self.idle &= not attended
        if not ready:
            raise Unready
        return attended

    def _may_end_others(self, turn: Turn, op: int, fields: Any) -> bool:
        """Where entities are cancelled with others: whether it may end one. What is new has not ended."""
        if op == _CREATE or not (self.cascades or turn.cascades):
            return False
        return op not in (_UPDATE, _ALTER) or (fields is not None and not ENDING.isdisjoint(fields))

    def _may_link(self, turn: Turn, name: str) -> bool:
        """Whether its class may say of itself what an entity depends on."""
        kind = turn.named(name)
        return kind is not None and kind.kind is not None and kind.kind.may_link

    def _tasks(self, turn: Turn, name: str) -> KindState | None:
        """The kind of tasks of this name. There may be none: then the request is refused."""
        kind = turn.named(name)
        return kind if kind is not None and kind.kind is not None and kind.kind.claimable else None

    def _has_board(self, turn: Turn, name: str) -> bool:
        kind = self._tasks(turn, name)
        if kind is None:
            return True
        self._board(kind)
        return self.making.soon(("board", kind.code))

    def _can_claim(self, turn: Turn, name: str, said: Any) -> bool:
        kind = self._tasks(turn, name)
        where = said.get("where") if said is not None else None
        if kind is None or kind.kind is None or type(where) is not dict:
            return True
        board, names = self._board(kind), tuple(sorted(where))
        board.ready.put_back()
        self._of_projects()
        if not (self.making.soon(("board", kind.code)) and self.making.soon("projects")):
            return False
        if set(names) <= set(board.columns) and not board.ready.has(names):
            self.making.begin(("view", kind.code, names), board.ready.begin(names))
        return self.making.soon(("view", kind.code, names))

    def _can_count(self, turn: Turn, name: str, said: Any) -> bool:
        kind = turn.named(name)
        if kind is None or kind.kind is None or type(said) is not tuple or type(said[1]) is not dict:
            return True
        names = tuple(sorted(said[1]))
        if not set(names) <= set(kind.kind.model.column_names):
            return True
        self._tallies(kind, names)
        return self.making.soon(("tally", kind.code, names))

    def _board(self, kind: KindState) -> Board:
        board = self.boards.get(kind.code)
        if board is None:
            assert kind.kind is not None
            board = Board(kind.kind, kind.schema.defaults, partial(self._entities.look, kind))
            self.boards[kind.code] = board
            self._heeded.clear()
            self.making.begin(("board", kind.code), self._entities.each(kind, board.note))
        return board

    def board(self, kind: KindState) -> Board:
        """Of a kind, whole."""
        board = self._board(kind)
        self.making.finish(("board", kind.code))
        return board

    def _tallies(self, kind: KindState, names: Names) -> Kept[Tally]:
        """Of a kind. One by these columns is made, if nobody has to wait for it in vain."""
        code, tallies = kind.code, self.tallies.setdefault(kind.code, Kept())
        if not tallies.has(names):
            tally = Tally(names, kind.schema.defaults)
            self._heeded.clear()
            self.making.begin(("tally", code, names), self._each_counted(kind, tally))
            oldest = tallies.begin(names, tally)
            if oldest is not None:
                self.making.forget(("tally", code, oldest))
        return tallies

    def _each_counted(self, kind: KindState, tally: Tally) -> Iterator[None]:
        note = tally.note
        return self._entities.each(kind, lambda key, _, fields: note(key, fields))

    def count(self, kind: KindState, wanted: Sequence[Demand]) -> int:
        """How many entities of a kind meet these demands, after the earlier requests of the turn."""
        wanted = sorted(wanted, key=lambda demand: demand.name)
        names = tuple([demand.name for demand in wanted])
        tallies = self._tallies(kind, names)
        self.making.finish(("tally", kind.code, names))
        tally = tallies.ask(names)
        if tally is None:
            tally = Tally(names, kind.schema.defaults)
            for _ in self._each_counted(kind, tally):
                pass
        return tally.count(wanted)

    # --- kept up -----------------------------------------------------------------------------------------------------

    def note(self, turn: Turn, draft: Draft, steps: Iterable[Step]) -> None:
        """A request was written, with these steps: what is kept here follows."""
        for step in steps:
            stored = step.stored
            if stored is None:
                continue
            code = step.state.code
            fields = self._entities.whole(step.state, step.key, step.fields) if step.exists else None
            if code in self.tallies:
                for names, tally in self.tallies[code].by_names.items():
                    if fields is None or not names or not set(names).isdisjoint(step.touched):
                        tally.note(step.key, fields)
            board = self.boards.get(code)
            if board is not None and (
                fields is None or not board.attended.isdisjoint(step.touched) or step.key in board.denied
            ):
                board.note(step.key, stored.slot, fields)
            if self._projects is not None:
                if step.kind.claimable and (fields is None or not COSTS.isdisjoint(step.touched)):
                    self._projects.note_cost((code, step.key), fields)
                elif _is_of_projects(step.kind):
                    self._projects.note(step.key, fields)
        turn.leases.update(draft.leases)

    def discard(self) -> None:
        """Make everything anew at the next need: what was written did not happen, or classes are others by now."""
        self.boards.clear()
        self.tallies.clear()
        self.making.clear()
        self._entities.forget_classes()
        self._heeded.clear()
        self._projects = None
        self.leases.try_again()

    # --- projects ----------------------------------------------------------------------------------------------------

    def projects(self) -> Projects:
        """Of all kinds of tasks, whole."""
        projects = self._of_projects()
        self.making.finish("projects")
        return projects

    def _of_projects(self) -> Projects:
        if self._projects is None:
            self._projects = Projects(self._resume)
            self.making.begin("projects", self._each_cost(self._projects))
        return self._projects

    def _each_cost(self, projects: Projects) -> Iterator[None]:
        for kind in list(self._entities.turn.kinds):
            if kind.kind is not None and _is_of_projects(kind.kind):
                yield from self._entities.each(kind, lambda key, _, fields: projects.note(key, fields))
            elif kind.kind is not None and kind.kind.claimable:
                yield from self._entities.each(kind, partial(_note_cost, projects, kind.code))

    def _resume(self, project: str) -> None:
        for board in self.boards.values():
            board.ready.resume(project)


def _is_of_projects(kind: Kind) -> bool:
    """Whether its entities are what tasks name as their project. A subclass is a kind of its own, with its own ids."""
    return kind.name == Project.kind_name and issubclass(kind.model, Project)


def _depends(fields: Any) -> bool:
    return fields is not None and not DEPENDS.isdisjoint(fields)


def _note_cost(projects: Projects, code: int, key: str, _: int, fields: Mapping[str, Any]) -> None:
    projects.note_cost((code, key), fields)
