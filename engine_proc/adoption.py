"""Adoption: more models for a state, or newer classes of known ones. Everything that can fail comes first; then what is
new is journaled; then it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.migration import Migration, took_too_long
from solewriter.engine_proc.publisher import Columnar, Publisher
from solewriter.engine_proc.state import State
from solewriter.shared import record
from solewriter.shared.errors import InvalidMutation, SchemaMismatch, SolewriterError
from solewriter.shared.journal.entry import Private
from solewriter.shared.kinds.columns import Cells, unpack_cells
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import differing_fields
from solewriter.shared.kinds.rules import has_rules
from solewriter.shared.memory.table import TableWriter


class Adoption(NamedTuple):
    """Kinds that are about to be known: what is journaled of them, and the tables whose columns are others."""

    kinds: Sequence[Kind]
    private: Private
    tables: dict[int, TableWriter]  # in place of those that are there
    made: list[Columnar]  # of the kinds that are new

    @property
    def brings_nothing(self) -> bool:
        """Whether readers and the journal know all of it."""
        return not (self.private.kinds or self.private.schemas or self.tables)


def prepare(state: State, publisher: Publisher, kinds: Sequence[Kind]) -> Generator[None, None, Adoption]:
    """What it takes to know these kinds from now on; then `adopt` or `forgo` it. A step for each entity that is looked
    at; the state must not change meanwhile. Raises SchemaMismatch, MemoryFull, and then nothing has changed.
    """
    kinds = list({kind.name: kind for kind in kinds}.values())  # of two classes of one kind the last
    adoption = Adoption(kinds, state.new_kinds(kinds), {}, [])
    yield from _check_all(state, publisher, kinds)
    try:
        _make_tables(state, publisher, adoption)
        for kind in kinds:
            known = state.named(kind.name)
            if known is not None and _makes_other_cells(state, publisher, known, kind):
                table = publisher.other_table(known.code, kind.columns, known.places)
                adoption.tables[known.code] = table
                yield from _refill(state, publisher, table, known, kind)
        if not adoption.brings_nothing:
            _prepare_catalog(state, publisher, adoption)
    except SolewriterError:
        forgo(state, publisher, adoption)
        raise
    return adoption


def _makes_other_cells(state: State, publisher: Publisher, known: KindState, kind: Kind) -> bool:
    """Whether its columns are others, or cells of older records were made by another class than this, or by none."""
    if kind.columns != publisher.columns(known.code):
        return True
    is_same = known.kind is not None and known.kind.model is kind.model
    return not is_same and bool(state.tables.of_other_columns(known.code, kind.columns))


def _make_tables(state: State, publisher: Publisher, adoption: Adoption) -> None:
    """Make the tables of the kinds that are new. Raises MemoryFull."""
    by_name = {kind.name: kind for kind in adoption.kinds}
    for code, name in enumerate(adoption.private.kinds, len(state.kinds)):
        adoption.made.append(publisher.new_table(code, by_name[name].columns))


def _prepare_catalog(state: State, publisher: Publisher, adoption: Adoption) -> None:
    names = [*(kind.name for kind in state.kinds), *adoption.private.kinds]
    tables = [adoption.tables.get(kind.code) or publisher.table(kind.code) for kind in state.kinds]
    tables += [table for table, _ in adoption.made]
    publisher.prepare_catalog(names, [*state.schemas, *adoption.private.schemas], tables)


def check_fit(state: State, publisher: Publisher, kinds: Iterable[Kind]) -> None:
    """Raises SchemaMismatch if something stored does not fit the new class of its kind. Takes 5 us for each entity of a
    kind whose class changed.
    """
    for _ in _check_all(state, publisher, kinds):
        pass


def _check_all(state: State, publisher: Publisher, kinds: Iterable[Kind]) -> Iterator[None]:
    for kind in kinds:
        known = state.named(kind.name)
        if known is None or (known.schema.digest() == kind.schema.digest() and not _takes_other_code(known, kind)):
            continue
        for slot in known.slots.values():
            _, buffer, start = publisher.newest(known.code, slot)
            found = record.unpack_content(buffer, start)
            if not found.deleted:
                _check_fits(state.migration, kind, found)
            yield


def _takes_other_code(known: KindState, kind: Kind) -> bool:
    """Whether another class's code validates what is stored, of which its schema says nothing."""
    is_other = known.kind is not None and known.kind.model is not kind.model
    return is_other and (kind.recasts or has_rules(kind.model))


def _check_fits(migration: Migration, kind: Kind, found: record.Content) -> None:
    try:
        made = migration.entity(kind, found)
        if made.id != found.key:
            problem = f"id: is made {made.id!r:.300} when it is read, by which it could not be found"
            raise SchemaMismatch(f"{kind.name} {found.key!r} does not fit its class: {problem}", kind=kind.name)
        stored, _ = migration.form(kind, found, made)
        _check_reads_alike(migration, kind, found)
        if kind.recasts and any(value is None for value in stored.values()):
            migration.check_valid(kind, found, made, stored)
    except (SchemaMismatch, InvalidMutation) as error:
        if took_too_long(error):
            raise
        raise SchemaMismatch(
            f"{error}. It was stored at revision {found.revision}: give new fields defaults, renamed ones their old "
            "name as an alias, and parts that lost a field extra='ignore'",
            kind=kind.name,
        ) from error


def _check_reads_alike(migration: Migration, kind: Kind, found: record.Content) -> None:
    """Raises SchemaMismatch where each reader would make a value of its own for a field that is not stored."""
    names = kind.made_anew - migration.fields(kind, found).keys()
    if kind.parts_made_anew and not names:
        read = [migration.entity(kind, found) for _ in range(2)]
        names = frozenset(differing_fields(*(kind.payload(kind.stored_fields(one)) for one in read)))
    if names:
        problem = f"{', '.join(sorted(names))}: not stored, and a default_factory may make another one at each reading"
        raise SchemaMismatch(f"{kind.name} {found.key!r} does not fit its class: {problem}", kind=kind.name)


def _refill(state: State, publisher: Publisher, table: TableWriter, known: KindState, kind: Kind) -> Iterator[None]:
    """Fill a table with all slots of a kind; a record of other columns gets its cells from this class. A step for each
    slot. Raises InvalidMutation.
    """
    others = state.tables.of_other_columns(known.code, kind.columns)
    for slot in known.slots.values():
        address, buffer, start = publisher.newest(known.code, slot)
        found = record.unpack(buffer, start)
        cells: Cells
        if found.deleted:
            cells = ()
        elif found.schema in others:
            cells = state.migration.cells(kind, found)
        else:
            cells = tuple(enumerate(unpack_cells(kind.columns, found.cells)))
        table.install(slot, address, cells, not found.deleted)
        yield


def forgo(state: State, publisher: Publisher, adoption: Adoption) -> None:
    """Remove what `prepare` made; then nothing has changed."""
    for code, table in adoption.tables.items():
        publisher.remove_table(code, table)
    for code, made in enumerate(adoption.made, len(state.kinds)):
        publisher.remove_new_table(code, made)
    publisher.drop_catalog()


def adopt(state: State, publisher: Publisher, adoption: Adoption) -> None:
    """After the commit: requests about these kinds are decided by these classes."""
    for kind in adoption.kinds:
        state.registry.replace(kind)
        if (known := state.named(kind.name)) is not None:
            known.kind = kind
    for code, table in adoption.tables.items():
        publisher.replace_table(code, table)
    if not adoption.brings_nothing:
        state.add_kinds(adoption.private.kinds, adoption.private.schemas, adoption.made)
        publisher.use_catalog()
