"""What an entity must be like: `where={"status": "created", "priority": ["high", "low"], "version": Range(ge=3)}`.

A value asks for equality, a list, tuple or set for membership, a Range for order, None for absence; all of them must
hold. Scans ask this of columns (`agents/reading/conditions.py`); what is here asks it of values: what a request
requires of fields, and what a claimer wants. The caller makes plain data of it, the engine demands of its own class.

    plain = {field: ("in", [values]) | ("range", [ge, gt, le, lt])}
"""

from __future__ import annotations

import enum
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any, Final

import msgspec

from solewriter.shared.errors import BadRequest, InvalidMutation, safe_repr
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import encode, encode_asked, in_whole_minutes, plain, without_bytes
from solewriter.shared.kinds.rules import is_plain
from solewriter.shared.kinds.validation import field_adapter

Where = Mapping[str, Any]
PlainWhere = dict[str, Any]
IN, RANGE = "in", "range"
_BOUNDS = (operator.ge, operator.gt, operator.le, operator.lt)


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Values from one bound to another; a bound that is left out is none. None never lies in a range."""

    ge: Any = None
    gt: Any = None
    le: Any = None
    lt: Any = None


def conditions_of(where: Where) -> Iterable[tuple[str, Any]]:
    """What is asked of each name. Raises TypeError for what is no mapping."""
    if not isinstance(where, Mapping):
        raise TypeError(f"where is a mapping from names of fields to what they shall hold, not {safe_repr(where)}")
    return where.items()


def copied_where(where: Where | None) -> Where:
    """A copy of the conditions as they are now, for who asks them later: their caller may change what he gave
    meanwhile. Empty for None. Raises TypeError for what is no mapping.
    """
    asked = conditions_of(where or {})
    return {name: tuple(wanted) if isinstance(wanted, list | set) else wanted for name, wanted in asked}


def plain_where(kind: Kind, where: Where) -> PlainWhere:
    """Conditions as plain data. Raises InvalidMutation for no such field, and for what it never holds; TypeError for
    what is no mapping.
    """
    found: PlainWhere = {}
    for name, wanted in conditions_of(where):
        if isinstance(wanted, Range):
            found[name] = (RANGE, [_plain(kind, name, one) for one in (wanted.ge, wanted.gt, wanted.le, wanted.lt)])
        else:
            several = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
            values = [_plain(kind, name, one) for one in several]
            if isinstance(wanted, set | frozenset):
                _sort(kind, name, values)
            found[name] = (IN, values)
    return found


def typed_where(kind: Kind, where: Where) -> Where:
    """As scans ask it, which take no text for a number or a time: values as the fields hold them. Raises as
    `plain_where` does.
    """
    found: dict[str, Any] = {}
    for name, wanted in conditions_of(where):
        held = partial(_typed, kind, name)
        if isinstance(wanted, Range):
            found[name] = Range(ge=held(wanted.ge), gt=held(wanted.gt), le=held(wanted.le), lt=held(wanted.lt))
        else:
            several = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
            found[name] = _with_default(kind, name, [in_column(held(one)) for one in several])
    return found


def _sort(kind: Kind, name: str, values: list[Any]) -> None:
    """The order of a set is another one in each process, and this must say the same. Raises InvalidMutation."""
    try:
        values.sort(key=encode)
    except (OverflowError, UnicodeEncodeError):
        raise without_bytes(kind.name, {name: values}) from None


def same_fields(values: Mapping[str, Any]) -> PlainWhere:
    """The conditions, as plain data, that each of these fields is exactly as it is here."""
    return {name: (IN, [plain(in_whole_minutes(value))]) for name, value in values.items()}


def _plain(kind: Kind, name: str, value: Any) -> Any:
    valid = _typed(kind, name, value)
    return plain(in_whole_minutes(valid) if name in kind.moments else valid)


def _typed(kind: Kind, name: str, value: Any) -> Any:
    """A value of the field; None, which a field may never hold, is asked for absence. Raises InvalidMutation."""
    return kind.check_known(name, None) if value is None else kind.field(name, value)


_NONE: Final = encode(None)


class Demand:
    """What one field must be like."""

    __slots__ = ("_bounds", "_wanted", "among", "kind", "name")

    def __init__(self, kind: Kind, name: str, among: list[Any] | None, bounds: list[tuple[Any, Any]]) -> None:
        self.name = name
        # Plain single values, for who looks them up. None: an order is asked for.
        self.among = None if among is None else _with_default(kind, name, among)
        self.kind = kind
        self._bounds = bounds
        self._wanted = frozenset(map(encode_asked, self.among or ()))

    def holds(self, value: Any) -> bool:
        """Whether a stored value is what is asked for. Values of different types are never equal: 1 is not True. Raises
        InvalidMutation for a value that cannot be compared with the bounds.
        """
        if self.among is not None:
            return encode_asked(value) in self._wanted or (value != value and _NONE in self._wanted)  # as `in_column`
        rank = self.rank(value)
        if rank is None:
            return False
        try:
            return all(compare(rank, bound) for compare, bound in self._bounds)
        except TypeError:  # of a union's members, of times with and without a zone
            problem = f"holds {value!r:.100}, which is neither more nor less than what is asked for"
            raise InvalidMutation(f"{self.kind.name}.{self.name} {problem}", fields={self.name: problem}) from None

    def rank(self, value: Any) -> Any:
        """The key by which a stored value is compared with others; None for absence, which is neither more nor less."""
        typed = _typed(self.kind, self.name, value)
        return None if typed is None else rank_of(self.kind, self.name, typed)

    @property
    def is_plain(self) -> bool:
        """Whether no code of a user's runs to tell the rank of a value."""
        return is_plain(field_adapter(self.kind.model, self.name).core_schema)

    def among_ranks(self, ranks: Sequence[Any]) -> bool:
        """Whether one of these, which are in their order, lies within what is asked for. Raises TypeError."""
        first, behind = 0, len(ranks)
        for compare, bound in self._bounds:
            if compare in (operator.ge, operator.gt):
                first = max(first, (bisect_left if compare is operator.ge else bisect_right)(ranks, bound))
            else:
                behind = min(behind, (bisect_right if compare is operator.le else bisect_left)(ranks, bound))
        return first < behind


