"""The engine's life: models registered while it runs, hanging, draining, owners that misbehave."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import cloudpickle
import msgspec
import psutil
import pytest
from pydantic import computed_field, model_validator

from solewriter import (
    Applied,
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Entity,
    InvalidMutation,
    Lifecycle,
    Limits,
    Locked,
    NotFound,
    OutcomeUnknown,
    Part,
    Project,
    Put,
    SchemaMismatch,
    Task,
    UnknownKind,
    Update,
    aio,
    connect,
    open_reader,
)
from solewriter.engine_proc import process as processes
from solewriter.engine_proc.lock import Lock
from solewriter.engine_proc.owner import launch, supervising
from solewriter.engine_proc.owner.backoff import Backoff
from solewriter.engine_proc.owner.launch import Child
from solewriter.engine_proc.owner.notices import ending
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import pickled
from solewriter.shared.config import SECONDS_MAX, WATCH_BATCH
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder
from solewriter.shared.forks import held_off


class Rollout(Entity, columns=("seed",)):
    seed: int
    score: float | None = None


# --- models registered while it runs ----------------------------------------------------------------------------------


def test_a_model_is_known_from_the_moment_that_register_returns_and_after_a_restart(engine, client, wait_until):
    with pytest.raises(UnknownKind):
        client.create(Rollout(seed=1, id="r"))
    engine.register(Rollout)
    assert client.create(Rollout(seed=1, id="r")).version == 1
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "a restart")
    assert client.update(Rollout.ref("r"), score=0.5).score == 0.5
    with open_reader(engine.state) as reader:
        assert reader.get("Rollout", "r")["seed"] == 1


def loaded(monkeypatch, path: Path, text: str):
    """A module of a file that no other process would find by its name."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


PARTS = """
import enum, solewriter
class Hue(enum.StrEnum):
    RED = "red"
class Spot(solewriter.Part):
    hue: Hue = Hue.RED
"""
WHOLES = """
import solewriter, unfindable_parts
class Canvas(solewriter.Entity):
    spots: tuple[unfindable_parts.Spot, ...] = ()
"""


def test_a_models_parts_may_be_of_another_module_that_no_engine_finds(engine, client, monkeypatch, tmp_path):
    parts = loaded(monkeypatch, tmp_path / "unfindable_parts.py", PARTS)
    canvas = loaded(monkeypatch, tmp_path / "unfindable_wholes.py", WHOLES).Canvas
    engine.register(canvas)
    assert client.create(canvas(spots=(parts.Spot(),))).spots[0].hue is parts.Hue.RED


def test_a_snapshot_from_before_does_not_see_what_came_with_the_model(engine, client, reader):
    client.create(Task(title="x", id="t"))
    with reader.snapshot() as before:
        engine.register(Rollout)
        client.create(Rollout(seed=1, id="r"))
        assert before.get(Rollout, "r") is None
        assert before.counts == {"Task": 1, "Project": 0}
    with reader.snapshot() as after:
        assert after.counts == {"Task": 1, "Project": 0, "Rollout": 1}


def test_a_class_that_is_defined_again_takes_the_place_of_the_one_before(engine, client):
    """As a notebook does it: other rules, another field, other columns; what is stored stays."""
    engine.register(Rollout)
    client.create(Rollout(seed=1, id="r", score=2.0))

    class Again(Entity, kind="Rollout", columns=("score", "note")):
        seed: int
        score: float | None = None
        note: str = "none"

    before = client.reader.snapshot()
    engine.register(Again)
    with connect(engine.state) as other:
        assert other.get(Again, "r") == Again(id="r", version=1, seed=1, score=2.0, note="none")
        assert other.update(Again.ref("r"), note="seen").version == 2
        assert other.create(Again(seed=2, id="s", note="new")).note == "new"
        assert [one.id for one in other.reader.snapshot().entities(Again)] == ["r", "s"]
    assert before.get(Rollout, "r").version == 1, "an older snapshot goes on"
    engine.stop()


