"""The tree of errors: whose fault each is, and that none loses what it carries on its way to another process."""

from __future__ import annotations

import copy
import pickle

import msgspec
import pytest

from solewriter.shared import errors
from solewriter.shared.errors import (
    Corrupt,
    InvalidTransition,
    Refused,
    SolewriterError,
    Unavailable,
    from_wire,
    in_words,
    to_wire,
)
from solewriter.shared.models import Task

REFUSED = (
    "NotFound AlreadyExists VersionConflict InvalidMutation InvalidTransition InvalidQuery GuardFailed Fenced "
    "UnknownKind SchemaMismatch RequestMismatch RequestTooLarge BadRequest Expired Quarantined"
)
UNAVAILABLE = (
    "EngineUnavailable Locked EngineStartFailed Busy OutcomeUnknown Compacted SnapshotExpired MemoryFull Forgotten "
    "ResultUnavailable"
)
CORRUPT = "JournalCorrupt LayoutMismatch"


class Mute(Exception):
    """That cannot say what it is."""

    def __str__(self) -> str:
        raise self


def every_error():
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, SolewriterError)]


@pytest.mark.parametrize(("root", "names"), [(Refused, REFUSED), (Unavailable, UNAVAILABLE), (Corrupt, CORRUPT)])
def test_each_error_says_whose_fault_it_is(root, names):
    leaves = {one.__name__ for one in every_error() if issubclass(one, root) and one is not root}
    assert leaves == set(names.split())


def test_an_error_has_one_root_only():
    for one in every_error():
        assert sum(issubclass(one, root) for root in (Refused, Unavailable, Corrupt)) == (one is not SolewriterError)
        assert one.__doc__


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_survives_pickle_and_copy_with_all_that_it_carries(error):
    raised = error("no: try again", kind="Task", id="t-1", version=7, fields={"title": "too short"})
    raised.current = Task(id="t-1", title="t", version=7)
    raised.request_id = "mine"
    raised.add_note("seen in the crawler")
    for again in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):
        assert type(again) is error
        assert str(again) == again.message == "no: try again"
        assert (again.kind, again.id, again.version, again.fields) == ("Task", "t-1", 7, {"title": "too short"})
        assert again.details == raised.details
        assert (again.current, again.request_id) == (raised.current, "mine")
        assert again.__notes__ == ["seen in the crawler"]


def test_an_error_without_details_is_one_too():
    again = pickle.loads(pickle.dumps(errors.Busy("later")))
    assert (str(again), again.details) == ("later", {})


@pytest.mark.parametrize("name", REFUSED.split())
def test_every_refusal_crosses_the_wire(name):
    refusal = getattr(errors, name)("no", kind="Task", id="t-1", allowed=("assigned", "cancelled"), fields={"a": "b"})
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(refusal)))
    arrived = from_wire(sent)
    assert type(arrived) is type(refusal)
    assert (str(arrived), arrived.kind, arrived.id, arrived.fields) == ("no", "Task", "t-1", {"a": "b"})
    assert arrived.allowed == ("assigned", "cancelled")
    assert arrived.current is None


def test_a_refusal_that_only_a_newer_engine_knows_is_a_refusal():
    arrived = from_wire(("OutOfPaper", "no paper", {"tray": 2}))
    assert type(arrived) is Refused
    assert (str(arrived), arrived.tray) == ("no paper", 2)


def test_only_refusals_can_cross_as_such():
    assert set(Refused.known) == set(REFUSED.split())
    assert type(from_wire(("MemoryFull", "full", {}))) is Refused


def test_a_users_own_refusal_is_known_by_its_name():
    class TooLoud(InvalidTransition):
        """Somebody's own."""

    try:
        assert type(from_wire(to_wire(TooLoud("hush")))) is TooLoud
    finally:
        del Refused.known["TooLoud"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (FileNotFoundError(2, "No such file", "a"), "FileNotFoundError: [Errno 2] No such file: 'a'"),
        (MemoryError(), "MemoryError"),
        (AssertionError(""), "AssertionError"),
        (Mute(), "Mute"),
    ],
)
def test_an_error_in_words_is_its_name_and_what_it_says_if_it_says_anything(error, words):
    assert in_words(error) == words
