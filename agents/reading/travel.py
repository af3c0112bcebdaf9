"""Looking back: a snapshot of an earlier revision, what changed between two of them, the history of one entity.

From memory as far as memory goes, from the journal beyond, and where that ends, too, Compacted. Memory holds whole what
was there when its oldest segment left it, and everything since (`root.whole`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from solewriter.agents.reading.anyreader import AnyReader, check_revision
from solewriter.agents.reading.change import Change, Published
from solewriter.agents.reading.decoding import Model
from solewriter.agents.reading.past import Held, Past, check_own_history
from solewriter.agents.snapshot import Snapshot
from solewriter.shared import record
from solewriter.shared.entity import check_id, name_of
from solewriter.shared.errors import Compacted, InvalidQuery, SnapshotExpired, checking_descriptors, safe_repr
from solewriter.shared.journal.chain import journal_files, oldest_entry, own_checkpoint
from solewriter.shared.journal.walk import entries_between
from solewriter.shared.memory.heap import PREFIX_BYTES
from solewriter.shared.memory.pin import Pin

Key = tuple[int, str]  # kind code, id
T = TypeVar("T")


class Difference(NamedTuple, Generic[T]):
    """One entity that is not the same at two revisions; None where there was or is none."""

    kind: str
    id: str
    old: T | None
    new: T | None


def at(reader: AnyReader, revision: int) -> Snapshot:
    """Everything at an earlier revision. Raises Compacted, InvalidQuery for one that is not published yet."""
    check_revision(revision)
    now = _pin(reader, revision)
    return Snapshot(reader, _from_memory(now, revision) or _past(reader, now, revision))


def _pin(reader: AnyReader, *revisions: int) -> Held:
    """The newest revision, behind which none of these lies."""
    pin = reader.pin()
    for revision in revisions:
        if not 0 <= revision <= pin.root.revision:
            raise InvalidQuery(
                f"there is no revision {safe_repr(revision)}; the newest is {pin.root.revision}", kind=""
            )
    return pin


def _from_memory(now: Held, revision: int) -> Held | None:
    """An earlier revision in memory; None where memory does not hold it whole."""
    if revision == now.root.revision:
        return now
    if isinstance(now, Past):
        return None
    try:
        return now.earlier(revision) if revision >= now.root.whole else None
    except (FileNotFoundError, SnapshotExpired):
        return None


def _past(reader: AnyReader, now: Held, revision: int) -> Past:
    with _telling_compacted(now, revision):
        past = Past(now, reader.folder.path, revision)
        past.advance(revision)
    return past


@contextmanager
def _telling_compacted(now: Held, revision: int) -> Iterator[None]:
    """A Compacted that tells of the journal alone becomes one that tells of memory and journal together."""
    try:
        yield
    except Compacted as error:
        error.oldest = where_it_begins(error, now.root.whole)
        raise compacted_everywhere(revision, now, error) from None


def compacted_everywhere(revision: int, now: Held, error: Compacted) -> Compacted:
    """The error that says that a revision, or what comes next behind revision 0, is neither in memory nor journaled."""
    what = f"revision {revision} is" if revision else "what was earlier is"
    return Compacted(
        f"{what} not available any more: memory goes back to {now.root.whole}, and {error}",
        oldest=error.oldest or now.root.whole,
    )


def where_it_begins(error: Compacted, in_memory: int) -> int:
    """The oldest revision that is anywhere: memory may go back farther than a journal whose history was not kept."""
    return min(error.oldest or in_memory, in_memory)


# --- what changed between two revisions -------------------------------------------------------------------------------


def diff(reader: AnyReader, since: int, until: int, kind: Model | None) -> list[Difference[Any]]:
    """Every entity that differs, in the order of its first change. Raises Compacted, InvalidQuery."""
    check_revision(since)
    check_revision(until)
    if since > until:
        raise InvalidQuery(
            f"a difference is from an earlier revision to a later one, not {safe_repr(since)} to {safe_repr(until)}",
            kind="",
        )
    now = _pin(reader, since, until)
    told = _differences_in_memory(reader, now, since, until, kind)
    if told is None:
        told = _differences_in_journal(reader, now, since, until, kind)
    return [one for one in told if one is not None]


def _differences_in_memory(
    reader: AnyReader, now: Held, since: int, until: int, kind: Model | None
) -> list[Difference[Any] | None] | None:
    """None where memory does not hold both, or some of it went meanwhile."""
    old, new = _from_memory(now, since), _from_memory(now, until)
    if not isinstance(old, Pin) or not isinstance(new, Pin):
        return None
    look = reader.decoder.find
    try:
        return [
            _difference(name, id, look(old, model, id), look(new, model, id))
            for (_, id), name, model in _asked_for(reader, now, kind, dict.fromkeys(_changed_keys(old, new)))
        ]
    except SnapshotExpired:  # this process was stopped in the middle
        return None


def _differences_in_journal(
    reader: AnyReader, now: Held, since: int, until: int, kind: Model | None
) -> list[Difference[Any] | None]:
    """Raises Compacted."""
    seen: dict[Key, tuple[record.Record | None, record.Record]] = {}
    past = _past(reader, now, since)
    with _telling_compacted(now, since):
        for found, before in past.changes(until):
            key = found.kind, found.key
            seen[key] = (seen[key][0] if key in seen else before), found
    read = partial(reader.decoder.of_record, now.catalog)
    return [
        _difference(name, key[1], *(read(one, model) for one in seen[key]))
        for key, name, model in _asked_for(reader, now, kind, seen)
    ]


def _changed_keys(old: Pin, new: Pin) -> Iterator[Key]:
    """Keys of the records from one pin's tail to the other's."""
    for _, segment, place in new.walk(old.root.tail, new.root.tail):
        body = place + PREFIX_BYTES
        if record.revision_at(segment.bytes, body) > old.root.revision:
            yield record.kind_at(segment.bytes, body), record.key_at(segment.bytes, body).decode()


def _asked_for(
    reader: AnyReader, now: Held, kind: Model | None, keys: Iterable[Key]
) -> Iterator[tuple[Key, str, Model]]:
    """Of these keys those of a kind, or all: each with its kind's name, and as what it is read."""
    wanted = None if kind is None else name_of(kind)
    for key in keys:
        name = now.catalog.kinds[key[0]]
        if wanted in (None, name):
            yield key, name, kind or reader.decoder.model_of(name)


