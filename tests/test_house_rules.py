"""The rules of the house, kept by a test: which room may know which, where memory may be touched, how long is long.

Every rule is a walk over syntax trees that yields `file:line: what`, so a failure is a list of places to go to.
"""

from __future__ import annotations

import ast
import gc
import io
import re
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("shared", "engine_proc", "agents", "bench")
EVERYWHERE = (*PRODUCT, "tests", "examples")
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400

# What a room may import from the house. `shared` is the ground; the engine and the agents do not know each other; only
# what starts an engine for somebody knows `process`; programs come in at the front door; benchmarks measure every room
# from inside.
FRONT, SHARED, AGENTS = "solewriter", "solewriter.shared", "solewriter.agents"
ENGINE, PROCESS = "solewriter.engine_proc", "solewriter.engine_proc.process"
MAY_IMPORT = {
    "shared": (SHARED,),
    "engine_proc": (SHARED, ENGINE),
    "agents": (SHARED, AGENTS),
    "agents/front": (SHARED, AGENTS, PROCESS),
    "agents/cli": (FRONT, SHARED, AGENTS, PROCESS, "solewriter.engine_proc.recovery.repair"),
    "agents/demo": (FRONT, SHARED, AGENTS, PROCESS),
    "agents/testing": (FRONT, SHARED, AGENTS, PROCESS),
    "bench": (FRONT, SHARED, AGENTS, ENGINE, "solewriter.bench"),
}

# Modules that only these files may import; the first lines of each file say why.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "pickle": ("shared/wire.py",),  # requests, and it refuses every global
    "_pickle": ("shared/wire.py",),
    "cloudpickle": ("engine_proc/owner/pickled.py",),  # models, from the owner's own pipe
    "mmap": ("shared/memory/segment.py", "shared/memory/futex.py"),
    "multiprocessing.shared_memory": (),  # its resource tracker unlinks live segments (cpython#82300)
}

BANNED_WORDS = ("manager", "helper", "helpers", "service", "handler", "util", "utils", "common", "base", "misc")
PROGRAMS = ("agents/cli/", "agents/demo/", "agents/testing/", "bench/")
MAY_PRINT = ("engine_proc/server.py", "engine_proc/owner/notices.py", "engine_proc/checkpointing/maker.py", *PROGRAMS)
MAY_SLEEP = ("tests/conftest.py",)


@pytest.fixture(autouse=True, scope="module")
def trees_are_kept_for_these_tests_only() -> Iterator[None]:
    """Every file is parsed once. A million nodes are no garbage meanwhile, and nobody's burden afterwards."""
    gc.collect()
    gc.disable()
    yield
    for kept in (paths, parsed, walked):
        kept.cache_clear()
    gc.enable()


@cache
def paths(root: Path, room: str) -> list[Path]:
    return sorted((root / room).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def walked(path: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(path)))


def sources(*rooms: str) -> dict[str, ast.Module]:
    """Files by their path from the root, parsed."""
    return {str(path.relative_to(ROOT)): parsed(path) for room in rooms for path in paths(ROOT, room)}


def nodes(*rooms: str) -> Iterator[tuple[str, ast.AST]]:
    for room in rooms:
        for path in paths(ROOT, room):
            name = str(path.relative_to(ROOT))
            yield from ((name, node) for node in walked(path))


def called(node: ast.AST) -> str:
    """The name of the function, if this is a call of one; not of a method."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def imports(*rooms: str) -> Iterator[tuple[str, int, str]]:
    """`from a import b` yields `a.b`: b may be a module."""
    for path, node in nodes(*rooms):
        if isinstance(node, ast.Import):
            yield from ((path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((path, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def lines_for_types_only(tree: ast.Module) -> set[int]:
    """What stands below `if TYPE_CHECKING:` never runs."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {inner.lineno for block in blocks for inner in block.body}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room_of(path: str) -> str:
    """The innermost folder that has a rule of its own."""
    return max((room for room in MAY_IMPORT if path.startswith(f"{room}/")), key=len)


# --- imports ---------------------------------------------------------------------------------------------------------


def imported_against_the_direction() -> Iterator[str]:
    """Imports run one way."""
    for path, line, name in imports(*PRODUCT):
        if within(name, "solewriter"):
            allowed = MAY_IMPORT[room_of(path)]
            if any(within(name, f"{FRONT}.{room}") for room in PRODUCT):
                fine = any(within(name, package) for package in allowed if package != FRONT)
            else:
                fine = FRONT in allowed
            if not fine:
                yield f"{path}:{line}: imports {name}"


