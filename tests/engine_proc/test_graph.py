"""The graph of a kind's tasks finds every cycle and no other, and keeps its edges in both directions."""

from __future__ import annotations

import itertools
import random

import pytest
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
    edges, foreseen = {**held, **changed}, graph.foreseen(changed)
    for key in changed:
        way = foreseen.cycle(key)
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


class Key(str):
    """Counts how often it is looked up, or put somewhere."""

    count = 0

    def __hash__(self) -> int:
        Key.count += 1
        return str.__hash__(self)


def test_each_descendant_is_found_at_the_same_cost_however_many_there_are() -> None:
    graph = Graph()
    keys = [Key(number) for number in range(2_000)]
    for number, key in enumerate(keys[1:], 1):
        graph.put(key, (), keys[number // 1_000])
    changed = {Key("elsewhere"): "root", keys[7]: None}
    Key.count = 0
    assert len(graph.below(keys[0], changed)) == 1_998
    assert Key.count < 20 * len(keys)


class Looked:
    """Counts the edges of a graph that are looked at: time would prove nothing."""

    def __init__(self, graph: Graph) -> None:
        self.count = 0
        outer = self

        class Counting(dict):
            def get(self, key, default=None):
                outer.count += 1
                return super().get(key, default)

        graph.dependencies, graph.dependants = Counting(graph.dependencies), Counting(graph.dependants)


def test_a_cycle_in_a_large_graph_is_found_without_walking_it() -> None:
    chance = random.Random(7)
    graph = Graph()
    for number in range(1, 20_000):
        graph.put(str(number), tuple({str(chance.randrange(number)) for _ in range(3)}), None)
    looked = Looked(graph)
    way = graph.foreseen({"0": ("19999",)}).cycle("0")
    assert way is not None, "0 is where everything begins"
    assert looked.count < 5_000
    looked.count = 0
    assert graph.foreseen({"new": ("19999", "5")}).cycle("new") is None
    assert looked.count < 10, "nobody depends on a new one"


CHAIN = 5_000


def a_chain() -> tuple[Graph, Looked]:
    graph = Graph()
    for number in range(1, CHAIN):
        graph.put(str(number), (str(number - 1),), None)
    return graph, Looked(graph)


def test_what_is_added_at_an_end_of_a_chain_walks_nothing_of_it() -> None:
    graph, looked = a_chain()
    assert graph.foreseen({"new": (str(CHAIN - 1),)}).cycle("new") is None
    assert looked.count < 10
    looked.count = 0
    assert graph.foreseen({"0": ("new",), "new": ()}).cycle("0") is None
    assert looked.count < 10
    wide = {f"wide {number}": (f"wide {number // 2}", f"wider {number // 2}") for number in range(2, 64)}
    looked.count = 0
    assert graph.foreseen({**wide, "wide 1": (str(CHAIN - 1),)}).cycle("wide 1") is None
    assert looked.count < 500, "a thin way is not walked to its end because the other one is wide"


def test_a_cycle_over_a_whole_chain_is_found_from_anywhere_on_it() -> None:
    graph, _ = a_chain()
    whole = {"0": (str(CHAIN - 1),)}
    assert len(graph.foreseen(whole).cycle("0") or ()) == CHAIN + 1
    middle = CHAIN // 2
    assert len(graph.foreseen({**whole, str(middle): (str(middle - 1),)}).cycle(str(middle)) or ()) == CHAIN + 1


@pytest.mark.parametrize("order", [1, -1, 0])
def test_a_chain_that_comes_in_one_request_is_walked_once(order: int) -> None:
    graph, looked = a_chain()
    coming = {str(number): (str(number - 1),) for number in range(CHAIN, CHAIN + 1_000)}
    keys = [*coming][:: order or 1]
    if not order:
        random.Random(7).shuffle(keys)
    foreseen = graph.foreseen(coming)
    for key in keys:
        assert foreseen.cycle(key) is None
    assert looked.count < 20 * len(coming)