def _difference(kind: str, id: str, old: Any, new: Any) -> Difference[Any] | None:
    """None where both are the same: there is none, or it is the same again."""
    return Difference(kind, id, old, new) if old is not new and _version(old) != _version(new) else None


def _version(entity: Any) -> int:
    return 0 if entity is None else entity["version"] if isinstance(entity, dict) else entity.version


# --- one entity -------------------------------------------------------------------------------------------------------


def history(reader: AnyReader, kind: Model, id: str) -> Iterator[Change]:
    """Every change of one entity, the newest first. Raises Compacted behind the oldest that is available, where there
    were others before it.
    """
    check_id(id)
    now = reader.pin()
    name = name_of(kind)
    code = now.catalog.kind_code(name)
    if code is None:
        return
    last: Published | None = None  # told when it is known what was before it
    for one in _in_memory(now, code, id):
        if last is not None:
            yield Change(reader, last, name, kind)
        last = one
    version = last.record.version if last is not None else None
    older: list[Published] = []
    missing = None
    if version != 1 and _lacks_some(now):
        try:
            with checking_descriptors():
                older, missing = _in_journal(reader, now, code, id, last.record if last is not None else None)
        except Compacted as error:  # of nothing that is left, without a journal, nothing is told
            missing = error if last is not None or journal_files(reader.folder.path) else None
    if last is not None:
        yield Change(reader, last._replace(earlier=older[0].record if older else None), name, kind)
    for one in older:
        yield Change(reader, one, name, kind)
    if missing is not None:
        raise compacted_everywhere(0, now, missing)


