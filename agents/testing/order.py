"""Condition 2: the order of revisions is the order of time. A was answered before B was called: B is later, or at the
same revision if it changed nothing. Condition 5 asks the same of readers, because an acked revision is published.
And of one session, whose requests may be under way together, it is the order in which they were sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from operator import itemgetter

from solewriter.agents.testing.accounts import Account, Accounts, Violation
from solewriter.agents.testing.history import Decided


class Floor:
    """The highest revision that anybody was told before a moment."""

    def __init__(self, accounts: Accounts) -> None:
        answered = sorted(
            [
                (first.at, first.revision or 0, account)
                for account in accounts
                if (first := account.returned) is not None
            ],
            key=lambda told: told[0],
        )
        self._times = [at for at, _, _ in answered]
        told: list[tuple[int, Account | None]] = [(revision, account) for _, revision, account in answered]
        self._highest = list(accumulate(told, partial(max, key=itemgetter(0))))

    def before(self, at: int) -> tuple[int, Account | None]:
        """That revision, and who was told it."""
        place = bisect_left(self._times, at)
        return self._highest[place - 1] if place else (0, None)


def in_real_time_order(accounts: Accounts, floor: Floor) -> Iterator[Violation]:
    """No request took effect before one that was answered before it was called."""
    for account in accounts:
        revision = account.revision
        if revision is None:
            continue
        told, whom = floor.before(account.called)
        if revision < told or (account.changed and revision == told and told):
            yield Violation(2, "order inverted", f"{account} at revision {revision}, called after {whom} was at {told}")


def in_the_order_of_sessions(accounts: Accounts) -> Iterator[Violation]:
    """No request was decided before one that its session had sent before it. Claims may wait, and others pass them."""
    newest: dict[int, Decided] = {}
    for place, decided in enumerate(accounts.history):
        account = accounts.of(place)
        if account is None or any(step.op == "claim" for step in account.call.steps):
            continue
        before = newest.setdefault(decided.session, decided)
        if decided.sequence < before.sequence:
            yield Violation(2, "order inverted", f"{account}: {decided} behind {before}, which was sent later")
        else:
            newest[decided.session] = decided
