"""The recovered history: what the journal in a state folder holds, as the list of all requests in their one order.

Read offline, without the engine and without its code: every entry follows the one before it by number and checksum,
or this is no history. What a torn last entry would have said was never acked. Refused requests and those that changed
nothing are in it too, because the journal keeps every outcome.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pydantic import ValidationError

from solewriter.agents.testing.lines import APPLIED, REFUSED, refusal_name
from solewriter.agents.testing.steps import Fields, Key, Kinds, kinds_of, plain
from solewriter.shared import record
from solewriter.shared.entity import Entity
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.entry import FILE_HEADER_BYTES, Entry, Outcome
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.request_ids import default_id, session_number
from solewriter.shared.wire import Status

ENGINES_OWN = session_number("engine")


class Change(NamedTuple):
    """One record: an entity as a request left it; content None where it was deleted."""

    key: Key
    version: int
    revision: int
    content: Fields | None
    reason: str
    actor: str
    time_us: int


class Decided(NamedTuple):
    """One request as the journal has it: what was told, and its records if it changed something.

    `outcome` is "" for records without a journaled outcome. `own_id` is the user's request id.
    """

    session: int
    sequence: int
    own_id: str
    outcome: str
    revision: int
    versions: tuple[int, ...]
    error: str
    found: int | None
    allowed: tuple[str, ...] | None
    changes: tuple[Change, ...]

    @property
    def request_id(self) -> str:
        return self.own_id or default_id(self.session, self.sequence)

    @property
    def told(self) -> tuple[object, ...]:
        """All that a reply says."""
        return self.outcome, self.revision, self.versions, self.error, self.found, self.allowed

    def __str__(self) -> str:
        where = f"{self.request_id} at revision {self.revision}"
        return f"{where}: {', '.join(f'{change.key} v{change.version}' for change in self.changes) or 'no change'}"


History = list[Decided]


def read_history(
    state: str | os.PathLike[str],
    models: Iterable[type[Entity]] = (),
    *,
    archives: Iterable[str | os.PathLike[str]] = (),
) -> History:
    """The history of a state folder whose engine is stopped or idle, from its first revision on. Of an engine that
    trims its journal, files that are not there any more may be in `archives`.

    Raises JournalCorrupt where it has a hole, or begins later than with the first entry.
    """
    kinds, names, schemas = kinds_of(models), [], []
    history: History = []
    for entry in read_entries(*map(Path, archives), Path(state)):
        names += entry.private.kinds
        schemas += entry.private.schemas
        changes: dict[tuple[int, int], list[Change]] = {}
        for body in entry.records():
            found = record.unpack(body)
            changes.setdefault((found.session, found.sequence), []).append(_change(found, names, schemas, kinds))
        for outcome in entry.private.outcomes:
            history.append(_decided(outcome, changes.pop((outcome.session, outcome.sequence), [])))
        for (session, sequence), orphaned in changes.items():
            revision = orphaned[0].revision
            history.append(Decided(session, sequence, "", "", revision, (), "", None, None, tuple(orphaned)))
    return history


def read_entries(*folders: Path) -> Iterator[Entry]:
    """Every journal entry, oldest first, of the files in these folders together; where two have one, it is read from
    the later folder. Raises JournalCorrupt where an entry does not follow the one before it.
    """
    files = {path.name: path for folder in folders for path in folder.glob("journal-*.log")}
    number, crc = 0, None
    for _, path in sorted(files.items()):
        buffer = path.read_bytes()
        start = entries.read_file_header(path, buffer)
        if start.first != number + 1 or (crc is not None and start.previous_crc != crc):
            raise JournalCorrupt(f"{path.name} does not follow entry {number}", place=f"{path.name}:0")
        at = FILE_HEADER_BYTES
        while (unpacked := entries.unpack(buffer, at)) is not None:
            entry, previous, behind = unpacked
            if entry.number != number + 1 or (crc is not None and previous != crc):
                raise JournalCorrupt(f"an entry does not follow entry {number}", place=f"{path.name}:{at}")
            yield entry
            number, crc, at = entry.number, entry.crc, behind
        if entries.later_entry(buffer, at, number) is not None:
            raise JournalCorrupt(f"{path.name} is damaged behind entry {number}", place=f"{path.name}:{at}")


def _change(found: record.Record, names: list[str], schemas: list[Schema], kinds: Kinds) -> Change:
    kind, content = names[found.kind], None
    if not found.deleted:
        values = schemas[found.schema].values(found.key, found.version, found.time_us, found.payload)
        content = _content(values, kinds.get(kind))
    key = Key(kind, found.key)
    return Change(key, found.version, found.revision, content, found.reason, found.actor, found.time_us)


def _content(values: dict[str, Any], model: type[Entity] | None) -> Fields:
    """The stored fields in the form in which contents are compared; as they are, where the model refuses them."""
    if model is not None:
        try:
            return plain(model.model_validate(values))
        except ValidationError:
            pass  # then it equals nothing that the model made, and the checker says so
    stored: Fields = msgspec.to_builtins(values)
    return stored


def _decided(outcome: Outcome, changes: list[Change]) -> Decided:
    status, detail = outcome.status, outcome.detail
    versions: tuple[int, ...] = ()
    error, found, allowed = "", None, None
    if status == Status.APPLIED:
        versions = tuple([place[0] for place in detail])
    else:
        name, _, details = detail
        error = refusal_name(name, details)
        found = details.get("version")
        allowed = tuple(details["allowed"]) if "allowed" in details else None
    told = {Status.APPLIED: APPLIED, Status.REFUSED: REFUSED}.get(status, f"status {status}")
    return Decided(
        outcome.session, outcome.sequence, outcome.request_id or "", told, outcome.revision,
        versions, error, found, allowed, tuple(changes),
    )  # fmt: skip
