"""Which tasks a client has claimed, and under which token: shown by itself with every later request about them.

A token is the version that the claim made. It is forgotten when the client hands the task in or gives it back, and when
the engine said that it is an old one: the displaced is told once, and from then on is like anybody else.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from solewriter.agents.answers import Outcome
from solewriter.agents.pending import Pending, Sent
from solewriter.shared.config import ASKED_MAX, HELD_MAX
from solewriter.shared.errors import EngineUnavailable, Fenced, Refused, safe_repr
from solewriter.shared.models import Task
from solewriter.shared.mutations import Applied, Guard, Op, Reply, Result
from solewriter.shared.wireform import PlainMutation, PlainRequest

Key = tuple[str, str]  # kind, id
CLAIM, SHOWN = Op.CLAIM.value, Guard.CLAIM.value
GIVING_BACK = frozenset({Op.COMPLETE.value, Op.FAIL.value, Op.RELEASE.value, Op.DELETE.value, Op.CANCEL.value})
CLAIMING = frozenset({CLAIM})
TELLING = GIVING_BACK | CLAIMING  # the reply to these says who holds what


class Tokens:
    """The tokens that one client holds. Threads may share it: each notes its own requests and replies, in any order, so
    what one gave back may be held again by another one before that is noted.
    """

    def __init__(self) -> None:
        # The token; the number of the request that brought it, and the epoch of the memory in which that was answered.
        self._held: dict[Key, tuple[int, int, int]] = {}
        # To look is one operation on a dict, to change what was looked at is two. A signal handler may come in between.
        self._changing = threading.RLock()
        self._asked: dict[Pending, PlainRequest] = {}  # what is on its way and will tell

    def __bool__(self) -> bool:
        """Whether this client may hold something: what it was told of, or asked for."""
        return bool(self._held or self._asked)

    def hold(self, task: Task) -> None:
        """From now on write to this task under the claim that it shows: of another client, or of this one's past."""
        if not isinstance(task, Task):
            raise TypeError(f"hold takes a task, not {safe_repr(task)}")
        self.hold_under(task.kind_name, task.id, task.claim)

    def hold_under(self, kind: str, id: str, token: int) -> None:
        """Hold a task, which need not have been read, under this token."""
        self._hold((kind, id), token)

    def _hold(self, key: Key, token: int, asked: int = -1, epoch: int = -1, *, is_of_before: bool = False) -> None:
        """`is_of_before`: the claim is older than the epoch of which it is told."""
        with self._changing:
            known = self._held.get(key)
            is_overtaken = known is not None and token < known[0] and (is_of_before or epoch == known[2] >= 0)
            if known is not None and (is_overtaken or 0 <= asked < known[1]):
                return  # told late, or once more under a user's own id: it was claimed here again since then
            if known is not None and known[0] != token:  # who looks meanwhile finds what is right
                self._held.pop(key, None)
            self._held[key] = token, asked, epoch
            if len(self._held) > HELD_MAX:  # of tasks that ended in other ways than by this client, mostly
                self._held.pop(next(iter(self._held)), None)

    def _lose(self, key: Key, token: int | None) -> None:
        """Hold nothing under this token any more. A newer one stays."""
        with self._changing:
            if token is not None and self.holds(*key) == token:
                self._held.pop(key, None)

    def holds(self, kind: str, id: str) -> int | None:
        """The token of a task that was claimed here."""
        held = self._held.get((kind, id))
        return None if held is None else held[0]

    def show(self, requests: Iterable[PlainRequest]) -> None:
        """Add to each request what this client holds of what it is about, before its own conditions: who lost a claim
        is told that first.
        """
        if not self._held:
            return
        for mutations, guards, _, _ in requests:
            held = {mutation[1:3]: self.holds(*mutation[1:3]) for mutation in mutations}
            guards[:0] = [(SHOWN, *key, token) for key, token in held.items() if token is not None]

    def note_sent(self, sent: Sequence[Sent], requests: Sequence[PlainRequest]) -> None:
        """Note which of these requests are on their way, and will say who holds what; the others could not be sent."""
        telling = TELLING if self._held else CLAIMING
        for one, request in zip(sent, requests, strict=True):
            for mutation in request[0]:
                if mutation[0] in telling:
                    self._note(one, request)
                    break

    def _note(self, sent: Sent, request: PlainRequest) -> None:
        if isinstance(sent, Refused):
            return
        self._asked[sent] = request
        if len(self._asked) > ASKED_MAX:  # what is on its way stays, however long: its window bounds it
            for one in list(self._asked):
                if one.done and one.on_done is None:
                    self._asked.pop(one, None)
                    break

    def note_outcome(self, outcome: Outcome) -> None:
        """Note how a request ended whose own answer did not come."""
        if isinstance(outcome, Applied):
            self.note_reply(self.unread(outcome.reply.request_id), outcome.reply)

    def unread(self, request_id: str) -> Pending | None:
        """The claim, or the like, under this id, whose answer nobody took so far, whether it came or not; else None."""
        return next((one for one in list(self._asked) if one.request_id == request_id), None)

    def never_left(self, request_id: str) -> bool:
        """Whether all claims, or the like, under this id were given up before any of it was sent."""
        asked = [one for one in list(self._asked) if one.request_id == request_id]
        return bool(asked) and all(isinstance(one.error, EngineUnavailable) for one in asked)

    def note_reply(self, sent: Pending | None, reply: Reply) -> None:
        """Note what a reply says of who holds what."""
        error: Any = reply.error
        if error is None and not self._asked:
            return
        request = self._asked.pop(sent, None) if sent is not None else None
        if isinstance(error, Fenced) and "id" in error.details:
            self._lose((error.details["kind"], error.details["id"]), error.details.get("token"))
        if sent is None or request is None or error is not None:
            return
        mutations, guards, _, _ = request
        shown = {guard[1:3]: guard[3] for guard in guards if guard[0] == SHOWN}
        given_back = {mutation[1:3] for mutation in mutations if mutation[0] in GIVING_BACK}
        left = {(result.kind, result.id): result.version for result in reply.results}
        for key in given_back:
            token = shown.get(key)
            if token is not None and left.get(key, token) >= token:  # else it is told once more, of an older claim
                self._lose(key, token)
        for key, result in _claimed_results(mutations, reply.results):
            if key not in given_back:
                self._hold(key, result.version, sent.sequence, sent.epoch, is_of_before=not result.address)


def _claimed_results(mutations: Sequence[PlainMutation], results: Sequence[Result]) -> Iterator[tuple[Key, Result]]:
    """What the claims of a request brought. A claim names no task: each other mutation accounts for one result about
    the task that it names, and what is left over of a kind that was claimed is of a claim.
    """
    kinds = {mutation[1] for mutation in mutations if mutation[0] == CLAIM}
    left_over = Counter((result.kind, result.id) for result in results)
    left_over.subtract(mutation[1:3] for mutation in mutations if mutation[0] != CLAIM)
    for result in results:
        key = result.kind, result.id
        if result.kind in kinds and left_over[key] > 0:
            yield key, result
