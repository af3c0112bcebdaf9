"""Which build this is: of plain Python, or with the rooms that every mutation passes through compiled (setup.py)."""

from __future__ import annotations

from solewriter.shared import record

BUILD = "pure Python" if record.__file__.endswith(".py") else "compiled"
