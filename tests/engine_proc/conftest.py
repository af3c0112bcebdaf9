"""What the tests of the engine's rooms share: an engine inside this process, which can be killed at any named step.

`LocalEngine` is made of the real parts: journal files, segments, lanes, recovery, the event loop of production. Only
the process is missing, and with it chance: the loop runs when the test says so, and what production does beside the
loop is done at once. Killing it does what the kernel does for a killed process, and nothing else: descriptors go, the
lock with them; files, segments and whatever the engine had not written yet stay as they are.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import gc
import os
import shutil
import socket
import struct
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import msgspec
import pytest
import uvloop

from solewriter import Limits
from solewriter.engine_proc import filejournal as journals
from solewriter.engine_proc import reclaim
from solewriter.engine_proc.betweenturns import Finished, Settled
from solewriter.engine_proc.checkpointing.checkpoint import make
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.server import Server
from solewriter.engine_proc.start import Start
from solewriter.engine_proc.tuning import Threads
from solewriter.shared import failpoint, handshake, wire
from solewriter.shared.config import DEFAULT_LIMITS, KIB, WIRE_VERSION
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.handshake import Hello, Welcome
from solewriter.shared.lane import Lane
from solewriter.shared.memory.view import View
from solewriter.shared.mutations import Op
from solewriter.shared.request_ids import default_id, session_number
from solewriter.shared.wire import Status

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where a sync costs nothing
NO_MODELS = cloudpickle.dumps([])
UNDIVIDED = {"turn_max_s": 3_600.0, "turn_slice_s": 3_600.0}  # no clock ends a turn or a slice: that would be chance
PASSES = 6  # of the loop: accept, hear the hello, read, close one pass later; more while bytes are still being read


class Killed(BaseException):
    """The process ends here: nothing of the engine's catches it."""


class Steps:
    """Stands where `failpoint.reach` does: notes the steps; at one of them the engine dies, or the disk is full."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.kill_at: str | None = None
        self.disk_full = False

    def __call__(self, step: str) -> None:
        self.reached.append(step)
        if step == self.kill_at:
            self.kill_at = None
            raise Killed(step)
        if step == "journal.prepare" and self.disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class AtOnce(Executor):
    """Work beside the loop that is always done by the time somebody looks."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class Listening(socket.socket):
    """A listening socket that knows whom it let in."""

    accepted: list[socket.socket]

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self.accepted.append(connection)
        return connection, address


