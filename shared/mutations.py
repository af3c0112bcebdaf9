"""What an agent can ask for: the mutations and guards, as frozen tagged values, and the reply to a request of them.

A target is an entity (its version is compared) or a `Ref` (nothing is compared), unless `expect` says otherwise: a
number is the version that must be stored, 0 that nothing may be stored, None that anything may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import Any

import msgspec

from solewriter.shared.entity import Entity, Ref
from solewriter.shared.errors import SolewriterError
from solewriter.shared.operations import Operation
from solewriter.shared.request_ids import default_id
from solewriter.shared.where import Where


class FromTarget:
    """The type of FROM_TARGET: compare with the version that the target carries, if it carries one."""

    def __repr__(self) -> str:
        return "FROM_TARGET"


FROM_TARGET = FromTarget()

Expect = int | None | FromTarget
Target = Entity | Ref[Any]


class Op(IntEnum):
    """The mutations' codes on the wire and in records."""

    CREATE = 1
    PUT = 2
    UPDATE = 3
    TRANSITION = 4
    CANCEL = 5
    DELETE = 6
    ALTER = 7
    CLAIM = 8
    COMPLETE = 9
    FAIL = 10
    RELEASE = 11
    RENEW = 12
    REDRIVE = 13
    EXPIRE = 14


class Guard(IntEnum):
    """The guards' codes on the wire."""

    REQUIRE = 1
    REQUIRE_ABSENT = 2
    REQUIRE_FIELDS = 3
    CLAIM = 4
    REQUIRE_NONE = 5


class Create(msgspec.Struct, frozen=True, tag=True):
    """Store a new entity. Refused with AlreadyExists if its id is there."""

    entity: Entity
    reason: str = ""


class Put(msgspec.Struct, frozen=True, tag=True):
    """Create or replace. An entity that was read (version > 0) is compared with its version; a new one replaces
    whatever is there.
    """

    entity: Entity
    expect: Expect = FROM_TARGET
    reason: str = ""


class Update(msgspec.Struct, frozen=True, tag=True):
    """Replace some fields."""

    target: Target
    changes: Mapping[str, Any]
    expect: Expect = FROM_TARGET
    reason: str = ""


class Transition(msgspec.Struct, frozen=True, tag=True):
    """Move along the lifecycle, with changes of other fields that belong to the step."""

    target: Target
    to: str
    changes: Mapping[str, Any] = {}
    expect: Expect = FROM_TARGET
    reason: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the lifecycle's cancelled state, whatever the version, unless `expect` is given. Cancelled already: nothing
    changes.
    """

    target: Target
    expect: int | None = None
    reason: str = ""
    tree: bool = False  # and all that has it for a parent, and so on, but for what is in a final state


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Remove the entity. Created again, its id goes on with the next version."""

    target: Target
    expect: Expect = FROM_TARGET
    reason: str = ""


class Alter(msgspec.Struct, frozen=True, tag=True):
    """Operations on fields, whatever they hold by then: no version is compared, unless `expect` is given."""

    target: Target
    operations: Mapping[str, Operation]
    expect: int | None = None
    reason: str = ""


class Claim(msgspec.Struct, frozen=True, tag=True):
    """Take the best ready tasks of a kind, at most `count`: they are in progress, assigned to `assignee` (the session's
    name). With nothing ready, wait until `until_us` on CLOCK_MONOTONIC, if the request asks for nothing else; one that
    does is answered at once.
    """

    model: type[Entity]
    where: Where = {}
    count: int = 1
    lease_s: float | None = None
    assignee: str | None = None
    until_us: int | None = None
    reason: str = ""


class Complete(msgspec.Struct, frozen=True, tag=True):
    """The work is done: through review to completed, with changes of other fields, the result say."""

    target: Target
    changes: Mapping[str, Any] = {}
    reason: str = ""


class Fail(msgspec.Struct, frozen=True, tag=True):
    """This attempt failed. It is tried again after a while if attempts are left, unless `final`."""

    target: Target
    changes: Mapping[str, Any] = {}
    final: bool = False
    reason: str = ""


class Release(msgspec.Struct, frozen=True, tag=True):
    """Give a claimed task back untried: this attempt does not count."""

    target: Target
    reason: str = ""


class Renew(msgspec.Struct, frozen=True, tag=True):
    """Hold a claimed task for so many seconds from now. Makes no version."""

    target: Target
    lease_s: float
    reason: str = ""


