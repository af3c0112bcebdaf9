"""Frames <-> bytes: what crosses a lane. The only pickle of requests is here.

A request frame is the queue's length header and a pickle (protocol 5) of plain data only: a list of requests. The
engine decodes it with an unpickler that refuses every name, so nothing is imported, called or built. A reply frame is
a length and msgpack: the replies of one turn to one lane. The number of a request is `frame number * 256 + index in
the frame`, both counted, not sent, so that an undecodable frame can be refused by number. What a request is made of
says `wireform`.

    reply = (sequence, status, revision, detail)
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import msgspec

from solewriter.shared.config import CAREFUL_NUMBERS, FRAME_REQUESTS_MAX, MEMO_BYTES_MAX, Limits
from solewriter.shared.errors import (
    UNDECODABLE,
    BadRequest,
    LayoutMismatch,
    RequestTooLarge,
    check_depth,
    clean,
    in_words,
)

_LENGTH = struct.Struct("!i")
_REPLY_LENGTH = struct.Struct("<I")
REPLY_HEADER_BYTES = _REPLY_LENGTH.size


class Status:
    """How a request ended. Plain ints: they are compared with for every reply."""

    APPLIED: Final = 0  # detail: [(version, address, kind, id) of each mutation's entity]
    REFUSED: Final = 1  # detail: (error name, message, details)
    UNAVAILABLE: Final = 2  # the same; not an outcome: asking again later can end otherwise
    ANSWER: Final = 3  # detail: what `outcome` found: None, or (status, revision, detail)
    FENCED: Final = 4  # not an answer to one request: another client took over this session, the lane is closed


class PlainReply(NamedTuple):
    sequence: int
    status: int
    revision: int
    detail: Any


# --- request frames ---------------------------------------------------------------------------------------------------


def pack_frame(requests: list[Any], limits: Limits) -> bytes:
    """The bytes of one frame, length header included. Raises RequestTooLarge, and TypeError for what is not plain."""
    try:
        body = pickle.dumps(requests, 5)
    except Exception as error:
        check_depth(error)
        raise TypeError(f"a request must be plain data: {error}") from error
    if len(body) > limits.frame_bytes_max:
        raise RequestTooLarge(
            f"a frame of {len(body):,} bytes is over the bound of {limits.frame_bytes_max:,} (frame_bytes_max)"
        )
    return _LENGTH.pack(len(body)) + body


def frame_length(buffer: memoryview, start: int, limits: Limits) -> int:
    """The declared length of the frame at `start`. Raises BadRequest for one that no client of ours would send."""
    (length,) = _LENGTH.unpack_from(buffer, start)
    if not 0 < length <= limits.frame_bytes_max:
        raise BadRequest(f"a frame declares {length:,} bytes; the bound is {limits.frame_bytes_max:,}")
    return int(length)


class _PlainUnpickler(pickle.Unpickler):
    """Plain data only: every name, every persistent id and every extension code is refused before anything is
    imported.
    """

    def find_class(self, module: str, name: str, /) -> NoReturn:
        _refuse_name(module, name)

    def persistent_load(self, pid: Any, /) -> NoReturn:
        _refuse_persistent_id()


class _CarefulUnpickler(pickle._Unpickler):
    """Plain data only, as `_PlainUnpickler`, by the library's unpickler in Python: it has a method for each opcode,
    and so each dict and set is looked at before it grows.

    Numbers can be chosen to collide as keys: 80,000 of them in a frame of 1 MiB would keep the engine busy for half a
    minute. Keys of plain data are text, whose hashes nobody can choose, and there are no sets in it.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str, /) -> NoReturn:
        _refuse_name(module, name)

    def persistent_load(self, pid: Any, /) -> NoReturn:
        _refuse_persistent_id()

    def _set_item(self) -> None:
        _check_keys(self.stack[-2:-1])
        self._library("load_setitem")

    def _set_items(self) -> None:
        _check_keys(self.stack[::2])
        self._library("load_setitems")

    def _dict(self) -> None:
        _check_keys(self.stack[::2])
        self._library("load_dict")

    def _library(self, step: str) -> None:
        getattr(pickle._Unpickler, step)(self)

    def _refuse_set(self) -> NoReturn:
        raise BadRequest("the frame holds a set: requests are plain data")

    def _refuse_bytearray(self) -> NoReturn:
        raise BadRequest("the frame holds a bytearray: requests are plain data")  # it would be filled before it is read

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_SET[0]: _refuse_set,
        pickle.FROZENSET[0]: _refuse_set,
        pickle.ADDITEMS[0]: _refuse_set,
        pickle.BYTEARRAY8[0]: _refuse_bytearray,
    }


