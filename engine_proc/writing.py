"""From a decided draft to records behind the tail and changes of the turn's overlay: all of a request, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from solewriter.engine_proc.decide import Draft, Step
from solewriter.engine_proc.publisher import Installed, Publisher
from solewriter.engine_proc.sessions import Session
from solewriter.engine_proc.state import Stored, Turn
from solewriter.shared import record
from solewriter.shared.columns import Cells
from solewriter.shared.config import Limits
from solewriter.shared.errors import MemoryFull, RequestTooLarge
from solewriter.shared.record import Flags
from solewriter.shared.wire import PlainRequest

Written = list[tuple[Any, ...]]
"""(version, address) of each mutation's entity; with (kind, id) behind it in the reply to a user-given request id"""

Form = tuple[Step, bytes, bytes, Cells]
"""A step with what its record will say: payload, block of cells, the cells that are new"""


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
    forms = _forms(draft.steps.values(), turn, limits)
    if forms:
        tail = publisher.heap.tail
        try:
            bodies = _append(turn, forms, request[2], session, sequence, publisher)
        except MemoryFull:
            publisher.reset(tail)
            raise
        turn.revision += 1
        for form, body in zip(forms, bodies, strict=True):
            _take(turn, form, body)
    return [_result(draft.steps[mutation[1], mutation[2]], request[2]) for mutation in request[0]]


def _forms(steps: Iterable[Step], turn: Turn, limits: Limits) -> list[Form]:
    """What every step that changes something stores. Raises RequestTooLarge, InvalidMutation."""
    forms: list[Form] = []
    for step in steps:
        before, kind = step.before, step.kind
        alive_before = before if before is not None and before.alive else None
        if not step.exists:
            if alive_before is not None:
                forms.append((step, b"", b"", ()))
            continue
        payload = kind.payload(step.fields)
        if alive_before is None:
            block, cells = kind.cut(step.fields, step.key, step.version, turn.now_us)
        elif payload == alive_before.payload:
            continue
        else:
            block, cells = kind.recut(alive_before.block, step.fields, step.touched, step.version, turn.now_us)
        if len(payload) > limits.entity_bytes_max:
            raise RequestTooLarge(
                f"{kind.name} {step.key!r} would take {len(payload):,} bytes; "
                f"the bound is {limits.entity_bytes_max:,} (entity_bytes_max)"
            )
        forms.append((step, payload, block, cells))
    return forms


def _append(
    turn: Turn, forms: list[Form], request_id: str | None, session: Session, sequence: int, publisher: Publisher
) -> list[bytes]:
    """The records behind the tail, and in each step what is stored then. Changes nothing else."""
    bodies: list[bytes] = []
    coming: dict[int, int] = {}
    user_id = b"" if request_id is None else request_id.encode()
    flags, last = Flags.FIRST, forms[-1][0]
    for step, payload, block, _ in forms:
        before, state = step.before, step.state
        if step is last:
            flags |= Flags.LAST
        body = record.pack(
            state.code, state.schema.code, step.op, flags if step.exists else flags | Flags.DELETE,
            turn.revision + 1, step.version, turn.now_us, session.number, sequence,
            step.key.encode(), session.actor, step.reason.encode(), user_id,
            block, b"" if before is None else before.block, payload,
        )  # fmt: skip
        flags = 0
        if before is not None:
            slot, previous = before.slot, before.address
        else:
            slot, previous = turn.next_slot(state) + coming.get(state.code, 0), 0
            coming[state.code] = coming.get(state.code, 0) + 1
        address = publisher.append(body, slot, previous)
        step.stored = Stored(slot, step.version, address, step.exists, payload, block)
        bodies.append(body)
    return bodies


def _take(turn: Turn, form: Form, body: bytes) -> None:
    """The turn's overlay after this step."""
    step, _, _, cells = form
    code, before, stored = step.state.code, step.before, step.stored
    assert stored is not None
    new_key = None
    if before is None:
        new_key = step.key.encode()
        turn.new_keys.setdefault(code, []).append(new_key)
    if step.exists is not (before is not None and before.alive):
        turn.alive[code] = turn.alive.get(code, 0) + (1 if step.exists else -1)
    turn.changed[code, step.key] = stored
    turn.bodies.append(body)
    turn.bytes += len(body)
    turn.installed.append(Installed(code, stored.slot, stored.address, cells, new_key, step.exists))


def _result(step: Step, request_id: str | None) -> tuple[Any, ...]:
    """Where the caller finds what became of a mutation's entity."""
    stored = step.stored or step.before
    place = (stored.version, stored.address) if stored is not None else (0, 0)
    return place if request_id is None else (*place, step.kind.name, step.key)
