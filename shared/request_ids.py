"""The names of requests: a session's number and the request's number in it, or the user's own word."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Final

SEQUENCES_MAX: Final = 2**63  # what journals, records and memory hold as a number


def new_client_id() -> str:
    """A random client id: 16 hex digits."""
    return os.urandom(8).hex()


def session_number(client_id: str) -> int:
    """64 bits that name a session: the id itself where it is 16 hex digits, as a random one is, else a stable hash of
    it.
    """
    if len(client_id) == 16 and all(digit in "0123456789abcdef" for digit in client_id):
        return int(client_id, 16)
    return int.from_bytes(blake2b(client_id.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def default_id(session: int, sequence: int) -> str:
    """The request id of a request that was given none."""
    return f"{session:016x}-{sequence}"


def own_id(request_id: str) -> tuple[int, int] | None:
    """(session, sequence) of an id that a client made by default, None for a user's own: so is one whose number no
    request can have.
    """
    session, dash, number = request_id.partition("-")
    if dash and len(session) == 16 and number.isdecimal() and all(digit in "0123456789abcdef" for digit in session):
        sequence = int(number)
        return (int(session, 16), sequence) if sequence < SEQUENCES_MAX else None
    return None
