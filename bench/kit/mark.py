"""What was aimed at, judged by the figures of one run."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from solewriter.bench.kit.table import table

REACHED = {True: "reached", False: "MISSED", None: "-"}


class Mark(msgspec.Struct, frozen=True):
    """What was aimed at, and what this run measured. `reached` is None where a part of it could not be measured."""

    mark: str
    wanted: str
    measured: float | None
    reached: bool | None


def most(mark: str, bound: float, unit: str, measured: float | None) -> Mark:
    """Reached by no more than the bound."""
    shown = None if measured is None else round(measured, 3)
    return Mark(mark, f"<= {bound:g} {unit}", shown, None if measured is None else measured <= bound)


def least(mark: str, bound: float, measured: float | None, unit: str = "") -> Mark:
    """Reached by no less than the bound."""
    shown = None if measured is None else round(measured) if bound >= 1_000 else round(measured, 3)
    return Mark(mark, f">= {bound:,.10g} {unit}".rstrip(), shown, None if measured is None else measured >= bound)


def judged(marks: Sequence[Mark]) -> str:
    """The table of them."""
    lines = [(one.mark, one.wanted, one.measured, REACHED[one.reached]) for one in marks]
    return table(("mark", "wanted", "measured", ""), lines)


def summed(marks: Sequence[Mark]) -> str:
    return f"reached: {sum(1 for mark in marks if mark.reached)} of {len(marks)} marks"
