"""What the process that makes a checkpoint does where memory, classes or its engine change under it."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from solewriter import Entity
from solewriter.engine_proc.betweenturns import Registration
from solewriter.engine_proc.checkpointing.checkpoint import EngineGone, Order, _pieces, _write_state, make
from solewriter.engine_proc.checkpointing.maker import Maker, NotMade, _ask, carry_out
from solewriter.engine_proc.checkpointing.workshop import at_priority
from solewriter.shared import wire, wireform
from solewriter.shared.config import DEFAULT_LIMITS, KIB
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.journal.checkpoint import Checkpoint, CheckpointWriter
from solewriter.shared.memory.segment import segment_path
from solewriter.shared.memory.view import View
from solewriter.shared.mutations import Create, Delete, Update
from solewriter.shared.registry import Registry

STATE = b"0123456789abcdef"
COUNT = 4


class Note(Entity, kind="Note", columns=("size",)):
    size: int = 0
    text: str = ""


class WithText(Entity, kind="Note", columns=("size", "text")):
    size: int = 0
    text: str = ""


class Bare(Entity, kind="Note"):
    size: int = 0
    text: str = ""


class Other(Entity, kind="Other"):
    text: str = ""


class Notes:
    """An engine in this process that holds some notes."""

    def __init__(self, engine, call, folder):
        self.engine, self.call, self.folder = engine, call, folder
        self.where = str(folder / "memory")
        self.register(Note)
        self.do(*[Create(Note(id=f"n{one}", size=one)) for one in range(COUNT)])

    def register(self, model):
        async def registered():
            registration = Registration([*Registry([model])])
            await self.engine.writer.between.run(registration)
            await registration.done

        self.engine.loop.run_until_complete(registered())
        self.registry = Registry([model])

    def do(self, *mutations):
        plain = [wireform.plain_mutation(one, self.registry) for one in mutations]
        self.call.write(wire.pack_frame([(plain, [], None, None)], DEFAULT_LIMITS))
        self.engine.read()
        self.engine.turn()
        ((_, status, _, _),) = self.call.replies()
        assert status == wire.Status.APPLIED

    def pin(self):
        return View(self.where, self.engine.prefix).pin()

    def order(self, name="made"):
        return Order(
            bytes(self.folder / name), self.where, self.engine.prefix, STATE, (64 * KIB, 64 * KIB), os.getpid()
        )

    def table(self, pin, name="made"):
        """What this revision comes to in a checkpoint: the cells of `size`, and the slots to be made anew."""
        order = self.order(name)
        writer = CheckpointWriter(Path(os.fsdecode(order.path)), STATE)
        directory = _write_state(writer, pin, order, 0, lambda: True)
        writer.finish(1, directory)
        writer.close()
        code = pin.catalog.kind_code("Note")
        with Checkpoint(writer_path := self.folder / name) as one:
            table = one.directory.tables[code]
            sizes = struct.unpack(f"{table.places}q", one.bytes_of(table.chunks[0][1]))
        writer_path.unlink()
        return list(sizes), table.anew


@pytest.fixture
def notes(alone, tmp_path):
    engine, call, _ = alone()
    return Notes(engine, call, tmp_path)


def test_what_was_published_is_made_and_read_back(notes):
    notes.do(Delete(Note.ref("n1")), Update(Note.ref("n2"), {"size": 9}))
    made = make(notes.order())
    with Checkpoint(notes.folder / "made") as one:
        assert (made.crc, made.size, made.revision) == (one.crc, one.size, 2)
        assert one.record_of(one.directory.kinds.index("Note"), "n1").deleted
    assert notes.table(notes.pin(), "again") == ([0, 0, 9, 3], [])


def test_a_slot_that_nobody_has_is_a_slot_in_the_checkpoint_too(alone, tmp_path):
    """A deleted key is forgotten when memory was reclaimed behind it."""
    engine, call, _ = alone(heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=16 * KIB)
    notes = Notes(engine, call, tmp_path)
    notes.do(Delete(Note.ref("n1")))
    code = notes.pin().catalog.kind_code("Note")
    for number in range(400):
        notes.do(Update(Note.ref("n0"), {"text": f"{number}" * 300}))
        if engine.server.state.kinds[code].free:
            break
    assert list(engine.server.state.kinds[code].free) == [1]
    make(notes.order())
    with Checkpoint(tmp_path / "made") as one:
        assert one.keys(code) == ["n0", None, "n2", "n3"]
        assert one.record_of(code, "n1") is None


def test_a_kind_whose_keys_were_all_forgotten_is_in_the_checkpoint_without_a_record(alone, tmp_path):
    engine, call, _ = alone(heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=16 * KIB)
    notes = Notes(engine, call, tmp_path)
    notes.do(*[Delete(Note.ref(f"n{one}")) for one in range(COUNT)])
    code = notes.pin().catalog.kind_code("Note")
    notes.register(Other)
    notes.registry = Registry([Note, Other])
    notes.do(Create(Other(id="o")))
    for number in range(400):
        notes.do(Update(Other.ref("o"), {"text": f"{number}" * 300}))
        if len(engine.server.state.kinds[code].free) == COUNT:
            break
    made = make(notes.order())
    with Checkpoint(tmp_path / "made") as one:
        assert one.keys(code) == [None] * COUNT
        assert one.keys(one.directory.kinds.index("Other")) == ["o"]
        assert (one.entry, len([*one.records()])) == (made.entry, 1)


# --- classes that change ----------------------------------------------------------------------------------------------


def test_cells_that_a_newer_class_made_are_taken_from_memory(notes):
    """The records themselves have the cells of the older class."""
    notes.register(WithText)
    assert notes.table(notes.pin()) == ([0, 1, 2, 3], [])


def test_cells_that_are_another_records_by_now_are_never_taken(notes):
    notes.register(WithText)
    pin = notes.pin()
    notes.do(Update(WithText.ref("n2"), {"size": 9}))
    assert notes.table(pin) == ([0, 1, 0, 3], [2]), "it is made of its own record when it is put back"
    assert notes.table(notes.pin()) == ([0, 1, 9, 3], [])


def test_cells_are_made_later_where_the_columns_are_others_by_now(notes):
    notes.register(WithText)
    pin = notes.pin()
    notes.register(Bare)
    assert notes.table(pin) == ([0] * COUNT, [*range(COUNT)])


# --- what cannot be made ----------------------------------------------------------------------------------------------


def test_a_record_that_is_damaged_in_memory_is_no_part_of_a_checkpoint(notes):
    pin = notes.pin()
    code = pin.catalog.kind_code("Note")
    address = pin.at(code, 1)
    with segment_path(notes.where, notes.engine.prefix, "heap", address >> 32).open("r+b") as file:
        file.seek((address & 0xFFFFFFFF) + 40)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(JournalCorrupt, match="checksum"):
        make(notes.order())


def test_who_lost_its_engine_gives_up(notes):
    """Its parent ends between the first record and the next look."""
    pin = notes.pin()
    code = pin.catalog.kind_code("Note")
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        go, gone = os.pipe()
        if os.fork() == 0:
            engine, said = os.getppid(), b"went on"
            found = sum(len(piece.slots) for piece in _pieces(pin, code, lambda: os.getppid() == engine))
            os.close(gone)  # lets the parent end
            while os.getppid() == engine:
                pass
            try:
                list(_pieces(pin, code, lambda: os.getppid() == engine))
            except EngineGone:
                said = b"gave up after %d" % found
            os.write(tell, said)
            os._exit(0)
        os.close(gone)
        os.read(go, 1)
        os._exit(0)
    os.close(tell)
    os.waitpid(between, 0)
    assert os.read(told, 100) == b"gave up after %d" % COUNT
    assert os.read(told, 100) == b"", "nobody is left"
    os.close(told)


@pytest.fixture
def maker():
    made = Maker()
    yield made
    made.close()
    if made._child is not None:
        made._child.wait()
        made._child.stdin.close()
        made._child.stdout.close()


def test_the_reason_of_one_that_failed_comes_to_who_waits_for_it(notes, maker):
    order = Order(
        bytes(notes.folder / "made"), notes.where, "solewriter-nobody", STATE, (64 * KIB, 64 * KIB), os.getpid()
    )
    with pytest.raises(NotMade, match=r"^FileNotFoundError: .*solewriter-nobody"):
        maker(order)
    assert not (notes.folder / "made").exists()
    assert maker(notes.order()).size, "it goes on"


def test_one_that_is_made_is_told_to_who_waits_for_it(notes, maker):
    made = maker(notes.order())
    with Checkpoint(notes.folder / "made") as one:
        assert (made.entry, made.crc, made.size) == (one.entry, one.crc, one.size)


def test_the_next_one_is_made_by_the_same_process_at_its_own_priority(notes, maker):
    maker(msgspec.structs.replace(notes.order(), nice=19))
    pid = maker._child.pid
    (notes.folder / "made").unlink()
    maker(msgspec.structs.replace(notes.order(), nice=0))
    assert maker._child.pid == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_what_its_process_needs_is_brought_in_at_a_low_priority_and_orders_may_have_the_usual_one(notes):
    """The engine's processor may be the only one that it has."""
    light = (
        "import sys, solewriter.engine_proc.checkpointing.workshop; print({'pydantic', 'msgspec'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", light], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
    own, priorities = os.getpriority(os.PRIO_PROCESS, 0), list[int]()
    for nice in (own + 7, own - 3):
        at_priority(nice, lambda: priorities.append(os.getpriority(os.PRIO_PROCESS, 0)))
    assert priorities == [own + 7, own]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_one_of_an_engine_with_a_low_priority_does_not_ask_for_a_higher_one(notes):
    """Nobody but root would get it, and there would be no checkpoint."""
    priorities, order = [], msgspec.structs.replace(notes.order(), nice=0, engine=os.getppid())

    def carry_out_nicely():
        os.setpriority(os.PRIO_PROCESS, 0, 10)  # of this thread
        assert carry_out(order).made is not None
        priorities.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=carry_out_nicely)
    thread.start()
    thread.join()
    assert priorities == [10]


