"""Condition 3, and the contents of condition 5: the history, decided again by the model, gives every record, every
reply, the final state, and each snapshot at its revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic_core import to_jsonable_python

from solewriter.agents.testing.accounts import Account, Accounts, Violation
from solewriter.agents.testing.evidence import APPLIED, REFUSED, Look
from solewriter.agents.testing.history import Change, Decided
from solewriter.agents.testing.model import Model, Refusal
from solewriter.agents.testing.steps import Fields, Key, Kinds, digest
from solewriter.shared.columns import from_us
from solewriter.shared.request_ids import session_number

# Refusals for reasons that are not in the state: that they changed nothing is all that can be checked.
OUTSIDE = {"BadRequest", "Expired", "Fenced", "Quarantined", "RequestTooLarge", "SchemaMismatch"}
ENGINES_OWN = session_number("engine")
NEVER = "1970-01-01T00:00:00Z"  # the time of a request that has no record


def replay(accounts: Accounts, kinds: Kinds, looks: Iterable[Look], final: Look) -> Iterator[Violation]:
    """Decide every request of the history again, in its order, and compare each look when its revision is reached."""
    model, views = Model(kinds), _Views()
    due: dict[int, list[Look]] = {}
    for look in looks:
        due.setdefault(look.revision, []).append(look)
    yield from views.compare(model, due.pop(0, []))
    for place, decided in enumerate(accounts.history):
        account, before = accounts.of(place), model.revision
        if account is not None:
            yield from _decided_again(model, account, decided)
        elif decided.changes:
            if decided.session != ENGINES_OWN:
                yield Violation(3, "nobody asked", f"{decided}")
            _take(model, decided)
        if model.revision != before:
            yield from views.compare(model, due.pop(model.revision, []))
    for revision in sorted(due):
        yield Violation(5, "snapshot differs", f"revision {revision} was seen and is not in the history")
    wrong = list(views.differences(model, final))
    if wrong or final.revision != model.revision:
        seen = f"revision {final.revision} was seen, {model.revision} recovered"
        yield Violation(3, "final state differs", f"{seen}; {'; '.join(wrong[:5])}")


def _decided_again(model: Model, account: Account, decided: Decided) -> Iterator[Violation]:
    """The model decides a request: the reply and the records are the engine's. If not, the history goes on."""
    if decided.error in OUTSIDE and not decided.changes:
        return
    call, records = account.call, {change.key: change for change in decided.changes}
    saved = {step.key: model.held.get(step.key) for step in call.steps}
    actor, now = (decided.changes[0].actor, _iso(decided.changes[0])) if decided.changes else ("", NEVER)
    try:
        changed = model.decide(call.steps, call.conditions, actor, now)
        versions = tuple([model.version(step.key) for step in call.steps])
        told: tuple[object, ...] = (APPLIED, model.revision, versions, "", None, None)
    except Refusal as refusal:
        changed, told = [], (REFUSED, model.revision, (), *refusal.args)
    wrong = [
        f"{key} is {_short(model.stored(key))}, recovered {_short(records.get(key))}"
        for key in sorted({*changed, *records})
        if not _is(model, key, records.get(key) if key in changed else None)
    ]
    if wrong:
        yield Violation(3, "state differs", f"{account} at revision {decided.revision}: {'; '.join(wrong)}")
    if decided.outcome and told != decided.told:
        yield Violation(3, "reply differs", f"{account}: {decided.told}, and the model says {told}")
        wrong.append("the reply")
    if wrong:
        for key, content in saved.items():
            model.held.pop(key, None)
            if content is not None:
                model.held[key] = content
        model.revision = decided.revision
        _take(model, decided)


def _is(model: Model, key: Key, change: Change | None) -> bool:
    return change is not None and (change.version, change.content) == (model.version(key), model.stored(key))


def _take(model: Model, decided: Decided) -> None:
    """What the history says, whatever the model thinks."""
    for change in decided.changes:
        model.install(change.key, change.version, change.content, _iso(change))
        model.revision = change.revision


def _iso(change: Change) -> str:
    return str(to_jsonable_python(from_us(change.time_us)))


def _short(what: Change | Fields | None) -> str:
    if isinstance(what, Change):
        return f"v{what.version} {what.content}"
    return str(what)


class _Views:
    """Compares looks with the model, and remembers digests of what did not change."""

    def __init__(self) -> None:
        self._digests: dict[Key, tuple[Fields, str]] = {}

    def compare(self, model: Model, looks: Iterable[Look]) -> Iterator[Violation]:
        """Each of these looks at the model's revision."""
        for look in looks:
            if wrong := list(self.differences(model, look)):
                yield Violation(5, "snapshot differs", f"revision {look.revision}: {'; '.join(wrong[:5])}")

    def differences(self, model: Model, look: Look) -> Iterator[str]:
        """What a look saw and the model does not hold, or the other way round."""
        seen = {Key(kind, id): tuple(entity) for kind, found in look.entities.items() for id, entity in found.items()}
        for key, entity in seen.items():
            if entity != self._expected(model, key):
                yield f"{key} v{entity[0]}, must be {_short(model.stored(key))}"
        if look.whole:
            for key in model.held.keys() - seen.keys():
                if model.stored(key) is not None:
                    yield f"{key} is missing"

    def _expected(self, model: Model, key: Key) -> tuple[int, str]:
        content = model.stored(key)
        if content is None:
            return 0, ""
        known, named = self._digests.get(key, (None, ""))
        if known is not content:
            named = digest(content)
            self._digests[key] = content, named
        return model.version(key), named
