"""Owners and supervisors of engines: what they do to a start, to their own process, to each other, and what is left."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from solewriter import (
    Applied,
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Entity,
    Limits,
    Locked,
    NotFound,
    Task,
    connect,
    open_reader,
)
from solewriter.engine_proc import process as processes
from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.owner import launch, supervising
from solewriter.engine_proc.owner.backoff import Backoff
from solewriter.engine_proc.owner.launch import Child
from solewriter.engine_proc.owner.orders import Orders
from solewriter.shared.config import SECONDS_MAX
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder
from solewriter.shared.system.forks import forks_held_off


class Doc(Entity):
    size: int = 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads: the child only waits
def test_an_owner_that_forks_at_any_step_of_a_start_waits_for_no_child_of_that(state, at_step, elsewhere):
    """A child that comes in the middle would hold whatever is open then, and whoever waits for an end of file would
    wait for the child.
    """
    orders = Orders(str(state), "process", Limits(), 0, [], models=b"")
    steps, waited, reached = 0, 0, [""]

    def fork() -> None:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            signal.pause()
        children.append(child)

    def fork_elsewhere() -> None:
        nonlocal waited
        forking.append(elsewhere(fork))
        if forks_held_off._is_owned():
            waited += 1
            assert not children, f"a fork did not wait at {reached}"
        else:
            forking[0].join()

    while reached:
        steps += 1
        children, forking = [], []
        with at_step(steps, fork_elsewhere, launch, subprocess) as reached:
            starting = Child()
        for one in forking:
            one.join()
        try:
            starting.signal(signal.SIGKILL)
            with pytest.raises(EngineStartFailed, match="ended with status -9"):
                starting.begin(lambda: orders)
            assert [os.waitpid(child, os.WNOHANG)[0] for child in children] == [0] * len(forking), (
                f"forked at {reached}"
            )
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    assert waited > 10


def test_an_owner_that_dies_while_its_engine_starts_is_noticed_and_the_engine_drains(state, wait_until):
    """It stops itself right before it would say that it serves."""
    code = f"from solewriter import Engine; Engine({str(state)!r}, durability='process').start()"
    env = {**os.environ, VARIABLE: "recover.done:stop"}
    with subprocess.Popen([sys.executable, "-P", "-c", code], env=env) as owner:
        try:
            pid = wait_until(lambda: stopped(state / "lock"), 20, "an engine that is about to serve")
        finally:
            owner.kill()
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 20, "the engine's end")
    assert [*state.glob("memory-*.json")] == [], "it ended and left its memory"
    assert not (state / "engine.json").exists()


def stopped(lock: Path) -> int:
    """The process that holds this lock, once it is stopped; 0 before."""
    pid = int(lock.read_text().removeprefix("pid ") or 0) if lock.exists() else 0
    return pid if pid and Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T" else 0


FULL_STDERR = """
unread, full = os.pipe()
os.set_blocking(full, False)
try:
    while True:
        os.write(full, bytes(4096))
except BlockingIOError:
    os.set_blocking(full, True)
os.dup2(full, 2)
"""
"""A pipe that nobody reads."""
UNSENDABLE = """
from solewriter import EngineStartFailed, Entity
class Broken:
    def __reduce__(self):
        return int, ("no number",)
class Doc(Entity):
    pass
