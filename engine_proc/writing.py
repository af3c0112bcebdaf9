"""From a decided draft to records behind the tail and changes of the turn's overlay: all of a request, or nothing."""

from __future__ import annotations

from solewriter.engine_proc.decide import Draft, Step
from solewriter.engine_proc.publisher import Installed, Publisher
from solewriter.engine_proc.sessions import Session
from solewriter.engine_proc.turn import NO_SLOT, Stored, Turn
from solewriter.shared import record
from solewriter.shared.columns import Cells
from solewriter.shared.config import Limits
from solewriter.shared.errors import RequestTooLarge
from solewriter.shared.memory.heap import padded
from solewriter.shared.mutations import Op
from solewriter.shared.record import Flags
from solewriter.shared.wireform import PlainRequest

_CLAIM = Op.CLAIM.value

Written = list[tuple[int, int, str, str]]
"""(version, address, kind, id) of each mutation's entity"""

Form = tuple[Step, bytes, bytes, Cells]
"""A step with what its record will say: payload, block of cells, the cells that are new"""


def write(
    turn: Turn,
    draft: Draft,
    forms: list[Form],
    request: PlainRequest,
    session: Session,
    sequence: int,
    publisher: Publisher,
) -> Written:
    """Append the request's records and take them into the turn. Raises MemoryFull, and then has changed nothing."""
    if forms:
        bodies = _bodies(turn, forms, request[2], session, sequence)
        publisher.heap.reserve(sum(map(len, bodies)), len(bodies))
        _append(turn, forms, bodies, publisher)
    if draft.attended:
        turn.coordination.noted([one[0] for one in forms])
        turn.leases.update(draft.leases)
        return _results_of_claims(draft, request)
    results: Written = []
    for mutation in request[0]:
        step = draft.steps[mutation[1], mutation[2]]
        stored = step.stored or step.before
        version, address = (stored.version, stored.address) if stored is not None else (0, 0)
        results.append((version, address, mutation[1], mutation[2]))
    return results


def _results_of_claims(draft: Draft, request: PlainRequest) -> Written:
    """The same, where a mutation may not say itself which entities it is about."""
    results: Written = []
    claimed = iter(draft.claimed)
    for mutation in request[0]:
        steps = (draft.steps[mutation[1], mutation[2]],) if mutation[0] != _CLAIM else next(claimed)
        for step in steps:
            stored = step.stored or step.before
            version, address = (stored.version, stored.address) if stored is not None else (0, 0)
            results.append((version, address, mutation[1], step.key))
    return results


def form(draft: Draft, turn: Turn, limits: Limits) -> list[Form]:
    """What every step that changes something stores. Raises RequestTooLarge, InvalidMutation."""
    forms: list[Form] = []
    for step in draft.steps.values():
        before, kind = step.before, step.kind
        if not step.exists:
            if before is not None and before.alive:
                forms.append((step, b"", b"", ()))
            continue
        fields = step.fields
        payload = kind.payload(fields)
        if before is None or not before.alive:
            block, cells = kind.cut(fields, step.key, step.version, turn.now_us)
        elif payload == before.payload:
            continue
        else:
            block, cells = kind.recut(before.block, fields, step.touched, step.version, turn.now_us)
        if len(payload) > limits.entity_bytes_max:
            raise RequestTooLarge(
                f"{kind.name} {step.key!r} would take {len(payload):,} bytes; "
                f"the bound is {limits.entity_bytes_max:,} (entity_bytes_max)"
            )
        forms.append((step, payload, block, cells))
    return forms


def _bodies(turn: Turn, forms: list[Form], request_id: str | None, session: Session, sequence: int) -> list[bytes]:
    """The request's records, of the revision after the turn's last one."""
    user_id = b"" if request_id is None else request_id.encode()
    flags, last = Flags.FIRST, forms[-1][0]
    bodies = []
    for step, payload, block, _ in forms:
        state, before = step.state, step.before
        if step is last:
            flags |= Flags.LAST
        bodies.append(
            record.pack(
                state.code, state.schema.code, step.op, flags if step.exists else flags | Flags.DELETE,
                turn.revision + 1, step.version, turn.now_us, session.number, sequence,
                step.key.encode(), session.actor, step.reason.encode(), user_id,
                block, b"" if before is None else before.block, payload,
            )
        )  # fmt: skip
        flags = 0
    return bodies


def _append(turn: Turn, forms: list[Form], bodies: list[bytes], publisher: Publisher) -> None:
    """The records behind the tail, where room was reserved, and the turn's overlay with them."""
    turn.revision += 1
    for (step, payload, block, cells), body in zip(forms, bodies, strict=True):
        before, state, exists = step.before, step.state, step.exists
        if before is not None and before.slot != NO_SLOT:
            slot, previous, overtaken, new_key = before.slot, before.address, before.size, None
        else:
            new_key = step.key.encode()
            slot, previous, overtaken = turn.take_slot(state, new_key), 0, 0
        address = publisher.heap.append(body, slot, previous)
        size, existed = padded(len(body)), before is not None and before.alive
        stored = Stored(slot, step.version, address, size, exists, payload, block)
        step.stored = turn.changed[state.code, step.key] = stored
        if exists is not existed:
            turn.alive[state.code] = turn.alive.get(state.code, 0) + (1 if exists else -1)
        turn.bodies.append(body)
        turn.bytes += len(body)
        turn.installed.append(Installed(state.code, slot, address, cells, new_key, exists, size, overtaken, existed))
