"""Between worlds: pipes -> frames -> asyncio.Queue, and replies out. Nothing here ever blocks or decides.

A lane's pipe is read without blocking into one reused buffer, a bounded amount each time, and cut into frames by
hand: the queue's own `get` would block the loop on a torn frame. What waits for a turn is bounded for each lane;
above that the lane is not read, its pipe fills, and its agent waits. An agent's death is seen by its pidfd; end of
file is only a hint, because a forked child may hold the pipe open. (uvloop leaves O_NONBLOCK set on what it watched,
uvloop#712: these descriptors are ours.)
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from solewriter.engine_proc.fairness import SessionQueue
from solewriter.engine_proc.newcomer import Newcomer, close_all
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.tuning import check_descriptors_left
from solewriter.shared import failpoint, wire, wirecheck
from solewriter.shared.config import (
    ACCEPT_PAUSE_S,
    BACKLOG,
    DESCRIPTORS_EACH,
    FOLDED_NODES_MAX,
    FRAME_REQUESTS_MAX,
    PIPE_BYTES,
    Limits,
)
from solewriter.shared.errors import BadRequest, Refused
from solewriter.shared.handshake import Welcome
from solewriter.shared.lane import LENGTH_BYTES
from solewriter.shared.system.processes import peer_of
from solewriter.shared.wire import Status


class LaneEnd:
    """The engine's end of one lane. `session` owns what is read here; descriptors stay in this room."""

    def __init__(self, bridge: Bridge, session: Session, first: int, fds: tuple[int, int], pidfd: int) -> None:
        self.session = session
        self.epoch = session.epoch  # once the session has a higher one, nothing of what is here is decided
        self.superseded = False  # another lane has the session
        self.taken = 0  # requests that turns took from here
        self.queue = SessionQueue(session.number)
        self._bridge = bridge
        self._requests, self._replies = fds
        self.pidfd = pidfd
        self._next_frame = first
        self._partial = bytearray()  # of a frame whose rest has not come
        self._needed = LENGTH_BYTES  # bytes of it before it is worth looking at
        self._given = 0  # requests that went into the inbox, so far
        self._given_bytes = 0  # read since turns had taken all of those
        self._folded = 0  # nodes of this wake-up's frames, beyond what their bytes explain
        self._backlog = bytearray()  # of replies that the agent has not read
        self._reading = False  # the loop tells when there is something
        self.dying = False  # its agent is dead: what that had sent counts still
        self.closed = False
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        if pidfd >= 0:
            bridge.loop.add_reader(pidfd, self._agent_died)
        self._listen()

    # --- requests in -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self._reading and not self.closed:
            self._reading = True
            self._bridge.loop.add_reader(self._requests, self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._bridge.loop.remove_reader(self._requests)

    def _readable(self) -> None:
        """Take what is there, at most one buffer, and hand on the whole frames of it."""
        if not self._reading:
            return
        buffer, begun = self._bridge.buffer, time.monotonic()
        try:
            count = os.readv(self._requests, [buffer])
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"its queue cannot be read: {error}")
            return
        if count == 0:
            self.close()
            return
        self._given_bytes += count
        self._folded = 0
        failpoint.reach("bridge.read")
        try:
            self._cut(buffer[:count])
        except BadRequest as error:
            self.close(str(error))
            return
        finally:
            self.queue.owed_s += time.monotonic() - begun
        waiting, limits = self._given - self.taken, self._bridge.limits
        if waiting > limits.lane_requests_max or (waiting and self._given_bytes > limits.lane_bytes_max):
            self._pause()  # until a turn has taken all of it; half a frame alone waits for its rest only

    def _cut(self, data: memoryview) -> None:
        """Frames out of a stream. Raises BadRequest for a length that makes the rest of it meaningless, and when it is
        the others' turn: its agent connects again, and sends again what was not answered.
        """
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return  # looked at again when the frame is whole, so that a dripping writer costs no copies
            data = memoryview(bytes(self._partial))
            self._partial.clear()
        requests: list[tuple[LaneEnd, int, Any]] = []
        try:
            start = self._frames(data, requests)
        finally:
            if requests:  # those before a bad one, too
                self._given += len(requests)
                failpoint.reach("bridge.frames")
                self._bridge.inbox.put_nowait(requests)
        self._partial += data[start:]

    def _frames(self, data: memoryview, requests: list[tuple[LaneEnd, int, Any]]) -> int:
        """Decode the whole frames; where the rest begins."""
        start, end = 0, len(data)
        self._needed = LENGTH_BYTES
        while end - start >= LENGTH_BYTES:
            length = LENGTH_BYTES + wire.frame_length(data, start, self._bridge.limits)
            if start + length > end:
                self._needed = length
                break
            behind = start + length
            self._decode(bytes(data[start + LENGTH_BYTES : behind]), requests)
            start = behind
            if self._folded > FOLDED_NODES_MAX:
                raise BadRequest("its frames say far more than their bytes, and there are too many of them")
        return start

    def _decode(self, body: bytes, requests: list[tuple[LaneEnd, int, Any]]) -> None:
        """The requests of a frame, each checked all the way down, or in its place what is wrong with it."""
        sequence, limits = self._next_frame * FRAME_REQUESTS_MAX, self._bridge.limits
        explained = 2 * len(body)  # what is not folded cannot have more parts than bytes
        whole = budget = max(limits.frame_nodes_max, explained)
        self._next_frame += 1
        try:
            unpacked = wire.unpack_frame(body)
        except BadRequest as error:
            requests.append((self, sequence, BadRequest(error.message, whole_frame=True)))
            if error.details.get("bomb"):
                self._folded = FOLDED_NODES_MAX + 1
            return
        for number, request in enumerate(unpacked, sequence):
            try:
                budget = wirecheck.check_request(request, budget, limits)
            except Refused as error:
                if not wirecheck.is_outcome_query(request):
                    budget -= wirecheck.count_parts(request, budget)  # which may have been looked at before
                    requests.append((self, number, error))
                    continue
            requests.append((self, number, request))
        self._folded += max(0, whole - budget - explained)

    # --- replies out -------------------------------------------------------------------------------------------------

    def reply(self, answers: list[Any]) -> None:
        """Send the answers of a turn. What the agent does not read waits, up to a bound; then the lane is closed."""
        if self.closed:
            return
        self._send(wire.pack_replies(answers))
        failpoint.reach("reply.written")
        if self._given == self.taken:
            self._given_bytes = 0
            self._resume()

    def _resume(self) -> None:
        if self.dying:
            self._drain_and_close()
        elif not self.superseded:
            self._listen()

    def _send(self, data: bytes) -> None:
        if len(self._backlog) > self._bridge.limits.reply_backlog_bytes_max:  # of earlier turns: it had time to read
            self.close("the agent does not read its replies")
        elif self._backlog:
            self._backlog += data
        else:
            sent = self._write(data)
            if sent < len(data) and not self.closed:
                self._backlog += data[sent:]
                self._bridge.loop.add_writer(self._replies, self._writable)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._replies, data)
        except BlockingIOError:
            return 0
        except OSError:  # the reading end is gone: an agent that died or closed
            self.close()
            return 0

    def _writable(self) -> None:
        sent = self._write(self._backlog)
        del self._backlog[:sent]
        if not self._backlog and not self.closed:
            self._bridge.loop.remove_writer(self._replies)

    # --- the end -----------------------------------------------------------------------------------------------------

    def supersede(self) -> None:
        """Another lane has this session now: what is unread here is never read."""
        self.superseded = True
        self._pause()

    def fence(self) -> None:
        """Tell whoever is left here that the session went to another lane."""
        self._send(wire.pack_replies([(0, Status.FENCED, 0, None)]))
        self.close()

    def _agent_died(self) -> None:
        self._bridge.loop.remove_reader(self.pidfd)
        self.dying = True
        if self._reading:
            self._drain_and_close()

    def _drain_and_close(self) -> None:
        """What a dead agent sent before counts; half a frame at the end does not."""
        self.read_rest()
        self.close()

    def read_rest(self) -> None:
        """Take everything that the pipe holds now, at most its capacity."""
        before, most = -1, self._given_bytes + PIPE_BYTES
        while not self.closed and not self.superseded and before < self._given_bytes < most:
            before = self._given_bytes
            self._reading = True
            self._readable()

    def close(self, why: str = "") -> None:
        """Let go of the descriptors: of the loop now, of the process one tick later (uvloop may still poll them)."""
        if self.closed:
            return
        self.closed = True
        self._pause()
        loop = self._bridge.loop
        loop.remove_writer(self._replies)
        if self.pidfd >= 0:
            loop.remove_reader(self.pidfd)
        if self._partial:
            self._bridge.half_frames += 1
        loop.call_soon(close_all, [self._requests, self._replies, self.pidfd])
        self._bridge.gone(self, why)


