"""A recorded story: an engine of several lives with several agents, what each of them was told, and a model of it all.

The model decides every request by itself, in a dict, and is compared with every reply; so `Story.states` is what must
be there at each revision, whoever asks.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from powercut.log import Log, read_log, recording_children, shared
from powercut.parts import local
from powercut.recorder import Recorder
from solewriter import Limits
from solewriter.engine_proc import filejournal as journals
from solewriter.shared import failpoint, wire
from solewriter.shared.config import KIB, WIRE_VERSION
from solewriter.shared.handshake import Hello
from solewriter.shared.request_ids import session_number
from solewriter.shared.wire import Status

Entities = dict[str, tuple[int, "str | None"]]  # id -> version, title; None: it is deleted
Mutation = tuple[str, str, "int | None", str]  # verb, id, expected version, title
IDS = tuple(f"t-{number}" for number in range(8))
FIRST_FILE = 4 * KIB


class Ack(NamedTuple):
    """A reply that left."""

    at: int  # operations done by then
    session: int
    sequence: int
    status: int
    revision: int
    detail: Any  # without addresses
    changed: bool  # at a revision of its own


@dataclass
class Story:
    """What happened. `states[revision]`; `coming[n]`: (operations done, revision that the next turn may reach)."""

    durability: str
    log: Log = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    states: list[Entities] = field(default_factory=lambda: [{}])
    coming: list[tuple[int, int]] = field(default_factory=list)
    histories: list[tuple[int, bytes]] = field(default_factory=list)  # (operations done, history id from then on)

    def acked(self, at: int) -> list[Ack]:
        return [ack for ack in self.acks if ack.at < at]

    def newest(self, at: int) -> int:
        """The highest revision that anything could have been written for."""
        return max((revision for begun, revision in self.coming if begun < at), default=0)

    @property
    def sessions(self) -> set[int]:
        return {ack.session for ack in self.acks}


def limits_for(memory: Path, **more: Any) -> Limits:
    """Everything as small as it can be."""
    small = {"heap_segment_bytes_first": 64 * KIB, "heap_segment_bytes_max": 64 * KIB, "journal_file_bytes": 16 * KIB}
    often = {"checkpoint_after_bytes": 3 * KIB, "history_bytes": 24 * KIB, "recent_bytes": 1 * KIB}
    return Limits(memory_dir=str(memory), spin_s=0, **{**small, **often, **more})


def decided(before: Entities, mutations: Sequence[Mutation]) -> Entities | None:
    """What a request makes of the state; None if it is refused."""
    draft = dict(before)
    for verb, id, expect, title in mutations:
        version, now = draft.get(id, (0, None))
        stored_version, stored = before.get(id, (0, None))
        if (now is None) is not (verb == "create") and verb != "put":
            return None
        if verb != "create" and expect is not None and expect != (stored_version if stored is not None else 0):
            return None
        draft[id] = (version, None if verb == "delete" else title)
    changed = {id for id, (_, now) in draft.items() if now != before.get(id, (0, None))[1]}
    return {**before, **{id: (before.get(id, (0, None))[0] + 1, draft[id][1]) for id in changed}}


class Told(NamedTuple):
    """What the model says to a request."""

    status: int
    revision: int
    changed: bool


class Beside(Executor):
    """Does what a commit waits for at once, and what is synced beside the turns when another turn was taken."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, work: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, work, args))
        if work is not journals._sync_then_close:
            self._do(self._waiting.pop())
        return future

    def go_on(self) -> None:
        while self._waiting:
            self._do(self._waiting.pop(0))

    def _do(self, job: tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]) -> None:
        future, work, args = job
        try:
            future.set_result(work(*args))
        except OSError as error:
            future.set_exception(error)


