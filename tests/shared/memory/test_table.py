"""A table gives back the newest head and the newest cells of each slot, chunk by chunk, and chunks never move."""

from __future__ import annotations

import math
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solewriter.shared.config import CHUNK_SLOTS
from solewriter.shared.errors import MemoryFull
from solewriter.shared.kinds.columns import NO_INT, Column
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.memory.segment import Segment
from solewriter.shared.memory.table import TableReader, TableWriter, offsets
from solewriter.shared.models import Task

COLUMNS = (
    Column("status", "B", "enum", ("a", "b")),
    Column("count", "q", "int"),
    Column("weight", "d", "float"),
    Column("owner", "Q", "str"),
    Column("good", "B", "bool"),
)
CELLS = st.tuples(
    st.integers(0, 255),
    st.integers(NO_INT, 2**63 - 1),
    st.floats(allow_nan=False),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2),
)
PLACES = st.integers(0, len(COLUMNS) - 1)
ALL = {0: 1, 1: -5, 2: 0.5, 3: 9, 4: 1}


class Table:
    """A table in a folder, its writer and a reader that maps on its own."""

    def __init__(self, folder, columns=COLUMNS, beside=None):
        self.folder = folder
        self.room = True
        self.attached = []
        self.made = []  # numbers, and whether here
        self.writer = TableWriter(1, columns, self.make, beside)
        self.reader = TableReader(columns, self.attach)

    def make(self, chunk, size):
        if not self.room:
            raise MemoryFull("no room")
        self.made.append((chunk, threading.current_thread() is threading.main_thread()))
        return Segment.create(self.folder / f"table-{chunk}", size)

    def attach(self, chunk):
        self.attached.append(chunk)
        return Segment.attach(self.folder / f"table-{chunk}")

    def install(self, slot, address, cells, alive=True):
        self.writer.install(slot, address, list(cells.items()), alive)

    def cells(self, slot):
        return tuple(self.reader.cell(slot, place) for place in range(len(self.reader.columns)))

    def alive(self, slot):
        return self.reader.cell(slot, len(self.reader.columns))


@pytest.fixture
def table(tmp_path):
    made = Table(tmp_path)
    made.writer.reserve(1)
    return made


# --- against a dict ---------------------------------------------------------------------------------------------------

SLOTS = st.integers(0, 5) | st.sampled_from([CHUNK_SLOTS - 1, CHUNK_SLOTS, 2 * CHUNK_SLOTS - 1])
STEPS = st.lists(st.tuples(SLOTS, st.integers(1, 2**64 - 1), CELLS | st.none(), st.sets(PLACES)), max_size=30)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    made = Table(tmp_path_factory.mktemp("table"))
    made.writer.reserve(2 * CHUNK_SLOTS)
    return made


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_the_newest_of_each_slot_is_what_readers_find(large, steps):
    """Cells of None are a delete; the set says which columns a change of a known slot brings."""
    model = {}
    for slot, address, cells, brought in steps:
        head, known = model.get(slot, (0, None))
        if cells is None:
            large.install(slot, address, {}, alive=False)
            model[slot] = (address, None)
        elif known is None:
            large.install(slot, address, dict(enumerate(cells)))
            model[slot] = (address, cells)
        else:
            large.install(slot, address, {place: cells[place] for place in brought})
            model[slot] = (
                address,
                tuple(cells[place] if place in brought else known[place] for place in range(len(cells))),
            )
        for other, (head, expected) in model.items():
            assert large.reader.head(other) == large.writer.head(other) == head
            assert large.alive(other) == (expected is not None)
            assert expected is None or large.cells(other) == expected


def test_only_the_cells_that_are_given_are_stored(table):
    table.install(0, 8, ALL)
    table.install(0, 16, {0: 2, 3: 7})
    assert (table.cells(0), table.reader.head(0)) == ((2, -5, 0.5, 7, 1), 16)
    table.install(0, 24, {})
    assert (table.cells(0), table.reader.head(0)) == ((2, -5, 0.5, 7, 1), 24)


def test_none_is_stored_as_its_cells(table):
    table.install(0, 8, {0: 0, 1: NO_INT, 2: float("nan"), 3: 0, 4: 0})
    status, count, weight, owner, good = table.cells(0)
    assert (status, count, owner, good) == (0, NO_INT, 0, 0)
    assert math.isnan(weight)


def test_a_delete_and_a_rebirth(table):
    table.install(0, 8, ALL)
    table.install(0, 16, {}, alive=False)
    assert (table.alive(0), table.reader.head(0)) == (0, 16)
    table.install(0, 24, {0: 5, 1: 6, 2: 7.0, 3: 8, 4: 2})
    assert (table.alive(0), table.reader.head(0), table.cells(0)) == (1, 24, (5, 6, 7.0, 8, 2))


def test_slots_do_not_touch_their_neighbours(table):
    for slot in range(3):
        table.install(slot, slot + 1, {0: slot, 1: slot, 2: slot / 2, 3: slot, 4: slot % 3})
    table.install(1, 99, {0: 255, 1: -1, 2: -1.5, 3: 2**64 - 1, 4: 2})
    assert [table.cells(slot) for slot in (0, 2)] == [(0, 0, 0.0, 0, 0), (2, 2, 1.0, 2, 2)]
    assert [table.alive(slot) for slot in range(4)] == [1, 1, 1, 0]
    assert [table.reader.head(slot) for slot in range(4)] == [1, 99, 3, 0]


def test_a_kind_without_columns_has_heads_and_lives_only(tmp_path):
    table = Table(tmp_path, ())
    table.writer.reserve(1)
    table.install(0, 8, {})
    assert (table.reader.head(0), table.alive(0)) == (8, 1)
    table.install(0, 16, {}, alive=False)
    assert (table.reader.head(0), table.alive(0)) == (16, 0)


