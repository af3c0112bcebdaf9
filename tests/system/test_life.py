"""The engine's life: hanging, draining, ending by itself, and who waits for one that is gone."""

from __future__ import annotations

import asyncio
import io
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import pytest

from solewriter import (
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Entity,
    Limits,
    Locked,
    OutcomeUnknown,
    Task,
    Update,
    aio,
    connect,
    open_reader,
)
from solewriter.engine_proc.owner import supervising
from solewriter.engine_proc.owner.notices import ending
from solewriter.shared.config import WATCH_BATCH


class Doc(Entity):
    size: int = 0


# --- hanging ----------------------------------------------------------------------------------------------------------


class Heavy(Entity):
    """Its validator never comes back for one value: a user's bug."""

    weight: int = 0

    def model_post_init(self, context: object) -> None:
        while self.weight == 13:
            pass


QUICK = Limits(heartbeat_s=0.05, hang_timeout_s=0.6, restart_backoff_s=0.01)


def test_a_stopped_engine_is_reported_and_never_killed(state, start_engine, wait_until, capfd):
    engine = start_engine(state, limits=QUICK, replace_hung=True)
    pid = engine.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: engine.hung, 20, "the hang is seen")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not engine.hung, 20, "it goes on")
    assert (engine.pid, engine.restarts) == (pid, 0)
    assert "stopped" in capfd.readouterr().err


class Patient(Entity):
    """Its validator has a thread wait in the kernel, in state D as for a disk, until somebody writes to a pipe."""

    pipe: str = ""

    def model_post_init(self, context: object) -> None:
        if self.pipe:
            waiting = threading.Thread(target=self.spawn)
            waiting.start()
            waiting.join()

    def spawn(self) -> None:
        first = [(os.POSIX_SPAWN_OPEN, 0, self.pipe, os.O_RDONLY, 0)]
        pid = os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=first)  # as by vfork: until it is there
        os.waitpid(pid, 0)


