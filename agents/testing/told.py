"""Condition 1: what was told is what was recovered. Applied: exactly once, at the told revision and versions; refused:
nothing changed; unknown: once or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from solewriter.agents.testing.accounts import MISMATCH, NOT_APPLIED, Account, Accounts, Violation
from solewriter.agents.testing.history import Decided
from solewriter.agents.testing.lines import APPLIED, REFUSED, Answer


def told_as_recovered(accounts: Accounts) -> Iterator[Violation]:
    """Every request against the history, and nothing in the history that nobody was told of twice."""
    for account in accounts:
        if len(account.decided) > 1:
            yield Violation(1, "applied twice", f"{account}: {'; '.join(map(str, account.decided))}")
        if account.decided:
            yield from _told_otherwise(account, account.decided[0])
        elif account.answers and not account.mismatched:
            name = "lost" if account.outcome == APPLIED else "refusal not journaled"
            yield Violation(1, name, f"{account}: {account.answers[0]}")


def _told_otherwise(account: Account, decided: Decided) -> Iterator[Violation]:
    """Every answer, and whatever the journal says was told again, is what was decided."""
    if account.refused_here == account.attempts:
        yield Violation(1, "refused but applied", f"{account}: refused before it was sent, recovered {decided}")
    elif account.never and decided.outcome == APPLIED:
        yield Violation(1, "refused but applied", f"{account}: one was told {NOT_APPLIED}, recovered {decided}")
    if not decided.outcome:
        yield Violation(1, "no outcome journaled", f"{account}: {decided}")
        return
    for repeat in account.repeats:
        if repeat.told != decided.told:
            yield Violation(1, "told two things", f"{account}: {decided.told}, then {repeat.told}")
    for answer in account.answers:
        if answer.outcome == REFUSED and decided.changes:
            yield Violation(1, "refused but applied", f"{account}: told {answer.error}, recovered {decided}")
        elif (told := _told(answer, decided)) != (decided.request_id, *decided.told):
            yield Violation(1, "told otherwise", f"{account}: told {told}, recovered {decided}, {decided.told}")
        if answer.current is not None and answer.found is not None and answer.current < answer.found:
            yield Violation(1, "an older entity in a refusal", f"{account}: {answer}")
    if any(answer.error == MISMATCH for answer in account.answers):
        yield Violation(1, "told two things", f"{account}: one sender of the same content was told {MISMATCH}")


def _told(answer: Answer, decided: Decided) -> tuple[object, ...]:
    """What an answer says, in the form of `Decided.told`. Who asked for an outcome is not told a refusal's revision."""
    revision = decided.revision if answer.revision is None else answer.revision
    return answer.request_id, answer.outcome, revision, answer.versions, answer.error, answer.found, answer.allowed
