"""A start that puts back newest records alone leaves what one leaves that puts back every record by itself."""

from __future__ import annotations

import datetime
import random
import shutil
from itertools import pairwise

import msgspec
import pytest

from solewriter import Create, Delete, Engine, Entity, Limits, Put, Task, Update, connect
from solewriter.engine_proc import reclaim
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import pickled
from solewriter.engine_proc.recovery.newest import NewestOutcomes, _beside_each_other
from solewriter.engine_proc.session import recovered as as_recovered
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.start import Start
from solewriter.shared import record
from solewriter.shared.config import CHUNK_SLOTS, INSTALLED_AT_ONCE, KIB, MIB
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import first_entry_of, journal_files
from solewriter.shared.journal.entry import Outcome, SessionChange, Slots
from solewriter.shared.memory.heap import PREFIX_BYTES, START, address_of, walk
from solewriter.shared.memory.index import IndexReader, key_hash
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.memory.table import TableReader


class Narrow(Entity, kind="Note", columns=("size",)):
    """What notes were before they were `Note`."""

    size: int = 0


class Note(Entity, kind="Note", columns=("label", "size", "share", "good", "due")):
    """One column of each width, one of them among others by now."""

    size: int = 0
    label: str | None = None
    share: float | None = None
    good: bool = False
    due: datetime.datetime | None = None


class Bare(Entity, kind="Bare"):
    """A kind without a column."""

    text: str = ""


WORKING = {
    "heap_segment_bytes_first": 64 * KIB, "heap_segment_bytes_max": 64 * KIB, "journal_file_bytes": 1 * MIB,
    "window_max": 16, "request_ids_max": 40, "forgotten_keys_max": 20,
}  # fmt: skip
"""Small segments: tombstones are forgotten meanwhile, and their slots used again"""

NARROW = "narrow"
MAKING_MAX = 200  # notes until a deleted one is forgotten; some forty are enough


def drawn(dice, notes, first):
    """One mutation, or one that will be refused."""
    key = f"k{dice.randrange(60)}"
    match dice.randrange(9):
        case 0 | 1:
            return Delete(notes.ref(key))
        case 2:
            return Put(Bare(id=key, text="b" * dice.randrange(200)))
        case 3:
            return Update(notes.ref("nobody"), {"size": 1})
        case 4:
            return Create(Task(title="t", id=f"t{first}-{dice.randrange(10**9)}"))
        case 5 if notes is Note:
            at = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
            return Put(Note(id=key, size=-5, label=key, share=dice.random(), good=True, due=at))
    return Put(notes(id=key, size=dice.randrange(10**6)))


def work(state, notes, first, count, limits):
    """Two clients, one of them with ids of its own for some requests, until that is enough for `count`."""
    dice = random.Random(first)
    with (
        Engine(state, durability="process", limits=limits, models=[notes, Bare]),
        connect(state, client_id="one", limits=limits) as one,
        connect(state, client_id="two", limits=limits) as two,
    ):
        number = 0
        while not count(number):
            number += 1
            mutations = [drawn(dice, notes, first) for _ in range(dice.randrange(1, 30))]
            list(dice.choice([one, two, two]).submit_many(mutations, window=16))
            if number % 10 == 0:
                one.submit(drawn(dice, notes, first), request_id=f"own-{first}-{number}")


@pytest.fixture(scope="module")
def all_of_it(tmp_path_factory):
    """A folder without a checkpoint, whose engine was stopped."""
    state = tmp_path_factory.mktemp("all") / "state"
    work(state, Narrow, 1, lambda number: number == 60, Limits(**WORKING))
    leave_a_narrow_one(state)
    work(state, Note, 2, lambda number: number == 120, Limits(**WORKING))
    return state


def leave_a_narrow_one(state):
    """A note that nobody writes again, when classes have other columns: its cells are made of its payload."""
    limits = Limits(**WORKING)
    with Engine(state, durability="process", limits=limits, models=[Narrow, Bare]), connect(state) as client:
        client.put(Narrow(id=NARROW, size=77))


