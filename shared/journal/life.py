"""What the last life of an engine says of what its end may have left on disk."""

from __future__ import annotations

from pathlib import Path

from solewriter.shared.journal.chain import lives_behind
from solewriter.shared.journal.entry import Life, PrivateState


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def rebooted_since(life: Life) -> bool:
    """Whether page cache that was written in this life, and not synced at its end, is gone."""
    return life.boot != boot_id() and not life.drained


def may_be_cut(folder: Path, life: Life | None, number: int) -> bool:
    """Whether a power cut may have taken entries behind this one, in any order: `life` is the last one known by then.
    Not where another life began behind it: its start had all of that whole, and on disk. Its epoch may be a lower one,
    of a clock that was set back.
    """
    if life is None or life.durability == "power" or not rebooted_since(life):
        return False
    return all(later.epoch == life.epoch for later in lives_behind(folder, number))


class LastLife:
    """The last life that a journal tells of, as far as it was read: at first by the newest `whole` private state."""

    def __init__(self, folder: Path, whole: tuple[int, PrivateState] | None) -> None:
        self._folder = folder
        self.whole_from = whole[0] if whole is not None else 0
        self.life: Life | None = whole[1].life if whole is not None else None
        self._reached = 0

    def reach(self, number: int, told: Life | None) -> None:
        """The entry of this number was read; it may have told of a life."""
        self._reached = number
        if told is not None and number >= self.whole_from:
            self.life = told

    def may_be_cut(self) -> bool:
        """Whether a power cut may have taken entries behind that one. Nothing before the whole private state: it was
        written when all of that was on disk.
        """
        return self._reached >= self.whole_from and may_be_cut(self._folder, self.life, self._reached)
