"""A request's overlay: what each entity it touches was before the request, and what it has become so far.

Mutations see the earlier ones of their request; `expect` compares with what was stored before it. The entity gets one
version for the whole request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.turn import Key, Stored, Turn
from solewriter.shared.errors import InvalidMutation, NotFound, UnknownKind, VersionConflict
from solewriter.shared.kinds.columns import Cells
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import differing_fields
from solewriter.shared.where import single

if TYPE_CHECKING:
    from solewriter.engine_proc.coordination.leases import Place
    from solewriter.engine_proc.coordination.waiting import Wish
    from solewriter.shared.journal.entry import Lease


class Step:
    """One entity of a request, on its way. Its content is the stored fields: those that differ from their defaults."""

    op = 0
    reason = ""
    exists = False
    version = 1
    touched: Iterable[str] = ()  # names of the fields that were to change
    payload = b""  # what its record will say, once that is formed
    block = b""
    cells: Cells = ()  # those that are new
    assignee = ""  # who claims it
    stored: Stored | None = None  # what it is after the request, once that is written
    _fields: dict[str, Any] | None = None

    def __init__(self, state: KindState, kind: Kind, key: str, before: Stored | None, turn: Turn) -> None:
        self.state = state
        self.kind = kind
        self.key = key
        self.before = before
        self.turn = turn
        if before is not None:
            self.exists = before.alive
            self.version = before.version + 1

    @property
    def fields(self) -> dict[str, Any]:
        """The stored fields as they are now. Only where the entity exists."""
        fields = self._fields
        if fields is None:
            assert self.before is not None
            fields = self._fields = self.kind.fields_of(self.state.schema, self.before.payload)
        return fields

    def field(self, name: str) -> Any:
        """One field's plain value, its default where it is not stored."""
        return single(self.fields.get(name, self.state.schema.defaults.get(name)))

    @property
    def altered(self) -> Collection[str]:
        """Names of the fields that are others than before the request, or may be: those that code of its class changed
        besides what was asked for are among them.
        """
        if not (self.kind.recasts and self.op and self.exists and self.stored_version) or self.before is None:
            return frozenset(self.touched)
        return {*self.touched, *differing_fields(self.before.payload, self.kind.payload(self.fields))}

    def require(self, expect: int | None) -> None:
        """Raises NotFound; and VersionConflict unless `expect` is the version stored before the request."""
        if not self.exists:
            raise NotFound(f"there is no {self.kind.name} {self.key!r}", kind=self.kind.name, id=self.key)
        if expect is not None:
            self.compare(expect)

    @property
    def stored_version(self) -> int:
        """The version before the request; 0: there was none."""
        return self.before.version if self.before is not None and self.before.alive else 0

    def compare(self, expect: int) -> None:
        """Compare with the version stored before the request, 0 for none. Raises VersionConflict."""
        found = self.stored_version
        if found != expect:
            is_now = f"is at version {found}, not {expect}: look at the current one and decide again"
            is_gone = f"is not there, in version {expect} or any: with expect=None, a put creates it"
            raise conflict(self, expect, f"{self.kind.name} {self.key!r} {is_now if found else is_gone}")

    @property
    def newest(self) -> dict[str, Any]:
        """Who made what is stored, and at which revision: what the loser of a race wants to know."""
        if self.before is None or not self.before.address:
            return {}
        found = self.turn.record_at(self.before.address)
        return {"actor": found.actor, "revision": found.revision}

    def change(self, op: int, reason: str, changes: Mapping[str, Any]) -> None:
        """Replace some fields of an entity that exists, validated. Raises InvalidMutation."""
        self._fields = self.kind.change_fields(self.fields, changes, self._header)
        self.touched = {*self.touched, *changes} if self.touched else changes
        self.op = op
        self.reason = reason

    def replace(self, op: int, reason: str, values: Mapping[str, Any]) -> None:
        """A whole new content, validated. Raises InvalidMutation."""
        made = self.kind.validate({**values, **self._header()})
        if made.id != self.key:  # pydantic validates no default: of ids that are made, it is not done by the caller
            problem = f"is made {made.id!r:.300} when it is read, by which it could not be found: create it with that"
            raise InvalidMutation(f"{self.kind.name}.id {problem}", fields={"id": problem})
        self._fields = self.kind.stored_fields(made, self.fields if self.exists and self.kind.other_numbers else None)
        self.touched = self.kind.model.model_fields
        self.exists = True
        self.op = op
        self.reason = reason

    def delete(self, op: int, reason: str) -> None:
        self._fields = None
        self.exists = False
        self.op = op
        self.reason = reason

    def _header(self) -> dict[str, Any]:
        """What the record itself says of the entity."""
        header: dict[str, Any] = {"id": self.key, "version": self.version}
        if "updated_at" in self.kind.stamps:
            header["updated_at"] = self.turn.now
        return header


class Draft:
    """The entities that a request touches, and who asks."""

    attended = False  # whether the request has to do with coordination; the rest of these is there only then
    session: int
    engines_own: bool
    shown: dict[Place, int]  # tokens of claims
    leases: dict[Place, Lease | None]  # those that the request changes
    claimed: list[Step]  # of all its claims
    wanted = 0  # how many they ask for
    alone = False  # nothing is cancelled with what it ends
    cancelled = 0  # with others, see `dependencies`
    wish: Wish | None = None  # what its claim waits for, where nothing is ready

    def __init__(self, turn: Turn, actor: str) -> None:
        self.turn = turn
        self.actor = actor
        self.steps: dict[Key, Step] = {}

    def coordinate(self, session: int, *, engines_own: bool) -> None:
        self.attended = True
        self.session = session
        self.engines_own = engines_own
        self.shown, self.leases, self.claimed = {}, {}, []

    def lease(self, place: Place) -> Lease | None:
        """Who holds a task by now."""
        return self.leases[place] if place in self.leases else self.turn.lease(place)

    def known(self, kind_name: str) -> tuple[KindState, Kind]:
        """A kind whose class is there. Raises UnknownKind."""
        state = self.turn.named(kind_name)
        if state is None or state.kind is None:
            raise UnknownKind(
                f"the engine has no model for {kind_name!r}: start it with models=[...] or register it there",
                kind=kind_name,
            )
        return state, state.kind

    def step(self, kind_name: str, key: str) -> Step:
        """The entity of this kind and id. Raises UnknownKind."""
        step = self.steps.get((kind_name, key))
        if step is None:
            step = self.steps[kind_name, key] = self.before(kind_name, key)
        return step

    def before(self, kind_name: str, key: str) -> Step:
        """The entity as it was before the request, to be looked at only. Raises UnknownKind."""
        state, kind = self.known(kind_name)
        return Step(state, kind, key, self.turn.find(state, (kind_name, key)), self.turn)

    def look(self, kind_name: str, key: str) -> Step:
        """The entity as it is by now, to be looked at only: `take` it before it is changed."""
        return self.steps.get((kind_name, key)) or self.before(kind_name, key)

    def take(self, step: Step) -> None:
        """Make an entity that was looked at part of the request."""
        self.steps[step.kind.name, step.key] = step


def conflict(step: Step, expected: int, why: str) -> VersionConflict:
    """The refusal for whoever saw an older version."""
    version = step.stored_version
    return VersionConflict(why, kind=step.kind.name, id=step.key, expected=expected, version=version, **step.newest)