def named(state):
    """Whether the journal names a checkpoint."""
    firsts = [first_entry_of(path) for path in journal_files(state)]
    return any(first is not None and first.private.whole for first in firsts)


@pytest.fixture(scope="module")
def behind_a_checkpoint(tmp_path_factory):
    """The same, and most of it behind one."""
    state = tmp_path_factory.mktemp("behind") / "state"
    often = Limits(**WORKING, checkpoint_after_bytes=64 * KIB)
    work(state, Narrow, 1, lambda number: named(state), often)
    leave_a_narrow_one(state)
    work(state, Note, 2, lambda number: number == 60, Limits(**WORKING))
    return state


@pytest.fixture
def recovered(tmp_path, monkeypatch):
    """`recovered(folder, models, **limits)`: what a start makes of a copy, in memory that nothing leaves."""
    monkeypatch.setattr(reclaim, "RECLAIM_ABOVE", float("inf"))  # or more would be moved where more is dead
    made = []

    def recover(folder, models, **limits):
        copy, memory = tmp_path / f"copy-{len(made)}", tmp_path / f"memory-{len(made)}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sock"))
        memory.mkdir()
        limits = Limits(**WORKING, **limits, memory_dir=str(memory))
        epoch = Start(Orders(str(copy), "process", limits, 0, [], pickled(models))).recover()
        made.append(epoch)
        return epoch

    yield recover
    for epoch in made:
        epoch.close()
        epoch.threads.checkpoints.shutdown()
        epoch.lock.release()


def segments(epoch, *parts):
    return lambda number: Segment.attach(segment_path(epoch.limits.memory_dir, epoch.publisher.prefix, *parts, number))


def of_kind(epoch, kind):
    """All that is known of a kind: the parts that decide what is next, and every record with its cells."""
    table = epoch.publisher.table(kind.code)
    reader = TableReader(table.columns, segments(epoch, "table", kind.code, table.generation))
    index = IndexReader(segments(epoch, "index", kind.code))
    records = {}
    for key, slot in kind.slots.items():
        _, buffer, start = epoch.publisher.newest(kind.code, slot)
        found = record.unpack(buffer, start)
        assert found.key == key
        assert index.candidates(key_hash(key.encode())).count(slot) == 1
        assert reader.cell(slot, len(table.columns)) is not found.deleted
        cells = [repr(reader.cell(slot, place)) for place in range(len(table.columns))]
        records[slot] = (found, [] if found.deleted else cells)
    assert not any(map(table.head, kind.free)), "who tidies would take what is there for what the key has by now"
    return kind.slots, kind.places, list(kind.free), kind.alive, kind.forgotten, table.columns, records


def walked(epoch):
    """What who walks all records finds: of each kind the keys whose last record is no tombstone."""
    heap, last = epoch.publisher.heap, {}
    for _, segment, place in walk(heap.segments.__getitem__, address_of(heap.first, START), heap.tail):
        found = record.unpack(segment.map, place + PREFIX_BYTES)
        last[found.kind, found.key] = not found.deleted
    return [{key for (code, key), lives in last.items() if code == kind.code and lives} for kind in epoch.state.kinds]


def living(epoch):
    """The same by the tables."""
    of_kinds = [of_kind(epoch, kind)[-1].values() for kind in epoch.state.kinds]
    return [{found.key for found, _ in records if not found.deleted} for records in of_kinds]


def everything(epoch):
    state, usage, sessions = epoch.state, epoch.publisher.usage, epoch.sessions
    counted = usage.live(), usage.tombstones
    private = sessions.states(), sessions.request_ids(), sessions.forgotten
    return state.revision, counted, private, state.schemas, [of_kind(epoch, kind) for kind in state.kinds]


