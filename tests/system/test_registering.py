"""Models that an engine comes to know while it runs, how they reach it, and classes that differ from its own."""

from __future__ import annotations

import fcntl
import gc
import importlib
import importlib.util
import os
import signal
import sys
import termios
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import cloudpickle
import pytest
from pydantic import computed_field, field_validator, model_validator

from solewriter import (
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Entity,
    InvalidMutation,
    InvalidQuery,
    Lifecycle,
    Limits,
    Max,
    Part,
    Project,
    Put,
    SchemaMismatch,
    Task,
    UnknownKind,
    connect,
    open_reader,
)
from solewriter.engine_proc.owner.launch import Child
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.owner.pickled import pickled


class Rollout(Entity, columns=("seed",)):
    seed: int
    score: float | None = None


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


def test_of_classes_that_were_replaced_the_engine_keeps_none(engine, client):
    def counting(said):
        class Note(Entity):
            text: str = ""

            @field_validator("text")
            @classmethod
            def counted(cls, text):
                if text == said:
                    gc.collect()
                    there = sum(isinstance(one, type) and one.__name__ == "Note" for one in gc.get_objects())
                    raise ValueError(f"{there} of us, {cls.__name__}")
                return text

        return Note

    for turn in range(6):
        newest = counting(f"how many? {turn}")
        engine.register(newest)
    with pytest.raises(InvalidMutation, match="1 of us, Note"):
        client.update(client.create(newest()), text="how many? 5")


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


def test_a_class_of_a_module_that_was_reloaded_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    """Its parts, and code that its shape does not tell, too: the engine's own module is as it was."""
    module = tmp_path / "reloaded.py"
    text = """
from pydantic import field_validator
from solewriter import Entity, Part

MOST = 10

class Size(Part):
    rows: int = 0

class Report(Entity, columns=("pages",)):
    pages: int = 0
    size: Size = Size()

    @field_validator("pages")
    @classmethod
    def _bounded(cls, pages):
        assert pages <= MOST
        return pages
"""
    module.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import reloaded

    with Engine(tmp_path / "other", models=[reloaded.Report]) as other, connect(other.state) as client:
        client.create(reloaded.Report(id="a", pages=3))
        module.write_text(text.replace("rows", "lines: int = 0\n    rows"))
        importlib.reload(reloaded)
        other.register(reloaded.Report)
        assert client.create(reloaded.Report(pages=3, size=reloaded.Size(lines=7))).size.lines == 7
        module.write_text(text.replace("MOST = 10", "MOST = 20").replace("rows", "lines: int = 0\n    rows"))
        importlib.reload(reloaded)
        other.register(reloaded.Report)
        other.register(reloaded.Report)  # nor is it that of the engine when it is told again
        assert client.update(reloaded.Report.ref("a"), pages=15).pages == 15
        with pytest.raises(InvalidMutation):
            client.update(reloaded.Report.ref("a"), {"pages": 21})
        module.write_text(f"{module.read_text()}\nclass Summary(Report):\n    title: str = ''\n")
        importlib.reload(reloaded)
        other.register(reloaded.Summary, reloaded.Report)
        assert client.create(reloaded.Summary(title="new")).title == "new"


def module_of_orders(tmp_path, monkeypatch, name):
    """A module with a class Order that the engine can import, too: its file, and itself."""
    file = tmp_path / f"{name}.py"
    file.write_text("from solewriter import Entity\nclass Order(Entity):\n    total: int = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return file, importlib.import_module(name)


def test_the_engine_that_follows_has_a_modules_classes_as_its_file_is_by_then(
    state, start_engine, tmp_path, monkeypatch
):
    """A deployment need not register, but is there with the next engine, wanted or not."""
    module, deployed = module_of_orders(tmp_path, monkeypatch, "deployed")
    engine = start_engine(state, models=[deployed.Order])
    with connect(state) as client:
        client.create(deployed.Order(id="a", total=3))
        module.write_text(f"{module.read_text()}    paid: bool = False\n")
        os.kill(engine.pid, signal.SIGKILL)

        class Order(Entity):
            total: int = 0
            paid: bool = False

        assert client.update(Order.ref("a"), paid=True).total == 3
        assert client.create(Order(id="b")).paid is False
        with pytest.raises(
            SchemaMismatch, match="imported deployed as that file was by then, which has another class Order"
        ):
            engine.register(deployed.Order)  # its owner has it as the file was
        importlib.reload(deployed)
        engine.register(deployed.Order)
        assert client.create(deployed.Order(paid=True)).paid is True


def test_an_engine_whose_classes_do_not_fit_by_then_does_not_follow(state, start_engine, tmp_path, monkeypatch):
    """It would be refused as often as it is tried."""
    module, unfit = module_of_orders(tmp_path, monkeypatch, "unfit")
    engine = start_engine(state, models=[unfit.Order])
    with connect(state) as client:
        client.create(unfit.Order(id="a", total=3))
    module.write_text(f"{module.read_text()}    buyer: str\n")
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineStartFailed, match="Order 'a' was stored under another shape"):
        engine.wait()
    assert engine.restarts == 0


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


@pytest.mark.parametrize("error", [TimeoutError, OSError, ValueError])
def test_what_a_signal_handler_raises_comes_out_of_register_as_it_is(state, start_engine, ctrl_c_when, error):
    """An alarm's TimeoutError is nothing that the engine did."""
    engine = start_engine(state)

    def interrupt(*_: object) -> None:
        raise error("an alarm")

    def is_asked() -> bool:
        return any(fcntl.ioctl(engine._child._channel._write_fd, termios.FIONREAD, bytes(4)))  # unread in the pipe

    os.kill(engine.pid, signal.SIGSTOP)
    try:
        with ctrl_c_when(is_asked, "it is asked"):
            signal.signal(signal.SIGALRM, interrupt)  # in place of Ctrl-C
            with pytest.raises(error, match=r"^an alarm$"):
                engine.register(Rollout)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    engine.register(Rollout)
    assert engine.restarts == 0


def test_register_on_an_engine_that_does_not_run(state, start_engine):
    engine = start_engine(state)
    engine.stop()
    with pytest.raises(EngineUnavailable, match="not running"):
        engine.register(Rollout)


# --- on their way to the engine ---------------------------------------------------------------------------------------


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


def test_what_only_the_class_here_has_is_told_as_that(state, start_engine):
    """It is no field of the engine's class, and there is one here: a client may have the newer class first."""

    class Trial(Entity, kind="Rollout", columns=("seed", "owner")):
        seed: int
        owner: str = ""

    start_engine(state, models=[Rollout])
    with connect(state) as client:
        client.create(Rollout(seed=1, id="r"))
        other = client.get(Trial, "r")
        for ask in (
            lambda: client.update(other, owner="me"),
            lambda: client.alter(other, owner=Max("me")),
            lambda: client.apply(other, lambda _: {"owner": "me"}),
            lambda: client.update(other, where={"owner": ""}, seed=2),
        ):
            with pytest.raises(
                InvalidMutation, match="'owner' in the engine, which has another class of it"
            ) as refused:
                ask()
            assert refused.value.fields == {"owner": "no such field"}
        with pytest.raises(InvalidMutation, match=r"Rollout has no field 'ower'$"):
            client.update(other, ower="me")
        with client.reader.snapshot() as snap:
            assert snap.count(Trial, {"seed": 1}) == 1
            with pytest.raises(InvalidQuery, match="owner is no declared column of the engine's class"):
                snap.count(Trial, {"owner": ""})


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
