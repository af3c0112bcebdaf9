"""Keeping an engine there: its process is launched, looked at while it serves, and followed by another when it died.

One thread waits for the process to end, and looks at its heartbeat meanwhile. There are never two processes: the next
one is started when the last one was waited for, and it owns the folder only if it gets the lock.
"""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from solewriter.engine_proc.owner import exits
from solewriter.engine_proc.owner.backoff import Backoff
from solewriter.engine_proc.owner.launch import Child
from solewriter.engine_proc.owner.listed import by_kind
from solewriter.engine_proc.owner.notices import ending, say
from solewriter.engine_proc.owner.orders import Orders, Ready
from solewriter.engine_proc.owner.pulse import Pulse
from solewriter.engine_proc.recovery.leftovers import remove_orphans
from solewriter.engine_proc.recovery.quarantine import last_words
from solewriter.shared import failpoint
from solewriter.shared.config import STOP_MARGIN_S, Limits
from solewriter.shared.entity import Entity
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, Locked
from solewriter.shared.folder import StateFolder


class Stopping(Exception):
    """`stop` was called before the next process began."""


class Supervising(ABC):
    """Which process serves a folder now, or why none does any more. What both ways to supervise have in common."""

    def __init__(
        self, folder: StateFolder, limits: Limits, models: dict[str, type[Entity]], *, replace_hung: bool
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.replace_hung = replace_hung
        self.restarts = 0
        self.hung = False
        self.failure: EngineUnavailable | None = None
        self._models = models
        self._known = models  # but those that no engine has taken so far
        self._child: Child | None = None
        self._starting: Child | None = None  # what will be the child, if it comes so far
        self._changed = threading.Condition()  # another child, or none any more
        self._stopping = threading.Event()
        # Set when a supervisor ended. Its thread is not joined: one that Ctrl-C finds in there says that it ended.
        self._unsupervised: threading.Event | None = None
        self._no_room = 0  # so many starts in a row failed for want of it, on disk or in memory
        self._no_start = ""  # why the last one failed, if it did

    @abstractmethod
    def _orders(self, backoff_s: float | None) -> Orders:
        """What the next process is told, so long after the death of the one before. Raises Stopping."""

    # --- a process ---------------------------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """Nothing of an earlier start counts any more. Raises RuntimeError where one is not over."""
        if self.failure is not None and self._child is not None and self._child.ended:
            self._become(None)
        if self._child is not None:
            raise RuntimeError("this engine was started already")
        self._stopping.clear()
        self._models = self._known
        self.failure, self._no_room, self._no_start = None, 0, ""

    def _launch(self, *, backoff_s: float | None = None) -> None:
        """Another process serves: the first one, or so long after the death of the one before. Raises what its start
        does, Stopping.
        """
        child = self._starting = Child()
        try:
            child.begin(partial(self._orders, backoff_s))
            self._become(child)
        except BaseException:
            child.kill()  # it may serve already, where Ctrl-C comes behind `begin`
            if backoff_s is None:  # else the next one finds it
                with suppress(OSError):  # which may be why it failed
                    remove_orphans(self.folder, child.pid)
            raise
        finally:
            self._starting = None  # behind the above: `stop` finds it here, or there

    def _serving(self) -> Child:
        child = self._child
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if child is None:
            raise EngineUnavailable(f"the engine of {self.folder.path} is not running")
        return child

    def _become(self, child: Child | None) -> None:
        with self._changed:
            before, self._child = self._child, child
            self._changed.notify_all()
        if before is not None and before is not child:
            before.close()

    def _await_another(self, child: Child, deadline: float) -> bool:
        """Until another process serves than this one, which died, or none ever will; False at the deadline."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._child is not child or self.failure is not None, max(0.0, deadline - time.monotonic())
            )

    def _make_known(self, models: Sequence[type[Entity]]) -> Ready:
        """What the process that serves says to more models; if it takes them, those that follow it know them, too.
        Raises TypeError, EngineUnavailable.
        """
        before, new = self._models, by_kind(models)
        self._models = {**before, **new}  # first, so that an engine which dies now comes back with them
        deadline = time.monotonic() + self.limits.start_timeout_s
        answer = None
        while answer is None:
            child = self._serving()
            answer = child.register(models, before.values(), self.limits.request_timeout_s)
            if answer is None and not self._await_another(child, deadline):
                path = self.folder.path
                raise EngineUnavailable(f"the engine of {path} died, and did not come back in start_timeout_s")
        if answer.ok:
            self._known, self._models = {**self._known, **new}, {**self._models, **new}
        else:
            self._models = before
        return answer

    def _end(self) -> None:
        """Of the process that serves, if one does. Raises EngineUnavailable."""
        child = self._child
        if child is None:
            return
        if not child.ended:
            child.signal(signal.SIGTERM)
        if (ended := self._unsupervised) is not None:
            ended.wait(self.limits.drain_timeout_s + STOP_MARGIN_S)
            if not ended.is_set() and self.replace_hung and not Pulse(self.folder, child.pid).look()[1]:
                child.kill()  # it hangs, in nobody's hands: that was to be its end anyway
                ended.wait(STOP_MARGIN_S)
            if not ended.is_set():
                raise EngineUnavailable(
                    f"the engine (pid {child.pid}) does not end: look at its state before you kill it"
                )
        self._become(None)
        remove_orphans(self.folder)

    def _end_unsupervised(self) -> None:
        self._stopping.set()
        self._unsupervised = None
        if self._child is not None:
            self._child.kill()
        self._become(None)
        remove_orphans(self.folder)

    # --- supervision -------------------------------------------------------------------------------------------------

    def _have_supervised(self) -> None:
        """From now on, in a thread. Raises RuntimeError where there is none to be had."""
        self._unsupervised = threading.Event()
        supervise = partial(self._supervise, self._unsupervised)
        threading.Thread(target=supervise, name="solewriter-supervisor", daemon=True).start()

    def _supervise(self, ended: threading.Event) -> None:
        """A thread that ended unseen would leave an engine that nobody starts again, and nobody knows of."""
        try:
            self._keep_serving()
        except BaseException as error:
            self._give_up(f"the engine is not supervised any more: {error!r}")
            raise
        finally:
            ended.set()

    def _keep_serving(self) -> None:
        """Wait for the process; start it again when it died, within a budget and ever more slowly."""
        backoff, last = Backoff(self.limits), None
        while (child := self._child) is not None:
            status = self._watched(child)
            if self._stopping.is_set():
                return
            if status == 0 and self._was_drained(child):  # somebody else told it to end
                self._become(None)
                return
            if status in exits.NEVER_RESTART and not self._died_deciding(child):
                moved = f"{self.folder.path} was moved, deleted or replaced under the engine"
                why = moved if status == exits.NOT_OWNER else f"the engine {ending(status)}"
                self._give_up(f"{why}: it would not help to start it again")
                return
            # Behind one that found no room none is counted: nobody knows when there is some. The first one made some.
            short_s = self.limits.restart_backoff_s if self._no_room == 1 else self.limits.restart_backoff_max_s
            backoff_s = short_s if self._no_room else backoff.next_s(time.monotonic())
            if backoff_s is None:
                window_s = self.limits.restart_window_s
                why = f". The last start: {self._no_start}" if self._no_start else ""
                tries = f"was started again {backoff.starts} times in {window_s:.0f} s already"
                self._give_up(f"the engine {ending(status)}, and {tries}: given up{why}")
                return
            if child is not last:
                say(f"the engine (pid {child.pid}) {ending(status)}: another one is started")
                last = child
            if not self._restart(backoff_s):
                return
            if self._stopping.is_set() and self._child is not None:
                self._child.signal(signal.SIGTERM)  # `stop` was called while it started, and told the one before

    def _was_drained(self, child: Child) -> bool:
        """Whether it gave its memory back, as one does that was told to end: a model can exit with status 0, too."""
        return all(own.pid != child.pid for own in self.folder.markers())

    def _died_deciding(self, child: Child) -> bool:
        """Whether a request ended it: a model can exit with any status."""
        words = last_words(self.folder)
        return words is not None and words.pid == child.pid and words.request is not None

    def _watched(self, child: Child) -> int:
        """Its exit status, when it ended. Meanwhile, whether it hangs."""
        pulse = Pulse(self.folder, child.pid)
        while not child.ends_within(self.limits.heartbeat_s):
            silent_s, hands = pulse.look()
            if silent_s > self.limits.hang_timeout_s:
                self._report(child, f"{hands or 'no heartbeat'} for {silent_s:.1f} s")
                if self.replace_hung and pulse.inexcusable_s() > self.limits.hang_timeout_s:
                    self._replace(child)
            elif self.hung:
                say(f"the engine (pid {child.pid}) goes on")
                self.hung = False
        self.hung = False
        return child.wait()

    def _report(self, child: Child, why: str) -> None:
        if not self.hung:
            self.hung = True
            say(f"the engine (pid {child.pid}) hangs: {why}")

    def _replace(self, child: Child) -> None:
        """End it; what follows is the same as after any other death."""
        if not self._stopping.is_set():
            say(f"the engine (pid {child.pid}) is replaced")
            child.kill()

    def _restart(self, backoff_s: float) -> bool:
        """Whether another process serves, or one may after the next try. If not, the owner may have started one itself
        by the time when this returns.
        """
        failpoint.reach("restart.begin")
        final: EngineUnavailable | None = None
        begun, no_room, self._no_room, self._no_start = time.monotonic(), self._no_room, 0, ""
        try:
            self._launch(backoff_s=backoff_s)
            self.restarts += 1
            failpoint.reach("restart.launched")
        except Stopping:
            pass  # the loop ends
        except (EngineStartFailed, Locked, OSError) as error:  # OSError: no descriptor or no process to be had just now
            self._no_start = str(error)
            if isinstance(error, Locked) and self.folder.is_served:
                final = error  # else whoever holds it may fail to start itself, say
            if isinstance(error, EngineStartFailed):
                status = getattr(error, "status", None)
                self._no_room = no_room + 1 if status == exits.NO_ROOM else 0
                if status in exits.NEVER_RESTART and self._models == self._known:
                    final = error
                self._models = self._known  # what no engine has taken may be why
            if final is not None:
                self._fail(final)
            if not self._stopping.is_set():  # or that is why
                say(str(error))  # the loop sees the dead process and backs off
            self._stopping.wait(max(0.0, begun + backoff_s - time.monotonic()))  # if nothing was started that did
        return final is None

    def _give_up(self, why: str) -> None:
        self._fail(EngineUnavailable(why))

    def _fail(self, why: EngineUnavailable) -> None:
        """No other process will serve. The last one stays the child: `stop` gives back what it left in memory."""
        self.failure = why
        with self._changed:
            self._changed.notify_all()
