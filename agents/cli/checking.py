"""What `solewriter verify` says of a folder."""

from __future__ import annotations

import json
from pathlib import Path

from solewriter.agents.verify import Verified, verify
from solewriter.engine_proc.recovery.repair import why_refused
from solewriter.shared.errors import JournalCorrupt, LayoutMismatch

STARTS = "a start needs nothing of that, and would succeed"


def verify_state(folder: Path) -> Verified:
    """What `verify` finds; where it finds damage, whether a start is refused for it is a note of the error."""
    try:
        return verify(folder)
    except (JournalCorrupt, LayoutMismatch) as error:
        error.add_note(why_refused(folder) or STARTS)
        raise


def verified_json(found: Verified) -> str:
    """One JSON object."""
    return json.dumps({"ok": True, **found._asdict()})


def unsound_json(error: Exception) -> str:
    """One JSON object about what is not sound, or, with null as its `place`, cannot be read. `starts` is null where
    that was not looked at.
    """
    notes = getattr(error, "__notes__", None)
    told = {"ok": False, "error": str(error), "place": getattr(error, "place", None)}
    return json.dumps({**told, "starts": None if notes is None else notes == [STARTS]})


def verified_lines(found: Verified) -> str:
    """Lines for a terminal."""
    torn = f", and {found.torn_bytes:,} bytes of one that was never committed" if found.torn_bytes else ""
    dropped: tuple[str, ...] = ()
    if found.drops is not None:
        first, last = found.drops
        dropped = (f"a start will drop entries {first:,} to {last:,}, which a power cut may take below `power`",)
    return "\n".join(
        (
            f"sound: {found.entities:,} entities at revision {found.revision:,}, digest {found.digest}",
            f"read:  {found.entries:,} entries with {found.records:,} records, from revision {found.first_revision:,} "
            f"on{torn}",
            f"the state was compared with {found.checkpoints} checkpoint{'s' * (found.checkpoints != 1)}",
            *dropped,
        )
    )
