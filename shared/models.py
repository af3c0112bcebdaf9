"""What is stored: immutable, versioned pydantic models. `Task` and `Project` come with the house; users bring their
own.

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
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from solewriter.shared.config import KEY_BYTES_MAX
from solewriter.shared.enginefields import refuse_own, refuse_unlike
from solewriter.shared.errors import shown
from solewriter.shared.fieldtypes import refuse_unsuitable
from solewriter.shared.frozen import FrozenMap, Json

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
    raise TypeError(f"a kind is an entity's class, or its name, not {shown(kind)}")


def check_id(id: object) -> None:
    """Of whoever reads. Raises TypeError for what is no id of anything."""
    if not isinstance(id, str):
        raise TypeError(f"an id is a str, not {shown(id)}")


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
        """Raises TypeError for a state that is not in `steps`: it could be neither reached nor left."""
        steps: Any = self.steps
        if not isinstance(steps, Mapping) or any(isinstance(states, str) for states in steps.values()):
            told = 'steps is a mapping of each state to a tuple of what may follow: {"new": ("done",), "done": ()}'
            raise TypeError(f"a lifecycle: {told}, not {shown(steps)}")
        named = [self.initial, *(state for states in self.steps.values() for state in states)]
        for state in named if self.cancelled is None else [*named, self.cancelled]:
            if state not in self.steps:
                raise TypeError(f"a lifecycle: {state!r} is none of the states in steps: {', '.join(self.steps)}")

    def allowed(self, state: str) -> tuple[str, ...]:
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
            raise TypeError(f"{cls.__name__}: columns is a tuple of names, not {shown(columns)}")
        if not isinstance(kind, str | None):
            raise TypeError(f"{cls.__name__}: kind is a name, not {shown(kind)}")
        if not isinstance(lifecycle, Lifecycle | None):
            raise TypeError(f"{cls.__name__}: lifecycle is a Lifecycle(...), not {shown(lifecycle)}")
        cls.kind_name = kind or cls.__name__
        inherited = next(base.column_names for base in cls.__mro__[1:] if issubclass(base, Entity))
        cls.column_names = tuple(dict.fromkeys((*inherited, *columns)))
        cls.lifecycle = lifecycle or cls.lifecycle

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


# --- Task -------------------------------------------------------------------------------------------------------------


class TaskType(StrEnum):
    DEVELOPMENT = "development"
    DESIGN = "design"
    RESEARCH = "research"
    REVIEW = "review"
    MEETING = "meeting"
    ADMIN = "admin"


class TaskPriority(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class TaskStatus(StrEnum):
    CREATED = "created"
    ASSIGNED = "assigned"
    IN_PROGRESS = "in_progress"
    IN_REVIEW = "in_review"
    COMPLETED = "completed"
    AUTH_REQUIRED = "auth_required"
    BLOCKED = "blocked"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SUSPENDED = "suspended"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


class Complexity(StrEnum):
    SIMPLE = "simple"
    MEDIUM = "medium"
    COMPLEX = "complex"
    EPIC = "epic"


class TaskStructure(StrEnum):
    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    MIXED = "mixed"


class Topology(StrEnum):
    AUTO = "auto"
    SAS = "sas"
    CENTRALIZED = "centralized"
    DECENTRALIZED = "decentralized"
    CONTEXT_DEPENDENT = "context_dependent"


class DependencyPolicy(StrEnum):
    """What becomes of a task when one that it depends on is cancelled, rejected or a dead letter."""

    BLOCK = "block"  # it waits: until that one is done after all, or somebody decides
    CANCEL = "cancel"  # it is cancelled with it, in the same revision
    IGNORE = "ignore"  # it goes on as if that one were done


class Artifact(Part):
    """A file or other product that a task is expected to make."""

    path: str
    type: str = "file"


class Criterion(Part):
    """One condition under which a task counts as done."""

    description: str
    met: bool = False


_AT_WORK = ("auth_required", "blocked", "cancelled", "failed", "interrupted", "suspended")
_RETURNING = ("assigned", "cancelled")

TASK_LIFECYCLE = Lifecycle(
    field="status",
    initial="created",
    steps=MappingProxyType(
        {
            "created": ("assigned", "rejected", "cancelled"),
            "assigned": ("in_progress", *_AT_WORK),
            "in_progress": ("in_review", *_AT_WORK),
            "in_review": ("completed", "in_progress", "blocked", "cancelled"),
            "auth_required": _RETURNING,
            "blocked": _RETURNING,
            "failed": _RETURNING,
            "interrupted": _RETURNING,
            "suspended": _RETURNING,
            "completed": (),
            "cancelled": (),
            "rejected": (),
        }
    ),
    cancelled="cancelled",
)

NEEDS_ASSIGNEE = frozenset({"assigned", "in_progress", "in_review", "auth_required", "completed"})

COORDINATED = (
    "status", "project", "assigned_to", "parent_task_id", "dependencies", "on_dependency_failure", "not_before",
    "max_retries", "retry_delay_s", "cost", "attempts", "claim",
)  # fmt: skip
"""The fields of tasks by which the engine coordinates, but for `priority`, of which a class may have others"""


class Task(
    Entity,
    columns=(
        "status",
        "priority",
        "type",
        "assigned_to",
        "project",
        "parent_task_id",
        "created_at",
        "updated_at",
        "version",
    ),
    lifecycle=TASK_LIFECYCLE,
):
    """A unit of work. Only `title` is required of the user.

    `attempts` and `claim` are the engine's: how often it was tried, and its newest claim's token, which only grows.
    """

    title: Annotated[str, Field(min_length=1)]
    description: str = ""
    type: TaskType = TaskType.DEVELOPMENT
    priority: TaskPriority = TaskPriority.MEDIUM
    project: str = ""
    created_by: str = ""
    assigned_to: str | None = None
    reviewers: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    artifacts_expected: tuple[Artifact, ...] = ()
    acceptance_criteria: tuple[Criterion, ...] = ()
    estimated_complexity: Complexity = Complexity.MEDIUM
    budget_limit: Annotated[float, Field(ge=0)] | None = None
    deadline: AwareDatetime | None = None
    max_retries: Annotated[int, Field(ge=0)] = 0
    status: TaskStatus = TaskStatus.CREATED
    parent_task_id: str | None = None
    delegation_chain: tuple[str, ...] = ()
    task_structure: TaskStructure = TaskStructure.SEQUENTIAL
    coordination_topology: Topology = Topology.AUTO
    source: str = ""
    metadata: FrozenMap = FrozenMap()
    result: Json = None
    cost: Annotated[float, Field(ge=0)] = 0.0
    not_before: AwareDatetime | None = None
    retry_delay_s: Annotated[float, Field(ge=0)] | None = None
    on_dependency_failure: DependencyPolicy = DependencyPolicy.BLOCK
    attempts: Annotated[int, Field(ge=0)] = 0
    claim: Annotated[int, Field(ge=0)] = 0
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **declared: Any) -> None:
        super().__pydantic_init_subclass__(**declared)
        refuse_unlike(cls, Task, COORDINATED)

    @model_validator(mode="after")
    @concerns("id", "dependencies", "reviewers", "delegation_chain", "parent_task_id", "assigned_to", "status")
    def __rules(self) -> Task:  # by a name that no class derived from it takes by chance
        value = self.__dict__  # plain dict access: this runs once for every change that the engine applies
        for name in ("dependencies", "reviewers", "delegation_chain"):
            listed = value[name]
            if listed and len(set(listed)) != len(listed):
                raise broken(name, "must not name anyone or anything twice")
        if value["id"] in value["dependencies"]:
            raise broken("dependencies", "a task cannot depend on itself")
        if value["parent_task_id"] == value["id"]:
            raise broken("parent_task_id", "a task cannot be its own parent")
        assignee, status = value["assigned_to"], value["status"]
        if assignee is None:
            if status in NEEDS_ASSIGNEE:
                raise broken("assigned_to", f"a task that is {status} needs an assignee")
            return self
        if status is TaskStatus.CREATED:
            raise broken("assigned_to", "a task that is only created has no assignee yet: assign it by a transition")
        if assignee in value["delegation_chain"]:
            raise broken("assigned_to", "the assignee is already in the delegation chain")
        return self


# --- Project ----------------------------------------------------------------------------------------------------------


class ProjectStatus(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    ARCHIVED = "archived"


class BudgetPolicy(StrEnum):
    """What happens when a project's tasks cost what its budget allows."""

    REFUSE = "refuse"  # none of them is claimed any more: what is in work may end
    WARN = "warn"  # nothing: who looks, sees it (`budget_of`)


PROJECT_LIFECYCLE = Lifecycle(
    field="status",
    initial="active",
    steps=MappingProxyType(
        {"active": ("paused", "archived"), "paused": ("active", "archived"), "archived": ("active",)},
    ),
)


class Project(Entity, columns=("status", "owner", "created_at", "updated_at", "version"), lifecycle=PROJECT_LIFECYCLE):
    """What tasks belong to. A task's project need not exist as an entity."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    status: ProjectStatus = ProjectStatus.ACTIVE
    budget_limit: Annotated[float, Field(ge=0)] | None = None
    on_budget: BudgetPolicy = BudgetPolicy.REFUSE
    owner: str = ""
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None
