"""Latencies by their number: small enough to keep of every run, exact to one part in 128, and they can be added up.

Buckets are as wide as a 128th of the power of two that they lie in, and one nanosecond wide below 256 ns; the greatest
latency is kept exactly. A percentile is by nearest rank, and is the middle of the bucket in which that latency lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from solewriter.bench.kit.measure import NS_PER_US, Latency

STEPS = 128  # buckets in each power of two
EXACT_BELOW = 2 * STEPS
PERCENTILES = (0.5, 0.9, 0.99, 0.999)


class Histogram(msgspec.Struct, frozen=True):
    """How many latencies fell into which bucket; only buckets with something in them are here, ascending."""

    buckets: list[int]
    counts: list[int]
    max_ns: int

    @classmethod
    def of(cls, latencies_ns: Sequence[int]) -> Histogram:
        if not len(latencies_ns):
            return NOTHING
        values = np.asarray(latencies_ns, dtype=np.int64)
        buckets, counts = np.unique(_bucket(values), return_counts=True)
        return cls(buckets.tolist(), counts.tolist(), int(values.max()))

    @property
    def count(self) -> int:
        return sum(self.counts)

    def latency(self) -> Latency | None:
        """p50, p90, p99, p99.9 and the greatest, in microseconds; None of nothing."""
        if not self.counts:
            return None
        ranks = np.cumsum(self.counts)
        places = np.searchsorted(ranks, [round(share * (self.count - 1)) + 1 for share in PERCENTILES])
        found = [min(_middle_ns(self.buckets[place]), self.max_ns) for place in places]
        return Latency(*[round(ns / NS_PER_US, 1) for ns in (*found, self.max_ns)])

    def above(self, bound_ns: int) -> int:
        """How many lie in buckets wholly above this."""
        pairs = zip(self.buckets, self.counts, strict=True)
        return sum(count for bucket, count in pairs if _lowest_ns(bucket) > bound_ns)


NOTHING = Histogram([], [], 0)


def merged(all_of_them: Iterable[Histogram]) -> Histogram:
    """All latencies of all of them."""
    counts: dict[int, int] = {}
    max_ns = 0
    for one in all_of_them:
        max_ns = max(max_ns, one.max_ns)
        for bucket, count in zip(one.buckets, one.counts, strict=True):
            counts[bucket] = counts.get(bucket, 0) + count
    buckets = sorted(counts)
    return Histogram(buckets, [counts[bucket] for bucket in buckets], max_ns)


def _bucket(values: Any) -> Any:
    """Which bucket, by the value's power of two and its leading bits; `frexp` is exact up to 2^53 ns, 104 days."""
    _, exponents = np.frexp(values.astype(np.float64))
    shifts = np.maximum(exponents - EXACT_BELOW.bit_length() + 1, 0)
    return shifts * STEPS + (values >> shifts)


def _lowest_ns(bucket: int) -> int:
    shift = max(bucket // STEPS - 1, 0)
    return (bucket - shift * STEPS) << shift


def _middle_ns(bucket: int) -> int:
    return (_lowest_ns(bucket) + _lowest_ns(bucket + 1)) // 2