def test_an_engine_of_which_a_thread_waits_for_a_disk_is_reported_and_never_killed(
    state, start_engine, wait_until, tmp_path, client_of_a_raw_lane, capfd
):
    """Its loop waits for that thread, and not in state D itself."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    engine = start_engine(
        state, limits=msgspec.structs.replace(QUICK, decide_timeout_s=0), replace_hung=True, models=[Patient]
    )
    with connect(state) as client:
        client.create(Patient(id="p"))
    raw, pid = client_of_a_raw_lane(state), engine.pid
    raw.write(raw.frame([Update(Patient.ref("p"), {"pipe": str(pipe)})]))
    try:
        wait_until(lambda: engine.hung or engine.restarts, 20, "the hang is seen")
    finally:
        os.close(os.open(pipe, os.O_RDWR))
    # It waits twice: what its validator may have changed is read back before it is stored.
    wait_until(lambda: os.close(os.open(pipe, os.O_RDWR)) or not engine.hung, 20, "it goes on")
    assert (engine.pid, engine.restarts) == (pid, 0)
    assert "waiting for a disk" in capfd.readouterr().err


def test_a_hanging_engine_is_replaced_where_that_was_asked_for(state, start_engine, wait_until):
    engine = start_engine(state, limits=QUICK, replace_hung=True, models=[Heavy])
    pid = engine.pid
    with connect(state, limits=Limits(connect_timeout_s=2, request_timeout_s=2)) as client:
        client.create(Heavy(id="h"))
        raw = Update(Heavy.ref("h"), {"weight": 13})
        with pytest.raises(OutcomeUnknown):
            client.submit(raw, timeout_s=1)
    wait_until(lambda: engine.restarts >= 1 and engine.pid != pid, 20, "another engine")
    with connect(state) as client:
        assert client.update(Heavy.ref("h"), weight=1).weight == 1, "one writer, and it has the lock"


def test_an_engine_that_hangs_while_it_is_stopped_is_ended_where_that_was_asked_for(
    state, start_engine, monkeypatch, client_of_a_raw_lane
):
    monkeypatch.setattr(supervising, "STOP_MARGIN_S", 2)  # waited for once in vain, and then for its death
    engine = start_engine(state, models=[Heavy], replace_hung=True, limits=Limits(drain_timeout_s=0.2))
    with connect(state) as client:
        client.create(Heavy(id="h"))
    raw = client_of_a_raw_lane(state)
    raw.write(raw.frame([Update(Heavy.ref("h"), {"weight": 13})]))
    pid = engine.pid
    engine.stop()
    assert not os.path.exists(f"/proc/{pid}")
    assert not list(engine.folder.markers()), "its memory stayed"


def test_a_supervisor_without_descriptors_goes_on_when_there_are_some(state, start_engine, wait_until, capfd):
    engine = start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="x"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said: list[str] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: said.append(capfd.readouterr().err) or "open files" in said[-1], 20, "a start that fails")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: engine.restarts == 1, 20, "a restart")
    with connect(state) as client:
        assert client.update(task, title="y").version == 2


@pytest.mark.parametrize("how", ["a pipe that nobody reads", "closed"])
def test_an_owner_whose_stderr_is_gone_goes_on_supervising(state, start_engine, wait_until, monkeypatch, how):
    """A terminal was closed, a `| head` has ended: what the supervisor has to say is lost, and nothing else."""
    reads, writes = os.pipe()
    os.close(reads)
    with io.TextIOWrapper(io.FileIO(writes, "w"), write_through=True) as stderr:
        if how == "closed":
            stderr.close()
        monkeypatch.setattr(sys, "stderr", stderr)
        engine = start_engine(state, limits=QUICK)
        os.kill(engine.pid, signal.SIGSTOP)
        wait_until(lambda: engine.hung, 20, "the hang is seen, and told in vain")
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        engine.stop()


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.long)])
def test_an_engine_that_goes_on_after_a_stop_has_the_time_to_beat_again(state, start_engine, wait_until, rounds):
    """The look that comes between its going on and its first beat must not take it for a hang."""
    engine = start_engine(state, limits=QUICK, replace_hung=True)
    pid = engine.pid
    for _ in range(rounds):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: engine.hung, 20, "the hang is seen")
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not engine.hung, 20, "it goes on")
    assert (engine.pid, engine.restarts) == (pid, 0)


def test_what_a_killed_engine_left_in_memory_goes_with_its_owner(state, start_engine, wait_until):
    engine = start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    reader = open_reader(state)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
    snap = reader.snapshot()
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: snap.stale, 20, "the death is seen")
    engine.stop()
    assert not list(engine.folder.markers())
    assert snap[Task, "t"].title == "x", "what is held stays readable"
    with pytest.raises(EngineUnavailable):
        open_reader(state)
    reader.close()


# --- ending by itself -------------------------------------------------------------------------------------------------


class Quitting(Entity):
    """Its validator ends the process for one value, and calls that a success."""

    weight: int = 0

    def model_post_init(self, context: object) -> None:
        if self.weight == 13:
            os._exit(0)


def test_an_engine_that_ends_undrained_is_started_again_whatever_its_status(
    state, start_engine, wait_until, client_of_a_raw_lane
):
    engine = start_engine(state, models=[Quitting])
    with connect(state) as client:
        client.create(Quitting(id="q"))
        raw = client_of_a_raw_lane(state)
        raw.write(raw.frame([Update(Quitting.ref("q"), {"weight": 13})]))
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        assert client.update(Quitting.ref("q"), weight=1).version == 2


def test_an_engine_that_others_told_to_end_is_not_running_and_can_be_started_again(state, start_engine, wait_until):
    engine = start_engine(state)
    os.kill(engine.pid, signal.SIGTERM)
    engine.wait()
    with pytest.raises(EngineUnavailable, match="not running"):
        _ = engine.pid
    with pytest.raises(EngineUnavailable, match="not running"):
        engine.register(Doc)
    assert (engine.restarts, engine.failure) == (0, None)
    engine.start()
    with connect(state) as client:
        assert client.create(Task(title="x")).version == 1


# --- draining ---------------------------------------------------------------------------------------------------------


def test_a_call_behind_a_clean_stop_was_never_sent_and_says_so(state, start_engine):
    engine = start_engine(state)
    with connect(state, limits=Limits(connect_timeout_s=0.2)) as client:
        task = client.create(Task(title="x", id="t"))
        engine.stop()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                client.update(task, title="y")
        start_engine(state)
        assert client.update(task, source="z").title == "x"


def test_what_a_drain_had_no_time_for_is_not_applied_and_says_so(state, start_engine, wait_until):
    """A time-out of nothing, and thousands of requests in the lanes when the end is called."""
    limits = Limits(drain_timeout_s=0.0, batch_max=1)
    engine = start_engine(state, limits=limits, durability="power")
    with connect(state, limits=Limits(connect_timeout_s=1)) as client:
        client.create(Task(title="x", id="t"))
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        replies = client.submit_many((Create(Task(title="x", id=f"n{number}")) for number in range(512)), window=256)
        ended = threading.Thread(target=engine.stop)

        def go() -> None:
            wait_until(lambda: client._session.in_flight == 256, 30, "all that may be in flight is")
            ended.start()
            wait_until(lambda: awaits(pid, signal.SIGTERM), 30, "the end is called")
            os.kill(pid, signal.SIGCONT)

        going = threading.Thread(target=go)
        going.start()
        told = []
        try:
            told.extend(replies)
        except EngineUnavailable:
            pass  # the second half was never sent
        going.join()
        ended.join()
    unapplied = [reply for reply in told if isinstance(reply.error, EngineUnavailable)]
    assert any("was not applied" in str(reply.error) for reply in unapplied)
    start_engine(state)
    with connect(state) as client:
        stored = {task.id for task in client.reader.snapshot().entities(Task)}
        applied = {reply.results[0].id for reply in told if reply.applied}
        assert applied <= stored
        for number, reply in enumerate(told):
            if reply.error is not None and "was not applied" in str(reply.error):
                assert f"n{number}" not in stored


def awaits(pid: int, number: signal.Signals) -> bool:
    """Whether a stopped process has this signal before it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return bool(pending >> number - 1 & 1)


