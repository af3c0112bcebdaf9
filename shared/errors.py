"""The tree of errors: refused (the caller's fault, state untouched), unavailable (not now), corrupt (stored bytes are
wrong).

Flat, picklable, and useful: a refusal carries what the caller needs next. Refusals cross the wire as a name and plain
data; `current`, where an error has it, is the newest published entity, never older than the refusal, filled in by the
client.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from solewriter.shared.config import MESSAGE_MAX


class SolewriterError(Exception):
    """Root of all errors of this library."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Callable[..., SolewriterError], tuple[Any, ...], dict[str, Any]]:
        return _rebuilt, (type(self), self.message, self.details), self.__dict__  # what was set later, and notes, too


def _rebuilt(cls: type[SolewriterError], message: str, details: dict[str, Any]) -> SolewriterError:
    return cls(message, **details)


# --- refused: the request changed nothing, and repeating it unchanged will not help -----------------------------------


class Refused(SolewriterError):
    """The engine, or the client before it sent anything, refused the request. Nothing was changed."""

    known: ClassVar[dict[str, type[Refused]]] = {}
    request_id: str | None = None
    current: Any = None  # who made the request knows its class; a dict where that does not fit, None if there is none

    def __init_subclass__(cls) -> None:
        Refused.known[cls.__name__] = cls


class Verdict(StrEnum):
    """What a conflict comes to, and so what its loser does next."""

    YOURS = "yours"  # what is stored is what you wanted: nothing is left to do
    MERGEABLE = "mergeable"  # others changed other fields: the same call with merge=True goes through
    LOST = "lost"  # somebody was faster: look at `current`, made by `actor` at `revision`, and decide again
    TERMINAL = "terminal"  # it is in a final state: nobody changes that any more


class NotFound(Refused):
    """There is no such entity, or it was deleted."""

    kind: str
    id: str


class AlreadyExists(Refused):
    """`create` of an id that exists; `current` is the entity that has it."""

    kind: str
    id: str


class VersionConflict(Refused):
    """Somebody changed the entity first; `current` is what it is now, `expected` what the request compared with, made
    by `actor` at `revision`. Verbs say what it comes to in `verdict`.
    """

    kind: str
    id: str
    expected: int
    version: int
    actor: str = ""
    revision: int = 0
    verdict: Verdict | None = None


class InvalidMutation(Refused):
    """The changed entity would break its model, or the request cannot be meant; `fields` maps each failing field, or
    parameter, to what is wrong with it.
    """

    fields: dict[str, str]


class InvalidTransition(Refused):
    """The lifecycle has no such step from here; `allowed` are the states that can be reached."""

    kind: str
    id: str
    allowed: tuple[str, ...]
    verdict: Verdict | None = None


class GuardFailed(Refused):
    """A guard of the request did not hold; `current` is the entity that it named, if it named one, `version` what is
    stored of it (0: it is not there), `fields` those that are not as they were required to be. Where no entity was
    required to be so, `count` are.
    """

    kind: str
    id: str = ""
    version: int = 0
    fields: Sequence[str] = ()
    count: int = 0


class Fenced(Refused):
    """The claim under which this was sent is no longer valid, or somebody else holds the task; `current` is the entity
    now. Without one: another client has this session, or nobody waited for this request any more when it came.
    """


class UnknownKind(Refused):
    """No model is registered under this name in the engine."""

    kind: str


class InvalidQuery(Refused):
    """A read asked for what there is not: no column, a value that a column never holds, a revision not published."""

    kind: str


class SchemaMismatch(Refused):
    """The caller's model of this kind is not the engine's, or does not fit what is stored."""

    kind: str


class RequestMismatch(Refused):
    """This request id was used before for a request with other content."""


class RequestTooLarge(Refused):
    """A frame, request, entity or text is over its bound."""


class BadRequest(Refused):
    """The frame could not be decoded as plain data, or is not shaped like a request."""


class Expired(Refused):
    """The request's deadline passed before it was decided."""


class Quarantined(Refused):
    """Two engines, one after the other, died while they were deciding this request: it is not decided any more."""


# --- unavailable: could not be served now -----------------------------------------------------------------------------


class Unavailable(SolewriterError):
    """The request or read could not be served now."""


class EngineUnavailable(Unavailable):
    """No engine serves this state folder, or it cannot write now. `final`: trying again will not help."""

    final: bool = False


class EngineStartFailed(EngineUnavailable):
    """The engine process did not become ready; the message holds its reason."""


class Locked(EngineUnavailable):
    """Another engine owns the state folder; `holder` names it."""

    holder: str


