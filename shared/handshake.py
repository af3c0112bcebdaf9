"""The handshake: an agent's first words with the two descriptors of its lane, and the engine's answer, over a socket.

A length (u32, little-endian) and msgpack. Unknown fields are ignored on both sides: either may say more one day.
"""

from __future__ import annotations

import struct

import msgspec

_LENGTH = struct.Struct("<I")
WORDS_HEADER_BYTES = _LENGTH.size


class Hello(msgspec.Struct, kw_only=True):
    """The first words of an agent, with its two descriptors. Unknown fields are ignored, so that newer clients may
    say more.
    """

    wire: int
    client_id: str
    name: str
    pid: int
    first: int  # the number of the first frame on this lane
    instance: str  # random, one for each client object: only the same one may send frames again
    resends: bool  # whether that one was sent before; if not, the engine may choose a higher number


class Welcome(msgspec.Struct, kw_only=True):
    """The engine's answer to a hello."""

    ok: bool
    reason: str = ""
    refusal: str = (
        ""  # "again": try later; "unknown": the session is not remembered; "fenced": it is another's; "final"
    )
    session: int = 0
    epoch: int = 0
    first: int = 0  # the frame number from which the engine counts on this lane
    engine_pid: int = 0
    memory_epoch: int = 0  # in which the addresses of replies are valid
    window: int = 0
    frame_bytes_max: int = 0


def pack_words(words: Hello | Welcome) -> bytes:
    body = msgspec.msgpack.encode(words)
    return _LENGTH.pack(len(body)) + body


def unpack_hello(body: bytes) -> Hello:
    return msgspec.msgpack.decode(body, type=Hello)


def unpack_welcome(body: bytes) -> Welcome:
    return msgspec.msgpack.decode(body, type=Welcome)


def words_length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    return int(length)
