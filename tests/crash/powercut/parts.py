"""The engine inside this process that the tests of the engine's rooms drive: the same one, found by its file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _loaded(name: str, path: Path) -> ModuleType:
    """A module that is no package's: one copy of it, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


local = _loaded("powercut_local_engine", Path(__file__).resolve().parents[2] / "engine_proc" / "conftest.py")