_NUMBERS = b"".join(
    (pickle.LONG1, pickle.LONG4, pickle.BININT, pickle.BININT2, pickle.BINFLOAT, pickle.INT, pickle.LONG, pickle.FLOAT)
)
_CONTAINERS = b"".join((pickle.MARK, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_SET, pickle.FROZENSET))
_COLLIDING = _NUMBERS + _CONTAINERS
"""What makes a key with a hash that can be chosen: numbers, and tuples and sets of them."""


def _may_collide(body: bytes) -> bool:
    """Whether a frame may hold so many keys of a kind that can be made to collide. Text with such bytes in it counts
    too, which costs little: the careful way is slow by the opcode, not by the byte.
    """
    return len(body) - len(body.translate(None, _COLLIDING)) > CAREFUL_NUMBERS


def _check_keys(keys: list[Any]) -> None:
    if not all(type(key) is str for key in keys):
        raise BadRequest("keys are str")


def _refuse_name(module: str, name: str) -> NoReturn:
    raise BadRequest(f"the frame names {clean(module, 100)}.{clean(name, 100)}: requests are plain data")


def _refuse_persistent_id() -> NoReturn:
    raise BadRequest("the frame holds a persistent id: requests are plain data")


_warm_extensions: dict[int, Any] = copyreg._extension_cache  # type: ignore[attr-defined]


def refuse_extensions() -> None:
    """EXT opcodes bypass find_class when copyreg has entries: an engine starts only without any."""
    assert not _warm_extensions, "copyreg extensions are registered in the engine"
    copyreg._inverted_registry.clear()  # type: ignore[attr-defined]


def unpack_frame(body: bytes) -> list[Any]:
    """The requests of a frame, each of them checked by `check_request` before it is used.

    Raises BadRequest; with `bomb=True` where decoding cost far more than the frame's bytes explain.
    """
    stream = io.BytesIO(body)
    if _warm_extensions:  # a user's model or validator unpickled one: what is in this cache never comes to find_class
        _warm_extensions.clear()
    unpickler = (_CarefulUnpickler if _may_collide(body) else _PlainUnpickler)(stream)
    try:
        requests = unpickler.load()
    except BadRequest:
        raise
    except (MemoryError, RecursionError) as error:
        raise BadRequest(f"the frame is a bomb: {type(error).__name__}", bomb=True) from None
    except Exception as error:
        raise BadRequest(f"the frame cannot be decoded: {in_words(error)}") from None
    if unpickler.__sizeof__() > MEMO_BYTES_MAX + 16 * len(body):  # a memo of two words for each byte is never needed
        raise BadRequest("the frame is a bomb: it names a place far out in its memo", bomb=True)
    if stream.tell() != len(body):
        raise BadRequest("the frame has bytes behind its end")
    if type(requests) is not list or not 0 < len(requests) <= FRAME_REQUESTS_MAX:
        raise BadRequest(f"a frame is a list of 1 to {FRAME_REQUESTS_MAX} requests")
    return requests


# --- reply frames -----------------------------------------------------------------------------------------------------

_encode_reply = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_replies = msgspec.msgpack.Decoder(list[PlainReply]).decode


def pack_replies(replies: list[Any]) -> bytes:
    body = _encode_reply(replies)
    return _REPLY_LENGTH.pack(len(body)) + body


def unpack_replies(buffer: bytearray) -> list[PlainReply]:
    """All whole reply frames at the front of `buffer`, which keeps the rest. Raises LayoutMismatch for other bytes."""
    replies: list[PlainReply] = []
    start = 0
    while len(buffer) - start >= REPLY_HEADER_BYTES:
        (length,) = _REPLY_LENGTH.unpack_from(buffer, start)
        end = start + REPLY_HEADER_BYTES + length
        if len(buffer) < end:
            break
        replies += _replies_of(bytes(memoryview(buffer)[start + REPLY_HEADER_BYTES : end]))
        start = end
    del buffer[:start]
    return replies


def _replies_of(body: bytes) -> list[PlainReply]:
    try:
        return _decode_replies(body)
    except UNDECODABLE as error:
        check_depth(error)
        raise LayoutMismatch(f"the engine's replies cannot be read ({error}): use one solewriter everywhere") from None
