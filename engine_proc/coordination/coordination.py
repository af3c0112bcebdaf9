"""Everything of coordination that belongs to the state: boards by kind, leases, paused projects.

Boards are made when a request first needs one, by one look at every entity of the kind, and before it is decided: so
nobody who does not coordinate pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.leases import Leases
from solewriter.engine_proc.kinds import KindState
from solewriter.shared.config import Limits
from solewriter.shared.models import Project
from solewriter.shared.mutations import Op
from solewriter.shared.wireform import PlainRequest

if TYPE_CHECKING:
    from solewriter.engine_proc.decide import Step
    from solewriter.engine_proc.turn import Stored, Turn

_CANCEL, _DELETE, _ALTER = Op.CANCEL.value, Op.DELETE.value, Op.ALTER.value
DEPENDS = frozenset({"dependencies", "on_dependency_failure"})
TREE = "tree"  # in place of a state, what a cancel takes


class Coordination:
    """`find` reads what is stored under a key, after the earlier requests of the turn."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.leases = Leases()
        self._held = self.leases.by_place
        self.cascades: set[int] = set()  # kinds in which some entity was ever to be cancelled with another
        self.boards: dict[int, Board] = {}
        self._paused: set[str] | None = None  # projects whose tasks are not ready; None: not looked yet
        self.turn: Turn | None = None  # the one that is being decided

    # --- made at first need ------------------------------------------------------------------------------------------

    def attends(self, turn: Turn, request: PlainRequest) -> bool:
        """Whether a request has anything to do with coordination; then all that deciding it will look at is there. This
        is all that a plain request costs where nobody coordinates.
        """
        attended: Any = self.boards or self._held or self.cascades or request[1]
        for op, name, _, _, fields, _, what in request[0]:
            if (
                (op > _DELETE and op != _ALTER)
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
            for key, stored, fields in self._all(kind):
                board.note(key, stored.slot, fields)
            self.boards[kind.code] = board
        return board

    def _all(self, kind: KindState) -> Iterable[tuple[str, Stored, Mapping[str, Any]]]:
        """Every entity of a kind, as it is by now in this turn."""
        turn = self.turn
        assert turn is not None
        assert kind.kind is not None
        new = [key for code, key in turn.changed if code == kind.code and key not in kind.slots]
        for key in [*kind.slots, *new]:
            stored = turn.find(kind, key)
            if stored is not None and stored.alive:
                yield key, stored, kind.kind.fields_of(kind.schema, stored.payload)

    def _look(self, kind: KindState, key: str) -> Mapping[str, Any] | None:
        assert self.turn is not None
        assert kind.kind is not None
        stored = self.turn.find(kind, key)
        return kind.kind.fields_of(kind.schema, stored.payload) if stored is not None and stored.alive else None

    # --- kept up -----------------------------------------------------------------------------------------------------

    def noted(self, steps: Iterable[Step]) -> None:
        """A request was written."""
        for step in steps:
            stored = step.stored
            if stored is None:
                continue
            board = self.boards.get(step.state.code)
            if board is not None:
                if not step.exists:
                    board.note(step.key, stored.slot, None)
                elif not board.attended.isdisjoint(step.touched):
                    board.note(step.key, stored.slot, step.fields)
            elif self._paused is not None and issubclass(step.kind.model, Project):
                self._note_project(step.key, step.fields.get("status", "active") if step.exists else "active")

    def dropped(self) -> None:
        """What was written did not happen."""
        self.boards.clear()
        self._paused = None

    # --- projects ----------------------------------------------------------------------------------------------------

    def paused(self) -> Callable[[str], bool]:
        """Whether a project of this name is paused or archived."""
        if self._paused is None:
            self._paused = set()
            assert self.turn is not None
            for kind in self.turn.kinds:
                if kind.kind is not None and issubclass(kind.kind.model, Project):
                    for key, _, fields in self._all(kind):
                        self._note_project(key, fields.get("status", "active"))
        return self._paused.__contains__

    def _note_project(self, key: str, status: str) -> None:
        assert self._paused is not None
        if status != "active":
            self._paused.add(key)
        elif key in self._paused:
            self._paused.discard(key)
            for board in self.boards.values():
                board.ready.resume(key)
