"""A writer at full speed tears nothing that readers look at, in whatever way; and the stress that says so can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from solewriter import Engine, open_reader
from solewriter.agents.reading.decoding import Decoder
from solewriter.agents.reading.feed import Feed
from solewriter.agents.reading.scan import Scanner, _merge
from solewriter.agents.testing.auditor import Auditor, Notes
from solewriter.agents.testing.follower import Follower
from solewriter.agents.testing.ledger import MODELS, OPENED
from solewriter.agents.testing.tearing import READY, SMALL, Child, Summary
from solewriter.shared import record
from solewriter.shared.memory import root
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX_BYTES
from solewriter.shared.memory.pin import Pin
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.view import View

LOOKS_MAX = 40  # within which a seeded bug is seen; nearly all of them at the first
CHANGES_MAX = 200_000  # the same of a follower that is late and resumes: what it misses meanwhile cannot be seen
REVISION_END = 24  # bytes of a root in the ring: checksum, number of kinds, its own number, revision


def stressed(reads: int, seed: int, timeout_s: float) -> Summary:
    program = [sys.executable, "-m", "solewriter.agents.testing.tearing", "--json"]
    asked = ["--reads", f"{reads}", "--seed", f"{seed}"]
    done = subprocess.run([*program, *asked], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode in (0, 1), done.stderr
    summary = msgspec.json.decode(done.stdout, type=Summary)
    assert summary.violations == 0, done.stderr
    assert done.returncode == 0
    assert summary.reads >= reads
    assert summary.snapshots > 0
    assert summary.scans > 0
    assert summary.seed == seed
    assert summary.requests > OPENED, "nothing was written meanwhile"
    assert summary.turnovers >= 20, "memory was not turned over"
    assert summary.changes_watched > 1_000
    return summary


@pytest.mark.parametrize("reads", [100_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
def test_a_million_reads_beside_a_writer_at_full_speed_are_whole(reads):
    stressed(reads, seed=4, timeout_s=110)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_million_reads_beside_a_writer_at_full_speed_are_whole():
    stressed(10_000_000, seed=5, timeout_s=1700)


# --- the stress can fail ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory, run_mark: str) -> Iterator[Path]:
    """A state whose ledger is being written all the time."""
    state = tmp_path_factory.mktemp("books") / "state"
    with Engine(state, models=MODELS, durability="memory", limits=SMALL):
        writer = Child("write", state, 1)
        try:
            writer.wait_for(READY)
            yield state
            assert writer.stop().requests > OPENED
        finally:
            writer.end()


@pytest.fixture
def notes_of_looks(books: Path) -> Callable[[], Notes]:
    """Looks of a reader in this process, in every way, until something does not fit."""

    def look() -> Notes:
        notes = Notes()
        with open_reader(books) as reader:
            auditor = Auditor(reader, 1, notes)
            for _ in range(LOOKS_MAX):
                held = reader.snapshot()
                reader.wait_for(held.revision + 20)
                for way in auditor.ways[::-1]:  # the quick ones first
                    auditor.look_by(way, held)
                    auditor.look_by(way, reader.snapshot())
                    if notes.count:
                        return notes
        return notes

    return look


@pytest.fixture
def notes_of_changes(books: Path) -> Callable[[], Notes]:
    """The same of a follower."""

    def follow() -> Notes:
        notes = Notes()
        with open_reader(books) as reader:
            follower = Follower(reader, notes)
            follower.follow(lambda: notes.count == 0 and follower.changes < CHANGES_MAX)
        return notes

    return follow


def test_without_a_bug_nothing_is_noted(books, notes_of_looks, notes_of_changes, monkeypatch):
    monkeypatch.setitem(globals(), "LOOKS_MAX", 1)
    monkeypatch.setitem(globals(), "CHANGES_MAX", 2_000)
    assert notes_of_looks().texts == []
    assert notes_of_changes().texts == []


def newest_for_all_revisions(true: Any, pin: Pin, address: int) -> int:
    return address


def the_one_before_the_right_one(true: Any, pin: Pin, newest: int) -> int:
    address = true(pin, newest)
    return (pin.previous(address) if address and pin.slot_at(address) % 64 == 7 else 0) or address


def columns_without_the_correction(true: Any, scanner: Scanner, demands: Any, wanted: Any = ()) -> Any:
    return scanner._pass(demands, sorted(set(wanted)))


def records_behind_the_tail_ignored(true: Any, pin: Pin, kind: int) -> frozenset[int]:
    return frozenset()


def the_tail_looked_at_once_only(true: Any, pin: Pin, kind: int) -> Any:
    return pin._changed.get(kind, frozenset()) if pin._changed else true(pin, kind)


def what_changed_looked_at_before_the_pass(true: Any, scanner: Scanner, demands: Any, wanted: Any = ()) -> Any:
    places = sorted(set(wanted))
    changed = np.fromiter(scanner.pin.changed_slots(scanner.kind), np.int64)
    changed = changed[changed < scanner.pin.slots(scanner.kind)]
    root = scanner.pin.view.root
    head = root.head
    while root.head == head:  # so that it happens now and not once in a thousand times
        os.sched_yield()
    live = scanner._pass(demands, places)
    singly = scanner._look_up_singly(np.sort(changed).tolist(), demands, places)
    return _merge(live.take(~np.isin(live.slots, changed)), singly, places)


def one_slot_in_a_hundred_not_corrected(true: Any, pin: Pin, kind: int) -> frozenset[int]:
    return frozenset(slot for slot in true(pin, kind) if slot % 100)


def decoded_once_for_all_versions(true: Any, decoder: Decoder, pin: Pin, address: int, kind: Any) -> Any:
    if isinstance(kind, str):
        return true(decoder, pin, address, kind)
    segment = pin.segment(address >> 32)
    key = record.key_at(segment.bytes, (address & OFFSET_MASK) + PREFIX_BYTES)
    found = decoder._kept[1].get((key, kind)) or true(decoder, pin, address, kind)
    decoder._kept[1][key, kind] = found
    return found


def a_pin_of_the_root_before_with_the_newest_counts(true: Any, view: View) -> Pin:
    pin = true(view)
    pin.root = pin.root._replace(revision=pin.root.revision - 1)
    return pin


def a_root_of_which_half_was_filled_again(true: Any, reader: RootReader) -> root.Root:
    """The ring is ignored: neither how far the writer went meanwhile nor the checksum."""
    begin = reader.words[root._HEAD]
    place = root._RING + begin % root.ROOT_RING * root._PLACE_BYTES
    first = reader._map[place : place + REVISION_END]
    while reader.words[root._HEAD] - begin < root.ROOT_RING:  # so that it happens now
        os.sched_yield()
    copy = first + reader._map[place + REVISION_END : place + root._PLACE_BYTES]
    fields = root._ROOT.unpack_from(copy)
    kinds = root._KINDS.iter_unpack(copy[root._ROOT.size : root._ROOT.size + fields[1] * root._KINDS.size])
    return root.Root._make((*fields[2:], tuple(kinds)))


LOOKING = [
    (RootReader, "current", a_root_of_which_half_was_filled_again),
    (Pin, "_visible", newest_for_all_revisions),
    (Pin, "_visible", the_one_before_the_right_one),
    (Scanner, "rows", columns_without_the_correction),
    (Pin, "changed_slots", records_behind_the_tail_ignored),
    (Pin, "changed_slots", the_tail_looked_at_once_only),
    (Pin, "changed_slots", one_slot_in_a_hundred_not_corrected),
    (Scanner, "rows", what_changed_looked_at_before_the_pass),
    (Decoder, "decode", decoded_once_for_all_versions),
    (View, "pin", a_pin_of_the_root_before_with_the_newest_counts),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("place", "name", "bug"), [pytest.param(*bug, id=bug[2].__name__) for bug in LOOKING])
def test_a_seeded_bug_of_a_reader_is_seen(notes_of_looks, plant, place, name, bug):
    plant(place, name, bug)
    assert notes_of_looks().count > 0


def records_of_reclaim_taken_for_changes(true: Any, feed: Feed, buffer: memoryview, body: int) -> bool:
    return true(feed, buffer, body) or bool(record.flags_at(buffer, body) & record.Flags.RELOCATED)


def one_record_left_out(true: Any, feed: Feed, limit: int) -> Any:
    taken = true(feed, limit)
    return taken[:-1] if taken and taken[-1].record.revision % 8 == 5 else taken


def a_batch_taken_twice(true: Any, feed: Feed, limit: int) -> Any:
    taken = true(feed, limit)
    return taken + taken


def two_changes_swapped(true: Any, feed: Feed, limit: int) -> Any:
    taken = true(feed, limit)
    return taken[:-2] + taken[:-3:-1] if len(taken) > 2 else taken


def the_entity_before_is_the_newest(true: Any, pin: Pin, address: int) -> int:
    return address if true(pin, address) else 0


FOLLOWING = [
    (Feed, "_is_wanted", records_of_reclaim_taken_for_changes),
    (Feed, "take", one_record_left_out),
    (Feed, "take", a_batch_taken_twice),
    (Feed, "take", two_changes_swapped),
    (Pin, "previous", the_entity_before_is_the_newest),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("place", "name", "bug"), [pytest.param(*bug, id=bug[2].__name__) for bug in FOLLOWING])
def test_a_seeded_bug_of_a_watch_is_seen(notes_of_changes, plant, place, name, bug):
    plant(place, name, bug)
    assert notes_of_changes().count > 0
