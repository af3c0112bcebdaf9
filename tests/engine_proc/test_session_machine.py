"""Sessions, resends, outcomes and restarts of a real engine, beside a model that knows only what was promised.

Every request is decided once and told the same for as long as it is remembered; what was not applied never will be;
whatever dies, wherever. The machine's rules are what agents, disks and kills do; after every turn the replies, the
stored state, the tables and the descriptors are what the model says.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from solewriter import Limits
from solewriter.engine_proc import outcomes
from solewriter.engine_proc.decide import Draft, decide
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.turn import Turn
from solewriter.shared.config import KIB
from solewriter.shared.errors import Refused, to_wire
from solewriter.shared.journal.chain import first_entry_of, journal_files
from solewriter.shared.journal.checkpoint import checkpoint_files
from solewriter.shared.memory import revlog
from solewriter.shared.wire import Status

# --- the model --------------------------------------------------------------------------------------------------------

LIMITS = Limits(
    window_max=6, request_ids_max=5, sessions_max=3, spin_s=0, lane_read_bytes=1 * KIB,
    heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=32 * KIB, journal_file_bytes=4 * KIB,
    checkpoint_after_bytes=8 * KIB, history_bytes=16 * KIB, recent_bytes=1 * KIB,
)  # fmt: skip
Told = tuple[str, int, Any]  # "applied", revision, ((version, id) of each mutation); "refused", revision, its name
FORGOTTEN: Told = ("unavailable", 0, "Forgotten")
NEVER: Told = ("refused", 0, "Fenced")


@dataclass
class Known:
    """A session."""

    last: int  # number that was consumed or passed over
    begun: int  # the number that it began with
    instance: str = ""
    epoch: int = 0
    heard: int = 0  # when it last said hello
    told: dict[int, Told] = field(default_factory=dict)
    fenced: set[int] = field(default_factory=set)
    passed: list[tuple[int, int]] = field(default_factory=list)  # numbers that nobody will read any more


class Model:
    """What the engine must say and hold. A turn is worked out on a copy, which counts if the turn was committed."""

    def __init__(self) -> None:
        self.revision = self.turns = 0
        self.entities: dict[str, tuple[int, Any]] = {}  # version; content, None for a deleted one
        self.sessions: dict[str, Known] = {}  # the longest silent first
        self.named: dict[str, tuple[Any, Told]] = {}  # user-given ids: content, None for a fenced one; how it ended
        self.named_before = False  # some of them were forgotten
        self.behind = 0  # number of a frame behind all that forgotten sessions sent
        self.lanes: dict[str, int] = {}  # who is listened to
        self.before: Any = None  # the turn

    def begin(self) -> Model:
        after = copy.deepcopy(self)
        after.turns, after.before = self.turns + 1, self
        after.new: dict[tuple[str, int], tuple[Told, str | None]] = {}  # by client and number; the user's own id
        after.waiting: set[str] = set()  # of whom something is not decided yet
        after.greeted: dict[str, list[tuple[int, int]]] = {}  # lanes and the numbers of their first frames
        after.fences: list[Any] = []
        after.gone: dict[str, Known] = {}  # who is forgotten in it
        return after

    def take(self, lane: int, client: str, number: int, what: Any) -> Any:
        """What its sender hears; None if nobody listens there, or of a hello that is welcomed when the turn is done."""
        if what[0] == "hello":
            return self.greet(lane, client, *what[1:])
        if client in self.greeted:
            return None  # it came by an older lane
        if what[0] == "ask":
            return number, "answer", self.revision, self.outcome(what[1])
        known = self.before.sessions[client]
        if number <= known.last:
            return number, *known.told.get(number, FORGOTTEN)
        self.new[client, number] = self.decide(client, number, what, known)
        return number, *self.new[client, number][0]

    def greet(self, lane: int, client: str, instance: str, first: int, resends: bool) -> Any:
        known = self.sessions.get(client)
        if known is None and client in self.before.sessions:
            return "turned away", "again"  # it is forgotten in this turn
        if known is None and (refusal := "unknown" if resends else self.make_room()):
            return "turned away", refusal
        if known is not None and resends and instance != known.instance:
            return "turned away", "fenced"
        if known is None:
            first = max(first, self.before.behind)
            known = self.sessions[client] = Known(first * 256 - 1, first * 256)
        elif not resends:
            used = max([known.last, *(number for owner, number in self.new if owner == client)])
            unread = 0 if instance == known.instance else LIMITS.window_max
            first = max(first, used // 256 + 1 + unread)
            known.passed.append((used + 1, first * 256 - 1))
            known.last = first * 256 - 1
        known.instance, known.epoch = instance, known.epoch + 1
        known.heard = known.heard if client in self.greeted else self.turns * 100 + len(self.greeted)
        self.greeted.setdefault(client, []).append((lane, first))
        return None

    def make_room(self) -> str:
        """How it is refused where there is none."""
        if len(self.sessions) < LIMITS.sessions_max:
            return ""
        gone = [client for client in self.sessions if client not in self.lanes and client not in self.greeted]
        silent = [client for client in gone if client not in self.waiting]
        if silent:
            self.gone[silent[0]] = self.sessions.pop(silent[0])
            return ""
        return "again" if gone else "final"

    def decide(self, client: str, number: int, what: Any, known: Known) -> tuple[Told, str | None]:
        if what[0] != "request":
            return ("refused", self.revision, "BadRequest"), None
        if number in known.fenced or (client, number) in self.fences:
            return NEVER, None
        _, mutations, name, late, long = what
        content, told = self.named.get(name, (None, None))
        if told is not None and content not in (None, (mutations, long)):
            return ("refused", self.revision, "RequestMismatch"), None
        if told is not None:
            return told, None if content is None else name
        told = ("refused", self.revision, "Expired") if late else self.apply(mutations, client)
        if name is not None:
            self.named[name] = (mutations, long), told
        return told, name

    def apply(self, mutations: Any, client: str) -> Told:
        draft: dict[str, Any] = {}
        for verb, id, expect, title in mutations:
            version, stored = self.entities.get(id, (0, None))
            content = draft.get(id, stored)
            for name, wrong in (
                ("NotFound", verb in ("update", "cancel", "delete") and content is None),
                ("AlreadyExists", verb == "create" and content is not None),
                ("VersionConflict", verb != "create" and expect not in (None, version if stored else 0)),
                ("InvalidTransition", verb == "put" and content and content[1]),  # from cancelled to created
                ("InvalidMutation", verb in ("create", "put", "update") and not title),
            ):
                if wrong:
                    return "refused", self.revision, name
            made = content[2] if content else (client, self.turns)
            cancelled = verb == "cancel" or (verb == "update" and content[1])
            draft[id] = None if verb == "delete" else (content[0] if verb == "cancel" else title, cancelled, made)
        changed = {id: content for id, content in draft.items() if content != self.entities.get(id, (0, None))[1]}
        self.revision += bool(changed)
        for id, content in changed.items():
            self.entities[id] = self.entities.get(id, (0,))[0] + 1, content
        return "applied", self.revision, tuple((self.entities.get(id, (0,))[0], id) for _, id, _, _ in mutations)

    def outcome(self, about: Any) -> Told | None:
        if isinstance(about, str):
            if about not in self.named and not self.named_before:
                self.named[about] = None, NEVER
                self.fences.append(about)
            content, told = self.named.get(about, ("forgotten", FORGOTTEN))
            return None if content is None else told
        (client, number), known = about, self.before.sessions.get(about[0])
        if about in self.new:
            told = self.new[about][0]
        elif known is None:
            told = FORGOTTEN
        elif number <= known.last:
            never = number >= known.begun and any(low <= number <= high for low, high in known.passed)
            told = known.told.get(number, NEVER if never else FORGOTTEN)
        elif number in known.fenced or about in self.fences:
            told = NEVER
        else:
            coming = sum(one > known.last for one in known.fenced) + sum(one[0] == client for one in self.fences)
            told = NEVER if coming < LIMITS.window_max else FORGOTTEN
            self.fences += [about] if told == NEVER else []
        return None if told == NEVER else told

    def end(self) -> None:
        """The turn was committed. What is beyond a window is forgotten now."""
        for (client, number), (told, name) in self.new.items():
            if known := self.sessions.get(client) or self.gone.get(client):
                known.told[number], known.last = told, max(known.last, number)
                if len(known.told) > LIMITS.window_max:
                    del known.told[next(iter(known.told))]
            if name is not None:
                self.named[name] = self.named.pop(name)
        for one in self.fences:
            if isinstance(one, str):
                self.named[one] = self.named.pop(one)
            elif known := self.sessions.get(one[0]) or self.gone.get(one[0]):
                known.fenced.add(one[1])
        for known in self.gone.values():
            self.behind = max(self.behind, max(0, known.last, *known.fenced) // 256 + 1 + LIMITS.window_max)
        while len(self.named) > LIMITS.request_ids_max:
            del self.named[next(iter(self.named))]
            self.named_before = True
        for client, welcomed in self.greeted.items():
            known = self.sessions[client] = self.sessions.pop(client)
            if client not in self.before.sessions and self.behind:
                known.begun = known.last + 1  # what is below may be of a life that was forgotten
            elif client not in self.before.sessions:
                known.begun, known.passed = 0, [(0, known.last)]  # it cannot have been there before
            self.lanes[client] = welcomed[-1][0]
        self.before = None

    def hang_up(self, client: str) -> None:
        """Its lane is gone: of the silent ones, it was heard last."""
        if self.lanes.pop(client, None) is not None and client in self.sessions:
            self.sessions[client] = self.sessions.pop(client)

    def checkpointed(self) -> None:
        """Behind a checkpoint, everything is journaled anew, the order of sessions too."""
        for place, known in enumerate(self.sessions.values()):
            known.heard = self.turns * 100 + place

    def restart(self) -> None:
        """Who fell silent when is not journaled between two checkpoints, who said hello is."""
        self.lanes.clear()
        self.sessions = dict(sorted(self.sessions.items(), key=lambda one: one[1].heard))


# --- the machine ------------------------------------------------------------------------------------------------------

CLIENTS = (f"{0xA0:016x}", f"{0xA1:016x}", f"{0xA2:016x}", "crawler")
STEPS = (
    "turn.decided", "commit.write", "commit.written", "commit.synced", "commit.noted",
    "publish.tail-moved", "publish.installed", "publish.filled", "publish.shown",
    "turn.published", "turn.reply", "turn.done", "memory.grow", "journal.prepare", "journal.roll", "journal.rolled",
    "reclaim.moved", "reclaim.filled", "reclaim.shown", "reclaim.done", "checkpoint.begin", "checkpoint.written",
    "checkpoint.synced", "checkpoint.made", "checkpoint.renamed", "checkpoint.journaled", "trim.begin", "trim.file",
    "trim.journal", "trim.done",
)  # fmt: skip
STARTING = (
    "recover.restored", "recover.rewrite", "recover.rewritten", "recover.published", "recover.announced",
    "recover.done", "memory.grow", "commit.write", "commit.written", "commit.noted", "journal.prepare",
    "journal.rolled", "reclaim.moved", "reclaim.filled", "reclaim.shown", "reclaim.done",
)  # fmt: skip


def weighted(*choices):
    """One of these strategies, each as often as its number says."""
    return st.sampled_from([one for often, one in choices for _ in range(often)]).flatmap(lambda one: one)


seldom = st.sampled_from([False] * 9 + [True])
titles = st.sampled_from(["x", "y", "x", "y", "x", "y", ""])
expects = st.sampled_from([None] * 6 + [0, 1, 2, 3])
with_title = st.tuples(st.sampled_from(["create", "put", "update"]), st.sampled_from("tu"), expects, titles)
without = st.tuples(st.sampled_from(["cancel", "delete"]), st.sampled_from("tu"), expects, st.none())
mutations = st.lists(weighted((3, with_title), (1, without)), min_size=1, max_size=2).map(tuple)
FEW = ((("put", "t", None, "x"),), (("update", "u", None, "y"),))
few = st.sampled_from(FEW)  # so that contents meet again
names = st.sampled_from("abcdefg")
long = st.sampled_from([False] * 5 + [True])  # as a journal file
requests = st.tuples(st.just("request"), mutations, st.none(), seldom, long)  # seldom too late
named = st.tuples(st.just("request"), few | mutations, names, seldom, long)
asked = st.sampled_from((*CLIENTS, "stranger", *["self"] * 4))
numbers = st.tuples(asked, st.sampled_from([-2, -1, 0, 0, 0, 1, 2, 3, 4]), st.integers(0, 2))  # how many frames back
questions = st.tuples(st.just("ask"), names | numbers)
broken = st.just(("broken",))
parts = st.lists(weighted((6, requests), (4, named), (4, questions), (1, broken)), min_size=1, max_size=3)
garbage = st.sampled_from([b"\x80\x05cos\nsystem\n.", b"\x80\x05]\x94", b"\x80\x05}.", b"\x80\x05].more"])
frames = weighted((9, parts), (1, garbage.map(lambda body: [("garbage", body)])))
agents = st.sampled_from((0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7))  # behind the fourth they are rivals
backs = st.integers(-1, 4)  # how many frames are sent again; fewer than none: it begins anew
cuts = st.sampled_from([0] * 7 + [3, 20])
endings = weighted((4, st.just("turn")), (1, st.just("wait")), (2, st.sampled_from(("bridge.frames", *STEPS))))
sends = st.lists(st.tuples(agents, frames, backs, cuts, seldom), min_size=1, max_size=4)  # seldom something else
deeds = weighted(  # in one rule: of several, many runs would leave out the first
    (9, st.tuples(st.just("exchange"), sends, endings)),
    (1, st.tuples(st.just("connect"), agents, seldom, backs, seldom)),
    (1, st.tuples(st.just("take_over"), st.integers(0, 2), parts)),
    (1, st.tuples(st.just("hang_up"), agents, st.sampled_from([None, None, 0, -1, 2**31 - 1]))),
    (1, st.tuples(st.just("fill_disk"), sends, endings)),
    (1, st.tuples(st.just("restart"), st.booleans(), st.lists(st.sampled_from(STARTING), max_size=2))),
)


class Machine(RuleBasedStateMachine):
    """What agents, disks and kills do to one state folder."""

    worlds: Any = None  # set by `machine`, as is `seen`
    seen: Any = None
    options: Any = {}  # noqa: RUF012 (never changed)
    world: Any = None

    @initialize(durability=st.sampled_from(["process", "power"]))
    def begin(self, durability):
        self.world = self.worlds(Model(), CLIENTS * 2, LIMITS, durability, **self.options)

    @rule(deed=deeds)
    def do(self, deed):
        getattr(self, deed[0])(*deed[1:])

    def connect(self, number, fresh, back, bold):
        """Its hello waits for a turn."""
        agent = self.world.agents[number]
        known = self.world.model.sessions.get(agent.client)
        resends = back >= 0 and (bold or (known is not None and known.instance == agent.instance))
        self.world.hello(agent, fresh=fresh, resends=resends, back=back)

    def take_over(self, place, frame):
        """Another agent's hello waits for a turn, and the older one goes on."""
        open_lanes = [agent for agent in self.world.agents if self.world.listened_to(agent)]
        if open_lanes:
            older = open_lanes[place % len(open_lanes)]
            rival = next(one for one in self.world.agents if one.client == older.client and one is not older)
            self.world.hello(rival)
            if self.world.listened_to(older):
                self.world.send(older, self.settled(older, frame))

    def exchange(self, sends, ending):
        """Agents send, on their lanes or on new ones; the engine may die reading, or in the turn."""
        world = self.world
        for number, frame, back, cut, other in sends:
            agent = world.agents[number]
            if not world.listened_to(agent):
                if len(world.model.lanes) == LIMITS.sessions_max:
                    world.hang_up(next(one for one in world.agents if world.listened_to(one)))
                self.connect(number, False, back, False)
                world.turn()
            if world.listened_to(agent):
                kill = ending == "bridge.frames"
                world.send(agent, self.settled(agent, frame), cut=cut, other=other, kill=kill)
        if ending != "wait":
            world.turn(ending if ending in STEPS else None)

    def settled(self, agent, frame):
        """Questions are about numbers near those that are used, or about those of the very frame."""

        def about(client, back, place):
            near = agent.next if client == "self" else self.world.used.get(client, 0)
            return agent.client if client == "self" else client, max(0, near - back) * 256 + place

        return [("ask", about(*what[1])) if what[0] == "ask" and len(what[1]) == 3 else what for what in frame]

    def hang_up(self, number, length):
        """With what was not read or not answered, or in mid-frame; or by a length that no frame has."""
        world, agent = self.world, self.world.agents[number]
        if length is None:
            world.hang_up(agent)
        else:
            world.break_off(agent, length)

    def fill_disk(self, sends, ending):
        """There is no room for what somebody sends; with room again, he sends it again."""
        number, frame, back, *_ = sends[0]
        if frame[0][0] != "garbage":
            frame = [*frame, ("request", FEW[0], None, False, True)]
        self.world.steps.disk_full = True
        self.exchange([(number, frame, back, 0, False), *sends[1:]], ending)
        self.world.steps.disk_full = False
        self.world.hang_up(self.world.agents[number])
        self.exchange([(number, frame, 2, 0, False)] * 2, "turn")

    def restart(self, cleanly, kills):
        """What was read and not decided is lost, if it is killed."""
        if cleanly:
            self.world.turn()
            self.world.stop()
            self.world.start(kills)
        else:
            self.world.die(kills)

    def teardown(self):
        if self.world is None:
            return
        good = sys.exc_info()[0] is None
        try:
            if good:
                self.world.turn()
                self.world.stop()
        finally:
            self.seen.update(self.world.seen)
            self.world.close()
        assert not good or self.world.leaks() == [], self.world.leaks()


