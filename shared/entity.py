"""What is stored: immutable, versioned pydantic models. Users bring their own; those of the house are in `models`.

A model declares what the engine needs to know with class arguments, not with code:

    class Doc(Entity, columns=("owner", "size")):
        owner: str
        size: int = 0

`id` and `version` belong to every entity. `created_at`, `updated_at` (datetime) and `created_by` (str), where a model
declares them, are filled in by the engine. A lifecycle, where declared, makes its field change by transitions only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from solewriter.shared.config import KEY_BYTES_MAX
from solewriter.shared.errors import safe_repr
from solewriter.shared.kinds.enginefields import refuse_own
from solewriter.shared.kinds.fieldtypes import refuse_unsuitable

E = TypeVar("E", bound="Entity")
E_co = TypeVar("E_co", bound="Entity", covariant=True)
Rule = TypeVar("Rule", bound=Callable[..., Any])


def new_id() -> str:
    """24 hex digits: 6 bytes of milliseconds, then 6 random ones, so that ids made later sort later."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big").hex() + os.urandom(6).hex()


def name_of(kind: type[Entity] | str) -> str:
    """The name of a kind that is given by its class or by its name. Raises TypeError for what is neither."""
    given: Any = kind
    if isinstance(given, str):
        return given
    if isinstance(given, type) and isinstance(name := getattr(given, "kind_name", None), str):
        return name
    raise TypeError(f"a kind is an entity's class, or its name, not {safe_repr(kind)}")


def check_id(id: object) -> None:
    """Checks an id that a reader is asked for. Raises TypeError for what can be no id of anything."""
    if not isinstance(id, str):
        raise TypeError(f"an id is a str, not {safe_repr(id)}")


class Ref(msgspec.Struct, Generic[E_co], frozen=True):
    """A name for an entity without its content: a target that compares no version. Made by `Task.ref(id)`."""

    model: type[E_co]
    id: str


@dataclass(frozen=True)
class Lifecycle:
    """The states of a field as data: what may follow what."""

    field: str
    initial: str
    steps: Mapping[str, tuple[str, ...]]
    cancelled: str | None = None

    def __post_init__(self) -> None:
        """Raises TypeError for a state that is no text, or is not in `steps`: it could be neither reached nor left."""
        steps: Any = self.steps
        if not isinstance(steps, Mapping) or any(isinstance(states, str) for states in steps.values()):
            told = 'steps is a mapping of each state to a tuple of what may follow: {"new": ("done",), "done": ()}'
            raise TypeError(f"a lifecycle: {told}, not {safe_repr(steps)}")
        named: list[Any] = [*self.steps, self.initial, *(state for states in self.steps.values() for state in states)]
        for state in named if self.cancelled is None else [*named, self.cancelled]:
            if not isinstance(state, str):
                raise TypeError(f"a lifecycle: states are text, as an enum's values are, not {safe_repr(state)}")
            if state not in self.steps:
                raise TypeError(f"a lifecycle: {state!r} is none of the states in steps: {', '.join(self.steps)}")

    def allowed(self, state: str) -> tuple[str, ...]:
        """The states that may follow this one; none behind a final state, or one that there is not."""
        return self.steps.get(state, ())


