"""Lanes under bad input, pressure, threads, forks and every way to start a process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path

import msgspec
import pytest

from solewriter import (
    Cancel,
    Create,
    EngineUnavailable,
    Fenced,
    Increment,
    Limits,
    Locked,
    OutcomeUnknown,
    Project,
    Put,
    SolewriterError,
    Task,
    TaskStatus,
    Update,
    aio,
    connect,
    open_reader,
)
from solewriter.agents import exchange, greeting, monitor, pending, reconnecting, session, spinning, tokens
from solewriter.shared import lane as lanes
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS, PIPE_BYTES, SECONDS_MAX, WIRE_VERSION
from solewriter.shared.system.forks import forks_held_off

REFUSED, UNAVAILABLE = wire.Status.REFUSED, wire.Status.UNAVAILABLE


def framed(body: bytes) -> bytes:
    return struct.pack("!i", len(body)) + body


class Evil:
    """Unpickled by anybody else, it would run a command."""

    def __reduce__(self):
        return os.system, ("touch /tmp/solewriter-was-here",)


def laughs() -> bytes:
    """260 bytes that a tree walker sees as 2^25 leaves."""
    value: object = "ha"
    for _ in range(25):
        value = [value, value]
    return pickle.dumps([([(3, "Task", "t", None, {"metadata": {"x": value}}, "", None)], [], None, None)], 5)


def deep() -> bytes:
    return b"\x80\x05" + b"(l" * 0 + b"]" + b"]" * 5_000 + b"a" * 5_000 + b"."


POISON = {
    "a global": b"\x80\x05cos\nsystem\n.",
    "a stack global": pickle.dumps([Evil()], 5),
    "an old reduce": pickle.dumps([Evil()], 0),
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "a new object": b"\x80\x05cbuiltins\nobject\n)\x81.",
    "a build": b"\x80\x05}}b.",
    "an extension": b"\x80\x05\x82\x01.",
    "a persistent id": b"\x80\x05Q.",
    "a persistent name": b"Pname\n.",
    "shared references": laughs(),
    "nesting": deep(),
    "a huge declared length": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40),
    "a memo bomb": b"\x80\x05]r\x00\x00\x40\x00.",
    "a truncated pickle": pickle.dumps(["x" * 100], 5)[:50],
    "bytes behind the end": pickle.dumps([(1,)], 5) + b"more",
    "no list": pickle.dumps({"a": 1}, 5),
    "an empty list": pickle.dumps([], 5),
    "no request": pickle.dumps(["hello"], 5),
    "a request of wrong parts": pickle.dumps([([(99, "Task", "x", None, {}, "", None)], [], None, None)], 5),
    "a mutation of a wrong shape": pickle.dumps([([("create",)], [], None, None)], 5),
    "a field name that is no text": pickle.dumps([([(1, "Task", "x", 0, {1: 2}, "", None)], [], None, None)], 5),
    "a lone surrogate": pickle.dumps([([(1, "Task", "\ud800", 0, {"title": "x"}, "", None)], [], None, None)], 5),
    "garbage": bytes(range(256)),
}

HOOK = textwrap.dedent(
    """
    import os, sys
    from solewriter import Entity

    class Watched(Entity):
        size: int = 0

    LOG = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, args):
        if not os.path.exists({armed!r}):
            return
        if event in ("import", "exec", "compile", "os.system", "subprocess.Popen", "pickle.find_class") or (
            event == "open" and not str(args[0]).startswith("/proc/self/")
        ):
            os.write(LOG, (event + repr(args)[:200]).encode() + b"\\n")

    if os.getpid() != {tester}:  # the engine, which imports this for its model
        sys.addaudithook(hook)
    """
)


def test_poisoned_frames_are_refused_and_nothing_is_imported_called_or_opened(
    state, tmp_path, start_engine, client_of_a_raw_lane, monkeypatch
):
    log, armed = tmp_path / "audit.log", tmp_path / "armed"
    (tmp_path / "watched_models.py").write_text(HOOK.format(log=str(log), armed=str(armed), tester=os.getpid()))
    monkeypatch.syspath_prepend(str(tmp_path))
    import watched_models  # type: ignore[import-not-found]  # written just above

    engine = start_engine(state, models=[watched_models.Watched])
    pid = engine.pid
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        raw = client_of_a_raw_lane(state)
        raw.write(raw.frame([Update(Task.ref("t"), {"title": "warm"})]))
        assert raw.reply()[1] == 0
        armed.touch()
        for name, body in POISON.items():
            raw.write(framed(body))
            told = raw.reply()
            if told is None:  # what asks for so much memory ends its lane
                assert name in ("a memo bomb", "a huge declared length")
                raw = client_of_a_raw_lane(state)
                continue
            _, status, _, detail = told
            assert status == REFUSED, name
            assert detail[0] in ("BadRequest", "RequestTooLarge"), (name, detail)
        raw.write(raw.frame([Update(Task.ref("t"), {"title": "after"})]))
        assert raw.reply()[1] == 0
        assert client.get(Task, "t").title == "after"
        hellos = f"open('/proc/{os.getpid()}/stat'"  # when its process began: of those lanes that came anew
        assert [line for line in log.read_text().splitlines() if not line.startswith(hellos)] == []
        for reply in client.submit_many(Create(Task(title="x", description="y" * 10_000)) for _ in range(100)):
            reply.check()
        assert "/dev/shm" in log.read_text(), "the hook sees nothing: growing the heap opens a file"
    assert engine.pid == pid
    assert not os.path.exists("/tmp/solewriter-was-here")


@pytest.mark.parametrize("length", [0, -1, 2**31 - 1, DEFAULT_LIMITS.frame_bytes_max + 1])
def test_bad_framing_closes_that_lane_and_no_other(state, start_engine, client_of_a_raw_lane, length):
    start_engine(state)
    with connect(state) as client:
        raw = client_of_a_raw_lane(state)
        raw.write(struct.pack("!i", length) + b"x" * 100)
        assert raw.reply() is None
        client.create(Task(title="unharmed"))


def test_a_refusal_for_good_is_told_at_once(engine, client_of_a_raw_lane):
    """Whoever is refused for now tries again, for `connect_timeout_s`."""
    begun = time.monotonic()
    with pytest.raises(EngineUnavailable, match="engine's own") as refused:
        connect(engine.state, client_id="engine")
    assert refused.value.final
    assert time.monotonic() - begun < engine.limits.connect_timeout_s / 2
    stranger = client_of_a_raw_lane(engine.state, wire_version=WIRE_VERSION + 1)
    assert (stranger.welcome.ok, stranger.welcome.refusal) == (False, "final")
    assert "one solewriter everywhere" in stranger.welcome.reason


def test_a_duplicated_frame_gets_the_first_reply_and_is_applied_once(state, start_engine, client_of_a_raw_lane):
    """The same frames on a later lane of the session are known, also those of another order of writes."""
    start_engine(state)
    first = client_of_a_raw_lane(state, client_id="dup")
    frames = [first.frame([Create(Task(title="x", id=f"d{number}"))]) for number in range(3)]
    frames.append(first.frame([Update(Task.ref("d0"), {"title": "y"}, expect=9)]))
    first.write(b"".join(frames))
    told = [first.reply() for _ in frames]
    first.die()
    second = client_of_a_raw_lane(state, client_id="dup")
    assert second.welcome.first == 4, "a lane that resends nothing begins behind what was consumed"
    second.die()
    again = client_of_a_raw_lane(state, client_id="dup", resends=True)
    again.write(b"".join(frames))
    assert [tuple(again.reply()) for _ in frames] == [tuple(reply) for reply in told]
    with connect(state) as client:
        assert client.reader.revision == 3


def test_a_flood_that_is_not_read_slows_its_sender_and_nobody_else(state, start_engine, client_of_a_raw_lane):
    engine = start_engine(state)
    raw = client_of_a_raw_lane(state)
    frame = raw.frame([Update(Task.ref("nobody"), {"title": "x"})])
    os.set_blocking(raw.lane.requests, False)
    written = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        for _ in range(200_000):
            written += os.write(raw.lane.requests, frame)
    with connect(state) as client:
        for number in range(20):
            client.create(Task(title=str(number)))
    assert written < 64 * 1024 * 1024
    assert _rss_bytes(engine.pid) < 400 * 1024 * 1024


def test_a_client_shared_by_threads_serves_them_all(state, start_engine):
    start_engine(state)
    wrong: list[BaseException] = []
    with connect(state, name="shared") as client:
        task = client.create(Task(title="x"))

        def work(number: int) -> None:
            try:
                for step in range(50):
                    made = client.create(Task(title=f"{number}-{step}"))
                    assert client.update(made, description="y").version == 2
                    client.update(Task.ref(task.id), max_retries=number * 1_000 + step)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert client.get(Task, task.id).version >= 201
        assert client.reader.snapshot().counts["Task"] == 301


def test_a_client_that_is_forgotten_is_closed_and_says_so(engine):
    """As files and sockets are: nothing of it stays open, and its lane is gone for the engine, too."""
    with connect(engine.state) as other:
        before = pipes(), pidfds()
        client = connect(engine.state)
        assert client.create(Task(title="x")).title == "x"
        reader = client.reader
        with pytest.warns(ResourceWarning, match=r"a client of .* was never closed") as told:
            del client
        assert len(told) == 1
        assert reader.get(Task, "none") is None, "whoever has its reader may read on"
        del reader
        assert (pipes(), pidfds()) == before
        client = connect(engine.state)
        client.close()
        del client
        assert other.create(Task(title="y")).title == "y"


def pidfds() -> int:
    return sum(os.path.basename(target) == "anon_inode:[pidfd]" for target in targets())


def test_closing_a_client_ends_the_calls_of_other_threads(engine, wait_until):
    """Of the one that reads for all, and of those that wait for it; the engine says nothing meanwhile."""
    client = connect(engine.state)
    told: list[BaseException] = []

    def ask() -> None:
        try:
            client.create(Task(title="x"), timeout_s=90)
        except OutcomeUnknown as unknown:
            told.append(unknown)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: client._session.in_flight == 3, 10, "all three are on their way")
        client.close()
        for thread in threads:
            thread.join(60)
        assert len(told) == 3, "they were sent, and wait for ever"
    finally:
        os.kill(engine.pid, signal.SIGCONT)


def test_an_interrupted_call_leaves_a_client_that_goes_on(state, start_engine, ctrl_c_when):
    engine = start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="x"))
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            with ctrl_c_when(lambda: client._exchange._reading, "it waits"), pytest.raises(KeyboardInterrupt):
                client.update(task, title="y")
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        assert client.update(Task.ref(task.id), description="after").description == "after"
        assert client.get(Task, task.id).title == "y"


ROOMS = exchange, reconnecting, spinning, monitor, session, pending, greeting, lanes  # where a call goes through


def _interrupt(*_):
    raise KeyboardInterrupt


def is_free(lock) -> bool:
    """Whether this thread holds it no more: to be asked in another one."""
    return lock.acquire(timeout=20) and not lock.release()


@pytest.mark.parametrize("lane", ["whole", "lost"])
def test_a_call_interrupted_at_any_step_leaves_a_client_that_goes_on(engine, at_step, lane):
    """On a lane that is there, and on one that must be made first: what it asked for happens once or not at all, and
    other threads are not kept waiting.
    """
    with connect(engine.state) as client, ThreadPoolExecutor(1) as another:
        client.create(Task(title="x", id="t", max_retries=0))
        steps, reached, count = 0, [""], 0
        while reached:
            steps += 1
            client._exchange._broken = lane == "lost"
            with at_step(steps, _interrupt, *ROOMS) as reached:
                try:
                    client.alter(Task.ref("t"), max_retries=Increment(1))
                except KeyboardInterrupt:
                    pass
            assert another.submit(is_free, client._exchange._monitor.lock).result(), reached
            after = client.alter(Task.ref("t"), max_retries=Increment(1)).max_retries
            assert after - count in (1, 2), reached
            assert not client._exchange._again._missed_s, reached  # or the next lane would be given up too soon
            count = after
    assert steps > 30  # a third of them in the session, where it is not compiled


def test_what_comes_in_the_middle_of_a_call_of_its_own_thread_is_refused_and_does_no_harm(engine, at_step):
    """A signal handler that uses the client which it interrupted, at any step: each request happens once or is
    refused at once.
    """

    def handle() -> None:
        try:
            client.alter(Task.ref("t"), max_retries=Increment(1), timeout_s=30)
            done.append("handler's")
        except SolewriterError as error:
            refused.append(str(error))

    with connect(engine.state) as client:
        client.create(Task(title="x", id="t", max_retries=0))
        steps, reached, done, refused = 0, [""], [], []
        while reached:
            steps += 1
            with at_step(steps, handle, *ROOMS) as reached:
                client.alter(Task.ref("t"), max_retries=Increment(1))
            done.append("call's")
            assert client.get(Task, "t").max_retries == len(done), reached
    assert steps > 30
    assert refused
    assert all("signal handler" in why for why in refused)
    assert "handler's" in done  # before its first step, or behind its last one


def test_what_a_claim_was_granted_in_vain_is_not_forgotten_by_a_refused_call(engine, at_step):
    """A signal handler's own claim would give it back first, and cannot."""
    with connect(engine.state) as client:
        steps, reached, noted = 0, [""], []

        def handle() -> None:
            client._unwanted["one that was interrupted"] = Task
            try:
                client.claim(Task)
            except SolewriterError as error:
                noted.append((type(error), "one that was interrupted" in client._unwanted))

        while reached:
            steps += 1
            with at_step(steps, handle, *ROOMS) as reached:
                client.put(Project(id="p", name="p"))
        assert set(noted) == {(SolewriterError, True)}


