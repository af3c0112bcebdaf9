"""Everything of coordination that belongs to the state: boards by kind, leases, paused projects.

Boards are made when a request first needs one, by one look at every entity of the kind, and before it is decided: so
nobody who does not coordinate pays for it.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.leases import Leases
from solewriter.engine_proc.coordination.projects import Projects
from solewriter.engine_proc.coordination.tally import Tally
from solewriter.engine_proc.kinds import KindState
from solewriter.shared.config import VIEWS_MAX, Limits
from solewriter.shared.models import Entity, Project, Task
from solewriter.shared.mutations import Op
from solewriter.shared.wireform import PlainRequest

if TYPE_CHECKING:
    from solewriter.engine_proc.decide import Draft, Step
    from solewriter.engine_proc.turn import Stored, Turn
    from solewriter.shared.where import Demand

_CANCEL, _DELETE, _ALTER, _CLAIM = (op.value for op in (Op.CANCEL, Op.DELETE, Op.ALTER, Op.CLAIM))
DEPENDS = frozenset({"dependencies", "on_dependency_failure"})
COSTS = frozenset({"cost", "project"})
TREE = "tree"  # in place of a state, what a cancel takes


class Coordination:
    """Of one state. `turn` is the one that is being decided: what is looked at is as it is by then."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.leases = Leases()
        self._held = self.leases.by_place
        self.cascades: set[int] = set()  # kinds in which some entity was ever to be cancelled with another
        self.boards: dict[int, Board] = {}
        self.tallies: OrderedDict[tuple[int, tuple[str, ...]], Tally] = OrderedDict()  # by kind and columns
        self._projects: Projects | None = None  # None: not looked yet
        self.turn: Turn | None = None  # the one that is being decided

    # --- made at first need ------------------------------------------------------------------------------------------

    def attends(self, turn: Turn, request: PlainRequest) -> bool:
        """Whether a request has anything to do with coordination; then all that deciding it will look at is there. This
        is all that a plain request costs where nobody coordinates.
        """
        attended: Any = self.boards or self._held or self.cascades or self.tallies or request[1]
        for op, name, _, _, fields, _, what in request[0]:
            if op > _DELETE and op != _ALTER:
                attended = True
            if (
                op == _CLAIM
                or self.cascades
                or (fields and ("dependencies" in fields or "on_dependency_failure" in fields))
                or (what is not None and op == _CANCEL)
            ):
                attended = True
                self._prepare(turn, name)
        return bool(attended)

    def _prepare(self, turn: Turn, name: str) -> None:
        kind = turn.named(name)
        if kind is not None and kind.kind is not None and kind.kind.claimable:
            self.board(kind)

    def board(self, kind: KindState) -> Board:
        board = self.boards.get(kind.code)
        if board is None:
            assert kind.kind is not None
            board = Board(kind.kind, kind.schema.defaults, partial(self._look, kind))
            gc.disable()  # all of it is kept: to look through it would take twice as long again
            try:
                board.begin((key, stored.slot, fields) for key, stored, fields in self._all(kind))
            finally:
                gc.enable()
            self.boards[kind.code] = board
        return board

    def _all(self, kind: KindState) -> Iterable[tuple[str, Stored, Mapping[str, Any]]]:
        """Every entity of a kind, as it is by now in this turn."""
        turn = self.turn
        assert turn is not None
        assert kind.kind is not None
        new = [key for name, key in turn.changed if name == kind.name and key not in kind.slots]
        for key in [*kind.slots, *new]:
            stored = turn.find(kind, (kind.name, key))
            if stored is not None and stored.alive:
                yield key, stored, kind.kind.fields_of(kind.schema, stored.payload)

    def _look(self, kind: KindState, key: str) -> Mapping[str, Any] | None:
        assert self.turn is not None
        assert kind.kind is not None
        stored = self.turn.find(kind, (kind.name, key))
        return kind.kind.fields_of(kind.schema, stored.payload) if stored is not None and stored.alive else None

    def count(self, kind: KindState, wanted: Sequence[Demand]) -> int:
        """How many entities of a kind meet these demands, after the earlier requests of the turn."""
        wanted = sorted(wanted, key=lambda demand: demand.name)
        names = tuple([demand.name for demand in wanted])
        tally = self.tallies.get((kind.code, names))
        if tally is None:
            tally = self.tallies[kind.code, names] = Tally(names, kind.schema.defaults)
            tally.begin((key, fields) for key, _, fields in self._all(kind))
            if len(self.tallies) > VIEWS_MAX:
                self.tallies.popitem(last=False)
        self.tallies.move_to_end((kind.code, names))
        return tally.count(wanted)

    # --- kept up -----------------------------------------------------------------------------------------------------

    def written(self, turn: Turn, draft: Draft, steps: Iterable[Step]) -> None:
        """A request was, with these steps."""
        self.noted(steps)
        turn.leases.update(draft.leases)

    def noted(self, steps: Iterable[Step]) -> None:
        """A request was written."""
        for step in steps:
            stored = step.stored
            if stored is None:
                continue
            code, fields = step.state.code, step.fields if step.exists else None
            for (kind, names), tally in self.tallies.items():
                if kind == code and (fields is None or not step.touched or not set(names).isdisjoint(step.touched)):
                    tally.note(step.key, fields)
            board = self.boards.get(code)
            if board is not None:
                if fields is None or not board.attended.isdisjoint(step.touched):
                    board.note(step.key, stored.slot, fields)
                if self._projects is not None and (fields is None or not COSTS.isdisjoint(step.touched)):
                    self._projects.note_cost((code, step.key), fields)
            elif self._projects is not None and issubclass(step.kind.model, Project):
                self._projects.note(step.key, fields)

    def dropped(self) -> None:
        """What was written did not happen."""
        self.boards.clear()
        self.tallies.clear()
        self._projects = None

    # --- projects ----------------------------------------------------------------------------------------------------

    def kept_back(self) -> Callable[[str], bool]:
        """Whether the tasks of a project are not ready because of it."""
        if self._projects is None:
            self._projects = Projects(self._resume)
            for kind, model in self._models():
                if issubclass(model, Project):
                    for key, _, fields in self._all(kind):
                        self._projects.note(key, fields)
            for kind, model in self._models():
                if issubclass(model, Task):
                    self.board(kind)  # which is told from now on of what its tasks cost
                    for key, _, fields in self._all(kind):
                        self._projects.note_cost((kind.code, key), fields)
        return self._projects.keeps

    def _models(self) -> list[tuple[KindState, type[Entity]]]:
        assert self.turn is not None
        return [(kind, kind.kind.model) for kind in self.turn.kinds if kind.kind is not None]

    def _resume(self, project: str) -> None:
        for board in self.boards.values():
            board.ready.resume(project)
