"""A Redis server for one measurement: no TCP port, a UNIX socket in a folder of its own, gone with this process."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from solewriter.bench.kit.optional import NotHere, required
from solewriter.bench.kit.scratch import beside

SOCKET = "redis.sock"
START_TIMEOUT_S = 5.0
POLL_S = 0.01


def redis_server(folder: Path, ending: ExitStack, **options: str) -> Any:
    """A client of a new server, which saves nothing unless options say so. Raises NotHere."""
    required("redis")
    program = shutil.which("redis-server")
    if program is None:
        raise NotHere("no redis-server on PATH")
    folder.mkdir(parents=True)
    settings = {"port": "0", "dir": str(folder), "unixsocket": SOCKET, "unixsocketperm": "700", "save": "", **options}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    ending.enter_context(beside([program, *words]))
    client = redis_client(folder, ending)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(client):
        if time.monotonic() > deadline:
            raise NotHere(f"{program} did not answer in {START_TIMEOUT_S} s")
        time.sleep(POLL_S)
    return client


def redis_client(folder: Path, ending: ExitStack) -> Any:
    """A client of the server of this folder. Raises NotHere."""
    client = required("redis").Redis(unix_socket_path=socket_of(folder, ending))
    ending.callback(client.close)
    return client


def socket_of(folder: Path, ending: ExitStack) -> str:
    """A short name of the server's socket, for any process of this user while this one keeps the folder open: an
    address holds 107 bytes, not a path.
    """
    within = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ending.callback(os.close, within)
    return f"/proc/{os.getpid()}/fd/{within}/{SOCKET}"


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except required("redis").exceptions.ConnectionError:
        return False
