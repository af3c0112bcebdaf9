"""What a client says that is closed and may hold claims, where an engine came since its last call.

That one knows which process has the claims, and takes the client for one at work: it would wait for the end of the
process. So it is greeted once more, and the lane let go: then they are free as those of any client that is closed.
"""

from __future__ import annotations

import os
import weakref

from solewriter.agents.greeting import greet
from solewriter.agents.session import AgentSession
from solewriter.shared.config import GIVE_BACK_S
from solewriter.shared.errors import SolewriterError
from solewriter.shared.folder import StateFolder
from solewriter.shared.lane import Lane
from solewriter.shared.system.forks import forks_held_off
from solewriter.shared.system.processes import runs

_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


def say_farewell(folder: StateFolder, session: AgentSession) -> None:
    """Behind the end of its session on this side. Where nobody listens, nobody hears it: that is not waited for. Blocks
    for at most GIVE_BACK_S at each step of a hello.
    """
    try:
        where = folder.whereabouts()
        if where.epoch == session.epoch and runs(where.pid, where.start_time):
            return  # that one saw the lane go
        with forks_held_off:  # a child that came before it is noted would not close it
            lane = Lane()
            _lanes.add(lane)
        try:
            greet(folder, session.hello(os.getpid()), lane, GIVE_BACK_S)
        finally:
            lane.close()
    except (OSError, SolewriterError):
        pass  # whoever comes next goes by the process


def _leave_lanes_to_the_parent() -> None:
    """In a forked child: keep none of the parent's lanes open."""
    for lane in list(_lanes):
        lane.close()


os.register_at_fork(after_in_child=_leave_lanes_to_the_parent)
