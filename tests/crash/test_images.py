"""After a power cut at any moment, every legal disk is recovered: what was acked is there, and nothing is mixed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from powercut.disk import Disk, disk_after
from powercut.log import Operation
from powercut.recovery import Verdict, judged
from powercut.story import Play, lives, played

pytestmark = pytest.mark.heavy

PLAIN_TURNS, HEAVY_TURNS = 6, 24
PLAIN_EACH, HEAVY_EACH = 1, 6  # images of every cut


def show(verdict: Verdict) -> str:
    spread = verdict.wrong[:: max(1, len(verdict.wrong) // 12)]
    return "\n".join([f"{len(verdict.wrong)} of {verdict.judged} are wrong: {sorted(verdict.kinds())}", *spread])


def recovered(place: Path, durability: str, names: str, seed: int, turns: int, each: int) -> Verdict:
    story = played(place / f"story-{durability}-{names}-{seed}-{turns}", durability, lives(seed, turns))
    assert len(story.acks) > turns
    verdict = judged(story, place / "image", seed, names=names, each=each)
    assert not verdict.wrong, show(verdict)
    return verdict


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    ("durability", "names"),
    [("power", "any"), *(pytest.param(*one, marks=HEAVY) for one in (("power", "ordered"), ("process", "any")))],
)
def test_every_legal_disk_after_a_cut_is_recovered(place: Path, durability: str, names: str) -> None:
    assert recovered(place, durability, names, 1, PLAIN_TURNS, PLAIN_EACH).images > 60


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("durability", "names"), [("power", "ordered"), ("power", "any"), ("process", "ordered")])
def test_thousands_of_legal_disks_are_recovered(place: Path, durability: str, names: str, seed: int) -> None:
    assert recovered(place, durability, names, seed, HEAVY_TURNS, HEAVY_EACH).images >= 1_150, "nine make 10,000"


@pytest.mark.heavy
def test_what_is_lost_after_a_clean_stop_has_another_history(place: Path) -> None:
    """In `process` the next life is durable when it begins; else its lost requests would seem never to have been."""

    def script(play: Play) -> None:
        play.start("ann")
        play.turn(("ann", [("put", "t-1", None, "a")]))
        play.stop()
        play.start("ann")
        for title in "bc":
            play.turn(("ann", [("put", "t-1", None, title)]))

    verdict = judged(played(place / "again", "process", script), place / "image", 1, each=6)
    assert not verdict.wrong, show(verdict)
    assert verdict.images > 100


def test_the_state_folder_itself_is_durable_before_the_first_reply(place: Path) -> None:
    """Its name is in the folder above it, which must be synced, too."""
    story = played(place / "folder", "power", lives(1, 2))
    disk, first = Disk(), story.acks[0].at
    for index, operation in enumerate(story.log[:first]):
        disk.take(index, operation)
    assert disk.folder_made
    assert disk.folder_durable


# --- the model of the disk --------------------------------------------------------------------------------------------


def image_set(*operations: Operation, names: str = "ordered") -> set[tuple[tuple[str, bytes], ...]]:
    disk = Disk(names)
    for index, operation in enumerate(operations):
        disk.take(index, operation)
    return {tuple(sorted(image.files.items())) for image in disk.images(0, random.Random(1))}


def synced(file: int, kind: str = "sync") -> tuple[Operation, Operation]:
    return Operation("begin", mark=[0, file]), Operation(kind, file=file, mark=[0, file])


OPEN = Operation("create", file=1, name="a")
A, B = b"A" * 512, b"B" * 512


def test_what_is_synced_under_a_synced_name_is_there() -> None:
    assert image_set(OPEN, Operation("write", file=1, data=A), *synced(1), *synced(0, "sync-folder")) == {(("a", A),)}


def test_a_name_that_is_not_synced_may_be_missing() -> None:
    assert image_set(OPEN, Operation("write", file=1, data=A), *synced(1)) == {(), (("a", A),)}


def test_sectors_reach_the_disk_in_any_order_but_each_in_its_own() -> None:
    named = (OPEN, Operation("write", file=1, data=A + A), *synced(1), *synced(0, "sync-folder"))
    found = image_set(*named, Operation("write", file=1, data=B), Operation("write", file=1, offset=512, data=B))
    assert {files[0][1] for files in found} == {A + A, A + B, B + A, B + B}
    found = image_set(*named, Operation("write", file=1, data=b"1"), Operation("write", file=1, offset=1, data=b"2"))
    assert {files[0][1][:2] for files in found} == {b"AA", b"1A", b"12"}


def test_a_file_that_grew_may_be_short_or_hollow() -> None:
    named = (OPEN, *synced(1), *synced(0, "sync-folder"))
    found = {files[0][1] for files in image_set(*named, Operation("write", file=1, data=A))}
    assert found == {b"", bytes(512), A}


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    begin, end = synced(1)
    found = image_set(OPEN, *synced(0, "sync-folder"), begin, Operation("write", file=1, data=A), end)
    assert (("a", A),) in found
    assert (("a", b""),) in found


@pytest.mark.parametrize(("names", "count"), [("ordered", 3), ("any", 4)])
def test_names_change_in_their_order_or_in_any(names: str, count: int) -> None:
    two = (OPEN, Operation("create", file=2, name="b"), *synced(0, "sync-folder"))
    found = image_set(*two, Operation("unlink", name="a"), Operation("unlink", name="b"), names=names)
    assert len(found) == count


def test_a_rename_is_the_old_or_the_new() -> None:
    other = (OPEN, Operation("create", file=2, name="b"), Operation("write", file=2, data=B), *synced(2))
    found = image_set(*other, *synced(0, "sync-folder"), Operation("rename", name="b", to="a"))
    assert found == {(("a", b""), ("b", B)), (("a", B),)}


def test_what_a_failed_sync_left_clean_is_saved_by_no_later_one() -> None:
    begin, _ = synced(1)
    named = (OPEN, Operation("write", file=1, data=A), *synced(1), *synced(0, "sync-folder"))
    failed = (begin, Operation("sync-failed", file=1, mark=[0, 1]))
    found = image_set(*named, Operation("write", file=1, data=B), *failed, *synced(1))
    assert found == {(("a", A),), (("a", B),)}
    found = image_set(
        *named, Operation("write", file=1, data=B), *failed, Operation("write", file=1, data=b"C"), *synced(1)
    )
    assert found == {(("a", b"C" + B[1:]),)}, "a page that is dirty again is written whole"


def test_the_disk_of_a_whole_log_is_the_folder(place: Path) -> None:
    story = played(place / "whole", "process", lives(2, 8))
    disk = disk_after(story.log)
    folder = place / "whole" / "state"
    assert disk.now() == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