@pytest.fixture
def machine(worlds):
    """The machine, and in `seen` what its runs come across."""
    return type("SessionMachine", (Machine,), {"worlds": staticmethod(worlds), "seen": Counter()})


FOUND_AND_SHRUNK = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # to explain it takes minutes more


def budget(examples, **options):
    return settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
        **{"phases": FOUND_AND_SHRUNK, **options},
    )  # fmt: skip


@pytest.mark.timeout(400)  # that one was found is told when it was made small
def test_whatever_dies_every_request_is_decided_once_and_told_the_same(machine):
    run_state_machine_as_test(machine, settings=budget(15))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_whatever_dies_and_whatever_is_met_every_request_is_decided_once_and_told_the_same(machine):
    run_state_machine_as_test(machine, settings=budget(150))
    met = "\n".join(machine.seen)
    for what in ("Forgotten", "DiskFull", "Fenced", "RequestMismatch", "VersionConflict", "BadRequest", "applied"):
        assert what in met, f"{what} was never met"
    for what in ("fenced", "turned away", "died at", "died starting at"):
        assert what in met, f"{what} was never met"


QUICKLY = {"phases": [Phase.generate], "derandomize": True, "database": None, "report_multiple_bugs": False}


# --- what the machine seldom meets, step by step ----------------------------------------------------------------------


