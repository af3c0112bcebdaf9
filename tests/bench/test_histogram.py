"""A histogram's percentiles against those of the very latencies that went into it."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from solewriter.bench.kit.measure import latency
from solewriter.bench.load.histogram import NOTHING, STEPS, Histogram, merged

LATENCIES = st.lists(
    st.one_of(st.integers(0, 2_000), st.integers(0, 10**7), st.integers(0, 2**50)), min_size=1, max_size=300
)


@given(LATENCIES)
def test_percentiles_are_those_of_the_latencies_to_one_part_in_128(all_ns: list[int]) -> None:
    exact, found = latency(all_ns), Histogram.of(all_ns).latency()
    assert exact is not None
    assert found is not None
    for name in ("p50_us", "p90_us", "p99_us", "p99_9_us"):
        expected = getattr(exact, name)
        assert abs(getattr(found, name) - expected) <= expected / STEPS + 0.1, name  # rounded to a tenth
    assert found.max_us == exact.max_us


@given(st.lists(LATENCIES, min_size=1, max_size=4))
def test_histograms_add_up_to_that_of_all_latencies(parts: list[list[int]]) -> None:
    assert merged(map(Histogram.of, parts)) == Histogram.of([*chain(*parts)])


@given(LATENCIES, st.integers(0, 2**50))
def test_what_lies_above_a_bound_is_counted_and_nothing_below_it(all_ns: list[int], bound_ns: int) -> None:
    found = Histogram.of(all_ns).above(bound_ns)
    assert found <= sum(1 for one in all_ns if one > bound_ns)
    assert found >= sum(1 for one in all_ns if one > bound_ns * (1 + 2 / STEPS) + 1)


def test_nothing_has_no_percentiles() -> None:
    assert Histogram.of([]) == NOTHING == merged([])
    assert NOTHING.latency() is None
