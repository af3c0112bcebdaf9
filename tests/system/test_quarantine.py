"""A request that kills or hangs the engine harms nobody else, and no longer than twice."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator, model_validator

from solewriter import (
    Claim,
    Create,
    Entity,
    InvalidMutation,
    Limits,
    Quarantined,
    RequestMismatch,
    Task,
    TaskStatus,
    Update,
    connect,
)
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.request_ids import session_number
from solewriter.shared.wire import Status

pytestmark = pytest.mark.heavy

FAR_US = 2**62  # on the clock of claims that wait
FUSES = "SOLEWRITER_TEST_FUSES"  # names a folder: as many files as there are in it, so often an engine dies


def some_heavy(names: Iterable[str], *plain: str) -> list[Any]:
    """All of them as parameters, and in a plain run these."""
    return [name if name in plain else pytest.param(name, marks=pytest.mark.heavy) for name in names]


STARTING = ["recover.rewrite", "recover.rewritten", "recover.published", "recover.announced", "recover.done"]


def abort() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


DEATHS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "aborted": abort,
    "no failure": lambda: os._exit(0),
    "a failure": lambda: os._exit(1),
    "as one that meets another": lambda: os._exit(3),
    "as one that cannot start": lambda: os._exit(4),
    "as one that lost its folder": lambda: os._exit(6),
}


class Deadly(Entity):
    """Its validator ends the process."""

    how: str = ""

    @field_validator("how")
    @classmethod
    def _die(cls, how: str) -> str:
        if how in DEATHS:
            DEATHS[how]()
        return how


class Fused(Entity):
    """Its validator ends the process as often as there are fuses."""

    text: str = ""

    @field_validator("text")
    @classmethod
    def _blow(cls, text: str) -> str:
        for fuse in sorted(Path(os.environ[FUSES]).glob(f"{text}-*") if text else ()):
            fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return text


class Sender:
    """Sends one request as often as it is told to, under one number, as a client does that gets no answer."""

    def __init__(self, connect_raw, state, name: str, mutation, request_id: str | None = None) -> None:
        self._connect = connect_raw
        self._state = state
        self._name = name
        self._sent = False
        self._mutation = mutation
        self._request_id = request_id
        self.request = (session_number(name), 0)

    def send(self) -> Any:
        """(status, detail), or None if the engine ended instead of answering."""
        lane = self._connect(self._state, client_id=self._name, resends=self._sent)
        self._sent = True
        lane.write(lane.frame([self._mutation], self._request_id))
        reply = lane.reply()
        return reply and (reply[1], reply[3])


@pytest.fixture
def fuses(tmp_path, monkeypatch):
    """`fuses(text, count)`: so many engines die in a request about this text."""
    folder = tmp_path / "fuses"
    folder.mkdir()
    monkeypatch.setenv(FUSES, str(folder))

    def lay(text: str, count: int) -> None:
        for number in range(count):
            (folder / f"{text}-{number}").touch()

    return lay


@pytest.fixture
def dies(wait_until):
    """`dies(engine, sender)`: the engine dies of it, and another one serves."""

    def check(engine, sender: Sender) -> None:
        before = engine.restarts
        assert sender.send() is None
        wait_until(lambda: engine.restarts > before, 20, "a restart")

    return check


@pytest.fixture
def killed(wait_until):
    """`killed(engine)`: it dies of nothing that anybody sent, and another one serves."""

    def kill(engine) -> None:
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")

    return kill


@pytest.fixture
def sender(client_of_a_raw_lane, state):
    """`sender(name, text)`: of an update of the fused entity."""

    def make(name: str, text: str, request_id: str | None = None) -> Sender:
        return Sender(client_of_a_raw_lane, state, name, Update(Fused.ref("f"), {"text": text}), request_id)

    return make


@pytest.fixture
def fused(state, start_engine, fuses):
    """An engine that has the fused entity."""
    engine = start_engine(state, models=[Fused])
    with connect(state) as client:
        client.create(Fused(id="f"))
    return engine


# --- two deaths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", some_heavy(DEATHS, "killed", "no failure", "as one that lost its folder"))
def test_what_kills_the_engine_each_time_is_quarantined_after_two_deaths(state, start_engine, killed, how, wait_until):
    engine = start_engine(state, models=[Deadly])
    with connect(state) as client, connect(state, name="other") as other:
        client.create(Deadly(id="d"))
        task = other.create(Task(title="x", max_retries=0))
        goes_on = threading.Thread(
            target=lambda: [other.update(Task.ref(task.id), max_retries=n) for n in range(1, 99)]
        )
        goes_on.start()
        reply = client.submit(Update(Deadly.ref("d"), {"how": how}))
        goes_on.join()
        assert isinstance(reply.error, Quarantined)
        wait_until(lambda: engine.restarts == 2, 20, "its owner counts them, a moment behind the reply")
        assert other.get(Task, task.id).version == 99, "everybody else goes on, and nothing happens twice"
        assert str(client.outcome(reply.request_id)) == str(reply.error)
        killed(engine)
        assert isinstance(other.outcome(reply.request_id), Quarantined), "a later engine knows it, too"
        assert client.update(Deadly.ref("d"), how="not at all").version == 2
        wait_until(lambda: engine.restarts == 3, 20, "its owner counts them, a moment behind the reply")


def test_those_before_and_behind_it_in_one_window_are_applied(state, start_engine, wait_until):
    engine = start_engine(state, models=[Deadly])
    with connect(state) as client:
        client.create(Deadly(id="d"))
        hows = ["a", "b", "killed", "c", "killed", "d"]
        replies = list(client.submit_many(Update(Deadly.ref("d"), {"how": how}) for how in hows))
        assert [type(reply.error) for reply in replies] == [
            Quarantined if how in DEATHS else type(None) for how in hows
        ]
        assert [reply.results[0].version for reply in replies if reply.applied] == [2, 3, 4, 5]
        wait_until(lambda: engine.restarts == 4, 20, "its owner counts them, a moment behind the reply")


@pytest.mark.heavy
def test_a_resend_gets_the_same_answer_from_every_later_engine(state, fused, fuses, sender, dies, killed, lives):
    fuses("x", 2)
    poison = sender("poisoner", "x")
    dies(fused, poison)
    dies(fused, poison)
    assert lives(state)[-1].quarantined == [poison.request]
    killed(fused)
    status, refusal = poison.send()
    assert (status, refusal[0]) == (Status.REFUSED, "Quarantined")
    assert poison.send() == (status, refusal)
    killed(fused)
    assert poison.send() == (status, refusal), "by its outcome in the journal"
    fused.stop()
    fused.start()
    assert poison.send() == (status, refusal)


def test_its_outcome_is_known_before_it_is_sent_again(state, fused, fuses, sender, dies, wait_until):
    fuses("x", 2)
    poison = sender("00000000000000aa", "x")
    dies(fused, poison)
    dies(fused, poison)
    with connect(state) as other:
        assert isinstance(other.outcome("00000000000000aa-0"), Quarantined)
    assert poison.send()[1][0] == "Quarantined"
    wait_until(lambda: fused.restarts == 2, 20, "its owner counts them, a moment behind the reply")


class Bomb(Task):
    """Its validator ends the process in the states that its title names."""

    @model_validator(mode="after")
    def _explode(self) -> Bomb:
        if self.status in self.title.split():
            os._exit(1)
        return self


def test_a_claim_that_waits_and_kills_the_engine_each_time_is_quarantined(state, start_engine, wait_until):
    engine = start_engine(state, models=[Bomb])
    with connect(state) as client, connect(state, name="other") as other:
        came: list[Any] = []
        claiming = threading.Thread(target=lambda: came.append(client.submit(Claim(Bomb, until_us=FAR_US))))
        claiming.start()
        wait_until(lambda: client._session.in_flight, 5, "it is sent")
        client.create(Task(title="behind it"))
        assert other.create(Bomb(id="b", title="in_progress")).version == 1
        claiming.join(60)
        assert isinstance(came[0].error, Quarantined)
        wait_until(lambda: engine.restarts == 2, 20, "its owner counts them, a moment behind the reply")
        assert other.claim(Task) is not None


def test_a_claim_whose_loss_kills_the_engine_each_time_ends_and_its_task_stays(
    state, start_engine, killed, lives, wait_until
):
    engine = start_engine(state, models=[Bomb])
    with connect(state) as client, connect(state, name="other") as other:
        client.create(Bomb(id="b", title="interrupted"))
        client.create(Bomb(id="harmless", title="x", max_retries=1))
        mine = client.claim(Bomb, lease_s=0.02)
        wait_until(lambda: engine.restarts == 2, 20, "two deaths")
        assert client.claim(Bomb, lease_s=0.02).id == "harmless"
        assert other.claim(Bomb, timeout_s=60).id == "harmless", "what others lose is lost as ever"
        assert [session for session, _ in lives(state)[-1].quarantined] == [session_number("engine")]
        assert other.update(Bomb.ref("b"), description="nobody has it").status is TaskStatus.IN_PROGRESS
        assert client.update(Bomb.ref("b"), description="").claim == mine.claim
        killed(engine)
        assert other.cancel(Bomb.ref("b")).status is TaskStatus.CANCELLED
        assert (lives(state)[-1].quarantined, engine.restarts) == ([], 3)


# --- who is not -------------------------------------------------------------------------------------------------------


def test_one_death_is_chance(state, fused, fuses, sender, dies, lives):
    fuses("x", 1)
    innocent = sender("innocent", "x")
    dies(fused, innocent)
    suspicion = lives(state)[-1].suspicion
    assert (suspicion.session, suspicion.sequence, suspicion.deaths) == (*innocent.request, 1)
    assert innocent.send()[0] == Status.APPLIED
    with connect(state) as client:
        assert client.get(Fused, "f").version == 2


def test_a_death_between_that_names_nobody_begins_the_count_anew(state, fused, fuses, sender, dies, killed, lives):
    fuses("x", 2)
    innocent = sender("innocent", "x")
    dies(fused, innocent)
    killed(fused)
    assert lives(state)[-1].suspicion is None
    dies(fused, innocent)
    assert innocent.send()[0] == Status.APPLIED


@pytest.mark.heavy
def test_a_death_between_that_names_another_one_begins_the_count_anew(state, fused, fuses, sender, dies, lives):
    fuses("x", 2)
    fuses("y", 1)
    one, other = sender("one", "x"), sender("other", "y")
    dies(fused, one)
    dies(fused, other)
    assert lives(state)[-1].suspicion.session == other.request[0]
    dies(fused, one)
    assert (one.send()[0], other.send()[0]) == (Status.APPLIED, Status.APPLIED)


@pytest.mark.heavy
def test_what_was_decided_since_is_beyond_suspicion(state, fused, fuses, sender, dies, killed, lives):
    fuses("x", 1)
    innocent = sender("innocent", "x")
    dies(fused, innocent)
    assert innocent.send()[0] == Status.APPLIED
    fused.stop()
    fused.start()
    last = lives(state)[-1]
    assert (last.suspicion, last.quarantined) == (None, [])


@pytest.mark.heavy
def test_a_clean_stop_between_two_deaths_is_no_death(fused, fuses, sender, dies):
    fuses("x", 2)
    poison = sender("poisoner", "x")
    dies(fused, poison)
    fused.stop()
    fused.start()
    dies(fused, poison)
    assert poison.send()[1][0] == "Quarantined"


@pytest.mark.parametrize("point", some_heavy(STARTING, "recover.rewrite", "recover.announced"))
def test_starts_that_die_neither_lose_a_suspicion_nor_count_it_twice(
    state, fused, fuses, sender, dies, lives, monkeypatch, capfd, wait_until, point
):
    fuses("x", 2)
    poison = sender("poisoner", "x")
    said: list[str] = []
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, f"{point}:kill")
        assert poison.send() is None
        wait_until(lambda: said.append(capfd.readouterr().err) or "".join(said).count("-9") >= 3, 20, "failed starts")
    wait_until(lambda: fused.restarts == 1, 20, "a restart")
    assert lives(state)[-1].suspicion.deaths == 1
    dies(fused, poison)
    assert poison.send()[1][0] == "Quarantined"


@pytest.mark.heavy
def test_a_suspicion_survives_memory_that_is_full(state, start_engine, fuses, sender, dies, lives, small_memory):
    """What the dead engine left there is taken away to make room, but for its last words."""
    fuses("x", 1)
    filler = small_memory / "filler"
    engine = start_engine(state, models=[Fused], limits=Limits(memory_dir=str(small_memory), restart_backoff_s=0.5))
    with connect(state) as client:
        client.create(Fused(id="f"))
    innocent = sender("innocent", "x")
    with filler.open("wb") as file:
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + 65536)
            except OSError:
                break
    dies(engine, innocent)
    suspicion = lives(state)[-1].suspicion
    assert suspicion is not None
    assert (suspicion.session, suspicion.deaths) == (innocent.request[0], 1)
    filler.unlink()
    assert innocent.send()[0] == Status.APPLIED


# --- ids of the user's own --------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_once_it_was_answered_it_is_known_by_its_own_id(state, fused, fuses, sender, dies, wait_until):
    fuses("x", 2)
    poison = sender("poisoner", "x", "import-1")
    dies(fused, poison)
    dies(fused, poison)
    assert poison.send()[1][0] == "Quarantined"
    with connect(state) as other:
        with pytest.raises(Quarantined):
            other.update(Fused.ref("f"), text="x", request_id="import-1")
        with pytest.raises(RequestMismatch):
            other.update(Fused.ref("f"), text="y", request_id="import-1")
    wait_until(lambda: fused.restarts == 2, 20, "its owner counts them, a moment behind the reply")


def test_before_that_another_client_has_two_deaths_of_its_own(state, fused, fuses, sender, dies):
    fuses("x", 4)
    poison, same = sender("poisoner", "x", "import-1"), sender("another", "x", "import-1")
    dies(fused, poison)
    dies(fused, poison)
    dies(fused, same)
    dies(fused, same)
    assert (poison.send()[1][0], same.send()[1][0]) == ("Quarantined", "Quarantined")


# --- what never ends --------------------------------------------------------------------------------------------------


def loops() -> None:
    while True:
        pass


def loops_whatever_it_raises() -> None:
    while True:
        try:
            loops()
        except Exception:
            pass


def catches_all_once() -> None:
    try:
        loops()
    except:  # noqa: E722
        loops()


def waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def cleans_up_for_ever() -> None:
    try:
        loops()
    finally:
        loops()


ENDLESS = {
    "loops": loops,
    "sleeps": partial(time.sleep, 3_600),
    "waits for a lock": waits_for_a_lock,
    "waits for a pipe": lambda: os.read(os.pipe()[0], 1),
    "catches exceptions": loops_whatever_it_raises,
    "catches all": catches_all_once,
    "cleans up": cleans_up_for_ever,
}
IN_C = "computes in C"


class Endless(Entity):
    """Its validator never comes back."""

    how: str = ""

    @field_validator("how")
    @classmethod
    def _go_on(cls, how: str) -> str:
        if how in ENDLESS:
            ENDLESS[how]()
        if how == IN_C:
            sum(itertools.repeat(0))
        return how


@pytest.mark.parametrize("how", some_heavy(ENDLESS, "loops", "sleeps", "catches all"))
def test_a_validator_that_never_ends_is_a_refusal_and_everybody_goes_on(state, start_engine, how):
    limits = Limits(decide_timeout_s=0.2)
    engine = start_engine(state, models=[Endless], limits=limits)
    pid = engine.pid
    with connect(state) as client, connect(state, name="other") as other:
        client.create(Endless(id="e"))
        waiting = threading.Thread(target=lambda: other.create(Task(title="x", id="t")))
        hows = ["a", how, "b"]
        replies = []
        for reply in client.submit_many((Update(Endless.ref("e"), {"how": how}) for how in hows), window=3):
            replies.append(reply)
            if len(replies) == 1:
                waiting.start()
        waiting.join()
        assert [type(reply.error) for reply in replies] == [type(None), InvalidMutation, type(None)]
        assert "Endless" in str(replies[1].error)
        assert "decide_timeout_s" in replies[1].error.fields["entity"]
        assert client.get(Endless, "e").version == 3
        assert other.get(Task, "t") is not None
    assert (engine.pid, engine.restarts) == (pid, 0)


@pytest.mark.heavy
def test_no_bound_is_no_bound_and_a_hang_is_the_supervisors(state, start_engine, wait_until):
    quick = Limits(decide_timeout_s=0, heartbeat_s=0.05, hang_timeout_s=0.4, restart_backoff_s=0.01)
    engine = start_engine(state, models=[Endless], limits=quick, replace_hung=True)
    with connect(state) as client:
        client.create(Endless(id="e"))
        assert isinstance(client.submit(Update(Endless.ref("e"), {"how": "loops"})).error, Quarantined)
    wait_until(lambda: engine.restarts == 2, 20, "its owner counts both, a moment behind the reply")


def test_a_loop_in_c_is_ended_by_the_supervisor_and_quarantined_after_two_deaths(state, start_engine, wait_until):
    quick = Limits(decide_timeout_s=0.1, heartbeat_s=0.05, hang_timeout_s=0.6, restart_backoff_s=0.01)
    engine = start_engine(state, models=[Endless], limits=quick, replace_hung=True)
    with connect(state) as client:
        client.create(Endless(id="e"))
        assert isinstance(client.submit(Update(Endless.ref("e"), {"how": IN_C})).error, Quarantined)
        assert client.update(Endless.ref("e"), how="soon").version == 2
    wait_until(lambda: engine.restarts == 2, 20, "its owner counts them, a moment behind the reply")


@pytest.mark.heavy
def test_a_budget_that_ticks_all_the_time_ends_nothing_that_comes_to_an_end(state, start_engine, wait_until):
    """Ten thousand ticks a second, at whatever the engine does just then."""
    engine = start_engine(state, limits=Limits(decide_timeout_s=0.0002))
    with connect(state) as client:
        wait_until(lambda: client.submit(Create(Task(title="x", id="t"))).error is None, 20, "one creation in time")
        updates = (Update(Task.ref("t"), {"max_retries": number}) for number in range(1, 5_000))
        refused = sum(reply.error is not None for reply in client.submit_many(updates))
        assert client.get(Task, "t").version == 5_000 - refused
        assert refused < 4_999, "on a busy machine many wait too long; what was told came to an end"
    assert engine.restarts == 0


def test_the_budget_is_below_what_a_supervisor_takes_for_a_hang():
    assert 1.5 * DEFAULT_LIMITS.decide_timeout_s < DEFAULT_LIMITS.hang_timeout_s