"""
"""`Doc.broken = Broken()` makes a class of which no engine hears."""


def told_by_owner(state: Path, code: str, *options: str) -> str:
    """What a script prints that owns an engine, `sys.argv[1]` being its state folder; it must end well."""
    script = f"import os, signal, sys\nfrom solewriter import Engine, Limits, Task, connect\n{textwrap.dedent(code)}"
    ended = subprocess.run(
        [sys.executable, "-P", *options, "-c", script, str(state)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_owner_that_blocks_signals_has_an_engine_that_hears_them(state):
    """A mask passes through exec, as of programs whose threads leave signals to one that waits for them: SIGTERM could
    not end the engine, nor its own alarm a validator that loops.
    """
    code = """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with Engine(sys.argv[1], durability="process", limits=Limits(drain_timeout_s=0.5)) as engine:
            pid = engine.pid
        print("ended", not os.path.exists(f"/proc/{pid}"))
    """
    assert told_by_owner(state, code) == "ended True\n"


def test_an_owner_that_becomes_another_program_is_followed_by_nobodys_engine(state):
    """As one that starts itself anew when its code changed: its process goes on, and supervises nothing any more, as do
    the children that it had forked.
    """
    code = """
        engine = Engine(sys.argv[1], durability="process").start()
        child = os.fork()
        signal.alarm(20)
        if child == 0:
            signal.pause()
        following = (
            "import os, sys; from solewriter import Engine; print(os.waitpid(int(sys.argv[2]), 0)[1])\\n"
            "with Engine(sys.argv[1], durability='process') as engine: print(engine.restarts)\\n"
            "os.kill(int(sys.argv[3]), 9)"
        )
        os.execv(sys.executable, [sys.executable, "-P", "-c", following, sys.argv[1], str(engine.pid), str(child)])
    """
    assert told_by_owner(state, code, "-W", "ignore") == "0\n0\n"


def test_an_owner_that_ignores_its_children_has_an_engine_that_waits_for_its_own(state):
    """What is ignored passes through exec, too: the engine would take every end of a maker of checkpoints for a good
    one.
    """
    code = """
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with Engine(sys.argv[1], durability="process") as engine:
            lines = open(f"/proc/{engine.pid}/status").read().splitlines()
            ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
            print([bool(ignored >> number - 1 & 1) for number in (signal.SIGCHLD, signal.SIGTERM)])
    """
    assert told_by_owner(state, code) == "[False, False]\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_an_owner_without_standard_descriptors_lends_their_numbers_to_nothing(state, closed):
    """As of a daemon that closed them: what a library prints into number 2 must not be a lock, a journal or the line to
    the owner, which would wait for the rest of it for ever.
    """
    code = f"""
        from solewriter import Entity
        owner, told = os.getpid(), os.dup2(1, 60)
        for number in {closed}:
            os.close(number)
        class Loud(Entity):
            def model_post_init(self, context: object) -> None:
                for number in {closed[-1:]} if os.getpid() != owner else ():
                    os.write(number, b"printed")
        class More(Entity):
            size: int = 0
        with Engine(sys.argv[1], durability="process", models=[Loud]) as engine, connect(sys.argv[1]) as client:
            client.create(Loud())
            engine.register(More)
            places = [os.readlink(f"/proc/{{engine.pid}}/fd/{{number}}") for number in {closed}]
        os.write(told, repr(places).encode())
    """
    assert told_by_owner(state, code) == repr(["/dev/null"] * len(closed))


@pytest.mark.parametrize("option", ["-I", "-E"])
def test_an_owner_that_does_not_listen_to_the_environment_has_an_engine_that_does_not(
    state, tmp_path, monkeypatch, option
):
    """Nor do the processes that this one starts: in PYTHONPATH, or in the current folder, is what must not run."""
    for name in ("logging", "msgspec", "agents", "shared"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = """
        limits = Limits(checkpoint_after_bytes=1)
        with Engine(sys.argv[1], durability="process", limits=limits) as engine, connect(sys.argv[1]) as client:
            client.create(Task(title="x"))
            while not any(name.startswith("checkpoint-0") for name in os.listdir(sys.argv[1])):
                os.sched_yield()  # to whoever makes it
        print("made")
    """
    assert told_by_owner(state, code, option) == "made\n"


def test_an_owner_whose_stderr_nobody_reads_is_told_why_a_start_failed(state):
    code = """
        Doc.broken = Broken()
        reads, writes = os.pipe()
        os.dup2(writes, 2)
        os.close(reads)
        try:
            Engine(sys.argv[1], models=[Doc]).start()
        except EngineStartFailed as error:
            print(error)
    """
    assert "ValueError: invalid literal for int()" in told_by_owner(state, UNSENDABLE + textwrap.dedent(code))


def test_an_owner_may_have_patience_for_years(state, start_engine, wait_until):
    """More than the kernel waits at once, which is 24 days."""
    years = dict.fromkeys(("start_timeout_s", "drain_timeout_s", "heartbeat_s", "hang_timeout_s"), SECONDS_MAX)
    engine = start_engine(state, limits=Limits(**years, request_timeout_s=math.inf))
    engine.register(Doc)
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1 or engine.failure, 20, "a restart")
    engine.stop()
    assert engine.failure is None


def test_a_start_without_descriptors_leaves_none_open_and_no_process(state):
    """Wherever they run out: a supervisor that tries again would leave some more each time."""
    code = """
        import resource
        from solewriter.engine_proc.owner.pickled import pickled
        pickled([])
        Engine(sys.argv[1]).start().stop()
        before, (_, hard) = os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_NOFILE)
        spare, started = 0, False
        while not started:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + spare, hard))
            try:
                Engine(sys.argv[1]).start().stop()
                started = True
            except OSError:
                spare += 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert os.listdir("/proc/self/fd") == before, spare
        print(spare > 4, open(f"/proc/self/task/{os.getpid()}/children").read().split())
    """
    assert told_by_owner(state, code) == "True []\n"


def test_a_start_with_a_thousand_descriptors_open(state, start_engine):
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1_100)]
    try:
        engine = start_engine(state)
        with connect(state) as client, open_reader(state) as reader:
            client.create(Task(title="x", id="t"))
            assert not reader.snapshot().stale
    finally:
        for fd in held:
            os.close(fd)
    engine.stop()


def test_an_owners_path_may_have_entries_that_are_no_text(state, start_engine, tmp_path, monkeypatch):
    """Of those that Python ignores, a Path say, nothing is made; from the others models are imported."""
    folder = os.path.join(tmp_path, os.fsdecode(b"m\xff"))
    os.mkdir(folder)
    Path(folder, "models_in_no_text.py").write_text("from solewriter import Entity\nclass Note(Entity): text: str\n")
    monkeypatch.setattr(sys, "path", [tmp_path, b"/", *sys.path, folder])
    note = importlib.import_module("models_in_no_text").Note
    start_engine(state, models=[note])
    with connect(state) as client:
        assert client.create(note(text="x")).version == 1


def test_an_owner_may_go_to_another_folder_before_the_next_engine_imports_its_models(state, tmp_path):
    """What it found by a path that is relative, the first engine found, too."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "noted.py").write_text("from solewriter import Entity\nclass Note(Entity): text: str\n")
    code = f"""
        os.chdir({str(tmp_path)!r})
        sys.path.insert(0, "src")
        from noted import Note
        with Engine(sys.argv[1], durability="process", models=[Note], limits=Limits(restarts_max=1)) as engine:
            os.chdir("/")
            os.kill(engine.pid, signal.SIGKILL)
            with connect(sys.argv[1]) as client:
                print(client.create(Note(text="x")).version)
    """
    assert told_by_owner(state, code) == "1\n"


