"""Condition 5: what a reader sees never goes back, and is never older than what anybody was told before it looked; and
a watch brings every change, once and in order.

(That each snapshot holds what was true at its revision is compared in the replay.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from solewriter.agents.testing.accounts import Violation
from solewriter.agents.testing.history import History
from solewriter.agents.testing.lines import Followed, Look
from solewriter.agents.testing.order import Floor
from solewriter.agents.testing.steps import digest

Told = tuple[str, str, int, int, str]  # as in Followed


def readers_go_forward(looks: Mapping[str, Sequence[Look]]) -> Iterator[Violation]:
    """New snapshots of one process are of the same or a later revision."""
    for who, taken in looks.items():
        newest = 0
        for look in taken:
            if look.held:
                continue
            if look.revision < newest:
                yield Violation(5, "revision went back", f"{who} saw {newest}, then {look.revision}")
            newest = max(newest, look.revision)


def readers_see_what_was_told(looks: Mapping[str, Sequence[Look]], floor: Floor) -> Iterator[Violation]:
    """A reply leaves after its revision is published, so whoever looks afterwards sees it, in any process."""
    for who, taken in looks.items():
        for look in taken:
            told, whom = floor.before(look.at)
            if look.revision < told and not look.held:
                yield Violation(
                    5, "an acked revision was not seen", f"{who} saw {look.revision}, and {whom} had been told {told}"
                )


def watches_bring_every_change(watches: Mapping[str, Sequence[Followed]], history: History) -> Iterator[Violation]:
    """From where it began, as far as it came, a watch is the history."""
    if not watches:
        return
    changes = [change for decided in history for change in decided.changes]
    every = [
        (*change.key, change.version, change.revision, "" if change.content is None else digest(change.content))
        for change in changes
    ]
    for who, lines in watches.items():
        for kind in sorted({line.kind for line in lines}):
            recorded = [change for change in every if kind in ("", change[0])]
            yield from _as_recorded(who, [line for line in lines if line.kind == kind], recorded)


def _as_recorded(who: str, lines: Sequence[Followed], recorded: Sequence[Told]) -> Iterator[Violation]:
    revisions = [revision for _, _, _, revision, _ in recorded]
    place = 0
    for line in lines:
        if line.since is not None:
            place = bisect_right(revisions, line.since)
        expected = recorded[place : place + len(line.changes)]
        for told, change in zip_longest(line.changes, expected):
            if told != change:
                yield Violation(5, "watch differs", f"{who} was brought {told}, recovered {change}")
                break
        place += len(line.changes)
