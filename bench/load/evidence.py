"""What the agents know of one system's state, added up over all runs, and whether the system holds exactly that.

Nothing that the system says of itself is taken for true: versions are those that agents were told, and every entity is
looked at. So a lost step, one that happened twice, and a field that belongs to another version are all found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from solewriter.bench.kit.workload import key_of
from solewriter.bench.load.requests import Stored
from solewriter.bench.load.work import HOT, HotKey, Share, Work, Workload, shares

VERSIONS = "Q"  # the type code of an array of versions


class Evidence:
    """Of one workload over one population, all at version 1 in the beginning."""

    def __init__(self, workload: Workload, tasks: int) -> None:
        self.workload = workload
        self.versions = array(VERSIONS, [1]) * tasks
        self._created: dict[int, int] = {}  # by an agent's number

    def shares(self, agents: int) -> list[Share]:
        """What each of so many agents begins with."""
        created = [self._created.get(number, 0) for number in range(agents)]
        return shares(self.versions, created, agents)

    def note(self, share: Share, applied: int, versions: array[int]) -> None:
        """One agent ended: so many steps, and these are the versions of its own tasks now."""
        if self.workload.share is HotKey:
            self.versions[HOT] += applied
            return
        self.versions[share.number :: share.agents] = versions
        if self.workload.name == "create":
            self._created[share.number] = self._created.get(share.number, 0) + applied

    def faults(self, stored: Iterable[Stored]) -> Iterator[str]:
        """What does not add up, one sentence for each thing; nothing if all is as it must be."""
        missing = dict(self._expected())
        for key, version, fields in stored:
            expected = missing.pop(key, None)
            if expected is None:
                yield f"{key} is stored, and nobody made it, or it is stored twice"
            elif version != expected:
                yield f"{key} has version {version}, and its agents made {expected} of it"
            elif not self.workload.holds(version, fields):
                yield f"{key} has version {version}, but the fields of another one"
        yield from (f"{key} is lost" for key in missing)

    def _expected(self) -> Iterator[tuple[str, int]]:
        yield from ((key_of(number), version) for number, version in enumerate(self.versions))
        for number, created in self._created.items():
            yield from ((f"new-{number:02d}-{place:09d}", 1) for place in range(created))


def noted(work: Work) -> tuple[int, array[int]]:
    """What an agent tells of its own work when it has ended."""
    return work.applied, work.share.versions
