"""The request that comes most often, decided and written at once: an update of one entity's plain fields.

What happens is what `decide`, `form` and `write` do with such a request, byte for byte, at half of the cost: nothing
that only larger requests need is made. Whatever is unusual is left to them, before anything was changed. No code of a
user's runs here: fields count as plain where their validation needs none.
"""

from __future__ import annotations

from typing import Final

from solewriter.engine_proc.publisher import Installed
from solewriter.engine_proc.sessions import Session
from solewriter.engine_proc.turn import Stored, Turn
from solewriter.engine_proc.writing import Written
from solewriter.shared import record
from solewriter.shared.memory.heap import HeapWriter, padded
from solewriter.shared.mutations import Op
from solewriter.shared.record import Flags
from solewriter.shared.wireform import PlainRequest

_UPDATE: Final = Op.UPDATE.value
_WHOLE: Final = Flags.FIRST | Flags.LAST


def update(
    turn: Turn, request: PlainRequest, session: Session, sequence: int, heap: HeapWriter, bytes_max: int
) -> Written | None:
    """What the reply says, as `writing.told`; None where this is none of the requests that it knows, or it would be
    refused. Raises InvalidMutation; MemoryFull, and then has changed nothing.
    """
    mutations, guards, request_id, _ = request
    if guards or request_id is not None or len(mutations) != 1:
        return None
    op, name, key, expect, fields, reason, _ = mutations[0]
    known = turn.named(name)
    if op != _UPDATE or not fields or reason or known is None or known.kind is None:
        return None
    kind, place = known.kind, (name, key)
    if not kind.plain_fields.issuperset(fields):
        return None
    before = turn.find(known, place)
    if before is None or not before.alive or (expect is not None and expect != before.version):
        return None
    values = {}
    for field, value in fields.items():
        values[field] = kind.field(field, value)
    payload = kind.replaced(before.payload, values)
    if payload == before.payload:
        return [(before.version, before.address, name, key)]
    if len(payload) > bytes_max:
        return None

    version, code, slot = before.version + 1, known.code, before.slot
    block, cells = kind.recut(before.block, values, fields, version, turn.now_us)
    body = record.pack(
        code, known.schema.code, op, _WHOLE, turn.revision + 1, version, turn.now_us, session.number, sequence,
        key.encode(), session.actor, b"", b"", block, before.block, payload,
    )  # fmt: skip
    address, size = heap.append(body, slot, before.address), padded(len(body))
    turn.changed[place] = Stored(slot, version, address, size, True, payload, block)
    turn.installed.append(Installed(code, slot, address, cells, None, True, size, before.size, True))
    turn.bodies.append(body)
    turn.bytes += len(body)
    turn.revision += 1
    return [(version, address, name, key)]
