"""Random work on a real engine, beside a model that keeps the state of every revision: whatever is read is what was
there.

A seed makes a program: requests right and wrong, pipelined and in transactions; snapshots held and read later; scans,
counts and pages; watches taken up anywhere; another reader killed in the middle; the engine killed in the middle.
Small segments turn the memory over all the time. The model decides every request by itself, so replies are compared,
too, and what the model says of times is all that is left out.
"""

from __future__ import annotations

import enum
import itertools
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pytest

from solewriter import (
    Cancel,
    Create,
    Delete,
    Engine,
    Entity,
    InvalidQuery,
    Limits,
    Put,
    Range,
    Require,
    RequireAbsent,
    Task,
    TaskPriority,
    TaskStatus,
    Transition,
    Update,
    connect,
    open_reader,
    status_of,
)
from solewriter.agents.reader import Reader
from solewriter.agents.reading.change import Change
from solewriter.agents.reading.query import Query
from solewriter.agents.snapshot import Snapshot
from solewriter.agents.testing.model import Model, Refusal
from solewriter.agents.testing.steps import Fields, Key, condition_of, kinds_of, plain, step_of
from solewriter.agents.watch import Watch
from solewriter.shared.config import KIB
from solewriter.shared.memory.pin import Pin

SMALL = Limits(heap_segment_bytes_first=128 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)
TIMES = ("created_at", "updated_at")
IDS = 24  # of each kind: few, so that versions grow and deletes are undone
HELD_MAX = 6
ACTOR = "machine"
DAY = datetime(2026, 1, 1, tzinfo=UTC)


class Mood(enum.Enum):
    CALM = 1
    BUSY = 2


class Probe(Entity, columns=("level", "ratio", "when", "place", "mood", "size", "on", "version")):
    level: int | None = None
    ratio: float | None = None
    when: datetime | None = None
    place: str | None = None
    mood: Mood | None = None
    size: Literal["s", "m", "l"] = "m"
    on: bool | None = None
    text: str = ""


MODELS: dict[str, type[Entity]] = {"Task": Task, "Probe": Probe}
KINDS = kinds_of([Probe])
VALUES: dict[str, dict[str, list[Any]]] = {
    "Probe": {
        "level": [None, -5, 0, 1, 2, 2**62],
        "ratio": [None, -1.5, 0.0, 1e-300, 2.5],
        "when": [None, *(DAY + timedelta(microseconds=number) for number in range(3))],
        "place": [None, "", "here", "there", "\u00e9", "x" * 300],
        "mood": [None, *Mood],
        "size": ["s", "m", "l"],
        "on": [None, False, True],
    },
    "Task": {
        "status": [*TaskStatus],
        "priority": [*TaskPriority],
        "assigned_to": [None, "me", "you"],
        "project": ["", "p", "q"],
        "parent_task_id": [None, "other", "another"],
        "version": [1, 2, 3, 5, 8],
    },
}
FREE = {  # what an update changes, besides texts
    "Probe": list(VALUES["Probe"]),
    "Task": ["priority", "project", "parent_task_id"],
}


# --- the model --------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """One change of one entity."""

    revision: int
    op: str
    key: Key
    version: int
    old: Fields | None
    new: Fields | None