def test_an_owner_whose_own_folder_is_deleted_starts_the_next_engine(state, tmp_path):
    """It is on the path of a notebook, and of what is run by `-c`."""
    code = f"""
        sys.path.insert(0, "")
        os.mkdir({str(tmp_path / "gone")!r})
        os.chdir({str(tmp_path / "gone")!r})
        with Engine(sys.argv[1], durability="process", limits=Limits(restarts_max=1)) as engine:
            os.rmdir({str(tmp_path / "gone")!r})
            os.kill(engine.pid, signal.SIGKILL)
            with connect(sys.argv[1]) as client:
                print(client.create(Task(title="x")).version)
        with Engine(sys.argv[1]) as engine, connect(sys.argv[1]) as client:
            print(client.create(Task(title="x")).version)
    """
    assert told_by_owner(state, code) == "1\n1\n"


def test_a_failed_start_leaves_no_descriptor(state, start_engine, wait_until, descriptors):
    engine = start_engine(state)
    orders = Orders(
        state=str(state), durability="process", limits=Limits(), owner_pid=os.getpid(), sys_path=[], models=b""
    )
    before = descriptors()
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            Child().begin(lambda: orders)
    # the supervisor of the engine that serves opens something now and then, also while it was looked before
    wait_until(lambda: not Counter(descriptors()) - Counter(before), 30, "all that they opened is closed")
    engine.stop()


