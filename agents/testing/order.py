"""Condition 2: the order of revisions is the order of time. A was answered before B was called: B is later, or at the
same revision if it changed nothing. Condition 5 asks the same of readers, because an acked revision is published.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from operator import itemgetter

from solewriter.agents.testing.accounts import Account, Accounts, Violation


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
