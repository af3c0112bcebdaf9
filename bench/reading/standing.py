"""What a run of the snapshot benchmark found out: rows, the marks that were set, and the table that people read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from solewriter.bench.kit.mark import Mark, judged, least, most, summed
from solewriter.bench.kit.measure import US_PER_S
from solewriter.bench.kit.table import described, table
from solewriter.bench.reading.passes import (
    ATTACH,
    COUNT_FEW,
    COUNT_MANY,
    GET_COLD,
    GET_WARM,
    OURS,
    PIN,
    SCAN_COLD,
    SCAN_WARM,
    Contestant,
    Figure,
)

PUBLISH = "engine CPU per update"
VISIBLE = "submit until visible"
REPLIED = "submit until reply"
LOADED = "shared memory per entity"
UPDATED = "shared memory, updated at random"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant's figures in one measure. Less is better in every unit but "/s"."""

    measure: str
    over: str  # how many of what kind
    who: str
    how: str
    unit: str
    median: float | None = None
    min: float | None = None
    max: float | None = None
    p99: float | None = None
    cpu: float | None = None  # the reader's own processor time, median, in the same unit
    ours_to_rival: float | None = None  # of `cpu`; of `median` where there is none, or the rival has a server
    lost: bool = False  # whether the rival is the better one
    agrees: bool | None = None  # whether it returned the same as ours; None where nothing is to be compared
    note: str = ""


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    plan: dict[str, Any]
    rows: list[Row]
    marks: list[Mark]
    agree: bool  # whether every rival returned what we returned
    elapsed_s: float


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(
    over: str, contestants: Sequence[Contestant], figures: Sequence[Figure | None], agree: Sequence[bool | None]
) -> list[Row]:
    """The rows of timed contestants, measure by measure, ours first in each."""
    ours = {one.measure: figure for one, figure in zip(contestants, figures, strict=True) if one.who == OURS and figure}
    rows = [
        _timed_row(over, one, figure, ours[one.measure], same)
        for one, figure, same in zip(contestants, figures, agree, strict=True)
    ]
    return sorted(rows, key=lambda row: list(ours).index(row.measure))


def _timed_row(over: str, one: Contestant, figure: Figure | None, ours: Figure, same: bool | None) -> Row:
    row = Row(measure=one.measure, over=over, who=one.who, how=one.how, unit="us", agrees=same)
    if figure is None:
        return msgspec.structs.replace(row, note=f"not here: {one.why_not}")
    row = msgspec.structs.replace(row, **{name: round(value, 3) for name, value in figure._asdict().items()})
    return _compared(row, ours.median, figure.median) if one.served else _compared(row, ours.cpu, figure.cpu)


def memory_rows(over: str, entities: int, ours_bytes: int, rivals: dict[str, int | None]) -> Iterator[Row]:
    """What it takes to hold so many entities; None of a rival that is not here."""
    for who, taken in {OURS: ours_bytes, **rivals}.items():
        row = Row(measure=LOADED, over=over, who=who, how="after loading", unit="bytes")
        if taken is None:
            yield msgspec.structs.replace(row, note="not here")
        else:
            row = msgspec.structs.replace(row, median=round(taken / entities, 1))
            yield _compared(row, ours_bytes / entities, taken / entities)


def _compared(row: Row, ours: float, theirs: float) -> Row:
    if row.who == OURS:
        return row
    return msgspec.structs.replace(row, ours_to_rival=round(ours / theirs, 3), lost=ours > theirs)


# --- marks -----------------------------------------------------------------------------------------------------------


def marks_of(rows: Sequence[Row]) -> list[Mark]:
    """The marks by these rows. What is set for a million entities is judged at the largest size there is; what a reader
    does all by itself, by its processor time, of which other programs on the machine have no part.
    """
    costs = {row.over: row.median or 0.0 for row in rows if row.measure == PUBLISH}
    smallest, *_, largest = sorted(costs, key=lambda over: int(over.split()[0].replace(",", "")))
    asked_us = max(_ours(rows, name, "cpu") for name in (COUNT_MANY, COUNT_FEW, SCAN_COLD, SCAN_WARM))
    return [
        most(f"publish cost, {largest} to {smallest}", 1.3, "x", costs[largest] / costs[smallest]),
        most("pin + unpin", 5.0, "us", _ours(rows, PIN, "cpu")),
        most("get, typed, cold, to LMDB with our decoder", 1.0, "x", _to_lmdb(rows)),
        least("get, typed, warm, per second of the reader's CPU", 1_000_000, US_PER_S / _ours(rows, GET_WARM, "cpu")),
        most(f"the slowest scan or count by 2 conditions, {largest}", 5.0, "ms", asked_us / 1_000),
        most("submit until visible in a waiting reader, p99", 1.0, "ms", _ours(rows, VISIBLE, "p99") / 1_000),
        most("attach", 5.0, "ms", _ours(rows, ATTACH, "cpu") / 1_000),
        most("shared memory to live record bytes, after updates", 2.2, "x", _ours(rows, UPDATED)),
    ]


def _ours(rows: Sequence[Row], measure: str, figure: str = "median") -> float:
    """A figure of our first row of a measure, which is that of tasks where there are several."""
    return float(next(getattr(row, figure) for row in rows if row.measure == measure and row.who == OURS))


def _to_lmdb(rows: Sequence[Row]) -> float | None:
    return next(row.ours_to_rival for row in rows if row.measure == GET_COLD and row.who == "LMDB")


# --- text ------------------------------------------------------------------------------------------------------------

HEAD = (
    "measure",
    "over",
    "who",
    "how",
    "unit",
    "median",
    "min",
    "max",
    "p99",
    "CPU",
    "ours : rival",
    "",
    "agrees",
    "note",
)


def printed(results: Results) -> str:
    """The table, the marks, and what has to be known to read them."""
    parts = [
        f"machine: {described(results.machine)}",
        f"plan: {described(results.plan)}",
        "",
        table(HEAD, map(_line, results.rows)),
        "CPU: this process's own, median; ours : rival: by it, or by the other median where the rival has a server",
        "",
        judged(results.marks),
        "",
        f"{summed(results.marks)}; lost: {sum(row.lost for row in results.rows)} rows; rivals "
        f"{'returned what we did' if results.agree else 'did NOT return what we did'}; took {results.elapsed_s} s",
    ]
    return "\n".join(parts)


def _line(row: Row) -> tuple[object, ...]:
    figures = row.median, row.min, row.max, row.p99, row.cpu, row.ours_to_rival
    agrees = "" if row.agrees is None else row.agrees
    return (row.measure, row.over, row.who, row.how, row.unit, *figures, "LOST" if row.lost else "", agrees, row.note)