def test_a_reader_that_saw_nothing_of_the_last_engine_does_not_go_back_to_the_one_before(state, start_engine):
    """What that one left is older than what somebody was told meanwhile."""
    engine = start_engine(state)
    with connect(state) as client, open_reader(state, limits=Limits(connect_timeout_s=0.2)) as reader:
        task = client.create(Task(title="before"))
        assert reader.get(Task, task.id) == task
        os.kill(engine.pid, signal.SIGKILL)
        after = client.update(task, title="after")
        engine.stop()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                reader.get(Task, task.id)
        start_engine(state)
        assert reader.get(Task, task.id) == after


def test_a_supervisor_that_fails_says_so_to_whoever_waits(state, start_engine, monkeypatch):
    engine = start_engine(state)

    def unforeseen(*_: object) -> float:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(Backoff, "next_s", unforeseen)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="a bug"):
        engine.wait()
    lengths = set()
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="a bug") as told:
            engine.pid  # noqa: B018
        lengths.add(len(told.traceback))
    assert len(lengths) == 1, "it grows each time"


def test_a_stop_while_the_next_process_waits_for_its_time_leaves_none(state, start_engine, wait_until):
    """Its interpreter starts at once, and is ready when the back-off is over; it has touched nothing by then."""
    engine = start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    dead = engine.pid
    os.kill(dead, signal.SIGKILL)

    def following() -> list[psutil.Process]:
        found = [child for child in psutil.Process().children() if child.pid != dead]
        return [child for child in found if "solewriter.engine_proc" in child.cmdline()]

    (waiting,) = wait_until(following, 20, "the next process is started")
    engine.stop()
    assert not waiting.is_running()
    assert engine.restarts == 0


def test_a_stop_while_the_first_process_starts_leaves_none(state, start_engine, seeded, wait_until):
    """Whoever starts it is told; `stop` has nothing to stop when it returns."""

    def for_ever() -> None:
        signal.pause()

    engine = Engine(state, models=[seeded(for_ever)])
    told: list[BaseException] = []

    def start() -> None:
        try:
            engine.start()
        except BaseException as error:
            told.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    pid = wait_until(lambda: holder(state / "lock"), 20, "a process that recovers")
    engine.stop()
    assert not os.path.exists(f"/proc/{pid}")
    starting.join(60)
    assert [type(error) for error in told] == [EngineUnavailable]
    assert "stopped while it started" in str(told[0])


def test_a_stop_while_the_next_process_recovers_does_not_wait_for_it(
    state, start_engine, seeded, wait_until, tmp_path, monkeypatch, capfd
):
    """However long that takes: what it does is done again by the next one."""
    monkeypatch.setattr(supervising, "STOP_MARGIN_S", 30)  # then it fails
    begun = tmp_path / "begun"

    def long_the_second_time() -> None:
        if begun.exists():
            signal.pause()
        begun.touch()

    engine = start_engine(state, models=[seeded(long_the_second_time)], limits=Limits(drain_timeout_s=1))
    dead = engine.pid
    os.kill(dead, signal.SIGKILL)
    pid = wait_until(lambda: holder(state / "lock") not in (0, dead) and holder(state / "lock"), 20, "the next one")
    engine.stop()
    assert not os.path.exists(f"/proc/{pid}")
    assert not list(engine.folder.markers()), "memory stayed"
    assert "status" not in capfd.readouterr().err, "nothing went wrong"


def holder(lock: Path) -> int:
    """Who wrote its number into this lock; 0 if nobody did."""
    return int(lock.read_text().removeprefix("pid ") or 0) if lock.exists() else 0


def test_a_start_that_takes_too_long_leaves_no_memory_but_what_others_left(state, start_engine, tmp_path, monkeypatch):
    """It is as much as the whole state takes, and nobody would give it back before the next start. What the last engine
    left says whom it served when it died.
    """
    memory = tmp_path / "memory"
    memory.mkdir()
    engine = start_engine(state, limits=Limits(memory_dir=str(memory), restart_backoff_s=60, restart_backoff_max_s=60))
    (dead,) = engine.folder.markers()
    os.kill(engine.pid, signal.SIGKILL)
    monkeypatch.setenv(VARIABLE, "recover.published:stop")
    with pytest.raises(EngineStartFailed, match="start_timeout_s"):
        Engine(state, durability="process", limits=Limits(memory_dir=str(memory), start_timeout_s=1.5)).start()
    assert engine.folder.markers() == [dead]
    assert {name.partition("-root")[0] for name in os.listdir(memory) if name.endswith("-root")} == {dead.prefix}


