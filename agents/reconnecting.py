"""`Reconnecting`: how a client goes on that has no lane: when it says hello, and when it gives up. No I/O of its
own, no clock.

However many need the lane, it is looked for no longer than `connect_timeout_s` from when it was first missed. The pause
before a hello is longer each time, until something is heard: who takes a lane and drops it at once is not asked
hastily.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from solewriter.shared.config import RECONNECT_FIRST_S, RECONNECT_MAX_S, Limits
from solewriter.shared.errors import EngineUnavailable, check_descriptors
from solewriter.shared.folder import StateFolder, is_no_folder
from solewriter.shared.lane import NoLane


class Reconnecting:
    """When a client without a lane says its next hello, and until when it tries. Times are seconds on any one clock."""

    def __init__(self, folder: StateFolder, limits: Limits, unanswered: Callable[[], None] | None = None) -> None:
        self.connect_timeout_s = limits.connect_timeout_s
        self.heard = False  # something, since the last hello: whoever reads notes it
        self._folder = folder
        # Weak: a warning that a client was never closed keeps this, and must not keep its reader.
        self._unanswered = weakref.WeakMethod(unanswered) if unanswered else None
        self._missed_s = 0.0  # since when there is no lane; 0 while there is one
        self._pause_s = 0.0  # before the next hello

    def given_up_s(self, now_s: float) -> float:
        """When the lane that is missed now, or was before, is given up."""
        self._missed_s = self._missed_s or now_s
        return self._missed_s + self.connect_timeout_s

    def next_pause_s(self) -> float:
        """How long to wait before the hello that comes now; longer for each, while nothing is heard."""
        pause = 0.0 if self.heard else self._pause_s
        self.heard = False
        self._pause_s = min(max(2 * pause, RECONNECT_FIRST_S), RECONNECT_MAX_S)
        return pause

    def note_failure(self, error: OSError | EngineUnavailable, now_s: float, deadline: float) -> None:
        """Note that nobody answered the last hello. Raises the error where it is final, EngineUnavailable where there
        is no time for another one, or no folder that could have an engine.
        """
        if self._unanswered is not None and (tell := self._unanswered()) is not None:
            tell()
        if getattr(error, "final", False):
            raise error
        if now_s + self._pause_s > deadline or is_no_folder(error):
            check_descriptors(error)
            if isinstance(error, NoLane):
                raise EngineUnavailable(str(error)) from error
            raise self._folder.not_served(error) from error

    def note_lane(self) -> None:
        """There is a lane."""
        self._missed_s = 0.0
