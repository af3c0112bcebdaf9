"""Condition 4: the versions of an entity are 1, 2, 3 ... without gap or repeat; by the history, and by the agents' word
alone where every request for the entity was answered. And revisions have no gap.
"""

from __future__ import annotations

from collections.abc import Iterator

from solewriter.agents.testing.accounts import Account, Accounts, Violation
from solewriter.agents.testing.history import ENGINES_OWN, History
from solewriter.agents.testing.lines import APPLIED, UNKNOWN, Answer
from solewriter.agents.testing.steps import ANY_ID, Fields, Key

FILLED_IN = (  # by the engine, whatever was asked
    "version", "created_by", "created_at", "updated_at", "attempts", "claim",
)  # fmt: skip
UNTOLD = ("alter", "renew")  # whose fields are not values that are stored


def versions_recovered(history: History) -> Iterator[Violation]:
    """Every record is the next version of its entity, every request that changed something the next revision."""
    revision, versions = 0, dict[Key, int]()
    for decided in history:
        if decided.changes:
            if {change.revision for change in decided.changes} != {revision + 1}:
                yield Violation(4, "revision gap", f"{decided} follows revision {revision}")
            revision = decided.changes[0].revision
        for change in decided.changes:
            before = versions.get(change.key, 0)
            if change.version != before + 1:
                name = "version gap" if change.version > before else "version repeated"
                yield Violation(4, name, f"{change.key} v{change.version} follows v{before} at revision {revision}")
            versions[change.key] = change.version


def versions_told(accounts: Accounts) -> Iterator[Violation]:
    """The same from evidence alone. A request that changed nothing was told the version that was there, so a version
    may be told often; but then all who were told it agree on what it holds.
    """
    told: dict[Key, dict[int, Fields]] = {}
    for key, version in _of_others(accounts):
        told.setdefault(key, {})[version] = {}
    for account in accounts:
        for answer in account.answers[:1] if account.outcome == APPLIED else []:
            for key, version, claim in _claims(account, answer):
                if not _agree(told.setdefault(key, {}).setdefault(version, {}), claim):
                    yield Violation(4, "version repeated", f"{key} v{version}, told to {account} and another one")
    unknown = [account for account in accounts if account.outcome == UNKNOWN]
    uncertain = {step.key for account in unknown for step in account.call.steps}
    uncertain |= {change.key for account in unknown for decided in account.decided for change in decided.changes}
    for key in told.keys() - uncertain:
        missing = set(range(1, max(told[key]) + 1)) - told[key].keys()
        if missing:
            yield Violation(4, "version gap", f"nobody was told {key} v{', v'.join(map(str, sorted(missing)[:10]))}")


def _of_others(accounts: Accounts) -> Iterator[tuple[Key, int]]:
    """Versions that nobody can be told: of tasks that the engine took away, or that went with those that were named."""
    for place, decided in enumerate(accounts.history):
        account = accounts.of(place)
        steps = account.call.steps if account is not None else ()
        named = {step.key for step in steps}
        if (steps or decided.session == ENGINES_OWN) and not any(step.id == ANY_ID for step in steps):
            for change in decided.changes:
                if change.key not in named:
                    yield change.key, change.version


def _claims(account: Account, answer: Answer) -> Iterator[tuple[Key, int, Fields]]:
    """What a request made of each entity: its version, and the fields that it set."""
    claims: dict[Key, tuple[int, Fields]] = {}
    for key, version in zip(answer.claimed, answer.versions, strict=False):
        claims[key] = version, {"status": "in_progress", "claim": version}
    for step, version in zip(() if answer.claimed else account.call.steps, answer.versions, strict=False):
        _, before = claims.get(step.key, (0, {}))
        whole = step.op in ("create", "put", "delete")
        fields = {} if step.op in UNTOLD else step.fields
        claims[step.key] = version, {**({} if whole else before), **fields, "": step.op == "delete"}
    for key, (version, claim) in claims.items():
        if version:  # not made and deleted in one request
            yield key, version, {name: value for name, value in claim.items() if name not in FILLED_IN}


def _agree(known: Fields, claim: Fields) -> bool:
    """Whether a claim fits what others were told of this version; what was not known of it is, from now on."""
    return all(_equal(known.setdefault(name, value), value) for name, value in claim.items())


def _equal(one: object, other: object) -> bool:
    """Also where one was given as text and read as a number."""
    return one == other or str(one) == str(other)
