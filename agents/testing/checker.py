"""The history checker: what agents were told, what the journal holds and what readers saw, against the promises.

One writer gives a total order, so each condition is one pass, in a file of its own. An empty list of violations means
that none was found, and the last condition that the run was hard enough for this to mean something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from solewriter.agents.testing.accounts import Accounts, Violation
from solewriter.agents.testing.claims import claims_are_kept
from solewriter.agents.testing.history import History
from solewriter.agents.testing.lines import APPLIED, REFUSED, UNKNOWN, Gathered, Look
from solewriter.agents.testing.order import Floor, in_real_time_order, in_the_order_of_sessions
from solewriter.agents.testing.readers import (
    readers_go_forward,
    readers_see_what_was_told,
    watches_bring_every_change,
)
from solewriter.agents.testing.replay import replay
from solewriter.agents.testing.steps import kinds_of
from solewriter.agents.testing.tasks import FENCED_CLAIM
from solewriter.agents.testing.told import told_as_recovered
from solewriter.agents.testing.versions import versions_recovered, versions_told
from solewriter.shared.entity import Entity

ACKS_MIN = 1_000
SHOWN_MAX = 20  # violations in a message; one bug can make thousands


class Verdict(NamedTuple):
    """What is wrong, and of how much."""

    violations: list[Violation]
    acks: int = 0  # requests that were applied, and somebody was told so
    refused: int = 0
    unknown: int = 0
    repeats: int = 0  # answers to a resend under an id of the user's own, that the engine told again
    unread: int = 0  # requests that changed nothing, and nobody read the answer
    looks: int = 0
    watched: int = 0  # changes that watches brought
    revisions: int = 0
    faults: int = 0
    claimed: int = 0  # tasks, each time
    fenced: int = 0  # requests under a claim that was lost, or under none

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self._asdict().items() if name != "violations")
        wrong = Counter(f"({violation.condition}) {violation.name}" for violation in self.violations)
        shown = "\n".join(map(str, self.violations[:SHOWN_MAX]))
        return f"{counts}; violations: {dict(wrong) or 'none'}\n{shown}".rstrip()


def check(
    gathered: Gathered,
    history: History,
    final: Look,
    *,
    models: Iterable[type[Entity]] = (),
    acks_min: int = ACKS_MIN,
) -> Verdict:
    """Compare the evidence of a run (`gather`) with the recovered history (`read_history`) and the final state, which
    is the last whole `look` of a reader.

    Every request of the run must be in the evidence, except the engine's own; `models` are the same as those given to
    `Evidence` and `read_history`. The violations of each condition:

    1. lost, applied twice, refused but applied, told otherwise, told two things, no outcome journaled, refusal not
       journaled, an older entity in a refusal
    2. order inverted
    3. state differs, reply differs, nobody asked, final state differs
    4. version gap, version repeated, revision gap
    5. snapshot differs, revision went back, an acked revision was not seen, watch differs
    6. too few acks, no fault, the last operation failed
    7. two hold it, claimed though it was not free, claimed without an attempt left, handed in under no claim, handed in
       under an old claim, a token that is no claim's version, still claimed
    """
    assert final.whole, "the final state is a look at everything"
    accounts = Accounts(gathered.attempts, history)
    floor = Floor(accounts)
    looks = [look for taken in gathered.looks.values() for look in taken]
    violations = chain(
        told_as_recovered(accounts),
        claims_are_kept(accounts),
        in_real_time_order(accounts, floor),
        in_the_order_of_sessions(accounts),
        replay(accounts, kinds_of(models), looks, final),
        versions_recovered(history),
        versions_told(accounts),
        readers_go_forward(gathered.looks),
        readers_see_what_was_told(gathered.looks, floor),
        watches_bring_every_change(gathered.watches, history),
        the_load_was_real(gathered, accounts, acks_min),
    )
    found = list(violations)
    return _counted(found, gathered, accounts)


def _counted(found: list[Violation], gathered: Gathered, accounts: Accounts) -> Verdict:
    outcomes = Counter(account.outcome for account in accounts)
    claims = [account for account in accounts if any(step.op == "claim" for step in account.call.steps)]
    return Verdict(
        found,
        acks=outcomes[APPLIED],
        refused=outcomes[REFUSED],
        unknown=outcomes[UNKNOWN],
        repeats=sum(len(account.repeats) for account in accounts),
        unread=accounts.unread,
        looks=sum(map(len, gathered.looks.values())),
        watched=sum(len(line.changes) for taken in gathered.watches.values() for line in taken),
        revisions=max((decided.revision for decided in accounts.history), default=0),
        faults=len(gathered.faults),
        claimed=sum(len(decided.changes) for account in claims for decided in account.decided),
        fenced=sum(answer.error == FENCED_CLAIM for account in accounts for answer in account.answers[:1]),
    )


def the_load_was_real(gathered: Gathered, accounts: Accounts, acks_min: int) -> Iterator[Violation]:
    """Condition 6: a run without load or faults proves nothing, and one that ends in silence proves less."""
    acks = sum(account.outcome == APPLIED for account in accounts)
    if acks < acks_min:
        yield Violation(6, "too few acks", f"{acks} requests were acked, {acks_min} make a run")
    if not gathered.faults:
        yield Violation(6, "no fault", "nothing was done to the engine or to an agent")
    last = max(gathered.attempts, key=lambda attempt: attempt.call.at, default=None)
    if last is None or last.answer is None or last.answer.outcome != APPLIED:
        yield Violation(6, "the last operation failed", f"{last}")
