"""The handshake beside an event loop: a new lane and one hello, in a thread that can be called off."""

from __future__ import annotations

import socket
import threading

from solewriter.agents.greeting import greet
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import StateFolder
from solewriter.shared.handshake import Hello, Welcome
from solewriter.shared.lane import Lane
from solewriter.shared.system.forks import forks_held_off


class Greeting:
    """One hello to say. The lane is closed by whoever ends it: the thread when it fails, the loop when it gives up;
    otherwise it is the loop's to take.
    """

    def __init__(self, folder: StateFolder, hello: Hello, timeout_s: float) -> None:
        self.lane: Lane | None = None
        self._folder = folder
        self._hello = hello
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None  # under a descriptor that only this class closes
        self._given_up = False
        self._welcomed = False

    def say(self) -> Welcome:
        """In the thread: make the lane, offer it, hear the answer. Raises what `greet` does."""
        with forks_held_off:  # a child that came before it is noted would not close it
            lane = self.lane = Lane()
        try:
            welcome = greet(self._folder, self._hello, lane, self._timeout_s, self._keep_connection)
            with self._lock:
                self._check_wanted()
                self._welcomed = True
            return welcome
        except BaseException:
            lane.close()
            raise
        finally:
            with self._lock:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None

    def _keep_connection(self, connection: socket.socket) -> None:
        with self._lock:
            self._check_wanted()
            self._connection = connection.dup()

    def _check_wanted(self) -> None:
        if self._given_up:
            raise EngineUnavailable("nobody waits for this connection any more", final=True)

    def give_up(self) -> None:
        """From the loop: nobody wants the lane. A thread that waits for the engine's answer stops waiting."""
        with self._lock:
            self._given_up = True
            if self._connection is not None:
                try:
                    self._connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the engine hung up first
            if self._welcomed and self.lane is not None:
                self.lane.close()

    def forsake(self) -> None:
        """In a forked child, where the thread does not exist and may have held the lock: keep nothing open."""
        if self.lane is not None:
            try:
                self.lane.close()
            except OSError:
                pass  # the thread was just closing it
        if self._connection is not None:
            self._connection.close()
