"""Has checkpoints made by a process beside the engine, and is what that process does, which begins in `workshop`.

It is started for the first checkpoint and stays for the next ones: an interpreter with all it needs takes three times
as long to start as a small checkpoint to make. Each order is carried out in a thread of its own, which may lower its
own priority. The process ends when nothing was asked of it for a while, and when its engine has gone; if it is killed,
nothing but an unfinished file is left, which goes then, or with the next start.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import msgspec

from solewriter.engine_proc.channel import Channel, NotInTime
from solewriter.engine_proc.checkpointing.checkpoint import EngineGone, Made, Order, make
from solewriter.shared.config import CHECKPOINT_NICE, MAKER_IDLE_S, MAKER_WORDS_MAX
from solewriter.shared.errors import SolewriterError, in_words
from solewriter.shared.folder import legible
from solewriter.shared.system.interpreter import interpreter


class NotMade(SolewriterError):
    """A checkpoint was not made; the message says why."""


class Answer(msgspec.Struct, frozen=True):
    """What an order led to: a checkpoint, or why there is none."""

    made: Made | None = None
    why: str = ""  # it was not


class Maker:
    """Has checkpoints made in a child process, one at a time. The child inherits `descriptors`, by which paths may go.
    Used by one thread, and closed by any.
    """

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = descriptors
        self._ends = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __call__(self, order: Order) -> Made:
        """Raises EngineGone after `close`, NotMade if it failed."""
        status = 0
        while not status:  # one that had nothing to do for long may be ending just now
            child = self._living_child()
            answer = _ask(child, order)
            if answer is not None and answer.made is not None:
                return answer.made
            if answer is not None:
                raise NotMade(answer.why)
            status = child.wait()
        if self._closed:
            raise EngineGone("the engine ends")
        raise NotMade(f"the process that makes checkpoints ended with status {status}")

    def _living_child(self) -> subprocess.Popen[bytes]:
        """The process, started where there is none. Raises EngineGone after `close`."""
        with self._ends:
            if self._closed:
                raise EngineGone("the engine ends")
            if self._child is not None and self._child.poll() is not None:
                _close_pipes(self._child)
                self._child = None
            if self._child is None:
                self._child = subprocess.Popen(
                    [*interpreter(), "-m", "solewriter.engine_proc.checkpointing.workshop", str(CHECKPOINT_NICE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=self._descriptors,
                    env={**os.environ, "PYTHONSAFEPATH": "1"},
                )
            return self._child

    def close(self) -> None:
        """End the process."""
        with self._ends:
            self._closed = True
            child = self._child
            if child is not None and child.returncode is None:
                child.kill()


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    """Close the pipes of one that has ended."""
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()


def _ask(child: subprocess.Popen[bytes], order: Order) -> Answer | None:
    """Give the process an order, and return its answer; None if it ends instead."""
    assert child.stdin is not None
    assert child.stdout is not None
    channel = Channel(child.stdout.fileno(), child.stdin.fileno())
    try:
        channel.send(order)
    except BrokenPipeError:
        return None
    return channel.receive(Answer)


# --- the process ------------------------------------------------------------------------------------------------------


def carry_out(order: Order) -> Answer:
    """Make what is ordered in this thread, at the order's priority."""
    own = os.getpriority(os.PRIO_PROCESS, 0)  # of a thread, on Linux; nobody may raise it again
    os.setpriority(os.PRIO_PROCESS, 0, max(own, order.nice))
    try:
        return Answer(made=make(order, lambda: os.getppid() == order.engine))
    except (OSError, SolewriterError) as error:
        return Answer(why=legible(in_words(error))[:MAKER_WORDS_MAX])


def main() -> int:
    """Take orders from standard input until its end; say on standard output what became of them."""
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # the engine's own bound is against hostile frames
    channel = Channel(sys.stdin.fileno(), sys.stdout.fileno())
    while (order := _next_order(channel)) is not None:
        done: list[Answer] = []
        making = threading.Thread(target=lambda order=order, done=done: done.append(carry_out(order)))
        making.start()
        making.join()
        if not done:
            return 1  # what went wrong is no error that it knows, and was said
        try:
            channel.send(done[0])
        except BrokenPipeError:  # the engine went meanwhile
            return 0
    return 0


def _next_order(channel: Channel) -> Order | None:
    """None if nothing was asked for long, or the engine has gone."""
    try:
        return channel.receive(Order, MAKER_IDLE_S)
    except NotInTime:
        return None