@pytest.fixture
def world(worlds):
    """A world that does what it is told, in the order in which it is told."""
    made = worlds(Model(), CLIENTS * 2, LIMITS, "power", frozenset())
    yield made
    made.close()


def connected(world, number):
    """This agent, with a lane. Behind the fourth they are rivals of the first ones."""
    agent = world.agents[number]
    world.hello(agent)
    world.turn()
    assert world.listened_to(agent)
    return agent


def put(id="t", title="x", name=None, *, long=False):
    return "request", (("put", id, None, title),), name, False, long


def ask(agent, frame, place=0):
    return "ask", (agent.client, frame * 256 + place)


@pytest.mark.parametrize("step", STEPS)
def test_a_turn_in_which_the_engine_dies_is_told_the_same_afterwards(world, step):
    agent = connected(world, 0)
    for turn in range(40):
        named = put("t", str(turn), "abcdefg"[turn % 7], long=turn % 3 == 0)
        world.send(agent, [ask(agent, agent.next, 3), named, put("u", str(turn)), ask(agent, agent.next, 3)])
        world.turn(step)
        if world.seen[f"died at {step}"]:
            break
    world.hello(agent, resends=True, back=2)
    world.turn()
    for _ in range(3):  # what was sent before, and something new
        world.send(agent, [put("t", "after")])
    world.turn()
    world.stop()
    assert world.seen[f"died at {step}"] == 1, "it is never reached"


