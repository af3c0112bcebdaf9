"""Who depends on whom, and who is whose child, of one kind. Keys only; what they are is looked up elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Keys = Iterable[str]
NOBODY: frozenset[str] = frozenset()


class Graph:
    """Edges in both directions. Those who have none cost nothing."""

    def __init__(self) -> None:
        self.dependencies: dict[str, tuple[str, ...]] = {}
        self.dependants: dict[str, set[str]] = {}
        self._parents: dict[str, str] = {}
        self.children: dict[str, set[str]] = {}

    def put(self, key: str, dependencies: Keys, parent: str | None) -> None:
        """What a key depends on from now on, and its parent."""
        wanted = tuple(dependencies)
        before = self.dependencies.get(key, ())
        if wanted != before:
            for one in before:
                _cut(self.dependants, one, key)
            for one in wanted:
                self.dependants.setdefault(one, set()).add(key)
            if wanted:
                self.dependencies[key] = wanted
            else:
                del self.dependencies[key]
        known = self._parents.get(key)
        if parent != known:
            if known is not None:
                del self._parents[key]
                _cut(self.children, known, key)
            if parent is not None:
                self._parents[key] = parent
                self.children.setdefault(parent, set()).add(key)

    def below(self, key: str, changed: Mapping[str, str | None]) -> list[str]:
        """All descendants, each once, parents before their children, however they are tangled. `changed`: the parents
        that some have by now.
        """
        coming: dict[str, set[str]] = {}
        for one, parent in changed.items():
            if parent is not None:
                coming.setdefault(parent, set()).add(one)
        found = {key: None}
        waiting = [key]
        while waiting:
            parent = waiting.pop()
            held = (one for one in self.children.get(parent, NOBODY) if one not in changed)
            for child in sorted([one for one in (*held, *coming.get(parent, NOBODY)) if one not in found]):
                found[child] = None
                waiting.append(child)
        return [*found][1:]

    def foreseen(self, changed: Mapping[str, Keys]) -> Foreseen:
        """As it is to be: `changed` says what some keys are about to depend on."""
        return Foreseen(self, changed)


class Foreseen:
    """Dependencies as one request is about to leave them."""

    def __init__(self, graph: Graph, changed: Mapping[str, Keys]) -> None:
        self._graph = graph
        self._changed = changed
        self._coming: dict[str, set[str]] = {}
        for one, wanted in changed.items():
            for dependency in wanted:
                self._coming.setdefault(dependency, set()).add(one)
        self._on_none: set[str] = set()  # keys that were looked at: no cycle leads through them

    def cycle(self, key: str) -> list[str] | None:
        """A way from one of the changed keys along dependencies back to it, the key first and last; None if there is
        none.

        Two searches meet: forward from what it depends on, backward from those that depend on it, each time whichever
        has reached less. Where nobody depends on the key, as on a new one, this is no search at all.
        """
        way = _meeting(key, (self._forward, self._backward))
        if way is None:
            self._on_none.add(key)
        return way

    def _forward(self, one: str) -> Keys:
        changed = self._changed
        wanted = changed[one] if one in changed else self._graph.dependencies.get(one, ())
        return [other for other in wanted if other not in self._on_none]

    def _backward(self, one: str) -> Keys:
        held = (other for other in self._graph.dependants.get(one, NOBODY) if other not in self._changed)
        return [other for other in (*held, *self._coming.get(one, NOBODY)) if other not in self._on_none]


def _meeting(key: str, steps: tuple[Callable[[str], Keys], Callable[[str], Keys]]) -> list[str] | None:
    came: tuple[dict[str, str], dict[str, str]] = ({}, {})  # by what was reached: from where
    edges: tuple[list[str], list[str]] = ([key], [key])
    while edges[0] and edges[1]:
        side = len(came[0]) >= len(came[1])
        mine, other, reached = came[side], came[not side], list[str]()
        for one in edges[side]:
            for following in steps[side](one):
                if following == key:
                    way = _way(mine, key, one)
                    return [key, *way] if side else [*way[::-1], key]
                if following in mine:
                    continue
                mine[following] = one
                if following in other:
                    return [*_way(came[0], key, following)[::-1], *_way(came[1], key, following)[1:]]
                reached.append(following)
        edges[side][:] = reached
    return None


def _way(came: Mapping[str, str], key: str, one: str) -> list[str]:
    """From what was reached back to the key."""
    way = [one]
    while way[-1] != key:
        way.append(came[way[-1]])
    return way


def _cut(edges: dict[str, set[str]], one: str, other: str) -> None:
    edges[one].discard(other)
    if not edges[one]:
        del edges[one]