class Play:
    """The engine and its agents while a story is being recorded. Use `played`."""

    def __init__(self, folder: Path, recorder: Recorder, story: Story, limits: Limits) -> None:
        self.state, self.recorder, self.story, self.limits = folder / "state", recorder, story, limits
        self.engine: Any = None
        self.beside = Beside()
        self.steps = local.Steps()
        self.calls: dict[str, Any] = {}
        self.frames: dict[str, int] = {}
        self.lanes: dict[int, str] = {}  # inode of the reply pipe -> client
        self.expected: dict[tuple[int, int], Told] = {}
        self.instances = 0

    @property
    def fds(self) -> set[int]:
        return {fd for call in self.calls.values() for fd in call.fds}

    @property
    def entities(self) -> Entities:
        return self.story.states[-1]

    # --- lives

    def start(self, *clients: str) -> None:
        self.recorder.mark(["coming", len(self.story.states) - 1])
        self.engine = local.LocalEngine(self.state, self.limits, self.story.durability, self.fds)
        self.beside = self.engine.server.journal._syncer = Beside()
        self.recorder.mark(["history", self.engine.server.epoch.life.history])
        self.compare()
        for client in clients:
            self.hello(client)

    def kill(self) -> None:
        """The engine is gone at once; the page cache stays."""
        self.engine.kill(self.fds)
        self._let_go()

    def stop(self) -> None:
        self.engine.stop(self.fds)
        self._let_go()

    def _let_go(self) -> None:
        for call in self.calls.values():
            call.close()
        self.calls.clear()
        self.engine = None

    def hello(self, client: str) -> None:
        self.instances += 1
        first = self.frames.setdefault(client, 0)
        words = Hello(
            wire=WIRE_VERSION, client_id=client, name=client, pid=local.os.getpid(),
            first=first, instance=f"{self.instances}", resends=False,
        )  # fmt: skip
        if client in self.calls:
            self.calls.pop(client).close()
            self.engine.read()
        call = self.calls[client] = local.Call(self.state, words)
        inode = local.os.fstat(call.lane.replies).st_ino
        self.lanes[inode] = client
        self.recorder.replies.add(inode)
        self.engine.read()
        self._turn()
        welcome = call.welcome()
        assert welcome is not None
        assert welcome.ok
        self.frames[client] = welcome.first

    # --- turns

    def turn(self, *requests: tuple[str, Sequence[Mutation]], kill_at: str | None = None) -> None:
        """One frame for each (client, mutations), all in one turn; the engine may be killed in it."""
        states = list(self.story.states)
        for client, mutations in requests:
            sequence = self.frames[client] * 256
            after = decided(states[-1], mutations)
            changed = after is not None and after != states[-1]
            if changed and after is not None:
                states.append(after)
            status = Status.REFUSED if after is None else Status.APPLIED
            self.expected[session_number(client), sequence] = Told(status, len(states) - 1, changed)
            self.calls[client].write(local.encoded([("request", list(mutations), None, False, False)]))
            self.frames[client] += 1
        self.engine.read()
        self.recorder.mark(["coming", len(states) - 1])
        if kill_at is None:
            self._turn()
            self.story.states[:] = states
            self.compare()
            return
        self.steps.kill_at, self.steps.reached = kill_at, []
        try:
            self._turn()
        except local.Killed:
            pass
        assert self.steps.kill_at is None, f"no turn comes by {kill_at}"
        if "commit.written" in self.steps.reached:  # the page cache survives a process
            self.story.states[:] = states
        self.kill()

    def _turn(self) -> None:
        before = failpoint.reach
        failpoint.reach = self.steps
        try:
            self.engine.turn()
            self.beside.go_on()
            self.engine.finish_checkpoint()
        finally:
            failpoint.reach = before

    def compare(self) -> None:
        """The story is only worth something where the engine did what the model says."""
        found, expected = entities_of(self.engine.view), living(self.entities)
        assert found == expected, f"the model says {expected}, the engine {found}"
        assert self.engine.server.state.revision == len(self.story.states) - 1


def entities_of(view: Any) -> Entities:
    """As a reader sees them, without the deleted."""
    pin, found = view.pin(), {}
    for id in IDS:
        one = local.stored(pin, id)
        if one is not None and one[1] is not None:
            found[id] = (one[0], one[1][0])
    return found


def living(entities: Entities) -> Entities:
    return {id: one for id, one in entities.items() if one[1] is not None}