def test_a_class_that_is_registered_again_as_it_was_brings_nothing_new(engine, client):
    """A notebook cell that is run fifty times: no segment, no journal entry."""
    engine.register(Rollout)
    run = client.create(Rollout(seed=1))
    before = client.reader.snapshot().pin.root
    for _ in range(50):
        engine.register(Rollout)
    after = client.reader.snapshot().pin.root
    assert (after.catalog, after.entry) == (before.catalog, before.entry)
    assert client.update(run, score=1.0).version == 2


def test_a_class_that_does_not_fit_what_is_stored_is_refused_and_nothing_has_changed(engine, client):
    engine.register(Rollout)
    client.create(Rollout(seed=1, id="r"))

    class Other(Entity, kind="Rollout", columns=("seed",)):
        seed: str

    with pytest.raises(SchemaMismatch, match="another shape"):
        engine.register(Other)
    assert client.update(Rollout.ref("r"), score=1.0).version == 2


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (Rollout, r"^models is a list of classes, not <class '.*Rollout'>: models=\[Rollout\]$"),
        ("shop.models:MODELS", "^models is a list of classes, not 'shop.models:MODELS'$"),
        (["Rollout"], "^'Rollout' is not a subclass of solewriter.Entity$"),
        ([[Rollout]], r"^\[<class '.*Rollout'>\] is not a subclass of solewriter.Entity$"),
        ([Rollout(seed=1)], "is not a subclass of solewriter.Entity$"),
    ],
)
def test_what_is_no_list_of_models_is_refused_in_words(state, models, told):
    with pytest.raises(TypeError, match=told):
        Engine(state, models=models)


def test_a_model_that_cannot_be_stored_is_refused_before_anything_is_sent(engine):
    for wrong in (int, "Rollout", [Rollout]):
        with pytest.raises(TypeError, match=r"is not a subclass of solewriter\.Entity"):
            engine.register(wrong)
    with pytest.raises(TypeError, match="list"):

        class Wrong(Entity):
            items: list[int]

        engine.register(Wrong)


def test_a_class_under_the_name_of_a_kind_that_comes_along_is_refused(engine, client, state):
    """Every process knows these, so nobody could store a task any more."""

    class Mine(Entity, kind="Task"):
        size: int = 0

    class Larger(Project, kind="Project"):
        size: int = 0

    for model in (Mine, Larger):
        with pytest.raises(TypeError, match=f"{model.__name__}: .*{model.kind_name} is taken"):
            engine.register(model)
        with pytest.raises(TypeError, match="is taken"):
            Engine(state / "another", models=[model])
    engine.register(Task, Project)
    assert client.create(Task(title="t")).version == 1


def test_a_kind_whose_name_no_record_has_room_for_is_refused_before_anything_is_sent(engine, client):
    class Long(Entity, kind="k" * 255):
        size: int = 0

    class TooLong(Entity, kind="k" * 256):
        size: int = 0

    engine.register(Long)
    assert client.create(Long()).version == 1
    with pytest.raises(TypeError, match="at most 255 characters"):
        engine.register(TooLong)