def journaled(folder):
    """Every entry that is there, also of an engine at work."""
    for path in journal_files(folder):
        buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
        while (found := entries.unpack(buffer, at)) is not None:
            entry, _, at = found
            yield entry


def retold(folder, known):
    """Rewrite a journal with every sum right, after `known(entry)` said what an entry says of its records' slots."""
    crc = number = 0
    for path in journal_files(folder):
        buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
        start = entries.read_file_header(path, buffer)
        crc = start.previous_crc if path == journal_files(folder)[0] else crc
        out = entries.file_header(start.state_id, start.first, crc)
        while (found := entries.unpack(buffer, at)) is not None:
            entry, _, at = found
            number, private = entry.number, msgspec.structs.replace(entry.private, known=known(entry))
            packed, crc = entries.pack(number, entry.revision, entry.time_us, crc, list(entry.records()), private)
            out += packed
        path.write_bytes(out.ljust(len(buffer), b"\0"))
    note, place = entries.committed_note(number, crc)
    (folder / "committed").write_bytes(bytes(place) + note)


def too_short(known, places):
    return Slots(known.kind, known.slots[4:], b"")


def too_high(known, places):
    """By one, once all keys of the kind have come."""
    lengths = memoryview(known.lengths).cast("I")
    return Slots.of(known.kind, [places[known.kind]] * len(lengths), lengths)


@pytest.mark.parametrize(
    "told", [lambda known, places: None, too_short, too_high], ids=["not", "too short", "too high"]
)
def test_where_entries_do_not_say_slots_that_can_be_their_keys_are_looked_for(recovered, all_of_it, tmp_path, told):
    """As those of engines that said none."""
    before = [entry.changes.known for entry in journaled(all_of_it)]
    assert any(before)
    assert not all(before)
    folder = tmp_path / "retold"
    shutil.copytree(all_of_it, folder, ignore=shutil.ignore_patterns("*.sock"))
    as_it_was = recovered(all_of_it, [Note, Bare], recent_bytes=1)
    places = [kind.places for kind in as_it_was.state.kinds]
    retold(folder, lambda entry: entry.changes.known and told(entry.changes.known, places))
    assert everything(recovered(folder, [Note, Bare], recent_bytes=1)) == everything(as_it_was)


@pytest.mark.parametrize("left", ["all_of_it", "behind_a_checkpoint"])
@pytest.mark.parametrize("models", [[Note, Bare], [Bare]], ids=["known", "a kind without its class"])
def test_newest_records_alone_are_the_same_state_as_all_of_them(request, recovered, left, models):
    folder = request.getfixturevalue(left)
    assert any(entry.changes.slots for entry in journaled(folder)), "no slot was used again"
    one_by_one = recovered(folder, models, recent_bytes=2**40)
    at_once = recovered(folder, models, recent_bytes=1)
    assert at_once.publisher.reclaimer.whole > one_by_one.publisher.reclaimer.whole, "nothing was left out"
    assert everything(at_once) == everything(one_by_one)
    assert walked(at_once) == living(at_once) == walked(one_by_one)
    note = at_once.state.named("Note")
    *_, columns, records = of_kind(at_once, note)
    found, cells = records[note.slots[NARROW]]
    assert at_once.state.schemas[found.schema].columns != columns
    assert cells[[column.name for column in columns].index("size")] == "77"


@pytest.fixture(scope="module")
def come_back(tmp_path_factory):
    """A folder in which a note was deleted, forgotten, and made again when another key had its slot: in the next one
    of all.
    """
    state, limits = tmp_path_factory.mktemp("come") / "state", Limits(**WORKING)
    with Engine(state, durability="process", limits=limits, models=[Note]) as engine, connect(engine.state) as client:
        client.put(Note(id="back"))
        client.delete(Note.ref("back"))
        for number in range(MAKING_MAX):
            client.put(Note(id=f"n{number}", label="x" * 4_000))
            for size in range(3):  # more than a small heap keeps to spare
                client.put(Note(id="n0", label="y" * 4_000, size=size))
            if any(entry.changes.slots for entry in journaled(state)):
                break
        client.put(Note(id="back", size=5))
    return state


