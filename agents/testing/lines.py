"""The lines of which evidence is made, and the files of them read again when a run is over.

A file may end in a part of a line, whose process was killed: that claims nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.agents.testing.steps import Condition, Key, Step
from solewriter.agents.testing.tasks import FENCED_CLAIM
from solewriter.shared.mutations import Mutation

APPLIED, REFUSED, UNKNOWN = "applied", "refused", "unknown"
FENCED = "Fenced"  # of a session: told by the engine or by the client itself, and never in the history


class Call(msgspec.Struct, frozen=True, tag="call"):
    """Before a request is sent. `name` is the user's own request id (`own`), or one that its records carry."""

    number: int
    at: int
    name: str
    own: bool
    steps: tuple[Step, ...]
    conditions: tuple[Condition, ...] = ()
    tokens: tuple[tuple[Key, int], ...] = ()  # of claims, under which it is sent


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, tag="answer"):
    """After the reply to a call. Without a `request_id` the engine did not decide it: it was refused before it left, or
    never arrived.
    """

    number: int
    at: int
    outcome: str
    request_id: str = ""
    revision: int | None = None  # None: not told
    versions: tuple[int, ...] = ()  # of each mutation's entity
    error: str = ""
    found: int | None = None  # the version that a conflict or a guard names
    allowed: tuple[str, ...] | None = None  # the states that a refused transition names
    current: int | None = None  # the version of the entity that a refusal carries
    claimed: tuple[Key, ...] = ()  # in the order of the versions, where the call did not say which entities


class Look(msgspec.Struct, frozen=True, omit_defaults=True, tag="look"):
    """What a snapshot, taken after `at`, held: version and digest of each entity, version 0 for none.

    `whole`: nothing else was there. `held`: the snapshot is an old one, looked at again.
    """

    at: int
    revision: int
    entities: dict[str, dict[str, tuple[int, str]]]  # kind -> id -> (version, digest)
    whole: bool = False
    held: bool = False


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something was done to the engine or to an agent."""

    at: int
    what: str


class Followed(msgspec.Struct, frozen=True, omit_defaults=True, tag="followed"):
    """Changes as a watch brought them, in its order: kind, id, version, revision, and the digest of what was left, ""
    of a deletion. They follow those of the line before, or, where it begins anew, the revision `since`.
    """

    at: int
    changes: tuple[tuple[str, str, int, int, str], ...]
    since: int | None = None
    kind: str = ""  # the only one that it was asked for; "": all


Line = Call | Answer | Look | Fault | Followed


def refusal_name(name: str, details: Mapping[str, object]) -> str:
    """An error's name. It is one for a session that went to another client, and for a task whose claim was lost."""
    return FENCED_CLAIM if name == FENCED and "id" in details else name


# --- the name of a call in records -----------------------------------------------------------------------------------


def marked(mutation: Mutation, name: str) -> Mutation:
    """The same mutation with the call's name behind its reason."""
    return msgspec.structs.replace(mutation, reason=f"{mutation.reason} [{name}]".lstrip())


def name_in(reason: str) -> str:
    """The name that `marked` put there; "" if none."""
    return reason.rpartition("[")[2].removesuffix("]") if reason.endswith("]") else ""


def name_of(path: Path) -> str:
    """Of the process whose evidence this is, as its calls bear it: no two of a run are equal, none has a bracket."""
    return path.stem.translate({ord("["): "(", ord("]"): ")"})


# --- reading the files -----------------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """A call and what became of it; None: its process died first, or nobody waited."""

    call: Call
    answer: Answer | None


class Gathered(NamedTuple):
    """All that the processes of a run said. Looks and watches by file, each in the order in which they were taken."""

    attempts: list[Attempt]
    looks: dict[str, list[Look]]
    faults: list[Fault]
    watches: dict[str, list[Followed]]


def lines(path: Path) -> Iterator[Line]:
    """Every whole line of a file. What follows the last line end was cut off by a kill."""
    decode = msgspec.json.Decoder(Line).decode
    for text in path.read_bytes().split(b"\n")[:-1]:
        yield decode(text)


def gather(paths: Iterable[Path]) -> Gathered:
    """The evidence of all processes of a run. Raises ValueError for files of one name in several folders: their calls
    could not be told apart.
    """
    gathered, known = Gathered([], {}, [], {}), dict[str, Path]()
    for path in paths:
        if (other := known.setdefault(name_of(path), path)) != path:
            raise ValueError(f"{other} and {path}: each process of a run needs a file of its own name")
        calls: dict[int, Call] = {}
        answers: dict[int, Answer] = {}
        for line in lines(path):
            match line:
                case Call():
                    calls[line.number] = line
                case Answer():
                    answers[line.number] = line
                case Look():
                    gathered.looks.setdefault(path.name, []).append(line)
                case Fault():
                    gathered.faults.append(line)
                case Followed():
                    gathered.watches.setdefault(path.name, []).append(line)
        gathered.attempts.extend(Attempt(call, answers.get(number)) for number, call in calls.items())
    return gathered
