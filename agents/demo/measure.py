"""What is measured of Python source: lines, functions, classes, imports, and how branched the functions are.

The same bytes give the same figures in any process, which is what the demo's comparison rests on. So the walk over
the tree keeps its own stack: a recursive one would fail at a depth that depends on its caller.

Complexity is McCabe's: 1 for a function, and 1 more for every place in it where the flow can go two ways. A nested
function is counted by itself, a lambda with the function around it. Code outside of functions has none.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FORKS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # all that the parser is known to raise
ERROR_CHARACTERS = 200  # a message may quote the source


@dataclass(frozen=True)
class Figures:
    """The figures of a module, or of many added up: then `error` is empty, and `unparsable` says how many had one."""

    modules: int = 0
    unparsable: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    complexity: int = 0  # of all functions
    complexity_max: int = 0  # of the most branched one
    error: str = ""

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            modules=self.modules + other.modules,
            unparsable=self.unparsable + other.unparsable,
            lines=self.lines + other.lines,
            functions=self.functions + other.functions,
            classes=self.classes + other.classes,
            imports=self.imports + other.imports,
            complexity=self.complexity + other.complexity,
            complexity_max=max(self.complexity_max, other.complexity_max),
        )


def added(parts: Iterable[Figures]) -> Figures:
    """The figures of all parts together."""
    return sum(parts, Figures())


def measured(file: Path) -> Figures:
    """The figures of one module. An unreadable or unparsable file is a result too, with the reason as `error`."""
    try:
        source = file.read_bytes()
    except OSError as error:
        return Figures(modules=1, unparsable=1, error=f"{type(error).__name__}: {error.strerror}")
    lines = len(source.splitlines())
    try:
        tree = parsed(source)
    except UNPARSABLE as error:
        return Figures(
            modules=1, unparsable=1, lines=lines, error=f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
        )
    return counted(tree, lines)


def parsed(source: bytes) -> ast.Module:
    """The tree of a module. Raises one of UNPARSABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubtful escapes in other people's code are not ours to report
        return ast.parse(source)


def counted(tree: ast.Module, lines: int) -> Figures:
    """The figures of a parsed module, in one walk that meets each node with the number of the function it is in."""
    classes = imports = 0
    complexities: list[int] = []
    waiting: list[tuple[ast.AST, int | None]] = [(tree, None)]
    while waiting:
        node, function = waiting.pop()
        if isinstance(node, FUNCTIONS):
            function = len(complexities)
            complexities.append(1)
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += 1
        elif function is not None:
            complexities[function] += branches(node)
        waiting.extend([(child, function) for child in ast.iter_child_nodes(node)])
    return Figures(
        modules=1,
        lines=lines,
        functions=len(complexities),
        classes=classes,
        imports=imports,
        complexity=sum(complexities),
        complexity_max=max(complexities, default=0),
    )


def branches(node: ast.AST) -> int:
    """At how many places this node, without its children, can go two ways."""
    if isinstance(node, FORKS):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        return 0 if _always_matches(node) else 1
    return 0


def _always_matches(case: ast.match_case) -> bool:
    """Whether this is the `case _` of a match: its else, and no branch more."""
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None
