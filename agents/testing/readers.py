"""Condition 5: what a reader sees never goes back, and is never older than what anybody was told before it looked.

(That each snapshot holds what was true at its revision is compared in the replay.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from solewriter.agents.testing.accounts import Violation
from solewriter.agents.testing.evidence import Look
from solewriter.agents.testing.order import Floor


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
