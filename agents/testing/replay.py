"""Condition 3, and the contents of condition 5: the history, decided again by the model, gives every record, every
reply, the final state, and each snapshot at its revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic_core import to_jsonable_python

from solewriter.agents.testing.accounts import Accounts, Tokens, Violation
from solewriter.agents.testing.history import ENGINES_OWN, Change, Decided
from solewriter.agents.testing.lines import APPLIED, REFUSED, Call, Look
from solewriter.agents.testing.model import Model, stamped
from solewriter.agents.testing.steps import Fields, Key, Kinds, Step, digest
from solewriter.agents.testing.tasks import HELD, Draft, Refusal
from solewriter.shared.kinds.columns import from_us

# Refusals for reasons that are not in the state: that they changed nothing is all that can be checked.
OUTSIDE = {"BadRequest", "Expired", "Fenced", "Quarantined", "RequestTooLarge", "SchemaMismatch"}


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
            yield from _decided_again(model, decided, account.call, account.tokens, str(account))
        elif decided.changes and decided.session == ENGINES_OWN:
            call = Call(0, 0, "", False, (Step("expire", *decided.changes[0].key),))
            yield from _decided_again(model, decided, call, [()], f"the engine ({decided.changes[0].reason})")
        elif decided.changes:
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


def _decided_again(
    model: Model, decided: Decided, call: Call, tokens: Sequence[Tokens], who: str
) -> Iterator[Violation]:
    """The model decides a request: the reply and the records are the engine's. If not, the history goes on. It was sent
    under one of these sets of tokens.
    """
    if decided.error in OUTSIDE and not decided.changes:
        return
    wrong: list[tuple[str, str]] = []
    for shown in tokens:
        draft, told = _decide(model, decided, call, shown)
        wrong = [*_differences(model, decided, draft, told)]
        if not wrong:
            model.take(draft)
            return
    for name, what in wrong:
        yield Violation(3, name, f"{who} at revision {decided.revision}: {what}")
    model.revision = decided.revision
    _take(model, decided)


def _decide(model: Model, decided: Decided, call: Call, shown: Tokens) -> tuple[Draft, tuple[object, ...]]:
    """What the model makes of it, and what it would tell."""
    first = next(iter(decided.changes), None)
    actor, now = (first.actor, _iso(first)) if first else ("", "")
    chosen = {change.key: change.content for change in decided.changes}
    try:
        draft = model.decide(call.steps, call.conditions, actor, now, shown, chosen)
    except Refusal as refusal:
        return Draft(model, actor, now, {}, {}), (REFUSED, model.revision, (), *refusal.args)
    named = [*draft.claimed, *(step.key for step in call.steps if step.op != "claim")]
    versions = tuple([model.version(key) + (key in draft.contents) for key in named])
    return draft, (APPLIED, model.revision + bool(draft.contents), versions, "", None, None)


def _differences(model: Model, decided: Decided, draft: Draft, told: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    made = {
        key: (model.version(key) + 1, content and stamped(content, model.version(key) + 1, draft.now))
        for key, content in draft.contents.items()
    }
    records = {change.key: (change.version, change.content) for change in decided.changes}
    differ = [
        f"{key} is {made.get(key)}, recovered {records.get(key)}"
        for key in sorted({*made, *records})
        if made.get(key) != records.get(key)
    ]
    if differ:
        yield "state differs", "; ".join(differ)
    if decided.outcome and told != decided.told:
        yield "reply differs", f"{decided.told}, and the model says {told}"


def _take(model: Model, decided: Decided) -> None:
    """What the history says, whatever the model thinks."""
    for change in decided.changes:
        if change.content is None or change.content.get("status") not in HELD:
            model.claims.pop(change.key, None)
        elif change.content.get("claim") == change.version:
            model.claims[change.key] = change.version
        model.install(change.key, change.version, change.content, _iso(change))
        model.revision = change.revision


def _iso(change: Change) -> str:
    return str(to_jsonable_python(from_us(change.time_us)))


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
                yield f"{key} v{entity[0]}, must be {model.stored(key)}"
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
