"""`Client`: the synchronous agent. One lane, no background thread: whoever waits for a reply reads the pipe, for
everybody.

Both ends are non-blocking: whoever writes also reads replies, so that two full pipes never face each other. An
exception in the middle of a write, a lost engine, a fork: the lane is dropped, and what was unanswered is sent again
on the next one.
"""

from __future__ import annotations

import array
import functools
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from solewriter.agents.reader import Reader
from solewriter.agents.session import AgentSession, Pending, Target, error_of, outcome_unknown
from solewriter.agents.snapshot import Plain
from solewriter.agents.transaction import Transaction
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS, FRAME_REQUESTS_MAX, KIB, Limits
from solewriter.shared.errors import (
    EngineUnavailable,
    Fenced,
    Refused,
    RequestTooLarge,
)
from solewriter.shared.folder import StateFolder
from solewriter.shared.lane import Lane
from solewriter.shared.models import Entity, Ref
from solewriter.shared.mutations import (
    FROM_TARGET,
    Cancel,
    Create,
    Delete,
    Expect,
    GuardMutation,
    Mutation,
    Put,
    Reply,
    Result,
    Transition,
    Update,
)
from solewriter.shared.registry import Registry

E = TypeVar("E", bound=Entity)
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.005, 0.2  # between tries while an engine restarts
FRAME_BATCH = (
    32  # requests of `submit_many` in one frame: amortises the write, and a turn begins before the window is full
)
READ_BYTES = 64 * KIB

