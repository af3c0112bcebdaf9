"""What a campaign will do, made by its seed alone: no clock, no state, nothing that happened.

A campaign is a sequence of rounds, each with an empty state. In a round the engine has one life after the other, and
each life says how it ends; meanwhile things are done to agents, readers and watchers. Both are endless; when they meet
is decided by the machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from solewriter.shared.config import GIB, KIB, MIB, Limits
from solewriter.shared.failpoint import NAMES

LIFE_MAX_S = 1.0  # from when an engine serves to its SIGKILL: uniform
STOPPED_MAX_S = 0.5  # of an engine
PATIENCE_S = 0.8  # with a failpoint that may not be reached; then the engine is killed
PAUSE_MAX_S = 0.5  # between two faults of the others
SNAPSHOT_AGE_S = 1.0  # small, so that whoever holds a snapshot while it is stopped may come back too late
GRACE_S = 1.0  # of an agent's claims: an engine takes less to come back, and a round ends with waiting for it
HELD_MAX_S = 2.5 * SNAPSHOT_AGE_S  # a reader or watcher is stopped

MAKERS = ("checkpoint.written", "checkpoint.synced")  # in the process that makes a checkpoint: its engine outlives it
ENGINES = tuple(name for name in NAMES if name not in MAKERS and not name.startswith("restart."))  # those: the owner's

# Where an input or output error may be raised: where the journal's law is that the process ends without an ack.
MAY_RAISE = (
    "commit.write", "commit.written", "commit.synced", "journal.prepare", "journal.roll", "journal.rolled",
    "recover.rewrite", "recover.rewritten",
)  # fmt: skip
MAY_BE_FULL = ("journal.prepare", "memory.grow")  # refused for a while, and survived
SELDOM = (
    "journal.",
    "memory.",
    "reclaim.",
    "checkpoint.",
    "trim.",
    "claim.",
    "timer.",
)  # places that a life reaches a few times, if at all
ONCE = ("recover.",)


class Life(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process of the engine: SIGKILL so long after it began to serve, if its failpoint did not end it before."""

    after_s: float
    failpoint: str = ""  # as the variable says it
    stopped_s: float = 0.0  # first SIGSTOP for so long; of a failpoint that stops: for how long
    goes_on: bool = True  # SIGCONT behind that, and the rest of its time; else killed as it stands


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that is done to somebody else than the engine, or with its consent."""

    what: str
    after_s: float  # behind the one before it
    whom: int = 0  # of those at work, modulo their number
    for_s: float = 0.0
    resumes: bool = False  # who follows a killed agent speaks for its session


class Plan(NamedTuple):
    """One round."""

    number: int
    seed: int  # of the agents' and readers' own dice
    durability: str
    limits: Limits
    lives: Iterator[Life]
    faults: Iterator[Fault]


def plan(seed: int, number: int = 1, failpoints: Sequence[str] = ENGINES) -> Plan:
    """A round of a campaign. Failpoints are only of these names; without any, engines are killed at random moments."""
    dice = random.Random(f"{seed}/{number}")
    durability = dice.choice(("process", "power"))
    limits = Limits(
        heap_segment_bytes_first=dice.choice((128, 256)) * KIB,
        heap_segment_bytes_max=dice.choice((256, 1024)) * KIB,
        journal_file_bytes=dice.choice((512, 1024)) * KIB,
        checkpoint_after_bytes=dice.choice((512, 2048)) * KIB,  # each is a process of 0.3 s
        history_bytes=dice.choice((256 * KIB, 2 * MIB, GIB)),
        recent_bytes=dice.choice((16 * KIB, 2 * MIB)),
        snapshot_age_max_s=SNAPSHOT_AGE_S,
        session_grace_s=GRACE_S,
        making_slice_s=random.Random(f"{seed}/{number}/slices").choice((0.0, 0.005)),  # none: a piece at a time
        heartbeat_s=0.1,
        restart_backoff_s=0.002,
        restart_backoff_max_s=0.01,
        restart_window_s=0.5,
        restarts_max=1_000,
    )
    return Plan(
        number,
        dice.randrange(1_000_000),
        durability,
        limits,
        lives(random.Random(f"{seed}/{number}/lives"), failpoints),
        faults(random.Random(f"{seed}/{number}/faults")),
    )


def lives(dice: random.Random, failpoints: Sequence[str]) -> Iterator[Life]:
    """The first one comes to no failpoint, so that there is a state. Each failpoint has its turn before one comes
    again. In some of the others no checkpoint is finished.
    """
    deck: list[str] = []
    yield Life(round(dice.uniform(0, LIFE_MAX_S), 3))
    while True:
        after_s, chance = round(dice.uniform(0, LIFE_MAX_S), 3), dice.random()
        stopped_s = round(dice.uniform(0, STOPPED_MAX_S), 3)
        if chance < 0.4 and failpoints:
            deck = deck or dice.sample(failpoints, len(failpoints))
            place = failpoint(dice, deck.pop())
            yield Life(PATIENCE_S, place, stopped_s if ":stop" in place else 0.0, dice.random() < 0.7)
        elif chance < 0.45 and failpoints:
            yield Life(after_s, f"{dice.choice(MAKERS)}:kill")
        elif chance < 0.9:
            yield Life(after_s)
        else:
            yield Life(after_s, "", stopped_s, dice.random() < 0.5)


def failpoint(dice: random.Random, name: str) -> str:
    """What happens at this place, and at which hit."""
    actions = ["kill"] * 6 + ["stop"] * 2 + ["raise"] * 2 * (name in MAY_RAISE) + ["full"] * (name in MAY_BE_FULL)
    hits = 1 if name.startswith(ONCE) else 3 if name.startswith(SELDOM) else 40
    return f"{name}:{dice.choice(actions)}:hit={dice.randint(1, hits)}"


WEIGHTS = {
    "kill agent": 40,
    "kill reader": 40,
    "kill watcher": 6,
    "stop agent": 6,
    "stop reader": 6,
    "stop watcher": 2,
    "take over": 2,
    "stop and start": 1,
}


def faults(dice: random.Random) -> Iterator[Fault]:
    while True:
        (what,) = dice.choices([*WEIGHTS], [*WEIGHTS.values()])
        after_s, whom = round(dice.uniform(0, PAUSE_MAX_S), 3), dice.randrange(1 << 16)
        for_s = 0.0
        if what.startswith("stop ") and what != "stop and start":
            for_s = round(dice.uniform(0, STOPPED_MAX_S if what == "stop agent" else HELD_MAX_S), 3)
        yield Fault(what, after_s, whom, for_s, what == "kill agent" and dice.random() < 0.3)