def imported_by_a_bare_name() -> Iterator[str]:
    """Imports are absolute and begin with `solewriter`."""
    for path, line, name in imports(*EVERYWHERE):
        if name.startswith(".") or name.partition(".")[0] in (*PRODUCT, "tests"):
            yield f"{path}:{line}: imports {name}"


def imported_out_of_place() -> Iterator[str]:
    """Modules that can run code, or touch memory, have their places."""
    for path, line, name in imports(*PRODUCT):
        misplaced = any(within(name, module) and path not in places for module, places in ONLY_IN.items())
        if misplaced and line not in lines_for_types_only(sources(*PRODUCT)[path]):
            yield f"{path}:{line}: imports {name}"


# --- bytes and memory ------------------------------------------------------------------------------------------------


def packed_in_place_elsewhere() -> Iterator[str]:
    """`pack_into` zeroes its target first: only the memory's own modules know which words are visible already."""
    for path, node in nodes(*PRODUCT):
        if isinstance(node, ast.Attribute) and node.attr == "pack_into" and not path.startswith("shared/memory/"):
            yield f"{path}:{node.lineno}: pack_into"


def shared_memory_of_the_library() -> Iterator[str]:
    """Segments are the project's own."""
    for path, node in nodes(*EVERYWHERE):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in ("SharedMemory", "ShareableList", "SharedMemoryManager"):
            yield f"{path}:{getattr(node, 'lineno', 0)}: {name}"


def a_private_of_the_queue_elsewhere() -> Iterator[str]:
    """The queue's private ends are named in `shared/lane.py` only; a class may well have a `_reader` of its own."""
    for path, node in nodes(*PRODUCT):
        if isinstance(node, ast.Attribute) and node.attr in ("_writer", "_reader") and path != "shared/lane.py":
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own:
                yield f"{path}:{node.lineno}: {ast.unparse(node)}"


# --- names and sizes -------------------------------------------------------------------------------------------------


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def named_without_meaning() -> Iterator[str]:
    """Names are the field's nouns and verbs."""
    for path in sources(*PRODUCT):
        for part in Path(path).with_suffix("").parts:
            if words_of(part) & set(BANNED_WORDS):
                yield f"{path}:1: a module named {part}"
    for path, node in nodes(*PRODUCT):
        if isinstance(node, ast.ClassDef) and words_of(node.name) & set(BANNED_WORDS):
            yield f"{path}:{node.lineno}: class {node.name}"


def a_long_function() -> Iterator[str]:
    """A function is seen at one glance."""
    for path, node in nodes(*PRODUCT):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def a_long_file() -> Iterator[str]:
    """A file is read in one sitting."""
    for path in sources(*PRODUCT):
        lines = len((ROOT / path).read_text().splitlines())
        if lines > FILE_LINES_MAX:
            yield f"{path}:{lines}: has {lines} lines"


# --- words -----------------------------------------------------------------------------------------------------------


def without_a_docstring() -> Iterator[str]:
    """A module opens with its law."""
    for path, tree in sources(*EVERYWHERE).items():
        if not ast.get_docstring(tree):
            yield f"{path}:1: no docstring"


def printed() -> Iterator[str]:
    """Only programs print, and the engine's log."""
    for path, node in nodes(*PRODUCT):
        if called(node) == "print" and not path.startswith(MAY_PRINT):
            yield f"{path}:{getattr(node, 'lineno', 0)}: print"


def left_for_later() -> Iterator[str]:
    """Nothing is left for later."""
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in sources(*EVERYWHERE):
        text = (ROOT / path).read_text()
        for token in tokenize.generate_tokens(io.StringIO(text).readline) if words.search(text) else ():
            if token.type == tokenize.COMMENT and words.search(token.string):
                yield f"{path}:{token.start[0]}: {token.string}"


def waiting_for_time() -> Iterator[str]:
    """A test waits for a condition (`wait_until`); time that passes proves nothing."""
    for path, node in nodes("tests"):
        function = node.func if isinstance(node, ast.Call) else None
        of_time = isinstance(function, ast.Attribute) and ast.unparse(function) == "time.sleep"
        if (of_time or called(node) == "sleep") and path not in MAY_SLEEP:
            yield f"{path}:{getattr(node, 'lineno', 0)}: sleep"


