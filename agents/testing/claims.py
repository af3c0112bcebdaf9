"""Condition 7: nobody works at what somebody else has. Read off the records and the tokens that agents showed, besides
the model: a token is the version that its claim made, so it is never given again; a task is claimed when nobody holds
it, handed in once for a claim and under no other one's token; and at the end nobody holds anything any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from solewriter.agents.testing.accounts import Accounts, Violation
from solewriter.agents.testing.steps import Fields, Key
from solewriter.agents.testing.tasks import FREE, HELD

HANDING_IN = ("complete", "fail", "release")


def claims_are_kept(accounts: Accounts) -> Iterator[Violation]:
    """Every record of a task, in the order of revisions."""
    before, holding = dict[Key, Fields](), dict[Key, int]()
    for place, decided in enumerate(accounts.history):
        account = accounts.of(place)
        steps = account.call.steps if account is not None else ()
        ops = {step.key: step.op for step in steps}
        for change in decided.changes:
            key, was, now = change.key, before.get(change.key, {}), change.content or {}
            if "claim" not in {**was, **now}:
                continue
            wrong: list[str] = []
            if now.get("claim", 0) not in (0, was.get("claim"), change.version):
                wrong.append("a token that is no claim's version")
            if any(step.op == "claim" for step in steps):
                wrong += _claimed(was, key in holding)
                holding[key] = change.version
            elif ops.get(key) in HANDING_IN and account is not None:
                shown = {dict(tokens).get(key) for tokens in account.tokens}
                wrong += _handed_in(shown, was.get("claim", 0), holding.get(key))
            for name in wrong:
                yield Violation(7, name, f"{key} v{change.version}: {account or decided}")
            if now.get("status") not in HELD or now.get("claim") != holding.get(key):
                holding.pop(key, None)
            before[key] = now
    for key, token in holding.items():
        yield Violation(7, "still claimed", f"{key} by claim {token}, and everybody has ended")


def _claimed(was: Fields, held: bool) -> Iterator[str]:
    if held:
        yield "two hold it"
    if was.get("status") not in FREE:
        yield "claimed though it was not free"
    elif was["status"] != "created" and was["attempts"] > was["max_retries"]:
        yield "claimed without an attempt left"


def _handed_in(shown: set[int | None], newest: int, held: int | None) -> Iterator[str]:
    """Whoever holds no claim may hand in what nobody has claimed: by steps of its own."""
    if held is not None and held not in shown:
        yield "handed in under no claim"
    if not any(token in (None, newest) for token in shown):
        yield "handed in under an old claim"