# --- chunks -----------------------------------------------------------------------------------------------------------


def test_every_array_of_a_chunk_is_aligned_and_none_overlaps():
    for columns in ((), COLUMNS, Kind(Task).columns, COLUMNS[:1] * 32):
        places = offsets(columns)
        widths = [8, *(struct.calcsize(column.code) for column in columns), 1]
        assert [end - start for start, end in zip([0, *places], places, strict=False)] == [
            CHUNK_SLOTS * width for width in widths
        ]
        assert all(place % 8 == 0 for place in places)


def test_chunks_are_made_when_a_slot_needs_one_and_never_again(table):
    for slots in (0, 1, CHUNK_SLOTS, CHUNK_SLOTS):
        table.writer.reserve(slots)
        assert len(list(table.folder.iterdir())) == 1
    table.install(0, 8, ALL)
    table.writer.reserve(CHUNK_SLOTS + 1)
    assert len(list(table.folder.iterdir())) == 2
    table.install(CHUNK_SLOTS, 16, {0: 9, 1: 9, 2: 9.0, 3: 9, 4: 2})
    assert (table.reader.head(0), table.reader.head(CHUNK_SLOTS)) == (8, 16)
    assert table.cells(CHUNK_SLOTS) == (9, 9, 9.0, 9, 2)
    assert table.attached == [0, 1]


def test_a_reader_maps_a_chunk_when_it_is_first_asked_for(table):
    assert table.attached == []
    table.reader.cell(3, 0)
    table.reader.head(4)
    assert table.attached == [0]


def test_without_room_what_is_there_stays_and_later_it_goes_on(table):
    table.install(0, 8, ALL)
    table.room = False
    for _ in range(2):
        with pytest.raises(MemoryFull):
            table.writer.reserve(CHUNK_SLOTS + 1)
    assert (table.reader.head(0), table.cells(0)) == (8, (1, -5, 0.5, 9, 1))
    table.room = True
    table.writer.reserve(CHUNK_SLOTS + 1)
    table.install(CHUNK_SLOTS, 16, ALL)
    assert table.reader.head(CHUNK_SLOTS) == 16


def test_a_chunk_is_made_beside_before_its_first_slot_is_asked_for(tmp_path):
    with ThreadPoolExecutor(1) as beside:
        table = Table(tmp_path, beside=beside)
        table.writer.reserve(0)
        assert table.made == []
        for slots in range(1, 2 * CHUNK_SLOTS + 2, CHUNK_SLOTS // 8):
            table.writer.reserve(slots)
            beside.submit(int).result()
    assert table.made == [(0, True), (1, False), (2, False)]
    table.install(2 * CHUNK_SLOTS, 16, ALL)
    assert table.reader.head(2 * CHUNK_SLOTS) == 16


def test_behind_its_end_a_table_makes_no_chunk(tmp_path):
    """Or its file would come when all of them were removed."""
    go = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        table = Table(tmp_path, beside=beside)
        table.writer.reserve(1)
        beside.submit(go.wait, 10)
        table.writer.reserve(CHUNK_SLOTS - 1)
        table.writer.end()
        go.set()
    assert table.made == [(0, True)]


# --- many at once -----------------------------------------------------------------------------------------------------

BLOCK = struct.Struct("<BqdQB")


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.integers(0, 40), min_size=1) | st.integers(0, 30).map(lambda count: set(range(5, 6 + count))),
    st.sampled_from([0, CHUNK_SLOTS - 50, CHUNK_SLOTS]),
    st.randoms(use_true_random=False),
)
def test_many_slots_at_once_are_what_each_by_itself_would_be(tmp_path_factory, offsets, first, dice):
    """Side by side or apart, dead ones among them; what was in other slots stays."""
    slots = [first + offset for offset in sorted(offsets) if first + offset < (first // CHUNK_SLOTS + 1) * CHUNK_SLOTS]
    one_by_one, at_once = (Table(tmp_path_factory.mktemp("table")) for _ in range(2))
    for table in (one_by_one, at_once):
        table.writer.reserve(2 * CHUNK_SLOTS)
        for slot in range(max(0, first - 3), first + 45):
            table.install(slot, slot + 1, ALL)
    addresses = [dice.randrange(2**64) for _ in slots]
    alive = [dice.random() < 0.8 for _ in slots]
    rows = [
        (dice.randrange(256), dice.randrange(-(2**63), 2**63), dice.random(), dice.randrange(2**64), 2) for _ in slots
    ]
    for slot, address, lives, cells in zip(slots, addresses, alive, rows, strict=True):
        one_by_one.install(slot, address, dict(enumerate(cells)) if lives else {}, lives)
    at_once.writer.point_all(slots, addresses, alive)
    living = [place for place, lives in enumerate(alive) if lives]
    at_once.writer.fill_all([slots[place] for place in living], [BLOCK.pack(*rows[place]) for place in living])
    for chunk in (0, 1):
        assert (at_once.folder / f"table-{chunk}").read_bytes() == (one_by_one.folder / f"table-{chunk}").read_bytes()


def test_a_table_without_columns_is_filled_with_nothing(tmp_path):
    table = Table(tmp_path, columns=())
    table.writer.reserve(3)
    table.writer.point_all([0, 1, 2], [8, 16, 24], [True, False, True])
    table.writer.fill_all([0, 2], [b"", b""])
    table.writer.fill_all([], [])
    assert [(table.reader.head(slot), table.alive(slot)) for slot in range(3)] == [(8, 1), (16, 0), (24, 1)]