class Bridge:
    """The listening socket, the lanes, and the queue of what they brought."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, memory_epoch: int, log: Callable[[str], None]
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()  # bounded by what each lane may have waiting
        self.buffer = memoryview(bytearray(min(limits.lane_read_bytes, PIPE_BYTES)))  # no lane holds more
        self.half_frames = 0
        self._memory_epoch = memory_epoch
        self._log = log
        self._lanes: dict[int, LaneEnd] = {}
        self._tell_gone: Callable[[LaneEnd], None] | None = None  # while there are agents to be heard
        self._socket: socket.socket | None = None

    # --- connecting --------------------------------------------------------------------------------------------------

    def listen(self, listening: socket.socket, gone: Callable[[LaneEnd], None]) -> None:
        """Let agents in. From now on `gone` is told of each session's lane that is gone, while its pidfd is still
        open.
        """
        self._tell_gone = gone
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._socket = listening
        self.loop.add_reader(listening.fileno(), self._connectable)

    def _connectable(self) -> None:
        assert self._socket is not None
        try:
            check_descriptors_left(len(self._lanes), DESCRIPTORS_EACH)
            connection, _ = self._socket.accept()
        except OSError as error:  # gone again, or out of descriptors: those who are connected go on
            self._log(f"cannot accept a connection: {error}")
            self.loop.remove_reader(self._socket.fileno())
            self.loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
            return
        connection.setblocking(False)
        pid, uid, _ = peer_of(connection)
        if uid != os.geteuid():
            self._log(f"refused a connection from uid {uid}, pid {pid}")
            connection.close()
            return
        Newcomer(self.loop, self.limits, connection, pid, self._arrived)

    def _arrived(self, newcomer: Newcomer) -> None:
        try:
            check_descriptors_left(len(self._lanes))  # many may have come at once
        except OSError as error:
            newcomer.refuse(str(error))
        else:
            self.inbox.put_nowait([newcomer])

    def _accept_again(self) -> None:
        if self._socket is not None:
            self.loop.add_reader(self._socket.fileno(), self._connectable)

    def admit(self, newcomer: Newcomer, session: Session, first: int) -> None:
        """Open the lane of a session whose epoch is journaled, and the number of its first frame decided."""
        older = self._lanes.pop(session.number, None)
        if older is not None:
            older.fence()
        try:
            pidfd = os.pidfd_open(newcomer.pid)
        except OSError:  # it died already, or lives in another pid namespace: then end of file must do
            pidfd = -1
        self._lanes[session.number] = LaneEnd(self, session, first, (newcomer.fds[0], newcomer.fds[1]), pidfd)
        newcomer.welcome(
            Welcome(
                ok=True,
                session=session.number,
                epoch=session.epoch,
                first=first,
                engine_pid=os.getpid(),
                memory_epoch=self._memory_epoch,
                window=self.limits.window_max,
                window_bytes=self.limits.window_bytes_max,
                frame_bytes_max=self.limits.frame_bytes_max,
                text_bytes_max=self.limits.text_bytes_max,
            )
        )
        failpoint.reach("bridge.admitted")

    def supersede(self, session: int) -> None:
        lane = self._lanes.get(session)
        if lane is not None:
            lane.supersede()

    def drop(self, session: int) -> None:
        """Close a session's lane: its agent connects again and sends again what was not answered."""
        lane = self._lanes.get(session)
        if lane is not None:
            lane.close()

    def connected(self) -> Iterable[int]:
        """Numbers of the sessions that have a lane."""
        return self._lanes.keys()

    def gone(self, lane: LaneEnd, why: str) -> None:
        if self._lanes.get(lane.session.number) is lane:
            del self._lanes[lane.session.number]
            if self._tell_gone is not None:
                self._tell_gone(lane)
        if why:
            self._log(f"closed the lane of {lane.session.name or lane.session.client_id}: {why}")

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def drain(self) -> None:
        """Read what the lanes hold now, then put the end behind it."""
        self.stop_listening()
        self.read_rest()
        self.inbox.put_nowait(None)

    def read_rest(self) -> None:
        for lane in list(self._lanes.values()):
            lane.read_rest()

    def close(self) -> None:
        """Close all lanes, of which nobody is told any more."""
        self._tell_gone = None
        for lane in list(self._lanes.values()):
            lane.close()
