"""What a start may do to memory that nobody reads yet, and no turn may: it makes room and uses it at once, and is whole
only in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from solewriter.engine_proc.publisher import Installed, Publisher
from solewriter.shared.memory.heap import OFFSET_MASK, PREFIX_BYTES, padded
from solewriter.shared.memory.index import key_hash
from solewriter.shared.record import OVERTAKEN, Flags


def install(publisher: Publisher, one: Installed) -> None:
    """A record that is in the heap becomes its slot's newest. Raises MemoryFull."""
    publisher.heap.flush()
    table, index = publisher.table(one.kind), publisher.index(one.kind)
    if one.new_key is not None:
        hashed = key_hash(one.new_key)
        table.reserve(one.slot + 1)
        index.reserve([hashed])
        index.insert(hashed, one.slot)
    publisher.usage.count_installed([one])
    table.install(one.slot, one.address, one.cells, one.alive)


def overtake_all(publisher: Publisher, kind: int, slots: Sequence[int]) -> int:
    """These slots' records, if they have any, are about to be replaced. How many were no tombstones."""
    head, segments, sizes, count = publisher.table(kind).head, publisher.heap.segments, [0, 0], [0, 0]
    for address in filter(None, map(head, slots)):
        length, flags = OVERTAKEN.unpack_from(segments[address >> 32].map, (address & OFFSET_MASK) + PREFIX_BYTES)
        deleted = flags & Flags.DELETE
        sizes[deleted] += padded(length)
        count[deleted] += 1
    publisher.usage.count_overtaken(sizes[False], True)
    publisher.usage.count_overtaken(sizes[True], False)
    return count[False]


def note(publisher: Publisher, revision: int) -> None:
    """A point of the revision log behind what is in the heap so far. Raises MemoryFull."""
    publisher.revlog.reserve()
    publisher.revlog.append(revision, publisher.heap.tail)