def test_an_engine_that_is_given_up_tells_why_its_last_start_failed(state, start_engine, lost_by_the_disk, tmp_path):
    """As of a disk that has lost a file which a start needs; with it the next one goes on."""
    limits = Limits(restarts_max=2, restart_backoff_s=0.005)
    engine = start_engine(state, limits=limits)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
    os.kill(engine.pid, signal.SIGSTOP)
    (path,) = state.glob("journal-*.log")
    os.link(path, tmp_path / "kept")
    lost_by_the_disk(path)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match=rf"given up.*last start: .*Input/output error: '{path}'"):
        engine.wait()
    engine.stop()
    os.replace(tmp_path / "kept", path)
    engine.start()
    with connect(state) as client:
        assert client.update(Task.ref("t"), title="y").version == 2


@pytest.mark.parametrize("stopped", [True, False])
def test_an_engine_whose_next_start_is_refused_leaves_no_memory(state, start_engine, tmp_path, stopped):
    """It is not started again, so nobody else would give back what the dead one left."""
    memory = tmp_path / "memory"
    memory.mkdir()
    engine = start_engine(state, limits=Limits(memory_dir=str(memory), restart_backoff_s=0.005))
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
    os.kill(engine.pid, signal.SIGSTOP)
    (path,) = state.glob("journal-*.log")
    sound = path.read_bytes()
    path.write_bytes(sound[:100])
    with open_reader(state) as reader:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="JournalCorrupt"):
            engine.wait()
        assert reader.snapshot()[Task, "t"].title == "x"
    if stopped:
        engine.stop()
        assert os.listdir(memory) == []
    path.write_bytes(sound)
    engine.start()
    assert len([*memory.glob("*-root")]) == 1
    with connect(state) as client:
        assert client.update(Task.ref("t"), title="y").version == 2
    engine.stop()
    assert os.listdir(memory) == []


def test_a_lock_that_is_held_for_a_moment_ends_no_supervision(state, start_engine, wait_until, capfd):
    """As by somebody else's start that fails, or by a repair: nobody would serve when it is over."""
    engine = start_engine(state, limits=Limits(restart_backoff_s=0.2))
    os.kill(engine.pid, signal.SIGKILL)
    lock = wait_until(lambda: lock_of(engine.folder), 20, "it is dead, and the next one waits for its time")
    try:
        wait_until(lambda: "is owned by pid" in capfd.readouterr().err or engine.failure, 20, "a start meets the lock")
    finally:
        lock.release()
    assert engine.failure is None
    wait_until(lambda: engine.restarts == 1, 20, "it serves again")
    with connect(state) as client:
        client.create(Task(title="x"))


def lock_of(folder: StateFolder) -> Lock | None:
    try:
        return Lock(folder)
    except Locked:
        return None