def test_a_key_that_comes_back_in_the_next_slot_of_all_is_not_among_the_forgotten_ones_any_more(recovered, come_back):
    (used_again,) = [entry for entry in journaled(come_back) if entry.changes.slots]
    for recent_bytes in (2**40, 1):
        note = recovered(come_back, [Note], recent_bytes=recent_bytes).state.named("Note")
        assert [*used_again.changes.slots.values()] == [0]
        assert note.slots["back"] == note.places - 1 > 1
        assert note.forgotten == (0, {})


def write_until(state, enough):
    """Notes that are overtaken, behind a checkpoint, until that is so: then what was deleted is forgotten."""
    large = "x" * 4_000
    with Engine(state, durability="process", limits=Limits(**WORKING), models=[Note]), connect(state) as client:
        for number in range(MAKING_MAX):
            client.put(Note(id=f"n{number}", label=large))
            for size in range(3):  # more than a small heap keeps to spare
                client.put(Note(id="n0", label=large, size=size))
            if enough(client, number):
                return
    raise AssertionError("nothing was forgotten")


def begin(state, *mutations):
    """These, and a checkpoint behind them."""
    often = Limits(**WORKING, checkpoint_after_bytes=64 * KIB)
    with Engine(state, durability="process", limits=often, models=[Note]), connect(state) as client:
        for mutation in mutations:
            client.submit(mutation)
        while not named(state):
            client.put(Note(id="n0", label="x" * 4_000))


def a_slot_was_used_again(state):
    return any(entry.changes.slots for entry in journaled(state))


def test_a_slot_whose_tombstone_came_with_the_checkpoint_is_the_next_keys(recovered, tmp_path):
    """What was deleted is forgotten behind the checkpoint, and nothing tells so but the new key in its slot."""
    state = tmp_path / "state"
    begin(state, Put(Note(id="gone")), Delete(Note.ref("gone")))
    write_until(state, lambda client, number: a_slot_was_used_again(state))
    for recent_bytes in (2**40, 1):
        note = recovered(state, [Note], recent_bytes=recent_bytes).state.named("Note")
        assert "gone" not in note.slots


@pytest.mark.parametrize("comes_back", [False, True])
def test_who_walks_the_records_does_not_find_again_what_was_deleted_and_forgotten_behind_a_checkpoint(
    recovered, tmp_path, comes_back
):
    """It is in the checkpoint, alive; its tombstone is not, and it is not in its slot any more, either."""
    state, rest = tmp_path / "state", [f"r{number}" for number in range(2)]
    begin(state, *(Put(Note(id=key, size=7)) for key in ("gone", *rest)))
    deleted = []

    def enough(client, number):
        if number == 0:
            for key in ("gone", *rest):
                client.delete(Note.ref(key))
                deleted.append(key)
        elif a_slot_was_used_again(state) and comes_back and deleted:
            deleted.clear()
            client.put(Note(id="gone", size=8))  # in another slot
        return a_slot_was_used_again(state) and (not comes_back or not deleted)

    write_until(state, enough)
    for recent_bytes in (2**40, 1):
        epoch = recovered(state, [Note], recent_bytes=recent_bytes)
        assert walked(epoch) == living(epoch)
        assert ("gone" in living(epoch)[epoch.state.named("Note").code]) is comes_back