def descriptors() -> dict[int, str]:
    """What this process holds open, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # of the listing itself
            pass
    return found


class Starting(Start):
    """One that may be killed: what there is of its memory by then."""

    memory: Publisher | None = None

    def _make_memory(self, own: Whereabouts) -> Publisher:
        self.memory = super()._make_memory(own)
        return self.memory


class LocalEngine:
    """One life of an engine: it has recovered and listens. Raises Killed when it died in recovery."""

    def __init__(self, state: Path, limits: Limits, durability: str, theirs: set[int]) -> None:
        limits = msgspec.structs.replace(limits, **UNDIVIDED)
        self._folder = f"{state}/"
        self._sockets: list[socket.socket] = []
        self._failures: list[BaseException] = []
        self.loop: Any = uvloop.new_event_loop()
        self.loop.set_exception_handler(self._failed)
        self.read()  # a loop opens what it needs when it runs
        self._before = descriptors().items()
        orders = Orders(str(state), durability, limits, 0, [], NO_MODELS)
        self._start = Starting(orders, Threads(AtOnce(), AtOnce(), AtOnce()))
        try:
            epoch = self._start.recover()
        except BaseException:
            self.kill(theirs)
            raise
        if isinstance(epoch.journal, journals.FileJournal):
            epoch.journal._syncer.shutdown()
            epoch.journal._syncer = AtOnce()
        self.server = Server(epoch._replace(maker=make), self.loop)
        self.bridge, self.writer = self.server.bridge, self.server.writer
        listening = Listening(fileno=epoch.folder.bound_socket().detach())
        listening.accepted = self._sockets
        self.bridge.listen(listening, self.writer.gone)
        self._sockets.append(listening)
        where = epoch.folder.whereabouts()
        self.prefix = where.prefix
        self.view = View(where.memory_dir, where.prefix)

    def _failed(self, loop: Any, context: dict[str, Any]) -> None:
        self._failures.append(context.get("exception") or RuntimeError(str(context)))

    def read(self, unread: Callable[[], list[int]] = list) -> None:
        """Let the bridge take what is there. Nothing is decided."""
        self.loop.run_until_complete(self._passes(unread))
        if self._failures:
            raise self._failures.pop()

    async def _passes(self, unread: Callable[[], list[int]]) -> None:
        before, left = None, unread()
        for done in range(10 * PASSES):
            if self._failures or (done >= PASSES and left == before):
                return
            await asyncio.sleep(0)
            before, left = left, unread()

    def turn(self) -> None:
        """Let the writer do everything that was read, in one turn."""
        self.bridge.inbox.put_nowait(None)
        self.loop.run_until_complete(self.writer.run())
        if self._failures:
            raise self._failures.pop()

    def finish_checkpoint(self) -> None:
        """Between two turns: one that was made is journaled, and what it takes the place of goes."""
        self.read()
        inbox, others = self.bridge.inbox, []
        while not inbox.empty():
            items = inbox.get_nowait()
            if isinstance(items[0], Finished | Settled):
                self.loop.run_until_complete(self.writer.between.run(items[0]))
                self.read()
            else:
                others.append(items)
        for items in others:
            inbox.put_nowait(items)

    def held(self, theirs: set[int], *beginnings: str) -> list[int]:
        """Descriptors that the engine holds, of these kinds; `theirs` are the agents' ends of all lanes."""
        new = descriptors().items() - self._before
        return [fd for fd, link in new if fd not in theirs and f"{link}/".startswith(beginnings)]

    def kill(self, theirs: set[int]) -> None:
        """What the kernel does for a process that is gone. Mappings go with the last view of them: each has a
        descriptor that is its own to close, and closed behind its back it would later close somebody else's.
        """
        for one in self._sockets:
            one.close()
        self.loop.close()
        for fd in self.held(theirs, "pipe:", "anon_inode:[pidfd]", self._folder):
            os.close(fd)
        if self._start.memory is not None:  # it came so far
            reclaimer = self._start.memory.reclaimer
            condemned, reclaimer.condemned = reclaimer.condemned, []
            for one in condemned:
                os.close(one.fd)

    def stop(self, theirs: set[int]) -> None:
        """A clean end, as a drained process comes to it."""
        self.loop.run_until_complete(self.server.end_life())
        self.bridge.stop_listening()
        self.bridge.close()
        self.read()
        self.server.epoch.close()
        self.kill(theirs)


