"""From a decided draft to records behind the heap's tail and changes of the turn's overlay. All of a request, or
nothing.
"""

from __future__ import annotations

from typing import Any

from solewriter.engine_proc.decide import Draft, Step
from solewriter.engine_proc.publisher import Installed, Publisher
from solewriter.engine_proc.sessions import Session
from solewriter.engine_proc.state import Stored, Turn
from solewriter.shared import record
from solewriter.shared.config import Limits
from solewriter.shared.errors import MemoryFull, RequestTooLarge
from solewriter.shared.record import Flags
from solewriter.shared.wire import PlainRequest

Written = list[tuple[Any, ...]]
"""(version, address) of each mutation's entity; with (kind, id) behind it in the reply to a user-given request id"""


def write(
    turn: Turn,
    draft: Draft,
    request: PlainRequest,
    session: Session,
    sequence: int,
    publisher: Publisher,
    limits: Limits,
) -> Written:
    """Append the request's records and take them into the turn. Raises RequestTooLarge, InvalidMutation, MemoryFull."""
    changed = [step for step in draft.steps.values() if _finish(step, turn, limits)]
    if changed:
        tail = publisher.heap.tail
        try:
            bodies = _append(turn, changed, request[2] or "", session, sequence, publisher)
        except MemoryFull:
            publisher.reset(tail)
            raise
        turn.revision += 1
        for step, body in zip(changed, bodies, strict=True):
            _take(turn, step, body)
    return [_result(draft.steps[mutation[1], mutation[2]], request[2]) for mutation in request[0]]


def _finish(step: Step, turn: Turn, limits: Limits) -> bool:
    """Work out what a step stores; False when it changes nothing."""
    before, kind = step.before, step.kind
    was_alive = before is not None and before.alive
    if not step.exists:
        return was_alive
    payload = step.payload = kind.payload(step.fields)
    if before is None or not was_alive:
        cells = kind.cells(step.fields, step.key, step.version, turn.now_us)
    elif payload == before.payload:
        return False
    else:
        step.old_cells = kind.block.unpack(before.block)
        cells = kind.recelled(step.fields, step.touched, step.old_cells, step.version, turn.now_us)
    if len(payload) > limits.entity_bytes_max:
        raise RequestTooLarge(
            f"{kind.name} {step.key!r} would take {len(payload):,} bytes; "
            f"the bound is {limits.entity_bytes_max:,} (entity_bytes_max)"
        )
    step.cells = cells
    step.block = kind.block.pack(*cells)
    return True


def _append(
    turn: Turn, changed: list[Step], request_id: str, session: Session, sequence: int, publisher: Publisher
) -> list[bytes]:
    """The records behind the tail, and in each step what is stored then. Changes nothing else."""
    bodies: list[bytes] = []
    coming: dict[int, int] = {}
    revision, flags, last = turn.revision + 1, Flags.FIRST, changed[-1]
    user_id = request_id.encode()
    for step in changed:
        before, state, version = step.before, step.state, step.version
        if step is last:
            flags |= Flags.LAST
        body = record.pack(
            state.code, state.schema.code, step.op, flags if step.exists else flags | Flags.DELETE, revision, version,
            turn.now_us, session.number, sequence, step.key.encode(), session.actor, step.reason.encode(), user_id,
            step.block, b"" if before is None else before.block, step.payload,
        )  # fmt: skip
        flags = 0
        if before is not None:
            slot, previous = before.slot, before.address
        else:
            slot, previous = turn.next_slot(state) + coming.get(state.code, 0), 0
            coming[state.code] = coming.get(state.code, 0) + 1
        address = publisher.append(body, slot, previous)
        step.stored = Stored(slot, version, address, step.exists, step.payload, step.block)
        bodies.append(body)
    return bodies


def _take(turn: Turn, step: Step, body: bytes) -> None:
    """The turn's overlay after this step."""
    code, before, stored = step.state.code, step.before, step.stored
    assert stored is not None
    new_key = None
    if before is None:
        new_key = step.key.encode()
        turn.new_keys.setdefault(code, []).append(new_key)
    was_alive = before is not None and before.alive
    if step.exists is not was_alive:
        turn.alive[code] = turn.alive.get(code, 0) + step.exists - was_alive
    turn.changed[code, step.key] = stored
    turn.bodies.append(body)
    turn.bytes += len(body)
    turn.installed.append(
        Installed(code, stored.slot, stored.address, step.cells, step.old_cells, new_key, step.exists)
    )


def _result(step: Step, request_id: str | None) -> tuple[Any, ...]:
    """Where the caller finds what became of a mutation's entity."""
    stored = step.stored or step.before
    place = (stored.version, stored.address) if stored is not None else (0, 0)
    return place if request_id is None else (*place, step.kind.name, step.key)
