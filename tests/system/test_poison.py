"""Poison on a lane of a real engine: refused by number, nothing obeyed, the engine lives and serves, within bounds."""

from __future__ import annotations

import contextlib
import copyreg
import os
import socket
import struct
import threading
from collections import Counter

import pytest

from solewriter import Create, Forgotten, Limits, NotApplied, Task, Update, connect
from solewriter.shared import handshake, wire
from solewriter.shared.config import DEFAULT_LIMITS, FRAME_REQUESTS_MAX, KIB, MIB
from solewriter.shared.errors import BadRequest, InvalidMutation, LayoutMismatch, RequestTooLarge
from solewriter.shared.folder import StateFolder
from solewriter.shared.request_ids import default_id, session_number

BOUNDS = Limits(engine_headroom_bytes=256 * MIB, spin_s=0.0)
MODELS = """
import copyreg, pickle
from solewriter import Entity

class Innocent(Entity):
    size: int = 0

copyreg.add_extension("os", "system", 1)
pickle.loads(bytes([128, 2, 0x82, 1]) + b".")  # in the cache now, where nobody asks find_class for it
"""


def framed(body: bytes) -> bytes:
    return struct.pack("!i", len(body)) + body


def memory(pid: int) -> dict[str, int]:
    """Bytes of private memory of a process, by the kernel's names: now, and at most so far."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: int(fields[name].split()[0]) * KIB for name in ("RssAnon", "VmHWM")}


class Lanes:
    """One raw lane after another, as often as the engine closes one."""

    def __init__(self, state, make) -> None:
        self.made = 0
        self._state, self._make = state, make
        self._raw = None
        self._frame = 0

    def tell(self, body: bytes):
        """What this frame is told: at once, or where its lane was closed because of it, when somebody asks."""
        if self._raw is None:
            self.made += 1
            self._raw, self._frame = self._make(self._state, client_id=f"poisoner {self.made}"), 0
        self._raw.write(framed(body))
        sequence, self._frame = self._frame * FRAME_REQUESTS_MAX, self._frame + 1
        reply = self._raw.reply()
        while reply is not None and reply.sequence < sequence:  # of a frame before, which held more than one
            assert reply.status == wire.Status.REFUSED
            reply = self._raw.reply()
        if reply is not None:
            assert (reply.sequence, reply.status) == (sequence, wire.Status.REFUSED)
            return reply.detail[0]
        self._raw.die()
        self._raw = None
        with connect(self._state) as client:
            told = client.outcome(default_id(session_number(f"poisoner {self.made}"), sequence))
            return type(told).__name__


@pytest.fixture
def poisoned(state, start_engine, tmp_path, monkeypatch):
    """An engine whose models unpickled an extension before."""
    (tmp_path / "innocent_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    import innocent_models  # type: ignore[import-not-found]  # written just above

    copyreg.clear_extension_cache()
    copyreg.remove_extension("os", "system", 1)
    return start_engine(state, models=[innocent_models.Innocent], limits=BOUNDS)


def test_poison_on_a_lane_is_refused_by_number_while_others_are_served(
    state, poisoned, poison, tmp_path, client_of_a_raw_lane
):
    pid, corpus = poisoned.pid, poison["corpus"]()
    with connect(state) as client:
        task = client.create(Task(title="x", id="t", max_retries=0))
        for reply in client.submit_many(Create(Task(title="warm", description="y" * 1_000)) for _ in range(500)):
            reply.check()
        before = memory(pid)["RssAnon"]
        lanes, wrong = Lanes(state, client_of_a_raw_lane), {}
        for number, (name, body) in enumerate(corpus.items()):
            if not 0 < len(body) <= DEFAULT_LIMITS.frame_bytes_max:
                continue
            told = lanes.tell(body)
            if told not in (BadRequest.__name__, InvalidMutation.__name__, RequestTooLarge.__name__):
                wrong[name] = told
            if number % 40 == 0:
                task = client.update(task, max_retries=task.max_retries + 1)
        assert wrong == {}
        assert lanes.made < 30, "only what costs too much ends a lane"
        assert task.max_retries == (len(corpus) + 39) // 40
    assert poisoned.pid == pid
    assert not list(tmp_path.glob(f"**/{poison['TRACE']}"))
    after = memory(pid)
    assert after["RssAnon"] - before < 64 * MIB, "memory was not given back"
    assert after["VmHWM"] < before + BOUNDS.engine_headroom_bytes + 128 * MIB, "one frame took more than its limit"


@pytest.mark.parametrize("name", ["laughs of 2^25", "a request named 256 times", "LONG_BINPUT at 2^20"])
def test_a_lane_full_of_bombs_is_closed_before_it_costs_the_others_much(
    state, start_engine, poison, client_of_a_raw_lane, name
):
    """2,000 of them, written at once, would keep the engine from everybody for half a minute."""
    engine = start_engine(state, limits=BOUNDS)
    pid = engine.pid
    raw = client_of_a_raw_lane(state, client_id="bomber")
    frame = framed(poison["corpus"]()[name])
    os.set_blocking(raw.lane.requests, False)
    written = os.write(raw.lane.requests, frame * (128 * KIB // len(frame)))
    while raw.reply() is not None:
        pass  # what was told of those before the lane was closed
    session, frames = session_number("bomber"), written // len(frame)
    with connect(state) as client:
        assert isinstance(client.outcome(default_id(session, 0)), BadRequest | Forgotten), "the first is told by number"
        assert isinstance(client.outcome(default_id(session, min(frames - 1, 20) * FRAME_REQUESTS_MAX)), NotApplied)
        client.create(Task(title="x"))
    assert (engine.pid, engine.hung) == (pid, False)


@pytest.mark.parametrize("name", ["a mutation named a thousand times", "a guard named a thousand times"])
def test_what_is_named_again_and_again_is_decided_only_so_often(
    state, start_engine, poison, client_of_a_raw_lane, name
):
    """Three kilobytes with a quarter of a million mutations: every request of them ends, most of them at once."""
    start_engine(state)
    raw = client_of_a_raw_lane(state)
    raw.write(framed(poison["greedy"]()[name]))
    told = [raw.reply() for _ in range(FRAME_REQUESTS_MAX)]
    assert [reply.sequence for reply in told] == list(range(FRAME_REQUESTS_MAX))
    assert {reply.status for reply in told} == {wire.Status.REFUSED}
    names = [reply.detail[0] for reply in told]
    assert names[0] != BadRequest.__name__, "it was to be decided"
    assert names.count(BadRequest.__name__) > FRAME_REQUESTS_MAX - 25


def test_one_refused_request_takes_nothing_from_the_others_of_its_frame(state, start_engine, client_of_a_raw_lane):
    """Each of them is as large as it may be; what is wrong with the first is at its very end."""
    start_engine(state)
    raw = client_of_a_raw_lane(state)
    large = {"metadata": {"x": [[0] * 1_000] * 20 + ["\ud800"]}}
    fine = ([(1, "Task", "fine", 0, {"title": "y"}, "", None)], [], None, None)
    raw.write(wire.pack_frame([([(1, "Task", "no", 0, large, "", None)], [], None, None), fine], DEFAULT_LIMITS))
    assert [raw.reply().status for _ in range(2)] == [wire.Status.REFUSED, wire.Status.APPLIED]


def test_a_frame_before_bad_framing_is_decided(state, start_engine, client_of_a_raw_lane, wait_until):
    """What was whole was sent; only the rest of the stream means nothing."""
    start_engine(state)
    raw = client_of_a_raw_lane(state, client_id="framer")
    raw.write(raw.frame([Create(Task(title="x", id="whole"))]) + struct.pack("!i", -1) + b"x" * 40)
    with connect(state) as client:
        wait_until(lambda: client.get(Task, "whole"), 10, "the whole frame is decided")
        while raw.reply() is not None:
            pass  # until its lane is closed
        assert client.update(Task.ref("whole"), title="y").version == 2
    again = client_of_a_raw_lane(state, client_id="framer", resends=True)
    again.write(again.frame([Create(Task(title="x", id="whole"))]) + again.frame([Update(Task.ref("whole"), {})]))
    assert [again.reply().status for _ in range(2)] == [wire.Status.APPLIED] * 2


HELLOS = {
    "nested deep": b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0",
    "no text": b"\x81\xa4name\xa1\xff",
    "no map": b"\xc0",
    "nothing": b"",
    "a pickle": b"\x80\x05cos\nsystem\n.",
}


def open_in(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was just being closed
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sorted(found)


def test_a_hello_that_cannot_be_read_is_refused_and_let_go(engine, wait_until):
    """Also one on which the decoder itself gives up: nothing of it stays open in the engine."""
    with connect(engine.state) as client:
        client.create(Task(title="x"))
        before = open_in(engine.pid)
        for name, body in HELLOS.items():
            with engine.folder.connected_socket(10) as connection:
                reading, writing = os.pipe()
                socket.send_fds(connection, [struct.pack("<I", len(body)) + body], [reading, writing])
                os.close(reading)
                os.close(writing)
                header = connection.recv(handshake.WORDS_HEADER_BYTES, socket.MSG_WAITALL)
                words = connection.recv(handshake.words_length(header), socket.MSG_WAITALL)
                welcome = handshake.unpack_welcome(words)
                assert (welcome.ok, "cannot be read" in welcome.reason) == (False, True), name
                assert connection.recv(1) == b"", name
            client.create(Task(title="y"))
            wait_until(lambda: not Counter(open_in(engine.pid)) - Counter(before), 30, f"{name} leaves nothing open")


def test_an_engine_that_answers_nonsense_is_told_from_none(state):
    """A client does not wait for it, nor for four gigabytes of welcome."""
    state.mkdir(mode=0o700)
    answers = [struct.pack("<I", 2**32 - 1), struct.pack("<I", 1) + b"\xc0", struct.pack("<I", 3) + b"\x81\xa1x"]
    with StateFolder(state).bound_socket() as listening:
        listening.listen()

        def answer() -> None:
            for said in answers:
                connection, _ = listening.accept()
                with connection:
                    _, fds, _, _ = socket.recv_fds(connection, 65536, 2)
                    for fd in fds:
                        os.close(fd)
                    connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in answers:
            with pytest.raises(LayoutMismatch):
                connect(state, limits=Limits(connect_timeout_s=5))
        thread.join()
