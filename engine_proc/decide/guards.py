"""Guards: conditions on entities that the request does not change, compared with the state before it."""

from __future__ import annotations

from solewriter.engine_proc.decide.draft import Draft
from solewriter.shared.errors import GuardFailed
from solewriter.shared.mutations import Guard
from solewriter.shared.wireform import PlainGuard


def check(draft: Draft, guard: PlainGuard) -> None:
    """Raises GuardFailed."""
    code, kind_name, key, version = guard
    stored = draft.stored(kind_name, key)
    found = stored.version if stored is not None and stored.alive else 0
    if code == Guard.REQUIRE_ABSENT and found:
        raise GuardFailed(
            f"{kind_name} {key!r} exists, and was required to be absent", kind=kind_name, id=key, version=found
        )
    if code == Guard.REQUIRE and found != version:
        now = f"is at version {found}" if found else "does not exist"
        raise GuardFailed(
            f"{kind_name} {key!r} {now}, and was required at {version}", kind=kind_name, id=key, version=found
        )
