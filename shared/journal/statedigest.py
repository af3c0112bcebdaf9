"""The digest of a whole state, by which a checkpoint is compared with what the journal tells."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from solewriter.shared import record


class DigestOfState:
    """The sum, modulo 2^128, of the hashes of all entities' newest records, whatever their order: of their bodies
    without the checksum and without the mark of a copy. Tombstones do not count: not everybody keeps them equally long.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add_all(self, bodies: Iterable[bytes]) -> None:
        total, number, relocated = self._sum, int.from_bytes, int(record.Flags.RELOCATED)
        for body in bodies:
            content = body
            if body[record.FLAGS_OFFSET] & relocated:
                changed = bytearray(body)
                changed[record.FLAGS_OFFSET] &= ~relocated
                content = bytes(changed)
            total += number(blake2b(content[record.CRC_BYTES :], digest_size=16).digest(), "little")
        self._sum = total

    def digest(self) -> bytes:
        return (self._sum % 2**128).to_bytes(16, "little")
