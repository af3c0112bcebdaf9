"""Who holds which task, and until when: the part of a claim that no entity says.

A lease ends with its session's process, with its time, or when its task is handed in, given back or taken away. Whose
process is not known to be dead, and who has no lane, has some time to come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from solewriter.shared.entry import Lease

Place = tuple[int, str]  # kind code, id


class Leases:
    """All of them. Changed by a committed turn and by recovery, by nothing else."""

    def __init__(self) -> None:
        self.by_place: dict[Place, Lease] = {}
        self._by_session: dict[int, set[Place]] = {}
        self._ends: list[tuple[int, Place, int]] = []  # a heap: until when, which task, the token that it was

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
    def sessions(self) -> Iterable[int]:
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
        if lease.token:
            self.by_place[place] = lease
            self._by_session.setdefault(lease.session, set()).add(place)
            if lease.until_us:
                heappush(self._ends, (lease.until_us, place, lease.token))

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

    def over(self, now_us: int) -> list[Lease]:
        """Those whose time is up. They stay until their loss is committed."""
        over: dict[Place, Lease] = {}
        for until_us, place, token in self._ends:
            if until_us <= now_us and self._is_so(until_us, place, token):
                over[place] = self.by_place[place]
        return [over[place] for place in sorted(over)]

    def _is_so(self, until_us: int, place: Place, token: int) -> bool:
        lease = self.by_place.get(place)
        return lease is not None and lease.until_us == until_us and lease.token == token


def renewed(lease: Lease, lease_us: int, now_us: int) -> Lease:
    return Lease(lease.kind, lease.key, lease.token, lease.session, lease_us, now_us + lease_us)


def ended(place: Place) -> Lease:
    return Lease(*place, 0, 0)