def test_a_model_that_the_engine_cannot_load_is_refused_and_not_kept(engine, client, tmp_path, monkeypatch):
    module = tmp_path / "coming_and_going.py"
    module.write_text("from solewriter import Entity\nclass Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import coming_and_going

    with pytest.raises(SchemaMismatch, match="coming_and_going"):
        engine.register(coming_and_going.Gone)  # the engine's path was taken when it started
    engine.register(Rollout)
    assert client.create(Rollout(seed=1)).version == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("assert not True", "AssertionError"),
        ("{}['size']", "KeyError: 'size'"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "Mute"),
    ],
)
def test_what_a_module_raised_in_the_engine_is_told_by_its_name_and_its_words(
    state, start_engine, tmp_path, monkeypatch, line, told
):
    """An assertion has no words, of a KeyError they are a name alone, and one of a user's own may not come to any."""
    code = f"import os\nfrom solewriter import Entity\nif os.getpid() != {os.getpid()}:\n    {line}\n"
    (tmp_path / "failing.py").write_text(f"{code}class Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = start_engine(state)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    import failing

    with pytest.raises(SchemaMismatch, match=f"does not take Gone: {told}$"):
        engine.register(failing.Gone)
    engine.stop()
    with pytest.raises(EngineStartFailed, match=f"could not start: {told}$"):
        start_engine(state, models=[failing.Gone])


def test_a_module_that_ends_the_process_is_refused_and_the_engine_goes_on(state, start_engine, tmp_path, monkeypatch):
    code = (
        f"import os, sys\nfrom solewriter import Entity\nif os.getpid() != {os.getpid()}:\n    sys.exit('no thanks')\n"
    )
    (tmp_path / "unwilling.py").write_text(f"{code}class Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = start_engine(state)
    pid = engine.pid
    import unwilling

    with pytest.raises(SchemaMismatch, match="no thanks"):
        engine.register(unwilling.Gone)
    engine.register(Rollout)
    assert (engine.pid, engine.restarts) == (pid, 0)


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_ones(state, start_engine, tmp_path, monkeypatch):
    engine = start_engine(state, limits=Limits(request_timeout_s=0.1))
    (tmp_path / "only_here.py").write_text("from solewriter import Entity\nclass Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineUnavailable, match="may or may not be known"):
        engine.register(Rollout)
    os.kill(engine.pid, signal.SIGCONT)
    engine.limits = Limits()
    with pytest.raises(SchemaMismatch, match="only_here"):
        engine.register(only_here.Gone)
    with connect(state) as client:
        assert client.create(Rollout(seed=1)).version == 1


def test_models_that_fill_the_pipe_to_a_stopped_engine_are_not_waited_for_without_end(state, start_engine):
    """A pipe takes 64 KiB. What was cut short is ended before what is asked next."""
    engine = start_engine(state, limits=Limits(request_timeout_s=0.1))
    bulky = type("Bulky", (Entity,), {"__module__": "__main__", "__doc__": "x" * 200_000})
    os.kill(engine.pid, signal.SIGSTOP)
    for model in (bulky, Rollout, bulky):
        with pytest.raises(EngineUnavailable, match="may or may not be known"):
            engine.register(model)
    os.kill(engine.pid, signal.SIGCONT)
    engine.limits = Limits()
    engine.register(Rollout)
    with connect(state) as client:
        assert client.create(Rollout(seed=1)).version == client.create(bulky()).version == 1


def test_a_start_that_is_stopped_before_it_hears_its_orders_ends_in_time(state):
    limits = Limits(start_timeout_s=0.2)
    orders = Orders(str(state), "process", limits, 0, [], models=bytes(200_000))
    child = Child()
    child.signal(signal.SIGSTOP)
    with pytest.raises(EngineStartFailed, match="start_timeout_s"):
        child.begin(lambda: orders)
    assert child.ended


def test_however_much_a_failed_model_says_its_engine_does_not_wait_until_it_is_read(
    state, start_engine, tmp_path, monkeypatch
):
    code = f"import os\nif os.getpid() != {os.getpid()}:\n    raise ImportError('no' * 200_000)\n"
    (tmp_path / "wordy.py").write_text(f"{code}from solewriter import Entity\nclass Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = start_engine(state, limits=Limits(request_timeout_s=0.1))
    gone = importlib.import_module("wordy").Gone
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineUnavailable, match="may or may not be known"):
        engine.register(gone)
    os.kill(engine.pid, signal.SIGCONT)
    with connect(state) as client:
        for _ in range(20):  # nobody reads what the engine answered
            assert client.create(Task(title="x")).version == 1


@pytest.mark.parametrize("why", ["does not fit", "cannot be imported"])
def test_a_model_that_was_refused_too_late_keeps_no_next_engine_from_its_start(
    state, start_engine, wait_until, tmp_path, monkeypatch, why
):
    """Nobody heard the answer: it may be known, so the next one is given it, and serves without where that fails."""
    engine = start_engine(state, models=[Rollout], limits=Limits(request_timeout_s=0.1, restart_backoff_s=0.005))
    with connect(state) as client:
        run = client.create(Rollout(seed=1, id="r"))
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable, match="may or may not be known"):
            engine.register(unwanted(why, tmp_path, monkeypatch))
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1 or engine.failure, 20, "the next one serves")
        assert engine.failure is None
        assert client.update(run, score=1.0).version == 2


@pytest.mark.parametrize("why", ["does not fit", "cannot be imported"])
def test_a_model_that_no_engine_takes_is_refused_though_one_dies_of_the_question(
    state, start_engine, wait_until, tmp_path, monkeypatch, why
):
    engine = start_engine(state, models=[Rollout], limits=Limits(restart_backoff_s=0.005))
    with connect(state) as client, ThreadPoolExecutor(1) as beside:
        run = client.create(Rollout(seed=1, id="r"))
        os.kill(engine.pid, signal.SIGSTOP)
        asking = beside.submit(engine.register, unwanted(why, tmp_path, monkeypatch))
        wait_until(lambda: engine._child._asked, 20, "it is asked")
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(SchemaMismatch):
            asking.result(60)
        assert client.update(run, score=1.0).version == 2


def unwanted(why: str, tmp_path: Path, monkeypatch) -> type[Entity]:
    if why == "does not fit":

        class Other(Entity, kind="Rollout"):
            seed: str

        return Other
    code = f"import os\nfrom solewriter import Entity\nif os.getpid() != {os.getpid()}:\n    raise ImportError('no')\n"
    (tmp_path / "unwilling.py").write_text(f"{code}class Gone(Entity):\n    x: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unwilling", raising=False)
    return importlib.import_module("unwilling").Gone


def test_models_registered_by_several_threads_are_all_known_behind_a_restart(
    state, start_engine, wait_until, tmp_path, monkeypatch
):
    """Also where one of them is refused meanwhile."""
    engine = start_engine(state)
    os.kill(engine.pid, signal.SIGSTOP)
    wrong = unwanted("cannot be imported", tmp_path, monkeypatch)
    with ThreadPoolExecutor(2) as beside:
        first = beside.submit(engine.register, wrong)
        wait_until(lambda: engine._child._asked, 20, "it is asked")
        second = beside.submit(engine.register, Rollout)
        wait_until(lambda: second.running(), 20, "the other one, too")
        os.kill(engine.pid, signal.SIGCONT)
        with pytest.raises(SchemaMismatch):
            first.result(60)
        second.result(60)
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "a restart")
    with connect(state) as client:
        client.create(Rollout(seed=1))