class Call:
    """An agent's lane, by hand: what is written is what the engine reads, and nothing here ever waits."""

    def __init__(self, state: Path, hello: Hello) -> None:
        self.client = hello.client_id
        self.lane = Lane()
        self.connection = StateFolder(state).connected_socket(5)
        fds = array.array("i", self.lane.theirs)
        words = handshake.pack_words(hello)
        self.connection.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self.lane.hand_over()
        self.connection.setblocking(False)
        self.closed = False
        self._received = bytearray()

    @property
    def fds(self) -> set[int]:
        return set() if self.closed else {self.lane.requests, self.lane.replies}

    def write(self, data: bytes) -> None:
        assert os.write(self.lane.requests, data) == len(data)

    def unread(self) -> int:
        """Bytes that the engine has not taken."""
        return struct.unpack("i", fcntl.ioctl(self.lane.requests, termios.FIONREAD, bytes(4)))[0]

    def welcome(self) -> Welcome | None:
        """The answer to the hello; None if there is none yet, or never will be."""
        try:
            data = self.connection.recv(65536)
        except (BlockingIOError, ConnectionResetError):
            return None
        return handshake.unpack_welcome(data[handshake.WORDS_HEADER_BYTES :]) if data else None

    def replies(self) -> list[Any]:
        """What came since the last look; None stands for the end of the lane."""
        try:
            while data := os.read(self.lane.replies, 65536):
                self._received += data
        except BlockingIOError:
            return wire.unpack_replies(self._received)
        return [*wire.unpack_replies(self._received), None]

    def close(self) -> None:
        """As the kernel does for a process that is gone."""
        self.closed = True
        self.connection.close()
        self.lane.close()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[LocalEngine, Call, Steps]]]:
    """`alone(**limits)`: an engine in this process with one agent, and the steps that it comes by."""
    steps = Steps()
    monkeypatch.setattr(failpoint, "reach", steps)
    (tmp_path / "memory").mkdir()
    made: list[tuple[LocalEngine, Call]] = []

    def start(**limits: Any) -> tuple[LocalEngine, Call, Steps]:
        engine = LocalEngine(
            tmp_path / "state", Limits(memory_dir=str(tmp_path / "memory"), spin_s=0, **limits), "memory", set()
        )
        words = Hello(
            wire=WIRE_VERSION, client_id="alone", name="alone", pid=os.getpid(), first=0, instance="1", resends=False
        )
        call = Call(tmp_path / "state", words)
        made.append((engine, call))
        engine.read()
        engine.turn()
        welcome = call.welcome()
        assert welcome is not None
        assert welcome.ok
        return engine, call, steps

    yield start
    for engine, call in made:
        engine.stop(call.fds)
        call.close()


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a test makes engines of by itself: `LocalEngine`, `Call`, and the `steps` that all of them come by."""
    steps = Steps()
    monkeypatch.setattr(failpoint, "reach", steps)
    monkeypatch.setattr(journals, "JOURNAL_FILE_BYTES_FIRST", 4 * KIB)
    return SimpleNamespace(LocalEngine=LocalEngine, Call=Call, steps=steps)


# --- agents, and a model to compare with ------------------------------------------------------------------------------

NEVER = ("refused", 0, "Fenced")  # as an outcome it says the same as no outcome: not applied, now or ever
OPS = {"create": Op.CREATE, "put": Op.PUT, "update": Op.UPDATE, "cancel": Op.CANCEL, "delete": Op.DELETE}
Item = tuple[int, str, int, Any]  # lane, client, sequence, what: "hello", "request", "ask", "broken" or "garbage"


def encoded(frame: list[Any]) -> bytes:
    """The bytes of a frame."""
    if frame[0][0] == "garbage":
        return len(frame[0][1]).to_bytes(4, "big") + frame[0][1]
    return wire.pack_frame([plain(what) for what in frame], DEFAULT_LIMITS)


def plain(what: Any) -> Any:
    match what:
        case "ask", (client, sequence):
            return "outcome", default_id(session_number(client), sequence)
        case "ask", name:
            return "outcome", name
        case "request", mutations, name, late, long:
            return [plain_mutation(*one, "r" * 4_000 * long) for one in mutations], [], name, 1 if late else None
    return ("no request",)


def plain_mutation(verb: str, id: str, expect: int | None, title: str, reason: str) -> Any:
    fields = {"title": title} if verb in ("create", "put", "update") else None
    return OPS[verb].value, "Task", id, expect, fields, reason, None


def said(reply: Any) -> Any:
    """A reply, as a model says it."""
    if reply is None:
        return None
    sequence, status, revision, detail = reply
    if status == Status.FENCED:
        return "fenced"
    if status == Status.ANSWER:
        found = None if detail is None else told(*detail)
        return sequence, "answer", revision, None if found == NEVER else found
    return sequence, *told(status, revision, detail)


def told(status: int, revision: int, detail: Any) -> Any:
    if status == Status.APPLIED:
        return "applied", revision, tuple((version, id) for version, _, _, id in detail)
    return "refused" if status == Status.REFUSED else "unavailable", revision, detail[0]


AVOIDED: frozenset[str] = frozenset()


@dataclass
class Agent:
    """One client object: what it sent, and the number of its next frame."""

    client: str
    instance: str = ""
    frames: dict[int, list[Any]] = field(default_factory=dict)
    next: int = 0
    lane: int | None = None
    rest: tuple[bytes, list[Item]] | None = None  # of a frame that was begun


class World:
    """A state folder with its engine, its agents, and a model of both that is asked what must come of it."""

    def __init__(
        self,
        steps: Steps,
        model: Any,
        clients: Sequence[str],
        limits: Limits,
        durability: str,
        avoided: AbstractSet[str] = AVOIDED,
    ) -> None:
        self.held = descriptors().items()
        self.folder = Path(tempfile.mkdtemp(prefix="local-engine-", dir=MEMORY))
        (self.folder / "memory").mkdir()
        self.limits = msgspec.structs.replace(limits, memory_dir=str(self.folder / "memory"))
        self.durability = durability
        self.avoided = avoided
        self.coming: set[str] = set()  # sessions of which a coming number was asked for in this turn
        self.model = model
        self.steps = steps
        self.agents = [Agent(client) for client in clients]
        self.used = dict.fromkeys(clients, 0)  # numbers of frames, by any of a client's agents
        self.named = dict.fromkeys(clients, 0)  # the same, those included that somebody asked for
        self.calls: list[Call] = []
        self.open: set[int] = set()  # lanes that their agents have not let go
        self.pending: list[Item] = []  # what the engine has read
        self.expected: dict[int, list[Any]] = {}
        self.asked: dict[tuple[int, int], Any] = {}  # lane and number of a question -> about what
        self.firsts: dict[tuple[str, int], Any] = {}  # what a request was told first
        self.denied: set[tuple[str, int]] = set()  # requests that were told not to be applied, ever
        self.seen: Counter[str] = Counter()
        self.instances = self.half_frames = 0
        self.was_full = False
        self.engine: LocalEngine | None = None
        self.start()

    # --- the engine's life

    def start(self, kills: Sequence[str] = ()) -> None:
        """An engine on this folder, after some that die in their recovery."""
        self.steps.disk_full = self.was_full = False
        self.half_frames = 0
        self.model.restart()
        for step in (*kills, None):
            self.steps.kill_at = step
            try:
                self.engine = LocalEngine(self.folder / "state", self.limits, self.durability, self.fds)
                break
            except Killed:
                self.seen[f"died starting at {step}"] += 1
        self.steps.kill_at = None
        self.look()

    def die(self, kills: Sequence[str] = ()) -> None:
        """The engine is killed; its lanes end with what was written to them before."""
        self.engine.kill(self.fds)
        self.pending.clear()
        self.last_words()
        self.start(kills)

    def leaks(self) -> list[str]:
        """Descriptors that are open behind everything."""
        return sorted(link for _, link in descriptors().items() - self.held)

    def stop(self) -> None:
        """A clean end: nothing of this life stays in memory."""
        self.engine.stop(self.fds)
        assert not list((self.folder / "memory").iterdir()), "a stopped engine left memory behind"
        self.last_words()

    def last_words(self) -> None:
        for lane in sorted(self.open):
            if None not in self.expected[lane]:
                self.expected[lane].append(None)
            self.hear(lane)

    def close(self) -> None:
        """After the end, good or bad: everything goes."""
        if self.engine is not None:
            self.engine.kill(self.fds)
        for lane in sorted(self.open):
            self.calls[lane].close()
        self.engine = None
        gc.collect()  # the mappings of all its engines
        if sys.exception() is None:  # which would hold them
            gc.freeze()  # what is left will not go: not to be looked through again
        shutil.rmtree(self.folder)

    @property
    def fds(self) -> set[int]:
        return {fd for lane in self.open for fd in self.calls[lane].fds}

    # --- turns

    def read(self) -> None:
        """Let the engine read what was written."""
        self.engine.read(lambda: [self.calls[lane].unread() for lane in sorted(self.open)])
        for client in [client for client, lane in self.model.lanes.items() if lane not in self.open]:
            self.model.hang_up(client)

    def turn(self, kill_at: str | None = None) -> None:
        """Everything that was read is decided, in one turn; the engine may die in it."""
        after = self.model.begin()
        told, waiting = [], by_session(self.pending)
        while waiting:
            item = waiting.pop(0)
            after.waiting = {client for _, client, _, _ in waiting}
            told.append((item, after.take(*item)))
        self.pending.clear()
        self.coming.clear()
        self.steps.reached.clear()
        self.steps.kill_at, died = kill_at, False
        try:
            self.engine.turn()
            self.engine.finish_checkpoint()
        except Killed:
            died = True
            self.seen[f"died at {kill_at}"] += 1
        self.steps.kill_at = None
        reached = set(self.steps.reached)
        self.was_full = (self.was_full and "journal.rolled" not in reached) or self.steps.disk_full
        empty = not (after.new or after.greeted or after.fences)
        assert died or empty is not ("turn.decided" in reached), "it journaled nothing, or for nothing"
        committed = "commit.written" in reached or empty
        assert committed or died or self.was_full, "a commit failed, and the disk had room"
        if not died or "turn.done" in reached:
            self.tell(after, told, committed)
        if committed:
            after.end()
            self.model = after
        elif "turn.reply" in reached:
            for client in after.greeted:
                self.model.hang_up(client)
        if not died:
            self.read()
        if "checkpoint.journaled" in reached:
            self.model.checkpointed()
        if died:
            self.die()
            return
        for lane in sorted(self.open):
            self.hear(lane)
        self.look()

    def tell(self, after: Any, told: list[tuple[Item, Any]], committed: bool) -> None:
        """What each lane hears of a turn. After a failed commit nothing new is told, and nobody is let in."""
        before, older = after.before, []
        for client, welcomed in after.greeted.items():
            older += [before.lanes.get(client), *(lane for lane, _ in welcomed[:-1] if committed)]
        for (lane, client, number, what), reply in told:
            if reply is None or (lane in older and not committed):
                continue
            if not committed and (what[0] == "ask" or (client, number) in after.new):
                reply = number, "unavailable", before.revision, "DiskFull"
            self.expect(lane, reply)
        for lane in older:
            self.expect(lane, *(("fenced", None) if committed else (None,)))
        for client, welcomed in after.greeted.items():
            for lane, first in welcomed:
                epoch = after.sessions[client].epoch
                self.expect(lane, ("welcome", first, epoch) if committed else ("turned away", "again"))

    def expect(self, lane: int | None, *events: Any) -> None:
        for event in events if lane in self.open else ():
            if event is not None and event[0] in ("welcome", "turned away"):
                self.greeted(lane, event)
            else:
                self.expected[lane].append(event)
                self.seen[f"{event[1]} {event[3]}" if isinstance(event, tuple) else str(event)] += 1

    def greeted(self, lane: int, event: Any) -> None:
        words = self.calls[lane].welcome()
        assert words is not None, "a hello was not answered"
        heard = ("welcome", words.first, words.epoch) if words.ok else ("turned away", words.refusal)
        assert heard == event, f"lane {lane} of {self.calls[lane].client} heard {heard}, not {event}"
        self.seen["welcome" if words.ok else f"turned away: {words.refusal}"] += 1
        if not words.ok:
            self.expected[lane].append(None)
        elif agent := self.agent_of(lane):
            agent.next = words.first

    def hear(self, lane: int) -> None:
        """Every reply is what the model says, and a request is told the same words again."""
        client, replies = self.calls[lane].client, self.calls[lane].replies()
        expected, self.expected[lane] = self.expected[lane], []
        heard = [said(reply) for reply in replies]
        assert heard == expected, f"lane {lane} of {client} heard {heard}, not {expected}"
        for reply in replies:
            if reply is not None:
                self.compare(client, *reply, self.asked.get((lane, reply.sequence)))
        if None in expected:
            self.let_go(lane)

    def compare(self, client: str, sequence: int, status: int, revision: int, detail: Any, about: Any) -> None:
        """With everything that was ever said, forgotten or not."""
        if status in (Status.APPLIED, Status.REFUSED):
            words = [[one[0], *one[2:]] for one in detail] if status == Status.APPLIED else detail
            first = self.firsts.setdefault((client, sequence), words)
            assert first == words, f"request {sequence} of {client} was told {first}, then {words}"
            assert status == Status.REFUSED or (client, sequence) not in self.denied, "what never would be was applied"
        elif status == Status.ANSWER and detail is None and isinstance(about, tuple):
            self.denied.add(about)
            first = self.firsts.get(about, ["Fenced"])
            assert isinstance(first[0], str), f"request {about} was applied, {first}, and then told not to be"

    def look(self) -> None:
        """What is stored is what the model has; no table is larger than it may be; nothing is held for nobody."""
        pin, engine = self.engine.view.pin(), self.engine
        assert pin.root.revision == self.model.revision
        for id, (version, content) in self.model.entities.items():
            expected = (version, content and (content[0], content[1], content[2][0]))
            found = stored(pin, id)
            assert found == expected or (found is None and content is None), "only a tombstone is forgotten"
        sessions, limits = engine.server.sessions, self.limits
        assert len(sessions) == len(self.model.sessions) <= limits.sessions_max
        assert len(sessions.by_request_id) <= limits.request_ids_max
        for client in self.model.sessions:
            session = sessions.get(session_number(client))
            assert len(session.outcomes) <= limits.window_max
            passed = "fences that were passed, after a restart" in self.avoided
            assert sum(one > session.last or not passed for one in session.fenced) <= limits.window_max
        assert engine.bridge.half_frames == self.half_frames
        lanes = len(self.model.lanes)
        assert len(engine.held(self.fds, "pipe:")) == 2 * lanes
        assert len(engine.held(self.fds, "anon_inode:[pidfd]")) == lanes

    # --- agents

    def agent_of(self, lane: int) -> Agent | None:
        return next((agent for agent in self.agents if agent.lane == lane), None)

    def listened_to(self, agent: Agent) -> bool:
        return agent.lane is not None and agent.lane in self.model.lanes.values()

    def let_go(self, lane: int) -> None:
        """An agent closes its lane, or dies."""
        self.open.discard(lane)
        self.calls[lane].close()
        if agent := self.agent_of(lane):
            self.half_frames += agent.rest is not None
            agent.lane = agent.rest = None

    def returns_too_early(self, client: str) -> bool:
        """Whether a hello before this one, in the same turn, may make the engine forget this session."""
        greeting = {one[1] for one in self.pending if one[3][0] == "hello"}
        silent = client not in self.model.lanes and not greeting <= self.model.sessions.keys()
        return silent and "a session that is forgotten and comes back in one turn" in self.avoided

    def settle(self, agent: Agent) -> None:
        """Let no older lane end behind the next one's hello."""
        greeting = {one[1] for one in self.pending if one[3][0] == "hello"}
        if agent.client in greeting and "an older lane that ends behind the next one's hello" in self.avoided:
            self.turn()

    def hang_up(self, agent: Agent) -> None:
        """With what was not read or not answered, or in mid-frame."""
        self.settle(agent)
        if agent.lane is not None:
            self.let_go(agent.lane)
            self.read()

    def hello(self, agent: Agent, *, fresh: bool = False, resends: bool = False, back: int = 0) -> None:
        """On a new lane: by a new process, or by the same that sends everything again from some frame on."""
        self.hang_up(agent)
        if self.returns_too_early(agent.client):
            self.turn()
        if resends and any(one[3][:2] == ("hello", agent.instance) for one in self.pending):
            self.turn()  # nobody has sent anything that is not welcomed yet
        if fresh or not agent.instance:
            self.instances += 1
            agent.instance, agent.frames, agent.next = f"instance-{self.instances}", {}, 0
        if agent.client not in self.model.sessions and "a fenced number of a forgotten session" in self.avoided:
            agent.next = max(agent.next, self.named[agent.client])
        first = max(0, agent.next - back) if resends else agent.next
        agent.lane = len(self.calls)
        words = Hello(
            wire=WIRE_VERSION, client_id=agent.client, name=agent.client, pid=os.getpid(),
            first=first, instance=agent.instance, resends=resends,
        )  # fmt: skip
        self.calls.append(Call(self.folder / "state", words))
        self.open.add(agent.lane)
        self.expected[agent.lane] = []
        self.pending.append((agent.lane, agent.client, 0, ("hello", agent.instance, first, resends)))
        self.read()

    def send(self, agent: Agent, frame: list[Any], *, cut: int = 0, other: bool = False, kill: bool = False) -> None:
        """The agent's next frame, as it was sent before if it was, or an `other` one under its number; or a part of it,
        or the rest of that.
        """
        if agent.rest is not None:
            (data, items), agent.rest = agent.rest, None
        else:
            frame = frame if other else agent.frames.setdefault(agent.next, frame)
            frame = [self.settled(what, cut > 0) for what in frame]
            data, begin = encoded(frame), agent.next * 256
            items = [(agent.lane, agent.client, begin + place, what) for place, what in enumerate(frame)]
            self.asked |= {(lane, number): what[1] for lane, _, number, what in items if what[0] == "ask"}
            agent.next += 1
            self.used[agent.client] = max(self.used[agent.client], agent.next)
            self.named[agent.client] = max(self.named[agent.client], agent.next)
            if cut := min(cut, len(data) - 1):
                agent.rest = data[cut:], items
                data, items = data[:cut], []
        self.calls[agent.lane].write(data)
        self.steps.kill_at = "bridge.frames" if kill and items else None
        try:
            self.read()
            self.pending += items
        except Killed:
            self.seen["died at bridge.frames"] += 1
            self.die()
        self.steps.kill_at = None

    def settled(self, what: Any, cut: bool) -> Any:
        """The same question, or another one where it would be the second of a turn about a session's coming numbers."""
        if what[0] != "ask" or what[1][0] not in self.named:
            return what
        client, sequence = what[1]
        known = self.model.sessions.get(client)
        coming = known is None or sequence > known.last
        again = cut or client in self.coming
        if coming and again and "more fences in one turn than there is room for" in self.avoided:
            return "ask", "a"
        self.coming.add(client)
        self.named[client] = max(self.named[client], sequence // 256 + 1)
        return what

    def break_off(self, agent: Agent, length: int) -> None:
        """A length that no frame has: nobody can tell where the next one begins."""
        self.settle(agent)
        if not self.listened_to(agent) or agent.rest is not None:
            return
        self.calls[agent.lane].write(length.to_bytes(4, "big", signed=True) + b"more")
        self.expected[agent.lane].append(None)
        self.read()
        self.model.hang_up(agent.client)
        self.hear(agent.lane)


def by_session(items: list[Item]) -> list[Item]:
    """As a turn takes what waits where it takes all of it: session by session, in the order in which they came."""
    order: dict[str, int] = {}
    for _, client, _, _ in items:
        order.setdefault(client, len(order))
    return sorted(items, key=lambda item: order[item[1]])


def stored(pin: Any, id: str) -> Any:
    """What readers see of a task: version, title, whether it is cancelled, who made it."""
    code = pin.catalog.kind_code("Task")
    address = pin.find(code, id)
    content = pin.content(address) if address else None
    if content is None or content.deleted:
        return content and (content.version, None)
    schema = pin.catalog.schemas[content.schema]
    values = schema.values(content.key, content.version, content.time_us, content.payload)
    return content.version, (values["title"], values["status"] == "cancelled", values["created_by"])


@pytest.fixture(scope="module")
def worlds() -> Iterator[Callable[..., World]]:
    """`worlds(model, clients, limits, durability)`: engines in this process, beside a model of them."""
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoint, "reach", steps)
        patch.setattr(journals, "JOURNAL_FILE_BYTES_FIRST", 4 * KIB)
        patch.setattr(reclaim, "RECLAIM_SPARE", 0)  # a model's few entities would never be moved
        uvloop.new_event_loop().close()  # the first one opens what all others share
        gc.collect()
        gc.freeze()
        yield partial(World, steps)
        gc.unfreeze()
