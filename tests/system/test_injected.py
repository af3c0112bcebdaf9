"""System calls that fail, lie or are the last one: nothing acked is lost, nothing happens twice, nothing is half done.

The engine is run by strace, which tampers with its calls; the call's number counts in each thread by itself. A start
of the engine may be hit as well as its work and its end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from solewriter import (
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Limits,
    OutcomeUnknown,
    Task,
    VersionConflict,
    connect,
    open_reader,
)

pytestmark = pytest.mark.heavy

STRACE = ["strace", "-D", "-f", "-q", "-y"]  # -D: the engine stays its owner's child
QUICK = "--seccomp-bpf"  # what is not watched runs as fast as ever; but no signal can be injected then
WATCHED = "pwrite64,pwritev,write,fdatasync,fsync,rename,unlink,accept4,fallocate"
TAMPERED = "(INJECTED)"
ENDED = re.compile(r"\+\+\+ (killed|exited)")  # the last words of strace about a thread
UPDATES, PIPELINED = 4, 8
LAST = 1 + UPDATES + PIPELINED + 1  # revision of the fixed scenario's end
NUMBERS_MAX = 400  # a scenario makes fewer calls of each kind in each thread
Traced = Callable[..., AbstractContextManager[Callable[[], list[list[str]]]]]


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    """`with traced("pwrite64:error=EIO:when=3", ...) as logs`: engines that start meanwhile are tampered with so.
    `logs()` are the lines of each of them, oldest first. Skips where no process can be traced.
    """
    if shutil.which(STRACE[0]) is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run([*STRACE, "-o", os.devnull, "-e", "trace=write", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"nothing can be traced here: {probe.stderr.decode(errors='replace').strip()}")

    @contextmanager
    def run(*injections: str) -> Iterator[Callable[[], list[list[str]]]]:
        folder = tmp_path / f"traced-{len(list(tmp_path.glob('traced-*')))}"
        folder.mkdir()
        quick = [] if any("signal=" in one for one in injections) else [QUICK]
        options = [*quick, f"-e trace={WATCHED}", *(f"-e inject={one}" for one in injections)]
        wrapper = folder / "python"
        wrapper.write_text(
            f'#!/bin/sh\nexec {" ".join([*STRACE, *options])} -o {folder}/$$.log {sys.executable} "$@"\n'
        )
        wrapper.chmod(0o700)

        def logs() -> list[list[str]]:
            files = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_ctime_ns)
            return [path.read_text(errors="replace").splitlines() for path in files]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(wrapper))
            yield logs

    return run


def work(state: Path) -> None:
    """The same every time, whatever dies meanwhile: every request has its one effect."""
    with connect(state, name="worker") as client:
        task = client.create(Task(title="x", id="t"))
        for number in range(1, UPDATES + 1):
            task = client.update(task, max_retries=number)
        assert (task.version, task.max_retries) == (1 + UPDATES, UPDATES)
        with pytest.raises(VersionConflict):
            client.update(task, title="late", expect=1)
        creations = (Create(Task(title="y", id=f"m{number}")) for number in range(PIPELINED))
        assert [reply.results[0].version for reply in client.submit_many(creations, window=4)] == [1] * PIPELINED
        with client.transaction() as tx:
            for number in range(4):
                tx.update(Task.ref(f"m{number}"), title="together")
        check(state)


def check(state: Path) -> None:
    with open_reader(state) as reader, reader.snapshot() as snap:
        assert (snap.revision, snap.counts["Task"]) == (LAST, 1 + PIPELINED)
        assert snap[Task, "t"].max_retries == UPDATES
        together = {task.id for task in snap.entities(Task) if task.title == "together"}
        assert together == {"m0", "m1", "m2", "m3"}


@pytest.fixture
def survived(start_engine, traced, lives, wait_until) -> Callable[[Path, str], list[str]]:
    """`survived(state, injection)`: the scenario with the first engine tampered with, and a clean end; its calls."""

    def run(state: Path, injection: str) -> list[str]:
        engine = None
        with traced(injection) as logs:
            try:
                engine = start_engine(state, durability="power")
            except EngineStartFailed:
                pass
        engine = engine or start_engine(state, durability="power")
        work(state)
        engine.stop()
        if not lives(state)[-1].drained:
            after = start_engine(state, durability="power")
            check(state)
            after.stop()
        shutil.rmtree(state)
        (log,) = wait_until(lambda: [log for log in logs() if any(ENDED.search(line) for line in log)], 20, "its end")
        return log

    return run


def was_killed(log: list[str]) -> bool:
    return any("killed by SIGKILL" in line for line in log)


# --- the engine is killed at its nth call -----------------------------------------------------------------------------

CALLS = ("pwrite64", "fdatasync", "fsync", "write", "rename", "unlink", "fallocate")
SOME = [("pwrite64", 9), ("fdatasync", 5), ("fsync", 3)]


@pytest.mark.parametrize(("call", "number"), SOME)
def test_an_engine_killed_at_a_system_call_loses_nothing_and_does_nothing_twice(tmp_path, survived, call, number):
    log = survived(tmp_path / "state", f"{call}:signal=KILL:when={number}")
    assert was_killed(log), "that call was never made"


@pytest.mark.long
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("call", CALLS)
def test_an_engine_killed_at_any_system_call_loses_nothing_and_does_nothing_twice(tmp_path, survived, call):
    number = 1
    while was_killed(survived(tmp_path / f"state-{number}", f"{call}:signal=KILL:when={number}")):
        number += 1
        assert number < NUMBERS_MAX
    assert number > 1, "that call was never made"


# --- a sync fails -----------------------------------------------------------------------------------------------------

OUTSIDE = re.compile(r"\bwrite\((?!2<)\d+<pipe:")  # an answer to an agent or the owner; 2: its own last words
STORED = re.compile(r"\b(pwrite64|pwritev|rename)\(")


def answered_or_stored_after_failure(log: list[str]) -> list[str]:
    """What an engine told anybody or wrote after the first call that failed. A start that fails may say why."""
    place = next((number for number, line in enumerate(log) if TAMPERED in line), len(log))
    served = any("accept4(" in line for line in log[:place])
    return [line for line in log[place + 1 :] if STORED.search(line) or (served and OUTSIDE.search(line))]


def place_of(log: list[str], pattern: str) -> int:
    return next(number for number, line in enumerate(log) if re.search(pattern, line))


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
@pytest.mark.parametrize("number", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, *range(3, 20)))])
def test_a_sync_that_fails_once_ends_the_engine_without_an_ack(tmp_path, survived, traced, call, number):
    log = survived(tmp_path / "state", f"{call}:error=EIO:when={number}")
    assert number > 2 or any(TAMPERED in line for line in log), "that call was never made"
    assert not answered_or_stored_after_failure(log)


def test_after_a_failed_sync_the_tail_is_rewritten_before_the_first_ack(tmp_path, start_engine, traced, wait_until):
    state = tmp_path / "state"
    with traced("fdatasync:error=EIO:when=5"):
        engine = start_engine(state, durability="power")
    with traced() as logs:
        work(state)
    (log,) = logs()
    wait_until(lambda: engine.restarts == 1, 20, "its owner counts them, a moment behind the reply")
    rewritten = place_of(log, r"pwrite64\(\d+<[^>]*journal\.next>")
    synced = rewritten + place_of(log[rewritten:], r"fsync\(\d+<[^>]*journal\.next>")
    renamed = place_of(log, r"rename\(\"[^\"]*journal\.next\"")
    folder_synced = renamed + place_of(log[renamed:], r"fsync\(\d+<[^>]*/state>")
    assert rewritten < synced < renamed < folder_synced < place_of(log, r"accept4\(")


@pytest.mark.parametrize(("call", "first"), [("fdatasync", 5), pytest.param("fsync", 60, marks=pytest.mark.long)])
def test_syncs_that_fail_for_ever_end_every_engine_and_the_supervisor_gives_up(
    tmp_path, start_engine, traced, wait_until, hurry, call, first
):
    state, acked = tmp_path / "state", 0
    limits = Limits(restarts_max=4, restart_backoff_s=0.02, restart_backoff_max_s=0.1)
    with traced(f"{call}:error=EIO:when={first}+"):
        engine = start_engine(state, durability="power", limits=limits)
    with traced(f"{call}:error=EIO:when=1+") as logs, connect(state) as client:
        hurry(client, 0.5)
        client.create(Task(title="x", id="t"))
        if call == "fsync":
            os.kill(engine.pid, 9)  # its work needs none of these; the next one's start does
        try:
            for number in range(1, 100):
                client.update(Task.ref("t"), max_retries=number)
                acked = number
        except (OutcomeUnknown, EngineUnavailable):
            pass
        wait_until(lambda: engine.failure is not None, 60, "the supervisor gives up")
        assert engine.restarts == 0, "one of them served"
        assert len(logs()) == limits.restarts_max, "a storm of starts"
        assert all(any(TAMPERED in line for line in log) for log in logs())
    engine.stop()
    start_engine(state, durability="power")
    with connect(state) as client:
        task = client.get(Task, "t")
        assert task.max_retries in (acked, acked + 1), "what was acked is lost"
        assert task.version == task.max_retries + 1


# --- a write fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["error=EIO", "retval=100"])
@pytest.mark.parametrize(
    "number", [6, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3, 4, 5, *range(7, 46)))]
)
def test_a_write_that_fails_or_is_short_drops_the_turn_whole(tmp_path, survived, failure, number):
    log = survived(tmp_path / "state", f"pwrite64:{failure}:when={number}")
    tampered = [line for line in log if TAMPERED in line]
    assert number > 7 or tampered, "that call was never made"
    if failure == "error=EIO" or any("/journal" in line for line in tampered):  # the other files are hints
        assert not answered_or_stored_after_failure(log)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", ["rename", "unlink", "fallocate"])
def test_any_other_call_that_fails_ends_a_start_or_an_engine_and_the_next_one_goes_on(tmp_path, survived, call):
    for number in range(1, NUMBERS_MAX):
        log = survived(tmp_path / f"state-{number}", f"{call}:error=EIO:when={number}")
        if not any(TAMPERED in line for line in log):
            break
        assert not answered_or_stored_after_failure(log)
    assert 1 < number < NUMBERS_MAX - 1


@pytest.mark.parametrize("failure", ["error=EIO", "retval=100"])
def test_a_transaction_whose_write_fails_is_there_once_and_whole(tmp_path, start_engine, traced, failure):
    """Readers see all of it or nothing, before and after the engine that failed. Of two writes one is the journal's."""
    restarts = 0
    for number in (10, 11):
        state = tmp_path / f"state-{number}"
        with traced(f"pwrite64:{failure}:when={number}"):
            engine: Engine = start_engine(state, durability="process")
        with connect(state) as client, open_reader(state) as reader:
            for step in range(10):
                with client.transaction() as tx:
                    for id in ("a", "b", "c"):
                        tx.put(Task(title=f"{step}", id=id))
                with reader.snapshot() as snap:
                    assert {snap[Task, id].title for id in ("a", "b", "c")} == {f"{step}"}
                    assert snap[Task, "a"].version == step + 1
            assert client.reader.revision == 10
        restarts += engine.restarts
        engine.stop()
    assert restarts >= 1