def test_a_folder_that_another_engine_serves_meanwhile_is_left_to_it(state, start_engine, wait_until):
    first = start_engine(state, limits=Limits(restart_backoff_s=0.5))
    os.kill(first.pid, signal.SIGKILL)
    following = wait_until(lambda: first._starting, 20, "the next one is on its way")
    os.kill(following.pid, signal.SIGSTOP)
    try:
        second = start_engine(state)
    finally:
        os.kill(following.pid, signal.SIGCONT)
    with pytest.raises(Locked, match=f"pid {second.pid}"):
        first.wait()
    first.stop()
    with connect(state) as client:
        client.create(Task(title="x"))
    assert second.restarts == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_file_system_without_locks_is_no_other_engine(tmp_path):
    code = """
        import sys
        from solewriter.engine_proc.lock import Lock
        from solewriter.shared.folder import StateFolder
        try:
            Lock(StateFolder(sys.argv[1]))
        except Exception as error:
            print(type(error).__name__, error)
    """
    inject = ["-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    command = ["strace", "-f", "-o", os.devnull, *inject, sys.executable, "-P", "-c", textwrap.dedent(code), tmp_path]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert told == f"OSError [Errno 37] No locks available: '{tmp_path}/lock'\n"


def test_an_owner_that_is_interrupted_while_it_waits_sees_its_engine_end(state, start_engine, wait_until):
    """Ctrl-C is how most programs that wait for their engine are ended: behind `stop` the folder is free."""
    engine = start_engine(state)
    pid, owner = engine.pid, threading.get_ident()

    def waits() -> bool:
        frame = sys._current_frames()[owner]
        while frame is not None and frame.f_code is not Engine.wait.__code__:
            frame = frame.f_back
        return frame is not None

    def interrupt() -> None:
        wait_until(waits, 20, "the owner waits")
        os.kill(pid, signal.SIGSTOP)  # so that it cannot end before `stop` returns too early
        signal.pthread_kill(owner, signal.SIGINT)
        wait_until(engine._stopping.is_set, 20, "the owner stops it")
        os.kill(pid, signal.SIGCONT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        engine.wait()
    engine.stop()
    there = engine.folder.engine_json.exists()
    interrupting.join()
    assert not there
    start_engine(state)


def test_an_engine_that_is_started_anew_has_one_supervisor(state, start_engine, wait_until, monkeypatch):
    """Also where the one before is still about to say why it gave up."""
    engine = start_engine(state, limits=Limits(restart_backoff_s=0.005))

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            if "could not start" in text:
                serves.wait(20)
            return len(text)

    serves = threading.Event()

    def supervisors() -> int:
        return sum(thread.name == "solewriter-supervisor" for thread in threading.enumerate())

    os.kill(engine.pid, signal.SIGSTOP)
    (path,) = state.glob("journal-*.log")
    sound = path.read_bytes()
    path.write_bytes(sound[:100])
    monkeypatch.setattr(sys, "stderr", Slow())
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.failure, 20, "the next start is refused")
    path.write_bytes(sound)
    engine.start()
    serves.set()
    wait_until(lambda: supervisors() == 1, 5, "the first one to end")
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1 and engine.pid != pid, 20, "the next engine")
    assert engine.failure is None


def test_an_engine_that_ends_of_a_write_says_so_and_the_next_one_goes_on(
    state, start_engine, wait_until, monkeypatch, capfd
):
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, "commit.write:raise:hit=4")
        engine = start_engine(state)
    with connect(state) as client:
        versions = [client.put(Task(title=f"{number}", id="t")).version for number in range(6)]
    assert versions == [1, 2, 3, 4, 5, 6]
    wait_until(lambda: engine.restarts == 1, 20, "its owner counts it, a moment behind the reply")
    said = capfd.readouterr().err
    assert "a failed write is never retried: [Errno 5] Input/output error" in said
    assert f"The next start goes on with what is on the disk of {state}" in said


def test_an_engine_that_was_given_up_serves_when_it_is_started_again(state, start_engine):
    engine = start_engine(state, limits=Limits(restarts_max=0))
    os.kill(engine.pid, signal.SIGKILL)
    told = "the engine was killed by SIGKILL, and was started again 0 times in 300 s already: given up"
    with pytest.raises(EngineUnavailable, match=told):
        engine.wait()
    engine.stop()
    engine.start()
    assert os.path.exists(f"/proc/{engine.pid}")
    with connect(state) as client:
        client.create(Task(title="x"))
    engine.stop()
    engine.wait()


def test_an_engine_that_nobody_can_supervise_does_not_serve(state):
    """There is no thread to be had: the process that serves already must not stay, or the folder is locked."""
    code = """
        import threading
        usual = threading.stack_size(1 << 48)
        engine = Engine(sys.argv[1], durability="process")
        try:
            engine.start()
        except RuntimeError as error:
            print(error)
        threading.stack_size(usual)
        with engine, connect(engine.state) as client:
            print(client.create(Task(title="x")).version)
    """
    assert told_by_owner(state, code) == "can't start new thread\n1\n"


def test_a_start_interrupted_when_the_engine_serves_already_leaves_none(state, start_engine, at_step):
    """Nobody would know of it, and it would keep the folder."""
    engine = Engine(state, durability="process")
    steps, names = 0, list[str]()
    while not any(name.startswith("_become") for name in names):
        steps += 1
        with at_step(steps, interrupt, processes, supervising) as names, pytest.raises(KeyboardInterrupt):
            engine.start()
    start_engine(state).stop()


