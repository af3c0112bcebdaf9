"""Forks wait for what must be whole before a child may come: it would hold open, for as long as it lives, what nobody
has noted yet, and whoever waits for an end of file would wait for the child.
"""

from __future__ import annotations

import os
import threading

held_off = threading.RLock()
"""`with held_off:` around what takes no more than a moment"""

os.register_at_fork(before=held_off.acquire, after_in_parent=held_off.release, after_in_child=held_off.release)
