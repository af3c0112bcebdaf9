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
    from solewriter.agents.client import Client, connect
    from solewriter.agents.reader import Reader, open_reader
    from solewriter.agents.snapshot import Snapshot
    from solewriter.engine_proc.process import Engine
    from solewriter.shared import errors
    from solewriter.shared.config import Limits
    from solewriter.shared.errors import (
        AlreadyExists,
        Busy,
        Compacted,
        EngineStartFailed,
        EngineUnavailable,
        Expired,
        Fenced,
        Forgotten,
        GuardFailed,
        InvalidMutation,
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
        UnknownKind,
        VersionConflict,
    )
    from solewriter.shared.frozen import FrozenMap, Json
    from solewriter.shared.models import (
        Entity,
        Lifecycle,
        Part,
        Project,
        ProjectStatus,
        Ref,
        Task,
        TaskPriority,
        TaskStatus,
        TaskType,
    )
    from solewriter.shared.mutations import (
        Applied,
        Cancel,
        Create,
        Delete,
        NotApplied,
        Put,
        Reply,
        Require,
        RequireAbsent,
        Transition,
        Update,
    )

__version__ = "0.1.0"

# Importing this package must be cheap and start nothing: a name's module is imported when it is first asked for.
_ROOMS = {
    "solewriter.engine_proc.process": ("Engine",),
    "solewriter.agents.client": ("connect", "Client"),
    "solewriter.agents.reader": ("open_reader", "Reader"),
    "solewriter.agents.snapshot": ("Snapshot",),
    "solewriter.shared.config": ("Limits",),
    "solewriter.shared.frozen": ("FrozenMap", "Json"),
    "solewriter.shared.models": (
        "Entity", "Part", "Task", "Project", "Lifecycle", "Ref",
    "TaskStatus", "TaskPriority", "TaskType", "ProjectStatus",
    ),
    "solewriter.shared.mutations": (
        "Create", "Put", "Update", "Transition", "Cancel", "Delete", "Require", "RequireAbsent", "Reply", "Applied",
        "NotApplied",
    ),
    "solewriter.shared.errors": (
        "SolewriterError",
        "Refused", "NotFound", "AlreadyExists", "VersionConflict", "InvalidMutation", "InvalidTransition",
        "GuardFailed", "Fenced", "UnknownKind", "SchemaMismatch", "RequestMismatch", "RequestTooLarge", "Expired",
        "Quarantined",
        "EngineUnavailable", "EngineStartFailed", "Locked", "Busy", "OutcomeUnknown", "Forgotten", "ResultUnavailable",
        "Compacted", "SnapshotExpired", "MemoryFull", "JournalCorrupt", "LayoutMismatch",
    ),
}  # fmt: skip
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Engine", "connect", "Client", "open_reader", "Reader", "Snapshot", "Limits",
    "Entity", "Part", "Task", "Project", "Lifecycle", "Ref",
    "TaskStatus", "TaskPriority", "TaskType", "ProjectStatus",
    "FrozenMap", "Json",
    "Create", "Put", "Update", "Transition", "Cancel", "Delete", "Require", "RequireAbsent", "Reply", "Applied",
    "NotApplied",
    "errors", "SolewriterError",
    "Refused", "NotFound", "AlreadyExists", "VersionConflict", "InvalidMutation", "InvalidTransition", "GuardFailed",
    "Fenced", "UnknownKind", "SchemaMismatch", "RequestMismatch", "RequestTooLarge", "Expired", "Quarantined",
    "EngineUnavailable", "EngineStartFailed", "Locked", "Busy", "OutcomeUnknown", "Forgotten", "ResultUnavailable",
    "Compacted", "SnapshotExpired", "MemoryFull", "JournalCorrupt", "LayoutMismatch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("solewriter.shared.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'solewriter' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