def _with_default(kind: Kind, name: str, values: list[Any]) -> list[Any]:
    """The same values, and the field's default if it means one of them: it is stored, and read, as the class has it
    written, 0 where the field holds floats.
    """
    default = kind.schema.defaults.get(name)
    try:
        asked = set(map(encode_asked, values))
        meant = asked and encode_asked(single(_typed(kind, name, default))) in asked
    except Exception:  # its code may be a user's; what cannot be read is nothing that is asked for
        return values
    return [*values, default] if meant and encode_asked(default) not in asked else values


def combinations(demands: Sequence[Demand], most: int) -> list[tuple[Any, ...]] | None:
    """All combinations of values that meet these demands; None where they are more, or an order is asked for."""
    among = [demand.among for demand in demands]
    if None in among or prod(len(values or ()) for values in among) > most:
        return None
    return list(dict.fromkeys(product(*(values or () for values in among))))


def demands(kind: Kind, said: Any) -> list[Demand]:
    """The demands of plain data. Raises BadRequest for another shape, InvalidMutation for what a field never holds."""
    if type(said) is not dict:
        raise BadRequest("conditions are a dict")
    return [_demand(kind, name, wanted) for name, wanted in said.items()]


def _demand(kind: Kind, name: str, wanted: Any) -> Demand:
    if type(wanted) is not tuple or len(wanted) != 2 or type(wanted[1]) is not list:
        raise BadRequest("a condition is (how, [values])")
    how, values = wanted
    typed = [_typed(kind, name, value) for value in values]
    if how == IN:
        return Demand(kind, name, [single(value) for value in typed], [])
    if how != RANGE or len(values) != len(_BOUNDS):
        raise BadRequest("a condition is one of values, or four bounds")
    given = zip(_BOUNDS, typed, strict=True)
    bounds = [(compare, rank_of(kind, name, bound)) for compare, bound in given if bound is not None]
    for compare, bound in bounds:
        try:
            compare(bound, bound)
        except TypeError:
            raise InvalidMutation(f"{kind.name}.{name} has no order", fields={name: "has no order"}) from None
    return Demand(kind, name, None, bounds)


def rank_of(kind: Kind, name: str, value: Any) -> Any:
    """The key by which a value of a field is compared with another one: its place among all for an enum's member, which
    a class may hold as its value, and for a literal, as in scans; else the value itself.
    """
    if isinstance(value, enum.Enum) and not isinstance(value, enum.Flag):  # flags are numbers, and are combined
        return [*type(value)].index(value)
    order = kind.order_of(name)
    return order.index(value) if order is not None and value in order else value


def single(value: Any) -> Any:
    """An enum's member as its value: what a payload holds, and what can be looked up."""
    return value.value if isinstance(value, enum.Enum) else value


def in_column(value: Any) -> Any:
    """A value as a column has it: an enum's member as its value, and NaN as None."""
    return single(value) if value == value else None
