"""Every room of the engine can be the first one that anybody imports, whatever another one imports before it."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import solewriter.engine_proc
import solewriter.shared

ALONE = """
import asyncio, json, os, sys
import cloudpickle, msgspec, psutil, pydantic.json_schema, uvloop, zlib_ng.zlib_ng  # none of ours, and what takes long

children = {}
for name in json.load(sys.stdin):
    child = os.fork()
    if not child:
        __import__(name)
        os._exit(0)
    children[name] = child
ended = {name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for name, child in children.items()}
print(json.dumps({name: status for name, status in ended.items() if status}))
"""


def rooms() -> list[str]:
    houses = (solewriter.shared, solewriter.engine_proc)
    found = [one.name for house in houses for one in pkgutil.walk_packages(house.__path__, f"{house.__name__}.")]
    return [name for name in found if not name.endswith("__main__")]


def test_each_room_can_be_imported_first() -> None:
    names = rooms()
    assert {"solewriter.engine_proc.decide", "solewriter.engine_proc.coordination.waiting"} < {*names}
    run = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(names), capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == {}, run.stderr
