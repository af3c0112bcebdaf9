"""Whom a start suspects: the request that the engine before it was deciding when it died.

The root of the dead engine's memory names it; the journal counts, in the entry that begins each life. What two deaths
in a row named is quarantined. An engine that died and named another one or nobody was no second death, and a request
with an outcome is beyond suspicion; a claim that waits has none yet. A start that fails itself is no witness and
changes nothing: a death is known by its engine's epoch, and counted once.

The engine's own requests are the losses of claims: one has a new number each time, and is known by its claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from solewriter.engine_proc.coordination.leases import loss_of
from solewriter.engine_proc.sessions import ENGINE, Sessions
from solewriter.shared.config import QUARANTINE_DEATHS, QUARANTINED_MAX
from solewriter.shared.errors import LayoutMismatch
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.journal.entry import Lease, Life, Suspicion
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.system.processes import runs

Request = tuple[int, int]  # session, sequence


class LastWords(NamedTuple):
    """What the memory of a dead engine says of its end."""

    epoch: int
    pid: int
    request: Request | None  # that was being decided


def last_words(folder: StateFolder) -> LastWords | None:
    """Of the last engine that served here; None if it ended cleanly, or its memory is gone."""
    for old in sorted(folder.markers(), key=lambda marker: marker.epoch, reverse=True):
        if runs(old.pid, old.start_time) or folder.is_of_another(old):
            continue
        if (words := _words_of(old)) is not None:
            return words
    return None


def _words_of(old: Whereabouts) -> LastWords | None:
    try:
        root = RootReader(Segment.attach(segment_path(old.memory_dir, old.prefix, "root")))
    except (OSError, LayoutMismatch, ValueError):
        return None  # it was never made, or is gone
    if not root.heartbeat_period_us:
        return None  # it never served anybody
    return LastWords(old.epoch, old.pid, root.died_deciding)


def judge(
    life: Life, before: Life | None, words: LastWords | None, sessions: Sessions, leases: Sequence[Lease] = ()
) -> Life:
    """This life, with whom it suspects and whom it refuses."""
    suspicion = before.suspicion if before is not None else None
    losses = {(ENGINE, loss_of(lease)) for lease in leases}
    quarantined = [one for one in before.quarantined if sessions.get(one[0]) or one in losses] if before else []
    if words is not None and (suspicion is None or suspicion.epoch != words.epoch):
        suspicion = _after(suspicion, words)
    if suspicion is not None:
        request = suspicion.session, suspicion.sequence
        session = sessions.get(suspicion.session)
        over = request not in losses if session is None else session.is_done_with(suspicion.sequence)
        if over or request in quarantined:
            suspicion = None
        elif suspicion.deaths >= QUARANTINE_DEATHS:
            quarantined = [*quarantined, request][-QUARANTINED_MAX:]
            suspicion = None
    return Life(
        life.epoch, life.history, life.durability, life.boot, life.drained, suspicion=suspicion, quarantined=quarantined
    )


def _after(suspicion: Suspicion | None, words: LastWords) -> Suspicion | None:
    """One more death."""
    if words.request is None:
        return None
    again = suspicion is not None and (suspicion.session, suspicion.sequence) == words.request
    return Suspicion(*words.request, suspicion.deaths + 1 if again and suspicion else 1, words.epoch)
