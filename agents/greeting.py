"""The handshake from the agent's side: a new lane, two of its ends handed to the engine with the hello, one answer."""

from __future__ import annotations

import array
import socket

from solewriter.shared import handshake
from solewriter.shared.folder import StateFolder
from solewriter.shared.handshake import Hello, Welcome
from solewriter.shared.lane import Lane


def greet(folder: StateFolder, hello: Hello, lane: Lane, timeout_s: float) -> Welcome:
    """Offer this lane to the engine, and hear its answer. Blocks for at most `timeout_s` at each step.

    Raises OSError when nobody listens, or the engine went in the middle.
    """
    with folder.connected_socket(timeout_s) as connection:
        fds = array.array("i", lane.theirs)
        connection.sendmsg([handshake.pack_words(hello)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        lane.hand_over()
        header = _exactly(connection, handshake.WORDS_HEADER_BYTES)
        return handshake.unpack_welcome(_exactly(connection, handshake.words_length(header)))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the engine closed the connection in the handshake")
        data += more
    return data
