"""Checkpoints that were set aside, on request: starts do without them. See `solewriter.engine_proc.recovery.repair`."""

from __future__ import annotations

from pathlib import Path

from solewriter.shared.journal.chain import named_checkpoints
from solewriter.shared.journal.checkpoint import checkpoint_path, entry_named
from solewriter.shared.journal.entry import CheckpointName
from solewriter.shared.system.files import files_named

SUFFIX = ".damaged"


def aside_path(folder: Path, entry: int) -> Path:
    """What the checkpoint behind an entry is called then. Where it was missing, an empty file says the same."""
    return checkpoint_path(folder, entry).with_suffix(SUFFIX)


def aside_files(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder that were set aside, by the entries that they were taken behind."""
    paths = files_named(folder, f"checkpoint-*{SUFFIX}")
    return {entry: path for path in paths if (entry := entry_named(path.stem)) is not None}


def is_aside(folder: Path, entry: int) -> bool:
    """Whether the checkpoint behind an entry was set aside, and there is no other one by now: a cut may have given the
    number of its entry out again.
    """
    return not checkpoint_path(folder, entry).exists() and aside_path(folder, entry).exists()


def starting_checkpoint(folder: Path, newest: CheckpointName) -> CheckpointName | None:
    """The checkpoint with which a start begins: the newest one; where that was set aside, the next older one, for the
    journal says what happened between them; None for the first entry.
    """
    if not is_aside(folder, newest.entry):
        return newest
    return next((one for one in named_checkpoints(folder) if not is_aside(folder, one.entry)), None)