@pytest.mark.parametrize("lane", ["whole", "lost"])
def test_a_client_may_be_closed_in_the_middle_of_a_call_of_the_same_thread(engine, at_step, lane):
    """By a signal handler, at any step: the call comes to its end, or says why not."""
    steps, reached = 0, [""]
    while reached:
        steps += 1
        with connect(engine.state) as client:
            client._exchange._broken = lane == "lost"
            with at_step(steps, client.close, *ROOMS) as reached:
                try:
                    assert client.put(Task(title="x", id="t")).title == "x"
                except (EngineUnavailable, OutcomeUnknown):
                    assert reached
            assert client._exchange._lane is None or not reached
    assert steps > 30


def test_a_call_interrupted_while_another_thread_reads_leaves_a_client_that_goes_on(engine, at_step, wait_until):
    """It looks on until it is told; so it does when it is interrupted there, at any step."""
    with connect(engine.state) as client, ThreadPoolExecutor(1) as another:
        client.create(Task(title="x", id="t", max_retries=0))
        steps, reached, count = 0, [""], 0
        while reached and steps < 60:
            steps += 1
            os.kill(engine.pid, signal.SIGSTOP)
            try:
                reading = another.submit(client.alter, Task.ref("t"), max_retries=Increment(1))
                wait_until(lambda: client._exchange._reading, 20, "it reads")
                timer = threading.Timer(0.02, os.kill, (engine.pid, signal.SIGCONT))
                timer.start()
                with at_step(steps, _interrupt, exchange, spinning, monitor) as reached:
                    try:
                        client.alter(Task.ref("t"), max_retries=Increment(1))
                    except KeyboardInterrupt:
                        pass
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            timer.join()
            reading.result(60)
            assert another.submit(is_free, client._exchange._monitor.lock).result(), reached
            after = client.alter(Task.ref("t"), max_retries=Increment(1)).max_retries
            assert after - count in (2, 3), reached
            count = after
    assert steps > 10


