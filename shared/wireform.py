"""A request as plain data: made from mutations by the caller, checked all the way down by the engine.

Plain data is what any process can unpickle without importing anything: tuples, lists, dicts, str, int, float, bool,
bytes, None. Bad input is refused here, at the call, before anything is sent; the engine trusts none of it and checks
the same shapes again.

    request  = (mutations, guards, request id | None, deadline_us | None)      or   ("outcome", request id)
    deadline = microseconds of CLOCK_MONOTONIC, after which it is not decided any more
    mutation = (op, kind, id, expect, fields, reason, to)
    guard    = (guard, kind, id, version)    or   (guard, kind, id, (version | None, conditions))
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

from solewriter.shared.config import DEFAULT_LIMITS, KEY_BYTES_MAX, NAME_MAX, REQUEST_ID_MAX, Limits
from solewriter.shared.errors import BadRequest, InvalidMutation, Refused, RequestTooLarge
from solewriter.shared.frozen import INT_MAX, INT_MIN
from solewriter.shared.models import Entity
from solewriter.shared.mutations import (
    Alter,
    Cancel,
    Create,
    Delete,
    FromTarget,
    Guard,
    GuardMutation,
    Mutation,
    Op,
    Put,
    Require,
    RequireFields,
    RequireNone,
    Transition,
    Unchanged,
    Update,
)
from solewriter.shared.operations import plain_operations
from solewriter.shared.registry import Kind, Registry
from solewriter.shared.request_ids import own_id
from solewriter.shared.schema import plain
from solewriter.shared.taskform import NO_ID, SCALARS, changed_fields, model_of, plain_of_task, tree_of
from solewriter.shared.where import plain_where, same_fields

PlainMutation = tuple[int, str, str, "int | None", "dict[str, Any] | None", str, "str | None"]
PlainGuard = tuple[int, str, str, Any]
PlainRequest = tuple[list[PlainMutation], list[PlainGuard], "str | None", "int | None"]
OutcomeQuery = tuple[str, str]
MUTATION_NODES: Final = 8  # its tuple and what is in it: the same one can be named a thousand times
GUARD_NODES: Final = 5
_UPDATE: Final = Op.UPDATE.value  # asked of the enum each time, it takes as long as a line
_TRANSITION: Final = Op.TRANSITION.value
_CANCEL: Final = Op.CANCEL.value
_DELETE: Final = Op.DELETE.value
_CONDITIONAL: Final = (Guard.REQUIRE_FIELDS.value, Guard.REQUIRE_NONE.value)
_CLAIM_SHOWN: Final = Guard.CLAIM.value


# --- the caller's side: mutations to plain data -----------------------------------------------------------------------


def plain_request(
    mutations: Iterable[Mutation],
    guards: Iterable[GuardMutation],
    request_id: Any,
    registry: Registry,
    limits: Limits,
    deadline_us: int | None = None,
) -> PlainRequest:
    """A request as plain data. Raises what `plain_mutation` does, RequestTooLarge for too many parts."""
    plain = [plain_mutation(mutation, registry, limits) for mutation in mutations]
    conditions = [plain_guard(guard, registry) for guard in guards]
    if request_id is not None:
        check_request_id(request_id)
    if not 0 < len(plain) + len(conditions) <= limits.request_mutations_max:
        raise RequestTooLarge(
            f"a request has 1 to {limits.request_mutations_max} mutations and guards (request_mutations_max)"
        )
    return plain, conditions, request_id, deadline_us


def plain_or_refused(
    asked: Mutation | Sequence[Mutation], registry: Registry, limits: Limits, deadline_us: int | None = None
) -> PlainRequest | Refused:
    """A request of one mutation, or of several together, or why it can be none."""
    try:
        if isinstance(asked, list | tuple):
            return plain_request(asked, (), None, registry, limits, deadline_us)
        return [plain_mutation(cast("Mutation", asked), registry, limits)], [], None, deadline_us
    except Refused as error:
        return error


def outcome_query(request_id: Any) -> OutcomeQuery:
    """The question how a request ended. Raises InvalidMutation for what cannot be a request's id."""
    if not is_outcome_query(("outcome", request_id)):
        raise _not_a_request_id(request_id)
    return "outcome", request_id


def plain_mutation(mutation: Mutation, registry: Registry, limits: Limits = DEFAULT_LIMITS) -> PlainMutation:
    """A mutation as plain data. Raises InvalidMutation, naming the field, RequestTooLarge, and TypeError for what is no
    mutation.
    """
    plain = _plain_mutation(mutation, registry)
    _check_edges(plain[2], plain[3], plain[5], limits)
    return cast("PlainMutation", plain)


