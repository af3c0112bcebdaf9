"""Whether something is a request: asked by the engine of what it unpickled, all the way down. See `wireform`.

The engine trusts nothing of it. What a frame may hold is counted in nodes, because a few bytes can name the same large
thing a thousand times.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from solewriter.shared.config import KEY_BYTES_MAX, NAME_MAX, REQUEST_ID_MAX, Limits
from solewriter.shared.errors import BadRequest, InvalidMutation, RequestTooLarge
from solewriter.shared.frozen import INT_MAX, INT_MIN
from solewriter.shared.kinds.payload import LONE_SURROGATE, TOO_LARGE_INT
from solewriter.shared.mutations import Guard, Op
from solewriter.shared.request_ids import own_id

SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})
MUTATION_NODES: Final = 8  # its tuple and what is in it: the same one can be named a thousand times
GUARD_NODES: Final = 5
_CONDITIONAL: Final = (Guard.REQUIRE_FIELDS.value, Guard.REQUIRE_NONE.value)
_OF_VERSIONS: Final = (Guard.REQUIRE.value, Guard.REQUIRE_ABSENT.value, Guard.CLAIM.value)  # a claim's token is one
_CLAIM_SHOWN: Final = Guard.CLAIM.value
_CLAIM: Final = Op.CLAIM.value


def is_outcome_query(request: Any) -> bool:
    """Whether this asks how a request ended, under an id that a request can have."""
    if type(request) is not tuple or len(request) != 2 or request[0] != "outcome" or type(request[1]) is not str:
        return False
    return 0 < len(request[1]) <= REQUEST_ID_MAX and is_text(request[1])


def check_request(request: Any, budget: int, limits: Limits) -> int:
    """What is left of a frame's budget of nodes behind this request. Raises BadRequest, RequestTooLarge, and
    InvalidMutation, which names the field, for a value that cannot be stored.
    """
    if type(request) is not tuple or len(request) != 4:
        raise BadRequest("a request is a tuple of four")
    mutations, guards, request_id, deadline_us = request
    if type(mutations) is not list or type(guards) is not list:
        raise BadRequest("mutations and guards are lists")
    asked, most = len(mutations) + len(guards), limits.request_mutations_max
    if asked > most:  # tokens of claims come on top: at most one for each mutation
        asked -= min(len(mutations), sum(type(one) is tuple and one[:1] == (_CLAIM_SHOWN,) for one in guards))
    if not 0 < asked <= most:
        raise RequestTooLarge(f"a request has 1 to {most} mutations and guards (request_mutations_max)")
    if request_id is not None:
        if type(request_id) is not str or not 0 < len(request_id) <= REQUEST_ID_MAX:
            raise BadRequest(f"a request id is a str of 1 to {REQUEST_ID_MAX} characters")
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


def count_parts(request: Any, most: int) -> int:
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
    """What is left of the budget of nodes. Raises BadRequest, InvalidMutation, RequestTooLarge."""
    if type(mutation) is not tuple or len(mutation) != 7:
        raise BadRequest("a mutation is a tuple of seven")
    op, kind, key, expect, fields, reason, to = mutation
    if type(op) is not int or not 0 < op < 256 or type(reason) is not str:
        raise BadRequest("a mutation is (op, kind, id, expect, fields, reason, to)")
    check_names(kind, key)
    if expect is not None and (type(expect) is not int or not 0 <= expect <= INT_MAX):
        raise BadRequest("expect is a version or None")
    if to is not None:
        if type(to) is not str:
            raise BadRequest("what a mutation leads to is text or None")
        check_text(to)
    if reason:
        check_text(reason)
        check_reason_length(reason, limits)
    if fields is None:
        return budget
    if type(fields) is not dict:
        raise BadRequest("fields are a dict")
    try:
        return _check_fields(kind, fields, budget, limits)
    except InvalidMutation:
        if op == _CLAIM and type(fields.get("where")) is dict:  # it wants tasks whose fields are so
            _check_fields(kind, fields["where"], budget, limits)
        raise


def _check_fields(kind: str, fields: dict[Any, Any], budget: int, limits: Limits) -> int:
    """What is left of the budget of nodes behind values by the names of fields. Raises BadRequest, InvalidMutation."""
    for name in fields:
        if type(name) is not str or len(name) > NAME_MAX:
            raise BadRequest(f"field names are str of at most {NAME_MAX} characters")
        if not name.isascii():
            check_text(name)
    try:
        return _check_plain(fields.values(), budget, limits.frame_depth_max)
    except _Unfit:
        raise _unfit_field(kind, fields, budget, limits) from None


def _unfit_field(kind: str, fields: dict[Any, Any], budget: int, limits: Limits) -> InvalidMutation:
    """The error that names the first of these fields which cannot be stored, where there is one."""
    for name, value in fields.items():
        try:
            budget = _check_plain((value,), budget, limits.frame_depth_max)
        except _Unfit as unfit:
            return InvalidMutation(f"{kind}.{name} {unfit}", fields={name: str(unfit)})
    raise AssertionError("one of them was unfit")


def check_reason_length(reason: str, limits: Limits) -> None:
    if len(reason.encode()) > limits.text_bytes_max:
        raise RequestTooLarge(f"a reason is at most {limits.text_bytes_max} bytes (text_bytes_max)")


def _check_guard(guard: Any, budget: int, limits: Limits) -> int:
    """What is left of the budget of nodes. Raises BadRequest, InvalidMutation."""
    if type(guard) is not tuple or len(guard) != 4:
        raise BadRequest("a guard is a tuple of four")
    code, kind, key, said = guard
    check_names(kind, key)
    version = said
    if code in _CONDITIONAL and type(said) is tuple and len(said) == 2 and type(said[1]) is dict:
        version = 0 if said[0] is None else said[0]
        budget = _check_fields(kind, said[1], budget, limits)
    elif code not in _OF_VERSIONS:
        raise BadRequest("a guard is (guard, kind, id, version), or has conditions in its place")
    if type(version) is not int or not 0 <= version <= INT_MAX:
        raise BadRequest("a guard compares with a version")
    return budget


def check_names(kind: Any, key: Any) -> None:
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
    if not text.isascii() and not is_text(text):
        raise BadRequest("names, ids and reasons are text that can be encoded")


def is_text(text: str) -> bool:
    """Lone surrogates cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Unfit(Exception):
    """Why a value cannot be stored: of whoever made it a mistake, which its field's name helps to find."""


