"""A start begins with the newest checkpoint, and everything is as it was; what no start and no history needs, goes."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from pydantic import field_validator

from solewriter import (
    Compacted,
    Create,
    Delete,
    Engine,
    EngineStartFailed,
    Entity,
    NotFound,
    Put,
    Task,
    Update,
    VersionConflict,
    connect,
    open_reader,
)
from solewriter.engine_proc.checkpointing.checkpoint import Order, _write_state
from solewriter.engine_proc.checkpointing.maker import Answer
from solewriter.shared import failpoint, record
from solewriter.shared.config import KIB, MIB, Limits
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import first_entry_of, first_of, journal_files
from solewriter.shared.journal.checkpoint import Checkpoint, CheckpointWriter, checkpoint_files

SMALL = {
    "heap_segment_bytes_first": 64 * KIB,
    "heap_segment_bytes_max": 256 * KIB,
    "journal_file_bytes": 64 * KIB,
    "checkpoint_after_bytes": 64 * KIB,
    "recent_bytes": 8 * KIB,
    "restart_backoff_s": 0.005,
    "restart_backoff_max_s": 0.05,
}
OFTEN = Limits(**SMALL, history_bytes=64 * MIB)
TRIMMED = Limits(**SMALL, history_bytes=128 * KIB)


class Other(Entity, kind="Other", columns=("size",)):
    """Another kind, with another column."""

    size: int = 0


def unexpected(name: str) -> None:
    raise RuntimeError(f"nothing expects this at {name}")


class Breaking(Entity):
    """The first engine that validates it breaks at its next failpoint."""

    mark: str = ""

    @field_validator("mark")
    @classmethod
    def _break(cls, mark: str) -> str:
        if mark and not Path(mark).exists():
            Path(mark).touch()
            failpoint.reach = unexpected
        return mark


def checkpoints(state) -> list[int]:
    return list(checkpoint_files(state))


def grow(client, state, wait_until, count=1):
    """Work until so many more checkpoints are there, and journaled: every update is a revision."""
    before, made = set(checkpoints(state)), set[int]()
    number = 0

    def step() -> bool:
        nonlocal number
        mutations = [Put(Task(title="x" * 100, id=f"g{(number + one) % 40}", max_retries=number)) for one in range(40)]
        number += 40
        for reply in client.submit_many(mutations, window=40):
            reply.check()
        made.update(journaled(state))
        return len(made - before) >= count

    wait_until(step, 60, f"{count} more checkpoints")


def journaled(state) -> list[int]:
    """The checkpoints that the journal names, and that are there."""
    try:
        firsts = [first_entry_of(path) for path in journal_files(state)]
    except FileNotFoundError:  # it was just being trimmed: look again
        return journaled(state)
    named = {first.private.whole.checkpoint.entry for first in firsts if first is not None and first.private.whole}
    return [entry for entry in checkpoints(state) if entry in named]


def oldest_revision(state) -> int:
    with Checkpoint(checkpoint_files(state)[checkpoints(state)[0]]) as checkpoint:
        return checkpoint.directory.revision


def settle(state, wait_until):
    """No checkpoint is being made any more, and what was to go is gone: nobody works, and nothing changes."""
    looks = []

    def look() -> bool:
        looks.append(None if at_work(state) else sorted(path.name for path in state.iterdir()))
        calm = len(looks) > 40 and all(one == looks[-1] for one in looks[-40:])
        return calm and looks[-1] is not None and not any(name.endswith(".tmp") for name in looks[-1])

    wait_until(look, 60, "checkpoint and trim are done")


def at_work(state) -> bool:
    """Whether the engine, or the process that makes its checkpoints, has a processor, waits for one or for a disk."""
    try:
        engine = psutil.Process(StateFolder(state).whereabouts().pid)
        for process in (engine, *engine.children()):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                if (thread / "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"R", b"D"):
                    return True
    except (OSError, psutil.NoSuchProcess):  # one of them ended just now
        return True
    return False


def everything(state, limits=OFTEN):
    """All entities, by kind and id, and the revision."""
    with open_reader(state, limits=limits) as reader, reader.snapshot() as snap:
        return snap.revision, {task.id: task for task in snap.entities(Task)}, snap.counts


def restart(engine, wait_until):
    before = engine.restarts
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts > before, 20, "a restart")


# --- everything is as it was ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durability", "limits"),
    [
        pytest.param("process", TRIMMED, id="process, trimmed"),
        pytest.param("power", OFTEN, id="power, all history", marks=pytest.mark.heavy),
        pytest.param("process", OFTEN, id="process, all history", marks=pytest.mark.heavy),
        pytest.param("power", TRIMMED, id="power, trimmed", marks=pytest.mark.heavy),
    ],
)
def test_a_start_from_a_checkpoint_knows_everything(state, start_engine, wait_until, durability, limits):
    engine = start_engine(state, durability=durability, limits=limits)
    with connect(state, name="me", client_id="me", limits=limits) as client:
        task = client.update(client.create(Task(title="x", id="t")), title="y")
        client.delete(client.create(Task(title="gone", id="gone")))
        named = client.create(Task(title="named", id="named"), request_id="import-1")
        with pytest.raises(VersionConflict):
            client.update(task, title="z", expect=1)
        for _ in range(3):
            grow(client, state, wait_until, 2)
            seen = everything(state, limits)
            restart(engine, wait_until)
            assert everything(state, limits) == seen
            assert client.get(Task, "t") == task
            assert client.create(Task(title="named", id="named"), request_id="import-1") == named
        assert client.create(Task(title="back", id="gone")).version == 3
        assert client.update(task, title="after").version == 3
    engine.stop()
    start_engine(state, durability=durability, limits=limits)
    with connect(state, limits=limits) as client:
        assert client.get(Task, "gone").title == "back"
        with pytest.raises(VersionConflict):
            client.update(task, title="late")


def test_outcomes_from_before_a_checkpoint_are_told_after_it(state, start_engine, wait_until):
    engine = start_engine(state, limits=TRIMMED)
    with connect(state, name="one", limits=TRIMMED) as first, connect(state, name="two", limits=TRIMMED) as second:
        applied = first.submit(Create(Task(title="x", id="a")))
        refused = first.submit(Create(Task(title="x", id="a")))
        grow(second, state, wait_until, 3)
        restart(engine, wait_until)
        assert second.outcome(applied.request_id).reply.results[0].id == "a"
        assert type(second.outcome(refused.request_id)).__name__ == "AlreadyExists"
        assert journal_files(state)[0].name != f"journal-{1:020d}.log", "nothing was trimmed"


@pytest.mark.heavy
def test_keys_that_come_and_go_keep_their_versions_and_places(state, start_engine, wait_until):
    """Tombstones are forgotten meanwhile, and their slots used again, before and behind checkpoints."""
    limits = Limits(**SMALL, history_bytes=128 * KIB, forgotten_keys_max=50)
    engine = start_engine(state, limits=limits)
    versions = dict.fromkeys([f"k{number}" for number in range(60)], 0)
    with connect(state, limits=limits) as client:
        for rounds in range(120):
            keys = [f"k{number}" for number in range(60) if (number + rounds) % 3]
            mutations = [Put(Task(title="x" * 200, id=key, max_retries=rounds)) for key in keys]
            mutations += [Delete(Task.ref(key)) for key in keys if (len(key) + rounds + int(key[1:])) % 2]
            for reply in client.submit_many(mutations, window=64):
                (result,) = reply.check().results
                assert result.version > versions[result.id], "a version came twice"
                versions[result.id] = result.version
            if rounds % 40 == 39:
                settle(state, wait_until)
                seen = everything(state, limits)
                restart(engine, wait_until)
                assert everything(state, limits) == seen
    assert len(journaled(state)) > 0


def test_a_checkpoint_of_a_pin_that_outlived_the_tables_has_every_key_once(state, start_engine, tmp_path):
    """Its process may sleep for long, and memory be turned over meanwhile: then a pin has only its own records."""
    limits = Limits(heap_segment_bytes_first=512 * KIB, heap_segment_bytes_max=512 * KIB)
    start_engine(state, durability="memory", limits=limits)
    draw, alive, held = random.Random(5), set[str](), []
    with (
        connect(state, limits=limits) as client,
        open_reader(state, limits=limits) as reader,
        open_reader(state, limits=limits) as other,
    ):

        def churn():
            """One change, which is one turn: a segment is emptied in eight slices, and between them keys come back."""
            key = f"k{draw.randrange(400)}"
            mutation = Delete(Task.ref(key)) if key in alive else Put(Task(title="x" * 900, id=key))
            alive.symmetric_difference_update({key})
            client.submit(mutation).check()

        doubled = 0  # snapshots with a key that lives in another slot, while its tombstone in the first is there still
        for number in range(2_000):
            for _ in range(3):
                churn()
            walked = other.snapshot()
            by_slot, by_key = walked.pin._own_addresses()
            twice = not {*by_slot.values()} <= {*by_key.values()}
            doubled += twice
            if twice or number % 10 == 0:
                held += [(walked, set(alive)), (reader.snapshot(), set(alive))]
            if len(held) >= 80 and doubled:
                break
        assert doubled
        last = reader.snapshot().pin.root.last_segment
        while reader.snapshot().pin.root.first_segment <= last:
            churn()
        for number, (snap, expected) in enumerate(held):
            writer = CheckpointWriter(tmp_path / str(number), b"s" * 16)
            order = Order(b"", "", "", b"", (limits.heap_segment_bytes_first, limits.heap_segment_bytes_max), 0)
            writer.finish(1, _write_state(writer, snap.pin, order, 0, lambda: True))
            writer.close()
            with Checkpoint(tmp_path / str(number)) as made:
                keys = [key for key in made.keys(0) if key is not None]
                assert len(keys) == len(set(keys))
                bodies = [body for _, body in made.records()]
                assert {record.unpack(body).key for body in bodies if not record.deleted_at(body, 0)} == expected


def test_two_kinds_and_a_newer_class_behind_a_checkpoint(state, start_engine, wait_until):
    engine = start_engine(state, limits=OFTEN, models=[Other])
    with connect(state, limits=OFTEN) as client:
        for number in range(50):
            client.create(Other(id=f"o{number}", size=number))
        grow(client, state, wait_until)
    engine.stop()

    class Newer(Entity, kind="Other", columns=("colour", "size")):
        size: int = 0
        colour: str = "red"

    start_engine(state, limits=OFTEN, models=[Newer])
    with open_reader(state, limits=OFTEN) as reader, reader.snapshot() as snap:
        assert snap.count(Newer, {"colour": "red"}) == 50
        assert snap.ids(Newer, {"size": 7}) == ["o7"]
        assert snap.get(Newer, "o9") == Newer(id="o9", size=9, version=1)


# --- history ----------------------------------------------------------------------------------------------------------


class Texts(Entity, kind="Note", columns=("size",)):
    size: str = "0"


class Numbers(Entity, kind="Note", columns=("size", "weight")):
    size: int = 0
    weight: int = 1


class Weighty(Entity, kind="Note", columns=("size", "weight")):
    size: int = 0
    weight: int = 2


@pytest.mark.parametrize("classes", [[Numbers], []])
def test_cells_in_a_checkpoint_that_the_class_of_the_start_did_not_make_are_made_anew(
    state, start_engine, wait_until, classes
):
    """Another class made them of what is older than its columns, or an engine without one."""
    engine = start_engine(state, limits=OFTEN, models=[Texts])
    with connect(state, limits=OFTEN) as client:
        for number in range(3):
            client.create(Texts(id=f"n{number}", size=str(number)))
        engine.register(Numbers)
        client.create(Numbers(id="n3", size=3))
    engine.stop()
    engine = start_engine(state, limits=OFTEN, models=classes)
    with connect(state, limits=OFTEN) as client:
        grow(client, state, wait_until)
    engine.stop()
    newest, weights = (Weighty, {1: 1, 2: 3}) if classes else (Numbers, {1: 4})
    start_engine(state, limits=OFTEN, models=[newest])
    with open_reader(state, limits=OFTEN) as reader, reader.snapshot() as snap:
        assert snap.count_by(newest, "weight") == weights
        assert snap.count_by(newest, "size") == dict.fromkeys(range(4), 1)


def test_history_is_kept_to_its_bytes_and_what_is_older_is_compacted(state, start_engine, wait_until):
    start_engine(state, limits=TRIMMED)
    with connect(state, limits=TRIMMED) as client, open_reader(state, limits=TRIMMED) as reader:
        client.create(Task(title="first", id="first"))
        grow(client, state, wait_until, 6)
        settle(state, wait_until)
        while reader.revision < (begin := oldest_revision(state)) + 5:  # the last request made the only checkpoint
            client.put(Task(title="behind", id="g1", max_retries=reader.revision))
            settle(state, wait_until)
        assert len(checkpoints(state)) < 6
        with pytest.raises(Compacted) as caught:
            reader.at(1)
        oldest = caught.value.oldest
        assert oldest <= begin, "memory may go back farther"
        with reader.at(oldest) as snap:
            assert snap.revision == oldest
        with pytest.raises(Compacted):
            reader.at(oldest - 1)
        with reader.at(begin) as snap:
            assert (snap.revision, snap.get(Task, "first").title) == (begin, "first")
        with reader.at(begin + 5) as snap:
            assert snap.counts["Task"] == 41
        with pytest.raises(Compacted):
            next(reader.watch(Task, since=1))
        changes = reader.watch(Task, since=begin)
        expected = list(range(begin + 1, min(begin + 300, reader.revision) + 1))
        assert [next(changes).revision for _ in expected] == expected
        told = reader.history(Task, "g1")
        newest = next(told)
        assert newest.version > 10
        with pytest.raises(Compacted):
            list(told)
        kept = sum(path.stat().st_size for path in [*journal_files(state), *checkpoint_files(state).values()])
        assert kept < 128 * KIB + 2 * 64 * KIB + 64 * KIB + 4 * 64 * KIB


@pytest.mark.heavy
def test_history_that_is_too_old_goes(state, start_engine, wait_until):
    limits = Limits(**SMALL, history_bytes=64 * MIB, history_s=0.0)
    start_engine(state, limits=limits)
    with connect(state, limits=limits) as client:
        grow(client, state, wait_until, 3)

        def too_old_is_gone() -> bool:
            entry, *others = checkpoints(state)
            return not others and journaled(state) == [entry] and first_of(journal_files(state)[0]) <= entry + 1

        wait_until(too_old_is_gone, 60, "one checkpoint is left, and what a start needs behind it")


@pytest.mark.heavy
def test_all_history_is_there_where_it_may_be(state, start_engine, wait_until):
    engine = start_engine(state, limits=OFTEN)
    with connect(state, limits=OFTEN) as client, open_reader(state, limits=OFTEN) as reader:
        first = client.create(Task(title="first", id="first"))
        grow(client, state, wait_until, 3)
        restart(engine, wait_until)
        with reader.at(1) as snap:
            assert list(snap.entities(Task)) == [first]
        assert [change.version for change in reader.history(Task, "first")] == [1]


# --- whatever dies ----------------------------------------------------------------------------------------------------

FEW = ["checkpoint.journaled"]  # in a plain run
MORE = [
    "checkpoint.begin",
    "checkpoint.made",
    "checkpoint.renamed",
    "trim.file",
    "trim.begin",
    "trim.journal",
    "trim.done",
]
DYING = [*FEW, *[pytest.param(point, marks=pytest.mark.heavy) for point in MORE]]


@pytest.mark.parametrize("hit", [1, pytest.param(2, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("point", DYING)
def test_a_kill_at_any_step_of_a_checkpoint_changes_nothing(state, start_engine, wait_until, monkeypatch, point, hit):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill:hit={hit}")
        engine = start_engine(state, durability="power", limits=TRIMMED)
    with connect(state, limits=TRIMMED) as client:
        task = client.create(Task(title="x", id="t"))
        wait_until(lambda: grow(client, state, wait_until) or engine.restarts == 1, 60, f"{point} was never reached")
        grow(client, state, wait_until, 2)
        assert client.update(task, title="y").version == 2
        seen = everything(state, TRIMMED)
        restart(engine, wait_until)
        assert everything(state, TRIMMED) == seen
        assert not [*state.glob("checkpoint-*.tmp")]


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("checkpoint.written", "kill"),
        ("checkpoint.synced", "full"),
        *[
            pytest.param(*case, marks=pytest.mark.heavy)
            for case in [("checkpoint.written", "raise"), ("checkpoint.synced", "kill"), ("checkpoint.synced", "raise")]
        ],
    ],
)
def test_a_checkpoint_that_fails_is_followed_by_one_that_does_not(
    state, start_engine, wait_until, monkeypatch, point, action
):
    """The environment arms every process that makes checkpoints once, until another engine follows."""
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:{action}")
        engine = start_engine(state, limits=OFTEN)
    pid = engine.pid
    with connect(state, limits=OFTEN) as client:
        for number in range(400):
            client.create(Task(title="x" * 500, id=f"t{number}"))
        if action == "kill":
            assert checkpoints(state) == []
        else:
            grow(client, state, wait_until)
        assert engine.pid == pid
        restart(engine, wait_until)
        grow(client, state, wait_until)
        assert everything(state)[2]["Task"] == 440


def framed(message: bytes) -> bytes:
    """As it goes down a pipe to whoever makes checkpoints."""
    return struct.pack("<Q", len(message)) + message


def test_a_checkpoint_for_an_engine_that_is_gone_is_not_made(state, start_engine, tmp_path):
    """It goes on under another parent, and whoever that is waits for nothing."""
    start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    where, path = StateFolder(state).whereabouts(), tmp_path / "checkpoint.tmp"
    for engine, gone in ((where.pid, True), (os.getpid(), False)):
        order = Order(bytes(path), where.memory_dir, where.prefix, b"s" * 16, (64 * KIB, 64 * KIB), engine)
        asked = msgspec.msgpack.encode(order)
        made = subprocess.run(
            [sys.executable, "-m", "solewriter.engine_proc.checkpointing.workshop", "5"], input=framed(asked),
            capture_output=True, check=True,
        )  # fmt: skip
        answer = msgspec.msgpack.decode(made.stdout[8:], type=Answer)
        assert (answer.made is None, path.exists()) == (gone, not gone)
        assert answer.why.startswith("EngineGone") is gone


def test_a_maker_that_meets_an_error_of_its_own_says_it_and_ends(tmp_path):
    """Its engine starts another one, and the log has the traceback."""
    asked = msgspec.msgpack.encode(Order(bytes(tmp_path / "one"), "\0", "nobody", b"s" * 16, (64 * KIB, 64 * KIB), 1))
    ended = subprocess.run(
        [sys.executable, "-m", "solewriter.engine_proc.checkpointing.workshop", "5"], input=framed(asked),
        capture_output=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"embedded null" in ended.stderr


def test_a_maker_whose_engine_went_meanwhile_ends_without_a_word(tmp_path):
    """An engine that is killed is no news to anybody but its owner."""
    order = Order(bytes(tmp_path / "checkpoint.tmp"), str(tmp_path), "nobody", b"s" * 16, (64 * KIB, 64 * KIB), 1)
    asked = msgspec.msgpack.encode(order)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    maker = subprocess.Popen(
        [sys.executable, "-m", "solewriter.engine_proc.checkpointing.workshop", "5"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered,
    )  # fmt: skip
    maker.stdout.close()
    said = maker.communicate(framed(asked))[1]
    assert (maker.returncode, said) == (0, b"")


def test_a_checkpoint_that_never_ends_does_not_keep_an_engine_that_must(state, start_engine, wait_until, monkeypatch):
    """What ends it is no error that it knows; the next one needs its lock."""
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, "checkpoint.written:stop")
        engine = start_engine(state, limits=OFTEN, models=[Breaking])
    with connect(state, limits=OFTEN) as client:
        for number in range(400):
            client.create(Task(title="x" * 500, id=f"t{number}"))
        wait_until(lambda: [*state.glob("checkpoint-*.tmp")], 20, "a checkpoint is being made")
        client.create(Breaking(id="a"))
        client.update(Breaking.ref("a"), mark=str(state.with_name("broken")))
        wait_until(lambda: engine.restarts == 1, 20, "its owner counts it, a moment behind the reply")


def test_what_came_while_one_was_made_has_the_next_one_made_though_nothing_comes_any_more(
    state, start_engine, wait_until, monkeypatch
):
    """Or a start behind a burst would replay all of it, however long everybody rested."""
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, "checkpoint.written:stop")
        engine = start_engine(state, limits=OFTEN)
    with connect(state, limits=OFTEN) as client:
        client.submit(*(Put(Task(title="x" * 500, id=f"t{number}")) for number in range(400))).check()
        maker = wait_until(lambda: stopped_child(engine.pid), 20, "a checkpoint is being made")
        for _ in range(3):
            client.submit(*(Put(Task(title="y" * 500, id=f"t{number}")) for number in range(400))).check()
        assert checkpoints(state) == []
        maker.resume()
        wait_until(lambda: len(journaled(state)) == 2, 20, "the first, and the next one")


def stopped_child(pid: int) -> psutil.Process | None:
    return next((one for one in psutil.Process(pid).children() if one.status() == psutil.STATUS_STOPPED), None)


def test_a_kill_in_mid_restoration_leaves_a_folder_that_recovers(state, start_engine, wait_until, monkeypatch):
    engine = start_engine(state, limits=OFTEN)
    with connect(state, limits=OFTEN) as client:
        grow(client, state, wait_until)
    seen = everything(state)
    engine.stop()
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, "recover.restored:kill")
        with pytest.raises(EngineStartFailed, match="-9"):
            start_engine(state, limits=OFTEN)
    start_engine(state, limits=OFTEN)
    assert everything(state) == seen


# --- damage -----------------------------------------------------------------------------------------------------------


def fits(state) -> bool:
    """Whether the journal names several checkpoints, the first of it is gone, and a turn was taken while the newest one
    was made.
    """
    try:
        path, whole = newest_whole(state)
        between = first_of(path) > whole.checkpoint.entry + 1
        return between and first_of(journal_files(state)[0]) > 1 and len(journaled(state)) > 1
    except (FileNotFoundError, IndexError):  # it was just being trimmed, or there is none yet
        return False


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A folder whose start needs a checkpoint, and that has older ones, with a turn between that and what is journaled
    behind it; its engine has stopped, with what was under way.
    """
    limits, end = Limits(**SMALL, history_bytes=4 * MIB), time.monotonic() + 100
    while time.monotonic() < end:
        state = tmp_path_factory.mktemp("left") / "state"

        def goes_on(number: int, state=state) -> bool:
            """Looked at while the engine has some more to do."""
            return bool(number % 40) or (not fits(state) and time.monotonic() < end)

        with Engine(state, durability="process", limits=limits), connect(state, limits=limits) as client:
            numbers = itertools.takewhile(goes_on, itertools.count())
            puts = (Put(Task(title="x" * 100, id=f"g{number % 40}", max_retries=number)) for number in numbers)
            for reply in client.submit_many(puts, window=64):
                reply.check()
        if fits(state):
            return state
    raise AssertionError("waited 100 s in vain for a trim that leaves some")


