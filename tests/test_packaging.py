"""What installing and importing promise: one top-level name, every module in it, and an import that starts nothing.

The quick tests look at whatever is installed, in place or from a wheel. The slow ones build both distributions from a
copy of the sources and install them into a fresh environment, next to a distribution whose own package is `agents`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import solewriter

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("shared", "engine_proc", "agents", "bench")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
HEAVY = {"pydantic", "numpy", "uvloop", "cloudpickle", "msgspec", "psutil", "rich", "asyncio", "multiprocessing"}

slow = pytest.mark.slow


# --- the map of packages ---------------------------------------------------------------------------------------------


def folders_with_modules() -> set[str]:
    return {str(path.parent.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def test_every_folder_of_modules_is_a_package_of_the_distribution() -> None:
    assert set(PACKAGE_DIR.values()) == folders_with_modules()
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == set(PACKAGE_DIR)
    assert [folder for folder in PACKAGE_DIR.values() if not (ROOT / folder / "__init__.py").is_file()] == []


def test_every_folder_but_the_front_door_is_named_after_its_place() -> None:
    expected = {f"solewriter.{folder.replace('/', '.')}": folder for folder in PACKAGE_DIR.values()}
    expected["solewriter"] = expected.pop("solewriter.agents.front")
    assert expected == PACKAGE_DIR


def test_type_checkers_see_the_packages_as_they_are_installed() -> None:
    links = ROOT / ".links"
    for package, folder in PACKAGE_DIR.items():
        seen = links / package.replace(".", "/")
        for path in (ROOT / folder).iterdir():
            if path.suffix == ".py" or path.name == "py.typed":
                assert (seen / path.name).resolve() == path, f"link {path.relative_to(ROOT)} below .links/solewriter"
    assert [path.name for path in (links / "solewriter").iterdir() if not path.exists()] == []


def names_of(requirements: list[str]) -> set[str]:
    """The import names of requirements, where they are the distribution's."""
    return {re.split(r"[^\w-]", text)[0].replace("-", "_").lower() for text in requirements}


def test_everything_that_is_imported_is_declared() -> None:
    declared = names_of(PROJECT["project"]["dependencies"])
    later = {"compression"}  # of the standard library from 3.14 on
    checkers = {"typing_extensions"}  # which type checkers bring along: never imported when a program runs
    known = {*sys.stdlib_module_names, *later, *checkers, *declared, "solewriter", "pydantic_core"}
    undeclared = [
        f"{path.relative_to(ROOT)}: {name}"
        for room in ("shared", "engine_proc", "agents")
        for path in (ROOT / room).rglob("*.py")
        if "testing" not in path.parts  # for users' test suites: it may need what the extra `test` brings
        for name in imported(path)
        if name.partition(".")[0] not in known
    ]
    assert undeclared == []


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


# --- what is installed -----------------------------------------------------------------------------------------------


def test_metadata_and_code_agree_on_the_version() -> None:
    assert importlib.metadata.version("solewriter") == solewriter.__version__ == PROJECT["project"]["version"]


def test_nothing_is_installed_beside_the_one_name() -> None:
    files = importlib.metadata.files("solewriter")
    assert files
    assert {file.parts[0] for file in files} & {*ROOMS, "tests", "examples", "docs", "build"} == set()


def test_the_command_resolves() -> None:
    (command,) = importlib.metadata.distribution("solewriter").entry_points.select(group="console_scripts")
    assert command.name == "solewriter"
    assert callable(command.load())


def test_type_information_is_installed() -> None:
    assert (importlib.resources.files("solewriter") / "py.typed").is_file()


def test_every_module_can_be_imported() -> None:
    optional = names_of(PROJECT["project"]["optional-dependencies"]["bench"])
    for package, folder in PACKAGE_DIR.items():
        for path in (ROOT / folder).glob("*.py"):
            if path.name != "__main__.py":
                try:
                    importlib.import_module(package if path.name == "__init__.py" else f"{package}.{path.stem}")
                except ModuleNotFoundError as error:
                    if error.name not in optional:
                        raise


# --- the front door --------------------------------------------------------------------------------------------------


def fresh(code: str, cwd: Path) -> str:
    """What a new interpreter prints."""
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_importing_the_front_door_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import solewriter; print(*sorted(set(sys.modules) - before))"
    loaded = fresh(code, tmp_path).split()
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("solewriter.")] == []


def test_importing_the_front_door_starts_nothing(tmp_path: Path) -> None:
    code = """
import os, threading, solewriter
tasks = os.listdir("/proc/self/task")
children = "".join(open(f"/proc/self/task/{task}/children").read() for task in tasks)
print(len(tasks), threading.active_count(), children.split(), os.listdir())
"""
    assert fresh(code, tmp_path) == "1 1 [] []"


def test_the_front_door_shows_exactly_its_names() -> None:
    assert dir(solewriter) == sorted(solewriter.__all__)
    assert len(set(solewriter.__all__)) == len(solewriter.__all__)


def test_all_that_the_pages_and_examples_import_comes_in_by_the_front_door() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    found = {page.name: re.findall(r"(?m)^from solewriter\.\S+ import .*", page.read_text()) for page in pages}
    assert {name: imports for name, imports in found.items() if imports} == {}