@pytest.mark.parametrize("step", STARTING)
def test_an_engine_that_dies_in_recovery_is_followed_by_one_that_knows_everything(world, step):
    for turn in range(LIMITS.window_max):
        agent = connected(world, 0)
        asked = ask(agent, agent.next, 3), ("ask", "bcd"[turn % 3])
        world.send(agent, [put("t", str(turn), "a"), put("t", str(turn), long=True), *asked])
        world.turn()
        world.die([step, step])
    world.hello(agent, resends=True, back=1)
    world.turn()
    world.send(agent, [])
    world.turn()
    world.stop()
    assert world.seen[f"died starting at {step}"] > 1, "it is never reached"


def test_a_turn_that_finds_the_disk_full_can_be_sent_again(world):
    agent = connected(world, 0)
    world.send(agent, [put("t", "x", "a")])
    world.turn()
    world.steps.disk_full = True
    world.send(agent, [put("t", "y", "b", long=True), ask(agent, 1), ("ask", "a"), ("ask", "c"), put("u")])
    world.turn()
    assert world.seen["unavailable DiskFull"] == 5
    world.steps.disk_full = False
    world.hello(agent, resends=True, back=2)
    world.turn()
    world.send(agent, [])
    world.send(agent, [])
    world.turn()
    world.stop()


