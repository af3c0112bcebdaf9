"""Guards: conditions on entities that the request does not change, compared with the state before it."""

from __future__ import annotations

from typing import Any

from solewriter.engine_proc.decide.draft import Draft, Step, conflict
from solewriter.engine_proc.decide.fencing import show
from solewriter.shared.errors import GuardFailed, InvalidMutation
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.kinds.kind import IN_HEADER, Kind
from solewriter.shared.mutations import Guard
from solewriter.shared.where import demands
from solewriter.shared.wireform import PlainGuard

_CHANGING = ("version", "updated_at")  # with every change: who waits for one would look at each of them


def check(draft: Draft, guard: PlainGuard) -> None:
    """Raises GuardFailed; VersionConflict where fields were compared in place of a version; Fenced."""
    code, kind_name, key, said = guard  # a version, or (version | None, conditions)
    if code == Guard.REQUIRE_FIELDS:
        _check_fields(draft.before(kind_name, key), *said)
        return
    if code == Guard.REQUIRE_NONE:
        _check_none(draft, kind_name, said[1])
        return
    if code == Guard.CLAIM:
        show(draft, kind_name, key, said)
        return
    found = draft.before(kind_name, key).stored_version
    if code == Guard.REQUIRE_ABSENT and found:
        raise GuardFailed(
            f"{kind_name} {key!r} exists, and was required to be absent", kind=kind_name, id=key, version=found
        )
    if code == Guard.REQUIRE and found != said:
        now = f"is at version {found}" if found else "does not exist"
        raise GuardFailed(
            f"{kind_name} {key!r} {now}, and was required at {said}", kind=kind_name, id=key, version=found
        )


def _check_fields(step: Step, expected: int | None, said: object) -> None:
    kind, key = step.kind.name, step.key
    if not step.exists:
        raise GuardFailed(f"{kind} {key!r} does not exist, and was required to", kind=kind, id=key, version=0)
    broken = [demand.name for demand in demands(step.kind, said) if not demand.holds(_field_before(step, demand.name))]
    if broken and expected is not None:
        raise conflict(step, expected, f"{kind} {key!r}: {', '.join(broken)} changed since version {expected}")
    if broken:
        raise GuardFailed(
            f"{kind} {key!r}: {', '.join(broken)} is not as it was required to be",
            kind=kind, id=key, version=step.stored_version, fields=broken, **step.newest,
        )  # fmt: skip


def _field_before(step: Step, name: str) -> Any:
    """A field of an entity as it was before the request, what only its record says included."""
    before = step.before
    if name not in IN_HEADER or before is None:
        return step.field(name)
    if name == "id":
        return step.key
    return before.version if name == "version" else from_us(step.turn.record_at(before.address).time_us)


def _check_none(draft: Draft, kind_name: str, said: object) -> None:
    state, kind = draft.known(kind_name)
    wanted = demands(kind, said)
    for demand in wanted:
        check_column(kind, demand.name)
    found = draft.turn.coordination.count(state, wanted)
    if found:
        raise GuardFailed(
            f"{found:,} of {kind_name} are like this, and none was required to be", kind=kind_name, count=found
        )


def check_column(kind: Kind, name: str) -> None:
    """Raises InvalidMutation for what nobody can ask the engine about many entities."""
    if name not in kind.model.column_names or name in _CHANGING:
        columns = ", ".join(one for one in kind.model.column_names if one not in _CHANGING) or "none"
        why = "is no declared column of the engine's class, or one that changes with everything"
        problem = f"{why}; these can be asked for: {columns}"
        raise InvalidMutation(f"{kind.name}.{name} {problem}", fields={name: problem})
