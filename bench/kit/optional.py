"""What may not be installed on a machine: a rival, its library, its server."""

from __future__ import annotations

import importlib
from typing import Any


class NotHere(Exception):
    """A rival cannot be measured on this machine, and why."""


def required(name: str) -> Any:
    """A module that may not be installed. Raises NotHere."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotHere(str(error)) from None