Numbered = tuple[wire.PlainRequest, list[Target]]  # a request and what its mutations are about

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """An agent's connection to the engine of a state folder. May be shared by threads. Made by `connect`.

    Every verb blocks until its reply, and returns the entity as it was left. All raise the refusals of
    `solewriter.errors`, InvalidMutation for bad input before anything is sent, EngineUnavailable when no engine could
    be reached, OutcomeUnknown when a reply did not come within `timeout_s`.
    """

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        name: str = "",
        client_id: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.folder = StateFolder(state)
        self._limits = limits
        self._registry = Registry()
        self._session = AgentSession(limits, name or f"pid-{os.getpid()}", client_id)
        self._changed = threading.Condition()
        self._reading = False  # one thread at a time reads for all
        self._lane: Lane | None = None
        self._broken = False
        self._closed = False
        self._pid = os.getpid()
        self.reader = Reader(state, limits, self._registry)
        with self._changed:
            self._connect(time.monotonic() + limits.connect_timeout_s)
        _clients.add(self)

    @property
    def client_id(self) -> str:
        """The session's id: `connect(state, client_id=...)` resumes it in another process."""
        return self._session.client_id

    @property
    def name(self) -> str:
        return self._session.name

    # --- verbs -------------------------------------------------------------------------------------------------------

    def create(
        self, entity: E, *, reason: str = "", request_id: str | None = None, timeout_s: float | None = None
    ) -> E:
        """Store a new entity. Raises AlreadyExists."""
        return self._one(Create(entity, reason), type(entity), request_id, timeout_s)

    def put(
        self,
        entity: E,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> E:
        """Create or replace: an import that can be run again."""
        return self._one(Put(entity, expect, reason), type(entity), request_id, timeout_s)

    def update(
        self,
        target: E | Ref[E],
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> E:
        """Replace fields. Fields whose names are options here are given through `changes`. Raises VersionConflict."""
        mutation = Update(target, {**(changes or {}), **fields}, expect, reason)
        return self._one(mutation, wire.model_of(target), request_id, timeout_s)

    def transition(
        self,
        target: E | Ref[E],
        to: str,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> E:
        """Move along the lifecycle, changing other fields with the step. Raises InvalidTransition, VersionConflict."""
        mutation = Transition(target, to, {**(changes or {}), **fields}, expect, reason)
        return self._one(mutation, wire.model_of(target), request_id, timeout_s)

    def cancel(
        self,
        target: E | Ref[E],
        *,
        expect: int | None = None,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> E:
        """To the cancelled state, whatever the version, unless `expect` is given. Raises InvalidTransition."""
        return self._one(Cancel(target, expect, reason), wire.model_of(target), request_id, timeout_s)

    def delete(
        self,
        target: Entity | Ref[Any],
        *,
        expect: Expect = FROM_TARGET,
        reason: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Remove the entity; its id goes on with the next version if it is created again."""
        self.submit(Delete(target, expect, reason), request_id=request_id, timeout_s=timeout_s).check()

    def transaction(self, *, request_id: str | None = None, timeout_s: float | None = None) -> Transaction:
        """Several mutations and guards at one revision, sent when the `with` ends; an exception sends nothing."""
        return Transaction(self, request_id, timeout_s)

    @overload
    def get(self, kind: type[E], id: str) -> E | None: ...
    @overload
    def get(self, kind: str, id: str) -> Plain | None: ...
    def get(self, kind: type[E] | str, id: str) -> E | Plain | None:
        """The entity from shared memory, or None; never older than the last reply of this client."""
        return self.reader.get(kind, id)

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        *mutations: Mutation,
        guards: Iterable[GuardMutation] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """One request: all of these mutations at one revision, or none. A refusal is in the reply, not raised."""
        request = self._plain(mutations, guards, request_id)
        deadline = time.monotonic() + (self._limits.request_timeout_s if timeout_s is None else timeout_s)
        with self._changed:
            self._await_room(1, deadline)
            (pending,) = self._session.send([request])
            self._await(pending, deadline)
        return self._reply(pending)

    def submit_many(
        self, mutations: Iterable[Mutation], *, window: int = 256, timeout_s: float | None = None
    ) -> Iterator[Reply]:
        """A request for each mutation, up to `window` of them in flight; replies in order, refusals as values.

        `timeout_s` is the patience for each reply; then OutcomeUnknown is raised.
        """
        waiting: deque[Pending | Refused] = deque()
        source = iter(mutations)
        window = max(1, min(window, self._session.window))
        batch = max(1, min(FRAME_BATCH, FRAME_REQUESTS_MAX, window // 4))
        patience = self._limits.request_timeout_s if timeout_s is None else timeout_s
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) + batch <= window:
                exhausted = self._send_batch(source, batch, waiting, time.monotonic() + patience)
            if waiting:
                yield self._outcome_of(waiting.popleft(), patience)

    def _send_batch(
        self, source: Iterator[Mutation], batch: int, waiting: deque[Pending | Refused], deadline: float
    ) -> bool:
        """One frame of the next mutations; whether the source is exhausted. Bad input takes its place as a refusal."""
        taken = [self._plain_or_refused(mutation) for mutation in islice(source, batch)]
        requests = [request for request in taken if not isinstance(request, Refused)]
        pendings: Iterator[Pending] = iter(())
        if requests:
            with self._changed:
                self._await_room(len(requests), deadline)
                pendings = iter(self._send_split(requests))
                self._write()
        waiting.extend([request if isinstance(request, Refused) else next(pendings) for request in taken])
        return len(taken) < batch

    def _plain_or_refused(self, mutation: Mutation) -> Numbered | Refused:
        try:
            return self._plain((mutation,), (), None)
        except Refused as error:
            return error

    def _outcome_of(self, sent: Pending | Refused, patience_s: float) -> Reply:
        if isinstance(sent, Refused):
            return Reply("", self.reader.revision, (), sent, _nothing)
        if not sent.done:
            with self._changed:
                self._await(sent, time.monotonic() + patience_s)
        return self._reply(sent)

    def _send_split(self, requests: list[Numbered]) -> list[Pending]:
        """As one frame, or where that is too large as smaller ones."""
        try:
            return self._session.send(requests)
        except RequestTooLarge:
            if len(requests) == 1:
                raise
            middle = len(requests) // 2
            return self._send_split(requests[:middle]) + self._send_split(requests[middle:])

    def _one(self, mutation: Mutation, model: type[E], request_id: str | None, timeout_s: float | None) -> E:
        entity = self.submit(mutation, request_id=request_id, timeout_s=timeout_s).check().entity
        assert isinstance(entity, model), f"the reply to {mutation!r} is about {entity!r}"
        return entity

    def check_mutation(self, mutation: Mutation) -> None:
        """Raises InvalidMutation, naming the field, for one that would be refused whatever is stored."""
        wire.plain_mutation(mutation, self._registry)

    def _plain(
        self, mutations: Iterable[Mutation], guards: Iterable[GuardMutation], request_id: str | None
    ) -> Numbered:
        registry = self._registry
        plain = [wire.plain_mutation(mutation, registry) for mutation in mutations]
        conditions = [wire.plain_guard(guard, registry) for guard in guards]
        return (plain, conditions, request_id, None), [(mutation[1], mutation[2]) for mutation in plain]

    def _reply(self, pending: Pending) -> Reply:
        """What a finished request was told, with errors that carry the current entity."""
        error = error_of(pending)
        if error is not None:
            if isinstance(error, Refused) and "id" in error.details:
                error.current = self._current(error.details["kind"], error.details["id"])
            return Reply(pending.request_id, pending.reply.revision if pending.reply else 0, (), error, _nothing)
        assert pending.reply is not None
        results = tuple(
            [
                Result(kind, id, told[0], told[1])
                for (kind, id), told in zip(pending.targets, pending.reply.detail, strict=True)
            ]
        )
        return Reply(
            pending.request_id, pending.reply.revision, results, None, functools.partial(self._entity, pending.epoch)
        )

    def _entity(self, epoch: int, result: Result) -> Entity | None:
        kind = self._registry.named(result.kind)
        return self.reader.of_result(result, epoch, kind.model)

    def _current(self, kind: str, id: str) -> Entity | Plain | None:
        known = self._registry.get(kind)
        return self.reader.get(known.model, id) if known is not None else self.reader.get(kind, id)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _await(self, pending: Pending, deadline: float) -> None:
        """Until this request is answered. Raises OutcomeUnknown at the deadline; the request stays on its way."""
        while not pending.done:
            if not self._pump(deadline) and not pending.done:
                raise outcome_unknown(pending.request_id)

    def _await_room(self, count: int, deadline: float) -> None:
        """Until so many more requests fit the window. Raises EngineUnavailable at the deadline: nothing was sent."""
        self._check_usable()
        while self._session.in_flight and self._session.in_flight + count > self._session.window:
            if not self._pump(deadline):
                raise EngineUnavailable("the engine answered nothing in time: the window of requests in flight is full")

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise EngineUnavailable("this client belongs to the parent process: connect() again in the child")
        if self._closed:
            raise EngineUnavailable("this client is closed")
        if self._session.fenced:
            raise Fenced("another client took over this client_id: connect again under another one")

    def _pump(self, deadline: float) -> bool:
        """Let something happen on the lane, or let another thread do that; False when the deadline has passed."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if self._reading:
            self._changed.wait(left)
            return True
        self._reading = True
        try:
            self._exchange(left)
        finally:
            self._reading = False
            self._changed.notify_all()
        return True

    def _exchange(self, timeout_s: float) -> None:
        """Write what is unsent, wait for the pipe, read what came."""
        if self._lane is None or self._broken:
            self._reconnect(time.monotonic() + min(timeout_s, self._limits.connect_timeout_s))
        if not self._write():
            return
        lane = self._lane
        assert lane is not None
        poll = select.poll()
        poll.register(lane.replies, select.POLLIN)
        if self._session.unsent is not None:
            poll.register(lane.requests, select.POLLOUT)
        self._changed.release()  # others may queue and write meanwhile; only this thread reads
        try:
            poll.poll(timeout_s * 1000)
        finally:
            self._changed.acquire()
        if self._lane is lane:
            self._read(lane)

    def _write(self) -> bool:
        """Write without blocking what is unsent; False if the lane broke."""
        lane = self._lane
        if lane is None or self._broken:
            return True
        try:
            while (data := self._session.unsent) is not None:
                self._session.sent(os.write(lane.requests, data))
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._broken = True
            return False
        except BaseException:  # in mid-frame, perhaps: the stream cannot be trusted any more
            self._broken = True
            raise
        return True

    def _read(self, lane: Lane) -> None:
        try:
            data = os.read(lane.replies, READ_BYTES)
            self._session.received(data)
        except BlockingIOError:
            return
        except BaseException:
            self._broken = True
            raise
        if not data:
            self._broken = True

    def _read_rest(self) -> None:
        """What was said on a lane before it broke counts, and may be the reason why it did."""
        lane = self._lane
        try:
            while lane is not None and (data := os.read(lane.replies, READ_BYTES)):
                self._session.received(data)
        except OSError:
            pass  # nothing more to read, or nothing left to read from

    # --- connecting --------------------------------------------------------------------------------------------------

    def _reconnect(self, deadline: float) -> None:
        """A new lane for the same session. What cannot be delivered in time ends as OutcomeUnknown."""
        self._read_rest()
        self._drop_lane()
        self._check_usable()
        try:
            self._connect(deadline)
        except EngineUnavailable:
            self._session.fail(None)
            raise

    def _connect(self, deadline: float) -> None:
        """Say hello until somebody answers. Raises EngineUnavailable at the deadline."""
        pause = RECONNECT_FIRST_S
        while True:
            lane = Lane()
            try:
                welcome = self._greet(lane, max(0.01, deadline - time.monotonic()))
                self._session.welcomed(welcome)
                break
            except (OSError, EngineUnavailable) as error:
                lane.close()
                if time.monotonic() + pause > deadline:
                    raise EngineUnavailable(f"no engine serves {self.folder.path}: {error}") from error
            except BaseException:
                lane.close()
                raise
            time.sleep(pause)
            pause = min(pause * 2, RECONNECT_MAX_S)
        self._lane, self._broken = lane, False

    def _greet(self, lane: Lane, timeout_s: float) -> wire.Welcome:
        with self.folder.connected_socket(timeout_s) as connection:
            words = wire.pack_words(self._session.hello(os.getpid()))
            fds = array.array("i", lane.theirs)
            connection.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            lane.hand_over()
            header = _exactly(connection, wire.REPLY_HEADER_BYTES)
            return wire.unpack_welcome(_exactly(connection, wire.words_length(header)))

    def _drop_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the lane go. Requests that were not answered may or may not be applied."""
        with self._changed:
            self._closed = True
            if self._pid == os.getpid():
                self._session.fail(None)
            self._drop_lane()
            self.reader.close()
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    state: str | os.PathLike[str], *, name: str = "", client_id: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Client:
    """Connect to the engine of a state folder, from any process of the same user.

    `name` is a label, shown as the actor of changes. `client_id` resumes a session: requests that an earlier process
    with the same id sent are known. Raises EngineUnavailable if no engine answers within `limits.connect_timeout_s`.
    """
    return Client(state, name=name, client_id=client_id, limits=limits)


def _nothing(result: Result) -> None:
    return None


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the engine closed the connection in the handshake")
        data += more
    return data


def _leave_lanes_to_the_parent() -> None:
    """In a forked child: never use the parent's lanes, and never hold them open."""
    for client in list(_clients):
        client._changed = threading.Condition()  # the parent's may be held by a thread that does not exist here
        client._drop_lane()


os.register_at_fork(after_in_child=_leave_lanes_to_the_parent)
