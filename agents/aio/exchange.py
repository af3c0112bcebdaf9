"""`AioExchange`: requests out, replies in, over a lane, for all coroutines of one client. Nothing here blocks the loop.

The loop reads the reply pipe, and watches the request pipe only while something is unsent. When the window of requests
in flight is full, callers stand in a `WaitQueue`; whoever makes room numbers and sends the request of the first of them
in its name, so nobody overtakes, and what nobody waits for any more is not sent. A lost engine: the lane is dropped,
and a task makes another one, on which everything unanswered is sent again. Only the handshake runs in a thread.
"""

from __future__ import annotations

import asyncio
import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from solewriter.agents.admission import check_room, make_room, no_room, replies_needed
from solewriter.agents.aio.greeting import Greeting
from solewriter.agents.aio.home import Home, call_if_there, wake
from solewriter.agents.aio.waitqueue import Place, WaitQueue
from solewriter.agents.deadline import due_s, expired_unsent
from solewriter.agents.pace import Pace
from solewriter.agents.pending import Pending, Sent, name_request, outcome_unknown
from solewriter.agents.reconnecting import Reconnecting
from solewriter.agents.session import AgentSession, closed_client, fenced_session
from solewriter.shared.config import PIPE_BYTES, READ_BYTES, Limits
from solewriter.shared.errors import EngineUnavailable, SolewriterError
from solewriter.shared.folder import StateFolder, unclosed_warning
from solewriter.shared.lane import Lane
from solewriter.shared.wireform import Asked, PlainRequest

_open: weakref.WeakSet[AioExchange] = weakref.WeakSet()