def test_a_claim_in_a_signal_handler_is_held_at_any_step_of_noting_another_one(engine, at_step):
    with connect(engine.state) as client:
        made = [Create(Task(title="x", id=f"{project}{n}", project=project)) for n in range(60) for project in "ab"]
        for reply in client.submit_many(made):
            reply.check()
        handled: list[Task] = []

        def handle() -> None:
            handled.append(client.claim(Task, where={"project": "b"}))

        steps, reached = 0, [""]
        while reached:
            steps += 1
            with at_step(steps, handle, tokens) as reached:
                mine = client.claim(Task, where={"project": "a"})
                client.complete(mine)
            assert client.holds("Task", mine.id) is None
        assert [client.holds("Task", task.id) for task in handled] == [task.claim for task in handled]
        assert 10 < steps < 60


def test_what_was_written_when_ctrl_c_came_is_not_sent_under_another_number(engine, monkeypatch, wait_until):
    """Python runs the handler right behind the write, before anybody could note it."""
    write = os.write

    def interrupted(fd: int, data: bytes) -> None:
        write(fd, data)
        monkeypatch.setattr(os, "write", write)
        raise KeyboardInterrupt

    with connect(engine.state) as client, ThreadPoolExecutor(1) as another:
        client.create(Task(title="x", id="t", max_retries=0))
        for number in range(1, 6):
            os.kill(engine.pid, signal.SIGSTOP)  # it takes the request with the next hello, and not before
            try:
                monkeypatch.setattr(os, "write", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    client.alter(Task.ref("t"), max_retries=Increment(1))
                updated = another.submit(client.update, Task.ref("t"), title=str(number))
                wait_until(lambda: client._exchange._greeting is not None, 20, "it says hello")
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            assert updated.result(60).max_retries == number


def test_what_follows_a_read_that_ctrl_c_took_is_not_taken_for_replies(engine, monkeypatch):
    """Python runs the handler right behind the read, which ended in the middle of a reply, as it does where more is
    there than one look takes: in the id of the second one here.
    """
    read, taken = os.read, bytearray()

    def interrupted(fd: int, count: int) -> bytes:
        if fd != client._exchange._lane.replies:
            return read(fd, count)
        while taken.count(bytes(100)) < 2 or not taken.endswith(bytes(100)):
            taken.extend(read(fd, 1))
        monkeypatch.setattr(os, "read", read)
        raise KeyboardInterrupt

    absent = [Task.ref("\0" * 150 + str(number)) for number in range(64)]
    with connect(engine.state) as client:
        refused = client.submit_many([Update(task, {"title": "x"}) for task in absent])
        monkeypatch.setattr(os, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(refused)
        assert client.create(Task(title="after")).title == "after"


def test_a_displaced_client_stays_displaced_also_when_nobody_could_tell_it(state, start_engine):
    engine = start_engine(state)
    with connect(state, client_id="worker-7") as old:
        old.create(Task(title="x", id="t"))
        restarts = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)  # its lane is gone before it reads of its successor
        with connect(state, client_id="worker-7") as new:
            assert new.update(Task.ref("t"), title="new").title == "new"
            with pytest.raises(Fenced):
                old.update(Task.ref("t"), title="old")
            assert new.update(Task.ref("t"), title="newer").title == "newer"
        assert engine.restarts == restarts + 1


def test_threads_may_wait_without_an_end(engine, wait_until):
    """The one that reads, and the one that looks on."""
    with connect(engine.state) as client, connect(engine.state) as other, ThreadPoolExecutor(2) as waiting:
        claims = [waiting.submit(client.claim, Task, timeout_s=math.inf) for _ in range(2)]
        wait_until(lambda: client._session.waiting == 2, 20, "both wait")
        other.create(Task(title="x"))
        other.create(Task(title="y"))
        assert {claim.result(60).title for claim in claims} == {"x", "y"}


@pytest.mark.parametrize("patience_s", [math.inf, 1e12, 30 * 86_400.0])
def test_a_clients_patience_may_have_no_end(engine, patience_s):
    endless = Limits(
        connect_timeout_s=patience_s, request_timeout_s=patience_s, wait_backstop_s=min(patience_s, SECONDS_MAX)
    )
    with connect(engine.state, limits=endless) as client:
        assert client.create(Task(id="t", title="x")).version == 1
        os.kill(engine.pid, signal.SIGKILL)
        assert client.update(Task.ref("t"), title="y").version == 2

    async def main() -> None:
        async with aio.connect(engine.state, limits=endless) as client:
            assert (await client.update(Task.ref("t"), title="z")).version == 3

    asyncio.run(main())


def test_a_large_request_beside_a_thread_that_waits_is_sent_at_once(engine, wait_until):
    """More than a pipe holds. Who reads for all sleeps, on replies alone, since before it was there."""
    limits = Limits(wait_backstop_s=60)
    with connect(engine.state, limits=limits) as client, ThreadPoolExecutor(1) as waiting:
        claim = waiting.submit(client.claim, Task, where={"project": "p"}, timeout_s=math.inf)
        wait_until(lambda: client._exchange._reading and client._session.waiting, 20, "it reads")
        try:
            for n in range(3):
                large = "x" * (PIPE_BYTES + 100_000)
                client.put(Task(id="large", title=str(n), metadata={"text": large}), timeout_s=10)
            many = [Put(Task(id=str(n), title="x", metadata={"text": "x" * 30_000})) for n in range(100)]
            assert all(reply.applied for reply in client.submit_many(many, timeout_s=10))  # some wait for room
        finally:
            with connect(engine.state) as other:
                other.create(Task(title="x", project="p"))
        assert claim.result(60).title == "x"


def test_after_a_vain_wait_a_client_is_patient_with_an_engine_that_is_busy(state, start_engine, hurry):
    """Where nobody listens it is told so at once; who listens has the time to answer."""
    engine = start_engine(state)
    with connect(state) as client, ThreadPoolExecutor(1) as another:
        hurry(client, 0.3)
        client.create(Task(title="x", id="t"))
        engine.stop()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                client.update(Task.ref("t"), title="y")
        engine = start_engine(state)
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            updated = another.submit(client.update, Task.ref("t"), title="z", timeout_s=60)
            with pytest.raises(TimeoutError):
                updated.result(0.1)  # ten times what it was given before
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        assert updated.result(60).title == "z"


def test_what_is_given_to_another_process_says_that_it_opens_its_own(state, start_engine):
    """Pickled, as the arguments of a process that is spawned are."""
    start_engine(state)

    async def awaited():
        async with aio.connect(state) as client:
            refused(client, "client", "connect")
            refused(client.reader, "reader", "open_reader")

    def refused(opened, what, way, rest=""):
        words = f"a {what} belongs to the process that made it; another one gets the path and opens its own: "
        with pytest.raises(TypeError, match=re.escape(f"{words}{way}({str(state)!r}{rest})")):
            pickle.dumps(opened)

    with connect(state) as client, open_reader(state) as reader, open_reader(state, offline=True) as offline:
        refused(client, "client", "connect")
        refused(reader, "reader", "open_reader")
        refused(offline, "reader", "open_reader", ", offline=True")
    asyncio.run(awaited())


def test_engines_and_snapshots_say_what_another_process_gets_in_their_place(state, start_engine):
    engine = start_engine(state)
    with pytest.raises(
        TypeError, match=re.escape(f"another process gets the path, and connects: connect({str(state)!r})")
    ):
        pickle.dumps(engine)

    async def awaited():
        async with aio.open_reader(state) as reader:
            return await reader.snapshot()

    with open_reader(state) as reader, open_reader(state, offline=True) as offline:
        snaps = {reader.snapshot(): "", offline.snapshot(): ", offline=True", asyncio.run(awaited()): ""}
        for snap, rest in snaps.items():
            looks = re.escape(f"looks for itself: open_reader({str(state)!r}{rest}).at({snap.revision})")
            with snap, pytest.raises(TypeError, match=looks):
                pickle.dumps(snap)


def test_a_forked_child_never_uses_nor_holds_its_parents_lane(state, start_engine):
    start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
        requests = client._exchange._lane.requests
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the pytest process has threads; the child only looks and exits
            child = os.fork()
        if child == 0:
            status = 1
            try:
                client.create(Task(title="never"))
            except EngineUnavailable:
                try:
                    os.fstat(requests)
                except OSError:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert client.create(Task(title="y")).version == 1


def pipes() -> set[str]:
    """Those that this process holds open."""
    return {target for target in targets() if target.startswith("pipe:")}


def targets() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads: the child only looks and ends
@pytest.mark.parametrize("lane", ["the first", "the next"])
def test_a_child_forked_at_any_step_of_a_handshake_holds_nothing_of_it(engine, at_step, lane):
    client, before = connect(engine.state), pipes()

    def fork() -> None:
        lane = pipes() - before
        child = os.fork()
        if child == 0:
            os._exit(len(pipes() & lane))
        assert os.waitpid(child, 0)[1] == 0, f"forked at {reached}"

    steps, reached = 0, [""]
    while reached:
        steps += 1
        with at_step(steps, fork, exchange) as reached:
            if lane == "the first":
                connect(engine.state).close()
            else:
                client._exchange._broken = True
                client.put(Task(title="x", id="t"))
    client.close()
    assert steps > 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # likewise
@pytest.mark.parametrize("lane", ["the first", "the next"])
def test_no_fork_of_another_thread_comes_in_the_middle_of_making_or_closing_a_lane(engine, at_step, elsewhere, lane):
    """Its child would hold what nobody has noted, or only closed a half of, and while it lives, nobody would notice the
    death of the engine.
    """
    steps, waited, reached = 0, 0, [""]

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(len(pipes() - before))
        children.append(child)
        ended.append(os.waitpid(child, 0)[1])

    def fork_elsewhere() -> None:
        nonlocal waited
        forking.append(elsewhere(fork))
        if forks_held_off._is_owned():
            waited += 1
            assert not children, f"a fork did not wait at {reached}"
        else:
            forking[0].join()

    with connect(engine.state) as client:
        children, ended, before = [], [], pipes()
        fork()
        (usual,) = ended  # a library may make a pipe of its own in each child, as libuv does
        while reached:
            steps, before = steps + 1, pipes()
            children, ended, forking = [], [], []
            with at_step(steps, fork_elsewhere, exchange, greeting, lanes, connection) as reached:
                if lane == "the first":
                    connect(engine.state).close()
                else:
                    client._exchange._broken = True
                    client.put(Task(title="x", id="t"))
            for one in forking:
                one.join()
            assert ended == [usual] * len(forking), f"forked at {reached}"
    assert waited > 10


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_agents_of_every_start_method_work(state, start_engine, tmp_path, monkeypatch, method):
    start_engine(state)
    (tmp_path / "agent_module.py").write_text(
        textwrap.dedent(
            """
            from solewriter import Task, TaskStatus, connect
            def agent(state, number):
                with connect(state, name=f"agent-{number}") as client:
                    task = client.create(Task(title=f"from {number}", id=f"agent-{number}"))
                    client.transition(task, TaskStatus.ASSIGNED, assigned_to=client.name)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import agent_module  # type: ignore[import-not-found]  # written just above

    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which is what is tested
        agents = [
            context.Process(target=agent_module.agent, args=(str(state), number), daemon=True) for number in range(3)
        ]
        for process in agents:
            process.start()
    for process in agents:
        process.join(60)
    assert [process.exitcode for process in agents] == [0, 0, 0]
    with connect(state) as client:
        found = {task.id: task.assigned_to for task in client.reader.snapshot().entities(Task)}
    assert found == {f"agent-{number}": f"agent-{number}" for number in range(3)}
    sys.modules.pop("agent_module")


def test_another_users_process_is_refused_before_a_byte_is_decoded(passable, start_engine):
    if os.geteuid() != 0:
        pytest.skip("changing the uid needs root")
    state = passable / "state"
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    state.chmod(0o755)
    program = textwrap.dedent(
        """
        import os, socket, sys
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        refused = 0
        for path in sys.argv[2:]:
            try:
                open(path, "rb").read()
            except PermissionError:
                refused += 1
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(sys.argv[1])
            answer = connection.recv(1)
        except PermissionError:
            answer = b""
        print(refused, answer)
        """
    )
    where = engine.folder.whereabouts()
    secret = [
        os.path.join(where.memory_dir, f"{where.prefix}-root"),
        *map(str, state.glob("journal-*.log")),
        str(state / "engine.json"),
    ]
    os.chmod(state / "engine.sock", 0o777)  # even if somebody opens the door, the uid is looked at
    run = subprocess.run(
        [sys.executable, "-c", program, str(state / "engine.sock"), *secret],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.strip() == f"{len(secret)} b''"


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_another_users_client_and_reader_are_told_that_they_cannot(start_engine, mode, passable):
    if os.geteuid() != 0:
        pytest.skip("changing the uid needs root")
    engine = start_engine(passable / "state")
    engine.state.chmod(mode)
    program = textwrap.dedent(
        """
        import os, sys
        from functools import partial
        from pathlib import Path
        from solewriter import EngineUnavailable, Limits, OfflineReader, connect, open_reader
        from solewriter.agents.verify import verify
        from solewriter.shared.lane import Lane
        Lane().close()  # all is imported: nobody else may be able to read where this is installed
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        os.stat(sys.argv[1])  # it comes as far as there
        hurried = dict(limits=Limits(connect_timeout_s=0.1))
        for meet in (partial(connect, **hurried), partial(open_reader, **hurried), OfflineReader, verify):
            try:
                meet(Path(sys.argv[1]))
            except EngineUnavailable as error:
                print(error.final, end=" ")
                assert sys.argv[1] in str(error) and "nothing is journaled" not in str(error)
        """
    )
    command = [sys.executable, "-c", program, str(engine.state)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout.split(), run.stderr) == (["False", "True", "True", "True"], "")


def test_a_state_folder_with_a_very_long_path_works(tmp_path, start_engine):
    state = tmp_path / ("long-" * 20) / ("path-" * 20)
    start_engine(state)
    with connect(state) as client:
        assert client.create(Task(title="x")).version == 1


NAMES = {"spaces": b"a b", "lines": "\u00e4\n".encode(), "no UTF-8": b"caf\xe9", "patterns": b"x[1]*?{a}%s"}


@pytest.mark.parametrize("name", NAMES)
def test_a_state_folder_may_have_any_name(tmp_path, start_engine, monkeypatch, wait_until, limits, name):
    """So may any folder that the owner imports from."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + NAMES[name]))
    state = folder / "state"
    monkeypatch.syspath_prepend(folder)
    engine = start_engine(state, limits=msgspec.structs.replace(limits, checkpoint_after_bytes=1))
    with connect(state) as client:
        task = client.create(Task(title="x"))
        wait_until(lambda: list(state.glob("checkpoint-*0*")), 20, "a checkpoint")
        os.kill(engine.pid, signal.SIGKILL)
        assert client.update(task, title="y").version == 2
    with pytest.raises(Locked, match="is owned by pid"):
        start_engine(state)


COUNTS = [pytest.param(20_000, marks=pytest.mark.heavy), pytest.param(100_000, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", COUNTS)
def test_very_many_entities_are_stored_read_and_recovered(state, start_engine, count):
    engine = start_engine(state)
    limits = Limits(request_timeout_s=60)
    with connect(state, limits=limits) as client:
        for reply in client.submit_many(
            Create(Task(title="x", id=f"e{number}", max_retries=number)) for number in range(count)
        ):
            assert reply.error is None
        assert client.submit(Cancel(Task.ref("e77"))).applied
    engine.stop()
    start_engine(state)
    with connect(state) as client:
        snap = client.reader.snapshot()
        assert snap.counts["Task"] == count
        assert snap.revision == count + 1
        some = range(0, count, 997)
        assert [snap[Task, f"e{number}"].max_retries for number in some] == list(some)
        assert snap[Task, "e77"].status is TaskStatus.CANCELLED
        assert sum(1 for _ in snap.entities("Task")) == count


def _rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_one_frame_cannot_hold_the_engine_up_by_saying_the_same_thing_often(state, start_engine, client_of_a_raw_lane):
    """The budget of nodes is the frame's, not each request's: a request repeated 256 times takes 1.8 KB."""
    start_engine(state)
    request = ([(3, "Task", "t", None, {"metadata": {"a": [[None] * 1_000] * 98}}, "", None)], [], None, None)
    raw = client_of_a_raw_lane(state)
    raw.write(framed(pickle.dumps([request] * 256, 5)))
    answers = [raw.reply() for _ in range(256)]
    assert {answer[1] for answer in answers} == {REFUSED}
    assert [answer[3][0] for answer in answers[1:]] == ["BadRequest"] * 255


def test_a_refused_first_request_of_a_frame_says_nothing_of_the_others(state, start_engine, client_of_a_raw_lane):
    """Only a frame that could not be decoded is refused as a whole."""
    start_engine(state)
    with connect(state) as client:
        tasks = [client.create(Task(title="x", id=f"t{number}")) for number in range(4)]
        mutations = [
            Update(task, {"title": "new"}, reason="\udce9" if number == 0 else "") for number, task in enumerate(tasks)
        ]
        assert [reply.applied for reply in client.submit_many(mutations)] == [False, True, True, True]
        assert [client.get(Task, f"t{number}").title for number in range(4)] == ["x", "new", "new", "new"]


@pytest.mark.parametrize(
    "body", [b"\x80\x05\x8c\x03\xed\xa0\x80\x8c\x01x\x93.", b"\x80\x05c" + b"n" * 500_000 + b"\nx\n."]
)
def test_a_name_that_cannot_be_written_or_is_huge_is_refused_in_few_words(
    state, start_engine, client_of_a_raw_lane, body
):
    engine = start_engine(state)
    pid = engine.pid
    raw = client_of_a_raw_lane(state)
    raw.write(framed(body))
    assert len(raw.reply()[3][1]) < 1_000
    assert engine.pid == pid


def test_a_client_whose_processor_somebody_else_wants_sleeps_instead_of_looking(state, start_engine):
    """Looking for replies is for those who have a processor to spare."""
    start_engine(state)
    own = os.sched_getaffinity(0)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with connect(state) as client:
            task, spinning = client.create(Task(title="x")), client._exchange._spinning

            def until(looks, why):
                nonlocal task
                deadline = time.monotonic() + 20
                while (spinning._waited_s < DEFAULT_LIMITS.spin_s and not spinning.crowded_until) is not looks:
                    assert time.monotonic() < deadline, why
                    task = client.update(task, description=str(time.monotonic()))

            until(True, "it does not begin to look")
            one = {min(own)}
            os.sched_setaffinity(0, one)
            os.sched_setaffinity(busy.pid, one)
            until(False, "it goes on looking")
    finally:
        os.sched_setaffinity(0, own)
        busy.kill()
        busy.wait()


@pytest.mark.parametrize("error", [TimeoutError, OSError])
def test_what_a_signal_handler_raises_while_an_engine_does_not_answer_ends_the_wait(
    state, start_engine, ctrl_c_when, error
):
    """An alarm's TimeoutError is no silence of the engine's, after which there is another hello."""
    engine = start_engine(state)

    def interrupt(*_):
        raise error("an alarm")

    os.kill(engine.pid, signal.SIGSTOP)
    try:
        with ctrl_c_when(lambda: any(one._greeting for one in exchange._open), "a hello is said"):
            signal.signal(signal.SIGALRM, interrupt)  # in place of Ctrl-C
            with pytest.raises(error, match=r"^an alarm$"):
                connect(state)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    with connect(state) as client:
        client.create(Task(title="t"))
