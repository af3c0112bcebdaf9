"""The journal alone, cut off at any moment: what was acked is there, in order, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from powercut.journaling import journaled, judged, raised
from powercut.recovery import Verdict


def show(verdict: Verdict) -> str:
    spread = verdict.wrong[:: max(1, len(verdict.wrong) // 12)]
    return "\n".join([f"{len(verdict.wrong)} of {verdict.judged} are wrong: {sorted(verdict.kinds())}", *spread])


def recovered(place: Path, power: bool, names: str, seed: int, commits: int, each: int) -> int:
    story = journaled(place / "journal", power, seed, commits)
    verdict = judged(story, place / "image", seed, names=names, each=each)
    assert not verdict.wrong, show(verdict)
    return verdict.images


@pytest.mark.parametrize("names", ["ordered", "any"])
@pytest.mark.parametrize("power", [True, False])
def test_every_legal_disk_of_a_journal_is_replayed(place: Path, power: bool, names: str) -> None:
    assert recovered(place, power, names, 1, 40, 1) > 80


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", ["ordered", "any"])
@pytest.mark.parametrize("power", [True, False])
def test_thousands_of_legal_disks_of_a_journal_are_replayed(place: Path, power: bool, names: str) -> None:
    images = sum(recovered(place, power, names, seed, 60, 10) for seed in range(2, 8))
    assert images >= 5_000


@pytest.mark.parametrize("number", range(1, 22, 4))
def test_nothing_acked_is_lost_around_a_sync_that_fails(place: Path, number: int) -> None:
    story = journaled(place / "journal", True, 3, 12, fail_sync=number)
    verdict = judged(story, place / "image", number, each=3)
    assert not verdict.wrong, show(verdict)
    assert verdict.images > 30


def test_what_power_acks_is_not_lost_behind_a_sync_that_failed_in_a_life_below_it(place: Path) -> None:
    """Of a file that was rolled away, too: what was read from its pages is not on disk."""
    failures = 0
    for number in range(1, 40):
        story, failed = raised(place / "journal", number)
        failures += failed
        first = next(one.done for one in story.commits if one.begun)
        verdict = judged(story, place / "image", number, each=2, since=first)
        assert not verdict.wrong, show(verdict)
        if not failed:
            break
    assert failures > 5