def test_one_that_ended_before_it_heard_an_order_gives_no_answer(notes):
    """It had nothing to do for long; whoever asked starts another."""
    with subprocess.Popen(
        [sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        child.wait()
        assert _ask(child, notes.order()) is None


def test_a_process_that_makes_none_holds_nothing_of_the_memory(notes, maker):
    maker(notes.order())
    held = Path(f"/proc/{maker._child.pid}/maps").read_text()
    assert "python" in held
    assert notes.where not in held


def test_one_is_made_by_another_process_where_the_first_one_has_ended(notes, maker):
    for end in (signal.SIGTERM, signal.SIGKILL):
        maker(notes.order())
        pid = maker._child.pid
        os.kill(pid, end)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        (notes.folder / "made").unlink()
        maker(notes.order())
        assert maker._child.pid != pid
        (notes.folder / "made").unlink()


def test_one_in_which_the_process_dies_is_told_as_failed(notes, maker, monkeypatch):
    monkeypatch.setenv(VARIABLE, "checkpoint.written:kill")
    with pytest.raises(NotMade, match=r"^the process that makes checkpoints ended with status -9"):
        maker(notes.order())


def test_a_process_that_was_asked_nothing_for_long_ends_and_another_one_takes_the_next_order(notes, maker):
    maker(notes.order())
    child = maker._child
    child.stdin.close()  # as if nothing came for long: it ends in the same place
    child.wait()
    (notes.folder / "made").unlink()
    assert maker(notes.order()).size


def test_a_maker_that_was_closed_begins_nothing(notes, maker):
    maker.close()
    with pytest.raises(EngineGone):
        maker(notes.order())
    assert not (notes.folder / "made").exists()
