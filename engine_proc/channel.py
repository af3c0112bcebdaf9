"""Whole messages between a process and its child, down two pipes: an owner and its engine, an engine and its maker of
checkpoints. A message is a length (u64, little-endian) and msgpack.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any, TypeVar

import msgspec

from solewriter.shared.config import POLL_MS_MAX, READ_BYTES

M = TypeVar("M")
_LENGTH_BYTES = 8


class NotInTime(TimeoutError):
    """The other side did not read or answer in time; any other TimeoutError is a signal handler's."""


class Channel:
    """One side's ends of the two pipes: whole messages, either way."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self._write_fd = write_fd
        self._received = bytearray()
        self._unsent = bytearray()
        self._written: list[int] = []  # how many bytes of that, but for what `_drop_written` took off

    def send(self, message: Any, timeout_s: float | None = None) -> None:
        """Raises BrokenPipeError if the other side is gone, NotInTime if it did not read in time: the rest of a
        message that went out in part is then sent before the next one.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        body = msgspec.msgpack.encode(message)
        framed = len(body).to_bytes(_LENGTH_BYTES, "little") + body
        self._drop_written()
        self._unsent += framed
        try:
            while self._unsent:
                _await(self._write_fd, select.POLLOUT, deadline)
                self._write()
                self._drop_written()
        except TimeoutError:  # a signal handler's, perhaps
            self._drop_written()
            if len(self._unsent) >= len(framed):  # nothing of it was sent
                del self._unsent[-len(framed) :]
            raise

    def _write(self) -> None:
        """Write what never blocks, and note how much that was, in one step: a signal handler that raises does so before
        or behind it, and nothing is sent twice.
        """
        self._written.extend(map(os.write, [self._write_fd], [self._unsent[: select.PIPE_BUF]]))

    def _drop_written(self) -> None:
        count = sum(self._written)
        del self._unsent[:count]
        self._written.clear()  # no signal is handled between these two lines

    def receive(self, kind: type[M], timeout_s: float | None = None) -> M | None:
        """The next message; None if the other side is gone. Raises NotInTime."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._whole(kind)) is None:
            _await(self.read_fd, select.POLLIN, deadline)
            if not self.read():
                return None
        return message

    def read(self) -> bool:
        """Take what is there; False if the other side is gone."""
        data = os.read(self.read_fd, READ_BYTES)
        self._received += data
        return bool(data)

    def messages(self, kind: type[M]) -> list[M]:
        """All whole messages that were read."""
        found = []
        while (message := self._whole(kind)) is not None:
            found.append(message)
        return found

    def _whole(self, kind: type[M]) -> M | None:
        if len(self._received) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._received[:_LENGTH_BYTES], "little")
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH_BYTES:end])
        del self._received[:end]
        return msgspec.msgpack.decode(body, type=kind)

    @property
    def is_closed(self) -> bool:
        return self.read_fd < 0

    def close(self) -> None:
        fds = self.read_fd, self._write_fd
        self.read_fd = self._write_fd = -1  # a thread that still waits here must not read a file that gets the number
        for fd in fds:
            if fd >= 0:  # else it was closed before
                os.close(fd)


def _await(fd: int, event: int, deadline: float | None) -> None:
    """Until this can be read or written. Raises NotInTime."""
    poll = select.poll()
    poll.register(fd, event)
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not poll.poll(None if left is None else min(left * 1000, POLL_MS_MAX)):
        raise NotInTime
