"""Who holds which task, and until when: the part of a claim that no entity says.

A lease ends with its session's process, with its time, or when its task is handed in, given back or taken away. Whose
process is not known to be dead, and who has no lane, has some time to come back.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from solewriter.shared.config import STALE_MAX
from solewriter.shared.journal.entry import Lease
from solewriter.shared.kinds.columns import text_hash

Place = tuple[int, str]  # kind code, id
End = tuple[int, Place, int]  # until when, which task, the token that it was


class Lost(NamedTuple):
    """A claim that is lost, and could not be taken away yet."""

    lease: Lease
    why: str
    again_us: int  # when that is tried again; 0: not by itself


class Leases:
    """All leases, by task, by session and by end. Changed by a committed turn and by recovery, by nothing else."""

    def __init__(self) -> None:
        self.by_place: dict[Place, Lease] = {}
        self._by_session: dict[int, set[Place]] = {}
        self._ends: list[End] = []  # a heap
        self.lost: dict[Place, Lost] = {}
        self.deadly: set[int] = set()  # see `loss_of`: those in which engines died, one after the other

    def __bool__(self) -> bool:
        return bool(self.by_place)

    def __len__(self) -> int:
        return len(self.by_place)

    def get(self, place: Place) -> Lease | None:
        return self.by_place.get(place)

    def all(self) -> list[Lease]:
        """For a checkpoint."""
        return list(self.by_place.values())

    def of_session(self, session: int) -> list[Lease]:
        """In the order of their tasks' ids."""
        return [self.by_place[place] for place in sorted(self._by_session.get(session, ()))]

    @property
    def sessions(self) -> KeysView[int]:
        return self._by_session.keys()

    def take(self, lease: Lease) -> None:
        """A lease as a committed entry says it is; with token 0 it has ended."""
        place = lease.kind, lease.key
        before = self.by_place.pop(place, None)
        if before is not None:
            held = self._by_session[before.session]
            held.discard(place)
            if not held:
                del self._by_session[before.session]
            self.lost.pop(place, None)
        if lease.token:
            self.by_place[place] = lease
            self._by_session.setdefault(lease.session, set()).add(place)
            if lease.until_us:
                self._end(lease)

    def put_off(self, lost: Lost) -> None:
        """A claim that is lost stays for now."""
        self.lost[lost.lease.kind, lost.lease.key] = lost
        if lost.again_us:
            self._end(lost.lease)

    def try_again(self) -> None:
        """At the next occasion, all that stay for now."""
        lost, self.lost = self.lost, {}
        for place, one in lost.items():
            if self.by_place.get(place) == one.lease:
                self.put_off(one if one.again_us else one._replace(again_us=1))

    def _end(self, lease: Lease) -> None:
        """Remember when it ends. Most end otherwise, or are renewed: what is left of those must not add up."""
        heappush(self._ends, self._end_of(lease))
        if len(self._ends) > 2 * len(self.by_place) + STALE_MAX:
            self._ends = [end for end in map(self._end_of, self.by_place.values()) if end[0]]
            heapify(self._ends)

    def _end_of(self, lease: Lease) -> End:
        place = lease.kind, lease.key
        lost = self.lost.get(place) if self.lost else None
        until_us = lease.until_us if lost is None or lost.lease != lease else lost.again_us
        return until_us, place, lease.token

    def restore(self, leases: Iterable[Lease]) -> None:
        self.by_place.clear()
        self._by_session, self._ends = {}, []
        for lease in leases:
            self.take(lease)

    def begin_anew(self, now_us: int) -> None:
        """The clock of before is gone with its boot: each has its whole time once more."""
        for lease in self.all():
            if lease.lease_us:
                self.take(renewed(lease, lease.lease_us, now_us))

    @property
    def next_us(self) -> int:
        """When the next one ends; 0: none does by itself."""
        ends = self._ends
        while ends and not self._is_so(*ends[0]):
            heappop(ends)
        return ends[0][0] if ends else 0

    def over(self, now_us: int, most: int) -> list[Lease]:
        """So many of those whose time is up, in the order of their tasks' ids. They stay until that is committed."""
        ends, over = self._ends, dict[Place, Lease]()
        while ends and ends[0][0] <= now_us and len(over) < most:
            end = heappop(ends)
            if self._is_so(*end):
                over[end[1]] = self.by_place[end[1]]
        for lease in over.values():
            heappush(ends, self._end_of(lease))
        return [over[place] for place in sorted(over)]

    def _is_so(self, until_us: int, place: Place, token: int) -> bool:
        lease = self.by_place.get(place)
        return lease is not None and self._end_of(lease) == (until_us, place, token)


def renewed(lease: Lease, lease_us: int, now_us: int) -> Lease:
    return Lease(lease.kind, lease.key, lease.token, lease.session, lease_us, now_us + lease_us)


def loss_of(lease: Lease) -> int:
    """What names the loss of this claim, whichever engine decides it, in place of a request's number."""
    return text_hash(f"{lease.kind} {lease.token} {lease.key}")


def ended_lease(place: Place) -> Lease:
    return Lease(*place, 0, 0)
