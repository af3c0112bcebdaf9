"""One decoder under a coverage-guided fuzzer: `python target.py NAME -runs=N ...`, the rest goes to libFuzzer.

It ends with a status that is not 0 where a decoder raises anything but the errors that it documents. Needs `atheris`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found]  # nobody needs it for anything else

with atheris.instrument_imports(include=["pickle", "solewriter"]):
    import pickle

    from solewriter.shared import handshake, record, wire, wirecheck, wireform
    from solewriter.shared.config import MIB, Limits
    from solewriter.shared.errors import BadRequest, JournalCorrupt, LayoutMismatch, RequestTooLarge
    from solewriter.shared.journal import entry
    from solewriter.shared.memory import catalog

LIMITS = Limits()


def frames(data: bytes) -> None:
    try:
        requests = wire.unpack_frame(data)
    except BadRequest:
        return
    checked(requests)


def careful_frames(data: bytes) -> None:
    """The unpickler written in Python, whose every opcode can be seen."""
    try:
        requests = wire._CarefulUnpickler(wire.io.BytesIO(data)).load()
    except (BadRequest, MemoryError, RecursionError):
        return
    except Exception:  # as `unpack_frame` does
        return
    if type(requests) is list:
        checked(requests)


def checked(requests: list[object]) -> None:
    budget = LIMITS.frame_nodes_max
    for request in requests:
        try:
            budget = wirecheck.check_request(request, budget, LIMITS)
        except (BadRequest, RequestTooLarge):
            budget -= wirecheck.count_parts(request, budget)
            continue
        assert pickle.loads(pickle.dumps(request)) is not None
        assert len(wireform.digest(request)) == 16  # type: ignore[arg-type]  # it was checked


def words(data: bytes) -> None:
    for unpack in (handshake.unpack_hello, handshake.unpack_welcome, lambda data: wire.unpack_replies(bytearray(data))):
        try:
            unpack(data)
        except (BadRequest, LayoutMismatch):
            pass


def stored(data: bytes) -> None:
    try:
        found = entry.unpack(data, 0)
        for body in found[0].records() if found else ():
            record.unpack(body)
        entry.later_entry(data, 0, 0)
        entry.read_file_header(Path("journal-x.log"), data)
    except (JournalCorrupt, LayoutMismatch):
        pass
    try:
        catalog.unpack(data)
    except LayoutMismatch:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {one.__name__: one for one in (frames, careful_frames, words, stored)}

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (384 * MIB, 384 * MIB))  # a memo's place far out is refused in no time
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()
