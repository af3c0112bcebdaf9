"""The time that deciding one request may take, or making one stored entity anew for another class: a model whose
validator loops or sleeps must not hang everybody.

A timer ticks while turns are decided or entities are made, and stops when none was for a whole tick, so that an idle
engine sleeps; a turn pays for a look at a flag, a request for nothing. The handler of its signal runs in the main
thread, between two steps of whatever runs there, and looks down the stack: only where it finds the call that decides,
and the same call as twice before, it raises. So it can interrupt nothing else, whatever the moment: behind that call's
end its frame is gone. What a model does with a bare `except` meets it again at the next tick. A loop in C that runs no
Python is not interrupted: that is a hang, and the supervisor's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TypeVar, TypeVarTuple

from solewriter.shared.config import HURRY, HURRY_TICK_S
from solewriter.shared.kinds.kind import Kind

T = TypeVar("T")
Given = TypeVarTuple("Given")

SIGHTINGS = 3  # of one call: one tick after the other, so that it ran for two whole ones


class Overtime(BaseException):
    """It took too long, as its words say. Raised in the middle of a model's code, where no `except Exception` may keep
    it.
    """

    def __init__(self, why: str, *, alone: bool = False) -> None:
        super().__init__(why)
        self.alone = alone  # the innermost watched call ran for a whole tick: it is to blame, not what was before it


def run_watched(deed: Callable[[*Given], T], *given: *Given) -> T:
    """Do it, for no longer than the time budget allows: this is the call that is looked for. In this file, which is
    never compiled, because compiled code has no frames.
    """
    return deed(*given)


class TimeBudget:
    """Watches calls in the main thread; each may take `budget_s`, and at most half of that more."""

    def __init__(self, budget_s: float, watched: CodeType = run_watched.__code__) -> None:
        self._budget_s = budget_s
        self._why = f"it did not come to an end within {budget_s:g} s (decide_timeout_s): a validator loops or waits"
        self._whole_tick_s = self._tick_s = budget_s / (SIGHTINGS - 1)
        self._watched = watched
        self._call: FrameType | None = None
        self._call_s = 0.0  # between the first and the last time that it was seen
        self._part: FrameType | None = None  # the innermost one
        self._part_s = 0.0
        self.endless: set[Kind] = set()  # classes that did not come to an end with one of their entities
        self._installed = False
        self._used = False
        self._turn = False  # one is decided, and any moment such a call may follow
        self._stopped = False  # and can be started, because `install` was called

    def install(self) -> None:
        """Take the process's alarm signal. Only in a process of our own, and in its main thread."""
        signal.signal(signal.SIGALRM, self._tick)
        self._installed = self._stopped = True

    def end(self) -> None:
        """No such calls follow. An interpreter that ends lets go of its handlers: then the signal would kill it."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def use(self) -> None:
        """Such a call follows, at once."""
        self._used = True
        if self._stopped:
            self._stopped = False
            signal.setitimer(signal.ITIMER_REAL, self._tick_s, self._tick_s)

    def begin_turn(self) -> None:
        """Any number of such calls follow, until `end_turn`."""
        self._turn = True
        self.hurry(False)
        self.use()

    def end_turn(self) -> None:
        """A commit may take its time."""
        self._turn = False

    def hurry(self, hurries: bool) -> None:
        """From now on in a turn: whether parts of a call that are watched by themselves have a part of the time each,
        because one like them did not come to an end.
        """
        tick_s = self._whole_tick_s
        if hurries:
            tick_s = min(tick_s, max(tick_s / HURRY, HURRY_TICK_S))
        if tick_s > self._tick_s:  # whatever interrupts this in the middle, a tick counts for no more than it took
            self._pace(tick_s)
            self._tick_s = tick_s
        elif tick_s < self._tick_s:
            self._tick_s = tick_s
            self._pace(tick_s)

    def _pace(self, tick_s: float) -> None:
        if self._installed:
            signal.setitimer(signal.ITIMER_REAL, tick_s, tick_s)

    def _tick(self, _: int, frame: FrameType | None) -> None:
        call = part = None  # the outermost one: what is watched by itself may be a part of it
        while frame is not None:
            if frame.f_code is self._watched:
                call, part = frame, part or frame
            frame = frame.f_back
        self._call_s = self._call_s + self._tick_s if call is self._call else 0.0
        self._part_s = self._part_s + self._tick_s if part is self._part else 0.0
        self._call, self._part = call, part
        if call is not None:
            hurried = self._tick_s < self._whole_tick_s and part is not call
            if self._call_s >= self._budget_s or (hurried and self._part_s >= (SIGHTINGS - 1) * self._tick_s):
                raise Overtime(self._why, alone=self._part_s >= self._tick_s)
        elif not (self._used or self._turn):
            self._stopped = True
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._used = False