def interrupt() -> None:
    raise KeyboardInterrupt


FORKING = """
def forked_while_none_serves(engine):
    dead = engine.pid
    os.kill(dead, signal.SIGKILL)
    while os.path.exists(f"/proc/{dead}"):
        os.sched_yield()
    if (child := os.fork()) == 0:
        sys.exit(7)
    return child
"""


def test_a_forked_child_stops_nothing(state):
    """It leaves a `with` by an exit of its own; the engine is its parent's, also while none serves."""
    code = FORKING + textwrap.dedent("""
        with Engine(sys.argv[1], limits=Limits(restart_backoff_s=5)) as engine:
            before = engine.folder.markers()
            child = forked_while_none_serves(engine)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.folder.markers() == before)
            with connect(engine.state) as client:
                client.create(Task(title="x"))
    """)
    assert told_by_owner(state, code) == "7 True\n"


def test_an_owner_whose_stderr_nobody_reads_has_its_engine_supervised_and_may_fork(state):
    """The thread that tells it of a death waited for a reader, and a forked child at its end for that thread."""
    code = FORKING + textwrap.dedent("""
        with Engine(sys.argv[1], durability="memory") as engine:
            child = forked_while_none_serves(engine)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            with connect(engine.state) as client:
                client.create(Task(title="x"))
            print(engine.restarts)
    """)
    assert told_by_owner(state, FULL_STDERR + code, "-W", "ignore") == "7\n1\n"


def test_an_engine_whose_stderr_nobody_reads_serves_on_and_fails_to_start_in_time(state):
    """What it had to say of an agent, or of itself, waited for a reader, and all agents with it."""
    code = """
        import select
        with Engine(sys.argv[1], durability="memory") as engine, connect(sys.argv[1]) as client:
            with connect(sys.argv[1]) as broken:
                lane = broken._exchange._lane
                os.write(lane.requests, bytes([255] * 8))
                select.select([lane.replies], [], [])
            print(client.create(Task(title="x"), timeout_s=10).version)
        Doc.broken = Broken()
        try:
            Engine(sys.argv[1], durability="memory", models=[Doc]).start()
        except EngineStartFailed:
            print("failed")
    """
    assert told_by_owner(state, FULL_STDERR + UNSENDABLE + textwrap.dedent(code)) == "1\nfailed\n"


def test_a_forked_child_registers_nothing(state):
    """Its owner would not know of it, and the next engine would be without."""
    code = """
        from solewriter import EngineUnavailable
        with Engine(sys.argv[1], durability="process") as engine:
            child = os.fork()
            if child == 0:
                try:
                    engine.register(Task)
                except EngineUnavailable as error:
                    os.write(1, f"{error}\\n".encode())
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert re.fullmatch(
        "the engine of .* belongs to the parent process: register there\n7\n", told_by_owner(state, code)
    )


def test_a_child_that_is_forked_while_another_thread_scans_for_the_first_time_can_scan(state):
    """A module that was just being imported is never there in the child, which waited for it without end."""
    code = """
        import threading
        from solewriter import open_reader
        with Engine(sys.argv[1], durability="memory"), open_reader(sys.argv[1]) as reader:
            scanning = threading.Thread(target=lambda: reader.snapshot().count(Task))
            scanning.start()
            while "numpy" not in sys.modules:
                os.sched_yield()
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                os._exit(reader.snapshot().count(Task))
            scanning.join()
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert told_by_owner(state, code, "-W", "ignore") == "0\n"


def test_an_engine_that_is_killed_at_its_start_says_how_it_ended(state, start_engine, monkeypatch):
    monkeypatch.setenv(VARIABLE, "recover.published:kill")
    with pytest.raises(EngineStartFailed, match="status -9"):
        start_engine(state)
    monkeypatch.undo()
    engine = start_engine(state)
    with connect(state) as client:
        reply = client.submit(Create(Task(title="x", id="t")))
        assert isinstance(client.outcome(reply.request_id), Applied)
        with pytest.raises(NotFound):
            client.update(Task.ref("none"), title="y")
    assert engine.restarts == 0