def test_registering_while_agents_write_disturbs_nobody(engine, client):
    def write() -> None:
        with connect(engine.state) as other:
            for reply in other.submit_many((Create(Task(title="x")) for _ in range(3_000)), window=64):
                reply.check()

    writer = threading.Thread(target=write)
    writer.start()
    models = [type(f"Kind{number}", (Rollout,), {"__module__": __name__}) for number in range(8)]
    for model in models:
        engine.register(model)
        client.create(model(seed=1))
    writer.join()
    assert client.reader.snapshot().counts["Task"] == 3_000


def test_an_engine_that_dies_while_a_model_is_registered_comes_back_with_it(state, start_engine, wait_until):
    engine = start_engine(state)
    os.kill(engine.pid, signal.SIGSTOP)
    asking = threading.Thread(target=engine.register, args=(Rollout,))
    asking.start()
    os.kill(engine.pid, signal.SIGKILL)
    asking.join(60)
    assert not asking.is_alive()
    with connect(state) as client:
        assert client.create(Rollout(seed=1)).version == 1


def test_a_signal_handler_that_stops_the_engine_ends_a_register_that_waits(state, start_engine, ctrl_c_when):
    engine = start_engine(state)

    def stop(*_: object) -> None:
        threading.Timer(0.05, os.kill, (engine.pid, signal.SIGCONT)).start()
        engine.stop()

    os.kill(engine.pid, signal.SIGSTOP)
    with ctrl_c_when(lambda: engine._child._asked, "it asks"):
        signal.signal(signal.SIGALRM, stop)  # in place of Ctrl-C
        with pytest.raises(EngineUnavailable, match="not running"):
            engine.register(Rollout)


def test_register_on_an_engine_that_does_not_run(state, start_engine):
    engine = start_engine(state)
    engine.stop()
    with pytest.raises(EngineUnavailable, match="not running"):
        engine.register(Rollout)


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
    monkeypatch.setattr(processes, "STOP_MARGIN_S", 2)  # waited for once in vain, and then for its death
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
        engine.register(Rollout)
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