class Redrive(msgspec.Struct, frozen=True, tag=True):
    """Let a failed or interrupted task be tried again, now, as if it never had been."""

    target: Target
    reason: str = ""


class Require(msgspec.Struct, frozen=True, tag=True):
    """A guard: this entity is stored in exactly this version."""

    entity: Entity


class RequireAbsent(msgspec.Struct, frozen=True, tag=True):
    """A guard: no such entity is stored."""

    model: type[Entity] | str
    id: str


class RequireFields(msgspec.Struct, frozen=True, tag=True):
    """A guard: this entity is stored, and its fields are like this (see `where`)."""

    target: Target
    where: Where


class RequireNone(msgspec.Struct, frozen=True, tag=True):
    """A guard: no entity of this kind is like this. Declared columns can be asked."""

    model: type[Entity]
    where: Where


class Unchanged(msgspec.Struct, frozen=True, tag=True):
    """A guard: these fields of this entity are stored as it has them. Refused with VersionConflict."""

    entity: Entity
    fields: tuple[str, ...]


TaskMutation = Claim | Complete | Fail | Release | Renew | Redrive
Mutation = Create | Put | Update | Transition | Cancel | Delete | Alter | TaskMutation
GuardMutation = Require | RequireAbsent | RequireFields | RequireNone | Unchanged


class Result(msgspec.Struct, frozen=True):
    """What became of one mutation's entity."""

    kind: str
    id: str
    version: int
    address: int  # of its record in the memory of the epoch that replied; 0 when the reply is older than that


class Applied(msgspec.Struct, frozen=True):
    """The outcome of a request that was applied: the reply that it got, or would have got."""

    reply: Reply


class NotApplied(msgspec.Struct, frozen=True):
    """The outcome of a request that the engine never saw. It never will be applied either: should it still arrive, it
    is refused as Fenced.
    """


class Reply:
    """The answer to one request: applied at a revision, or refused with an error as a value.

    `entities`, one for each mutation, of a claim one for each task that it took, are decoded from shared memory when
    first asked for; None for a deleted one, a dict where no class of its kind is known here, and of the one that was
    met last where there are several. `entity` is the first one, None without any. Both raise what was refused, and
    Compacted if they are long gone from memory. Pickling asks for them; where they cannot be had, whoever unpickles it
    gets that error for them, too.
    """

    __slots__ = ("_decode", "_entities", "_named", "error", "results", "revision")

    def __init__(
        self,
        named: str | tuple[int, int],
        revision: int,
        results: tuple[Result, ...],
        error: SolewriterError | None,
        decode: Callable[..., Any],
    ) -> None:
        self._named = named  # the user's word for the request, or the numbers of its session and of itself
        self.revision = revision
        self.results = results
        self.error = error
        self._decode = decode
        self._entities: tuple[Any, ...] | None = None

    @property
    def request_id(self) -> str:
        """What to ask for its outcome with: made when it is asked for, which most replies are not."""
        return self._named if isinstance(self._named, str) else default_id(*self._named)

    @property
    def applied(self) -> bool:
        return self.error is None

    def check(self) -> Reply:
        """This reply, or the error it carries, raised."""
        if self.error is not None:
            raise self.error.with_traceback(None)  # which would grow each time
        return self

    @property
    def entities(self) -> tuple[Any, ...]:
        if self._entities is None:
            self.check()
            self._entities = tuple([self._decode(result) for result in self.results])
        return self._entities

    @property
    def entity(self) -> Any:
        return self.entities[0] if self.entities else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Addresses mean nothing where this process's mappings are not."""
        entities: tuple[Any, ...] | None = None
        missing = self.error
        if missing is None:
            try:
                entities = self.entities
            except SolewriterError as error:
                missing = error
        made = self._named, self.revision, self.results, self.error, partial(_missing, missing)
        return Reply, made, (None, {"_entities": entities})

    def __repr__(self) -> str:
        outcome = f"applied at revision {self.revision}" if self.error is None else repr(self.error)
        return f"<Reply {self.request_id}: {outcome}>"


def entity_left_by(reply: Reply, place: int, model: Any) -> Any:
    """One of its entities, as this class of its kind reads it: a process may have several, and they are of the last."""
    known = reply._entities[place] if reply._entities is not None else None
    return known if isinstance(known, model) else reply._decode(reply.results[place], model)


def _missing(error: SolewriterError | None, _: Result) -> Any:
    assert error is not None, "entities that are there are not looked for"
    raise error.with_traceback(None)
