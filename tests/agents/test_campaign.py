"""The campaign is what its seed says, leaves nothing behind, and is caught lying by nobody: a seeded bug is seen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import chain, islice, repeat
from pathlib import Path

import pytest

from solewriter import Task, connect
from solewriter.agents.testing.campaign import Settings, percentiles, run
from solewriter.agents.testing.crowd import Crowd
from solewriter.agents.testing.lines import Answer, Attempt, Call, Gathered
from solewriter.agents.testing.mortal import MortalEngine, Span
from solewriter.agents.testing.nursery import Nursery
from solewriter.agents.testing.plan import ENGINES, LIFE_MAX_S, MAKERS, MAY_BE_FULL, MAY_RAISE, Life, plan
from solewriter.agents.testing.round import first_acks_ms
from solewriter.engine_proc.engine import SingleWriter

KEYS = {
    "seed", "acked", "refused", "unknown", "kills", "failpoints_hit", "lost", "duplicated", "violations",
    "restart_first_ack_ms",
}  # fmt: skip
PROGRAM = [sys.executable, "-P", "-m", "solewriter.agents.testing.campaign"]


def printed(*options: str, status: int = 0) -> str:
    done = subprocess.run([*PROGRAM, *options], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == status, done.stdout
    return done.stdout


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_plan():
    assert printed("--plan", "--seed", "7") == printed("--plan", "--seed", "7") != printed("--plan", "--seed", "8")


def test_the_rounds_of_one_seed_differ():
    first, second = ([*islice(plan(7, number).lives, 20)] for number in (1, 2))
    assert first != second
    assert first == [*islice(plan(7, 1).lives, 20)]


def test_a_plan_comes_to_every_failpoint_and_to_every_fault():
    made = plan(1)
    armed = {life.failpoint for life in islice(made.lives, 10_000) if life.failpoint}
    assert {text.partition(":")[0] for text in armed} == {*ENGINES, *MAKERS}
    raised = {text.partition(":")[0] for text in armed if ":raise" in text}
    full = {text.partition(":")[0] for text in armed if ":full" in text}
    assert (raised, full) == ({*MAY_RAISE}, {*MAY_BE_FULL})
    assert {fault.what for fault in islice(made.faults, 1_000)} == {
        "kill agent", "kill reader", "kill watcher", "stop agent", "stop reader", "stop watcher", "take over",
        "stop and start",
    }  # fmt: skip


def test_a_plan_keeps_to_the_failpoints_that_it_is_given():
    named = {life.failpoint.partition(":")[0] for life in islice(plan(1, 1, ["turn.reply"]).lives, 200)}
    assert named == {"", "turn.reply", *MAKERS}
    assert not any(life.failpoint for life in islice(plan(1, 1, []).lives, 200))


def test_a_life_whose_checkpoints_fail_ends_at_random_all_the_same():
    """No engine dies at those failpoints: nobody waits for that."""
    failing = [life for life in islice(plan(1).lives, 2_000) if life.failpoint.startswith(MAKERS)]
    assert len(failing) > 50
    assert all(life.failpoint.endswith(":kill") and life.after_s <= LIFE_MAX_S for life in failing)
    assert not {*MAKERS} & {*ENGINES}


# --- what is measured ------------------------------------------------------------------------------------------------


def acked(at: int) -> Attempt:
    return Attempt(Call(1, at - 1, "x", False, ()), Answer(1, at, "applied", "x", 1, (1,)))


def test_a_restart_is_measured_from_the_death_to_the_first_ack_of_the_next_life():
    spans = [
        Span(1_000_000, 5_000_000, 0, violent=True),
        Span(8_000_000, 20_000_000, 0, violent=True),  # acked at 9 ms
        Span(0, 21_000_000, 0, violent=True),  # died in its recovery
        Span(25_000_000, 30_000_000, 0, violent=False),  # acked at 26 ms
        Span(35_000_000, 40_000_000, 0, violent=True),  # began behind a clean end
        Span(45_000_000, 60_000_000, 46_000_000, violent=True),  # stopped before it acked anything
        Span(70_000_000, 80_000_000, 0, violent=True),  # died before it acked anything
        Span(90_000_000, 99_000_000, 0, violent=False),
    ]
    late = 6_000_000  # an ack of the first life that was read behind its death
    attempts = [acked(at) for at in (2_000_000, late, 9_000_000, 26_000_000, 36_000_000, 47_000_000, 95_000_000)]
    assert first_acks_ms(spans, Gathered(attempts, {}, [], {})) == [4.0, 5.0, 15.0]


def test_percentiles_of_few_and_of_many():
    assert percentiles([]) == percentiles([])
    assert (percentiles([3.0]).p50, percentiles([3.0]).p99, percentiles([3.0]).count) == (3.0, 3.0, 1)
    many = percentiles([float(number) for number in range(1, 1_001)])
    assert 490 < many.p50 < 510 < 985 < many.p99 < many.max == 1_000


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_small_campaign_is_clean_and_counts(tmp_path):
    said = json.loads(
        printed(
            "--minutes",
            "1",
            "--acks",
            "1200",
            "--kills",
            "2",
            "--seed",
            "5",
            "--pause-s",
            "0.005",
            "--json",
            "--keep",
            "--folder",
            str(tmp_path),
        )
    )
    assert said.keys() >= KEYS
    assert (said["lost"], said["duplicated"], said["violations"], said["first_violations"]) == (0, 0, 0, [])
    folders = [*map(Path, said["kept"])]  # one; where the machine is busy, another round
    written = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.log"))
    assert 1_200 <= said["acked"] <= written.count(b'"outcome":"applied"') + said["repeats"]
    assert said["seed"] == 5
    assert written.count(b"SIGKILL of agent") == said["kills"]["agent"] >= 2
    assert written.count(b"SIGKILL of reader") == said["kills"]["reader"] >= 2
    assert said["kills"]["engine"] >= 2
    assert {*said["failpoints_hit"]} <= {*ENGINES}
    assert said["restart_first_ack_ms"]["count"] <= said["restarts"]
    assert [*(folders[0] / "archive").glob("journal-*.log")], "no journal file was kept"


@pytest.fixture
def endless(tmp_path, wait_until):
    """A campaign of five minutes, and its agents are at work."""
    command = [*PROGRAM, "--minutes", "5", "--seed", "6", "--json", "--folder", str(tmp_path / "rounds")]
    (tmp_path / "rounds").mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as campaign:
        try:
            wait_until(lambda: [*tmp_path.glob("rounds/*/round-1/agent-4.log")], 30, "an agent at work")
            yield campaign
        finally:
            campaign.kill()


def test_ctrl_c_ends_everything_and_removes_the_folder(endless, tmp_path):
    endless.send_signal(signal.SIGINT)
    assert endless.wait(60) == 130
    assert endless.stdout.read() == b""
    assert [*(tmp_path / "rounds").iterdir()] == []


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_campaign_that_is_killed_leaves_no_process_and_no_memory(endless, tmp_path, number):
    """`nothing_stays` looks for both. The engine was just stopped or killed, too."""
    (lock,) = tmp_path.glob("rounds/*/round-1/state/lock")
    endless.send_signal(signal.SIGSTOP)  # nothing follows what is killed now

    with contextlib.suppress(ValueError, ProcessLookupError):  # it starts just now, or was killed by the plan
        os.kill(int(lock.read_text().removeprefix("pid ")), number)
    endless.kill()
    endless.wait(30)


def test_who_was_forked_ends_with_the_nursery(engine, tmp_path, wait_until):
    log = tmp_path / "reader-1.log"
    nursery = Nursery(engine.state)
    try:
        pid = nursery.fork(["reader", str(engine.state), str(log)])
        wait_until(lambda: log.exists() and log.stat().st_size, 30, "a reader at work")
        nursery.signal(pid, signal.SIGSTOP)
        os.kill(nursery.pid, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 20, "the reader's end")
        with pytest.raises(RuntimeError, match="the nursery ended with status -9"):
            nursery.ended()
    finally:
        nursery.close()


def test_an_engine_that_is_killed_while_it_is_stopped_is_no_trouble_for_who_was_to_wake_it(tmp_path, wait_until):
    archive = tmp_path / "archive"
    archive.mkdir()
    lives = chain([Life(60, "turn.reply:stop", stopped_s=0.3)], repeat(Life(60)))
    engine = MortalEngine(tmp_path / "state", lives, lambda text: None, archive, durability="process")
    try:
        engine.begin()
        agent = threading.Thread(target=create_one, args=(engine.state,))
        agent.start()
        wait_until(lambda: engine.failpoints_hit["turn.reply"], 20, "it stopped itself")
        engine.strike(20)
        agent.join()
        for path in archive.iterdir():
            path.unlink()
        wait_until(lambda: [*archive.iterdir()], 20, "journal files are kept again, by the thread that was to wake it")
    finally:
        engine.end()


def create_one(state) -> None:
    with connect(state) as client:
        client.create(Task(title="x"))


# --- a bug -----------------------------------------------------------------------------------------------------------


def acked_before_committed() -> None:
    """The replies of a turn leave before it is durable."""
    from solewriter.engine_proc.engine import SingleWriter

    commit = SingleWriter._commit

    async def hasty(self, turn) -> None:
        for lane, answers in self._replies.items():
            lane.reply(answers)
        self._replies.clear()
        await commit(self, turn)

    SingleWriter._commit = hasty


@pytest.mark.heavy
def test_an_engine_that_acks_before_it_commits_is_caught(tmp_path, seeded, interpreted):
    """The second, third and fourth life of this plan die before they write what they acked."""
    interpreted(SingleWriter)
    report = run(
        Settings(
            seed=2949, minutes=1, acks=500, kills=2, crowd=Crowd(4, 1, 0, 0.0), failpoints=["commit.write"],
            folder=tmp_path, models=[seeded(acked_before_committed)],
        )
    )  # fmt: skip
    assert report.lost > 0, report
    assert not report.clean


def fails_at_the_hundredth_turn() -> None:
    """A bug of our own stops the engine."""
    from itertools import count

    from solewriter.engine_proc.engine import SingleWriter

    commit, turns = SingleWriter._commit, count(1)

    async def failing(self, turn) -> None:
        assert next(turns) < 100, "a seeded bug"
        await commit(self, turn)

    SingleWriter._commit = failing


@pytest.mark.heavy
def test_an_engine_that_ends_by_itself_is_no_fault_of_the_plan(tmp_path, seeded, interpreted):
    interpreted(SingleWriter)
    report = run(
        Settings(
            seed=1, minutes=1, crowd=Crowd(2, 0, 0, 0.0), failpoints=[], folder=tmp_path,
            models=[seeded(fails_at_the_hundredth_turn)],
        )
    )  # fmt: skip
    assert any("the engine ended with status 1" in violation for violation in report.first_violations), report
    (kept,) = report.kept
    assert [*Path(kept).glob("state/journal-*.log")], "the folder of a round that went wrong is gone"