# --- owners -----------------------------------------------------------------------------------------------------------


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
        if held_off._is_owned():
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
        from solewriter import EngineStartFailed, Entity
        class Broken:
            def __reduce__(self):
                return int, ("no number",)
        class Doc(Entity):
            pass
        Doc.broken = Broken()
        reads, writes = os.pipe()
        os.dup2(writes, 2)
        os.close(reads)
        try:
            Engine(sys.argv[1], models=[Doc]).start()
        except EngineStartFailed as error:
            print(error)
    """
    assert "ValueError: invalid literal for int()" in told_by_owner(state, code)


def test_an_owner_may_have_patience_for_years(state, start_engine, wait_until):
    """More than the kernel waits at once, which is 24 days."""
    years = dict.fromkeys(("start_timeout_s", "drain_timeout_s", "heartbeat_s", "hang_timeout_s"), SECONDS_MAX)
    engine = start_engine(state, limits=Limits(**years, request_timeout_s=math.inf))
    engine.register(Rollout)
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


def descriptors() -> list[str]:
    """What is open, but for memory: the supervisor maps its engine's root when it first looks at the pulse."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass  # of the listing itself
    return sorted(path for path in found if not path.startswith("/dev/shm/"))


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


def test_a_failed_start_leaves_no_descriptor(state, start_engine, wait_until):
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
    monkeypatch.setattr(processes, "STOP_MARGIN_S", 30)  # then it fails
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


def test_a_forked_child_stops_nothing(state):
    """It leaves a `with` by an exit of its own; the engine is its parent's, also while none serves."""
    code = """
        with Engine(sys.argv[1], limits=Limits(restart_backoff_s=5)) as engine:
            before = engine.folder.markers()
            dead = engine.pid
            os.kill(dead, signal.SIGKILL)
            while os.path.exists(f"/proc/{dead}"):
                os.sched_yield()
            child = os.fork()
            if child == 0:
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.folder.markers() == before)
            with connect(engine.state) as client:
                client.create(Task(title="x"))
    """
    assert told_by_owner(state, code) == "7 True\n"


def test_an_owner_whose_stderr_nobody_reads_has_its_engine_supervised_and_may_fork(state):
    """The thread that tells it of a death waited for a reader, and a forked child at its end for that thread."""
    code = """
        with Engine(sys.argv[1], durability="memory") as engine:
            dead = engine.pid
            os.kill(dead, signal.SIGKILL)
            while os.path.exists(f"/proc/{dead}"):
                os.sched_yield()
            child = os.fork()
            if child == 0:
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            with connect(engine.state) as client:
                client.create(Task(title="x"))
            print(engine.restarts)
    """
    assert told_by_owner(state, FULL_STDERR + textwrap.dedent(code), "-W", "ignore") == "7\n1\n"


def test_an_engine_whose_stderr_nobody_reads_serves_on_and_fails_to_start_in_time(state):
    """What it had to say of an agent, or of itself, waited for a reader, and all agents with it."""
    code = """
        import select
        from solewriter import EngineStartFailed, Entity
        class Broken:
            def __reduce__(self):
                return int, ("no number",)
        class Doc(Entity):
            pass
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
    assert told_by_owner(state, FULL_STDERR + textwrap.dedent(code)) == "1\nfailed\n"


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


def test_models_travel_from_many_threads_and_a_users_own_choice_stays(monkeypatch):
    """What is by value for one engine's start is so for all of them, and for the user who said so before."""
    hidden = types.ModuleType("hidden")
    exec("from solewriter import Entity\nclass Doc(Entity):\n    size: int = 0\n", hidden.__dict__)
    monkeypatch.setitem(sys.modules, "hidden", hidden)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            sent = list(threads.map(lambda _: pickled([hidden.Doc]), range(100)))
    finally:
        sys.setswitchinterval(interval)
    assert "hidden" not in cloudpickle.list_registry_pickle_by_value()
    assert not [data for data in sent if len(data) < 200], "a mere name of what nobody else can import"
    cloudpickle.register_pickle_by_value(hidden)
    try:
        pickled([hidden.Doc])
        assert "hidden" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(hidden)


