"""Random agents, readers and watchers as programs, for a campaign: `python -m solewriter.agents.testing.load --help`.

Each writes down what it asks, is told and sees (`Evidence`), and goes on until its standard input ends, so that none
outlives its campaign. An agent asks for a bit of everything, right and wrong, one by one and pipelined, of a few
entities that all agents fight for. The same seed asks for the same as long as the answers are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from solewriter.agents.client import Client, connect
from solewriter.agents.reader import Reader, open_reader
from solewriter.agents.snapshot import Snapshot
from solewriter.agents.testing.evidence import Evidence
from solewriter.agents.testing.lines import FENCED, UNKNOWN, Call, gather, refusal_name
from solewriter.agents.testing.steps import Key, kinds_of, mutation_of, step_of
from solewriter.agents.testing.wishes import Wishes
from solewriter.agents.watch import Resync
from solewriter.shared.config import ATTACH_RETRY_S, Limits
from solewriter.shared.errors import EngineUnavailable, Fenced, OutcomeUnknown, SolewriterError, Unavailable, in_words
from solewriter.shared.models import Task
from solewriter.shared.mutations import Delete, GuardMutation, Mutation, Put, Reply, Update

LOOK_SHARE = 0.15  # of replies after which an agent reads its own writes
IMPATIENT_S = 0.03  # less than a restart takes: then the outcome is unknown, and the request still on its way
IMPATIENT_SHARE = 0.3  # of requests
RECENT = 8  # ids of its own that an agent calls its last ones
HELD_MAX = 3  # old snapshots that a reader looks at again
PATIENT = Limits(connect_timeout_s=60.0)  # the machine may be shared, and an engine is killed while it starts
WATCHED_MAX = 200  # changes in one line of a watcher
WATCH_PATIENCE_S = 0.05  # of a watcher, before it writes down what came so far
SKIPPED_MAX = 60  # revisions between two looks of a reader


class Agent:
    """One random agent: `act` does one thing."""

    def __init__(self, client: Client, evidence: Evidence, chance: random.Random) -> None:
        self._client = client
        self._evidence = evidence
        self._chance = chance
        self._count = itertools.count(1)
        self._wishes = Wishes(client, chance, self.unique)
        self._work: list[str] = []  # ids of tasks that it claimed, and did not hand in yet
        self._own_ids: list[tuple[str, Mutation]] = []  # under which something was answered
        self._acts: list[tuple[Callable[[], None], int]] = [
            (self.one, 40),
            (self.burst, 10),
            (self.several, 12),
            (self.merge, 4),
            (self.work, 40),
            (self.with_own_id, 12),
            (self.again, 4),
        ]

    def act(self) -> None:
        """One random thing. Raises Fenced when another client took over the session."""
        acts, weights = zip(*self._acts, strict=True)
        try:
            self._chance.choices(acts, weights)[0]()
        except Unavailable:
            pass  # kept as unknown; the next request waits for the engine again

    # --- ways to send ------------------------------------------------------------------------------------------------

    def one(self) -> None:
        """One request, and sometimes a look at what it did."""
        self._sent(self._wishes.mutation())

    def burst(self) -> None:
        """Many in flight, most of them for entities of its own, so that the order shows."""
        own = f"own-{self._client.client_id}"
        self._sent(Put(Task(title=self.unique(), id=own)))
        count = self._chance.randrange(16, 96)
        asked = [self._in_burst(own) for _ in range(count)]
        window, timeout_s = self._chance.choice((8, 64, 256)), self._patience()
        for reply in self._evidence.submit_many(self._client, asked, window=window, timeout_s=timeout_s):
            self._check_fenced(reply)
        self._evidence.look(self._client.reader, [Key("Task", own)])

    def _in_burst(self, own: str) -> Mutation:
        if self._chance.random() < 0.6:
            return Update(Task.ref(own), {"source": self.unique()})
        return self._wishes.mutation()

    def several(self) -> None:
        """Some mutations in one request, of different entities or of the same, sometimes guarded."""
        mutations = [self._wishes.mutation() for _ in range(self._chance.randrange(2, 5))]
        key = step_of(mutations[0]).key
        if key.kind == "Task" and self._chance.random() < 0.4:  # whatever the first one did, this one sees it
            last = (Update(Task.ref(key.id), {"source": self.unique()}), Delete(Task.ref(key.id)))
            mutations.append(self._chance.choice(last))
        self._sent(*mutations, guards=self._wishes.guards())

    def merge(self) -> None:
        """Beside whoever changes other fields."""
        wish = self._wishes.merge()
        if wish is not None:
            self._sent(wish[0], guards=wish[1])

    def work(self) -> None:
        """Claim something, or go on with what was claimed; hold it for a while, and be overtaken perhaps."""
        if not self._work or self._chance.random() < 0.2:
            reply = self._sent(self._wishes.claim(), request_id=self._perhaps_own_id())
            if reply is not None and reply.applied:
                self._work += [result.id for result in reply.results]
            return
        id = self._chance.choice(self._work)
        self._sent(self._wishes.about_work(id))
        if self._client.holds(Task, id) is None:  # handed in, or lost
            self._work = [one for one in self._work if one != id]

    def _perhaps_own_id(self) -> str | None:
        return f"id-{self.unique()}" if self._chance.random() < 0.1 else None

    def with_own_id(self) -> None:
        """Under an id of its own, which somebody else can send again."""
        request_id, mutation = f"id-{self.unique()}", self._wishes.mutation()
        self._sent(mutation, request_id=request_id)
        self._own_ids.append((request_id, mutation))

    def again(self) -> None:
        """The same id again: the first reply. Or for something else: refused."""
        if self._own_ids:
            recent = self._chance.random() < 0.5  # or nearly all would be from before the last checkpoint
            request_id, mutation = self._chance.choice(self._own_ids[-RECENT:] if recent else self._own_ids)
            self._sent(mutation if self._chance.random() < 0.7 else self._wishes.mutation(), request_id=request_id)

    def finish(self, calls: Sequence[Call]) -> None:
        """Send again what a dead agent sent under ids of its own and was not answered."""
        kinds = kinds_of(())
        for call in calls:
            mutations = [mutation_of(step, kinds) for step in call.steps]
            with contextlib.suppress(Unavailable):  # kept as unknown, again
                self._sent(*mutations, request_id=call.name)

    def _sent(
        self, *mutations: Mutation, guards: Sequence[GuardMutation] = (), request_id: str | None = None
    ) -> Reply | None:
        """Send a request, and sometimes look at what it did, or ask what became of it. None: the reply did not come."""
        evidence, client = self._evidence, self._client
        try:
            reply = evidence.submit(
                client, *mutations, guards=guards, request_id=request_id, timeout_s=self._patience()
            )
        except OutcomeUnknown as error:
            if request_id is None and self._chance.random() < 0.5:  # one of its own somebody else sends again
                evidence.resolve(client, error.request_id)
            return None
        self._check_fenced(reply)
        if self._chance.random() < LOOK_SHARE:
            evidence.look(client.reader, [Key(result.kind, result.id) for result in reply.results])
        return reply

    def _patience(self) -> float | None:
        return IMPATIENT_S if self._chance.random() < IMPATIENT_SHARE else None

    def _check_fenced(self, reply: Reply) -> None:
        error = reply.error
        if isinstance(error, Fenced) and refusal_name(type(error).__name__, error.details) == FENCED:
            raise error

    def unique(self) -> str:
        """A text that nobody else makes: every change to it is a change."""
        return f"{self._evidence.name}-{next(self._count)}"


def unanswered(paths: Sequence[Path]) -> Iterator[Call]:
    """What the agents of these files sent, without guards, under ids of their own, and were not answered."""
    for attempt in gather(paths).attempts:
        known = attempt.answer is not None and attempt.answer.outcome != UNKNOWN
        if attempt.call.own and not attempt.call.conditions and not known:
            yield attempt.call


def run_agent(options: argparse.Namespace) -> None:
    """Random requests until standard input ends, or another client takes over the session."""
    with (
        Evidence(options.evidence) as evidence,
        connect(options.state, name=evidence.name, client_id=options.client_id, limits=PATIENT) as client,
        contextlib.suppress(Fenced),
    ):
        chance = random.Random(options.seed)
        agent = Agent(client, evidence, chance)
        agent.finish([*unanswered(options.finish)])
        while going_on(chance.uniform(0, 2 * options.pause_s)):
            agent.act()


def first_reader(state: Path) -> Reader:
    """A reader, as soon as an engine serves: one may just have been stopped, and the next one not be there yet."""
    deadline = time.monotonic() + PATIENT.connect_timeout_s
    while True:
        try:
            return open_reader(state, limits=PATIENT)
        except EngineUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(ATTACH_RETRY_S)


def run_reader(options: argparse.Namespace) -> None:
    """Look at everything, again and again; hold some snapshots, and look at them again later."""
    chance, held = random.Random(options.seed), list[Snapshot]()
    with Evidence(options.evidence) as evidence, first_reader(options.state) as reader:
        while going_on(options.pause_s):
            with contextlib.suppress(Unavailable, TimeoutError):  # it was held for too long, or no engine serves now
                if held and chance.random() < 0.2:
                    evidence.look(held.pop(0))
                held = [*held, reader.snapshot()][-HELD_MAX:]
                seen = evidence.look(reader)
                reader.wait_for(seen.revision + chance.randrange(1, SKIPPED_MAX), timeout_s=0.2)


def run_watcher(options: argparse.Namespace) -> None:
    """Follow every change; from a whole snapshot again, where too much was missed."""
    with Evidence(options.evidence) as evidence, first_reader(options.state) as reader:
        while going_on(options.pause_s):
            with contextlib.suppress(Unavailable):  # what was watched has left memory in the middle of a change
                _follow(evidence, reader)


def _follow(evidence: Evidence, reader: Reader) -> None:
    """One watch, as long as it goes on without a gap."""
    watch = reader.watch(timeout_s=WATCH_PATIENCE_S, resync=True)
    since: int | None = watch.revision
    while going_on():
        changes = []
        for change in islice(watch, WATCHED_MAX):
            if isinstance(change, Resync):
                return
            changes.append(change)
        if changes:
            evidence.followed(changes, since)
            since = None


def going_on(pause_s: float = 0.0) -> bool:
    """Whether standard input is still open, after a pause."""
    return not select.select([0], [], [], pause_s)[0] or bool(os.read(0, 4096))


ROLES = {"agent": run_agent, "reader": run_reader, "watcher": run_watcher}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="load", description="A random agent, reader or watcher of a running engine.")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("state", type=Path, help="the state folder")
    parser.add_argument("evidence", type=Path, help="a new file for what it asked, was told and saw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause-s", type=float, default=0.0, help="on average, between two things that it does")
    parser.add_argument("--client-id", help="resume this session, or begin it")
    parser.add_argument(
        "--finish", type=Path, action="append", default=[], help="evidence of a dead agent, whose open requests to send"
    )
    options = parser.parse_args(arguments)
    try:
        ROLES[options.role](options)
    except SolewriterError as error:
        sys.exit(f"{options.evidence.stem}: {in_words(error)}")


if __name__ == "__main__":
    main()
