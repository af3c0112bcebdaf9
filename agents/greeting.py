"""The handshake from the agent's side: a new lane, two of its ends handed to the engine with the hello, one answer."""

from __future__ import annotations

import array
import socket
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

    Raises OSError when nobody listens, or the engine went in the middle, LayoutMismatch for an answer that is none.
    """
    with folder.connected_socket(timeout_s) as connection:
        connected(connection)
        fds = array.array("i", lane.theirs)
        connection.sendmsg([handshake.pack_words(hello)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        lane.hand_over()
        header = _exactly(connection, handshake.WORDS_HEADER_BYTES)
        try:
            length = handshake.words_length(header)
        except BadRequest as error:
            raise LayoutMismatch(f"the engine answers with {error.message}") from None
        return handshake.unpack_welcome(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the engine closed the connection in the handshake")
        data += more
    return data
