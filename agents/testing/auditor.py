"""Reads a ledger in every way that there is, and notes whatever does not fit.

One read is one entity looked at: by a get, in an iteration, in the list that a scan gave, as a row of columns all of
which are checked. A count or a count by values is one read, however many entities it counted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solewriter.agents.reader import Reader
from solewriter.agents.snapshot import Snapshot
from solewriter.agents.testing.ledger import (
    ACCOUNTS,
    LABELS,
    MOVED,
    OPENED,
    OWNERS,
    PAIRS,
    STONES,
    TALLY,
    TOTAL,
    Account,
    Left,
    Right,
    Stone,
    Tally,
    face_of,
    fields_of,
    owner_of,
    seal_of,
    weight_of,
)
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.entity import Entity
from solewriter.shared.errors import EngineUnavailable, SnapshotExpired
from solewriter.shared.where import Range

HELD_MAX = 4  # snapshots that are read again later
HELD_SPAN = 8_000  # revisions after which a held snapshot is let go: each look at it costs more, the older it is
HELD_SHARE = 0.05  # of looks after which one is held, and of those with which a held one is read
ROWS_SHARE = 16  # snapshots whose columns are read, for each one that is read in another way: they are so much cheaper
PAGE = 200  # entities, of a scan in pages
NOTED_MAX = 100  # violations kept as text; one bug can make thousands
IDS = [f"a{number}" for number in range(ACCOUNTS)]
PAIR_IDS = [f"p{number}" for number in range(PAIRS)]
OWNED = {owner_of(number): ACCOUNTS // OWNERS for number in range(OWNERS)}


def _objects(values: Iterable[str]) -> NDArray[Any]:
    return np.array(list(values), object)


_LABELS = _objects(LABELS)
_NUMBERS = np.arange(STONES)
_WEIGHTS = np.array([weight_of(number) for number in range(STONES)])
_OWNERS = _objects(owner_of(number) for number in range(ACCOUNTS))


class Notes:
    """What does not fit. `say` hears the first ones."""

    def __init__(self, say: Callable[[str], object] = lambda text: None) -> None:
        self._say = say
        self.count = 0
        self.texts: list[str] = []

    def fits(self, true: object, what: str, *seen: object) -> None:
        """Note a violation unless it is true."""
        if not true:
            self.count += 1
            if len(self.texts) < NOTED_MAX:
                self.texts.append(f"{what}: {', '.join(map(str, seen))}" if seen else what)
                self._say(self.texts[-1])

    @contextmanager
    def whatever_fails(self, where: str) -> Iterator[None]:
        """A read that fails is a violation; no engine at all, or an old snapshot's end, is none."""
        try:
            yield
        except (EngineUnavailable, SnapshotExpired):
            raise
        except Exception as error:
            self.fits(False, f"{where}: {type(error).__name__}", error)


Way = Callable[[Snapshot], None]


class Held(NamedTuple):
    """A snapshot for later, and what was seen in it, if anything was."""

    snapshot: Snapshot
    since: float  # CLOCK_MONOTONIC
    seen: list[Entity] | None