NAMED_TYPES = """
from typing import NewType
from typing_extensions import TypeAliasType
from solewriter import Entity, Part

Name = NewType("Name", str)
Names = TypeAliasType("Names", tuple[Name, ...])

class Member(Part):
    name: Name = Name("ann")
    others: Names = ()

class Team(Entity, columns=("lead",)):
    lead: Name = Name("ann")
    members: tuple[Member, ...] = ()
    names: Names = ()
"""


def test_names_that_a_script_gives_to_types_travel(state, start_engine, monkeypatch):
    hidden = types.ModuleType("hidden")
    monkeypatch.setitem(sys.modules, "hidden", hidden)
    exec(NAMED_TYPES, hidden.__dict__)
    start_engine(state, models=[hidden.Team])
    with connect(state) as client:
        team = client.create(hidden.Team(lead="bob", members=(hidden.Member(others=("eve",)),), names=("bob",)))
        assert client.get(hidden.Team, team.id) == team


def test_a_class_with_a_cached_property_travels(state, start_engine):
    """In Python 3.11 it has a lock."""

    class Length(Part):
        meters: float

        @cached_property
        def feet(self) -> float:
            return self.meters / 0.3048

    class Road(Entity):
        length: Length

        @computed_field
        @cached_property
        def feet(self) -> float:
            return self.length.feet

        @model_validator(mode="after")
        def _is_long(self) -> Road:
            assert self.feet > 1
            return self

    start_engine(state, models=[Road])
    with connect(state) as client:
        road = client.create(Road(length=Length(meters=0.3048 * 2)))
        assert client.get(Road, road.id).feet == road.feet == 2.0
        with pytest.raises(InvalidMutation):
            client.update(road, length=Length(meters=0.1))


PARTS_OF_A_SCRIPT = """
from __future__ import annotations
from enum import Enum
from solewriter import Entity, Part

class Unit(Enum):
    KG = "kg"

class Weight(Part):
    unit: Unit = Unit.KG

class Item(Part):
    net: Weight | None = None
    gross: Weight | None = None
    inside: tuple[Item, ...] = ()

class Special(Item):
    net: int = 0
    gross: int = 0

class Order(Entity):
    items: tuple[Item, ...] = ()
    gift: Item | None = None

class Bare(Order):
    items: int = 0
    gift: Special = Special()
    other: Special | None = None
"""


@pytest.mark.parametrize("name", ["Order", "Bare"])
def test_a_part_that_occurs_several_times_in_a_script_reaches_the_engine(state, start_engine, monkeypatch, name):
    """Its annotations are texts there: the first that is met of a part may be a piece of its holder's schema."""
    hidden = types.ModuleType("hidden")
    monkeypatch.setitem(sys.modules, "hidden", hidden)
    exec(PARTS_OF_A_SCRIPT, hidden.__dict__)
    model, item = getattr(hidden, name), hidden.Item(net=hidden.Weight(), inside=(hidden.Item(),))
    engine = start_engine(state, models=[model])
    with connect(state) as client:
        order = client.create(model() if name == "Bare" else model(items=(item, item), gift=item))
        assert client.get(model, order.id) == order
        other = hidden.Bare if name == "Order" else hidden.Order
        engine.register(other)
        assert client.create(other()).version == 1


def test_a_class_whose_code_uses_what_cannot_travel_is_told_where_to_stand(state, start_engine):
    lock = threading.Lock()

    class Guarded(Entity):
        @model_validator(mode="after")
        def _alone(self):
            with lock:
                return self

    engine = start_engine(state)
    for send in (lambda: engine.register(Guarded), lambda: start_engine(state.with_name("other"), models=[Guarded])):
        with pytest.raises(TypeError, match=r"Guarded.*cannot pickle '_thread.lock' object.*by name") as told:
            send()
        assert "\n" not in str(told.value)


# --- classes that differ ----------------------------------------------------------------------------------------------


