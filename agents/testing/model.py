"""What an engine must do, in a dict. It decides every request by itself and shares no code with the engine's deciding.

A request is all or nothing: each step sees the steps before it, `expect` is compared with what was stored before the
request, an entity gets one version for all of it, and what ends as it began makes none. Validity is the class's word.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from solewriter.agents.testing.steps import Condition, Fields, Key, Kinds, Step, plain
from solewriter.shared.models import Lifecycle

UNCOUNTED = {"version": 0, "updated_at": ""}  # they change with the rest, never alone
FIXED = {"id", "created_by", "created_at", *UNCOUNTED}


class Refusal(Exception):
    """A request must be refused. `args`: the error's name, the version and the allowed states that it tells, if any."""


class Model:
    """The state after the requests so far. Of a deleted entity only the version is left."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.held: dict[Key, Fields] = {}
        self.revision = 0

    def version(self, key: Key) -> int:
        return int(self.held.get(key, UNCOUNTED)["version"])

    def stored(self, key: Key) -> Fields | None:
        return self.held[key] if "id" in self.held.get(key, ()) else None

    def decide(self, steps: Sequence[Step], conditions: Sequence[Condition], actor: str, now: str) -> list[Key]:
        """Apply a request and say what it changed. Raises Refusal."""
        for condition in conditions:
            self._compare(condition.key, condition.version, "GuardFailed")
        drafts: dict[Key, Fields | None] = {}
        for step in steps:
            before = drafts[step.key] if step.key in drafts else self.stored(step.key)
            drafts[step.key] = self._after(step, before, actor, now)
        same = {key: {**(self.stored(key) or {}), **UNCOUNTED} for key in drafts}
        changed = [key for key, content in drafts.items() if {**(content or {}), **UNCOUNTED} != same[key]]
        self.revision += bool(changed)
        for key in changed:
            self.install(key, self.version(key) + 1, drafts[key], now)
        return changed

    def install(self, key: Key, version: int, content: Fields | None, now: str) -> None:
        stamps = {"version": version, "updated_at": now}
        self.held[key] = {name: stamps.get(name, value) for name, value in (content or {"version": 0}).items()}

    def _compare(self, key: Key, expect: int | None, error: str) -> None:
        found = self.version(key) if self.stored(key) else 0
        if expect is not None and expect != found:
            raise Refusal(error, found, None)

    def _after(self, step: Step, before: Fields | None, actor: str, now: str) -> Fields | None:
        """What a step makes of an entity."""
        if step.kind not in self.kinds:
            raise Refusal("UnknownKind", None, None)
        if (before is None) != (step.op == "create") and step.op != "put":
            raise Refusal("NotFound" if before is None else "AlreadyExists", None, None)
        self._compare(step.key, step.expect, "VersionConflict")
        if step.op == "delete":
            return None
        life, values = self.kinds[step.kind].lifecycle, {**(before or {}), **step.fields}
        if step.op in ("create", "put"):
            values.update(_stamps(step, before or {}, actor, now))
        elif step.fields.keys() & {*FIXED, life.field if life else "id"} or not (life or step.op == "update"):
            raise Refusal("InvalidMutation", None, None)
        if life:
            values[life.field] = _state(life, step, before)
        try:
            return plain(self.kinds[step.kind].model_validate(values))
        except ValidationError:
            raise Refusal("InvalidMutation", None, None) from None


def _state(life: Lifecycle, step: Step, before: Fields | None) -> str:
    """Where a step leaves an entity in its lifecycle."""
    now = before[life.field] if before else life.initial
    to = {"transition": step.to, "cancel": life.cancelled}.get(step.op, step.fields.get(life.field, now))
    if to is None or (step.op == "create" and to != now):
        raise Refusal("InvalidMutation", None, None)
    if before and to not in life.allowed(now) and (to != now or step.op == "transition"):
        raise Refusal("InvalidTransition", None, life.allowed(now))
    return str(to)


def _stamps(step: Step, before: Fields, actor: str, now: str) -> Fields:
    """Who made it and when: as it was, else as a put says, else the session and the engine's time."""
    given = step.fields.get("created_at") if step.op == "put" else None
    stamps = {"created_by": step.fields.get("created_by") or actor, "created_at": given or now}
    return {name: before.get(name, stamp) for name, stamp in stamps.items() if name in step.fields}
