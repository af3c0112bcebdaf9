"""Processes, as the kernel knows them: which one it is, whether it is there still, and how it is.

A pid alone may be another process tomorrow: what names exactly one is the pid and the time at which it started, or a
pidfd of it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from pathlib import Path

PEER = struct.Struct("iII")  # SO_PEERCRED: pid, uid, gid


def start_time_of(pid: int) -> int:
    """Clock ticks after boot at which a process started; 0 if there is none."""
    try:
        return int(_stat_of(pid)[19])
    except OSError:
        return 0


def runs(pid: int, start_time: int) -> bool:
    """Whether exactly this process is there, and not a zombie."""
    try:
        return _is(_stat_of(pid), start_time)
    except OSError:
        return False


def pidfd_of(pid: int, start_time: int) -> int:
    """A descriptor of exactly this process; -1 if it is not there any more. Raises OSError where nobody can tell."""
    if pid < 0:
        return -1
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
        if _is(_stat_of(pid), start_time):
            return pidfd
    except (ProcessLookupError, FileNotFoundError):
        pass  # it is gone
    except BaseException:  # the last descriptor was that one, say
        if pidfd >= 0:
            os.close(pidfd)
        raise
    if pidfd >= 0:
        os.close(pidfd)
    return -1


class Process:
    """Exactly this process, be its pid another's later: looked at through its pidfd, which is closed when nobody has
    this any more, whatever threads looked through it. Raises OSError where nobody can tell.
    """

    _pidfd = -1

    def __init__(self, pid: int, start_time: int) -> None:
        self._pidfd = pidfd_of(pid, start_time)

    @property
    def died(self) -> bool:
        """Whether it is gone."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


def process_state(place: Path) -> str:
    """The kernel's letter for the state of a process or thread, by its folder in /proc; "" when it is gone."""
    try:
        return _stat_in(place)[0].decode()
    except OSError:
        return ""


def peer_of(connection: socket.socket) -> tuple[int, int, int]:
    """Pid, uid and gid of the process at the other end, as the kernel knows them."""
    pid, uid, gid = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return pid, uid, gid


def _stat_of(pid: int) -> list[bytes]:
    return _stat_in(Path(f"/proc/{pid}"))


def _stat_in(place: Path) -> list[bytes]:
    """What the kernel says of a process or thread, from its state on. Raises OSError."""
    return (place / "stat").read_bytes().rpartition(b")")[2].split()


def _is(stat: list[bytes], start_time: int) -> bool:
    return int(stat[19]) == start_time and stat[0] != b"Z"
