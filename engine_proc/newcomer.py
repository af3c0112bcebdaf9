"""A process in its handshake: its words and the two descriptors of its lane, until it is welcomed or refused.

Nothing here blocks, everything has a deadline, and the descriptors that came with a hello are closed wherever it does
not end in a lane.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import stat
from collections.abc import Callable, Iterable

from solewriter.shared import handshake
from solewriter.shared.config import WIRE_VERSION, Limits
from solewriter.shared.errors import BadRequest
from solewriter.shared.handshake import WORDS_HEADER_BYTES, Hello, Welcome

FDS = 2  # the request queue's reading end and the reply pipe's writing end


class Newcomer:
    """A process in its handshake: its words and descriptors, until its session's epoch is journaled."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        connection: socket.socket,
        pid: int,
        arrived: Callable[[Newcomer], None],
    ) -> None:
        self._loop = loop
        self._arrived = arrived  # called once, when its hello is whole
        self._connection = connection
        self.pid = pid
        self.fds: list[int] = []
        self._heard = bytearray()
        self.hello: Hello = None  # type: ignore[assignment]  # set before anybody else sees this object
        self._deadline = loop.call_later(limits.handshake_timeout_s, self.refuse, "the hello did not arrive in time")
        loop.add_reader(connection.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, too_many_fds = self._receive()
        except BlockingIOError:
            return
        if not data:
            self.refuse("the hello broke off")
        elif too_many_fds:
            self.refuse("too many descriptors came with the hello")
        else:
            self._heard += data
            self._look()

    def _receive(self) -> tuple[bytes, bool]:
        """The next bytes, none at the end; and whether more descriptors came by now than a lane has. Raises
        BlockingIOError.
        """
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(
                4096, socket.CMSG_SPACE(FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise
        except OSError:
            return b"", False
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.fds += array.array("i", payload[: len(payload) // 4 * 4])
        return data, len(self.fds) > FDS or bool(flags & socket.MSG_CTRUNC)

    def _look(self) -> None:
        """Whether the hello is whole by now, and then what it says."""
        if len(self._heard) < WORDS_HEADER_BYTES:
            return
        try:
            end = WORDS_HEADER_BYTES + handshake.words_length(bytes(self._heard[:WORDS_HEADER_BYTES]))
        except BadRequest as error:
            self.refuse(error.message)
            return
        if len(self._heard) >= end:
            self._heard_all(bytes(self._heard[WORDS_HEADER_BYTES:end]))

    def _heard_all(self, body: bytes) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._connection.fileno())
        try:
            self.hello = handshake.unpack_hello(body)
        except BadRequest as error:
            self.refuse(error.message)
            return
        if self.hello.wire != WIRE_VERSION:
            self.refuse(f"wire version {self.hello.wire} is not {WIRE_VERSION}: use one solewriter everywhere", "final")
        elif len(self.fds) != FDS or not all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in self.fds):
            self.refuse("a hello brings the two ends of a lane")
        else:
            self._arrived(self)

    def welcome(self, words: Welcome) -> None:
        self._deadline.cancel()
        try:
            self._connection.send(handshake.pack_words(words))
        except OSError:
            pass  # it gave up; its lane will be closed when its process ends or connects again
        self._connection.close()

    def refuse(self, why: str, refusal: str = "again") -> None:
        """Say why and let go of everything. Harmless when it was refused before."""
        if self._connection.fileno() < 0:
            return
        self._loop.remove_reader(self._connection.fileno())
        self.welcome(Welcome(ok=False, reason=why, refusal=refusal))
        close_all(self.fds)
        self.fds = []


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