def test_a_writer_that_never_ends_does_not_keep_an_engine_from_its_end(state, start_engine, client_of_a_raw_lane):
    """What a lane holds when the end is called is read, and no more."""
    engine = start_engine(state, limits=Limits(drain_timeout_s=1.0))
    raw = client_of_a_raw_lane(state)
    frame = raw.frame([Update(Task.ref("nobody"), {"title": "x"})])
    flood = (
        "import os, sys\nfd, data = int(sys.argv[1]), bytes.fromhex(sys.argv[2]) * 500\nwhile os.write(fd, data): pass"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", flood, str(raw.lane.requests), frame.hex()],
        pass_fds=[raw.lane.requests], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert raw.reply() is not None
        engine.stop()
    finally:
        writer.kill()
        writer.wait()


# --- waiting for an engine that is gone -------------------------------------------------------------------------------


def test_a_wait_for_what_a_stopped_engine_would_have_done_ends(state, start_engine):
    engine = start_engine(state)
    reader = open_reader(state, limits=Limits(connect_timeout_s=0.3, wait_backstop_s=0.05))
    watch = reader.watch(since=0)
    reader.snapshot()
    engine.stop()
    with pytest.raises(EngineUnavailable, match="was stopped"):
        reader.wait_for(100)
    with pytest.raises(EngineUnavailable, match="was stopped"):
        next(watch)
    reader.close()


def test_a_watch_whose_memory_went_with_a_stopped_engine_says_that_it_was_stopped(state, start_engine):
    """Not that something is missing: nothing is, and the next engine has it all."""
    engine = start_engine(state)
    with open_reader(state, limits=Limits(connect_timeout_s=0.5)) as reader:
        with connect(state) as client:
            client.create(Task(title="x", id="t"))
        watch = reader.watch(since=0)
        assert next(watch).id == "t"
        again = reader.watch(since=0)
        reader.view()._listed = ((0, 0), {})  # as of a reader that was never asked for anything
        engine.stop()
        with pytest.raises(EngineUnavailable, match="was stopped"):
            next(again)
        engine.start()
        assert next(again).id == "t"


def test_every_stopped_engine_is_waited_for_as_long(state, start_engine, wait_until):
    """Also when one that was stopped before it had been waited for in vain."""
    engine = start_engine(state)
    limits = Limits(connect_timeout_s=0.5, wait_backstop_s=0.05)
    with open_reader(state, limits=limits) as reader:
        engine.stop()
        first = time.monotonic()
        with pytest.raises(TimeoutError):
            reader.wait_for(100, timeout_s=0.1)
        engine.start()
        assert reader.revision == 0
        engine.stop()
        wait_until(lambda: time.monotonic() - first > limits.connect_timeout_s, 5, "time goes by")
        begun = time.monotonic()
        with pytest.raises(EngineUnavailable, match="was stopped"):
            reader.wait_for(100)
        assert time.monotonic() - begun >= limits.connect_timeout_s


def test_what_was_closed_reads_no_more_and_maps_nothing(engine):
    with connect(engine.state) as client:
        reply = client.submit(Create(Task(id="t", title="x")))
    reader = client.reader
    for look in (
        reader.snapshot,
        partial(reader.get, Task, "t"),
        partial(client.get, Task, "t"),
        partial(reader.at, 1),
        partial(reader.diff, 0, 1),
        lambda: reader.revision,
        lambda: [*reader.history(Task, "t")],
        lambda: [*reader.watch(Task, since=0, timeout_s=0)],
        partial(reader.wait_for, 1),
        partial(reader.wait_until, Task, "t", bool),
    ):
        with pytest.raises(EngineUnavailable, match="this reader is closed") as told:
            look()
        assert told.value.final
    assert reader._view is None
    assert reply.entity.title == "x", "what was answered before is there"
    assert reader._view is None
    engine.stop()
    with open_reader(engine.state, offline=True) as offline:
        held = offline.snapshot()
    with pytest.raises(EngineUnavailable, match="this reader is closed"):
        offline.snapshot()
    assert held[Task, "t"].title == "x"


def test_closing_a_reader_ends_its_waits_in_other_threads(reader):
    told: list[EngineUnavailable] = []

    def wait(forever) -> None:
        try:
            forever()
        except EngineUnavailable as error:
            told.append(error)

    waits = [
        lambda: reader.wait_for(100),
        lambda: reader.wait_until(Task, "nobody", lambda task: task is not None),
        lambda: next(reader.watch()),
    ]
    threads = [threading.Thread(target=wait, args=(forever,), daemon=True) for forever in waits]
    for thread in threads:
        thread.start()
    reader.close()
    for thread in threads:
        thread.join(60)
    assert [error.final for error in told] == [True] * 3


def test_closing_a_reader_ends_a_watch_that_has_much_to_bring_still(client, reader):
    for reply in client.submit_many(Create(Task(title="x")) for _ in range(2 * WATCH_BATCH)):
        reply.check()
    watch = reader.watch(Task, since=0)
    next(watch)
    reader.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        for _ in range(WATCH_BATCH):  # at most what it has taken
            next(watch)
    assert reader._view is None, "and maps nothing again for that"


def test_a_snapshot_that_outlives_its_reader_is_stale_when_its_engine_is_gone_and_not_before(engine, wait_until):
    with open_reader(engine.state) as reader:
        held = reader.snapshot()
    assert not held.stale
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: held.stale, 20, "the death is seen")


