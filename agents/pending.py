"""`Pending`: a request on its way, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from solewriter.shared.errors import (
    EngineUnavailable,
    Forgotten,
    MemoryFull,
    OutcomeUnknown,
    Refused,
    SolewriterError,
    from_wire,
)
from solewriter.shared.request_ids import default_id
from solewriter.shared.wire import PlainReply, Status
from solewriter.shared.wireform import PlainRequest


class Pending:
    """A request on its way, and what it was told. `on_done`, if it is set, is called once, when that is known."""

    claim: PlainRequest  # of one that waits, to be sent again

    __slots__ = (
        "called_back",
        "claim",
        "epoch",
        "error",
        "given_id",
        "named",
        "on_done",
        "reply",
        "sequence",
        "session",
        "waits",
    )

    def __init__(self, session: int, sequence: int, given_id: str | None, *, waits: bool = False) -> None:
        self.session = session
        self.sequence = sequence
        self.given_id = given_id  # the user's own word; of a question, which request it asks about
        self.waits = waits  # it is a claim that is answered when there is something to do, and not as soon as can be
        self.called_back = False  # and one that its client wants to be answered, whether there is or not
        self.reply: PlainReply | None = None
        self.error: SolewriterError | None = None
        self.epoch = 0  # of the memory in which the reply's addresses are valid
        self.on_done: Callable[[], None] | None = None
        self.named = False  # its id was told, by OutcomeUnknown: under another one it must never be applied

    @property
    def request_id(self) -> str:
        """The user's word for it, or its number: as long as it was never told, another one with another lane."""
        return self.given_id or default_id(self.session, self.sequence)

    @property
    def done(self) -> bool:
        return self.reply is not None or self.error is not None

    @property
    def is_back(self) -> bool:
        """Whether it was called back, and brought nothing: whoever waits for it sends its claim again."""
        reply = self.reply
        return self.called_back and reply is not None and reply.status == Status.REFUSED and reply.detail[0] == "Fenced"

    def end(self, reply: PlainReply | None, error: SolewriterError | None) -> None:
        self.reply, self.error = reply, error
        if self.on_done is not None:
            self.on_done()


Sent = Pending | Refused
"""What became of a request that was to be sent: it is on its way, or why it is not"""


def outcome_unknown(pending: Pending) -> OutcomeUnknown:
    """The error that tells a request's id: from now on the caller may ask by it, so it stays this request's."""
    pending.named = True
    return OutcomeUnknown(
        f"no reply to request {pending.request_id}: it may or may not have been applied; "
        f"client.outcome({pending.request_id!r}) settles it",
        request_id=pending.request_id,
    )


def is_interrupt(error: BaseException) -> bool:
    """Whether this came in the middle of a call and says nothing of its outcome: a cancellation, Ctrl-C, or whatever
    else a signal handler raises, also that it cannot use the client there.
    """
    return type(error) is SolewriterError or not isinstance(error, SolewriterError)


def name_request(cancelled: BaseException, sent: Sequence[object]) -> None:
    """Let an interrupt of something that was sent, a cancellation say, tell so: its cause names the first request."""
    if cancelled.__cause__ is None and is_interrupt(cancelled):
        for one in sent:
            if isinstance(one, Pending):
                cancelled.__cause__ = outcome_unknown(one)
                return


def name_answered(interrupted: BaseException, request_id: str) -> None:
    """As `name_request`, for a request that was answered when the interrupt came; what it left was not read yet."""
    if interrupted.__cause__ is None and is_interrupt(interrupted):
        told = f"request {request_id} was answered before that: client.outcome({request_id!r}) says how it ended"
        interrupted.__cause__ = OutcomeUnknown(told, request_id=request_id)


def error_of(pending: Pending) -> SolewriterError | None:
    """The error that a finished request ended with, if it did."""
    reply = pending.reply
    if reply is None or pending.error is not None:
        return pending.error
    if reply.status == Status.REFUSED:
        error = from_wire(tuple(reply.detail))
        error.request_id = pending.request_id
        return error
    if reply.status == Status.UNAVAILABLE:
        name, message, _ = reply.detail
        if name == "Forgotten":
            return Forgotten(message, request_id=pending.request_id)
        return MemoryFull(message) if name == "MemoryFull" else EngineUnavailable(message)
    return None