def a_class(**fields):
    """A class of the kind Rollout with these fields: {name: (type, default)}, or a type alone for a required one."""
    names = {name: field if isinstance(field, tuple) else (field,) for name, field in fields.items()}
    body = {name: field[1] for name, field in names.items() if len(field) == 2}
    annotations = {name: field[0] for name, field in names.items()}
    return type(
        "Rollout", (Entity,), {"__annotations__": annotations, "__module__": __name__, **body}, columns=("seed",)
    )


def test_a_class_that_lacks_what_is_stored_is_refused_at_register_and_at_start(state, start_engine):
    """A new required field, the columns being the same: entities would be stored that the class cannot read."""
    engine = start_engine(state, models=[Rollout])
    with connect(state) as client:
        client.create(Rollout(seed=1, id="r"))
    more = a_class(seed=int, score=(float | None, None), owner=str)
    with pytest.raises(SchemaMismatch, match="owner"):
        engine.register(more)
    engine.stop()
    with pytest.raises(EngineStartFailed, match="owner"):
        start_engine(state, models=[more])
    start_engine(state, models=[a_class(seed=int, score=(float | None, None), owner=(str, "nobody"))])
    with open_reader(state) as reader:
        assert reader.get("Rollout", "r")["seed"] == 1


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"seed": int, "score": (float | None, 1.0)}, "score defaults to None there, to 1.0 here"),
        ({"seed": int}, "score is only there"),
        (
            {"seed": (int, 1), "score": (float | None, None), "note": (str, "")},
            "note is only here, or has no default there; seed has a default only here",
        ),
        ({"seed": str, "score": (float | None, None)}, "seed is a column of int there, of str here"),
        ({"seed": int, "score": (int | None, None)}, "the types or constraints of its fields"),
        (
            {"seed": int, "score": (float | None, None), "owner": (str, ...)},
            "the types or constraints of its fields, or fields without a default, here: owner",
        ),
    ],
)
def test_a_whole_entity_of_another_class_than_the_engines_is_refused(state, start_engine, fields, what):
    """What one class leaves out as its default, the other would read as another value."""
    start_engine(state, models=[Rollout])
    other = a_class(**fields)
    with connect(state) as client:
        client.create(Rollout(seed=1, id="r"))
        before = client.reader.revision
        entity = other(seed="1" if fields["seed"] is str else 1, id="s", **{"owner": "me"} if "owner" in fields else {})
        what = f"this process differs from the engine's: {what}: use one everywhere"
        with pytest.raises(SchemaMismatch, match=what):
            client.create(entity)
        with pytest.raises(SchemaMismatch, match=what):
            client.put(entity)
        (refused,) = client.submit_many([Create(entity)])
        with pytest.raises(SchemaMismatch, match=what):
            refused.check()
        with pytest.raises(SchemaMismatch, match=what), client.transaction() as tx:
            tx.create(entity)
        assert client.reader.revision == before


def test_a_class_that_was_replaced_is_refused_from_then_on(state, start_engine):
    """By `register`, or by the next engine, and at once, though this client has seen nothing of it yet."""
    first, second, third = (a_class(seed=int, score=(float, default)) for default in (0.0, 1.0, 2.0))
    engine = start_engine(state, models=[first])
    with connect(state) as client, connect(state) as other:
        for one in (client, other):
            one.create(first(seed=1))
        engine.register(second)
        with pytest.raises(SchemaMismatch, match=r"score defaults to 1\.0 there, to 0\.0 here"):
            client.create(first(seed=2))
        (refused,) = other.submit_many([Create(first(seed=2))])
        assert isinstance(refused.error, SchemaMismatch)
        client.create(second(seed=2))
        engine.stop()
        start_engine(state, models=[third])
        with pytest.raises(SchemaMismatch, match=r"score defaults to 2\.0 there, to 1\.0 here"):
            client.put(second(seed=3))
        with client.reader.snapshot() as snap:
            assert sorted(found.score for found in snap.entities(third)) == [0.0, 0.0, 1.0]