def test_a_reader_that_is_forgotten_is_closed_and_says_so(engine, client, descriptors):
    """Not before its last snapshot is."""

    def pidfds() -> int:
        return sum(path.endswith("[pidfd]") for path in descriptors())

    task = client.create(Task(title="x"))
    assert client.get(Task, task.id) == task
    before = pidfds()
    snap = open_reader(engine.state).snapshot()
    assert not snap.stale
    assert pidfds() == before + 1
    with pytest.warns(ResourceWarning, match=r"a reader of .* was never closed"):
        del snap
    assert pidfds() == before
    reader = open_reader(engine.state)
    reader.close()
    del reader
    assert pidfds() == before


SCRIPT_THAT_CLOSES_NOTHING = """
import sys
from solewriter import Task, connect, open_reader
client, reader = connect(sys.argv[1]), open_reader(sys.argv[1])
task = client.create(Task(title="x"))
print(reader.snapshot()[Task, task.id].title, client.get(Task, task.id).title)
"""


def test_a_script_that_closes_nothing_ends_quietly(engine):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT_THAT_CLOSES_NOTHING, engine.state], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "x x\n", "")


def test_a_client_gives_up_when_its_patience_is_over_and_says_what_never_left(state, start_engine):
    engine = start_engine(state)
    with connect(state, limits=Limits(connect_timeout_s=0.5)) as client:
        client.create(Task(title="x", id="t"))
        engine.stop()
        begun = time.monotonic()
        with pytest.raises(EngineUnavailable):
            client.create(Task(title="x"))
        assert time.monotonic() - begun < 30, "a hang is no patience"