def _lacks_some(now: Held) -> bool:
    """Whether memory may lack some of what ever was: keys are forgotten before their records go. Asked after the look,
    because more of them may have been meanwhile.
    """
    return now.root.oldest > 0 or (isinstance(now, Pin) and now.view.root.forgotten > 0)


def _in_memory(now: Held, code: int, id: str) -> Iterator[Published]:
    """Its records, the newest first, as far as memory goes."""
    try:
        address = now.find(code, id)
        while address and (found := now.whole(address)).key == id:
            yield Published(now, address, found)
            address = now.previous(address)
    except (FileNotFoundError, SnapshotExpired):
        pass


def _in_journal(
    reader: AnyReader, now: Held, code: int, id: str, last: record.Record | None
) -> tuple[list[Published], Compacted | None]:
    """Those before the last one that memory holds, or all, the newest first; and whether there may have been others
    before. Raises Compacted.
    """
    folder = reader.folder.path
    begin = _oldest(folder, now)
    older: list[Published] = []
    if (kept := _in_checkpoint(folder, begin, code, id)) is not None and _is_before(kept, last):
        older.append(Published(now, 0, kept, is_cut=True))
    for found in _behind(folder, begin, now, code, id):
        if _is_before(found, last):
            older.append(Published(now, 0, found, older[-1].record if older else None))
    missing = None
    first = older[0].record if older else last
    if first is not None and first.version > 1 and begin:
        missing = Compacted(f"its history begins with version {first.version}", oldest=first.revision)
    return older[::-1], missing


def _is_before(found: record.Record, last: record.Record | None) -> bool:
    return last is None or found.version < last.version


def before(reader: AnyReader, now: Held, this: record.Record) -> record.Record | None:
    """The record of the same entity before this one, from the journal; None if there was none. Raises Compacted."""
    folder, code, id = reader.folder.path, this.kind, this.key
    try:
        begin = _oldest(folder, now)
        earlier = _in_checkpoint(folder, begin, code, id)
        if earlier is None or _is_before(earlier, this):
            for found in _behind(folder, begin, now, code, id):
                if not _is_before(found, this):
                    return earlier
                earlier = found
    except Compacted as error:
        raise compacted_everywhere(0, now, error) from None
    gone = f"what was before version {this.version} of {id!r} is not available any more"
    raise Compacted(gone, oldest=now.root.whole)


def lived_on(reader: AnyReader, now: Held, code: int, id: str, since: int, until: int) -> bool:
    """Whether the journal says that two versions of a key are of one life: no other one began between them."""
    folder = reader.folder.path
    known = ended = False
    try:
        begin = _oldest(folder, now)
        kept = _in_checkpoint(folder, begin, code, id)
        for found in chain([] if kept is None else [kept], _behind(folder, begin, now, code, id)):
            if found.version > until:
                break
            if found.version > since and ended:
                return False
            known = known or found.version <= since or (found.version == since + 1 and bool(found.old_cells))
            ended = found.deleted
    except Compacted:
        return False
    return known


def _oldest(folder: Path, now: Held) -> int:
    """The entry behind which what is kept begins. Raises Compacted, also where it is another history's."""
    check_own_history(folder, now)
    return oldest_entry(folder)


def _in_checkpoint(folder: Path, begin: int, code: int, id: str) -> record.Record | None:
    """The record of an entity in the checkpoint with which what is kept begins, if it begins with one."""
    if not begin:
        return None
    with own_checkpoint(folder, begin) as checkpoint:
        return checkpoint.record_of(code, id)


def _behind(folder: Path, begin: int, now: Held, code: int, id: str) -> Iterator[record.Record]:
    """Those in the journal's entries behind it, the oldest first."""
    key = id.encode("utf-8", "surrogatepass")
    for entry in entries_between(folder, begin + 1, now.root.entry):
        for body in entry.records():
            if record.kind_at(body, 0) == code and record.key_at(body, 0) == key:
                yield record.unpack(body)