def _check_plain(values: Iterable[Any], budget: int, depth: int) -> int:
    """Count the nodes of decoded trees: shared references can fold 2^25 of them into 260 bytes. What is left of the
    budget. Raises BadRequest, _Unfit.
    """
    for value in values:
        if budget <= 0:
            raise BadRequest("a request has too many parts (frame_nodes_max)")
        kind = type(value)
        if kind is str:
            if not value.isascii() and not is_text(value):
                raise _Unfit(LONE_SURROGATE)
            budget -= 1 + (len(value) >> 4)  # one long text can be folded into many places, too
        elif kind is int:
            if not INT_MIN <= value <= INT_MAX:
                raise _Unfit(TOO_LARGE_INT)
            budget -= 1
        elif kind is bytes:
            budget -= 1 + (len(value) >> 4)
        elif kind in SCALARS:
            budget -= 1
        elif depth == 0:
            raise _Unfit("is nested too deep (frame_depth_max)")
        elif kind is dict:
            for key in value:
                if type(key) is not str:
                    raise _Unfit("holds keys that are not str")
                if not key.isascii() and not is_text(key):
                    raise _Unfit(LONE_SURROGATE)
                budget -= 1 + (len(key) >> 4)
            budget = _check_plain(value.values(), budget - 1, depth - 1)
        elif kind is list or kind is tuple:
            budget = _check_plain(value, budget - 1, depth - 1)
        else:
            raise _Unfit(f"holds a {kind.__name__}, which is not plain data")
    return budget