def test_an_engine_that_is_given_no_folder_says_so(tmp_path, start_engine):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "state", tmp_path / "link"):
        with pytest.raises(EngineStartFailed, match=f"{path} is no folder, and none can be made there"):
            start_engine(path)


def test_a_client_that_finds_nobody_says_how_to_start_one(state, start_engine):
    """In words, not as errno has it: of a path that was mistyped, of a folder that is another program's, and of one
    whose engine was stopped.
    """
    limits = Limits(connect_timeout_s=0.1)
    another = state.with_name("another")
    another.mkdir()
    (another / "main.py").touch()

    async def awaited(path):
        await aio.connect(path, limits=limits)

    async def opened(path):
        await aio.open_reader(path)

    def told(path, what, to_readers=""):
        hint = f"no engine serves {path}{what}: start one by `with Engine({str(path)!r})` or `solewriter serve`"
        for look, more in (
            (lambda: connect(path, limits=limits), ""),
            (lambda: asyncio.run(awaited(path)), ""),
            (lambda: open_reader(path), to_readers),
            (lambda: asyncio.run(opened(path)), to_readers),
        ):
            with pytest.raises(EngineUnavailable, match=re.escape(hint + more) + "$"):
                look()

    told(Engine(state).state, ", which is not there")  # which its `with` would have started
    told(another, ", and none ever did")
    start_engine(state, durability="memory").stop()
    told(state, "")  # and nothing in it to be read
    engine = start_engine(state, limits=Limits(heap_segment_bytes_first=65_536, heap_segment_bytes_max=65_536))
    with open_reader(state) as never_looked, open_reader(state) as looked_before, connect(state) as client:
        client.create(Task(id="a", title="0"))
        held = looked_before.snapshot()
        client.update(Task.ref("a"), title="1" * 65_536)  # which takes a segment that came since
        engine.stop()
        told(state, "", ", or read what it holds: open_reader(..., offline=True)")
        for reader in (never_looked, looked_before):
            with pytest.raises(EngineUnavailable, match="does not map all of its memory: start it, or open_reader"):
                reader.snapshot()
        assert held[Task, "a"].title == "0"
    told(state / "committed", ", which is no folder")


def test_a_client_of_what_can_be_no_folder_is_told_so_at_once(tmp_path):
    """However long it would wait for an engine: none can make a folder there."""
    patience = Limits(connect_timeout_s=600)
    (tmp_path / "file").touch()
    (tmp_path / "round").symlink_to("round")

    async def awaited(path):
        await aio.connect(path, limits=patience)

    for name, what in {
        "file": "which is no folder",
        "file/deeper": "which is no folder",
        "round": "symbolic links",
        "x" * 300: "too long",
    }.items():
        for look in (connect, lambda path, limits: asyncio.run(awaited(path))):
            with pytest.raises(EngineUnavailable, match=what) as told:
                look(tmp_path / name, limits=patience)
            assert told.value.final


