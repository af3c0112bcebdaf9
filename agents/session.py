"""The agent's side of a session, without any I/O: requests -> frames, replies -> results. Clients are its shells.

The law: every request has its number before it is sent, and keeps it. What was not answered is sent again on the next
lane, the same frames in the same order, and the engine tells what it already knows. Frames are forgotten here in their
order, when every request in them was answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from solewriter.agents.pending import Pending, Sent, outcome_unknown
from solewriter.shared import wire
from solewriter.shared.config import (
    CALLED_BACK_BEHIND,
    FRAME_BATCH,
    FRAME_REQUESTS_MAX,
    FRAMES_KEPT_MAX,
    WIRE_VERSION,
    Limits,
)
from solewriter.shared.errors import EngineUnavailable, Fenced, RequestTooLarge, SolewriterError, safe_repr
from solewriter.shared.handshake import Hello, Welcome
from solewriter.shared.lane import LENGTH_BYTES
from solewriter.shared.mutations import Op
from solewriter.shared.request_ids import default_id, new_client_id, session_number
from solewriter.shared.wire import PlainReply, Status
from solewriter.shared.wirecheck import is_text
from solewriter.shared.wireform import Asked, PlainRequest

_CLAIM: Final = Op.CLAIM.value
_PLACE_BITS: Final = 8  # the lowest of a sequence number: its request's place in a frame; the others are the frame's
_PLACE: Final = 0xFF  # the same as a mask
assert _PLACE + 1 == FRAME_REQUESTS_MAX


class _Frame:
    """A frame that may have to be sent again: some of its requests are not answered."""

    __slots__ = ("begun", "data", "number", "open", "pendings")

    def __init__(self, number: int, data: bytes, pendings: list[Pending]) -> None:
        self.number = number
        self.data = data
        self.pendings = pendings
        self.open = len(pendings)
        self.begun = False  # some of it was written to some lane


def waits(request: PlainRequest) -> bool:
    """Whether this is a claim that is answered when there is something to do, and not as soon as can be."""
    return bool(request[0]) and request[0][0][0] == _CLAIM and (request[0][0][4] or {}).get("until_us") is not None


def _waiting(frame: _Frame) -> list[Pending]:
    return [pending for pending in frame.pendings if pending.waits and not (pending.done or pending.called_back)]


class AgentSession:
    """Numbers, frames and answers of one client. Not thread-safe: its shell holds a lock.

    Frames that are not wholly answered have consecutive numbers. An interrupt (Ctrl-C) at any instruction of `send`
    keeps that true, provided that its shell then goes on with a new lane.
    """

    def __init__(self, limits: Limits, name: Any, client_id: Any) -> None:
        """Raises TypeError for a name or a client id that is no text, ValueError for text that cannot be encoded."""
        if not isinstance(name, str) or not isinstance(client_id, str | None):
            raise TypeError(f"name and client_id are text, not {safe_repr(name)} and {safe_repr(client_id)}")
        if not is_text(name) or not is_text(client_id or ""):
            raise ValueError(
                f"name and client_id are text that UTF-8 can encode, not {safe_repr(name)} and {safe_repr(client_id)}"
            )
        self.limits = limits  # those of frames and reasons are the engine's, where these are lower
        self.name: str = name
        self.client_id: str = client_id or new_client_id()
        self.number = session_number(self.client_id)
        self.window = limits.window_max  # credits; the engine's own, where they are lower, come with its welcome
        self.window_bytes = limits.window_bytes_max
        self._own = limits
        self.fenced = False
        self._instance = new_client_id()
        self.in_flight = 0
        self.waiting = 0  # of those in flight: claims that wait
        self.bytes_in_flight = 0  # of frames that are not wholly answered
        self._answered = 0  # frames that are not kept any more, and so the number of the first one that is
        self._frames: deque[_Frame] = deque()
        self._epoch = 0
        self._unsent: deque[tuple[_Frame, memoryview]] = deque()
        self._received = bytearray()

    # --- requests out ------------------------------------------------------------------------------------------------

    def send(self, requests: Sequence[Asked]) -> list[Pending]:
        """Make one frame of these requests. Raises RequestTooLarge; TypeError for what is not plain data."""
        assert 0 < len(requests) <= FRAME_REQUESTS_MAX
        data = wire.pack_frame(list(requests), self.limits)
        number = self.next_frame
        pendings = []
        for place, request in enumerate(requests):
            sequence = number << _PLACE_BITS | place
            if len(request) == 2:
                pendings.append(Pending(self.number, sequence, request[1]))  # unanswered, it names what it asks about
            elif waits(request):
                waiting = Pending(self.number, sequence, request[2], waits=True)
                waiting.claim = request
                pendings.append(waiting)
                self.waiting += 1
            else:
                pendings.append(Pending(self.number, sequence, request[2]))
        frame = _Frame(number, data, pendings)
        self._frames.append(frame)
        self._unsent.append((frame, memoryview(data)))
        self.in_flight += len(pendings)
        self.bytes_in_flight += len(data)
        return pendings

    def send_all(self, requests: Sequence[Asked]) -> list[Sent]:
        """Queue these requests to be written: as one frame, or, where that is too large, as smaller ones. Each has its
        place in the result; what is too large alone is refused there.
        """
        if len(self._frames) > CALLED_BACK_BEHIND:
            self._call_back(_waiting(self._frames[0]))
        try:
            return [*self.send(requests)]
        except RequestTooLarge as error:
            if len(requests) == 1:
                return [error]
            middle = len(requests) // 2
            return self.send_all(requests[:middle]) + self.send_all(requests[middle:])

    def replies_until_room(self, count: int) -> int:
        """How many replies until so many more requests may be sent: 0 if they may now. When nothing is in flight, one
        frame always may, however large.
        """
        if not self.in_flight:
            return 0
        missing = max(0, self.in_flight + count - self.window)
        is_open = self.bytes_in_flight < self.window_bytes and len(self._frames) < FRAMES_KEPT_MAX
        return missing if is_open else max(missing, (self.in_flight + 1) // 2)

    def make_room(self, count: int) -> None:
        """Call back as many of the claims that wait as so many other requests need, those that wait for the shortest
        time. Only where nothing else is in flight.
        """
        missing = self.replies_until_room(count)
        if missing:
            newest = (pending for frame in reversed(self._frames) for pending in _waiting(frame))
            self._call_back([*islice(newest, min(missing, FRAME_BATCH))])

    def _call_back(self, claims: list[Pending]) -> None:
        """Ask how they ended: one that waits is answered by that, and its number is spent."""
        if claims:
            self.send([("outcome", default_id(self.number, pending.sequence)) for pending in claims])
            for pending in claims:
                pending.called_back = True

    @property
    def next_frame(self) -> int:
        return self._frames[-1].number + 1 if self._frames else self._answered

    def sent_from(self, number: int) -> list[Pending]:
        """What is in the frames from this one on."""
        return [pending for frame in self._frames if frame.number >= number for pending in frame.pendings]

    @property
    def unsent(self) -> memoryview | None:
        """The next bytes to write."""
        return self._unsent[0][1] if self._unsent else None

    def is_unsent(self, pending: Pending | None) -> bool:
        """Whether something is to be written still: up to the end of this request's frame, or anything."""
        unsent = self._unsent
        return bool(unsent) and (pending is None or unsent[0][0].number <= pending.sequence >> _PLACE_BITS)

    def write(self, write: Callable[[memoryview], int]) -> int:
        """Have them written, or a part; how many were. Whoever is interrupted right behind the write must take them for
        written, so that is noted first. Raises what `write` raises; where that is what a pipe says, none were.
        """
        frame, data = self._unsent[0]
        before, frame.begun = frame.begun, True
        try:
            count = write(data)
        except (BlockingIOError, BrokenPipeError):  # any other OSError may be a signal handler's, a TimeoutError say
            frame.begun = before
            raise
        if count < len(data):
            self._unsent[0] = frame, data[count:]
        else:
            self._unsent.popleft()
        return count

    # --- a new lane --------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the memory of the engine that welcomed this session last; 0 before the first one."""
        return self._epoch

    def hello(self, pid: int) -> Hello:
        """What to say on the next lane: it begins with the oldest frame that was not answered."""
        first = self._frames[0].number if self._frames else self.next_frame
        return Hello(
            wire=WIRE_VERSION,
            client_id=self.client_id,
            name=self.name,
            pid=pid,
            first=first,
            instance=self._instance,
            resends=self._resends,
            again=self._epoch > 0,
        )

    def accept(self, welcome: Welcome) -> None:
        """The engine listens on a new lane: everything unanswered is sent again.

        Raises EngineUnavailable if it refused (`final` if it always will), Fenced if another client has the session.
        """
        if not welcome.ok:
            self._raise_refusal(welcome)
        if not self._resends:
            self._renumber(welcome.first)
        self._epoch = welcome.memory_epoch
        self.window = min(self.limits.window_max, welcome.window)
        self.window_bytes = min(self.limits.window_bytes_max, welcome.window_bytes or self.limits.window_bytes_max)
        own, text_max = self._own, welcome.text_bytes_max
        frame_max = min(own.frame_bytes_max, welcome.frame_bytes_max)
        text_max = own.text_bytes_max if text_max is None else min(own.text_bytes_max, text_max)
        if (frame_max, text_max) != (self.limits.frame_bytes_max, self.limits.text_bytes_max):
            self.limits = msgspec.structs.replace(self.limits, frame_bytes_max=frame_max, text_bytes_max=text_max)
        for frame in self._frames:  # counted anew: an interrupt between an answer and its count ended the lane before
            self._take_back(frame)
            frame.open = sum(not pending.done for pending in frame.pendings)
        self._count()
        self._received.clear()
        self._unsent = deque([(frame, memoryview(frame.data or self._filler(frame))) for frame in self._frames])

    def _filler(self, frame: _Frame) -> bytes:
        """A frame that decides nothing, in the place of one that was answered: the engine counts frames."""
        return wire.pack_frame([("outcome", default_id(self.number, frame.number << _PLACE_BITS))], self.limits)

    def _take_back(self, frame: _Frame) -> None:
        """Replace what must not be decided any more, in a frame, by the question how it ended: that keeps it from ever
        being decided. Its caller was told that it was not applied, or the frame is too large for this engine.
        """
        too_large = len(frame.data) > LENGTH_BYTES + self.limits.frame_bytes_max
        if too_large:
            for pending in frame.pendings:
                if not pending.done:
                    pending.end(None, outcome_unknown(pending) if frame.begun else _too_large(self.limits))
        gone = [pending for pending in frame.pendings if too_large or _was_unavailable(pending)]
        if gone:
            requests: list[Any] = [None] * len(gone) if too_large else wire.unpack_frame(frame.data[LENGTH_BYTES:])
            for pending in gone:
                requests[pending.sequence & _PLACE] = "outcome", default_id(self.number, pending.sequence)
            frame.data = wire.pack_frame(requests, self.limits)

    def _raise_refusal(self, welcome: Welcome) -> None:
        if welcome.refusal == "fenced":
            self._fence()
            raise Fenced(f"{welcome.reason}: connect again under another one")
        if welcome.refusal == "unknown":
            self._forget_begun()
        why = f"the engine refused the connection: {welcome.reason}"
        raise EngineUnavailable(why, final=welcome.refusal == "final")

    @property
    def _resends(self) -> bool:
        return bool(self._frames) and self._frames[0].begun

    def _renumber(self, first: int) -> None:
        """Begin where the engine says: higher than before when an earlier process had this session."""
        if self._frames and self._frames[0].number != first:
            self._leave_out_named()
        for number, frame in enumerate(self._frames, first):
            frame.number = number
            for place, pending in enumerate(frame.pendings):
                pending.sequence = number << _PLACE_BITS | place
        self._answered = first

    def _leave_out_named(self) -> None:
        """Drop what was never sent and whose ids somebody holds: numbers change now, and an id stays one request's."""
        left_out = [frame for frame in self._frames if any(pending.named for pending in frame.pendings)]
        for frame in left_out:
            self._frames.remove(frame)
            for pending in frame.pendings:
                if not pending.done:
                    pending.end(None, EngineUnavailable("it was not sent: another client had the session meanwhile"))

    def _forget_begun(self) -> None:
        """End what was sent as OutcomeUnknown. What was not sent yet goes on, under the next hello."""
        waiting = [frame for frame in self._frames if not frame.begun]
        while self._frames and not self._frames[-1].begun:
            self._frames.pop()
        self.fail(None)
        self._frames.extend(waiting)
        self._count()

    def _count(self) -> None:
        """Count anew what is in flight."""
        self.in_flight = sum(frame.open for frame in self._frames)
        self.waiting = sum(one.waits and not one.done for frame in self._frames for one in frame.pendings)
        self.bytes_in_flight = sum(len(frame.data) for frame in self._frames)

    @property
    def awaited(self) -> int:
        """Requests in flight that are answered as soon as can be."""
        return self.in_flight - self.waiting

    # --- replies in --------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes from the reply pipe, and finish the requests that they answer."""
        self._received += data
        for reply in wire.unpack_replies(self._received):
            if reply.status == Status.FENCED:
                self._fence()
            else:
                self._answer(reply)

    def _answer(self, reply: PlainReply) -> None:
        sequence, status, _, detail = reply
        frames, place = self._frames, sequence & _PLACE
        nth = (sequence >> _PLACE_BITS) - frames[0].number if frames else -1  # their numbers are consecutive
        if not 0 <= nth < len(frames):
            return  # answered before, on an earlier lane
        frame = frames[nth]
        whole_frame = status == Status.REFUSED and "whole_frame" in detail[2]
        for pending in frame.pendings if whole_frame else frame.pendings[place : place + 1]:
            if pending.reply is None and pending.error is None:
                pending.epoch = self._epoch
                pending.end(reply, None)
                frame.open -= 1
                self.in_flight -= 1
                if pending.waits:
                    self.waiting -= 1
        if frame.open:
            return
        if frame is not frames[0]:
            self._spend(frame)
        while frames and not frames[0].open:
            self._forget_first()

    def _spend(self, frame: _Frame) -> None:
        """Keep only the number of an answered frame that stands behind an open one, a claim that waits say: its content
        is never sent again, and no older lane is read.
        """
        self.bytes_in_flight -= len(frame.data)
        frame.data, frame.pendings = b"", []

    def _forget_first(self) -> None:
        self._answered = self._frames[0].number + 1
        self.bytes_in_flight -= len(self._frames.popleft().data)

    def _fence(self) -> None:
        """Another client has the session. What was not sent at all is refused; nobody here knows more of the rest."""
        self.fenced = True
        self.fail(fenced_session())

    def close(self) -> None:
        """End the session on this side: what was not sent never is."""
        self.fail(EngineUnavailable("this client was closed before it was sent", final=True))

    def fail(self, unsent: SolewriterError | None) -> None:
        """No answer will come: every open request ends with OutcomeUnknown naming it, or with this error where nothing
        of it was sent.
        """
        ended = [
            (pending, None if frame.begun else unsent)
            for frame in self._frames
            for pending in frame.pendings
            if not pending.done
        ]
        while self._frames:
            self._forget_first()
        self._unsent.clear()
        self._count()
        for pending, error in ended:
            pending.end(None, error or outcome_unknown(pending))


def _was_unavailable(pending: Pending) -> bool:
    return pending.reply is not None and pending.reply.status == Status.UNAVAILABLE


def _too_large(limits: Limits) -> RequestTooLarge:
    return RequestTooLarge(f"the engine takes frames of at most {limits.frame_bytes_max:,} bytes (frame_bytes_max)")


def fenced_session() -> Fenced:
    return Fenced("another client took over this client_id: connect again under another one")


def closed_client() -> EngineUnavailable:
    return EngineUnavailable("this client is closed", final=True)