def test_a_checkpoint_that_a_full_disk_keeps_out_of_the_journal_takes_no_room_there(world):
    agent = connected(world, 0)
    finish, reached = world.engine.finish_checkpoint, []

    def finish_on_a_full_disk():
        if (ahead := world.engine.server.journal._ahead).is_begun:
            os.close(ahead.take(0, 0))  # the file that was made when there was room
        world.steps.disk_full = True
        finish()
        world.steps.disk_full = False
        reached.extend(world.steps.reached)

    world.engine.finish_checkpoint = finish_on_a_full_disk
    for turn in range(40):
        world.send(agent, [put("t", str(turn), long=True)])
        world.turn()
    assert reached.count("checkpoint.journaled") < reached.count("checkpoint.renamed"), "there was always room"
    state = world.folder / "state"
    named = [first.private.whole for path in journal_files(state) if (first := first_entry_of(path)) is not None]
    assert set(checkpoint_files(state)) <= {whole.checkpoint.entry for whole in named if whole is not None}
    world.stop()


def test_a_checkpoint_begins_where_the_revision_log_has_no_room_left(world, monkeypatch):
    monkeypatch.setattr(revlog, "POINTS", 1)
    monkeypatch.setattr(revlog, "REVISION_LOG_STRIDE", 0)
    agent = connected(world, 0)
    reached = set[str]()
    for turn in range(20):
        world.send(agent, [put("t", str(turn), long=True)])
        world.turn()
        reached.update(world.steps.reached)
    assert "checkpoint.journaled" in reached
    world.stop()