class Auditor:
    """One reader's looks. The same seed looks in the same ways, at whatever there is by then."""

    def __init__(self, reader: Reader, seed: int, notes: Notes) -> None:
        self._reader = reader
        self._chance = random.Random(seed)
        self._notes = notes
        self._held: list[Held] = []
        self._fine: dict[str, Account] = {}  # accounts that fit by themselves: the same object needs no second look
        self.reads = self.snapshots = self.scans = 0
        self.ways: tuple[Way, ...] = (
            self.by_gets, self.by_iteration, self.by_name, self.by_scans, self.by_pages, self.by_counts,
            self.by_columns, self.by_stones,
        )  # fmt: skip

    def look(self) -> None:
        """At new snapshots in several ways, and sometimes at one that was held."""
        for _ in range(ROWS_SHARE):
            self.look_by(self.by_columns, self._reader.snapshot())
        snapshot, way = self._reader.snapshot(), self._chance.choice(self.ways)
        self.look_by(way, snapshot)
        if way == self.by_iteration:
            self.look_by(self.by_gets, snapshot)  # everything is decoded
        self.snapshots += ROWS_SHARE + 1
        if self._chance.random() < HELD_SHARE:
            self.hold(snapshot, idle=self._chance.random() < 0.5)
        if self._held and self._chance.random() < HELD_SHARE:
            self.look_again(self._chance.randrange(len(self._held)))

    def look_by(self, way: Way, snapshot: Snapshot) -> None:
        """In one way."""
        with self._notes.whatever_fails(f"revision {snapshot.revision} {way.__name__}"):
            way(snapshot)

    def hold(self, snapshot: Snapshot, *, idle: bool) -> None:
        """Keep it for later; an idle one is not read now."""
        if len(self._held) == HELD_MAX:
            self._held.pop(self._chance.randrange(HELD_MAX))
        seen: list[Entity] | None = None if idle else [*snapshot.entities(Account)]
        self._held.append(Held(snapshot, time.monotonic(), seen))

    def look_again(self, place: int) -> None:
        """At a held snapshot: it says what it said."""
        held = self._held[place]
        if self._reader.revision - held.snapshot.revision > HELD_SPAN:
            del self._held[place]
        try:
            with self._notes.whatever_fails(f"held revision {held.snapshot.revision}"):
                self._chance.choice(self.ways)(held.snapshot)
                if held.seen is not None:
                    again = [*held.snapshot.entities(Account)]
                    self._count(again)
                    self._notes.fits(again == held.seen, "a held snapshot changed", held.snapshot.revision)
        except SnapshotExpired:
            self._held.remove(held)
            age_s = time.monotonic() - held.since
            self._notes.fits(age_s > DEFAULT_LIMITS.snapshot_age_max_s, "expired too early", f"{age_s:.1f} s")

    def _count(self, found: Sequence[object]) -> None:
        self.reads += len(found)

    # --- what must be true -------------------------------------------------------------------------------------------

    def _accounts_fit(self, accounts: list[Account], revision: int) -> None:
        """All accounts of one revision."""
        self._count(accounts)
        fits = self._notes.fits
        for account in accounts:
            self._fits(account, revision)
        fits(len(accounts) == ACCOUNTS, "accounts are missing or too many", revision, len(accounts))
        total = sum(account.amount for account in accounts)
        fits(total == TOTAL, "the sum is wrong", revision, total)
        newest = sum(account.at == revision for account in accounts)
        fits(newest == MOVED or revision <= OPENED, "not the newest accounts", revision, newest)

    def _fits(self, account: Account, revision: int) -> None:
        """One of them by itself."""
        self._notes.fits(account.at <= revision, "an account is from the future", revision, account)
        if self._fine.get(account.id) is account:
            return
        whole = fields_of(account.amount, account.at).items() <= account.__dict__.items()
        self._notes.fits(whole and account.owner == owner_of(int(account.id[1:])), "an account is torn", account)
        self._fine[account.id] = account

    def _pairs_fit(self, left: Iterable[Left], right: Iterable[Right], tally: Tally | None, revision: int) -> None:
        """All pairs, and the tally, of one revision."""
        ones = {one.id: (one.size, one.at, one.version) for one in left}
        others = {one.id: (one.size, one.at, one.version) for one in right}
        self.reads += len(ones) + len(others) + 1
        self._notes.fits(ones == others, "halves do not fit", revision, ones.items() ^ others.items())
        counted = (revision, len(ones), sum(size for size, _, _ in ones.values()))
        told = tally and (tally.at, tally.pairs, tally.size)
        self._notes.fits(counted == told, "the tally is wrong", counted, told)

    # --- the ways ----------------------------------------------------------------------------------------------------

    def by_gets(self, snapshot: Snapshot) -> None:
        """One by one, in any order."""
        ids = self._chance.sample(IDS, ACCOUNTS)
        found = [account for id in ids if (account := snapshot.get(Account, id)) is not None]
        self._accounts_fit(found, snapshot.revision)
        left = [one for id in PAIR_IDS if (one := snapshot.get(Left, id)) is not None]
        right = [other for id in PAIR_IDS if (other := snapshot.get(Right, id)) is not None]
        self._pairs_fit(left, right, snapshot.get(Tally, TALLY), snapshot.revision)

    def by_iteration(self, snapshot: Snapshot) -> None:
        """All of a kind, one after the other."""
        self._accounts_fit([*snapshot.entities(Account)], snapshot.revision)
        (tally,) = snapshot.entities(Tally)
        self._pairs_fit(snapshot.entities(Left), snapshot.entities(Right), tally, snapshot.revision)

    def by_name(self, snapshot: Snapshot) -> None:
        """All of a kind as plain values, each decoded anew."""
        found = [Account.model_construct(None, **fields) for fields in snapshot.entities("Account")]
        self._accounts_fit(found, snapshot.revision)

    def by_scans(self, snapshot: Snapshot) -> None:
        """By conditions that split everything in two, or ask for little."""
        revision, fits = snapshot.revision, self._notes.fits
        self.scans += 7
        even, odd = (snapshot.scan(Account, {"even": even}) for even in (True, False))
        fits(all(one.even for one in even) and not any(one.even for one in odd), "a scan found others", revision)
        self._accounts_fit([*even, *odd], revision)
        since, label = revision - self._chance.randrange(1, 20), self._chance.choice(LABELS)
        recent = snapshot.scan(Account, {"at": Range(gt=since)})
        fits(all(one.at > since for one in recent), "a scan found older ones", revision)
        labelled = snapshot.scan(Account, {"label": label, "amount": Range(ge=0)})
        fits(all(one.label == label and one.amount >= 0 for one in labelled), "a scan by text found others", revision)
        for account in (*recent, *labelled):
            self._fits(account, revision)
        self._count((*recent, *labelled))
        left, right = snapshot.scan(Left, order_by="size"), snapshot.scan(Right, order_by="size")
        fits([one.size for one in left] == sorted(one.size for one in right), "an order is wrong", revision)
        self._pairs_fit(left, right, next(iter(snapshot.scan(Tally, {"at": revision})), None), revision)

    def by_pages(self, snapshot: Snapshot) -> None:
        """In order of a column, page by page."""
        found: list[Account] = []
        order_by = self._chance.choice(("amount", "-amount", "-at", "half", "label"))
        while len(found) <= ACCOUNTS and (
            page := snapshot.scan(Account, order_by=order_by, limit=PAGE, after=found[-1] if found else None)
        ):
            found += page
            self.scans += 1
        self._accounts_fit(found, snapshot.revision)
        keys = [getattr(account, order_by.removeprefix("-")) for account in found]
        in_order = sorted(keys, reverse=order_by.startswith("-"))
        self._notes.fits(keys == in_order, "pages are not in order", snapshot.revision, order_by)

    def by_counts(self, snapshot: Snapshot) -> None:
        """How many there are, of all and of parts."""
        revision, fits, count = snapshot.revision, self._notes.fits, snapshot.count
        self.scans += 10
        self.reads += 10
        bound = self._chance.randrange(0, 200)
        parts = {
            "all": count(Account),
            "even and odd": count(Account, {"even": True}) + count(Account, {"even": False}),
            "low and high": count(Account, {"amount": Range(lt=bound)}) + count(Account, {"amount": Range(ge=bound)}),
        }
        fits(set(parts.values()) == {ACCOUNTS}, "counts do not add up", revision, parts)
        newest = count(Account, {"at": revision})
        fits(newest == MOVED or revision <= OPENED, "not the newest are counted", revision, newest)
        owned = snapshot.count_by(Account, "owner")
        fits(owned == OWNED, "owners are counted wrong", revision, owned)
        by_parity = snapshot.count_by(Account, "even")
        fits(sum(by_parity.values()) == ACCOUNTS, "values are counted wrong", revision, by_parity)
        halves = count(Left), count(Right), snapshot.counts["Left"], snapshot.counts["Right"]
        fits(len(set(halves)) == 1, "halves are counted wrong", revision, halves)

    def by_columns(self, snapshot: Snapshot) -> None:
        """As arrays, all rows of which are checked."""
        revision, fits = snapshot.revision, self._notes.fits
        self.scans += 2
        columns = snapshot.columns(Account)
        amount, at = columns["amount"], columns["at"]
        self.reads += len(amount)
        fits(len(amount) == ACCOUNTS and amount.sum() == TOTAL, "a column's sum is wrong", revision, amount.sum())
        torn = (
            (columns["twin"] != amount)
            | (columns["half"] * 2 != amount)
            | (columns["even"] != (amount % 2 == 0))
            | (columns["seal"] != seal_of(amount, at))
            | (columns["label"] != _LABELS[amount % len(LABELS)])
            | (at > revision)
        )
        fits(not torn.any(), "columns are torn", revision, np.flatnonzero(torn))
        fits(np.array_equal(columns["owner"], _OWNERS), "rows are not in order", revision)
        fits((at == revision).sum() == MOVED or revision <= OPENED, "not the newest rows", revision)
        left, right = snapshot.columns(Left), snapshot.columns(Right)
        self.reads += len(left["size"]) + len(right["size"])
        same = [np.array_equal(left[name], right[name]) for name in ("size", "at")]
        fits(all(same), "columns of halves do not fit", revision)

    def by_stones(self, snapshot: Snapshot) -> None:
        """What never changes and is moved all the time: some of it one by one, all of it as rows."""
        revision, fits = snapshot.revision, self._notes.fits
        self.scans += 2
        columns = snapshot.columns(Stone)
        whole = np.array_equal(columns["number"], _NUMBERS) and np.array_equal(columns["weight"], _WEIGHTS)
        fits(whole and snapshot.count(Stone) == STONES, "stones have changed", revision)
        self.reads += len(columns["number"]) + 1
        for number in self._chance.sample(range(STONES), 50):
            stone = snapshot.get(Stone, f"s{number}")
            fits(stone and (stone.face, stone.version) == (face_of(number), 1), "a stone has changed", revision, stone)
        self.reads += 50