Rule = Callable[[], Iterator[str]]
RULES: tuple[Rule, ...] = (
    imported_against_the_direction,
    imported_by_a_bare_name,
    imported_out_of_place,
    packed_in_place_elsewhere,
    shared_memory_of_the_library,
    a_private_of_the_queue_elsewhere,
    named_without_meaning,
    a_long_function,
    a_long_file,
    without_a_docstring,
    printed,
    left_for_later,
    waiting_for_time,
)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is(rule: Rule) -> None:
    broken = list(rule())
    assert not broken, "\n".join([f"{rule.__doc__}", *broken])


# --- the rules can fail ----------------------------------------------------------------------------------------------

PLANTED = [
    (imported_against_the_direction, "shared/x.py", "import solewriter.agents.client"),
    (imported_against_the_direction, "shared/memory/x.py", "from solewriter import Task"),
    (imported_against_the_direction, "engine_proc/x.py", "from solewriter.agents import client"),
    (imported_against_the_direction, "engine_proc/x.py", "from solewriter import bench"),
    (imported_against_the_direction, "agents/x.py", "from solewriter.engine_proc.process import Engine"),
    (imported_against_the_direction, "agents/x.py", "def late():\n    import solewriter"),
    (imported_against_the_direction, "agents/cli/x.py", "from solewriter.engine_proc import server"),
    (imported_by_a_bare_name, "tests/x.py", "from shared.models import Task"),
    (imported_by_a_bare_name, "agents/x.py", "from . import client"),
    (imported_out_of_place, "engine_proc/x.py", "import pickle"),
    (imported_out_of_place, "agents/x.py", "from mmap import mmap"),
    (packed_in_place_elsewhere, "engine_proc/x.py", "WORD.pack_into(buffer, 0, 1)"),
    (shared_memory_of_the_library, "tests/x.py", "shared_memory.SharedMemory('name')"),
    (a_private_of_the_queue_elsewhere, "agents/x.py", "fd = queue._writer.fileno()"),
    (named_without_meaning, "agents/x.py", "class TaskManager: ..."),
    (named_without_meaning, "shared/utils.py", ""),
    (a_long_function, "bench/x.py", "def long():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    (a_long_file, "bench/x.py", "x = 1\n" * (FILE_LINES_MAX + 1)),
    (without_a_docstring, "examples/x.py", "x = 1"),
    (printed, "shared/x.py", "print(1)"),
    (left_for_later, "shared/x.py", "x = 1  # FIX" + "ME: soon"),
    (waiting_for_time, "tests/x.py", "import time\ntime.sleep(1)"),
]
INNOCENT = [
    ("engine_proc/x.py", "from solewriter.shared import wire\nimport solewriter.engine_proc.state"),
    ("agents/cli/x.py", "from solewriter import Task\nfrom solewriter.engine_proc import process\nprint(Task)"),
    ("agents/x.py", "class A:\n    def __init__(self):\n        self._reader = 1\n        self.x = self._reader"),
    ("bench/x.py", "from solewriter.engine_proc.filejournal import FileJournal"),
    ("shared/memory/segment.py", "import mmap\nWORD.pack_into(buffer, 0, 1)"),
    ("shared/x.py", "class Database: ...\nclass Baseline: ..."),
    ("shared/x.py", "if TYPE_CHECKING:\n    import mmap"),
]


@pytest.mark.parametrize(("rule", "path", "code"), PLANTED)
def test_a_broken_rule_is_found(
    rule: Rule, path: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(path, code, tmp_path, monkeypatch)
    assert [found for found in rule() if found.startswith(f"{path}:")]


@pytest.mark.parametrize(("path", "code"), INNOCENT)
def test_what_is_allowed_is_not_found(path: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(path, f'"""A module."""\n{code}', tmp_path, monkeypatch)
    assert [found for rule in RULES for found in rule()] == []


def plant(path: str, code: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(code)
    monkeypatch.setitem(globals(), "ROOT", root)


def test_what_is_measured_branch_by_branch_is_there() -> None:
    measured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"]["include"]
    assert [path for path in measured if not (ROOT / path).is_file()] == [], "moved, and not measured any more"


def test_the_rules_look_at_every_room() -> None:
    for room in (*PRODUCT, "tests"):
        assert sources(room), f"{room} holds no module: it was moved, and the rules did not follow"