def test_a_key_that_comes_twice_in_a_slot_that_was_anothers_behind_the_checkpoint_is_found(recovered, tmp_path):
    """Memory has the other one there, and knew nothing of this one when it was forgotten in between."""
    state = tmp_path / "state"
    begin(state, Put(Note(id="gone")), Delete(Note.ref("gone")))
    came = []

    def comes(client, key):
        client.put(Note(id=key))
        *_, last = journaled(state)
        came.extend([key] if last.changes.slots else [])

    with Engine(state, durability="process", limits=Limits(**WORKING), models=[Note]), connect(state) as client:
        for number in range(2 * MAKING_MAX):
            for size in range(3):
                client.put(Note(id="n0", label="x" * 4_000, size=size))
            comes(client, came[0] if came else f"n{number + 1}")
            if len(came) == 2:
                break
            if came:
                client.delete(Note.ref(came[0]))
    assert came == came[:1] * 2
    slots = [slot for entry in journaled(state) for slot in entry.changes.slots.values()]
    assert slots == slots[:1] * 2
    one_by_one, at_once = (recovered(state, [Note], recent_bytes=recent_bytes) for recent_bytes in (2**40, 1))
    assert everything(at_once) == everything(one_by_one)
    assert came[0] in at_once.state.named("Note").slots


@pytest.mark.parametrize("seed", range(20))
def test_outcomes_that_are_remembered_are_as_if_every_one_had_been_told(seed):
    dice, limits = random.Random(seed), Limits(window_max=4, request_ids_max=6)
    one_by_one, at_once = Sessions(limits), Sessions(limits)
    for sessions in (one_by_one, at_once):
        for number in (1, 2, 3):
            sessions.take(SessionChange(number, f"c{number}", "", 1, -1))
    newest, last, waiting = NewestOutcomes(at_once, limits.window_max), dict.fromkeys((1, 2, 3, 4), -1), []
    for number in range(dice.randrange(40)):
        outcomes = []
        for _ in range(dice.randrange(6)):
            session = dice.choice([1, 1, 1, 2, 3, 4])  # the fourth is not remembered
            last[session] += dice.randrange(1, 3)
            sequence = last[session]
            if waiting and dice.random() < 0.3:  # a claim is answered, and then so much that this is forgotten
                session, sequence = waiting.pop()
            own = f"own-{dice.randrange(12)}" if dice.random() < 0.2 else None
            place = [1, 77, "Task", "t"]
            outcomes.append(Outcome(session, sequence, 0, number, [place], own, own and b"digest"))
        packed, _ = entries.pack(number, number, 0, 0, [], entries.Private(outcomes=outcomes))
        entry, _, _ = entries.unpack(packed, 0)
        newest.add(entry)
        one_by_one.remember(map(as_recovered, entry.private.outcomes))
        if dice.random() < 0.1:
            newest.install()
            last[1] += 1
            waiting.append((1, last[1]))
            for sessions in (at_once, one_by_one):
                sessions.wait(*waiting[-1])
    newest.install()
    for what in ("states", "request_ids"):
        assert getattr(at_once, what)() == getattr(one_by_one, what)()
    assert at_once.forgotten == one_by_one.forgotten


@pytest.mark.parametrize(
    "slots",
    [
        [],
        [7],
        list(range(CHUNK_SLOTS - 2, CHUNK_SLOTS + 2)),
        [0, CHUNK_SLOTS - 1, CHUNK_SLOTS, 3 * CHUNK_SLOTS + 5],
        list(range(5, 2 * INSTALLED_AT_ONCE + 10)),
        list(range(0, 3 * CHUNK_SLOTS, 7)),
    ],
    ids=["none", "one", "an edge", "far apart", "many", "gaps"],
)
def test_pieces_of_slots_lie_in_one_chunk_each_and_leave_nothing_out(slots):
    pieces = [list(piece) for piece in _beside_each_other(slots)]
    assert [slot for piece in pieces for slot in piece] == slots
    for piece in pieces:
        assert 0 < len(piece) <= INSTALLED_AT_ONCE
        assert piece[0] // CHUNK_SLOTS == piece[-1] // CHUNK_SLOTS
    for one, other in pairwise(pieces):
        full = len(one) == INSTALLED_AT_ONCE
        assert full or one[-1] // CHUNK_SLOTS < other[0] // CHUNK_SLOTS, "no smaller than they must be"