@pytest.fixture
def stopped(left, state):
    """A copy of it."""
    shutil.copytree(left, state, ignore=shutil.ignore_patterns("*.sock"))
    return state


def test_a_missing_checkpoint_is_a_refusal_that_names_it(stopped, start_engine):
    path = checkpoint_files(stopped)[journaled(stopped)[-1]]
    path.unlink()
    with pytest.raises(EngineStartFailed, match=path.name):
        start_engine(stopped, limits=OFTEN)


@pytest.mark.parametrize("place", [9, 100, -1])  # of header, blocks and directory; every bit in tests/crash
def test_a_damaged_checkpoint_is_a_refusal_that_names_it(stopped, start_engine, place):
    path = checkpoint_files(stopped)[journaled(stopped)[-1]]
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)
    with pytest.raises(EngineStartFailed, match=path.name):
        start_engine(stopped, limits=OFTEN)


def test_checkpoints_that_changed_places_are_refused(stopped, start_engine):
    files, named = checkpoint_files(stopped), journaled(stopped)  # a later one may be there that nobody needs yet
    path = files[named[-1]]
    path.write_bytes(files[named[0]].read_bytes())
    with pytest.raises(EngineStartFailed, match=path.name):
        start_engine(stopped, limits=OFTEN)


def test_a_start_without_the_journal_behind_its_checkpoint_is_refused(stopped, start_engine):
    newest = journaled(stopped)[-1]
    needed = [path for path in journal_files(stopped) if first_of(path) <= newest + 1][-1]
    needed.unlink()
    with pytest.raises(EngineStartFailed, match="journal"):
        start_engine(stopped, limits=OFTEN)


