"""What takes a look at every entity is made a slice at a time, between turns: boards, their views, tallies, projects.

Whoever needs it waits, and so does what their session asked behind it; everybody else is served meanwhile, and what is
written meanwhile is noted in what is being made as in what is there. A small one is there after its first slice, which
it has at once.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Hashable, Iterator

from solewriter.shared.system.garbage import gc_paused

Steps = Iterator[None]


class Unready(Exception):
    """What deciding a request looks at is still being made, or is known to be passed over only now. It was not decided:
    decide it again when that is done.
    """


class Making:
    """What is being made, each a generator that does a little at each step. Truthy while there is something."""

    def __init__(self, slice_s: float) -> None:
        self._slice_s = slice_s
        self._steps: dict[Hashable, Steps] = {}
        self._turn_until: float | None = None  # of the slice that the turn has which is being decided
        self.freezes = False  # this is an engine's process, which froze what its start made (to ask `gc` takes 10 ms)

    def __bool__(self) -> bool:
        return bool(self._steps)

    def begin_turn(self) -> None:
        self._turn_until = None

    def begin(self, what: Hashable, steps: Steps) -> None:
        self._steps[what] = steps

    def soon(self, what: Hashable) -> bool:
        """Whether it is made, with a slice in each turn for what is just needed."""
        if what in self._steps:
            now = time.monotonic()
            if self._turn_until is None:
                self._turn_until = now + self._slice_s
            if now < self._turn_until:
                self._go_on(self._turn_until)
        return what not in self._steps

    def go_on(self) -> None:
        """Make some of it for a slice of time, between two turns; one step at least."""
        self._go_on(time.monotonic() + self._slice_s)

    def _go_on(self, until: float) -> None:
        """What is made is kept: the collector would walk it again and again."""
        with gc_paused():
            try:
                while self._steps:
                    what, steps = next(iter(self._steps.items()))
                    if next(steps, self) is self:
                        del self._steps[what]
                    if time.monotonic() >= until:
                        break
            finally:
                if self.freezes:
                    gc.freeze()

    def finish(self, what: Hashable) -> None:
        """All that is left of it, at once."""
        for _ in self._steps.get(what, ()):
            pass
        self._steps.pop(what, None)

    def forget(self, what: Hashable) -> None:
        """Nobody needs it any more."""
        self._steps.pop(what, None)

    def clear(self) -> None:
        """Nothing is made any more: it may hold what did not happen."""
        self._steps.clear()
