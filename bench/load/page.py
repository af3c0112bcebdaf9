"""The figures of `docs/benchmarks.md`: its tables and pictures, from the JSON of a run.

python -m solewriter.bench.load.page RUN.json [PAGE]

What stands between the page's two comments is replaced; pictures go to the folder `benchmarks` beside the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from solewriter.bench.kit.mark import REACHED
from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.table import described
from solewriter.bench.load.plot import draw
from solewriter.bench.load.report import tables
from solewriter.bench.load.rows import Results, Row

BEGIN, END = "<!-- figures: ", "<!-- end of figures -->"
PICTURES = {
    "throughput-by-agents": "Throughput by the number of agents",
    "latency-by-load": "Latency by offered load",
    "cost-by-size": "Processor time of one update by the size of the state",
    "across-a-kill": "Replies across the death of the engine",
}
HEAD = ("who", "survives", "requests/s", "least to most", "ours : it", "p50", "p99", "p99.9", "server", "agents")


def filled(page: str, results: Results, pictures: Iterable[str]) -> str:
    """The page with these figures in it. Raises ValueError if it has no place for them."""
    begin, end = page.index(BEGIN), page.index(END)
    first_line = page.index("\n", begin) + 1
    return page[:first_line] + "\n".join(_lines(results, set(pictures))) + "\n" + page[end:]


def _lines(results: Results, pictures: set[str]) -> Iterator[str]:
    yield f"{described(results.machine)}. Took {results.elapsed_s:.0f} s."
    yield ""
    for name, words in PICTURES.items():
        if name in pictures:
            yield f"![{words}](benchmarks/{name}.svg)"
            yield ""
    yield from _table(
        ("goal", "wanted", "measured", ""),
        [
            (
                one.mark,
                one.wanted,
                _figure(one.measured),
                f"**{REACHED[False]}**" if one.reached is False else REACHED[one.reached],
            )
            for one in results.marks
        ],
    )
    yield ""
    yield "Latencies and processor time for each request in microseconds."
    for title, rows in tables(results.rows).items():
        yield ""
        yield f"**{title}**"
        yield ""
        yield from _table(HEAD, map(_cells, rows))


def _cells(row: Row) -> Sequence[str]:
    case = row.case
    varying = {
        "agents": f", {case.agents} agents", "sizes": f", {case.entities:,}", "open": f", {case.rate_per_s:,.0f}/s",
        "reads": ", beside a writer" if case.writers else ", alone",
    }  # fmt: skip
    who = f"{case.peer}{f', {row.how}' if row.how else ''}{varying.get(case.section, '')}"
    if row.per_s is None:
        return (who, row.promise, row.note, *[""] * (len(HEAD) - 3))
    latency: tuple[Any, ...] = (row.p50_us.median if row.p50_us else None, None, None)
    if row.latency:
        latency = row.latency.p50_us, row.latency.p99_us, row.latency.p99_9_us
    ratio = "" if row.ours_to_it is None else f"{row.ours_to_it:.2f}{' LOST' if row.lost else ''}"
    return (
        who, row.promise, _figure(row.per_s.median), f"{_figure(row.per_s.min)} to {_figure(row.per_s.max)}", ratio,
        *map(_figure, latency), _median(row.server_cpu_us), _median(row.client_cpu_us),
    )  # fmt: skip


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def _median(found: Spread | None) -> str:
    return _figure(found.median if found else None)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m solewriter.bench.load.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="what `solewriter bench --json` printed")
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/benchmarks.md"))
    given = parser.parse_args()
    results = msgspec.json.decode(given.run.read_bytes(), type=Results)
    pictures = draw(results, given.page.parent / "benchmarks")
    given.page.write_text(filled(given.page.read_text(), results, {path.stem for path in pictures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