def _check_edges(key: Any, expect: Any, reason: Any, limits: Limits) -> None:
    """What is not a field of the entity: refused at the call, not by the engine."""
    if expect is not None and (type(expect) is not int or not 0 <= expect <= INT_MAX):
        raise InvalidMutation(f"expect is a version or None, not {expect!r}", fields={"expect": "not a version"})
    _check_id(key)
    if reason != "":
        if type(reason) is not str or not _is_text(reason):
            raise InvalidMutation(f"a reason is text, not {reason!r:.100}", fields={"reason": "not text"})
        _check_reason_length(reason, limits)


def _check_id(key: Any) -> None:
    """Raises InvalidMutation for an id that no entity can have."""
    if type(key) is not str or not 0 < len(key) <= KEY_BYTES_MAX // 4 or not key.isascii():
        try:
            _check_names("", key)
        except BadRequest as error:
            raise InvalidMutation(error.message, fields={"id": error.message}) from None


def check_request_id(request_id: Any) -> None:
    """Raises InvalidMutation for an id that a user cannot give."""
    if not is_outcome_query(("outcome", request_id)):
        raise _not_a_request_id(request_id)
    if own_id(request_id) is not None:
        raise InvalidMutation(
            f"request id {request_id!r} looks like one that clients make: choose another form",
            fields={"request_id": "reserved"},
        )


def _not_a_request_id(request_id: Any) -> InvalidMutation:
    return InvalidMutation(
        f"a request id is a str of 1 to {REQUEST_ID_MAX} characters, not {request_id!r:.100}",
        fields={"request_id": "not a request id"},
    )


def _plain_mutation(mutation: Any, registry: Registry) -> tuple[Any, ...]:
    """A mutation's parts, of which its edges may be anything still: mutations are made without a look at types."""
    given = mutation  # what `match` takes parts of, it takes for what their annotations say
    match mutation:
        case Update():
            target = given.target
            kind = registry.of(model_of(target))
            fields = changed_fields(kind, given.changes)
            return _UPDATE, kind.name, target.id, _expected(given.expect, target), fields, given.reason, None
        case Transition():
            target = given.target
            kind = registry.of(model_of(target))
            fields, state = changed_fields(kind, given.changes), _state(kind, given.to)
            return _TRANSITION, kind.name, target.id, _expected(given.expect, target), fields, given.reason, state
        case Cancel():
            kind = registry.of(model_of(given.target))
            if kind.lifecycle is None or kind.lifecycle.cancelled is None:
                raise InvalidMutation(f"{kind.name} has no cancelled state", fields={"kind": "has no cancelled state"})
            what = tree_of(kind) if given.tree else None
            return _CANCEL, kind.name, given.target.id, given.expect, None, given.reason, what
        case Delete():
            target = given.target
            kind = registry.of(model_of(target))
            return _DELETE, kind.name, target.id, _expected(given.expect, target), None, given.reason, None
        case Create():
            return _whole(Op.CREATE, given.entity, 0, given.reason, registry)
        case Put():
            entity, expect = given.entity, given.expect
            new = isinstance(expect, FromTarget) and not getattr(entity, "version", 0)  # replaces whatever is there
            return _whole(Op.PUT, entity, None if new else _expected(expect, entity), given.reason, registry)
        case Alter():
            kind, target = registry.of(model_of(given.target)), given.target
            operations = plain_operations(kind, given.operations)
            return Op.ALTER.value, kind.name, target.id, given.expect, operations, given.reason, None
    return plain_of_task(mutation, registry)


def plain_guard(guard: GuardMutation, registry: Registry) -> PlainGuard:
    """A guard as plain data. Raises InvalidMutation, naming the field."""
    if isinstance(guard, RequireFields):
        kind = registry.of(model_of(guard.target))
        return Guard.REQUIRE_FIELDS.value, kind.name, guard.target.id, (None, plain_where(kind, guard.where))
    if isinstance(guard, RequireNone):
        kind = registry.of(guard.model)
        return Guard.REQUIRE_NONE.value, kind.name, NO_ID, (None, plain_where(kind, guard.where))
    if isinstance(guard, Unchanged):
        kind, entity = registry.of(type(guard.entity)), guard.entity
        fields = same_fields(kind, {name: getattr(entity, name) for name in guard.fields})
        return Guard.REQUIRE_FIELDS.value, kind.name, entity.id, (entity.version, fields)
    if isinstance(guard, Require):
        if not guard.entity.version:
            problem = f"{guard.entity.kind_name} {guard.entity.id!r} was never stored: require what was read"
            raise InvalidMutation(f"{problem}, or use RequireAbsent", fields={"version": "0: never stored"})
        return Guard.REQUIRE.value, registry.of(type(guard.entity)).name, guard.entity.id, guard.entity.version
    given: Any = guard
    _check_id(given.id)
    name = guard.model if isinstance(guard.model, str) else registry.of(guard.model).name
    return Guard.REQUIRE_ABSENT.value, name, guard.id, 0


