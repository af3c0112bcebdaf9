"""A request as plain data: made from mutations by the caller, checked all the way down by the engine (`wirecheck`).

Plain data is what any process can unpickle without importing anything: tuples, lists, dicts, str, int, float, bool,
bytes, None. Bad input is refused here, at the call, before anything is sent; the engine trusts none of it and checks
the same shapes again.

    request  = (mutations, guards, request id | None, deadline_us | None)      or   ("outcome", request id)
    deadline = microseconds of CLOCK_MONOTONIC, after which it is not decided any more
    mutation = (op, kind, id, expect, fields, reason, to); to of a create or put: the schema id of its class
    guard    = (guard, kind, id, version)    or   (guard, kind, id, (version | None, conditions))
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

from solewriter.shared.config import DEFAULT_LIMITS, KEY_BYTES_MAX, REQUEST_ID_MAX, Limits
from solewriter.shared.entity import Entity, model_of
from solewriter.shared.errors import BadRequest, InvalidMutation, Refused, RequestTooLarge, safe_repr
from solewriter.shared.fieldform import changed_fields, check_parts, plain_field
from solewriter.shared.frozen import INT_MAX
from solewriter.shared.kinds.kind import IN_HEADER, Kind
from solewriter.shared.kinds.payload import in_whole_minutes, plain
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
    RequireAbsent,
    RequireFields,
    RequireNone,
    Transition,
    Unchanged,
    Update,
)
from solewriter.shared.operations import plain_operations
from solewriter.shared.registry import Registry
from solewriter.shared.request_ids import own_id
from solewriter.shared.taskform import NO_ID, plain_of_task, tree_of
from solewriter.shared.where import plain_where, same_fields
from solewriter.shared.wirecheck import check_names, check_reason_length, is_outcome_query, is_text

PlainMutation = tuple[int, str, str, "int | None", "dict[str, Any] | None", str, "str | None"]
PlainGuard = tuple[int, str, str, Any]
PlainRequest = tuple[list[PlainMutation], list[PlainGuard], "str | None", "int | None"]
OutcomeQuery = tuple[str, str]
Asked = PlainRequest | OutcomeQuery  # what a frame is made of
_UPDATE: Final = Op.UPDATE.value  # asked of the enum each time, it takes as long as a line
_TRANSITION: Final = Op.TRANSITION.value
_CANCEL: Final = Op.CANCEL.value
_DELETE: Final = Op.DELETE.value
_CLAIM: Final = Op.CLAIM.value
WHOLE: Final = frozenset({Op.CREATE.value, Op.PUT.value})  # what brings all of an entity
_CLAIM_SHOWN: Final = Guard.CLAIM.value


def plain_request(
    mutations: Iterable[Mutation],
    guards: Iterable[GuardMutation],
    request_id: Any,
    registry: Registry,
    limits: Limits,
    deadline_us: int | None = None,
) -> PlainRequest:
    """A request as plain data. Raises what `plain_mutation` does, RequestTooLarge for too many parts,
    InvalidMutation for none.
    """
    plain = [plain_mutation(mutation, registry, limits) for mutation in mutations]
    conditions = [plain_guard(guard, registry) for guard in guards]
    if request_id is not None:
        check_request_id(request_id)
    if not 0 < len(plain) + len(conditions) <= limits.request_mutations_max:
        raise _of_no_size(len(plain) + len(conditions), limits)
    return plain, conditions, request_id, deadline_us


def _of_no_size(parts: int, limits: Limits) -> Refused:
    if not parts:
        problem = "a request is of one mutation or guard at least"
        return InvalidMutation(problem, fields={"mutations": problem})
    return RequestTooLarge(
        f"a request has {limits.request_mutations_max} mutations and guards at most (request_mutations_max)"
    )


def plain_or_refused(
    asked: Mutation | Sequence[Mutation], registry: Registry, limits: Limits, deadline_us: int | None = None
) -> PlainRequest | Refused:
    """A request of one mutation, or of several together, or why it can be none."""
    try:
        if isinstance(asked, (list, tuple)):
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
        raise InvalidMutation(
            f"expect is a version or None, not {safe_repr(expect)}", fields={"expect": "not a version"}
        )
    _check_id(key)
    if reason != "":
        if type(reason) is not str or not is_text(reason):
            raise InvalidMutation(f"a reason is text, not {safe_repr(reason)}", fields={"reason": "not text"})
        check_reason_length(reason, limits)


def _check_id(key: Any) -> None:
    """Raises InvalidMutation for an id that no entity can have."""
    if type(key) is not str or not 0 < len(key) <= KEY_BYTES_MAX // 4 or not key.isascii():
        try:
            check_names("", key)
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
        f"a request id is a str of 1 to {REQUEST_ID_MAX} characters, not {safe_repr(request_id)}",
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
        entity = guard.entity
        if not isinstance(entity, Entity):
            raise TypeError(f"what is to be unchanged is an entity that was read, not {safe_repr(entity)}")
        kind = registry.of(type(entity))
        fields = same_fields({name: entity.__dict__[kind.check_known(name, name)] for name in guard.fields})
        return Guard.REQUIRE_FIELDS.value, kind.name, entity.id, (entity.version, fields)
    if isinstance(guard, Require):
        if not isinstance(guard.entity, Entity):
            raise TypeError(f"require takes an entity, not {safe_repr(guard.entity)}")
        if not guard.entity.version:
            problem = f"{guard.entity.kind_name} {guard.entity.id!r} was never stored: require what was read"
            raise InvalidMutation(f"{problem}, or use RequireAbsent", fields={"version": "0: never stored"})
        return Guard.REQUIRE.value, registry.of(type(guard.entity)).name, guard.entity.id, guard.entity.version
    given: Any = guard
    if not isinstance(given, RequireAbsent):
        raise TypeError(
            f"{safe_repr(given)} is not a guard: use Require, RequireAbsent, RequireFields, RequireNone or Unchanged"
        )
    _check_id(given.id)
    name = guard.model if isinstance(guard.model, str) else registry.of(guard.model).name
    return Guard.REQUIRE_ABSENT.value, name, guard.id, 0


def _whole(op: Op, entity: Any, expect: Any, reason: Any, registry: Registry) -> tuple[Any, ...]:
    if not isinstance(entity, Entity):
        raise TypeError(f"{op.name.lower()} takes an entity, not {safe_repr(entity)}")
    kind = registry.of(type(entity))
    if len(entity.__dict__) > len(kind.model.__pydantic_fields__):
        _check_names(kind, entity)
    stored = kind.stored_fields(entity)
    if kind.recasts:  # its code may make something else of what is left out as a default: then it is refused
        for name in entity.model_fields_set - IN_HEADER:
            stored.setdefault(name, entity.__dict__[name])
    for name in kind.holders:
        if name in stored:
            check_parts(kind, name, stored[name])
    for name in kind.moments:
        if name in stored:
            stored[name] = in_whole_minutes(stored[name])
    try:
        fields = plain(stored)
    except (NotImplementedError, TypeError):
        fields = {name: plain_field(kind, name, value) for name, value in stored.items()}  # which names it
    return op.value, kind.name, entity.id, expect, fields, reason, kind.schema_id


def _check_names(kind: Kind, entity: Entity) -> None:
    """`model_copy(update=)` takes any name. Raises InvalidMutation for one that is neither a field nor the class's, as
    cached properties are.
    """
    for name, value in entity.__dict__.items():
        if not name.startswith("_") and not hasattr(kind.model, name):
            kind.check_known(name, value)


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
            f"{kind.name} has no state {safe_repr(to)}; states: {states}",
            fields={kind.lifecycle.field: "no such state"},
        )
    return str(to)


# --- the same content? ------------------------------------------------------------------------------------------------


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def digest(request: PlainRequest) -> bytes:
    """What tells one content from another under the same request id."""
    guards = [guard for guard in request[1] if guard[0] != _CLAIM_SHOWN]  # a token is no part of what is asked for
    mutations = [_asked_for(one) for one in request[0]]
    return blake2b(_encode((mutations, guards)), digest_size=16).digest()


def _asked_for(mutation: PlainMutation) -> PlainMutation:
    """How long a claim waits is no part of what it asks for, as a deadline is none: each time it is another moment. Of
    which class an entity is, is none either: who repeats a request may have the next one.
    """
    op, kind, key, expect, said, reason, to = mutation
    if op in WHOLE:
        return op, kind, key, expect, said, reason, None
    if op != _CLAIM or said is None or said.get("until_us") is None:
        return mutation
    return op, kind, key, expect, {**said, "until_us": None}, reason, to
