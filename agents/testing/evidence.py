"""What one process asked and was told, in a file of its own that outlives it: the agents' side of the history.

One JSON line before a request is sent and one after its reply came, each a single unbuffered write, so a kill takes
back no line and leaves at most a part of one behind, which claims nothing. Times are of CLOCK_MONOTONIC, which all
processes of a machine share. A request without an id of the user's own gets the name of its call as the reason of its
mutations, and that is in every record: so what was applied is recognised even where nobody read the reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from solewriter.agents.answers import Outcome
from solewriter.agents.client import Client
from solewriter.agents.reader import Reader
from solewriter.agents.reading.change import Change
from solewriter.agents.snapshot import Snapshot
from solewriter.agents.testing.lines import (
    APPLIED,
    FENCED,
    REFUSED,
    UNKNOWN,
    Answer,
    Call,
    Fault,
    Followed,
    Line,
    Look,
    marked,
    name_of,
    refusal_name,
)
from solewriter.agents.testing.steps import (
    ANY_ID,
    SHIPPED,
    Fields,
    Key,
    condition_of,
    digest,
    kinds_of,
    plain,
    step_of,
)
from solewriter.shared.entity import Entity
from solewriter.shared.errors import Refused, SolewriterError
from solewriter.shared.mutations import Applied, GuardMutation, Mutation, NotApplied, Reply


class Evidence:
    """An append-only log, and the calls that it keeps. One for each process, in a new file, whose name no other process
    of the run has in another folder; not shared by threads.
    """

    def __init__(self, path: str | os.PathLike[str], models: Iterable[type[Entity]] = ()) -> None:
        self.path = Path(path)
        self.name = name_of(self.path)
        self._models = (*SHIPPED, *models)
        self._count = 0
        self._newest: Call | None = None
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    # --- around a client's calls -------------------------------------------------------------------------------------

    def submit(
        self,
        client: Client,
        *mutations: Mutation,
        guards: Sequence[GuardMutation] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """`client.submit`, kept. Raises what it raises, after that is kept too."""
        call, marked = self.asking(mutations, guards, request_id, client=client)
        try:
            reply = client.submit(*marked, guards=guards, request_id=request_id, timeout_s=timeout_s)
        except SolewriterError as error:
            self.failed(call, error)
            raise
        self.told(call, reply)
        return reply

    def submit_many(
        self, client: Client, mutations: Iterable[Mutation], *, window: int = 256, timeout_s: float | None = None
    ) -> Iterator[Reply]:
        """`client.submit_many`, kept: each call when it is about to be sent, each answer when it is handed out."""
        waiting: list[Call] = []

        def source() -> Iterator[Mutation]:
            for mutation in mutations:
                call, (marked,) = self.asking((mutation,), client=client)
                waiting.append(call)
                yield marked

        answered = 0
        try:
            for reply in client.submit_many(source(), window=window, timeout_s=timeout_s):
                self.told(waiting[answered], reply)
                answered += 1
                yield reply
        except SolewriterError as error:
            for call in waiting[answered:]:
                self.unknown(call, type(error).__name__)
            raise

    def resolve(self, client: Client, request_id: str) -> Outcome:
        """`client.outcome` of the newest call, whose outcome was unknown, kept as its answer."""
        call, outcome = self._newest, client.outcome(request_id)
        assert call is not None, "nothing was asked yet"
        match outcome:
            case Applied(reply):
                self.told(call, reply)
            case NotApplied():
                self._write(Answer(call.number, time.monotonic_ns(), REFUSED, error="NotApplied"))
            case Refused():
                self.failed(call, outcome, request_id)
        return outcome

    # --- reading -----------------------------------------------------------------------------------------------------

    def look(self, source: Reader | Snapshot, keys: Iterable[Key] | None = None) -> Look:
        """Keep what a new snapshot of a reader, or a held snapshot, says: of these entities, or of all."""
        at = time.monotonic_ns()
        snap = source.snapshot() if isinstance(source, Reader) else source
        found = self._all(snap) if keys is None else self._some(snap, keys)
        line = Look(at, snap.revision, found, whole=keys is None, held=source is snap)
        self._write(line)
        return line

    def _all(self, snap: Snapshot) -> dict[str, dict[str, tuple[int, str]]]:
        return {
            model.kind_name: {entity.id: seen(plain(entity)) for entity in snap.entities(model)}
            for model in self._models
        }

    def _some(self, snap: Snapshot, keys: Iterable[Key]) -> dict[str, dict[str, tuple[int, str]]]:
        kinds = kinds_of(self._models)
        found: dict[str, dict[str, tuple[int, str]]] = {}
        for kind, id in keys:
            entity = snap.get(kinds[kind], id)
            found.setdefault(kind, {})[id] = seen(plain(entity) if entity is not None else None)
        return found

    def followed(
        self, changes: Sequence[Change], since: int | None = None, *, kind: type[Entity] | None = None
    ) -> None:
        """Keep what a watch brought: behind what it brought before, or behind this revision. `kind` is the one that the
        watch was asked for, if it was not all; a watch with a `where` is nothing that can be compared.
        """
        told = [
            (change.kind, change.id, change.version, change.revision, "" if new is None else digest(plain(new)))
            for change, new in ((change, change.new) for change in changes)
        ]
        self._write(Followed(time.monotonic_ns(), tuple(told), since, kind.kind_name if kind is not None else ""))

    # --- one line ----------------------------------------------------------------------------------------------------

    def asking(
        self,
        mutations: Sequence[Mutation],
        guards: Sequence[GuardMutation] = (),
        request_id: str | None = None,
        *,
        client: Client | None = None,
    ) -> tuple[Call, list[Mutation]]:
        """Keep a call that is about to be sent, by this client if it has claimed anything. Send the mutations that this
        returns: they carry its name.
        """
        self._count += 1
        name = request_id or f"{self.name}:{self._count}"
        steps = tuple([step_of(mutation) for mutation in mutations])
        conditions = tuple([condition_of(guard) for guard in guards])
        held = {step.key: client.holds(step.kind, step.id) if client is not None else None for step in steps}
        tokens = tuple([(key, token) for key, token in held.items() if token is not None])
        call = Call(self._count, time.monotonic_ns(), name, request_id is not None, steps, conditions, tokens)
        self._newest = call
        self._write(call)
        return call, [*mutations] if call.own else [marked(mutation, name) for mutation in mutations]

    def told(self, call: Call, reply: Reply) -> None:
        """Keep the reply to a call."""
        if reply.error is not None:
            self.failed(call, reply.error, reply.request_id, reply.revision)
        else:
            results = reply.results
            claims = any(step.id == ANY_ID for step in call.steps)
            claimed = [Key(result.kind, result.id) for result in results if claims]
            versions = tuple([result.version for result in results])
            self.applied(call, reply.request_id, reply.revision, versions, claimed)

    def applied(
        self,
        call: Call,
        request_id: str,
        revision: int,
        versions: tuple[int, ...],
        claimed: Iterable[Key] = (),
    ) -> None:
        at = time.monotonic_ns()
        self._write(Answer(call.number, at, APPLIED, request_id, revision, versions, claimed=tuple(claimed)))

    def failed(self, call: Call, error: SolewriterError, request_id: str = "", revision: int | None = None) -> None:
        """Keep how a call failed: refused by the engine, refused here (then without a request id), or not known."""
        if not isinstance(error, Refused):
            self.unknown(call, type(error).__name__)
            return
        name = refusal_name(type(error).__name__, error.details)
        if name == FENCED:
            request_id = ""  # the session is another client's now: nothing was decided about this request
        self._write(
            Answer(
                call.number, time.monotonic_ns(), REFUSED, request_id, revision, (), name,
                error.details.get("version"), error.details.get("allowed"), _version(error.current),
            )
        )  # fmt: skip

    def unknown(self, call: Call, error: str) -> None:
        self._write(Answer(call.number, time.monotonic_ns(), UNKNOWN, error=error))

    def fault(self, what: str) -> None:
        """Keep that something was done to the engine or to an agent. Right before it is done."""
        self._write(Fault(time.monotonic_ns(), what))

    def _write(self, line: Line) -> None:
        os.write(self._fd, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Nothing more will be kept. Harmless when closed before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def seen(fields: Fields | None) -> tuple[int, str]:
    """An entity in a look."""
    return (0, "") if fields is None else (fields["version"], digest(fields))


def _version(current: Entity | Mapping[str, object] | None) -> int | None:
    if current is None:
        return None
    version = current["version"] if isinstance(current, Mapping) else current.version
    assert isinstance(version, int)
    return version
