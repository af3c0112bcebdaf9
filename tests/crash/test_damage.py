"""Whatever a disk does to one file, an engine starts with the right state or refuses and names the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from powercut.damage import Damaged, all_missed, ends, flips, journals, misplaced, stale_tails, tails
from powercut.recovery import Found, Recoverer, Refusal

from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import StateFolder, Whereabouts

pytestmark = pytest.mark.heavy

ENDS = ("kill", "stop")
FEW, SOME, MANY = 4, 16, 60  # turns: one journal file, a checkpoint or two, several files


def show(wrong: list[str]) -> str:
    spread = wrong[:: max(1, len(wrong) // 12)]
    return "\n".join([f"{len(wrong)} are wrong", *spread])


def recoverer_of(place: Path, story: Any) -> Recoverer:
    return Recoverer(place / "damaged", story.durability, story.sessions)


# --- fault 9: the tail ------------------------------------------------------------------------------------------------


def tail_ends_at_the_last_whole_entry(place: Path, store: Any, stale: bytes, step: int, *, noted: bool) -> int:
    """Cut or overwritten anywhere: the entries before that place are all there, or the place is named. Without the
    side file (`noted`) nothing is known of an entry that is gone, and the state is that of the entries before it.
    """
    story, files = store
    files = files if noted else {name: content for name, content in files.items() if name != "committed"}
    name, recoverer, count, wrong = journals(files)[-1], recoverer_of(place, story), 0, list[str]()
    whole = ends(files[name], padded=False)
    assert len(whole) > 3
    assert len(journals(files)) == 1
    for at, damaged in tails(files, stale, 9, step):
        if damaged.what.startswith("stale") and at < whole[0][0]:
            continue  # that is another folder's file, all of it
        count += 1
        recoverer.write(damaged.files)
        result = recoverer.recover()
        before = max((revision for end, revision in whole if end <= at), default=0)
        if isinstance(result, Refusal):
            if not result.named or name not in f"{result.place} {result.text}":
                wrong.append(f"{result} ({damaged.what})")
            elif not noted and damaged.what.startswith(("cut", "zeros", "garbage")) and at >= whole[0][0]:
                wrong.append(f"refused for a torn tail: {result.text} ({damaged.what})")
        elif (result.revision, result.entities) != (before, recovered_state(story, before)):
            wrong.append(f"revision {result.revision} instead of {before} ({damaged.what})")
        elif noted and at < whole[-1][0] and story.durability == "power":
            wrong.append(f"silently shorter: revision {result.revision} ({damaged.what})")
    assert not wrong, show(wrong)
    return count


def recovered_state(story: Any, revision: int) -> Any:
    return {id: one for id, one in story.states[revision].items() if one[1] is not None}


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_tail_that_is_cut_or_overwritten_ends_at_the_last_whole_entry(
    place: Path, stores: Callable[..., Any], durability: str, noted: bool
) -> None:
    stale = stores(durability, "kill", FEW, 8)[1][journals(stores(durability, "kill", FEW, 8)[1])[0]]
    assert tail_ends_at_the_last_whole_entry(place, stores(durability, "kill", FEW), stale, 101, noted=noted) > 90


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(("durability", "step", "count"), [("power", 1, 6_000), ("process", 3, 2_000)])
def test_a_tail_that_is_cut_at_any_byte_ends_at_the_last_whole_entry(
    place: Path, stores: Callable[..., Any], durability: str, step: int, count: int, noted: bool
) -> None:
    stale = stores(durability, "kill", FEW, 8)[1][journals(stores(durability, "kill", FEW, 8)[1])[0]]
    assert tail_ends_at_the_last_whole_entry(place, stores(durability, "kill", FEW), stale, step, noted=noted) > count


@pytest.mark.parametrize("durability", ["power", "process"])
def test_whole_entries_of_an_older_file_behind_the_last_one_are_not_taken(
    place: Path, stores: Callable[..., Any], durability: str
) -> None:
    story, files = stores(durability, "kill", MANY)
    older = [files[name] for name in journals(files)[:-1]]
    older.append(stores(durability, "kill", FEW, 8)[1][journals(stores(durability, "kill", FEW, 8)[1])[0]])
    assert len(older) > 2
    cases = chain.from_iterable(stale_tails(files, stale) for stale in older)
    count, wrong = all_missed(recoverer_of(place, story), story, files, cases)
    assert not wrong, show(wrong)
    assert count > 40


# --- fault 10: bits and files -----------------------------------------------------------------------------------------


def flipped(place: Path, store: Any, step: int) -> int:
    story, files = store
    count, wrong = all_missed(recoverer_of(place, story), story, files, flips(files, step))
    assert not wrong, show(wrong)
    return count


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_flipped_bit_changes_nothing_or_is_named(
    place: Path, stores: Callable[..., Any], durability: str, end: str, often: bool
) -> None:
    store = stores(durability, end, SOME if often else FEW, often=often)
    assert any(name.startswith("checkpoint-") for name in store[1]) is often
    assert flipped(place, store, 997 if often else 499) > 50


@pytest.mark.heavy
def test_a_small_file_that_is_no_text_any_more_is_no_matter(place: Path, stores: Callable[..., Any]) -> None:
    story, files = stores("power", "kill", FEW)
    cases = (
        Damaged(
            {**files, name: files[name][:at] + bytes([files[name][at] ^ 0x80]) + files[name][at + 1 :]}, (name,), name
        )
        for name in files
        if name.endswith(".json")
        for at in range(len(files[name]))
    )
    count, wrong = all_missed(recoverer_of(place, story), story, files, cases)
    assert not wrong, show(wrong)
    assert count > 80


def test_an_announcement_that_is_no_text_any_more_is_named(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.announce(Whereabouts(2, 1, 1, 1, "/dev/shm", "solewriter-x"))
    content = folder.engine_json.read_bytes()
    for at in range(len(content)):
        folder.engine_json.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        with pytest.raises(EngineUnavailable, match=r"engine\.json cannot be read"):
            folder.whereabouts()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("durability", "step", "count"),
    [
        pytest.param("power", 1, 20_000, marks=pytest.mark.heavy),
        pytest.param("process", 3, 7_000, marks=pytest.mark.long),
    ],
)
def test_any_flipped_bit_changes_nothing_or_is_named(
    place: Path, stores: Callable[..., Any], durability: str, step: int, count: int
) -> None:
    assert flipped(place, stores(durability, "kill", FEW), step) >= count


@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["power", pytest.param("process", marks=pytest.mark.long)])
def test_any_flipped_bit_of_checkpoints_too_changes_nothing_or_is_named(
    place: Path, stores: Callable[..., Any], durability: str
) -> None:
    assert flipped(place, stores(durability, "kill", SOME, often=True), 11) >= 5_000


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("durability", ["power", "process"])
def test_any_flipped_bit_after_a_clean_stop_changes_nothing_or_is_named(
    place: Path, stores: Callable[..., Any], durability: str
) -> None:
    assert flipped(place, stores(durability, "stop", FEW), 5) >= 4_000


@pytest.mark.parametrize(
    ("turns", "often"), [(FEW, False), (SOME, True), pytest.param(MANY, True, marks=pytest.mark.heavy)]
)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_file_that_is_missing_empty_half_or_another_is_no_matter_or_is_named(
    place: Path, stores: Callable[..., Any], durability: str, end: str, turns: int, often: bool
) -> None:
    story, files = stores(durability, end, turns, often=often)
    _, others = stores(durability, end, turns, 8, often=often)
    count, wrong = all_missed(recoverer_of(place, story), story, files, misplaced(files, others))
    assert not wrong, show(wrong)
    assert count >= 4 * len(files)


def test_the_checks_can_fail(place: Path, stores: Callable[..., Any]) -> None:
    story, files = stores("power", "kill", FEW)
    shorter = stores("power", "kill", FEW + 1)[1]

    def cases() -> Iterator[Damaged]:
        yield Damaged({name: held for name, held in files.items() if kindless(name)}, ("none",), "no journal at all")
        yield Damaged(shorter, ("none",), "another history")

    _, wrong = all_missed(recoverer_of(place, story), story, files, cases())
    assert [text.partition(":")[0] for text in wrong] == ["shorter", "wrong"], show(wrong)
    assert isinstance(recoverer_of(place, story).recover(), Found | Refusal)


def kindless(name: str) -> bool:
    return not name.startswith(("journal", "committed"))
