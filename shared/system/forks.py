"""Forks wait for what must be whole before a child may come: it would hold open, for as long as it lives, what nobody
has noted yet, and whoever waits for an end of file would wait for the child.
"""

from __future__ import annotations

# Their locks are taken at a fork behind ours, because they are imported first: or one that waits would keep them from
# whoever holds it off.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading

forks_held_off = threading.RLock()
"""`with forks_held_off:` around what takes no more than a moment: a fork in another thread waits until it ends"""


def _go_on() -> None:
    """A signal's handler may have raised while the fork waited, which does not keep it from coming."""
    if forks_held_off._is_owned():  # type: ignore[attr-defined] # every lock of this kind has it, for Condition
        forks_held_off.release()


os.register_at_fork(
    before=forks_held_off.acquire,
    after_in_parent=_go_on,
    after_in_child=forks_held_off._at_fork_reinit,  # type: ignore[attr-defined] # its owner may not be there
)