class AioExchange:
    """One client's lane, its session, and the coroutines that wait on them, all on the loop where it was made."""

    _lane: Lane | None = None

    def __init__(
        self,
        folder: StateFolder,
        session: AgentSession,
        limits: Limits,
        unanswered: Callable[[], None],  # of its client: called for each hello that nobody answered
        sent_in_vain: Callable[[Sequence[Sent], Sequence[PlainRequest]], None],  # called when who sent it was cancelled
    ) -> None:
        self.folder = folder
        self._session = session
        self._limits = limits
        self._home = Home("client", "aio.connect")
        self._loop = self._home.loop
        self._queue = WaitQueue(session)
        self._leaving: set[Lane] = set()  # dropped, and closed in the loop's next tick
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._writing = False  # the loop watches the request pipe
        self._greeting: Greeting | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pace = Pace()
        self._again = Reconnecting(folder, limits, unanswered)
        self._sent_in_vain = sent_in_vain
        self._closed = False
        _open.add(self)

    # --- what a client does with it ----------------------------------------------------------------------------------

    async def send(self, requests: Sequence[Asked], deadline: float, *, wait_for_room: bool = True) -> list[Sent]:
        """Number these requests and send them; one that is too large for a frame is refused in its place, and all of
        them are if their own deadline passes before there is room.

        Raises EngineUnavailable if the window did not open in time, Busy if it is not to be waited for; nothing was
        sent then. Cancelled before they were sent, they never are; after that the cancellation names the first of them.
        """
        self._check_usable()
        if not wait_for_room:
            self._check_room(requests)
            self._check_usable()  # what was just read may be the end
        if not self._queue.before(requests) and not replies_needed(self._session, requests):
            return self._dispatch(requests)
        place: Place = self._loop.create_future()
        self._queue.join(place, requests)
        self._make_room()
        self._go_on()
        due = due_s(requests)
        refused: list[Sent] | None = [expired_unsent() for _ in requests] if due <= deadline else None
        timer = self._loop.call_later(min(deadline, due) - time.monotonic(), self._too_late, place, refused)
        try:
            return await place
        except asyncio.CancelledError as cancelled:
            if place.done() and not place.cancelled() and place.exception() is None:
                name_request(cancelled, place.result())
                if asked := [request for request in requests if len(request) == 4]:
                    self._sent_in_vain(place.result(), asked)
            raise
        finally:
            timer.cancel()
            if self._queue.leave(place):
                self._admit()  # whoever stood behind may fit

    async def wait(self, pending: Pending, deadline: float) -> None:
        """Wait until this request is answered. Raises OutcomeUnknown at the deadline; the request stays on its way, as
        it does when the wait is cancelled.
        """
        if pending.done:
            return
        told: asyncio.Future[None] = self._loop.create_future()
        pending.on_done = lambda: wake(told)
        timer = self._loop.call_later(deadline - time.monotonic(), self._overdue, told)
        try:
            await told
        finally:
            timer.cancel()
            pending.on_done = None
        if not pending.done:
            raise outcome_unknown(pending)

    async def close(self) -> None:
        """Let the lane go. Requests that were not answered may or may not be applied."""
        if self._home.inherited:
            return  # it was let go at the fork
        if self._loop.is_closed():
            self._closed = True
            self._close_lanes()
            return
        self._home.check()
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._session.close()
        self._queue.refuse(closed_client())
        self._drop_lane()
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        await asyncio.sleep(0)  # the tick in which descriptors are closed

    # --- requests out ------------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        self._home.check()
        if self._closed:
            raise closed_client()
        if self._session.fenced:
            raise fenced_session()

    def _check_room(self, requests: Sequence[Asked]) -> None:
        """Raises Busy where these requests would have to wait, after what there is was read."""
        self._readable()
        soon_s, in_line = self._limits.busy_above_s, self._queue.before(requests)
        check_room(self._session, self._pace, requests, soon_s, time.monotonic(), in_line)

    def _dispatch(self, requests: Sequence[Asked]) -> list[Sent]:
        """Number these requests and write them, or as much as fits. Raises TypeError for what is not plain data."""
        if not self._session.awaited:
            self._pace.begin(time.monotonic())
        try:
            sent = self._session.send_all(requests)
            self._write()
        except TypeError:
            raise  # nothing was numbered
        except BaseException:  # Ctrl-C in the middle: the next lane begins with what was not answered
            self._lose()
            raise
        self._go_on()
        return sent

    def _admit(self) -> None:
        """There may be room: send for those who waited longest."""
        if self._session.fenced:
            self._queue.refuse(fenced_session())
        while self._queue:
            place, requests = self._queue.first()
            if not place.done() and replies_needed(self._session, requests):
                self._make_room()
                break
            self._queue.leave(place)
            if not place.done():
                try:
                    place.set_result(self._dispatch(requests))
                except Exception as error:
                    place.set_exception(error)

    def _make_room(self) -> None:
        """Call back claims that wait, where the first in line that does not needs their room."""
        try:
            if make_room(self._session, self._pace, self._queue.pressing_requests(), time.monotonic()):
                self._write()
        except BaseException:  # as in `_dispatch`
            self._lose()
            raise

    def _too_late(self, place: Place, refused: list[Sent] | None) -> None:
        """There was no room in time: by the requests' own deadline, which refuses them, or by the caller's."""
        try:
            self._readable()  # what makes room may be there already, if the loop was busy
        finally:
            if not place.done() and refused is not None:
                place.set_result(refused)
            elif not place.done():
                place.set_exception(no_room(self._session))

    def _write(self) -> None:
        """Write what is unsent, at most a pipe full: the loop has others to serve. The rest goes when there is room."""
        lane, written = self._lane, 0
        if lane is None:
            return
        try:
            while self._session.unsent is not None and written < PIPE_BYTES:
                written += self._session.write(partial(os.write, lane.requests))
        except BlockingIOError:
            pass
        except OSError:
            try:
                self._hear_rest(lane)
            finally:
                self._lose()
            return
        except BaseException:  # in mid-frame, perhaps: the stream cannot be trusted any more
            self._lose()
            raise
        self._watch_requests(lane, self._session.unsent is not None)

    def _watch_requests(self, lane: Lane, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(lane.requests, self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(lane.requests)
        self._writing = wanted

    # --- replies in --------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Take what is there, at most one buffer."""
        lane = self._lane
        if lane is None:
            return
        try:
            count = self._read(lane)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        except BaseException:  # what cannot be understood ends the lane
            self._lose()
            raise
        if count:
            self._again.heard = True
            self._admit()
        else:
            self._lose()

    def _read(self, lane: Lane) -> int:
        count = os.readv(lane.replies, [self._buffer])
        before = self._session.awaited
        self._session.receive(self._buffer[:count])
        if before:
            self._pace.note(before - self._session.awaited, time.monotonic())
        return count

    def _hear_rest(self, lane: Lane) -> None:
        """What was said on a lane before it broke counts, and may be the reason why it did."""
        try:
            while self._read(lane):
                pass
        except OSError:
            pass  # nothing more to read

    def _overdue(self, told: asyncio.Future[None]) -> None:
        """A caller's time is over. A loop that was busy has not read yet what may be there."""
        try:
            self._readable()
        finally:
            wake(told)

    # --- connecting --------------------------------------------------------------------------------------------------

    def _lose(self) -> None:
        """Drop a lane that broke. If anybody waits for something, connect again."""
        self._drop_lane()
        self._go_on()

    def _go_on(self) -> None:
        """Begin to connect again, where there is no lane and somebody has a use for one."""
        idle = self._connecting is None or self._connecting.done()
        if self._lane is None and (self._session.in_flight or self._queue) and idle and not self._closed:
            if self._session.fenced:
                self._queue.refuse(fenced_session())
            else:
                self._connecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        """Get a new lane for the same session. What was sent and cannot be delivered in time ends as OutcomeUnknown."""
        try:
            await self.connect()
        except SolewriterError as error:
            self._give_up(error)
        except BaseException:
            self._give_up(EngineUnavailable(f"no lane to the engine of {self.folder.path} could be made"))
            raise
        self._connecting = None
        self._go_on()  # that lane may be lost already

    def _give_up(self, error: SolewriterError) -> None:
        self._session.fail(error)
        self._queue.refuse(error)

    async def connect(self) -> None:
        """Say hello until somebody answers. Raises EngineUnavailable when nobody has since `connect_timeout_s`."""
        given_up = self._again.given_up_s(time.monotonic())
        threads = ThreadPoolExecutor(1, "solewriter-hello")  # its own: the loop's may be full of who waits for us
        try:
            while True:
                if pause := self._again.next_pause_s():
                    await asyncio.sleep(pause)
                try:
                    left = given_up - time.monotonic()
                    await self._offer(threads, left if left > 0 else self._limits.handshake_timeout_s)
                    return
                except (OSError, EngineUnavailable) as error:
                    self._again.note_failure(error, time.monotonic(), given_up)
        finally:
            threads.shutdown(wait=False)

    async def _offer(self, threads: ThreadPoolExecutor, timeout_s: float) -> None:
        """One hello. Requests that are queued meanwhile are the last of what is sent on this lane."""
        hello = self._session.hello(os.getpid())
        greeting = self._greeting = Greeting(self.folder, hello, timeout_s)
        try:
            welcome = await self._loop.run_in_executor(threads, greeting.say)
            self._session.accept(welcome)
        except BaseException:
            greeting.give_up()
            raise
        else:
            assert greeting.lane is not None
            self._use(greeting.lane)
        finally:
            self._greeting = None  # not before it is in use: a fork must find every lane

    def _use(self, lane: Lane) -> None:
        self._lane = lane
        self._again.note_lane()
        self._loop.add_reader(lane.replies, call_if_there, weakref.WeakMethod(self._readable))
        self._write()
        self._admit()

    def _drop_lane(self) -> None:
        """Take the lane out of the loop now, and close it one tick later: uvloop may still poll it."""
        lane, self._lane = self._lane, None
        if lane is not None:
            self._loop.remove_reader(lane.replies)
            self._watch_requests(lane, False)
            self._leaving.add(lane)
            self._loop.call_soon(self._close_left, lane)

    def _close_left(self, lane: Lane) -> None:
        lane.close()
        self._leaving.discard(lane)

    def _close_lanes(self) -> None:
        """Close every descriptor, and touch no loop."""
        for lane in (*self._leaving, self._lane):
            if lane is not None:
                lane.close()
        self._lane = None
        self._leaving.clear()
        if self._greeting is not None:
            self._greeting.forsake()
            self._greeting = None

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Let go of the lane, and warn: the client was forgotten, and nobody had closed it."""
        lane, self._lane = self._lane, None
        if lane is not None:
            self._home.let_go(lane)
            warn(unclosed_warning("client", self.folder), ResourceWarning, source=self)


def _leave_lanes_to_the_parent() -> None:
    """In a forked child: never use the parent's lanes, and never hold them open. Its loop's poll is shared with it."""
    for exchange in list(_open):
        exchange._close_lanes()


os.register_at_fork(after_in_child=_leave_lanes_to_the_parent)