@pytest.mark.parametrize("model", [solewriter.Task, solewriter.Project])
def test_whatever_a_field_of_the_house_holds_can_be_imported(model: type) -> None:
    house = importlib.import_module("solewriter.shared.models")
    named = re.findall(r"[A-Z]\w+", " ".join(model.__annotations__.values()))
    types = [one for one in named if getattr(getattr(house, one, None), "__module__", "").startswith("solewriter.")]
    assert types
    assert set(types) <= set(solewriter.__all__)


@pytest.mark.parametrize("name", solewriter.__all__)
def test_every_name_of_the_front_door_resolves(name: str) -> None:
    assert getattr(solewriter, name) is not None


def test_type_checkers_and_the_interpreter_find_the_same_names_in_the_same_rooms() -> None:
    tree = ast.parse((ROOT / "agents/front/__init__.py").read_text())
    branches = {ast.unparse(node.test): node for node in tree.body if isinstance(node, ast.If)}
    branch = branches["TYPE_CHECKING"]
    checked = {
        (node.module, alias.name) for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    looked_up = {(room, name) for room, names in solewriter._ROOMS.items() for name in names}
    assert {name for _, name in checked} == set(solewriter.__all__)
    assert looked_up <= checked
    for room, name in checked - looked_up:  # modules
        shown, home = importlib.import_module(f"solewriter.{name}"), importlib.import_module(f"{room}.{name}")
        assert getattr(solewriter, name) is shown
        made_there = {
            one for one, found in vars(home).items() if getattr(found, "__module__", "").startswith(home.__name__)
        }
        public = {one for one in made_there if not one.startswith("_")}
        assert public
        assert all(getattr(shown, one) is getattr(home, one) for one in public)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        _ = solewriter.Manager


# --- distributions (slow) --------------------------------------------------------------------------------------------

USE = """
import sys
from solewriter import Engine, Task, connect, open_reader
import solewriter.agents.client, solewriter.bench, solewriter.engine_proc.server, solewriter.shared.models

with Engine(sys.argv[1], durability="process") as engine, connect(engine.state) as client:
    task = client.create(Task(title="first"))
    with open_reader(engine.state) as reader, reader.snapshot() as snap:
        assert snap[Task, task.id] == task
print("used", solewriter.__file__)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("distributions")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def sources(place: Path) -> Path:
    """What a clean checkout holds."""
    waste = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info", ".git", ".venv", ".tox", ".*_cache")
    return shutil.copytree(ROOT, place / "sources", ignore=waste, symlinks=True)


Python = Callable[..., str]


@pytest.fixture(scope="module")
def python(place: Path) -> Python:
    """`python(*arguments, cwd=...)` in a fresh environment: its output."""
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True, capture_output=True)

    def run(*arguments: str | Path, cwd: Path = place) -> str:
        plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        ran = subprocess.run(
            [place / "venv/bin/python", *arguments],
            cwd=cwd,
            env={**plain, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f"{arguments}:\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def wheel(sources: Path, place: Path, python: Python) -> Path:
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place / "wheel", sources)
    (path,) = (place / "wheel").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(sources: Path, place: Path, python: Python) -> Path:
    python("-m", "pip", "install", "--quiet", *PROJECT["build-system"]["requires"])
    python("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(place / 'sdist')!r})", cwd=sources)
    (path,) = (place / "sdist").glob("*.tar.gz")
    return path


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")}


@slow
@pytest.mark.timeout(300)
def test_the_wheel_holds_every_module_below_one_name_and_nothing_else(wheel: Path) -> None:
    modules = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in PACKAGE_DIR.items()
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or path.name == "py.typed"
    }
    files = set(contents(wheel))
    about = f"solewriter-{solewriter.__version__}.dist-info/"
    assert {name for name in files if not name.startswith(about)} == modules
    assert {f"{about}METADATA", f"{about}entry_points.txt", f"{about}licenses/LICENSE"} <= files


@slow
@pytest.mark.timeout(300)
def test_a_wheel_built_from_the_sdist_is_the_same(sdist: Path, wheel: Path, place: Path, python: Python) -> None:
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place / "again", sdist)
    (again,) = (place / "again").glob("*.whl")
    assert contents(again) == contents(wheel)


@slow
@pytest.mark.timeout(600)
def test_the_wheel_lives_beside_a_distribution_named_agents(wheel: Path, place: Path, python: Python) -> None:
    python("-m", "pip", "install", "--quiet", "--no-deps", "openai-agents")
    python("-m", "pip", "install", "--quiet", wheel)
    site = place / "venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    used = python("-c", USE, place / "state")
    assert used.strip() == f"used {site / 'solewriter/__init__.py'}"
    whose = "import importlib.metadata as m, json; print(*sorted(m.packages_distributions()['agents']))"
    assert python("-c", whose).split() == ["openai-agents"]
    changed = """
import base64, hashlib, importlib.metadata
for file in importlib.metadata.files("openai-agents"):
    if file.hash:
        found = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
            print(file)
"""
    assert python("-c", changed) == ""