def test_what_is_lost_before_the_private_state_is_never_taken_for_the_work_of_a_power_cut(stopped, start_engine):
    """It was on disk when that was written, in `process` as well; what such a loss takes along is everything since."""
    path, whole = newest_whole(stopped)
    after_a_reboot(stopped, path)
    needed = [path for path in journal_files(stopped) if first_of(path) <= whole.checkpoint.entry + 1][-1]
    flip(needed, behind_entry(needed, whole.checkpoint.entry) + 60)
    before = {path.name: path.read_bytes() for path in journal_files(stopped)}
    for _ in range(2):
        with pytest.raises(EngineStartFailed, match=needed.name):
            start_engine(stopped, durability="process", limits=TRIMMED)
    assert {path.name: path.read_bytes() for path in journal_files(stopped)} == before


def newest_whole(state) -> tuple[Path, entries.PrivateState]:
    firsts = [(path, first_entry_of(path)) for path in journal_files(state)]
    return [(path, first.private.whole) for path, first in firsts if first is not None and first.private.whole][-1]


def behind_entry(path, number) -> int:
    """The offset behind an entry of a file, or of the file's first one where that is later."""
    buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
    while (found := entries.unpack(buffer, at)) is not None and found[0].number <= number:
        at = found[2]
    assert found is not None, "nothing follows"
    return at


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def after_a_reboot(state, path):
    """The file that begins with the private state becomes the last one, written before another boot."""
    for later in journal_files(state):
        if later > path:
            later.unlink()
    buffer = path.read_bytes()
    first, previous, _ = entries.unpack(buffer, entries.FILE_HEADER_BYTES)
    whole = first.private.whole
    life = msgspec.structs.replace(whole.life, boot="another")
    private = entries.Private(whole=msgspec.structs.replace(whole, life=life))
    packed, _ = entries.pack(first.number, first.revision, first.time_us, previous, [], private)
    path.write_bytes((buffer[: entries.FILE_HEADER_BYTES] + packed).ljust(len(buffer), b"\0"))
    (state / "committed").write_bytes(b"")