class Entity(BaseModel):
    """A stored thing: immutable, with an id made by the client and a version (1, 2, 3 ...) counted by the engine.

    Class arguments: `kind` (the stored name; default: the class's), `columns` (fields that can be filtered and sorted
    by without decoding), `lifecycle`. Subclasses inherit columns and lifecycle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind_name: ClassVar[str] = "Entity"
    column_names: ClassVar[tuple[str, ...]] = ()
    lifecycle: ClassVar[Lifecycle | None] = None

    id: Annotated[str, Field(min_length=1, max_length=KEY_BYTES_MAX)] = Field(default_factory=new_id)
    version: Annotated[int, Field(ge=0)] = 0

    def __init_subclass__(
        cls, *, kind: str | None = None, columns: tuple[str, ...] = (), lifecycle: Lifecycle | None = None, **rest: Any
    ) -> None:
        if rest and sum("__init_subclass__" in vars(base) for base in cls.__mro__) == 2:  # object's and this
            raise TypeError(f"{cls.__name__}: a class takes kind, columns and lifecycle, not {', '.join(rest)}")
        super().__init_subclass__(**rest)
        if isinstance(columns, str):  # which would be taken for the names of its letters
            raise TypeError(f"{cls.__name__}: columns is a tuple of names: columns=({columns!r},)")
        if not isinstance(columns, tuple | list):  # a set has another order in each process
            raise TypeError(f"{cls.__name__}: columns is a tuple of names, not {safe_repr(columns)}")
        if not isinstance(kind, str | None):
            raise TypeError(f"{cls.__name__}: kind is a name, not {safe_repr(kind)}")
        if not isinstance(lifecycle, Lifecycle | None):
            raise TypeError(f"{cls.__name__}: lifecycle is a Lifecycle(...), not {safe_repr(lifecycle)}")
        cls.kind_name = kind or cls.__name__
        bases = [base for base in cls.__mro__[1:] if issubclass(base, Entity)]  # each says what it inherited itself
        inherited = [name for base in bases for name in base.column_names]
        cls.column_names = tuple(dict.fromkeys((*inherited, *columns)))
        cls.lifecycle = lifecycle or _inherited_lifecycle(cls)

    @classmethod
    def __pydantic_init_subclass__(cls, **_declared: Any) -> None:
        for name in ("kind_name", "column_names", "lifecycle"):
            if name in cls.model_fields:
                raise TypeError(f"{cls.__name__} has a field {name!r}, which every entity's class has for itself")
        refuse_unsuitable(cls)
        refuse_own(cls)
        named = {"column": cls.column_names, "lifecycle field": (cls.lifecycle.field,) if cls.lifecycle else ()}
        for what, names in named.items():
            for name in names:
                if name not in cls.model_fields:
                    raise TypeError(f"{cls.__name__} declares the {what} {name!r}, but has no such field")

    @classmethod
    def ref(cls, id: str) -> Ref[Self]:
        """A target by id alone: mutations of it compare no version."""
        return Ref(cls, id)


def _inherited_lifecycle(model: type[Entity]) -> Lifecycle | None:
    """The one that its bases have. Raises TypeError where they have several: only one would be obeyed."""
    found: list[tuple[type[Entity], Lifecycle]] = []
    for base in model.__bases__:
        if issubclass(base, Entity) and base.lifecycle and not any(issubclass(one, base) for one, _ in found):
            found.append((base, base.lifecycle))
    others = [base for base, lifecycle in found if lifecycle != found[0][1]]
    if others:
        raise TypeError(
            f"{model.__name__} has the lifecycles of {found[0][0].__name__} and {others[0].__name__}, which differ: an "
            "entity has one, which a class of both names with lifecycle="
        )
    return found[0][1] if found else None


def model_of(target: E | Ref[E]) -> type[E]:
    """The class of a target. Raises TypeError for what is none."""
    if isinstance(target, Ref):
        return target.model
    if isinstance(target, Entity):
        return type(target)
    raise TypeError(f"a target is an entity or a Ref, such as Task.ref(id), not {safe_repr(target)}")


class Part(BaseModel):
    """A nested, immutable value inside an entity: no id, no version, stored with the entity that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def broken(field: str, problem: str) -> PydanticCustomError:
    """A model's rule that does not hold, naming the field: raise it from an `after` validator."""
    return PydanticCustomError("rule", "{problem}", {"field": field, "problem": problem})


CONCERNS = "__concerns__"


def concerns(*fields: str) -> Callable[[Rule], Rule]:
    """Says of a model's `after` rule which fields it looks at, and that it only looks: others' changes do not run it.

    Without it, every change of an entity runs the model's whole validation.
    """
    if not fields or not all(isinstance(name, str) for name in fields):  # @concerns alone would take the rule's place
        raise TypeError('concerns takes the names of the fields that a rule looks at: @concerns("begin", "end")')

    def mark(rule: Rule) -> Rule:
        setattr(rule, CONCERNS, fields)
        return rule

    return mark
