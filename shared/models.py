"""The models that come with the house: `Task`, by which the engine coordinates, and `Project`; their states as data."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, model_validator

from solewriter.shared.entity import Entity, Lifecycle, Part, broken, concerns
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kinds.enginefields import refuse_unlike

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
        if type(status) is not TaskStatus:  # in a class that narrows it, or has values in place of enums
            status = getattr(status, "value", status)
        if assignee is None:
            if status in NEEDS_ASSIGNEE:
                raise broken("assigned_to", f"a task that is {status} needs an assignee")
            return self
        if status == TaskStatus.CREATED:
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