def test_a_class_that_is_replaced_while_a_request_waits_is_refused(state, start_engine):
    """Its client looked at the engine before, or at none: what it left out as a default is another value by then."""
    first, second = (a_class(seed=int, score=(float, default)) for default in (0.0, 1.0))
    engine = start_engine(state, models=[first])
    with connect(state) as client, ThreadPoolExecutor(3) as beside:
        client.create(first(seed=1, id="a"), request_id="a's")
        engine.stop()
        calls = [
            beside.submit(client.create, first(seed=2)),
            beside.submit(client.put, first(seed=2, id="a")),
            beside.submit(lambda: next(client.submit_many([Create(first(seed=2))])).check()),
        ]
        start_engine(state, models=[second])
        for call in calls:
            with pytest.raises(SchemaMismatch, match="differs from the engine's"):
                call.result(timeout=20)
        with client.reader.snapshot() as snap:
            assert [found.score for found in snap.entities(second)] == [0.0]
        again = client.create(second(seed=1, id="a"), request_id="a's")  # the same content: who repeats it is told so
        assert (again.version, again.score) == (1, 0.0)


def test_each_entity_is_compared_by_its_own_class_where_a_process_has_two_of_a_name(state, start_engine):
    """A notebook's cell was run again, and entities of the class before are still at hand: in their class what is left
    out is another value, so they are refused, alone and beside others, while those of the engine's class go in.
    """
    before, now = a_class(seed=int, score=(float, 0.0)), a_class(seed=int, score=(float, 100.0))
    held = before(id="held", seed=1)
    engine = start_engine(state, models=[before])
    with connect(state) as client:
        client.create(before(id="a", seed=1))
        engine.register(now)
        assert client.create(now(id="b", seed=2)).score == 100.0
        for call in (client.create, client.put):
            with pytest.raises(SchemaMismatch, match=r"score defaults to 100\.0 there, to 0\.0 here"):
                call(held)
        replies = list(client.submit_many([Create(now(id="c", seed=3)), Create(held), [Put(now(id="d", seed=4))]]))
        assert [type(reply.error) for reply in replies] == [type(None), SchemaMismatch, type(None)]
        for pair in ((held, now(id="e", seed=5)), (now(id="e", seed=5), held)):
            with (
                pytest.raises(SchemaMismatch, match=r"score defaults to 100\.0 there, to 0\.0 here"),
                client.transaction() as tx,
            ):
                for entity in pair:
                    tx.create(entity)
        assert client.get(before, "a").score == 0.0  # a look by the class before changes nothing of that
        assert client.create(now(id="f", seed=6)).score == 100.0
        with client.reader.snapshot() as snap:
            assert sorted(snap.ids(now)) == ["a", "b", "c", "d", "f"]


def test_the_same_class_from_elsewhere_is_no_other_class(state, start_engine):
    start_engine(state, models=[Rollout])
    with connect(state) as client:
        twin = a_class(seed=int, score=(float | None, None))
        assert client.create(twin(seed=1, id="r")).version == 1


def test_what_a_reader_without_the_class_does_to_its_dict_is_its_own_affair(client, reader):
    client.create(Task(title="x", id="t"))
    reader.get("Task", "t").clear()
    assert reader.get("Task", "t")["title"] == "x"
    reader.snapshot()["Task", "t"]["metadata"] = 5
    assert reader.snapshot()["Task", "t"]["metadata"] != 5


def test_columns_and_lifecycles_name_fields_that_are_there():
    with pytest.raises(TypeError, match="column 'nope'"):

        class Wrong(Entity, columns=("nope",)):
            x: int = 0

    with pytest.raises(TypeError, match=r"columns is a tuple of names: columns=\('x',\)"):

        class Wrong1(Entity, columns=("x")):  # without its comma it is a text
            x: int = 0

    with pytest.raises(TypeError, match="lifecycle field 'nope'"):

        class Wrong2(Entity, lifecycle=Lifecycle("nope", "a", {"a": ()})):
            x: int = 0


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


def test_a_reader_that_is_forgotten_is_closed_and_says_so(engine, client):
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
    engine = start_engine(state)
    with open_reader(state) as never_looked:
        engine.stop()
        told(state, "", ", or read what it holds: open_reader(..., offline=True)")
        with pytest.raises(EngineUnavailable, match="maps none of its memory: start it, or open_reader"):
            never_looked.snapshot()
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
