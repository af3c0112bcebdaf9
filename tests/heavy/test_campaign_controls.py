"""Engines with one seeded bug each, under a short campaign: the history checker finds every one, and names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from solewriter.agents.testing.campaign import Settings, run
from solewriter.agents.testing.crowd import Crowd
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.turn import Turn

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(400)]

MINUTES = 4.0  # at most, and ACKS: a bug is mostly seen in the first rounds, and then it is over
ACKS = 400_000


def no_duplicate_check() -> None:
    """A request that was sent again is decided again."""
    from solewriter.engine_proc.engine import SingleWriter

    def answer(self, turn, lane, sequence, request):
        if isinstance(request, tuple) and len(request) == 2:
            return true(self, turn, lane, sequence, request)
        told = self._decide_request(turn, lane.session, sequence, request, lane)
        return told and (sequence, told.status, told.revision, told.detail)

    true, SingleWriter._answer = SingleWriter._answer, answer


def duplicate_check_behind_the_version_check() -> None:
    """A request that was sent again is first compared with what it made itself."""
    from solewriter.engine_proc.decide import Draft, decide
    from solewriter.engine_proc.engine import SingleWriter
    from solewriter.shared.errors import Refused, to_wire
    from solewriter.shared.mutations import Op
    from solewriter.shared.wire import Status

    def answer(self, turn, lane, sequence, request):
        if isinstance(request, tuple) and len(request) == 4 and Op.CLAIM not in [one[0] for one in request[0]]:
            draft = Draft(turn, lane.session.name)
            if turn.coordination.attends(turn, request):
                draft.coordinate(lane.session.number, engines_own=False)
            try:
                decide(draft, request)
            except Refused as error:
                return sequence, Status.REFUSED, turn.revision, to_wire(error)
        return true(self, turn, lane, sequence, request)

    true, SingleWriter._answer = SingleWriter._answer, answer


def published_after_the_reply() -> None:
    """What a reply says is visible two milliseconds after it left, or when the next turn begins."""
    import asyncio

    from solewriter.engine_proc.engine import SingleWriter

    late = []

    def publish_now(publisher) -> None:
        if late:
            publisher.publish(*late.pop())

    def merge(self, turn) -> None:
        self._publisher.publish = lambda *given: late.append(given)
        try:
            merging(self, turn)
        finally:
            del self._publisher.publish

    def reply(self) -> None:
        replying(self)
        asyncio.get_running_loop().call_later(0.002, publish_now, self._publisher)

    async def decide(self, turn) -> None:
        publish_now(self._publisher)
        await deciding(self, turn)

    def reclaim(self, written) -> None:
        if not late:  # or it would move records that it cannot know to be overtaken: that is another bug
            reclaiming(self, written)

    merging, SingleWriter.merge = SingleWriter.merge, merge
    reclaiming, SingleWriter.reclaim = SingleWriter.reclaim, reclaim
    replying, SingleWriter.reply = SingleWriter.reply, reply
    deciding, SingleWriter.decide = SingleWriter.decide, decide


def refusals_not_journaled() -> None:
    """Only what was applied is remembered by the next engine."""
    import msgspec

    from solewriter.engine_proc.turn import Turn
    from solewriter.shared.wire import Status

    def private(self):
        said = true(self)
        return msgspec.structs.replace(said, outcomes=[one for one in said.outcomes if one.status == Status.APPLIED])

    true, Turn.private = Turn.private, private


def overlay_kept_after_a_failed_commit() -> None:
    """A turn that could not be written is the state all the same. Every fiftieth finds no room."""
    from itertools import count

    from solewriter.engine_proc.engine import SingleWriter
    from solewriter.engine_proc.filejournal import FileJournal
    from solewriter.engine_proc.journal import DiskFull

    commits = count(1)

    async def commit(self, *, durable) -> None:
        if durable and next(commits) % 50 == 0:
            self._staged = None
            raise DiskFull("no room")
        await committing(self, durable=durable)

    def undo(self, turn, error) -> None:
        undoing(self, turn, error)
        self.sessions.remember(turn.outcomes)
        self.state.revision = turn.revision

    committing, FileJournal.commit = FileJournal.commit, commit
    undoing, SingleWriter._undo = SingleWriter._undo, undo


def outcomes_forgotten_by_a_checkpoint() -> None:
    """What is journaled behind a checkpoint says nothing of how requests ended."""
    import msgspec

    from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints
    from solewriter.engine_proc.recovery import recovery

    def private_state(*given):
        whole = true(*given)
        return msgspec.structs.replace(whole, request_ids=[], sessions=[
            msgspec.structs.replace(one, outcomes=[]) for one in whole.sessions
        ])  # fmt: skip

    true, recovery.private_state = recovery.private_state, private_state
    Checkpoints._bytes_wanted = lambda self, private_bytes: 1 << 16  # many: a life is short, and one takes a while


def unnamed_checkpoint_trusted() -> None:
    """A start begins with the newest that is there, and knows nothing of what happened since the one before."""
    import msgspec

    from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints
    from solewriter.engine_proc.filejournal import FileJournal
    from solewriter.shared.journal.checkpoint import Checkpoint, checkpoint_files

    def newest_whole(self):
        found, files = naming(self), checkpoint_files(self._folder)
        if found is None or not files:
            return found
        with Checkpoint(files[max(files)]) as newest:
            return found[0], msgspec.structs.replace(found[1], checkpoint=newest.name)

    naming, FileJournal.newest_whole = FileJournal.newest_whole, newest_whole
    Checkpoints._bytes_wanted = lambda self, private_bytes: 1 << 16


def claims_are_not_fenced() -> None:
    """Whoever had a task once may hand it in, and whoever never had it."""
    from solewriter.engine_proc.decide import fencing, guards

    fencing.settle = lambda draft: None
    guards.show = lambda draft, kind_name, key, token: None


class Control(NamedTuple):
    """A bug, where engines die meanwhile, and by which names it may be called."""

    bug: Callable[[], None]
    failpoints: Sequence[str]
    names: set[str]
    round_acks: int = 1_500  # of a round, which is judged when it is over: more where a bug needs several checkpoints


FORGOTTEN = {"applied twice", "told two things", "refused but applied"}  # a repeated request, by its kind

CONTROLS = (
    Control(no_duplicate_check, ["commit.noted", "turn.published", "turn.reply"], {"applied twice"}),
    Control(
        duplicate_check_behind_the_version_check,
        ["commit.noted", "turn.published", "turn.reply"],
        {"refused but applied", "told otherwise", "refusal not journaled"},  # it is told without being noted
    ),
    Control(published_after_the_reply, [], {"an acked revision was not seen", "an older entity in a refusal"}),
    Control(refusals_not_journaled, [], {"refusal not journaled"}),
    Control(overlay_kept_after_a_failed_commit, [], {"revision gap", "lost"}),
    Control(claims_are_not_fenced, [], {"handed in under an old claim", "handed in under no claim", "'Fenced claim'"}),
    Control(outcomes_forgotten_by_a_checkpoint, ["checkpoint.journaled", "trim.done"], FORGOTTEN, 3_000),
    Control(  # with tasks it takes over claims of which it never heard, so that nobody ends them
        unnamed_checkpoint_trusted, ["checkpoint.renamed"], FORGOTTEN | {"still claimed"}, 3_000
    ),
)


def said_of(control: Control, seeded: Any, folder: Path) -> str:
    """What a campaign says of an engine with this bug."""
    report = run(
        Settings(
            seed=5, minutes=MINUTES, acks=ACKS, round_acks=control.round_acks, crowd=Crowd(4, 1, 0, 0.002),
            failpoints=control.failpoints, folder=folder, models=[seeded(control.bug)],
        )
    )  # fmt: skip
    assert not report.clean, report
    return "\n".join(report.first_violations)


@pytest.mark.parametrize("control", [pytest.param(one, id=one.bug.__name__) for one in CONTROLS])
def test_a_campaign_catches_an_engine_with_a_seeded_bug(tmp_path, seeded, interpreted, control):
    if control.bug not in (outcomes_forgotten_by_a_checkpoint, unnamed_checkpoint_trusted):
        interpreted(SingleWriter, Turn)  # in which the other bugs are
    said = said_of(control, seeded, tmp_path)
    assert any(name in said for name in control.names), said
