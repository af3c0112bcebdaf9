"""A state of which much is true at every revision, and the writer that keeps it so: what a stress for tearing reads.

Money moves between accounts, two at a time, so its sum never changes. Pairs of a left and a right one, of two kinds,
are made, changed and deleted together. The one tally says the revision at which it was written, and is part of every
request. Of one account, too, every field follows from its amount and its revision, in columns and outside of them. So
whatever a reader puts together from two revisions does not fit. Stones lie there and never change, so that most of what
is moved when memory is reclaimed is nobody's change, and memory reaches back for some time.

All of it holds where this writer is the only one, on a state that was empty before.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator

from solewriter.agents.exchange import Exchange
from solewriter.agents.pending import Pending, error_of
from solewriter.agents.session import AgentSession
from solewriter.shared import wireform
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.entity import Entity
from solewriter.shared.errors import SolewriterError
from solewriter.shared.folder import StateFolder
from solewriter.shared.mutations import Create, Delete, Mutation, Update
from solewriter.shared.registry import Registry

ACCOUNTS = 1_024
PAIRS = 192
OWNERS = 8
TOTAL = 100 * ACCOUNTS
MOVED = 2  # accounts that every request changes
TALLY = "tally"
LABELS = tuple(f"label {number}" for number in range(50))
STONES = 4_096
SHARE = 256  # entities that one request of the opening makes
OPENED = (ACCOUNTS + STONES) // SHARE  # revisions after which the state is as described
BATCH = 16  # requests in a frame


class Account(Entity, columns=("owner", "amount", "twin", "half", "even", "label", "at", "seal")):
    """Everything but the owner follows from `amount`, and from `at`, the revision that changed it last."""

    owner: str
    amount: int
    twin: int
    half: float
    even: bool
    label: str
    note: str
    at: int
    seal: int


class Left(Entity, columns=("size", "at")):
    """Half of a pair."""

    size: int
    at: int


class Right(Entity, columns=("size", "at")):
    """The other half: there while the left one of the same id is, and of its size."""

    size: int
    at: int


class Stone(Entity, columns=("number", "weight")):
    """Never changes."""

    number: int
    weight: int
    face: str


class Tally(Entity, columns=("at", "pairs")):
    """There is one."""

    at: int
    pairs: int
    size: int  # of all pairs together


MODELS: tuple[type[Entity], ...] = (Account, Left, Right, Stone, Tally)


def owner_of(number: int) -> str:
    return f"owner {number % OWNERS}"


def seal_of(amount: int, at: int) -> int:
    return amount * 1_000_003 + at * 97


def note_of(amount: int) -> str:
    """As long as its amount says, so that records are of many lengths."""
    return f"{amount}." * (amount % 40)


def weight_of(number: int) -> int:
    return number * 31 % 1_009


def face_of(number: int) -> str:
    return f"stone {number} of weight {weight_of(number)}; " * 40


def fields_of(amount: int, at: int) -> dict[str, int | float | bool | str]:
    """All that follows from an account's amount and revision."""
    return {
        "amount": amount,
        "twin": amount,
        "half": amount / 2,
        "even": amount % 2 == 0,
        "label": LABELS[amount % len(LABELS)],
        "note": note_of(amount),
        "at": at,
        "seal": seal_of(amount, at),
    }


class Ledger:
    """What is stored after the requests so far, and the next one. The same seed makes the same requests."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.revision = 0
        self.amounts = [TOTAL // ACCOUNTS] * ACCOUNTS
        self.pairs: dict[str, int] = {}  # id -> size

    def opening(self) -> Iterator[list[Mutation]]:
        """The first requests: all stones, all accounts, and the tally with each of them."""
        for made in (self._stone, self._account):
            for first in range(0, STONES if made == self._stone else ACCOUNTS, SHARE):
                self.revision += 1
                yield [*(Create(made(number)) for number in range(first, first + SHARE)), self._tallied()]

    def _stone(self, number: int) -> Entity:
        return Stone(id=f"s{number}", number=number, weight=weight_of(number), face=face_of(number))

    def _account(self, number: int) -> Entity:
        fields = fields_of(self.amounts[number], self.revision)
        return Account.model_validate({"id": f"a{number}", "owner": owner_of(number), **fields})

    def next(self) -> list[Mutation]:
        """Money moves; mostly something becomes of a pair, too."""
        self.revision += 1
        chance = self._chance
        giver, taker = chance.sample(range(ACCOUNTS), MOVED)
        moved = chance.randrange(1, 60)
        self.amounts[giver] -= moved
        self.amounts[taker] += moved
        changed: list[Mutation] = [
            Update(Account.ref(f"a{number}"), fields_of(self.amounts[number], self.revision))
            for number in (giver, taker)
        ]
        if chance.random() < 0.7:
            changed += self._of_a_pair(f"p{chance.randrange(PAIRS)}")
        changed.append(self._tallied())
        chance.shuffle(changed)
        return changed

    def _of_a_pair(self, id: str) -> list[Mutation]:
        size = self._chance.randrange(1_000)
        if id not in self.pairs:
            self.pairs[id] = size
            return [Create(kind(id=id, size=size, at=self.revision)) for kind in (Left, Right)]
        if self._chance.random() < 0.4:
            del self.pairs[id]
            return [Delete(kind.ref(id)) for kind in (Left, Right)]
        self.pairs[id] = size
        return [Update(kind.ref(id), {"size": size, "at": self.revision}) for kind in (Left, Right)]

    def _tallied(self) -> Mutation:
        fields = {"at": self.revision, "pairs": len(self.pairs), "size": sum(self.pairs.values())}
        if self.revision == 1:
            return Create(Tally.model_validate({"id": TALLY, **fields}))
        return Update(Tally.ref(TALLY), fields)


class Writer:
    """Sends a ledger's requests, many in flight. Raises SolewriterError for any that was not applied."""

    def __init__(self, folder: StateFolder, ledger: Ledger) -> None:
        self._ledger = ledger
        self._registry = Registry(MODELS)
        self._session = AgentSession(DEFAULT_LIMITS, "ledger", None)
        self._exchange = Exchange(folder, self._session, DEFAULT_LIMITS)
        self._in_flight: deque[Pending] = deque()
        for mutations in ledger.opening():
            self._send([mutations])
        self._answered(0)

    def write(self, going_on: Callable[[], bool]) -> int:
        """Until then; how many requests were applied, those that opened the ledger included."""
        while going_on():
            self._send([self._ledger.next() for _ in range(BATCH)])
            self._answered(self._session.window - BATCH)
        self._answered(0)
        return self._ledger.revision

    def _send(self, batch: list[list[Mutation]]) -> None:
        requests = [wireform.plain_request(one, (), None, self._registry, DEFAULT_LIMITS) for one in batch]
        for sent in self._exchange.send(requests, _deadline()):
            if isinstance(sent, SolewriterError):
                raise sent
            self._in_flight.append(sent)

    def _answered(self, most: int) -> None:
        """Wait until no more than so many are open."""
        while len(self._in_flight) > most:
            pending = self._in_flight.popleft()
            self._exchange.wait(pending, _deadline())
            error = error_of(pending)
            if error is not None:
                raise error

    def close(self) -> None:
        self._exchange.close()


def _deadline() -> float:
    return time.monotonic() + DEFAULT_LIMITS.request_timeout_s