def without_addresses(status: int, detail: Any) -> Any:
    detail = msgspec.msgpack.decode(msgspec.msgpack.encode(detail))  # as it looks after any journey
    return [[place[0], *place[2:]] for place in detail] if status == Status.APPLIED else detail


def played(folder: Path, durability: str, script: Callable[[Play], None], **options: Any) -> Story:
    """Play a script in a folder, and say what happened. `fail_sync`, `first_file` and limits may be
    given.
    """
    (folder / "memory").mkdir(parents=True)
    story = Story(durability)
    recorder = Recorder(folder / "state", shared(folder / "log"))
    recorder.fail_sync = options.pop("fail_sync", None)
    first, journals.JOURNAL_FILE_BYTES_FIRST = journals.JOURNAL_FILE_BYTES_FIRST, options.pop("first_file", FIRST_FILE)
    play = Play(folder, recorder, story, limits_for(folder / "memory", **options))
    environment = recording_children(folder / "state", folder / "log")
    before = {name: os.environ.get(name) for name in environment}
    try:
        os.environ.update(environment)  # of what the engine starts by exec
        with recorder:
            try:
                script(play)
            finally:
                if play.engine is not None:
                    play.kill()
        story.log = read_log(folder / "log")
        _note_marks(play)
    finally:
        journals.JOURNAL_FILE_BYTES_FIRST = first
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder / "memory")
    return story


def _note_marks(play: Play) -> None:
    """From the marks in the log to what they mean; every reply is what the model says."""
    received: dict[int, bytearray] = {}
    for at, operation in enumerate(play.story.log):
        if operation.kind != "mark":
            continue
        what, *rest = operation.mark
        if what == "coming":
            play.story.coming.append((at, rest[0]))
        elif what == "history":
            play.story.histories.append((at, rest[0]))
        elif what == "replies":
            buffer = received.setdefault(rest[0], bytearray())
            buffer += rest[1]
            for reply in wire.unpack_replies(buffer):
                session = session_number(play.lanes[rest[0]])
                play.story.acks.append(_ack(at, session, reply, play.expected[session, reply[0]]))


def _ack(at: int, session: int, reply: Any, expected: Told) -> Ack:
    sequence, status, revision, detail = reply
    assert (status, revision) == expected[:2], f"the model says {expected}, the engine {reply}"
    return Ack(at, session, sequence, status, revision, without_addresses(status, detail), expected.changed)


# --- scripts ----------------------------------------------------------------------------------------------------------

CLIENTS = ("ann", "bob", "eve")


def drawn(draw: random.Random) -> list[Mutation]:
    """A request: changes, no-ops and refusals among them, alone or several together."""
    count = draw.choice((1, 1, 1, 2, 3))
    return [
        (
            draw.choice(("create", "create", "put", "put", "update", "update", "delete")),
            draw.choice(IDS),
            draw.choice((None, None, None, 1)),
            draw.choice(("a", "b", draw.randbytes(draw.choice((3, 40, 300))).hex())),
        )
        for _ in range(count)
    ]


def turns(play: Play, draw: random.Random, count: int) -> None:
    for _ in range(count):
        clients = draw.sample(CLIENTS, draw.choice((1, 1, 2, 3)))
        play.turn(*((client, drawn(draw)) for client in clients))


def lives(seed: int, turns_each: int) -> Callable[[Play], None]:
    """Three lives and a half: killed between turns, killed in mid-commit, stopped cleanly, and one more."""

    def script(play: Play) -> None:
        draw = random.Random(seed)
        play.start(*CLIENTS)
        turns(play, draw, turns_each)
        play.kill()
        play.start(*CLIENTS)
        turns(play, draw, turns_each // 2)
        play.hello("bob")
        step = ("commit.write", "commit.written")[seed % 2]
        play.turn(("ann", [("put", IDS[0], None, f"killed {seed}")]), kill_at=step)
        play.start(*CLIENTS)
        turns(play, draw, turns_each // 2)
        play.stop()
        play.start(*CLIENTS)
        turns(play, draw, turns_each // 3)

    return script
