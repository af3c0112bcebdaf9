"""What the tests of power cuts and damaged disks share: a folder in memory, and stories that are played once."""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from powercut.disk import disk_after
from powercut.story import CLIENTS, IDS, Play, Story, played, turns

from solewriter.engine_proc import preallocation
from solewriter.shared.config import KIB, MIB

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where a sync costs nothing


@pytest.fixture(scope="module", autouse=True)
def small_reserve() -> Iterator[None]:
    """What is held back for a full disk is written into every image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preallocation, "RESERVE_BYTES", 1 * KIB)
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory. What was imported so far is not looked through again by every collection of garbage."""
    path = Path(tempfile.mkdtemp(prefix="powercut-", dir=MEMORY))
    gc.collect()
    gc.freeze()
    yield path
    gc.unfreeze()
    shutil.rmtree(path)


Store = tuple[Story, dict[str, bytes]]


@pytest.fixture(scope="module")
def stores(place: Path) -> Callable[..., Store]:
    """`stores(durability, end, turns)`: a story of one life, killed or stopped, and the files that it left; with
    `often` there are checkpoints among them, and what they take the place of is gone.
    """

    @cache
    def store(durability: str, end: str, count: int, seed: int, often: bool) -> Store:
        def script(play: Play) -> None:
            draw = random.Random(seed)
            play.start(*CLIENTS)
            turns(play, draw, count)
            play.turn(("ann", [("put", IDS[0], None, f"the last of {seed}")]))
            getattr(play, end)()

        folder = place / f"story-{durability}-{end}-{count}-{seed}-{often}"
        more = {} if often else {"checkpoint_after_bytes": 1 * MIB}
        story = played(folder, durability, script, first_file=8 * KIB, **more)
        return story, disk_after(story.log).now()

    def stores(durability: str, end: str, count: int, seed: int = 7, *, often: bool = False) -> Store:
        return store(durability, end, count, seed, often)

    return stores
