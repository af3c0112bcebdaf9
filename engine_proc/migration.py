"""What the class of a kind makes of records that another one wrote: an older state of it, with other columns perhaps.

This runs its validators, the user's code, on what is stored already, where nobody asked who could be refused. So it has
as long as deciding a request may take, and whatever ends it, a SystemExit, say, is told as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from solewriter.engine_proc.overtime import Overtime, TimeBudget, run_watched
from solewriter.shared.config import PROBLEM_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.errors import SchemaMismatch, SolewriterError, clean, in_words, said_by
from solewriter.shared.kinds.columns import Cells
from solewriter.shared.kinds.kind import IN_HEADER, Kind
from solewriter.shared.kinds.payload import decode
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.record import Content, Record


class Migration:
    """Takes what is stored over into the classes that are here. `schemas` are those of all records, by their codes."""

    def __init__(self, schemas: Sequence[Schema], time_budget: TimeBudget) -> None:
        self._schemas = schemas
        self._time_budget = time_budget

    def fields(self, kind: Kind, found: Record | Content) -> dict[str, Any]:
        """The stored fields of a record as plain values, under the names of now. Runs nobody's code."""
        return kind.fields_of(self._schemas[found.schema], found.payload)

    def entity(self, kind: Kind, found: Record | Content) -> Entity:
        """The entity that the class makes of a record. Raises SchemaMismatch."""
        return self._run(kind, found, partial(self._decode, kind, found))

    def form(self, kind: Kind, found: Record | Content, made: Entity) -> tuple[Mapping[str, Any], Cells]:
        """What would be stored of an entity that was made of a record, and its cells. Raises SchemaMismatch,
        InvalidMutation.
        """
        try:
            stored = kind.stored_fields(made)
            return stored, kind.layout.cut(stored, found.key, found.version, found.time_us)[1]
        except (SolewriterError, AssertionError):
            raise
        except Exception as error:  # of a type that no column takes
            problem = clean(f"what its validators made of it has no cells: {in_words(error)}", PROBLEM_MAX)
            raise _not_made(kind, found, problem) from error

    def cells(self, kind: Kind, found: Record | Content) -> Cells:
        """The cells that a record has in the columns of the class. Raises SchemaMismatch, InvalidMutation."""
        return self.form(kind, found, self.entity(kind, found))[1]

    def content(self, kind: Kind, found: Content) -> tuple[bytes, bytes]:
        """The payload and the block of cells that a record would have if it were written now. In the course of deciding
        a request: that is what takes too long then, and is refused for whatever this raises.
        """
        fields = kind.stored_fields(self._decode(kind, found))  # as they are now: what they were may have no cells
        return kind.payload(fields), kind.layout.cut(fields, found.key, found.version, found.time_us)[0]

    def payload(self, kind: Kind, found: Record) -> bytes:
        """The same payload for the engine itself, which no model may end or hold up: what it is, where the class cannot
        make another one. Once that took too long, all are left as they are.
        """
        endless = self._time_budget.endless
        if kind not in endless:
            try:
                fields = kind.stored_fields(self.entity(kind, found))
                kind.check_coordinated(fields)
                return kind.payload(fields)
            except AssertionError:
                raise
            except Exception as error:  # what its validators made of it may have no bytes, too
                if took_too_long(error):
                    endless.add(kind)
        return kind.payload(self.fields(kind, found))

    def check_valid(self, kind: Kind, found: Record | Content, made: Entity, stored: Mapping[str, Any]) -> None:
        """Raises SchemaMismatch where the class would not take what it made of a record, so that no change of that
        could be stored: it has None for what can be none, say, of a validator without a `return`.
        """
        header = {name: value for name, value in made.__dict__.items() if name in IN_HEADER}
        try:
            self._run(kind, found, partial(kind.validate, {**decode(kind.payload(stored)), **header}))
        except (SchemaMismatch, AssertionError):
            raise
        except Exception as error:
            problem = clean(
                f"its class would not take what its own validators make of it: {said_by(error)}", PROBLEM_MAX
            )
            raise SchemaMismatch(f"{kind.name} {found.key!r}: {problem}", kind=kind.name) from error

    def _decode(self, kind: Kind, found: Record | Content) -> Entity:
        schema = self._schemas[found.schema]
        return kind.decode_entity(schema, found.key, found.version, found.time_us, found.payload)

    def _run(self, kind: Kind, found: Record | Content, make: Callable[[], Entity]) -> Entity:
        """Run the user's code on a record. Raises SchemaMismatch for whatever else than an exception ends it."""
        self._time_budget.use()
        try:
            return run_watched(make)
        except Exception:
            raise
        except Overtime as error:
            why = f"{kind.name} {found.key!r} cannot be made of what is stored at revision {found.revision}: {error}"
            raise SchemaMismatch(why, kind=kind.name) from error
        except BaseException as error:
            problem = clean(f"its validator raised {in_words(error)}", PROBLEM_MAX)
            raise _not_made(kind, found, problem) from error


def took_too_long(error: Exception) -> bool:
    """Whether a class did not come to an end with a record."""
    return isinstance(error.__cause__, Overtime)


def _not_made(kind: Kind, found: Record | Content, problem: str) -> SchemaMismatch:
    return SchemaMismatch(f"{kind.name} {found.key!r} cannot be made of what is stored: {problem}", kind=kind.name)
