"""The requests that come most often, decided and written at once: updates of one entity's plain fields.

What happens is what `decide`, `form` and `write` do with such a request, byte for byte, at half of the cost: nothing
that only larger requests need is made. Whatever is unusual is left to them, before anything was changed. No code of a
user's runs here: fields count as plain where their validation needs none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from solewriter.engine_proc.bridge import LaneEnd
from solewriter.engine_proc.coordination import Coordination
from solewriter.engine_proc.outcomes import Answer, refused_outcome, unavailable_outcome
from solewriter.engine_proc.publisher import Installed
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.turn import Stored, Turn
from solewriter.engine_proc.writing import Written, grows, too_large
from solewriter.shared import record
from solewriter.shared.config import Limits
from solewriter.shared.errors import Refused, Unavailable
from solewriter.shared.journal.entry import Outcome
from solewriter.shared.memory.heap import HeapWriter, padded
from solewriter.shared.mutations import Op
from solewriter.shared.record import Flags
from solewriter.shared.wire import Status
from solewriter.shared.wireform import PlainRequest

_APPLIED: Final = Status.APPLIED
_UPDATE: Final = Op.UPDATE.value
_WHOLE: Final = Flags.FIRST | Flags.LAST

Begin = Callable[[int, int], None]
"""Told the session and the number of a request that is about to be decided"""


class Express:
    """Takes such requests, as many as follow each other."""

    def __init__(self, heap: HeapWriter, coordination: Coordination, limits: Limits, begin: Begin) -> None:
        self._heap = heap
        self._coordination = coordination
        self._limits = limits
        self._begin = begin

    def take(self, turn: Turn, lane: LaneEnd, items: deque[Any], answers: list[Answer], most: int, until: float) -> int:
        """Decide and answer what a lane asks for, from the first of its waiting items on, at most so many and until
        then, but for the last one; how many it was. What it leaves there first is to be looked at by others.
        """
        if not _is_one_update(items[0][2]):
            return 0
        session, coordination, heap, begin = lane.session, self._coordination, self._heap, self._begin
        number, last, outcomes = session.number, session.last, turn.outcomes
        entity_max, turn_max = self._limits.entity_bytes_max, self._limits.turn_bytes_max
        settled = bool(session.fenced or session.quarantined or turn.fenced)
        taken, now = 0, time.monotonic
        while items and taken < most and turn.bytes < turn_max:
            item = items[0]
            if item.__class__ is not tuple:
                break
            sender, sequence, request = item
            if sender is not lane or sequence <= last or (settled and _is_settled(turn, session, sequence)):
                break
            if request.__class__ is not tuple or len(request) != 4:
                break  # no request
            if not (coordination.idle or coordination.passes(turn, request)):
                break
            try:
                written = update(turn, request, session, sequence, heap, entity_max, begin)
                if written is None:
                    break
                revision = turn.revision
                outcomes.append(Outcome(number, sequence, _APPLIED, revision, written))
                answers.append((sequence, _APPLIED, revision, written))
            except Refused as error:
                outcome = refused_outcome(turn, number, sequence, error)
                outcomes.append(outcome)
                answers.append((sequence, outcome.status, outcome.revision, outcome.detail))
            except Unavailable as error:
                outcome = unavailable_outcome(turn, number, sequence, error)
                answers.append((sequence, outcome.status, outcome.revision, outcome.detail))
            items.popleft()
            taken += 1
            if now() >= until:
                break
        lane.taken += taken
        return taken


def _is_one_update(request: Any) -> bool:
    """Whether it may be one of these: to see that at once spares all others the looks that follow."""
    return request.__class__ is tuple and len(request) == 4 and len(request[0]) == 1 and request[0][0][0] == _UPDATE


def _is_settled(turn: Turn, session: Session, sequence: int) -> bool:
    """Whether it is known how a request ends that was not decided yet."""
    return sequence in session.fenced or sequence in session.quarantined or (session.number, sequence) in turn.fenced


def update(
    turn: Turn, request: PlainRequest, session: Session, sequence: int, heap: HeapWriter, bytes_max: int, begin: Begin
) -> Written | None:
    """The reply's results, as `writing.results_of`; None where this is none of the requests that it knows, or it would
    be refused for what is stored, or for being late. Else `begin` is called first. Raises InvalidMutation,
    RequestTooLarge and MemoryFull, and then has changed nothing.
    """
    mutations, guards, request_id, deadline_us = request
    if guards or request_id is not None or len(mutations) != 1:
        return None
    if deadline_us is not None and time.monotonic_ns() // 1000 > deadline_us:
        return None
    op, name, key, expect, fields, reason, _ = mutations[0]
    known = turn.named(name)
    if op != _UPDATE or not fields or reason or known is None or known.kind is None:
        return None
    kind, place = known.kind, (name, key)
    if not kind.plain_fields.issuperset(fields):
        return None
    before = turn.find(known, place, anew=False)
    if before is None or not before.alive or (expect is not None and expect != before.version):
        return None

    begin(session.number, sequence)
    payload, kept = kind.replace_fields(before.payload, fields)
    if payload == before.payload:
        return [(before.version, before.address, name, key)]
    if len(payload) > bytes_max and grows(before, payload):
        raise too_large(kind, key, len(payload), bytes_max)

    version, code, slot = before.version + 1, known.code, before.slot
    block, cells = kind.layout.recut(before.block, kept, fields, version, turn.now_us)
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