# --- hellos and what else comes in their turn -------------------------------------------------------------------------


def a_takeover_behind_requests(world):
    older, rival = connected(world, 0), world.agents[4]
    world.send(older, [put("t")])
    world.hello(rival)
    world.turn()
    world.send(rival, [put("u")])


def a_takeover_before_requests(world):
    older, rival = connected(world, 0), world.agents[4]
    world.hello(rival)
    world.send(older, [put("t")])
    world.turn()
    world.send(rival, [ask(older, 0), put("u")])


def a_takeover_before_requests_of_a_lane_that_ended(world):
    older, rival = connected(world, 0), world.agents[4]
    world.hello(rival)
    world.send(older, [put("t")])
    world.hang_up(older)


def two_hellos_of_a_new_session_for_which_another_one_is_forgotten(world):
    silent, other = connected(world, 0), connected(world, 1)
    connected(world, 3)
    world.hang_up(silent)
    world.hello(world.agents[2])
    world.hello(world.agents[6])
    world.turn()
    world.send(other, [ask(world.agents[2], 0)])


def two_takeovers_in_one_turn(world):
    older, rival = connected(world, 0), world.agents[4]
    world.send(older, [put("t")])
    world.hello(rival)
    world.hello(older, fresh=True)
    world.turn()
    world.send(older, [put("u"), ask(rival, rival.next)])


def an_outcome_that_leaves_the_window_behind_a_takeover(world, *, restart=False):
    older, rival = connected(world, 0), world.agents[4]
    world.send(older, [put("t")])
    world.hello(rival)
    world.turn()
    for _ in range(LIMITS.window_max):
        world.send(rival, [put("u")])
        world.turn()
    if restart:
        world.die()
    world.send(connected(world, 1), [ask(older, 0)])


def an_outcome_that_leaves_the_window_behind_a_takeover_before_a_restart(world):
    an_outcome_that_leaves_the_window_behind_a_takeover(world, restart=True)


def an_older_client_behind_a_takeover(world):
    older, rival = connected(world, 0), world.agents[4]
    world.send(older, [put("t")])
    world.turn()
    world.hello(rival)
    world.hello(older, resends=True, back=1)


def a_new_session_behind_known_ones(world):
    known = connected(world, 0), connected(world, 1)
    world.hello(known[0])
    world.hello(known[1])
    world.hello(world.agents[2])


def a_session_that_is_forgotten_and_comes_back(world):
    agent = connected(world, 0)
    world.send(agent, [put("t")])
    world.turn()
    connected(world, 1), connected(world, 2)
    world.hang_up(agent)
    world.hello(world.agents[3])
    world.hello(agent, resends=True, back=1)


# --- what was forgotten -----------------------------------------------------------------------------------------------


def forgotten(world, agent):
    """Three others come, and this one's session goes."""
    world.hang_up(agent)
    for number in (1, 2, 3):
        connected(world, number)
    world.hang_up(world.agents[1])
    return world.agents[2]


def a_request_of_a_forgotten_session_whose_agent_came_back(world):
    agent = connected(world, 0)
    world.send(agent, [put("t")])
    world.turn()
    other = forgotten(world, agent)
    connected(world, 0)
    world.send(other, [ask(agent, 0)])


def a_request_of_a_forgotten_session_whose_name_another_process_has(world):
    agent = connected(world, 0)
    world.send(agent, [put("t")])
    world.turn()
    other, rival = forgotten(world, agent), connected(world, 4)
    world.send(rival, [put("u")])
    world.send(other, [ask(agent, 0)])