class Busy(Unavailable):
    """With `wait_for_room=False`: the request would have to wait, and was not sent; try again after `retry_after_s`."""

    retry_after_s: float


class OutcomeUnknown(Unavailable):
    """No reply came in time: the request may or may not have been applied. `client.outcome(error.request_id)` settles
    it. Under a `request_id` of your own it can be repeated safely.
    """

    request_id: str


class Forgotten(Unavailable):
    """The outcome is older than what the engine remembers of this session."""

    request_id: str


class ResultUnavailable(Unavailable):
    """The request was applied, at `revision`, but the entity that it left cannot be read: the engine was stopped since,
    or the class here does not fit what is stored.
    """

    request_id: str
    revision: int


class Compacted(Unavailable):
    """What was asked for is older than the oldest revision still available, which is `oldest`; of a watch, also where
    that is of another history, or above all that is published.
    """

    oldest: int


class SnapshotExpired(Unavailable):
    """The snapshot was held past its maximum age and its memory was given back. Take a new one."""


class MemoryFull(Unavailable):
    """The memory file system has no room for a segment. Free space there, or start the engine with another
    `memory_dir`.
    """


# --- corrupt: stored bytes are wrong ----------------------------------------------------------------------------------


class Corrupt(SolewriterError):
    """Stored bytes are not what was written."""


class JournalCorrupt(Corrupt):
    """The journal is damaged at `place` (file and offset); nothing was guessed."""

    place: str

    def __str__(self) -> str:
        """The place crosses to an engine's owner, and into logs, as text only."""
        place = self.details.get("place", "")
        return self.message if place in self.message else f"{self.message} ({place})"


class LayoutMismatch(Corrupt):
    """Shared memory or a file has another format than this version of the library reads."""


UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what was asked for: text that is no UTF-8 and deep nesting have errors
of their own.
"""


def check_depth(error: Exception) -> None:
    """Raises it, where it says of its caller that he is deep in calls of his own, and not of bytes that they are nested
    deep.
    """
    if isinstance(error, RecursionError) and _is_called_deep():
        raise error


def _is_called_deep() -> bool:
    try:
        sys._getframe(sys.getrecursionlimit() // 2)
    except ValueError:
        return False
    return True


# --- for want of descriptors, whoever opens something -----------------------------------------------------------------


def check_descriptors(error: Exception) -> None:
    """Raises EngineUnavailable, saying what to do, for an OSError that says that there are no file descriptors left."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        whose, bound = "this process", "`ulimit -n`"
    elif number == errno.ENFILE:
        whose, bound = "this machine", "`sysctl fs.file-max`"
    else:
        return
    raise EngineUnavailable(
        f"{whose} has no file descriptors left: close some, or raise their bound, {bound}"
    ) from error


@contextmanager
def checking_descriptors() -> Iterator[None]:
    """An OSError in here, of an import too, goes through `check_descriptors`: for want of descriptors it becomes
    EngineUnavailable.
    """
    try:
        yield
    except OSError as error:
        check_descriptors(error)
        raise


# --- in words ---------------------------------------------------------------------------------------------------------


def said_by(error: BaseException) -> str:
    """What an error of whatever kind says; nothing, where it is one of a user's own which cannot say it."""
    try:
        return str(error)
    except Exception:
        return ""


def in_words(error: BaseException) -> str:
    """The name of an error of whatever kind, and what it says, if it says anything."""
    return name_and_message(type(error).__name__, said_by(error))


def name_and_message(name: str, said: str) -> str:
    return f"{name}: {said}" if said else name


def safe_repr(value: object, length: int = 100) -> str:
    """The first `length` characters of the `repr` of what somebody gave, for a message. Raises nothing: integers of
    thousands of digits have no `repr`, and a user's own class may raise in it.
    """
    try:
        return repr(value)[:length]
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


# --- crossing the wire ------------------------------------------------------------------------------------------------

Refusal = tuple[str, str, dict[str, Any]]
"""What is told in place of a result: the error's name, its message, its details as plain data"""


def to_wire(error: Refused) -> Refusal:
    """Name, message and plain details of a refusal: what is journaled and sent."""
    return type(error).__name__, clean(error.message, MESSAGE_MAX), error.details


def clean(text: str, length: int) -> str:
    """Text that can be encoded, and is not longer than this."""
    return text[:length].encode(errors="backslashreplace").decode()


def from_wire(refusal: Refusal) -> Refused:
    """The refusal that `to_wire` made; of an unknown name (an engine newer than this client) a plain `Refused`."""
    name, message, details = refusal
    if "allowed" in details:
        details = {**details, "allowed": tuple(details["allowed"])}
    return Refused.known.get(name, Refused)(message, **details)
