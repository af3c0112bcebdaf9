"""What the last life of an engine says of what its end may have left on disk."""

from __future__ import annotations

from pathlib import Path

from solewriter.shared.entry import Life


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def rebooted_since(life: Life) -> bool:
    """Whether page cache that was written in this life, and not synced at its end, is gone."""
    return life.boot != boot_id() and not life.drained


def may_be_cut(life: Life | None) -> bool:
    """Whether a power cut may have taken entries of this life, the last one that is known, in any order."""
    return life is not None and life.durability != "power" and rebooted_since(life)