def a_first_request_that_never_came_of_a_forgotten_session(world):
    agent, other = connected(world, 0), connected(world, 1)
    world.send(other, [ask(agent, 0)])
    world.turn()
    forgotten(world, agent)
    world.send(connected(world, 4), [put("t")])


def a_request_that_never_came_of_a_session_that_is_forgotten_in_the_same_turn(world, *, restart=False):
    """Asked for far ahead: who has its name later comes by that number."""
    agent = connected(world, 0)
    others = [connected(world, number) for number in (1, 2)]
    world.hang_up(agent)
    world.send(others[0], [ask(agent, 2 * LIMITS.window_max)])
    world.hello(world.agents[3])
    world.turn()
    if restart:
        world.die()
    else:
        world.hang_up(others[1])
    rival = connected(world, 4)
    for _ in range(2 * LIMITS.window_max):
        world.send(rival, [put("t")])
        world.turn()


def a_request_that_never_came_of_a_session_that_is_forgotten_in_the_same_turn_before_a_restart(world):
    a_request_that_never_came_of_a_session_that_is_forgotten_in_the_same_turn(world, restart=True)


def a_session_that_comes_back_while_another_one_is_forgotten_for_a_new_one(world):
    agents = [connected(world, number) for number in range(3)]
    world.send(agents[0], [put("t")])
    world.turn()
    for agent in agents[:2]:
        world.hang_up(agent)
    world.hello(agents[0], resends=True)
    world.hello(world.agents[3])
    world.turn()
    world.send(agents[2], [ask(agents[0], 0)])


def the_longest_silent_session_is_forgotten_not_the_one_that_came_first(world):
    agents = [connected(world, number) for number in range(3)]
    world.hang_up(agents[1])
    world.hang_up(agents[0])
    world.hang_up(connected(world, 3))
    world.hello(agents[0], resends=True)
    world.turn()
    world.hello(agents[1], resends=True)


def more_fences_in_one_turn_than_there_is_room_for(world):
    agent, other = connected(world, 0), connected(world, 1)
    for frame in range(LIMITS.window_max + 1):
        world.send(other, [ask(agent, frame)])


def fences_that_were_passed_after_a_restart(world):
    agent = connected(world, 0)
    for _ in range(LIMITS.window_max + 1):
        world.send(agent, [ask(agent, agent.next, 1), put("t")])
        world.turn()
    world.die()


def an_outcome_before_and_after_a_restart(world):
    agent = connected(world, 0)
    world.send(agent, [ask(agent, 0, 1), put("t")])
    world.turn()
    heard, world.compare = [], lambda *reply: heard.append(reply[4])
    for _ in range(2):
        world.send(agent, [ask(agent, 0, 1)])
        world.turn()
        world.die()
        connected(world, 0)
    assert heard[0] == heard[1]


SCENES = {
    a_takeover_behind_requests: "",
    a_takeover_before_requests: "",
    a_takeover_before_requests_of_a_lane_that_ended: "",
    two_hellos_of_a_new_session_for_which_another_one_is_forgotten: "",
    two_takeovers_in_one_turn: "",
    an_outcome_that_leaves_the_window_behind_a_takeover: "",
    an_outcome_that_leaves_the_window_behind_a_takeover_before_a_restart: "",
    an_older_client_behind_a_takeover: "",
    a_new_session_behind_known_ones: "",
    a_session_that_is_forgotten_and_comes_back: "",
    a_request_of_a_forgotten_session_whose_agent_came_back: "",
    a_request_of_a_forgotten_session_whose_name_another_process_has: "",
    a_first_request_that_never_came_of_a_forgotten_session: "",
    a_request_that_never_came_of_a_session_that_is_forgotten_in_the_same_turn: "",
    a_request_that_never_came_of_a_session_that_is_forgotten_in_the_same_turn_before_a_restart: "",
    a_session_that_comes_back_while_another_one_is_forgotten_for_a_new_one: "",
    the_longest_silent_session_is_forgotten_not_the_one_that_came_first: "",
    more_fences_in_one_turn_than_there_is_room_for: "",
    fences_that_were_passed_after_a_restart: "",
    an_outcome_before_and_after_a_restart: "",
}


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(scene, id=scene.__name__, marks=pytest.mark.xfail(strict=True, reason=wrong) if wrong else ())
        for scene, wrong in SCENES.items()
    ],
)
def test_it_is_told_as_the_model_says(world, scene):
    scene(world)
    world.turn()
    world.stop()


