"""The handshake from the agent's side: a new lane, two of its ends handed to the engine with the hello, one answer."""

from __future__ import annotations

import array
import socket
import time
from collections.abc import Callable

from solewriter.shared import handshake
from solewriter.shared.errors import BadRequest, LayoutMismatch
from solewriter.shared.folder import StateFolder
from solewriter.shared.handshake import Hello, Welcome
from solewriter.shared.lane import Lane


def greet(
    folder: StateFolder,
    hello: Hello,
    lane: Lane,
    timeout_s: float,
    connected: Callable[[socket.socket], None] = lambda connection: None,
) -> Welcome:
    """Offer this lane to the engine, and hear its answer. Blocks for at most `timeout_s` at each step; an engine that
    is still recovering answers when it is ready. `connected` is told the connection: who shuts it down ends the wait.

    Raises OSError when nobody listens, or the engine went in the middle, LayoutMismatch for an answer that is none. An
    OSError that a signal handler raised, an alarm's TimeoutError say, is marked as `final`.
    """
    begun = time.monotonic()
    try:
        return _greeted(folder, hello, lane, timeout_s, connected)
    except OSError as error:
        if _is_of_a_handler(error, is_early=time.monotonic() - begun < timeout_s):
            error.final = True  # type: ignore[attr-defined]
        raise


def _is_of_a_handler(error: OSError, *, is_early: bool) -> bool:
    """The system's have a number, but for a socket's TimeoutError, which comes when its time is over."""
    if error.errno is not None or isinstance(error, ConnectionResetError):
        return False
    return is_early or not isinstance(error, TimeoutError)


def _greeted(
    folder: StateFolder, hello: Hello, lane: Lane, timeout_s: float, connected: Callable[[socket.socket], None]
) -> Welcome:
    with folder.connected_socket(timeout_s) as connection:
        connected(connection)
        fds = array.array("i", lane.theirs)
        connection.sendmsg([handshake.pack_words(hello)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        lane.hand_over()
        header = _receive_exactly(connection, handshake.WORDS_HEADER_BYTES)
        try:
            length = handshake.words_length(header)
        except BadRequest as error:
            raise LayoutMismatch(f"the engine answers with {error.message}") from None
        return handshake.unpack_welcome(_receive_exactly(connection, length))


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the engine closed the connection in the handshake")
        data += more
    return data
