"""The status of an engine for people: aligned lines, each fact with its name, and an exit code for scripts.

Plain text, never wrapped: it is read in pipes and logs too. Names come from the users' models and from paths, so what
is not printable in them is escaped before a terminal sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta

import msgspec

from solewriter.agents.status import EngineStatus
from solewriter.shared.config import KIB

FINE, DEGRADED, NOT_THERE = 0, 1, 2
Fact = tuple[str, Sequence[str]]  # a name, and the lines beside it


def exit_code(status: EngineStatus) -> int:
    """FINE: it serves, and all of it is readable. NOT_THERE: nothing serves, and nothing is there to read. Between the
    two it is DEGRADED.
    """
    if status.engine == "alive" and not status.problems:
        return FINE
    if status.engine in ("absent", "stopped") and not status.problems:
        return NOT_THERE
    return NOT_THERE if status.engine == "gone" and not status.memory_segments else DEGRADED


def status_json(status: EngineStatus) -> str:
    """One JSON object: the fields of the status. Paths that are no UTF-8 are escaped like other surrogates."""
    return json.dumps(msgspec.to_builtins(status))


def status_lines(status: EngineStatus) -> str:
    """Lines for a terminal."""
    facts = [(name, lines) for name, lines in _facts(status) if lines]
    width = max(len(name) for name, _ in facts)
    return "\n".join(
        f"{name if number == 0 else '':<{width}}  {printable(line)}"
        for name, lines in facts
        for number, line in enumerate(lines)
    )


def printable(text: str) -> str:
    """Text that moves no cursor and sets no colour."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _facts(status: EngineStatus) -> Iterator[Fact]:
    yield "folder", [status.folder]
    yield "engine", [": ".join(filter(None, (status.engine, status.detail)))]
    yield "problems", status.problems
    yield "process", _process(status)
    if status.starting_pid is not None:
        yield "next engine", [f"pid {status.starting_pid} recovers, and will follow this one"]
    if status.heartbeat_age_s is not None:
        every = "" if status.heartbeat_period_s is None else f", due every {status.heartbeat_period_s:g} s"
        yield "heartbeat", [f"{_span(status.heartbeat_age_s)} ago{every}"]
    yield "durability", [status.durability] if status.durability is not None else []
    if status.revision is not None:
        entry = "" if status.journal_entry is None else f", journal entry {status.journal_entry:,}"
        yield "revision", [f"{status.revision:,}{entry}, history {status.history_id}"]
    yield "entities", _align([(name, f"{count:,}") for name, count in (status.entities or {}).items()])
    if status.sessions_remembered is not None:
        yield "sessions", [f"{status.sessions_remembered:,} remembered, {status.sessions_connected:,} connected"]
    if status.deciding is not None:
        yield "deciding", [f"{status.deciding}: taken up, and no outcome of it is in the journal"]
    elif status.last_request is not None:
        yield "last request", [status.last_request]
    yield "memory", _memory(status)
    if status.leftover_bytes:
        yield "left over", [f"{_size(status.leftover_bytes)} of dead engines; the next start frees them"]
    if status.journal_files:
        yield "journal", [f"{_size(status.journal_bytes)} in {_plural(status.journal_files, 'file')}"]


def _process(status: EngineStatus) -> list[str]:
    if status.pid is None:
        return []
    up = "" if status.uptime_s is None else f", up {_span(status.uptime_s)}"
    return [f"pid {status.pid}, epoch {status.epoch}{up}"]


def _memory(status: EngineStatus) -> list[str]:
    if not status.memory_segments:
        return []
    parts = {
        "heap": status.memory_heap_bytes,
        "table": status.memory_table_bytes,
        "index": status.memory_index_bytes,
        "other": status.memory_other_bytes,
    }
    if status.memory_held_bytes:
        parts["held by older snapshots"] = status.memory_held_bytes
    whole = f"{_size(status.memory_bytes)} in {_plural(status.memory_segments, 'segment')} in {status.memory_dir}"
    return [whole, *_align([(name, _size(size)) for name, size in parts.items()])]


def _align(rows: list[tuple[str, str]]) -> list[str]:
    """Names to the left, figures to the right."""
    shown = [(printable(name), figure) for name, figure in rows]
    names = max((len(name) for name, _ in shown), default=0)
    figures = max((len(figure) for _, figure in shown), default=0)
    return [f"{name:<{names}}  {figure:>{figures}}" for name, figure in shown]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < KIB:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= KIB
    return f"{count:,.1f} GiB"


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
