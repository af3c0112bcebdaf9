"""solewriter: a single-writer task and state engine. One process writes; every other process reads memory.

from solewriter import Engine, Task, connect, open_reader

with Engine("state/") as engine, connect(engine.state, name="me") as client:
    task = client.create(Task(title="first"))
    with open_reader(engine.state) as reader, reader.snapshot() as snap:
        print(snap[Task, task.id])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solewriter.agents import aio
    from solewriter.agents.client import Client, connect
    from solewriter.agents.reader import Reader, open_reader
    from solewriter.agents.reading.change import Change
    from solewriter.agents.reading.offline import OfflineReader
    from solewriter.agents.reading.readiness import Budget, Obstacle, Reason, budget_of, dead_letters, why_not_ready
    from solewriter.agents.reading.travel import Difference
    from solewriter.agents.snapshot import Snapshot
    from solewriter.agents.status import EngineStatus, status_of
    from solewriter.agents.transaction import Transaction
    from solewriter.agents.watch import Resync, Watch
    from solewriter.engine_proc.process import Engine
    from solewriter.shared import errors
    from solewriter.shared.config import Limits
    from solewriter.shared.entity import Entity, Lifecycle, Part, Ref, broken, concerns
    from solewriter.shared.errors import (
        AlreadyExists,
        BadRequest,
        Busy,
        Compacted,
        Corrupt,
        EngineStartFailed,
        EngineUnavailable,
        Expired,
        Fenced,
        Forgotten,
        GuardFailed,
        InvalidMutation,
        InvalidQuery,
        InvalidTransition,
        JournalCorrupt,
        LayoutMismatch,
        Locked,
        MemoryFull,
        NotFound,
        OutcomeUnknown,
        Quarantined,
        Refused,
        RequestMismatch,
        RequestTooLarge,
        ResultUnavailable,
        SchemaMismatch,
        SnapshotExpired,
        SolewriterError,
        Unavailable,
        UnknownKind,
        Verdict,
        VersionConflict,
    )
    from solewriter.shared.frozen import FrozenMap, Json
    from solewriter.shared.models import (
        Artifact,
        BudgetPolicy,
        Complexity,
        Criterion,
        DependencyPolicy,
        Project,
        ProjectStatus,
        Task,
        TaskPriority,
        TaskStatus,
        TaskStructure,
        TaskType,
        Topology,
    )
    from solewriter.shared.mutations import (
        Alter,
        Applied,
        Cancel,
        Claim,
        Complete,
        Create,
        Delete,
        Fail,
        GuardMutation,
        Mutation,
        NotApplied,
        Put,
        Redrive,
        Release,
        Renew,
        Reply,
        Require,
        RequireAbsent,
        RequireFields,
        RequireNone,
        Transition,
        Unchanged,
        Update,
    )
    from solewriter.shared.operations import Add, Append, Increment, Max, Min, PutIn, Remove
    from solewriter.shared.where import Range

__version__ = "0.1.0"

# Importing this package must be cheap and start nothing: a name's module is imported when it is first asked for.
_ROOMS = {
    "solewriter.engine_proc.process": ("Engine",),
    "solewriter.agents.client": ("connect", "Client"),
    "solewriter.agents.reading.offline": ("OfflineReader",),
    "solewriter.agents.reader": ("open_reader", "Reader"),
    "solewriter.agents.reading.readiness": (
        "why_not_ready",
        "dead_letters",
        "budget_of",
        "Reason",
        "Obstacle",
        "Budget",
    ),
    "solewriter.agents.snapshot": ("Snapshot",),
    "solewriter.agents.status": ("status_of", "EngineStatus"),
    "solewriter.agents.transaction": ("Transaction",),
    "solewriter.agents.reading.change": ("Change",),
    "solewriter.agents.reading.travel": ("Difference",),
    "solewriter.agents.watch": ("Watch", "Resync"),
    "solewriter.shared.config": ("Limits",),
    "solewriter.shared.entity": ("Entity", "Part", "Lifecycle", "Ref", "broken", "concerns"),
    "solewriter.shared.frozen": ("FrozenMap", "Json"),
    "solewriter.shared.models": (
        "Task", "Project", "BudgetPolicy", "DependencyPolicy", "TaskStatus", "TaskPriority", "TaskType",
        "ProjectStatus", "Artifact", "Criterion", "Complexity", "TaskStructure", "Topology",
    ),
    "solewriter.shared.mutations": (
        "Create", "Put", "Update", "Transition", "Cancel", "Delete", "Alter", "Require", "RequireAbsent",
        "RequireFields", "RequireNone", "Unchanged", "Claim", "Complete", "Fail", "Release", "Renew", "Redrive",
        "Mutation", "GuardMutation", "Reply", "Applied", "NotApplied",
    ),
    "solewriter.shared.operations": ("Increment", "Max", "Min", "Append", "Add", "Remove", "PutIn"),
    "solewriter.shared.where": ("Range",),
    "solewriter.shared.errors": (
        "SolewriterError",
        "Verdict",
        "Refused", "NotFound", "AlreadyExists", "VersionConflict", "InvalidMutation", "InvalidTransition",
        "InvalidQuery", "GuardFailed", "Fenced", "UnknownKind", "SchemaMismatch", "RequestMismatch",
        "RequestTooLarge", "BadRequest", "Expired", "Quarantined", "Unavailable", "Corrupt",
        "EngineUnavailable", "EngineStartFailed", "Locked", "Busy", "OutcomeUnknown", "Forgotten", "ResultUnavailable",
        "Compacted", "SnapshotExpired", "MemoryFull", "JournalCorrupt", "LayoutMismatch",
    ),
}  # fmt: skip
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
_MODULES = {"aio", "errors"}

__all__ = [
    "Engine", "connect", "Client", "Transaction", "open_reader", "Reader", "OfflineReader", "Snapshot", "Range",
    "Watch", "Change", "Resync", "Difference", "status_of", "EngineStatus", "aio",
    "Limits",
    "Entity", "Part", "Task", "Project", "Lifecycle", "Ref", "broken", "concerns",
    "TaskStatus", "TaskPriority", "TaskType", "ProjectStatus",
    "Artifact", "Criterion", "Complexity", "TaskStructure", "Topology",
    "FrozenMap", "Json",
    "Create", "Put", "Update", "Transition", "Cancel", "Delete", "Alter", "Require", "RequireAbsent", "RequireFields",
    "RequireNone", "Unchanged", "Claim", "Complete", "Fail", "Release", "Renew", "Redrive", "Mutation",
    "GuardMutation", "Reply", "Applied", "NotApplied",
    "why_not_ready", "dead_letters", "budget_of", "Reason", "Obstacle", "Budget", "Verdict",
    "DependencyPolicy", "BudgetPolicy",
    "Increment", "Max", "Min", "Append", "Add", "Remove", "PutIn",
    "errors", "SolewriterError",
    "Refused", "NotFound", "AlreadyExists", "VersionConflict", "InvalidMutation", "InvalidTransition", "InvalidQuery",
    "GuardFailed", "Fenced", "UnknownKind", "SchemaMismatch", "RequestMismatch", "RequestTooLarge", "BadRequest",
    "Expired", "Quarantined", "Unavailable", "Corrupt",
    "EngineUnavailable", "EngineStartFailed", "Locked", "Busy", "OutcomeUnknown", "Forgotten", "ResultUnavailable",
    "Compacted", "SnapshotExpired", "MemoryFull", "JournalCorrupt", "LayoutMismatch",
]  # fmt: skip


if not TYPE_CHECKING:  # whose checkers would take any name, also a misspelt one, for one of type Any

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"solewriter.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'solewriter' has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
