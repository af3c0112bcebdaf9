"""What the figures of a run depend on besides the code: the machine, and the versions of what is measured."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

from solewriter.shared.build import BUILD

VERSIONED = ("solewriter", "pydantic", "uvloop", "msgspec")  # the distributions whose version moves the figures


def machine(folder: Path) -> dict[str, str | int]:
    """What the figures depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "build": BUILD,
        **{name: metadata.version(name) for name in VERSIONED},
        "journal_on": file_system(folder),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of rivals' distributions, of SQLite and of the Redis server, or that they are not here."""
    found = {"sqlite": sqlite3.sqlite_version, "redis-server": "not here"}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not here"
    if program := shutil.which("redis-server"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        found["redis-server"] = next((word[2:] for word in said.split() if word.startswith("v=")), "of some version")
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """Its type: `power` costs nothing on one that lives in memory, and the reader of a table must see that."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
