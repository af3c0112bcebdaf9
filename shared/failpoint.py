"""Named places where tests may kill, stop or raise: `SOLEWRITER_FAILPOINT=name:kill:hit=2`, several separated by
commas.

Actions: `kill` (SIGKILL to this process), `stop` (SIGSTOP), `raise` (OSError EIO), `full` (OSError ENOSPC), `exit`
(status 3). `hit=k` waits for the k-th time; without it, the first. When the variable is unset, `reach` is a function
that does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

VARIABLE = "SOLEWRITER_FAILPOINT"

NAMES: tuple[str, ...] = (  # every place that there is, in the order of a life
    # a start: the tail of the journal on new pages, the first root, the announcement, the memory of those before
    "recover.restored", "recover.rewrite", "recover.rewritten", "recover.published", "recover.announced",
    "recover.done",
    # agents come and go
    "bridge.admitted", "session.greeted", "session.forgotten",
    # requests come in, and a turn decides them
    "bridge.read", "bridge.frames", "decide.begin", "decide.done", "decide.refused", "turn.decided",
    # claims wait, are granted and lost, and a time comes that somebody waited for
    "claim.parked", "claim.granted", "claim.lost", "timer.fired",
    # the turn becomes durable
    "commit.write", "commit.written", "commit.synced", "commit.noted",
    # the journal goes on in another file
    "journal.prepare", "journal.prepared", "journal.roll", "journal.rolled",
    # the turn becomes visible
    "publish.tail-moved", "publish.installed", "publish.filled", "publish.shown", "turn.published",
    # it is told
    "turn.reply", "reply.written", "turn.done",
    # memory is given back, and another piece of it is made
    "reclaim.moved", "reclaim.forgotten", "reclaim.filled", "reclaim.shown", "reclaim.done", "memory.grow",
    # a checkpoint is made, by a process of its own, named and journaled; what it takes the place of goes
    "checkpoint.begin", "checkpoint.written", "checkpoint.synced", "checkpoint.made", "checkpoint.renamed",
    "checkpoint.journaled", "trim.begin", "trim.file", "trim.journal", "trim.done",
    # in the owner: another engine is started
    "restart.begin", "restart.launched",
)  # fmt: skip


class FailpointError(ValueError):
    """The variable says something that is no failpoint."""


def _nothing(name: str) -> None:
    """The failpoint of every day."""


def _arm(text: str) -> Callable[[str], None]:
    waiting: dict[str, tuple[str, int]] = {}
    for item in text.split(","):
        name, _, rest = item.strip().partition(":")
        action, _, hit = rest.partition(":hit=")
        if action not in _ACTIONS or not (hit or "1").isdigit():
            raise FailpointError(
                f"{VARIABLE}={item!r}: expected name:action[:hit=k], action one of {', '.join(_ACTIONS)}"
            )
        waiting[name] = (action, int(hit or 1))

    def reached(name: str) -> None:
        if name in waiting:
            action, hits = waiting[name]
            if hits > 1:
                waiting[name] = (action, hits - 1)
                return
            del waiting[name]
            _ACTIONS[action]()

    return reached


def _raise(code: int) -> None:
    raise OSError(code, f"{os.strerror(code)} (failpoint)")


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda: _raise(errno.EIO),
    "full": lambda: _raise(errno.ENOSPC),
    "exit": lambda: os._exit(3),
}

reach: Callable[[str], None] = _arm(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _nothing