def test_a_client_that_comes_before_its_engine_has_a_folder_waits_for_it(state, start_engine):
    """As where both are started at once."""
    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(connect, state)
        start_engine(state)
        with coming.result() as client:
            assert client.create(Task(title="x")).version == 1


def test_patience_is_counted_from_the_loss_of_the_lane(state, start_engine):
    engine = start_engine(state)
    with connect(state, limits=Limits(connect_timeout_s=1.0)) as client:
        client.create(Task(title="x", id="t"))
        engine.stop()
        for least_s, most_s in ((0.9, 30.0), (0.0, 0.9)):
            begun = time.monotonic()
            with pytest.raises(EngineUnavailable, match="no engine serves"):
                client.create(Task(title="x"))
            assert least_s <= time.monotonic() - begun < most_s, "it has waited long enough before"
        engine.start()
        assert client.update(Task.ref("t"), title="y").version == 2


def test_a_call_that_gives_up_first_takes_nothing_from_the_others(state, start_engine, wait_until):
    """It was the one that connected for all of them."""
    engine = start_engine(state)
    with connect(state, limits=Limits(connect_timeout_s=60)) as client:
        client.create(Task(title="x"))
        engine.stop()
        ended: list[object] = []

        def create(id: str, timeout_s: float) -> None:
            try:
                ended.append(client.create(Task(title="x", id=id), timeout_s=timeout_s))
            except OutcomeUnknown as unknown:
                ended.append(unknown)

        callers = [
            threading.Thread(target=create, args=patience, daemon=True) for patience in [("short", 1.0), ("long", 60.0)]
        ]
        for number, caller in enumerate(callers, 1):
            caller.start()
            wait_until(lambda number=number: client._session.in_flight == number, 20, "it waits for another engine")
        callers[0].join(60)
        assert [type(one) for one in ended] == [OutcomeUnknown]
        engine.start()
        callers[1].join(60)
        assert [type(one) for one in ended] == [OutcomeUnknown, Task]


def test_what_was_not_sent_when_its_client_is_closed_says_so(state, start_engine, wait_until):
    engine = start_engine(state)
    client = connect(state, limits=Limits(connect_timeout_s=60))
    client.create(Task(title="x"))
    told: list[EngineUnavailable] = []

    def create() -> None:
        try:
            client.create(Task(title="x"), timeout_s=60)
        except EngineUnavailable as error:
            told.append(error)

    engine.stop()
    caller = threading.Thread(target=create, daemon=True)
    caller.start()
    wait_until(lambda: client._session.in_flight, 20, "it waits for another engine")
    client.close()
    caller.join(60)
    assert [error.final for error in told] == [True]
    assert "before it was sent" in str(told[0])


def test_the_holder_of_a_lock_is_named_by_itself(state, start_engine):
    engine = start_engine(state)
    with pytest.raises(Locked) as locked:
        start_engine(state)
    assert locked.value.holder == f"pid {engine.pid}"


def test_an_owner_says_how_its_engine_ended_once_for_each(state, start_engine, wait_until, capfd):
    engine = start_engine(state)
    pids = []
    for _ in range(2):
        pids.append(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == len(pids) and engine.pid not in pids, 20, "the next engine")
    said = [line for line in capfd.readouterr().err.splitlines() if "another one" in line]
    assert said == [f"solewriter: the engine (pid {pid}) was killed by SIGKILL: another one is started" for pid in pids]


@pytest.mark.parametrize(
    ("status", "said"),
    [(5, "ended with status 5"), (-11, "was killed by SIGSEGV"), (-40, "was killed by signal 40")],
)
def test_how_a_process_ended_is_said_in_words(status, said):
    assert ending(status) == said
