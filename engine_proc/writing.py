"""From a decided draft to records behind the heap's tail and changes of the turn's overlay. All of a request, or nothing."""

from __future__ import annotations

from typing import NamedTuple

from solewriter.engine_proc.decide import Draft, Step
from solewriter.engine_proc.publisher import Installed, Publisher
from solewriter.engine_proc.sessions import Session
from solewriter.engine_proc.state import KindState, Stored, Turn
from solewriter.shared import record
from solewriter.shared.columns import Cell
from solewriter.shared.config import Limits
from solewriter.shared.errors import MemoryFull, RequestTooLarge
from solewriter.shared.record import Flags
from solewriter.shared.wire import PlainRequest

Written = list[tuple[object, ...]]
"""(version, address) of each mutation's entity; with (kind, id) behind it in the reply to a user-given request id"""


class Content(NamedTuple):
    """What a changed step will be stored as."""

    step: Step
    payload: bytes
    cells: tuple[Cell, ...]
    block: bytes


def write(
    turn: Turn, draft: Draft, request: PlainRequest, session: Session, sequence: int, publisher: Publisher, limits: Limits
) -> Written:
    """Append the request's records and take them into the turn. Raises RequestTooLarge, InvalidMutation, MemoryFull."""
    contents = [content for step in draft.steps.values() if (content := _content(step, limits)) is not None]
    if contents:
        tail = publisher.heap.tail
        try:
            stored = _append(turn, contents, request[2] or "", session, sequence, publisher)
        except MemoryFull:
            publisher.reset(tail)
            raise
        _take(turn, contents, stored)
    return [_result(turn, draft, mutation[1], mutation[2], request[2]) for mutation in request[0]]


def _content(step: Step, limits: Limits) -> Content | None:
    """What to store of a step; None when nothing changed."""
    before, entity, kind = step.before, step.entity, step.kind
    if entity is None:
        return Content(step, b"", (), b"") if before is not None and before.alive else None
    payload = kind.payload(entity)
    if before is not None and before.alive:
        if payload == before.payload:
            return None
        cells = kind.recelled(entity, before.cells, step.touched.union(step.stamps))
    else:
        cells = kind.cells(entity)
    if len(payload) > limits.entity_bytes_max:
        raise RequestTooLarge(
            f"{kind.name} {step.key!r} would take {len(payload):,} bytes; the bound is {limits.entity_bytes_max:,} (entity_bytes_max)"
        )
    return Content(step, payload, cells, kind.block.pack(*cells))


def _append(
    turn: Turn, contents: list[Content], request_id: str, session: Session, sequence: int, publisher: Publisher
) -> list[tuple[Stored, bytes]]:
    """The records behind the tail: each step's new stored state and body. Changes nothing else."""
    appended: list[tuple[Stored, bytes]] = []
    coming: dict[int, int] = {}
    revision, last = turn.revision + 1, len(contents) - 1
    user_id = request_id.encode(errors="surrogatepass")
    for place, (step, payload, cells, block) in enumerate(contents):
        before, state = step.before, step.state
        flags = (Flags.FIRST if place == 0 else 0) | (Flags.LAST if place == last else 0) | (0 if step.entity else Flags.DELETE)
        version = step.stamps["version"]
        body = record.pack(
            state.code, state.schema.code, step.op, flags, revision, version, turn.now_us, session.number, sequence,
            step.key.encode(errors="surrogatepass"), session.actor, step.reason.encode(errors="surrogatepass"), user_id,
            block, before.block if before is not None else b"", payload,
        )  # fmt: skip
        if before is not None:
            slot, previous = before.slot, before.address
        else:
            slot, previous = turn.next_slot(state) + coming.get(state.code, 0), 0
            coming[state.code] = coming.get(state.code, 0) + 1
        address = publisher.append(body, slot, previous)
        appended.append((Stored(slot, version, address, step.entity, payload, cells, block), body))
    return appended


def _take(turn: Turn, contents: list[Content], appended: list[tuple[Stored, bytes]]) -> None:
    """The turn's overlay after this request."""
    turn.revision += 1
    for content, (stored, body) in zip(contents, appended, strict=True):
        step = content.step
        state: KindState = step.state
        before = step.before
        new_key = None
        if before is None:
            new_key = step.key.encode(errors="surrogatepass")
            turn.new_keys.setdefault(state.code, []).append(new_key)
        was_alive = before is not None and before.alive
        if stored.alive != was_alive:
            turn.alive[state.code] = turn.alive.get(state.code, 0) + stored.alive - was_alive
        turn.changed[state.code, step.key] = stored
        turn.bodies.append(body)
        turn.bytes += len(body)
        old_cells = before.cells if before is not None else ()
        turn.installed.append(Installed(state.code, stored.slot, stored.address, content.cells, old_cells, new_key, stored.alive))


def _result(turn: Turn, draft: Draft, kind_name: str, key: str, request_id: str | None) -> tuple[object, ...]:
    """Where the caller finds what became of a mutation's entity."""
    stored = turn.find(draft.kind(kind_name)[0], key)
    place = (stored.version, stored.address) if stored is not None else (0, 0)
    return place if request_id is None else (*place, kind_name, key)
