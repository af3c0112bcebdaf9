"""Replies -> results: what a finished request was told, as values that people use. Entities come from shared memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from solewriter.agents.deadline import Timed
from solewriter.agents.pending import Pending, error_of
from solewriter.agents.reader import Reader
from solewriter.agents.reading.decoding import Model
from solewriter.agents.snapshot import Plain
from solewriter.shared.entity import Entity, model_of, name_of
from solewriter.shared.errors import (
    Forgotten,
    MemoryFull,
    Refused,
    ResultUnavailable,
    SchemaMismatch,
    SolewriterError,
    Unavailable,
    from_wire,
)
from solewriter.shared.mutations import Applied, Claim, Create, Mutation, NotApplied, Put, Reply, Result, entity_left_by
from solewriter.shared.registry import Registry
from solewriter.shared.wire import Status
from solewriter.shared.wireform import WHOLE, PlainRequest

E = TypeVar("E", bound=Entity)
Outcome = Applied | Refused | NotApplied | Forgotten
"""How a request ended. Refused and Forgotten are the errors themselves, as values."""


class Answers:
    """Turns what the engine answered one client into replies and outcomes, with entities from shared memory."""

    def __init__(self, reader: Reader, registry: Registry) -> None:
        self._reader = reader
        self._registry = registry
        self._decoder: tuple[int, Callable[[Result], Any]] = (-1, _nothing)  # of the memory of an epoch

    def refuse_misfits(
        self, requests: Sequence[PlainRequest | Refused], asked: Sequence[Timed[Mutation | Sequence[Mutation]]]
    ) -> list[PlainRequest | Refused]:
        """The requests of a pipeline, made of what was asked; in place of one with a class that is not the engine's,
        why it is not sent.
        """
        found = list(requests)
        for place, request in enumerate(requests):
            if not isinstance(request, Refused):
                try:
                    self.check_classes(request, asked[place][0])
                except SchemaMismatch as error:
                    found[place] = error
        return found

    def check_classes(self, request: PlainRequest, asked: Mutation | Sequence[Mutation]) -> None:
        """Raises SchemaMismatch for a whole entity, in what the request was made of, of a class that is not the
        engine's.
        """
        for mutation in request[0]:
            if mutation[0] in WHOLE:
                self._check_whole(asked if isinstance(asked, (list, tuple)) else (cast("Mutation", asked),))
                break

    def _check_whole(self, asked: Sequence[Mutation]) -> None:
        """A process may have two classes of one name: what counts is the entity's own."""
        for mutation in asked:
            if isinstance(mutation, Create | Put):
                kind = self._registry.of(type(mutation.entity))
                self._reader.check_class(kind)
                if self._registry.get(kind.name) is not kind:
                    self._registry.install(kind)  # it is the engine's, so replies are read by it

    def reply(self, pending: Pending) -> Reply:
        """The reply to a finished request; a refusal or failure is in it as a value."""
        told = pending.reply
        if told is not None and told.status == Status.APPLIED:
            named = pending.given_id or (pending.session, pending.sequence)
            return self._applied_reply(named, pending.epoch, told.revision, told.detail)
        error = error_of(pending)
        assert error is not None, "a request is applied, or there is a reason why not"
        if told is not None:
            self._turn_to(pending.epoch)
        return self._failed_reply(pending.request_id, told.revision if told else 0, error)

    def retype_current(self, reply: Reply, mutations: Sequence[Mutation]) -> Reply:
        """The same reply. What its refusal tells of an entity is of the class that one of these mutations has for it: a
        process may have several of one kind.
        """
        error = reply.error
        if isinstance(error, Refused) and error.current is not None and "kind" in error.details:
            named = (model for model in map(_class_of, mutations) if model.kind_name == error.details["kind"])
            model = next(named, None)
            if model is not None and not isinstance(error.current, model):
                try:
                    error.current = self._current(model, error.details["id"])
                except Unavailable:
                    pass  # what was found before stays
        return reply

    def refused_reply(self, error: Refused) -> Reply:
        """The reply to a request that was refused before it was sent."""
        return Reply("", self._reader.revision, (), error, _nothing)

    def outcome(self, pending: Pending, request_id: str) -> Outcome:
        """What a finished query says of this request. Raises what is no outcome."""
        error = error_of(pending)
        if error is not None:
            raise error
        assert pending.reply is not None
        self._turn_to(pending.epoch)
        if pending.reply.detail is None:
            return NotApplied()
        status, revision, detail = pending.reply.detail
        if status == Status.APPLIED:
            return Applied(self._applied_reply(request_id, pending.epoch, revision, detail))
        if status == Status.REFUSED:
            refusal = self._failed_reply(request_id, revision, from_wire(tuple(detail))).error
            assert isinstance(refusal, Refused)
            return refusal
        _, message, _ = detail
        return Forgotten(message, request_id=request_id)

    def _applied_reply(self, named: str | tuple[int, int], epoch: int, revision: int, detail: list[Any]) -> Reply:
        results = tuple([Result(kind, id, version, address) for version, address, kind, id in detail])
        return Reply(named, revision, results, None, self._turn_to(epoch))

    def _turn_to(self, epoch: int) -> Callable[[Result], Any]:
        """What decodes a result of this epoch. With the first reply of one, whatever that says, its memory is looked
        for: what is read next is not older than what was told.
        """
        known, decode = self._decoder
        if epoch != known:
            self._reader.look_on()
            decode = functools.partial(_entity, self._reader, epoch)
            self._decoder = epoch, decode
        return decode

    def _failed_reply(self, request_id: str, revision: int, error: SolewriterError) -> Reply:
        """An error as a reply; a refusal about an entity carries that entity as it is now."""
        if isinstance(error, MemoryFull):
            self._reader.let_go()  # who only writes would hold what was given back since its last look
        if isinstance(error, Refused):
            error.request_id = request_id
            if "id" in error.details:
                try:
                    model = self._reader.decoder.model_of(error.details["kind"])
                    error.current = self._current(model, error.details["id"])
                except Unavailable:
                    pass  # no memory to look into just now; the refusal itself is definite
        return Reply(request_id, revision, (), error, _nothing)

    def _current(self, model: Model, id: str) -> Entity | Plain | None:
        """The entity as it is now, as this class reads it; as plain values where the class does not fit."""
        try:
            return self._reader.get(model, id)
        except SchemaMismatch:
            return self._reader.get(name_of(model), id)


