"""Whether an engine process is alive in more than name: its heartbeat in shared memory, and what the kernel says of it.

An idle engine beats as often as a busy one, from its event loop. One that does not beat is stopped (SIGSTOP, a
debugger), waits for a disk, or hangs in somebody's validator. Only the last of these may be ended by anyone: a stopped
process is in somebody's hands, and one that waits for a disk cannot be killed.
"""

from __future__ import annotations

import time
from pathlib import Path

from solewriter.shared.errors import SolewriterError
from solewriter.shared.folder import StateFolder
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.segment import Segment, segment_path

IN_OTHER_HANDS = {"T": "stopped", "t": "in a debugger", "D": "waiting for a disk"}


class Pulse:
    """The heartbeat of one process that serves."""

    def __init__(self, folder: StateFolder, pid: int) -> None:
        self.pid = pid
        self._folder = folder
        self._root: RootReader | None = None

    def silent_s(self) -> float:
        """Seconds since the last beat; 0 where its memory cannot be found."""
        if self._root is None:
            try:
                where = self._folder.whereabouts()
                if where.pid == self.pid:
                    self._root = RootReader(Segment.attach(segment_path(where.memory_dir, where.prefix, "root")))
            except (OSError, SolewriterError):
                return 0.0
        if self._root is None:
            return 0.0
        return max(0.0, time.monotonic() - self._root.heartbeat_us / 1e6)

    def in_other_hands(self) -> str:
        """Why it must not be killed for its silence; "" if it may."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
        except OSError:
            return ""
        return IN_OTHER_HANDS.get(state, "")
