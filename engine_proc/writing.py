"""From a decided draft to records behind the tail and changes of the turn's overlay: all of a request, or nothing."""

from __future__ import annotations

from collections.abc import Iterable

from solewriter.engine_proc.coordination.making import Unready
from solewriter.engine_proc.decide import Draft, Step, decide
from solewriter.engine_proc.overtime import Overtime
from solewriter.engine_proc.publisher import Installed
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.turn import NO_SLOT, Stored, Turn
from solewriter.shared import record
from solewriter.shared.config import PROBLEM_MAX, Limits
from solewriter.shared.errors import InvalidMutation, MemoryFull, Refused, RequestTooLarge, Unavailable, clean, in_words
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.memory.heap import HeapWriter, padded
from solewriter.shared.mutations import Op
from solewriter.shared.record import Flags
from solewriter.shared.wireform import PlainRequest

_CLAIM, _CANCEL, _FAIL, _EXPIRE = Op.CLAIM.value, Op.CANCEL.value, Op.FAIL.value, Op.EXPIRE.value
_OF_FAILED = frozenset(("status", "assigned_to", "attempts", "not_before"))
Written = list[tuple[int, int, str, str]]
"""(version, address, kind, id) of each mutation's entity"""


def decide_and_form(draft: Draft, request: PlainRequest, turn: Turn, limits: Limits) -> tuple[list[Step], list[Step]]:
    """Decide a request, and work out what is stored: the entity of each mutation, and those that change. What a user's
    model raises here is a refusal; our own bugs are not.
    """
    try:
        return decide(draft, request), form(draft, turn, limits)
    except (Refused, Unavailable, Unready, Overtime, AssertionError):
        raise
    except BaseException as error:  # SystemExit and a panic of the validator's own library, too. Nothing waits here and
        # signals go to the loop, so a cancellation or a KeyboardInterrupt is the model's own: it ends no engine
        problem = clean(f"its model raised {in_words(error)}", PROBLEM_MAX)
        raise InvalidMutation(problem, fields={"entity": problem}) from error


def overtime(draft: Draft, limits: Limits) -> InvalidMutation:
    """The refusal of a request whose models did not come to an end. All that it made is its draft."""
    names = ", ".join(sorted({kind for kind, _ in draft.steps})) or "its models"
    problem = f"not decided within {limits.decide_timeout_s:g} s (decide_timeout_s)"
    return InvalidMutation(f"{names}: {problem}: a validator loops or waits", fields={"entity": problem})


def form(draft: Draft, turn: Turn, limits: Limits) -> list[Step]:
    """The steps that change something, each with what its record will say. Raises RequestTooLarge, InvalidMutation."""
    changing: list[Step] = []
    for step in draft.steps.values():
        try:
            if _changes(step, turn, limits):
                changing.append(step)
        except (Unavailable, Overtime, AssertionError):
            raise
        except BaseException as error:  # of its model, as in `decide_and_form`, or of its size
            if step.op != _CLAIM:
                raise
            board = turn.coordination.board(step.state)
            if isinstance(error, RequestTooLarge):
                board.pass_over_for(step.key, step.assignee)
            else:
                board.pass_over(step.key)
            raise Unready from error  # others are not kept waiting behind it
    return changing


def _changes(step: Step, turn: Turn, limits: Limits) -> bool:
    """Whether a step changes something; then it has what its record says. Raises RequestTooLarge, InvalidMutation."""
    before = step.before
    if not step.exists:
        return before is not None and before.alive
    kind, fields = step.kind, step.fields
    payload = step.payload = kind.payload(fields)
    if before is None or not before.alive:
        step.block, step.cells = kind.layout.cut(fields, step.key, step.version, turn.now_us)
    elif payload == before.payload:
        return False
    else:
        if kind.recasts:  # its own code may have changed more than was asked for
            step.touched = step.altered
        step.block, step.cells = kind.layout.recut(before.block, fields, step.touched, step.version, turn.now_us)
    if kind.recasts:
        stored = before.payload if before is not None else b""
        payload = step.payload = kind.read_back(step.key, step.version, turn.now_us, payload, stored)
        if before is not None and before.alive and payload == stored:
            return False
    if len(payload) > limits.entity_bytes_max and grows(before, payload) and not _only_ends(step):
        raise too_large(kind, step.key, len(payload), limits.entity_bytes_max)
    return True


