"""What these tests have in common: as much memory as the engine has for what it decodes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from solewriter.shared.config import KIB, MIB

HEADROOM = 512 * MIB  # far more than any of this takes, far less than a memo or a list of 2^32 places would


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """As the engine runs: what asks for gigabytes meets MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + HEADROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)