def _whole(op: Op, entity: Any, expect: Any, reason: Any, registry: Registry) -> tuple[Any, ...]:
    if not isinstance(entity, Entity):
        raise TypeError(f"{op.name.lower()} takes an entity, not {entity!r}")
    kind = registry.of(type(entity))
    fields = plain(kind.stored(entity))
    return op.value, kind.name, entity.id, expect, fields, reason, None


def _expected(expect: Any, target: Any) -> Any:
    if not isinstance(expect, FromTarget):
        return expect
    return target.version if isinstance(target, Entity) else None


def _state(kind: Kind, to: str | enum.Enum) -> str:
    if kind.lifecycle is None:
        raise InvalidMutation(f"{kind.name} has no lifecycle", fields={"kind": "has no lifecycle"})
    if isinstance(to, enum.Enum):
        to = to.value
    if to not in kind.lifecycle.steps:
        states = ", ".join(kind.lifecycle.steps)
        raise InvalidMutation(
            f"{kind.name} has no state {to!r}; states: {states}", fields={kind.lifecycle.field: "no such state"}
        )
    return str(to)


# --- the engine's side: is it a request? ------------------------------------------------------------------------------


def is_outcome_query(request: Any) -> bool:
    """Whether this asks how a request ended, under an id that a request can have."""
    if type(request) is not tuple or len(request) != 2 or request[0] != "outcome" or type(request[1]) is not str:
        return False
    return 0 < len(request[1]) <= REQUEST_ID_MAX and _is_text(request[1])


def check_request(request: Any, budget: int, limits: Limits) -> int:
    """What is left of a frame's budget of nodes behind this request. Raises BadRequest, RequestTooLarge."""
    if type(request) is not tuple or len(request) != 4:
        raise BadRequest("a request is a tuple of four")
    mutations, guards, request_id, deadline_us = request
    if type(mutations) is not list or type(guards) is not list:
        raise BadRequest("mutations and guards are lists")
    asked = len(mutations) + len(guards)
    if asked > limits.request_mutations_max:  # tokens of claims come on top: at most one for each mutation
        asked -= min(len(mutations), sum(type(one) is tuple and one[:1] == (_CLAIM_SHOWN,) for one in guards))
    if not 0 < asked <= limits.request_mutations_max:
        raise RequestTooLarge(
            f"a request has 1 to {limits.request_mutations_max} mutations and guards (request_mutations_max)"
        )
    if request_id is not None and (type(request_id) is not str or not 0 < len(request_id) <= REQUEST_ID_MAX):
        raise BadRequest(f"a request id is a str of 1 to {REQUEST_ID_MAX} characters")
    if request_id is not None:
        check_text(request_id)
        if own_id(request_id) is not None:
            raise BadRequest("this request id looks like one that clients make: choose another form")
    if deadline_us is not None and type(deadline_us) is not int:
        raise BadRequest("a deadline is an int")
    budget -= MUTATION_NODES * len(mutations) + GUARD_NODES * len(guards)
    if budget < 0:
        raise BadRequest("a request has too many parts (frame_nodes_max)")
    for mutation in mutations:
        budget = _check_mutation(mutation, budget, limits)
    for guard in guards:
        budget = _check_guard(guard, budget, limits)
    return budget


def parts(request: Any, most: int) -> int:
    """How many parts a request has that was refused, counted up to `most`. It may be of any shape."""
    waiting, count = [request], 1
    while waiting and count < most:
        value = waiting.pop()
        kind = type(value)
        if kind is str or kind is bytes:
            count += len(value) >> 4
        elif kind is dict or kind is list or kind is tuple:
            count += len(value)
            if count < most:
                waiting.extend(value.values() if kind is dict else value)
    return min(count, most)


