"""Whether an engine process is alive in more than name: its heartbeat in shared memory, and what the kernel says of it.

An idle engine beats as often as a busy one, from its event loop. One that does not beat is stopped (SIGSTOP, a
debugger), waits for a disk, or hangs in somebody's validator. Only the last of these may be ended by anyone: a stopped
process is in somebody's hands, and one that waits for a disk cannot be killed. The loop may wait for a thread that
waits for a disk, so all threads are looked at.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from solewriter.shared.config import US_PER_S
from solewriter.shared.errors import SolewriterError
from solewriter.shared.folder import StateFolder
from solewriter.shared.memory.root import RootReader
from solewriter.shared.memory.segment import Segment, segment_path
from solewriter.shared.system.processes import process_state

WAITS = "D"
IN_OTHER_HANDS = {"T": "stopped", "t": "in a debugger", WAITS: "waiting for a disk"}


class Pulse:
    """The heartbeat of one process that serves."""

    def __init__(self, folder: StateFolder, pid: int) -> None:
        self.pid = pid
        self._folder = folder
        self._root: RootReader | None = None
        self._excused = 0.0  # when it was last seen in other hands

    def look(self) -> tuple[float, str]:
        """Seconds since its last beat, and in whose hands it is, if not in its own. 0 seconds where its memory cannot
        be found.
        """
        hands = self._hands()
        now = time.monotonic()
        if hands:
            self._excused = now
        root = self._root or self._attached()
        return (max(0.0, now - root.heartbeat_us / US_PER_S) if root is not None else 0.0), hands

    def inexcusable_s(self) -> float:
        """The same, of its own doing: one that was stopped and goes on has to have the time to beat again."""
        silent_s, _ = self.look()
        return min(silent_s, time.monotonic() - self._excused)

    def _attached(self) -> RootReader | None:
        try:
            where = self._folder.whereabouts()
            if where.pid == self.pid:
                self._root = RootReader(Segment.attach(segment_path(where.memory_dir, where.prefix, "root")))
        except (OSError, SolewriterError):
            pass
        return self._root

    def _hands(self) -> str:
        """In whose it is: its main thread, or any that waits for a disk. "" in its own, or when it is gone."""
        own = IN_OTHER_HANDS.get(process_state(Path(f"/proc/{self.pid}")), "")
        if own:
            return own
        return IN_OTHER_HANDS[WAITS] if any(process_state(one) == WAITS for one in self._threads()) else ""

    def _threads(self) -> list[Path]:
        folder = Path(f"/proc/{self.pid}/task")
        try:
            return [folder / name for name in os.listdir(folder)]
        except OSError:
            return []