def test_what_a_dead_engine_did_not_finish_goes_with_the_next_start(stopped, start_engine):
    (stopped / "checkpoint-1-1.tmp").write_bytes(b"half")
    noted = entries.last_committed((stopped / "committed").read_bytes())
    unnamed = stopped / f"checkpoint-{noted[0]:020d}"
    unnamed.write_bytes(b"whole, but not in the journal")
    start_engine(stopped, limits=OFTEN)
    assert not (stopped / "checkpoint-1-1.tmp").exists()
    assert not unnamed.exists()


def test_a_clean_stop_ends_the_process_that_makes_a_checkpoint(state, start_engine, wait_until, monkeypatch, capfd):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, "checkpoint.written:stop")
        engine = start_engine(state, limits=OFTEN)
    with connect(state, limits=OFTEN) as client:
        for number in range(400):
            client.create(Task(title="x" * 500, id=f"t{number}"))
        wait_until(lambda: [*state.glob("checkpoint-*.tmp")], 20, "a checkpoint is being made")
        with pytest.raises(NotFound):
            client.update(Task.ref("nobody"), title="x")
    engine.stop()
    assert "checkpoint" not in capfd.readouterr().err, "it is no failure"
    assert not [*state.glob("checkpoint-*.tmp")]
    start_engine(state, limits=OFTEN)
    with connect(state, limits=OFTEN) as client:
        replies = client.submit_many([Update(Task.ref("t1"), {"title": "y"})])
        assert [reply.results[0].version for reply in replies] == [2]
