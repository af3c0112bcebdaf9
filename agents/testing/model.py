"""What an engine must do, in a dict. It decides every request by itself and shares no code with the engine's deciding.

A request is all or nothing: each step sees the steps before it, `expect` is compared with what was stored before the
request, an entity gets one version for all of it, and what ends as it began makes none. Validity is the class's word.
What tasks have besides is in `tasks`. Where the engine may choose, the model looks at what it chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import ValidationError

from solewriter.agents.testing import tasks
from solewriter.agents.testing.altered import altered
from solewriter.agents.testing.steps import ANY_ID, Condition, Fields, Key, Kinds, Step, plain
from solewriter.agents.testing.tasks import Draft, Refusal, broken
from solewriter.shared.entity import Lifecycle
from solewriter.shared.models import Task

UNCOUNTED = {"version": 0, "updated_at": ""}  # they change with the rest, never alone
FIXED = {"id", "created_by", "created_at", *UNCOUNTED}
COUNTED = {"attempts", "claim"}  # of tasks: by the engine
PLAIN = ("update", "alter")  # of kinds without a lifecycle, too


class Model:
    """The state after the requests so far. Of a deleted entity only the version is left."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.held: dict[Key, Fields] = {}
        self.claims: dict[Key, int] = {}  # tasks that somebody holds, and by which token
        self.revision = 0
        self.clock = "1970-01-01T00:00:00Z"  # the time of the newest record

    def version(self, key: Key) -> int:
        return int(self.held.get(key, UNCOUNTED)["version"])

    def stored(self, key: Key) -> Fields | None:
        return self.held[key] if "id" in self.held.get(key, ()) else None

    def decide(
        self,
        steps: Sequence[Step],
        conditions: Sequence[Condition],
        actor: str,
        now: str,
        shown: Iterable[tuple[Key, int]] = (),
        chosen: Mapping[Key, Fields | None] | None = None,
    ) -> Draft:
        """What a request changes, under these tokens of claims; `chosen` is what it changed in the engine. Changes
        nothing yet. Raises Refusal.
        """
        draft = Draft(self, actor, now or self.clock, dict(shown), chosen or {})
        for key, token in draft.shown.items():
            tasks.show(draft, key, token)
        for condition in conditions:
            self._require(condition)
        for step in steps:
            self._after(step, draft)
        tasks.follow(draft)
        for key, content in [*draft.contents.items()]:
            if {**(content or {}), **UNCOUNTED} == {**(self.stored(key) or {}), **UNCOUNTED}:
                del draft.contents[key]
        return draft

    def take(self, draft: Draft) -> None:
        """It happened."""
        self.revision += bool(draft.contents)
        for key, content in draft.contents.items():
            self.install(key, self.version(key) + 1, content, draft.now)
        for key, token in draft.claims.items():
            self.claims[key] = token
            if not token:
                del self.claims[key]

    def install(self, key: Key, version: int, content: Fields | None, now: str) -> None:
        self.held[key] = stamped(content or {"version": 0}, version, now)
        self.clock = now

    def _require(self, condition: Condition) -> None:
        key, stored = condition.key, self.stored(condition.key)
        if condition.fields is None:
            self._compare(key, condition.version, "GuardFailed")
        elif condition.id == ANY_ID:
            every = [self.stored(one) for one in self.held if one.kind == condition.kind]
            if any(one is not None and not broken(one, condition.fields) for one in every):
                raise Refusal("GuardFailed", None, None)
        elif stored is None:
            raise Refusal("GuardFailed", 0, None)
        elif broken(stored, condition.fields):
            raise Refusal("GuardFailed" if condition.version is None else "VersionConflict", self.version(key), None)

    def _compare(self, key: Key, expect: int | None, error: str) -> None:
        found = self.version(key) if self.stored(key) else 0
        if expect is not None and expect != found:
            raise Refusal(error, found, None)

    def _after(self, step: Step, draft: Draft) -> None:
        """What a step makes of its entity, or of those that it claims."""
        if step.kind not in self.kinds:
            raise Refusal("UnknownKind", None, None)
        if step.op == "claim":
            tasks.claim(draft, step)
            return
        before = draft.content(step.key)
        if (before is None) != (step.op == "create") and step.op != "put":
            raise Refusal("NotFound" if before is None else "AlreadyExists", None, None)
        self._compare(step.key, step.expect, "VersionConflict")
        if step.op in tasks.STEPS:
            assert before is not None
            tasks.STEPS[step.op](draft, step, before)
        elif step.op == "delete":
            draft.put(step.key, None, "delete", ())
        else:
            self._changed(step, draft, before)

    def _changed(self, step: Step, draft: Draft, before: Fields | None) -> None:
        kind = self.kinds[step.kind]
        counted = COUNTED if issubclass(kind, Task) else set[str]()
        life, values = kind.lifecycle, {**(before or {}), **step.fields}
        if step.op in ("create", "put"):
            values.update(_stamps(step, before or {}, draft.actor, draft.now))
            values.update({name: (before or {}).get(name, 0) for name in counted})
        elif step.fields.keys() & {*FIXED, *counted, life.field if life else "id"} or not (life or step.op in PLAIN):
            raise Refusal("InvalidMutation", None, None)
        if step.op == "alter":
            values.update(altered(before or {}, step.fields))
        if step.op == "cancel" and step.to:
            tasks.cancel_below(draft, step.key)
        if life:
            values[life.field] = _state(life, step, before)
        state = {life.field} if life and step.op in ("transition", "cancel") else set()
        named = values if step.op in ("create", "put") else {*step.fields, *state}
        draft.put(step.key, self.valid(step.kind, values), step.op, named)
        if step.op == "transition" and step.to not in tasks.HELD:
            draft.given_back.add(step.key)

    def valid(self, kind: str, values: Fields) -> Fields:
        """Raises Refusal."""
        try:
            return plain(self.kinds[kind].model_validate(values))
        except ValidationError:
            raise Refusal("InvalidMutation", None, None) from None


def stamped(content: Fields, version: int, now: str) -> Fields:
    stamps = {"version": version, "updated_at": now}
    return {name: stamps.get(name, value) for name, value in content.items()}


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
