"""Who comes while an engine recovers is not sent away: he waits where he is, until it is ready or he has enough."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from solewriter import EngineUnavailable, OutcomeUnknown, Task, connect
from solewriter.agents.status import status_of
from solewriter.shared.config import Limits
from solewriter.shared.failpoint import VARIABLE

PATIENT = Limits(connect_timeout_s=60, request_timeout_s=60)


class Stopped:
    """An engine that is stopped in its recovery, behind one that was killed; and a client of that one."""

    def __init__(self, engine, client, pid, wait_until):
        self.engine, self.client, self.pid = engine, client, pid
        self._wait_until = wait_until
        self.told = []

    def ask(self, timeout_s=60):
        """Let the client send something, from another thread, until it waits for this engine's welcome."""

        def create():
            try:
                self.told.append(self.client.create(Task(id="late", title="x"), timeout_s=timeout_s))
            except (EngineUnavailable, OutcomeUnknown) as error:
                self.told.append(error)

        asking = threading.Thread(target=create, daemon=True)
        asking.start()
        self._wait_until(lambda: self.client._exchange._greeting is not None, 20, "it is connected")
        return asking


@pytest.fixture
def stopped(state, start_engine, wait_until, monkeypatch, is_stopped):
    engine = start_engine(state)
    with connect(state, limits=PATIENT) as client:
        with monkeypatch.context() as patch:
            patch.setenv(VARIABLE, "recover.rewrite:stop")
            os.kill(engine.pid, signal.SIGKILL)
            pid = wait_until(lambda: status_of(state).starting_pid, 20, "the next engine recovers")
        wait_until(lambda: is_stopped(pid), 20, "it reaches the step where it stops")
        yield Stopped(engine, client, pid, wait_until)
        os.kill(engine.pid if engine.restarts else pid, signal.SIGCONT)


def test_it_is_welcomed_when_the_engine_is_ready(stopped, wait_until):
    asking = stopped.ask()
    assert stopped.told == []
    os.kill(stopped.pid, signal.SIGCONT)
    asking.join(60)
    assert [task.version for task in stopped.told] == [1]
    wait_until(lambda: stopped.engine.restarts, 20, "its owner heard that it serves, maybe after the client did")
    assert stopped.engine.pid == stopped.pid


def test_it_goes_on_to_the_next_engine_where_that_one_dies(stopped, wait_until):
    asking = stopped.ask()
    os.kill(stopped.pid, signal.SIGKILL)
    asking.join(60)
    assert [task.version for task in stopped.told] == [1]
    wait_until(lambda: stopped.engine.restarts, 20, "its owner heard that it serves")
    assert stopped.engine.pid != stopped.pid


def test_it_waits_no_longer_than_it_was_told_to(stopped):
    asking = stopped.ask(timeout_s=0.5)
    asking.join(60)
    assert [type(error) for error in stopped.told] == [OutcomeUnknown]


def test_whoever_closes_the_client_ends_the_wait(stopped, is_stopped):
    asking = stopped.ask()
    stopped.client.close()
    asking.join(60)
    assert [(type(error), error.final) for error in stopped.told] == [(EngineUnavailable, True)]
    assert is_stopped(stopped.pid)
