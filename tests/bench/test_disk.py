"""What reaches the disk is counted once, also where a process is charged for whole pieces of page cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from solewriter.bench.kit.disk import device_written_bytes
from solewriter.shared.config import MIB

pytestmark = pytest.mark.heavy  # megabytes that are synced in small steps

BYTES, STEP_BYTES = 24 * MIB, 20_000
TRIES = 3  # other programs write as well: what is counted is an upper bound, and the least of some is the best one


@pytest.fixture
def counted(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """`counted(write)`: how many bytes reached the disk meanwhile."""
    if device_written_bytes(tmp_path) is None:
        pytest.skip("the folder of this test is on no block device")

    def count(write: Callable[[], object]) -> int:
        before = device_written_bytes(tmp_path)
        write()
        after = device_written_bytes(tmp_path)
        assert before is not None
        assert after is not None
        return after - before

    return count


def synced_in_steps(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        for start in range(0, BYTES - STEP_BYTES, STEP_BYTES):
            os.pwrite(file.fileno(), os.urandom(STEP_BYTES), start)
            os.fdatasync(file.fileno())


def test_what_nobody_synced_is_waited_for(tmp_path: Path, counted: Callable[[Callable[[], object]], int]) -> None:
    assert counted(lambda: (tmp_path / "made").write_bytes(os.urandom(BYTES))) >= BYTES


def test_small_synced_steps_are_counted_once(tmp_path: Path, counted: Callable[[Callable[[], object]], int]) -> None:
    path = tmp_path / "made"
    path.write_bytes(bytes(BYTES))
    found = [counted(lambda: synced_in_steps(path)) for _ in range(TRIES)]
    assert min(found) >= BYTES - STEP_BYTES
    assert min(found) < 3 * BYTES, "by the pages that a process makes dirty it is up to ten times as much"


def test_where_there_is_no_disk_nothing_is_counted() -> None:
    assert device_written_bytes(Path("/proc")) is None