def _check_mutation(mutation: Any, budget: int, limits: Limits) -> int:
    """What is left of the budget of nodes. Raises BadRequest, RequestTooLarge."""
    if type(mutation) is not tuple or len(mutation) != 7:
        raise BadRequest("a mutation is a tuple of seven")
    op, kind, key, expect, fields, reason, to = mutation
    if type(op) is not int or not 0 < op < 256 or type(reason) is not str or (to is not None and type(to) is not str):
        raise BadRequest("a mutation is (op, kind, id, expect, fields, reason, to)")
    _check_names(kind, key)
    if expect is not None and (type(expect) is not int or not 0 <= expect <= INT_MAX):
        raise BadRequest("expect is a version or None")
    if to is not None:
        check_text(to)
    if reason:
        check_text(reason)
        _check_reason_length(reason, limits)
    if fields is None:
        return budget
    if type(fields) is not dict:
        raise BadRequest("fields are a dict")
    for name, value in fields.items():
        if type(name) is not str or len(name) > NAME_MAX:
            raise BadRequest(f"field names are str of at most {NAME_MAX} characters")
        if not name.isascii():
            check_text(name)
        budget = _check_plain(value, budget, limits.frame_depth_max)
    return budget


def _check_reason_length(reason: str, limits: Limits) -> None:
    if len(reason.encode()) > limits.text_bytes_max:
        raise RequestTooLarge(f"a reason is at most {limits.text_bytes_max} bytes (text_bytes_max)")


def _check_guard(guard: Any, budget: int, limits: Limits) -> int:
    """What is left of the budget of nodes. Raises BadRequest."""
    if type(guard) is not tuple or len(guard) != 4:
        raise BadRequest("a guard is a tuple of four")
    code, kind, key, said = guard
    version = said
    if code in _CONDITIONAL and type(said) is tuple and len(said) == 2 and type(said[1]) is dict:
        version = 0 if said[0] is None else said[0]
        budget = _check_plain(said[1], budget, limits.frame_depth_max)
    elif code not in (1, 2, 4):
        raise BadRequest("a guard is (guard, kind, id, version), or has conditions in its place")
    if type(version) is not int or not 0 <= version <= INT_MAX:
        raise BadRequest("a guard compares with a version")
    _check_names(kind, key)
    return budget


def _check_names(kind: Any, key: Any) -> None:
    """A kind's name and an id are text; an id is 1 to 255 bytes of UTF-8. Raises BadRequest."""
    if type(kind) is not str or type(key) is not str or not key or len(kind) > NAME_MAX:
        raise BadRequest("a kind's name and an id are str, and an id is not empty")
    if not (kind.isascii() and key.isascii()):
        check_text(kind)
        check_text(key)
    if len(key) > KEY_BYTES_MAX // 4 and len(key.encode()) > KEY_BYTES_MAX:
        raise BadRequest(f"an id is at most {KEY_BYTES_MAX} bytes")


def check_text(text: str) -> None:
    """Raises BadRequest for text that cannot be written as UTF-8."""
    if not text.isascii() and not _is_text(text):
        raise BadRequest("names, ids, reasons and values are text that can be encoded")


def _is_text(text: str) -> bool:
    """Lone surrogates cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_plain(value: Any, budget: int, depth: int) -> int:
    """Count the nodes of a decoded tree: shared references can fold 2^25 of them into 260 bytes."""
    if budget <= 0:
        raise BadRequest("a request has too many parts (frame_nodes_max)")
    kind = type(value)
    if kind is str:
        check_text(value)
        return budget - 1 - (len(value) >> 4)  # one long text can be folded into many places, too
    if kind is bytes:
        return budget - 1 - (len(value) >> 4)
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise BadRequest("integers must fit 64 bits")
        return budget - 1
    if kind in SCALARS:
        return budget - 1
    if depth == 0:
        raise BadRequest("a value is nested too deep (frame_depth_max)")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise BadRequest("keys are str")
            check_text(key)
            budget = _check_plain(item, budget - 1, depth - 1)
        return budget
    if kind is list or kind is tuple:
        budget -= 1
        for item in value:
            budget = _check_plain(item, budget, depth - 1)
        return budget
    raise BadRequest(f"{kind.__name__} is not plain data")


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def digest(request: PlainRequest) -> bytes:
    """What tells one content from another under the same request id."""
    guards = [guard for guard in request[1] if guard[0] != _CLAIM_SHOWN]  # a token is no part of what is asked for
    return blake2b(_encode((request[0], guards)), digest_size=16).digest()