class History:
    """Every revision as it must be read."""

    def __init__(self) -> None:
        self.model = Model(KINDS)
        self.states: list[dict[Key, Fields]] = [{}]  # by revision; what is deleted is not in it
        self.made: list[list[Made]] = [[]]  # by revision
        self._entities: dict[int, Entity] = {}

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def decide(self, mutations: list[Any], guards: list[Any]) -> tuple[Any, ...]:
        """What must be told."""
        steps = [step_of(mutation) for mutation in mutations]
        try:
            draft = self.model.decide(steps, [condition_of(guard) for guard in guards], ACTOR, self._now())
        except Refusal as refusal:
            return ("refused", refusal.args[0])
        self.model.take(draft)
        if changed := draft.contents:
            before = self.states[-1]
            after = dict(before)
            ops = {step.key: step.op for step in steps}
            made = []
            for key in changed:
                stored = self.model.stored(key)
                if stored is None:
                    del after[key]
                else:
                    after[key] = stored
                made.append(
                    Made(len(self.states), ops[key], key, self.model.version(key), before.get(key), after.get(key))
                )
            self.states.append(after)
            self.made.append(made)
        return ("applied", self.revision, tuple([self.model.version(step.key) for step in steps]))

    def _now(self) -> str:
        """Another time for each request: what is deleted and put again in one is made anew."""
        return f"{datetime.fromtimestamp(len(self.states), UTC):%Y-%m-%dT%H:%M:%SZ}"

    def at(self, kind: str, revision: int) -> list[tuple[str, Fields]]:
        """What there is of a kind, in any order."""
        return [(key.id, fields) for key, fields in self.states[revision].items() if key.kind == kind]

    def of(self, snap: Snapshot, kind: str) -> list[tuple[str, Fields]]:
        """What a snapshot must have, in the order of the places that its engine gave the keys."""
        slots, there = places(snap, kind), self.at(kind, snap.revision)
        assert {id for id, _ in there} <= slots.keys(), f"of {kind} something is not found at {snap.revision}"
        return sorted(there, key=lambda found: slots[found[0]])

    def entity(self, kind: str, fields: Fields) -> Entity:
        """The same with its types; its times are not those of the engine."""
        made = self._entities.get(id(fields))
        if made is None:
            made = self._entities[id(fields)] = MODELS[kind].model_validate(fields)
        return made

    def made_since(self, since: int) -> Iterator[Made]:
        for made in self.made[since + 1 :]:
            yield from made


def told(reply: Any) -> tuple[Any, ...]:
    """A reply as the model says it."""
    if reply.error is not None:
        return ("refused", type(reply.error).__name__)
    return ("applied", reply.revision, tuple([result.version for result in reply.results]))


def places(snap: Snapshot, kind: str) -> dict[str, int]:
    """The slots of all keys that have one. One that was forgotten has none, and gets another when it comes back."""
    pin, found = snap.pin, {}
    for id in ids_of(kind):
        address = pin.find(pin.catalog.kind_code(kind), id)
        if address:
            found[id] = pin.slot_at(address)
    return found


def ids_of(kind: str) -> list[str]:
    """All that there ever may be, and one more."""
    return [f"{kind[0].lower()}{number}" for number in range(IDS + 1)]


def timeless(fields: Fields | None) -> Fields | None:
    return fields and {name: value for name, value in fields.items() if name not in TIMES}


def told_of(kind: str, entity: Any) -> Fields | None:
    """An entity of a change; a dict where its reader has not met the class yet."""
    return entity and timeless(plain(entity if isinstance(entity, Entity) else MODELS[kind].model_validate(entity)))


def digest(entities: list[Fields]) -> str:
    """Of entities in any order."""
    listed = sorted(msgspec.json.encode(timeless(one), order="deterministic").decode() for one in entities)
    return "\n".join(listed)


# --- questions --------------------------------------------------------------------------------------------------------


def a_filter(dice: random.Random, kind: str) -> dict[str, Any]:
    where: dict[str, Any] = {}
    values = VALUES[kind]
    for name in dice.sample(list(values), dice.choice((0, 0, 1, 1, 2, 3))):
        match dice.randrange(3):
            case 0:
                where[name] = dice.choice(values[name])
            case 1:
                where[name] = dice.sample(values[name], 2)
            case 2 if name in ("level", "ratio", "when", "version"):
                bounds = dice.sample(["ge", "gt", "le", "lt"], dice.randrange(1, 3))
                where[name] = Range(**{bound: dice.choice([one for one in values[name] if one is not None])
                                       for bound in bounds})  # fmt: skip
    return where