def _class_of(mutation: Mutation) -> type[Entity]:
    """The class of the entities that a mutation is about."""
    if isinstance(mutation, Create | Put):
        return type(mutation.entity)
    return mutation.model if isinstance(mutation, Claim) else model_of(mutation.target)


def _entity(reader: Reader, epoch: int, result: Result, model: type[Entity] | None = None) -> Entity | Plain | None:
    """No method: what it would be bound to would keep itself, and the memory, when it is forgotten."""
    return reader.of_result(result, epoch, model or reader.decoder.model_of(result.kind))


def _nothing(result: Result) -> None:
    return None


def entity_of(reply: Reply, model: type[E]) -> E:
    """The entity that a request of one mutation left. Raises the reply's error, ResultUnavailable if the request was
    applied and the entity cannot be read.
    """
    reply.check()
    try:
        left: E = entity_left_by(reply, 0, model)
        return left
    except SolewriterError as error:
        raise _unreadable(reply, error) from error


def entity_or_error(reply: Reply, model: type[E]) -> E | SolewriterError:
    """As `entity_of`, but the reply's own error is returned, and raised by who asked."""
    return reply.error or entity_of(reply, model)


def entities_of(reply: Reply, model: type[E]) -> list[E]:
    """The entities that a request left which may have changed several."""
    reply.check()
    try:
        return [entity_left_by(reply, place, model) for place in range(len(reply.results))]
    except SolewriterError as error:
        raise _unreadable(reply, error) from error


def _unreadable(reply: Reply, error: SolewriterError) -> ResultUnavailable:
    return ResultUnavailable(
        f"the request was applied at revision {reply.revision}, but what it left cannot be read: {error}",
        request_id=reply.request_id,
        revision=reply.revision,
    )