def grows(before: Stored | None, payload: bytes) -> bool:
    """Whether it is more than was stored: what is above a bound that was lowered may change, and become less."""
    return before is None or len(payload) > len(before.payload)


def _only_ends(step: Step) -> bool:
    """Whether it is cancelled, fails or is taken away, and nothing else is said of it: the name of its state, or when
    it is tried again, may make it larger by some bytes, and for want of these nobody could end it.
    """
    if not step.stored_version:
        return False
    if step.op == _CANCEL:
        return step.kind.lifecycle is not None and set(step.touched) == {step.kind.lifecycle.field}
    return step.op == _EXPIRE or (step.op == _FAIL and _OF_FAILED.issuperset(step.touched))


def too_large(kind: Kind, key: str, size: int, most: int) -> RequestTooLarge:
    """The refusal of a request whose entity would be too large."""
    return RequestTooLarge(f"{kind.name} {key!r} would take {size:,} bytes; the bound is {most:,} (entity_bytes_max)")


def write(
    turn: Turn, steps: list[Step], request_id: str | None, session: Session, sequence: int, heap: HeapWriter
) -> None:
    """Append the records of a request's steps that were formed, at least one, and take them into the turn. Raises
    MemoryFull, and then has changed nothing.
    """
    bodies = _bodies(turn, steps, request_id, session, sequence)
    size = sum(map(len, bodies))
    try:
        heap.reserve(size, len(bodies))
    except MemoryFull:
        if any(step.exists for step in steps):
            raise
        heap.reserve_last(size, len(bodies))  # what is deleted makes room
    turn.revision += 1
    turn.bytes += size
    for step, body in zip(steps, bodies, strict=True):
        _append(turn, step, body, heap)


def results_of(touched: Iterable[Step]) -> Written:
    """The results of a reply: of each mutation's entity, where it is, as the request left it."""
    results: Written = []
    for step in touched:
        stored = step.stored or step.before
        version, address = (stored.version, stored.address) if stored is not None else (0, 0)
        results.append((version, address, step.kind.name, step.key))
    return results


def _bodies(turn: Turn, steps: list[Step], request_id: str | None, session: Session, sequence: int) -> list[bytes]:
    """The request's records, of the revision after the turn's last one."""
    user_id = b"" if request_id is None else request_id.encode()
    flags, last = Flags.FIRST, steps[-1]
    bodies = []
    for step in steps:
        state, before, reason = step.state, step.before, step.reason
        if step is last:
            flags |= Flags.LAST
        bodies.append(
            record.pack(
                state.code, state.schema.code, step.op, flags if step.exists else flags | Flags.DELETE,
                turn.revision + 1, step.version, turn.now_us, session.number, sequence,
                step.key.encode(), session.actor, reason.encode() if reason else b"", user_id,
                step.block, b"" if before is None else before.block, step.payload,
            )
        )  # fmt: skip
        flags = 0
    return bodies


def _append(turn: Turn, step: Step, body: bytes, heap: HeapWriter) -> None:
    """A record behind the tail, where room was reserved, and the turn's overlay with it."""
    before, state, exists = step.before, step.state, step.exists
    existed, new_key = before is not None and before.alive, None
    if before is not None and before.slot != NO_SLOT:
        slot, previous, overtaken = before.slot, before.address, before.size
    else:
        new_key = step.key.encode()
        slot, previous, overtaken = turn.take_slot(state, new_key), 0, 0
    address, size = heap.append(body, slot, previous), padded(len(body))
    stored = Stored(slot, step.version, address, size, exists, step.payload, step.block)
    step.stored = turn.changed[state.name, step.key] = stored
    if exists is not existed:
        turn.alive[state.code] = turn.alive.get(state.code, 0) + (1 if exists else -1)
    turn.bodies.append(body)
    turn.installed.append(Installed(state.code, slot, address, step.cells, new_key, exists, size, overtaken, existed))