def meets(entity: Entity | None, where: Mapping[str, Any]) -> bool:
    return entity is not None and all(_meets(getattr(entity, name), wanted) for name, wanted in where.items())


def _meets(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Range):
        return value is not None and not (
            (wanted.ge is not None and value < wanted.ge)
            or (wanted.gt is not None and value <= wanted.gt)
            or (wanted.le is not None and value > wanted.le)
            or (wanted.lt is not None and value >= wanted.lt)
        )
    return value in wanted if isinstance(wanted, list) else value == wanted


def rank(name: str, value: Any) -> Any:
    """By what a column is sorted: None first, but NaN, which stands for it in a column of floats, last."""
    match value:
        case None:
            return "" if name in ("place", "assigned_to", "project", "parent_task_id") else -math.inf
        case enum.Enum():
            return list(type(value)).index(value)
        case datetime():
            return (value - DAY) / timedelta(microseconds=1)
    return value


def in_order(entities: list[Entity], order_by: str | None) -> list[Entity]:
    """Equal ones stay as they are; what has no float comes last in both directions."""
    if order_by is None:
        return entities
    name, sign = order_by.removeprefix("-"), -1 if order_by.startswith("-") else 1
    ranks = [rank(name, getattr(one, name)) for one in entities]
    places = {value: place for place, value in enumerate(sorted(set(ranks)))}
    last = [name == "ratio" and value == -math.inf for value in ranks]
    order = sorted(range(len(entities)), key=lambda place: (last[place], sign * places[ranks[place]], place))
    return [entities[place] for place in order]


# --- the machine ------------------------------------------------------------------------------------------------------

ONLOOKER = """
import os, sys
import msgspec
from solewriter import open_reader

os.nice(10)

def digest(entities):
    entities = [{name: value for name, value in one.items() if name not in ("created_at", "updated_at")}
                for one in entities]
    return "\\n".join(sorted(msgspec.json.encode(one, order="deterministic").decode() for one in entities))

with open_reader(sys.argv[1]) as reader, open(sys.argv[2], "ab", buffering=0) as said:
    while True:
        snap = reader.snapshot()
        for kind in ("Task", "Probe"):
            by_turns = snap.entities, snap.scan
            for way in by_turns:
                found = digest(way(kind))
                said.write(msgspec.json.encode((snap.revision, kind, way.__name__, found)) + b"\\n")
"""


class Onlooker:
    """A reader in another process, which notes what it sees until it is killed."""

    def __init__(self, state: Path, path: Path) -> None:
        self.path = path
        path.touch()
        self._process = subprocess.Popen([sys.executable, "-c", ONLOOKER, str(state), str(path)])

    def sees(self) -> bool:
        return self._process.poll() is None and self.path.stat().st_size > 0

    def kill(self) -> list[tuple[int, str, str, str]]:
        """What it saw, as far as it came."""
        self._process.kill()
        self._process.wait()
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        return [msgspec.json.decode(line, type=tuple[int, str, str, str]) for line in whole.splitlines()]


class Following(NamedTuple):
    """A watch, and what must come of it."""

    watch: Any
    kind: str | None
    where: dict[str, Any]
    place: list[int]  # [revision, records of the next one that were seen]


