"""Engines with a bug, for negative controls: how a test makes an engine process run something else than the product.

The models that an owner hands to its engine travel as code. An engine that loads the class made here runs the test's
own function first, once in each life, before it recovers; so what that function replaces is replaced in this engine
only, and nothing in the product knows of it. The function must import what it needs, and needs nothing of its module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from solewriter import Entity


class Sabotage:
    """A value that is a call where it is loaded."""

    def __init__(self, deed: Callable[[], None]) -> None:
        self._deed = deed

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return self._deed, ()


def seeded(deed: Callable[[], None]) -> type[Entity]:
    """A kind of entity that nobody uses: give it to an Engine, and it has the bug."""
    space: dict[str, Any] = {
        "__module__": deed.__module__,  # by value, as the function then is, too
        "__annotations__": {"deed": ClassVar[Any]},
        "deed": Sabotage(deed),
    }
    return type("Seeded", (Entity,), space)
