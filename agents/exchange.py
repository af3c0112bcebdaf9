"""`Exchange`: requests out, replies in, over a lane, for all threads of one client. No background thread.

Whoever waits for a reply reads the pipe, for everybody, and hands over when it leaves. Both ends are non-blocking:
whoever writes also reads, so that two full pipes never face each other. An exception in the middle of a write, a lost
engine, a fork: the lane is dropped, and what was not answered is sent again on the next one.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from solewriter.agents.admission import check_room, make_room, no_room, replies_needed
from solewriter.agents.deadline import due_s, expired_unsent
from solewriter.agents.greeting import greet
from solewriter.agents.monitor import Monitor
from solewriter.agents.pace import Pace
from solewriter.agents.pending import Pending, Sent, name_request, outcome_unknown
from solewriter.agents.reconnecting import Reconnecting
from solewriter.agents.session import AgentSession, closed_client, fenced_session
from solewriter.agents.spinning import Spinning
from solewriter.shared.config import POLL_MS_MAX, READ_BYTES, RECONNECT_MAX_S, Limits
from solewriter.shared.errors import EngineUnavailable, Fenced, SolewriterError
from solewriter.shared.folder import StateFolder, unclosed_warning
from solewriter.shared.lane import Lane
from solewriter.shared.system.forks import forks_held_off
from solewriter.shared.wireform import Asked

_open: weakref.WeakSet[Exchange] = weakref.WeakSet()


class Exchange:
    """One client's lane, its session, and the threads that wait on them. Raises EngineUnavailable if nobody answers."""

    _lane: Lane | None = None

    def __init__(
        self,
        folder: StateFolder,
        session: AgentSession,
        limits: Limits,
        unanswered: Callable[[], None] | None = None,  # of its client: called for each hello that nobody answered
    ) -> None:
        self.folder = folder
        self._session = session
        self._limits = limits
        self._monitor = Monitor()  # of its threads: who holds the lock reads or connects for all
        self._reading = 0  # one thread at a time reads for all: this one
        self._offered: Lane | None = None  # on its way to become the lane
        self._greeting: socket.socket | None = None  # on which an answer is awaited
        self._broken = False
        self._spinning = Spinning(limits)
        self._pace = Pace()
        self._again = Reconnecting(folder, limits, unanswered)
        self._closed = False
        self._pid = os.getpid()
        _open.add(self)  # first: a fork must find every lane
        with self._monitor.lock:
            given_up = self._again.given_up_s(time.monotonic())
            self._connect(given_up, given_up)

    # --- what a client does with it ----------------------------------------------------------------------------------

    def send(self, requests: Sequence[Asked], deadline: float, *, wait_for_room: bool = True) -> list[Sent]:
        """Number these requests and send them; one that is too large for a frame is refused in its place, and all of
        them are if their own deadline passes before there is room.

        Raises EngineUnavailable if the window did not open in time, Busy if it is not to be waited for; nothing was
        sent then. An interrupt behind the sending names the first of them, see `name_request`.
        """
        self._check_outside()
        sent: list[Sent] = []
        try:
            with self._monitor.lock:
                if not wait_for_room:
                    self._check_room(requests)
                if not self._await_room(requests, deadline):
                    return [expired_unsent() for _ in requests]
                if not self._session.awaited:
                    self._pace.begin(time.monotonic())
                first = self._session.next_frame
                try:
                    sent = self._session.send_all(requests)
                    self._write()
                except TypeError:
                    raise  # a request that is not plain data: nothing was numbered
                except BaseException:  # Ctrl-C in the middle, say: the next lane begins with what was not answered
                    self._broken = True
                    sent = [*self._session.sent_from(first)]
                    raise
            self._end_if_closed()
        except BaseException as interrupted:
            name_request(interrupted, sent)
            self._end_if_closed()
            raise
        return sent

    def wait(self, pending: Pending, deadline: float) -> None:
        """Wait until this request is answered. Raises OutcomeUnknown at the deadline; the request stays on its way."""
        if pending.done:
            return
        self._check_outside()
        try:
            with self._monitor.lock:
                while not pending.done:
                    try:
                        going_on = self._pump(deadline, pending)
                    except (EngineUnavailable, Fenced):
                        self._end_if_closed()
                        if pending.done:
                            return  # it was sent, and nobody knows more: its own error says so
                        raise
                    if not going_on and not pending.done:
                        raise outcome_unknown(pending)
        finally:
            self._end_if_closed()

    def close(self) -> None:
        """Let the lane go; whoever waits in another thread is told. Requests that were not answered may or may not be
        applied.
        """
        if self._monitor.is_mine:  # in the middle of a call, which ends it before it waits again, or returns
            self._closed = True
            return
        with self._monitor.lock:
            self._closed = True
            self._end()

    def _end_if_closed(self) -> None:
        """Finish a `close` by a signal handler that came in the middle of this thread's call: nobody else does."""
        if self._closed:
            with self._monitor.lock:
                self._end()

    def _end(self) -> None:
        if self._pid == os.getpid():
            self._session.close()
        self._drop_lane()
        self._hang_up()
        self._monitor.tell()

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _await_room(self, requests: Sequence[Asked], deadline: float) -> bool:
        """Wait until these requests fit the window; False when their own deadline passes first. Raises
        EngineUnavailable when the caller's does: nothing was sent.
        """
        self._check_usable()
        while replies_needed(self._session, requests):
            self._make_room(requests)
            due = due_s(requests)
            if not self._pump(min(deadline, due)):
                if due <= deadline:
                    return False
                raise no_room(self._session)
        return True

    def _make_room(self, requests: Sequence[Asked]) -> None:
        """Call back claims that wait, where these requests, which do not, need their room."""
        try:
            if make_room(self._session, self._pace, [requests], time.monotonic()):
                self._write()
        except BaseException:  # as in `send`
            self._broken = True
            raise

    def _check_room(self, requests: Sequence[Asked]) -> None:
        """Raises Busy where these requests would have to wait, after what there is was read."""
        self._check_usable()
        lane, session = self._lane, self._session
        if not self._reading:  # otherwise another thread is at it
            if lane is None or self._broken:
                self._pump(time.monotonic() + RECONNECT_MAX_S)
            elif self._write():
                self._read(lane)
                self._monitor.tell()
        check_room(session, self._pace, requests, self._limits.busy_above_s, time.monotonic())

    def _check_outside(self) -> None:
        """Raises SolewriterError in the middle of a call of this same thread: a second one would do again what that has
        half done, and wait for a reader that waits for it.
        """
        if self._monitor.is_mine or self._reading == threading.get_ident():
            raise SolewriterError(
                "this is a signal handler or a finalizer in the middle of a call of the same client, which it cannot "
                "use: raise, and act behind that call, or connect() another client"
            )

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise EngineUnavailable(
                "this client belongs to the parent process: connect() again in the child", final=True
            )
        if self._closed:
            raise closed_client()
        if self._session.fenced:
            raise fenced_session()

    def _pump(self, deadline: float, awaited: Pending | None = None) -> bool:
        """Let something happen on the lane, or let another thread do that; False when the deadline has passed."""
        if self._closed:
            self._end()
            raise closed_client()
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if self._reading:
            self._look_on(min(left, self._limits.wait_backstop_s), awaited)
            return True
        self._reading = threading.get_ident()
        try:
            self._exchange(left)
        finally:
            self._reading = 0
            self._monitor.tell()
        return True

    def _look_on(self, timeout_s: float, awaited: Pending | None) -> None:
        """Another thread reads for all. Where more was sent than the pipe holds, that one may have fallen asleep
        before, on replies alone: the rest is written by who waits for it.
        """
        lane = self._lane
        if lane is None or self._broken or not self._session.is_unsent(awaited):
            self._monitor.look_on(timeout_s)
            return
        poll = select.poll()
        poll.register(lane.requests, select.POLLOUT)
        self._monitor.run_unlocked(lambda: poll.poll(min(timeout_s * 1000, POLL_MS_MAX)))
        if self._lane is lane:
            self._write()

    def _exchange(self, timeout_s: float) -> None:
        """Write what is unsent, wait for the pipe, read what came."""
        if self._lane is None or self._broken:
            self._reconnect(time.monotonic() + min(timeout_s, self._limits.connect_timeout_s))
            return  # what somebody waits for may have ended with the old lane
        if not self._write():
            return
        lane = self._lane
        assert lane is not None
        poll = select.poll()
        poll.register(lane.replies, select.POLLIN)
        if self._session.unsent is not None:
            poll.register(lane.requests, select.POLLOUT)
        self._monitor.run_unlocked(lambda: self._spinning.wait(poll, timeout_s))
        if self._lane is lane:
            self._read(lane)

    def _write(self) -> bool:
        """Write without blocking what is unsent; False if the lane broke."""
        lane = self._lane
        if lane is None or self._broken:
            return True
        try:
            while self._session.unsent is not None:
                self._session.write(partial(os.write, lane.requests))
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
            self._receive(data)
        except BlockingIOError:
            return
        except BaseException:  # what was read is lost: what follows may begin in the middle of a reply
            self._broken = True
            self._drop_lane()
            raise
        if not data:
            self._broken = True

    def _read_rest(self) -> None:
        """What was said on a lane before it broke counts, and may be the reason why it did."""
        lane = self._lane
        try:
            while lane is not None and (data := os.read(lane.replies, READ_BYTES)):
                self._receive(data)
        except OSError as error:  # nothing more to read, or nothing left to read from
            if error.errno is None:  # nor a system call's: a signal handler's, a TimeoutError say
                raise

    def _receive(self, data: bytes) -> None:
        if data:
            self._again.heard = True
        before = self._session.awaited
        self._session.receive(data)
        if before:
            self._pace.note(before - self._session.awaited, time.monotonic())

    # --- connecting --------------------------------------------------------------------------------------------------

    def _reconnect(self, deadline: float) -> None:
        """Get a new lane for the same session. What cannot be delivered in time ends as OutcomeUnknown."""
        try:
            self._read_rest()
        finally:  # an interrupt in there may have lost something, as in `_read`
            self._drop_lane()
        self._check_usable()
        given_up = self._again.given_up_s(time.monotonic())
        try:
            self._connect(min(deadline, given_up), min(deadline, time.monotonic() + self._limits.handshake_timeout_s))
        except EngineUnavailable as error:
            if not error.final and deadline < given_up:
                return  # this caller's patience is at its end; others may have more
            self._session.fail(error)
            raise

    def _connect(self, deadline: float, patience: float) -> None:
        """Say hello until somebody answers. Raises EngineUnavailable at the deadline; somebody who listens, and may be
        busy, has until `patience` to answer.
        """
        while True:
            if pause := self._again.next_pause_s():
                self._monitor.run_unlocked(partial(time.sleep, pause))
                self._check_usable()
            lane: Lane | None = None
            try:
                with forks_held_off:  # a child that came before it is noted would not close it
                    lane = self._offered = Lane()
                self._offer(lane, max(0.01, max(deadline, patience) - time.monotonic()))
                self._again.note_lane()
                break
            except (OSError, EngineUnavailable) as error:
                if lane is not None:
                    lane.close()
                self._again.note_failure(error, time.monotonic(), deadline)
            except BaseException:
                if lane is not None:
                    lane.close()
                raise
        self._lane, self._offered, self._broken = lane, None, False

    def _offer(self, lane: Lane, timeout_s: float) -> None:
        """One hello. Other threads may queue requests meanwhile: they are the last of what is sent on this lane."""
        hello = self._session.hello(os.getpid())
        try:
            welcome = self._monitor.run_unlocked(
                lambda: greet(self.folder, hello, lane, timeout_s, self._keep_connection)
            )
        finally:
            self._greeting = None
        self._check_usable()
        self._session.accept(welcome)

    def _keep_connection(self, connection: socket.socket) -> None:
        self._greeting = connection
        if self._closed:  # just before: nobody would hang up
            self._hang_up()

    def _hang_up(self) -> None:
        """End the wait of whoever waits for an engine's answer to a hello."""
        connection = self._greeting
        try:
            if connection is not None:
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the engine hung up first, or the wait is over

    def _drop_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Let go of the lane, and warn: the client was forgotten, and nobody had closed it."""
        if self._lane is not None:
            self._drop_lane()
            warn(unclosed_warning("client", self.folder), ResourceWarning, source=self)

    def forsake(self) -> None:
        """In a forked child: hold nothing of the parent's open."""
        self._monitor, self._reading = Monitor(), 0  # the parent's may be a thread's that does not exist here
        self._drop_lane()
        if self._offered is not None:
            self._offered.close()


def _leave_lanes_to_the_parent() -> None:
    """In a forked child: never use the parent's lanes, and never hold them open."""
    for exchange in list(_open):
        exchange.forsake()


os.register_at_fork(after_in_child=_leave_lanes_to_the_parent)
