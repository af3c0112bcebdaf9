"""The handshake: an agent's first words with the two descriptors of its lane, and the engine's answer, over a socket.

A length (u32, little-endian) and msgpack. Unknown fields are ignored on both sides: either may say more one day.
"""

from __future__ import annotations

import struct

import msgspec

from solewriter.shared.config import HANDSHAKE_BYTES_MAX
from solewriter.shared.errors import UNDECODABLE, BadRequest, LayoutMismatch, check_depth

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
    again: bool = False  # whether this client object was welcomed before: then it has the session, or lost it


class Welcome(msgspec.Struct, kw_only=True):
    """The engine's answer to a hello."""

    ok: bool
    reason: str = ""
    refusal: str = ""
    """again: try later; unknown: the session is not remembered; fenced: it is another client's; final: it would be no
    use"""
    session: int = 0
    epoch: int = 0
    first: int = 0  # the frame number from which the engine counts on this lane
    engine_pid: int = 0
    memory_epoch: int = 0  # in which the addresses of replies are valid
    window: int = 0  # credits: requests that this session may have in flight
    window_bytes: int = 0  # the same in bytes of frames; 0: of an engine that does not say
    frame_bytes_max: int = 0
    text_bytes_max: int | None = None  # None: of an engine that does not say


def pack_words(words: Hello | Welcome) -> bytes:
    body = msgspec.msgpack.encode(words)
    return _LENGTH.pack(len(body)) + body


def unpack_hello(body: bytes) -> Hello:
    """Raises BadRequest for bytes that are no hello."""
    try:
        return msgspec.msgpack.decode(body, type=Hello)
    except UNDECODABLE as error:
        raise BadRequest(f"the hello cannot be read: {error}") from None


def unpack_welcome(body: bytes) -> Welcome:
    """Raises LayoutMismatch for bytes that are no welcome."""
    try:
        return msgspec.msgpack.decode(body, type=Welcome)
    except UNDECODABLE as error:
        check_depth(error)
        raise LayoutMismatch(f"the engine's welcome cannot be read ({error}): use one solewriter everywhere") from None


def words_length(header: bytes) -> int:
    """Of the words behind this header. Raises BadRequest for more than any hello or welcome takes."""
    (length,) = _LENGTH.unpack(header)
    if length > HANDSHAKE_BYTES_MAX:
        raise BadRequest(f"{length:,} bytes of hello or welcome; the bound is {HANDSHAKE_BYTES_MAX:,}")
    return int(length)
