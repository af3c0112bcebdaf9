"""A fixture for the tests of those who use this: an engine that begins with nothing, and ends with the test.

Only this file needs pytest, and nothing of the package imports it: whoever tests has both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pytest

from solewriter.agents.status import status_of
from solewriter.engine_proc.process import Durability, Engine
from solewriter.shared.config import DEFAULT_LIMITS, Limits
from solewriter.shared.entity import Entity

Scope = Literal["function", "class", "module", "package", "session"]


def engine_fixture(
    *,
    models: Iterable[type[Entity]] = (),
    durability: Durability = "memory",
    limits: Limits = DEFAULT_LIMITS,
    scope: Scope = "function",
    may_die: bool = False,
) -> Any:
    """A fixture of pytest, to be named in a module of tests or a conftest.py: `engine = engine_fixture(models=[Job])`.

    It gives an Engine that serves a new folder of pytest's own, for each test, or for all tests of a `scope`, and stops
    it then. An engine that died meanwhile fails that, unless it `may_die`: where tests kill it themselves.
    """
    kinds = list(models)

    @pytest.fixture(scope=scope)
    def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
        """A solewriter engine that serves an empty folder; `connect(engine.state)`."""
        state = tmp_path_factory.mktemp("solewriter") / "state"
        with Engine(state, models=kinds, durability=durability, limits=limits) as engine:
            yield engine
            died = _died(engine)
        if died and not may_die:
            pytest.fail(died, pytrace=False)

    return engine


def _died(engine: Engine) -> str:
    """What ended the engine, in words; "" if it served all the time, or was stopped in order."""
    is_down = status_of(engine.state).engine in ("gone", "starting")  # another one is still to follow
    if engine.failure is not None:
        how = f"was given up: {engine.failure}"
    elif is_down or engine.restarts:
        how = "died (how, is told on stderr)"
    else:
        return ""
    lost = " and lost all that it had" if engine.durability == "memory" else ""
    return f"the engine of {engine.state} {how}{lost}: engine_fixture(may_die=True) is for tests that kill it"
