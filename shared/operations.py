"""Operations on fields that need no read and meet no conflict: `client.alter(task, tries=Increment(), tags=Add("x"))`.

Each says what to do with whatever is stored when its turn comes, so two agents never overwrite each other's. They are
values; an `Alter` carries one for each field.

    plain = {field: (code, operand, bound | None)}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from solewriter.shared.errors import InvalidMutation, safe_repr
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import in_whole_minutes, plain
from solewriter.shared.kinds.validation import no_changes

PlainOperation = tuple[str, Any, "int | None"]


class Code(StrEnum):
    """The operations on the wire."""

    INCREMENT = "increment"
    MAX = "max"
    MIN = "min"
    APPEND = "append"
    ADD = "add"
    REMOVE = "remove"
    PUT = "put"


class Operation:
    """One of those below."""

    @property
    def plain(self) -> PlainOperation:
        """Raises TypeError for what no field can take."""
        raise NotImplementedError


@dataclass(frozen=True)
class Increment(Operation):
    """Add to a number, which may be negative; None counts as 0."""

    by: int | float = 1

    @property
    def plain(self) -> PlainOperation:
        by = self.by
        if isinstance(by, bool) or not isinstance(by, int | float):
            raise TypeError(f"adds an int or a float, not {safe_repr(by)}")
        return Code.INCREMENT.value, int(by) if isinstance(by, int) else float(by), None  # of a subclass, numpy's say


@dataclass(frozen=True)
class Max(Operation):
    """The larger of what is stored and this; None is less than anything."""

    value: Any

    @property
    def plain(self) -> PlainOperation:
        return Code.MAX.value, plain(self.value), None


@dataclass(frozen=True)
class Min(Operation):
    """The smaller of what is stored and this; None is more than anything."""

    value: Any

    @property
    def plain(self) -> PlainOperation:
        return Code.MIN.value, plain(self.value), None


@dataclass(frozen=True, init=False)
class _Items(Operation):
    items: tuple[Any, ...]

    def __init__(self, *items: Any) -> None:
        object.__setattr__(self, "items", items)

    @property
    def _plain_items(self) -> list[Any]:
        return [plain(in_whole_minutes(item)) for item in self.items]


@dataclass(frozen=True, init=False)
class Append(_Items):
    """Put items behind those of a tuple. With `most`, only the last so many stay."""

    most: int | None = None

    def __init__(self, *items: Any, most: int | None = None) -> None:
        super().__init__(*items)
        object.__setattr__(self, "most", most)

    @property
    def plain(self) -> PlainOperation:
        if self.most is not None and (type(self.most) is not int or self.most < 0):
            raise TypeError(f"keeps a number of items, not {safe_repr(self.most)}")
        return Code.APPEND.value, self._plain_items, self.most


@dataclass(frozen=True, init=False)
class Add(_Items):
    """Put those items behind a tuple's that it does not hold yet; into a frozenset."""

    @property
    def plain(self) -> PlainOperation:
        return Code.ADD.value, self._plain_items, None


@dataclass(frozen=True, init=False)
class Remove(_Items):
    """Take items out of a tuple or frozenset, or keys out of a map. Those that are not there are not missed."""

    @property
    def plain(self) -> PlainOperation:
        return Code.REMOVE.value, self._plain_items, None


@dataclass(frozen=True)
class PutIn(Operation):
    """Set keys of a map; its others stay."""

    items: Mapping[str, Any]

    @property
    def plain(self) -> PlainOperation:
        if not isinstance(self.items, Mapping):
            raise TypeError(f"puts in a map, not {safe_repr(self.items)}")
        for key in self.items:
            if not isinstance(key, str):
                raise TypeError(f"a map's keys are str, not {safe_repr(key)}")
        return Code.PUT.value, plain(in_whole_minutes(dict(self.items))), None


def plain_operations(kind: Kind, operations: Mapping[str, Operation]) -> dict[str, PlainOperation]:
    """Operations as plain data, by the names of the fields. Raises InvalidMutation for no such field, one that nobody
    sets, and what is no operation; TypeError for no mapping.
    """
    found: dict[str, PlainOperation] = {}
    try:
        named = operations.items()
    except AttributeError:
        raise no_changes(operations) from None
    for name, operation in named:
        kind.check_known(name, None)
        if name in kind.fixed:
            raise InvalidMutation(f"{kind.name}.{name} cannot be altered", fields={name: "cannot be altered"})
        if not isinstance(operation, Operation):
            problem = f"takes an operation such as Increment(1), not {safe_repr(operation)}"
            raise InvalidMutation(f"{kind.name}.{name} {problem}", fields={name: problem})
        try:
            found[name] = operation.plain
        except (TypeError, NotImplementedError) as error:
            raise InvalidMutation(f"{kind.name}.{name}: {error}", fields={name: str(error)}) from None
    return found
