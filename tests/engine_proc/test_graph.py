"""The graph of a kind's tasks finds every cycle and no other, and keeps its edges in both directions."""

from __future__ import annotations

import itertools
import random
import time

from hypothesis import given
from hypothesis import strategies as st

from solewriter.engine_proc.coordination.graph import Graph

KEYS = st.sampled_from("abcdefgh")
EDGES = st.dictionaries(KEYS, st.lists(KEYS, max_size=3, unique=True).map(tuple), max_size=8)


def reaches(edges: dict[str, tuple[str, ...]], start: str, end: str) -> bool:
    """By walking everything."""
    seen, waiting = set[str](), list(edges.get(start, ()))
    while waiting:
        one = waiting.pop()
        if one == end:
            return True
        if one not in seen:
            seen.add(one)
            waiting += edges.get(one, ())
    return False


@given(EDGES, EDGES)
def test_a_cycle_is_found_wherever_there_is_one(held: dict[str, tuple[str, ...]], changed: dict[str, tuple[str, ...]]):
    graph = Graph()
    for key, dependencies in held.items():
        graph.put(key, dependencies, None)
    edges = {**held, **changed}
    for key in changed:
        way = graph.cycle(key, changed)
        assert (way is not None) == reaches(edges, key, key)
        if way is not None:
            assert way[0] == way[-1] == key
            assert len(way) >= 2
            assert all(following in edges[one] for one, following in itertools.pairwise(way))


@given(
    st.lists(st.tuples(KEYS, st.lists(KEYS, max_size=3, unique=True), st.none() | KEYS)),
    st.dictionaries(KEYS, st.none() | KEYS),
)
def test_edges_are_the_same_from_both_ends(
    steps: list[tuple[str, list[str], str | None]], changed: dict[str, str | None]
):
    graph, wanted, parents = Graph(), dict[str, tuple[str, ...]](), dict[str, str]()
    for key, dependencies, parent in steps:
        graph.put(key, dependencies, parent)
        wanted[key] = tuple(dependencies)
        if parent is None:
            parents.pop(key, None)
        else:
            parents[key] = parent
    assert graph.dependencies == {key: some for key, some in wanted.items() if some}
    assert {(one, key) for one, keys in graph.dependants.items() for key in keys} == {
        (one, key) for key, some in wanted.items() for one in some
    }
    assert {(parent, key) for parent, keys in graph.children.items() for key in keys} == {
        (parent, key) for key, parent in parents.items()
    }
    for root in "abcdefgh":
        below = graph.below(root, {})
        assert len(below) == len(set(below))
        children = {key: tuple(graph.children.get(key, ())) for key in "abcdefgh"}
        assert set(below) == {key for key in "abcdefgh" if key != root and reaches(children, root, key)}
    foreseen = {root: graph.below(root, changed) for root in "abcdefgh"}
    for key, parent in changed.items():
        graph.put(key, graph.dependencies.get(key, ()), parent)
    assert foreseen == {root: graph.below(root, {}) for root in "abcdefgh"}


def test_a_cycle_in_a_large_graph_is_found_without_walking_it() -> None:
    """Counted in edges looked at: time would prove nothing."""
    chance = random.Random(7)
    graph = Graph()
    for number in range(1, 20_000):
        graph.put(str(number), tuple({str(chance.randrange(number)) for _ in range(3)}), None)
    looked = 0

    class Counting(dict):
        def get(self, key, default=None):
            nonlocal looked
            looked += 1
            return super().get(key, default)

    graph.dependencies, graph.dependants = Counting(graph.dependencies), Counting(graph.dependants)
    begun = time.monotonic()
    way = graph.cycle("0", {"0": ("19999",)})
    assert way is not None, "0 is where everything begins"
    assert looked < 5_000, f"{looked} in {time.monotonic() - begun} s"
    looked = 0
    assert graph.cycle("new", {"new": ("19999", "5")}) is None
    assert looked < 10, "nobody depends on a new one"