class Machine:
    """One run of a seed. `steps` are its acts, with how often they are done."""

    def __init__(
        self, seed: int, engine: Engine, folder: Path, wait_until: Callable[..., Any], stack: ExitStack
    ) -> None:
        self.dice = random.Random(seed)
        self.engine = engine
        self.folder = folder
        self.wait_until = wait_until
        self.history = History()
        self.client = stack.enter_context(connect(engine.state, name=ACTOR))
        self.reader: Reader = stack.enter_context(open_reader(engine.state))
        self.held: list[Snapshot] = []
        self.following: list[Following] = []
        self.onlooker: Onlooker | None = None
        self.counted: Counter[str] = Counter()
        self.numbers = itertools.count()
        stack.callback(lambda: self.onlooker and self.onlooker.kill())
        self.acts: list[tuple[Callable[[], None], int]] = [
            (self.write, 30), (self.transact, 16), (self.hold, 6), (self.look_at_the_newest, 6),
            (self.look_at_what_is_held, 6), (self.ask_the_newest, 10), (self.ask_what_is_held, 6), (self.turn_pages, 5),
            (self.begin_a_watch, 4), (self.go_on_watching, 16), (self.watch_from_anywhere, 4), (self.kill_a_reader, 1),
            (self.look_back, 4),
        ]  # fmt: skip

    def run(self, steps: int, kills: int) -> None:
        at = set(self.dice.sample(range(steps // 4, steps), kills))
        acts, weights = zip(*self.acts, strict=True)
        done: list[str] = []
        for number in range(steps):
            act = self.kill_the_engine if number in at else self.dice.choices(acts, weights)[0]
            done.append(act.__name__)
            try:
                act()
            except BaseException as error:
                error.add_note(f"step {number} of: {' '.join(done[-12:])}; revision {self.history.revision}")
                raise
        self.end()

    def end(self) -> None:
        """Everything that is still open, once more; then nothing is held any more."""
        while self.held:
            self.whole(self.held[0])
            self.questions(self.held.pop(0), 3)
        while self.following:
            self.follow(self.following.pop(), None)
        self.look_at_the_newest()
        self.counted["turnovers"] += self.reader.snapshot().pin.root.first_segment - 1
        self.kill_a_reader()
        self.reader.close()
        self.client.reader.let_go()
        self.wait_until(lambda: status_of(self.engine.state).memory_held_bytes == 0, 20, "all memory is given back")

    # --- requests

    def write(self, kill: bool = False) -> None:
        """Requests of one mutation, pipelined. The model decides each when it is made; the engine may die meanwhile."""
        mutations, expected = [], []
        for _ in range(self.dice.randrange(5, 60)):
            mutations.append(self.mutation())
            expected.append(self.history.decide(mutations[-1:], []))
        dies = self.dice.randrange(len(mutations)) if kill else -1

        def sent() -> Iterator[Any]:
            for place, mutation in enumerate(mutations):
                if place == dies:
                    os.kill(self.engine.pid, signal.SIGKILL)
                yield mutation

        replies = [told(reply) for reply in self.client.submit_many(sent(), window=self.dice.choice((1, 16, 256)))]
        assert replies == expected
        self.counted.update(reply[0] for reply in replies)

    def transact(self) -> None:
        """Several mutations, of both kinds, at one revision or not at all."""
        mutations = [self.mutation() for _ in range(self.dice.randrange(2, 7))]
        guards = [self.guard()] if self.dice.random() < 0.3 else []
        expected = self.history.decide(mutations, guards)
        assert told(self.client.submit(*mutations, guards=guards)) == expected
        self.counted[f"transaction {expected[0]}"] += 1

    def guard(self) -> Any:
        key = self.dice.choice([*self.history.states[-1], Key("Task", "never")])
        if key.id == "never" or self.dice.random() < 0.2:
            return RequireAbsent(MODELS[key.kind], key.id)
        entity = self.history.entity(key.kind, self.history.states[-1][key])
        return Require(entity if self.dice.random() < 0.8 else entity.model_copy(update={"version": 99}))

    def mutation(self) -> Any:
        dice, kind = self.dice, self.dice.choice(("Task", "Probe"))
        id = ids_of(kind)[dice.randrange(IDS)]
        stored = self.history.states[-1].get(Key(kind, id))
        if stored is None:
            return self.of_nothing(kind, id)
        entity, ref = self.history.entity(kind, stored), MODELS[kind].ref(id)
        times = {"created_at": None} if kind == "Task" else {}  # the engine's own, which is not the model's
        choices = [
            (lambda: Update(dice.choice((entity, ref)), self.changes(kind)), 10),
            (lambda: Update(ref, {}), 0.5),
            (lambda: Update(ref, self.changes(kind), expect=dice.randrange(4)), 1),
            (lambda: Put(entity.model_copy(update={**self.changes(kind), **times})), 2),
            (lambda: Put(self.fresh(kind, id)), 1),
            (lambda: Create(self.fresh(kind, id)), 0.5),
            (lambda: Delete(dice.choice((entity, ref))), 2),
        ]
        if kind == "Task":
            to, fields = dice.choice([*TaskStatus]), {"assigned_to": "me"} if dice.random() < 0.8 else {}
            if dice.random() < 0.7 and (allowed := Task.lifecycle.allowed(stored["status"])):
                to = dice.choice(allowed)
            choices += [
                (lambda: Transition(ref, to, fields), 5),
                (lambda: Cancel(ref), 0.5),
                (lambda: Update(ref, {"parent_task_id": id}), 0.5),  # a task is not its own parent
            ]
        return dice.choices([one for one, _ in choices], [weight for _, weight in choices])[0]()

    def of_nothing(self, kind: str, id: str) -> Any:
        ref = MODELS[kind].ref(id)
        return self.dice.choice((
            *[lambda: Create(self.fresh(kind, id))] * 5, lambda: Put(self.fresh(kind, id)),
            lambda: Update(ref, self.changes(kind)), lambda: Delete(ref), lambda: Put(self.fresh(kind, id), expect=3),
        ))()  # fmt: skip

    def fresh(self, kind: str, id: str) -> Entity:
        if kind == "Task":
            return Task(id=id, title=f"{next(self.numbers)}", **self.changes(kind))
        return Probe(id=id, **self.changes(kind))

    def changes(self, kind: str) -> dict[str, Any]:
        dice = self.dice
        changed = {name: dice.choice(VALUES[kind][name]) for name in dice.sample(FREE[kind], dice.randrange(4) % 3)}
        text = f"{next(self.numbers)} " * dice.choice((1, 1, 1, 10, 80))
        if dice.random() < 0.7:
            changed["description" if kind == "Task" else "text"] = text
        return changed

    # --- looking

    def hold(self) -> None:
        if len(self.held) == HELD_MAX:
            self.held.pop(self.dice.randrange(HELD_MAX))
        self.held.append(self.reader.snapshot())

    def look_at_the_newest(self) -> None:
        snap = self.reader.snapshot()
        assert snap.revision == self.history.revision
        self.whole(snap)

    def look_at_what_is_held(self) -> None:
        if self.held:
            snap = self.dice.choice(self.held)
            self.counted["looks at what is held"] += snap.revision < self.history.revision
            self.whole(snap)

    def ask_the_newest(self) -> None:
        self.questions(self.reader.snapshot(), 4)

    def ask_what_is_held(self) -> None:
        if self.held:
            self.questions(self.dice.choice(self.held), 4)

    def whole(self, snap: Snapshot) -> None:
        """All that there was at its revision, and nothing else, by every way."""
        self.counted["looks"] += 1
        for kind, model in MODELS.items():
            expected = self.history.of(snap, kind)
            alive = dict(expected)
            ways = {
                "entities": lambda model=model: [*snap.entities(model)],
                "gets": lambda model=model, alive=alive: [snap.get(model, id) for id in alive],
                "scan": lambda model=model: snap.scan(model),
            }
            for way in self.dice.sample(list(ways), 3):
                found = ways[way]()
                assert None not in found, f"{way} of {kind} at {snap.revision}"
                fields = [plain(one) for one in found]
                self.same(fields, [fields for _, fields in expected], f"{way} of {kind} at {snap.revision}")
            assert not any(snap.get(model, id) for id in ids_of(kind) if id not in alive)
            assert snap.ids(model) == list(alive)
            assert snap.count(model) == snap.counts[kind] == len(alive)
            assert sorted(one["id"] for one in snap.entities(kind)) == sorted(alive)
            self.arrays(snap, kind, {})

    def same(self, found: list[Fields], expected: list[Fields], where: str) -> None:
        assert [one["id"] for one in found] == [one["id"] for one in expected], where
        for one, other in zip(found, expected, strict=True):
            assert timeless(one) == timeless(other), where

    def arrays(self, snap: Snapshot, kind: str, where: dict[str, Any]) -> None:
        columns = snap.columns(MODELS[kind], where)
        entities = [self.history.entity(kind, fields) for _, fields in self.history.of(snap, kind)]
        expected = [one for one in entities if meets(one, where)]
        assert columns["version"].tolist() == [one.version for one in expected]
        if kind == "Probe":
            assert columns["level"].tolist() == [one.level for one in expected]
            ratios = [None if ratio != ratio else ratio for ratio in columns["ratio"].tolist()]
            assert ratios == [one.ratio for one in expected]
            assert columns["place"].tolist() == [one.place for one in expected]
            assert columns["on"].tolist() == [one.on for one in expected]
        else:
            assert columns["status"].tolist() == [one.status for one in expected]
            assert columns["assigned_to"].tolist() == [one.assigned_to for one in expected]

    def questions(self, snap: Snapshot, count: int) -> None:
        """Random conditions and orders."""
        self.counted["questions"] += count
        for _ in range(count):
            kind = self.dice.choice(list(MODELS))
            where = a_filter(self.dice, kind)
            name = self.dice.choice(list(VALUES[kind]))
            order_by = self.dice.choice((None, name, f"-{name}"))
            entities = [self.history.entity(kind, fields) for _, fields in self.history.of(snap, kind)]
            expected = [one for one in entities if meets(one, where)]
            asked = f"{kind} {where} {order_by} at {snap.revision}"
            ordered = in_order(expected, order_by)
            found = snap.scan(MODELS[kind], where, order_by=order_by)
            self.same([plain(one) for one in found], [plain(one) for one in ordered], asked)
            limit = self.dice.randrange(10)
            ids = snap.ids(MODELS[kind], where, order_by=order_by, limit=limit)
            assert ids == [one.id for one in ordered][:limit], asked
            assert snap.count(MODELS[kind], where) == len(expected), asked
            counted = Counter(getattr(one, name) for one in expected)
            assert snap.count_by(MODELS[kind], name, where) == dict(counted), asked
            self.arrays(snap, kind, where)

    def turn_pages(self) -> None:
        """Each page from another snapshot: behind the place that the last one had, whatever became of it."""
        kind = self.dice.choice(list(MODELS))
        where, name = a_filter(self.dice, kind), self.dice.choice(list(VALUES[kind]))
        order_by = self.dice.choice((None, name, f"-{name}"))
        after: Any = None
        for _ in range(4):
            snap = self.reader.snapshot()
            if after is not None and after.id not in places(snap, kind):
                with pytest.raises(InvalidQuery, match="begin again"):
                    snap.scan(MODELS[kind], where, order_by=order_by, limit=5, after=after)
                return
            page = snap.scan(MODELS[kind], where, order_by=order_by, limit=5, after=after)
            entities = [self.history.entity(kind, fields) for _, fields in self.history.of(snap, kind)]
            there = [one for one in entities if meets(one, where)]
            expected = in_order(there, order_by)
            if after is not None:
                expected = self.behind(order_by, after, there, places(snap, kind))
            assert [one.id for one in page] == [one.id for one in expected[:5]], (kind, where, order_by, after)
            if not page:
                return
            self.counted["pages"] += 1
            after = page[-1]
            self.write()

    def behind(self, order_by: str | None, after: Entity, there: list[Entity], slots: dict[str, int]) -> list[Entity]:
        """Those behind the place that these values of an entity have among them; itself, if it has moved on."""
        ghost = after.model_copy(update={"id": "ghost"})
        places = {one.id: (slots[one.id], 0) for one in there} | {"ghost": (slots[after.id], 1)}
        ordered = in_order(sorted([*there, ghost], key=lambda one: places[one.id]), order_by)
        return ordered[next(place for place, one in enumerate(ordered) if one is ghost) + 1 :]

    # --- watching

    def begin_a_watch(self) -> None:
        if len(self.following) == 4:
            self.follow(self.following.pop(0), None)
        self.following.append(self.watch(self.anywhere()))

    def anywhere(self) -> int:
        newest = self.history.revision
        return self.dice.choice((newest, max(0, newest - 30), max(0, newest - 200), self.dice.randint(0, newest)))

    def watch(self, since: int) -> Following:
        kind = self.dice.choice((None, *MODELS))
        where = a_filter(self.dice, kind) if kind and self.dice.random() < 0.6 else {}
        resync = self.dice.random() < 0.5
        model = MODELS[kind] if kind else None
        watch = self.reader.watch(model, since=since, where=where, timeout_s=0, resync=resync)
        return Following(watch, kind, where, [since, 0])

    def go_on_watching(self) -> None:
        if self.following:
            self.follow(self.dice.choice(self.following), self.dice.choice((1, 10, 300)))

    def watch_from_anywhere(self) -> None:
        self.follow(self.watch(self.anywhere()), None)

    def follow(self, one: Following, count: int | None) -> None:
        """So many more changes, or all that there are: each is the next one that it must tell, from memory or from the
        journal.
        """
        expected = self.due(one)
        for change in itertools.islice(one.watch, count):
            assert isinstance(change, Change)
            self.compare(change, next(expected, None), one)
            self.counted["changes" if change._published.address else "changes from the journal"] += 1
        if count is None:
            assert next(expected, None) is None, "a change was not told"

    def look_back(self) -> None:
        """At any revision that ever was, and at what became of it."""
        revision = self.anywhere()
        with self.reader.at(revision) as snap:
            assert snap.revision == revision
            for kind, model in MODELS.items():
                expected = dict(self.history.at(kind, revision))
                assert {one.id: timeless(plain(one)) for one in snap.entities(model)} == {
                    id: timeless(fields) for id, fields in expected.items()
                }
                assert snap.counts[kind] == snap.count(model) == len(expected)
        self.counted["looks back"] += 1

    def due(self, one: Following) -> Iterator[Made]:
        """What it must still tell; `place` moves on with it."""
        since, seen = one.place
        for made in itertools.chain(self.history.made[since + 1][seen:] if since < self.history.revision else (),
                                    self.history.made_since(since + 1)):  # fmt: skip
            request = self.history.made[made.revision]
            last = made is request[-1]
            one.place[:] = [made.revision, 0] if last else [made.revision - 1, request.index(made) + 1]
            if self.wants(one, made):
                yield made

    def wants(self, one: Following, made: Made) -> bool:
        if one.kind is None:
            return True
        if made.key.kind != one.kind:
            return False
        states = [fields and self.history.entity(one.kind, fields) for fields in (made.old, made.new)]
        return not one.where or any(meets(state, one.where) for state in states)

    def compare(self, change: Change, made: Made | None, one: Following) -> None:
        assert made is not None, f"{change} was not to be told"
        seen = change.revision, change.mutation, Key(change.kind, change.id), change.version
        assert seen == made[:4], f"{change} is not {made}"
        assert told_of(change.kind, change.new) == timeless(made.new)
        assert change.actor == ACTOR
        assert told_of(change.kind, change.old) == timeless(made.old)

    # --- killing

    def kill_a_reader(self) -> None:
        """In the middle of a look. All that it saw was right, and another one looks from now on."""
        if self.onlooker is not None:
            self.wait_until(self.onlooker.sees, 30, "another reader looks")
            cache: dict[tuple[int, str], str] = {}
            for revision, kind, way, found in self.onlooker.kill():
                if (revision, kind) not in cache:
                    fields = [fields for _, fields in self.history.at(kind, revision)]
                    cache[revision, kind] = digest(fields)
                assert found == cache[revision, kind], f"{way} of {kind} at {revision} in another process"
                self.counted["looks of others"] += 1
            self.counted["readers killed"] += 1
        path = self.folder / f"seen-{next(self.numbers)}"
        self.onlooker = Onlooker(self.engine.state, path)

    def kill_the_engine(self) -> None:
        """While it has much to do, or nothing. Nobody who reads or writes notices more than a pause."""
        restarts = self.engine.restarts
        self.counted["turnovers"] += self.reader.snapshot().pin.root.first_segment - 1
        if self.dice.random() < 0.7:
            self.write(kill=True)
        else:
            os.kill(self.engine.pid, signal.SIGKILL)
        self.wait_until(lambda: self.engine.restarts > restarts, 30, "the engine is started again")
        self.counted["engine killed"] += 1


def run(seed: int, steps: int, kills: int, start: Callable[..., Engine], folder: Path, wait_until: Any) -> Counter[str]:
    """What was done."""
    engine = start(folder / f"state-{seed}", models=[Probe], limits=SMALL)
    with ExitStack() as stack:
        machine = Machine(seed, engine, folder, wait_until, stack)
        machine.run(steps, kills)
    return machine.counted


EVERYTHING = {
    "applied", "refused", "transaction applied", "transaction refused", "looks", "looks at what is held", "questions",
    "pages", "changes", "changes from the journal", "looks back", "looks of others",
    "readers killed", "engine killed", "turnovers",
}  # fmt: skip


def test_whatever_is_read_is_what_there_was_at_that_revision(start_engine, tmp_path, wait_until):
    done: Counter[str] = Counter()
    for seed in (1, 3):
        done += run(seed, 200, 3, start_engine, tmp_path, wait_until)
    assert EVERYTHING - done.keys() == set(), f"this was never done; {done}"
    assert done["turnovers"] > 10


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(100, 130))
def test_whatever_is_read_is_what_there_was_at_that_revision_for_long(start_engine, tmp_path, wait_until, seed):
    assert run(seed, 600, 8, start_engine, tmp_path, wait_until)["engine killed"] == 8


# --- the machine can fail ---------------------------------------------------------------------------------------------


def newest_for_all_revisions(true: Any, pin: Pin, address: int) -> int:
    return address


def records_behind_the_tail_ignored(true: Any, pin: Pin, kind: int) -> frozenset[int]:
    return frozenset()


def a_page_begins_with_the_end_of_the_last(true: Any, query: Query, *given: Any) -> Any:
    return np.roll(true(query, *given), -1)


def a_change_is_only_what_meets_the_filter_now(true: Any, watch: Watch, *given: Any) -> None:
    return None


def what_was_before_is_not_compared(true: Any, pin: Pin, address: int) -> int:
    return 0


def a_broken_chain_answered_with_nothing(true: Any, pin: Pin) -> Any:
    return {}, {}


BUGS = [
    (Pin, "_own_addresses", a_broken_chain_answered_with_nothing),
    (Pin, "_visible", newest_for_all_revisions),
    (Pin, "changed_slots", records_behind_the_tail_ignored),
    (Query, "_behind", a_page_begins_with_the_end_of_the_last),
    (Watch, "_cells_before", a_change_is_only_what_meets_the_filter_now),
    (Pin, "previous", what_was_before_is_not_compared),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("place", "name", "bug"), [pytest.param(*bug, id=bug[2].__name__) for bug in BUGS])
def test_a_seeded_bug_is_found(start_engine, tmp_path, wait_until, plant, place, name, bug):
    plant(place, name, bug)
    with pytest.raises(AssertionError):
        run(1, 200, 0, start_engine, tmp_path, wait_until)