# --- the machine can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["a view", "a failure"])
def test_a_world_whose_memory_somebody_holds_closes_nothing_of_others(worlds, last):
    """A failure holds every frame that it passed, and goes when others have the numbers of descriptors that were freed:
    a mapping closes its own when it goes.
    """
    made = worlds(Model(), CLIENTS, LIMITS, "process")
    held = made.engine.view.pin() if last == "a view" else made.engine
    try:
        raise AssertionError(last)
    except AssertionError:
        made.close()
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    del made, held
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    closed = [fd for fd in others if not os.path.exists(f"/proc/self/fd/{fd}")]
    for fd in {*others} - {*closed}:
        os.close(fd)
    assert closed == []


def no_duplicate_check(true, writer, turn, lane, sequence, request):
    if isinstance(request, tuple) and len(request) == 2:
        return true(writer, turn, lane, sequence, request)
    told = writer._decide_request(turn, lane.session, sequence, request, lane)
    return sequence, told.status, told.revision, told.detail


def duplicate_check_behind_the_version_check(true, writer, turn, lane, sequence, request):
    if isinstance(request, tuple) and len(request) == 4:
        try:
            decide(Draft(turn, lane.session.name), request)
        except Refused as error:
            return sequence, Status.REFUSED, turn.revision, to_wire(error)
    return true(writer, turn, lane, sequence, request)


def contents_of_one_id_not_compared(true, turn, sessions, request_id, digest):
    return turn.by_request_id.get(request_id) or sessions.by_request_id.get(request_id)


def a_failed_commit_acknowledged(true, writer, turn, error):
    answers = {lane: list(given) for lane, given in writer._replies.items()}
    true(writer, turn, error)
    writer._replies.update(answers)


def a_failed_commit_remembered(true, writer, turn, error):
    true(writer, turn, error)
    writer.sessions.remember(turn.outcomes)


def an_overlay_kept_after_a_failed_commit(true, writer, turn, error):
    true(writer, turn, error)
    writer.state.revision = turn.revision


def refusals_not_journaled(true, turn):
    said = true(turn)
    return msgspec.structs.replace(said, outcomes=[one for one in said.outcomes if one.status == Status.APPLIED])


def outcomes_forgotten_behind_a_checkpoint(true, sessions):
    return [msgspec.structs.replace(one, outcomes=[]) for one in true(sessions)]


def outcomes_not_journaled(true, turn):
    return msgspec.structs.replace(true(turn), outcomes=[])


def fences_not_journaled(true, turn):
    return msgspec.structs.replace(true(turn), fenced_ids=[])


def sessions_not_journaled(true, turn):
    return msgspec.structs.replace(true(turn), sessions=[])


def a_fence_only_from_the_next_turn_on(true, turn, request_id):
    turn.fenced_ids.append(request_id)


def no_fence(true, turn, request_id):
    pass


def numbers_of_forgotten_sessions_used_again(true, sessions, wanted):
    return wanted


def a_window_without_end(true, session, outcome, window):
    true(session, outcome, 100 * window)


def frames_counted_from_where_a_new_process_says(true, sessions, hello, *given):
    return true(sessions, hello, *given)[0], hello.first


BUGS = [
    (SingleWriter, "_answer", no_duplicate_check),
    (SingleWriter, "_answer", duplicate_check_behind_the_version_check),
    (outcomes, "known_id", contents_of_one_id_not_compared),
    (SingleWriter, "_undo", a_failed_commit_acknowledged),
    (SingleWriter, "_undo", a_failed_commit_remembered),
    (SingleWriter, "_undo", an_overlay_kept_after_a_failed_commit),
    (Turn, "private", refusals_not_journaled),
    (Sessions, "states", outcomes_forgotten_behind_a_checkpoint),
    (Turn, "private", outcomes_not_journaled),
    (Turn, "private", fences_not_journaled),
    (Turn, "private", sessions_not_journaled),
    (Turn, "fence", a_fence_only_from_the_next_turn_on),
    (Turn, "fence", no_fence),
    (Sessions, "_first_of_a_new_one", numbers_of_forgotten_sessions_used_again),
    (Session, "remember", a_window_without_end),
    (Sessions, "greet", frames_counted_from_where_a_new_process_says),
]


LATE_FOUND = (a_failed_commit_remembered, a_failed_commit_acknowledged, a_fence_only_from_the_next_turn_on)


@pytest.mark.parametrize(
    ("place", "name", "bug"),
    [pytest.param(*bug, id=bug[2].__name__, marks=pytest.mark.heavy if bug[2] in LATE_FOUND else ()) for bug in BUGS],
)
def test_a_seeded_bug_is_found(machine, plant, place, name, bug):
    plant(place, name, bug)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=budget(100, **QUICKLY))
