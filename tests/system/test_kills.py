"""Nothing acked is lost and nothing happens twice, whoever is killed, whenever."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from solewriter import (
    Create,
    EngineUnavailable,
    Fenced,
    Limits,
    Locked,
    OutcomeUnknown,
    RequestMismatch,
    Task,
    TaskStatus,
    Update,
    VersionConflict,
    connect,
    open_reader,
)
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.folder import StateFolder
from solewriter.shared.handshake import Welcome

OWNER = """
import sys
from solewriter import Engine
engine = Engine(sys.argv[1]).start()
print(engine.pid, flush=True)
sys.stdin.read()
"""

AT_ONCE = 20  # rounds, in which 3 agents are told some 300 times; then they wait until they are told to go on
AGENT = f"AT_ONCE = {AT_ONCE}" + textwrap.dedent(
    """
    import json, sys
    from solewriter import Create, ResultUnavailable, Task, Update, VersionConflict, connect
    state, name, count, log = sys.argv[1], sys.argv[2], int(sys.argv[3]), open(sys.argv[4], "a", buffering=1)
    with connect(state, name=name) as client:
        own = client.create(Task(title=name, id=f"own-{name}"))
        print("ready", flush=True)
        for number in range(count):
            if number % AT_ONCE == 0:
                sys.stdin.readline()
            if number % 4 == 3:
                mutations = [Update(Task.ref(own.id), {"max_retries": number * 100 + step}) for step in range(1, 17)]
                for reply in client.submit_many(mutations, window=64):
                    log.write(json.dumps([own.id, reply.check().results[0].version, reply.revision]) + "\\n")
            else:
                current = client.get(Task, "shared")
                try:
                    after = client.update(current, max_retries=current.max_retries + 1)
                    log.write(json.dumps(["shared", after.version, 0]) + "\\n")
                except VersionConflict as conflict:
                    assert conflict.current.version > current.version, "a conflict must carry a newer entity"
                except ResultUnavailable:
                    pass  # applied, and then overtaken and given back by an engine that recovered meanwhile
    """
)


def acks(paths):
    """Every (entity, version, revision) that some agent was told, over all agents."""
    return [tuple(json.loads(line)) for path in paths for line in path.read_text().splitlines() if line.endswith("]")]


def start_agents(state, tmp_path, count, rounds):
    logs = [tmp_path / f"agent-{number}.log" for number in range(count)]
    agents = [
        subprocess.Popen(
            [sys.executable, "-c", AGENT, str(state), f"a{number}", str(rounds), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, log in enumerate(logs)
    ]
    for agent in agents:
        assert agent.stdout.readline() == "ready\n"
    return agents, logs


def check_history(state, logs):
    """Each version was acked once and is not above what is stored; increments and versions agree."""
    seen = acks(logs)
    versions = [(key, version) for key, version, _ in seen]
    assert len(versions) == len(set(versions)), "one version was acked twice"
    with open_reader(state) as reader, reader.snapshot() as snap:
        for key, version, revision in seen:
            assert snap[Task, key].version >= version, f"{key} at {version} was acked and is lost"
            assert revision <= snap.revision
        shared = snap[Task, "shared"]
        assert shared.max_retries == shared.version - 1, "an increment was lost or applied twice"
        return len(seen), {task.id: task.version for task in snap.entities(Task)}


ROUNDS = 120


@pytest.mark.heavy
@pytest.mark.parametrize("durability", ["power", "process"])
def test_an_engine_killed_at_random_moments_loses_nothing_and_does_nothing_twice(
    state, tmp_path, start_engine, wait_until, durability
):
    engine = start_engine(state, durability=durability)
    with connect(state, name="judge") as client:
        client.create(Task(title="shared", id="shared"))
    agents, logs = start_agents(state, tmp_path, 3, ROUNDS)
    chance = random.Random(7)

    def go_on() -> None:
        for agent in agents:
            agent.stdin.write("go on\n")
            agent.stdin.flush()

    for _ in range(ROUNDS // AT_ONCE - 1):
        go_on()
        before = engine.restarts
        target = len(acks(logs)) + chance.randrange(50, 200)
        wait_until(lambda target=target: len(acks(logs)) >= target, 60, "progress")
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda before=before: engine.restarts > before, 20, "a restart")
    go_on()
    assert [agent.wait(60) for agent in agents] == [0, 0, 0], "an agent did not go on by itself"
    for agent in agents:
        agent.stdin.close()
        agent.stdout.close()
    count, versions = check_history(state, logs)
    assert count >= 1_000
    for number in range(3):
        assert versions[f"own-a{number}"] == 1 + 16 * (ROUNDS // 4), "pipelined updates were lost or applied twice"


def test_after_a_kill_versions_revisions_and_the_history_go_on(state, start_engine, wait_until):
    engine = start_engine(state, durability="power")
    with connect(state, name="me") as client, open_reader(state) as reader:
        task = client.update(client.create(Task(title="x", id="t")), title="y")
        client.delete(client.create(Task(title="gone", id="gone")))
        held = reader.snapshot()
        first_pid, revision, history = engine.pid, held.revision, held.history_id
        os.kill(first_pid, signal.SIGKILL)
        wait_until(lambda: held.stale, 5, "the snapshot of a dead engine is stale")
        assert held[Task, "t"] == task
        after = client.update(task, title="z")
        assert (after.version, engine.pid != first_pid) == (3, True)
        assert client.create(Task(title="back", id="gone")).version == 3
        with reader.snapshot() as snap:
            assert (snap.revision, snap.history_id, snap.stale) == (revision + 2, history, False)
            assert snap[Task, "t"].title == "z"
        assert held[Task, "t"].title == "y"


def test_no_sequence_of_kills_leaves_a_segment_behind(state, start_engine, wait_until):
    engine = start_engine(state)
    for _ in range(3):
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda before=before: engine.restarts > before, 20, "a restart")
    folder = StateFolder(state)
    assert [marker.prefix for marker in folder.markers()] == [folder.whereabouts().prefix]


def test_an_agent_killed_in_mid_frame_harms_only_itself(state, start_engine, client_of_a_raw_lane):
    start_engine(state)
    with connect(state, name="other") as other:
        task = other.create(Task(title="x"))
        raw = client_of_a_raw_lane(state)
        frame = raw.frame([Create(Task(title="whole", id="whole"))])
        raw.write(frame + frame[: len(frame) // 2])
        raw.die()
        for _ in range(50):
            task = other.update(task, max_retries=task.max_retries + 1)
        assert other.reader.wait_for(52) >= 52
        assert other.get(Task, "whole") is not None
        assert task.version == 51


def test_an_agent_stopped_in_mid_frame_blocks_nobody(state, start_engine, client_of_a_raw_lane):
    start_engine(state)
    raw = client_of_a_raw_lane(state)
    frame = raw.frame([Create(Task(title="late", id="late"))])
    raw.write(frame[:4])
    with connect(state, name="other") as other:
        for number in range(20):
            other.create(Task(title=str(number)))
        raw.write(frame[4:])
        assert raw.reply()[1] == 0
        assert other.get(Task, "late") is not None


def test_races_on_one_task_are_won_once_and_the_loser_gets_the_current_entity(state, tmp_path, start_engine):
    start_engine(state)
    rival = textwrap.dedent(
        """
        import sys
        from solewriter import Task, TaskStatus, VersionConflict, connect
        with connect(sys.argv[1], name=sys.argv[2]) as client:
            tasks = [client.get(Task, f"t{number}") for number in range(100)]
            print("ready", flush=True); sys.stdin.readline()
            won = 0
            for task in tasks:
                try:
                    client.transition(task, TaskStatus.ASSIGNED, assigned_to=sys.argv[2]); won += 1
                except VersionConflict as conflict:
                    assert conflict.current.assigned_to not in (None, sys.argv[2])
            print(won)
        """
    )
    with connect(state) as client:
        for reply in client.submit_many(Create(Task(title="x", id=f"t{number}")) for number in range(100)):
            reply.check()
        rivals = [
            subprocess.Popen(
                [sys.executable, "-c", rival, str(state), f"r{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]
        for process in rivals:
            assert process.stdout.readline() == "ready\n"
        for process in rivals:
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [int(process.communicate(timeout=60)[0]) for process in rivals]
        assert sum(won) == 100
        assert {task.version for task in client.reader.snapshot().entities(Task)} == {2}


def test_a_second_engine_refuses_and_names_the_holder(state, start_engine):
    engine = start_engine(state)
    with pytest.raises(Locked, match=str(engine.pid)):
        start_engine(state)
    with connect(state) as client:
        client.create(Task(title="the first one is unharmed"))


def test_a_clean_stop_drains_and_the_next_engine_goes_on(state, start_engine):
    engine = start_engine(state, durability="power")
    with connect(state, name="me") as client:
        task = client.create(Task(title="x"))
    engine.stop()
    with pytest.raises(EngineUnavailable):
        open_reader(state)
    with pytest.raises(EngineUnavailable):
        connect(state, limits=Limits(connect_timeout_s=0.05))
    start_engine(state, durability="power")
    with connect(state) as client:
        assert client.update(task, title="y").version == 2


def test_what_was_accepted_before_a_stop_is_applied(state, start_engine, client_of_a_raw_lane):
    engine = start_engine(state, durability="power")
    raw = client_of_a_raw_lane(state)
    raw.write(b"".join(raw.frame([Create(Task(title="x", id=f"d{number}"))]) for number in range(100)))
    engine.stop()
    start_engine(state, durability="power")
    with open_reader(state) as reader:
        assert reader.snapshot().counts["Task"] == 100


def test_memory_durability_promises_nothing_and_says_so(state, start_engine):
    engine = start_engine(state, durability="memory")
    with connect(state) as client:
        client.create(Task(title="x"))
        history = client.reader.snapshot().history_id
    engine.stop()
    start_engine(state, durability="memory")
    with open_reader(state) as reader:
        snap = reader.snapshot()
        assert (snap.revision, snap.counts["Task"]) == (0, 0)
        assert snap.history_id != history


def test_memory_durability_refuses_a_folder_that_holds_durable_state(state, start_engine):
    start_engine(state).stop()
    with pytest.raises(EngineUnavailable, match="durable state"):
        start_engine(state, durability="memory")


def test_an_engine_whose_owner_is_killed_drains_and_ends(state, wait_until):
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            OWNER,
            str(state),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(owner.stdout.readline())
    with connect(state) as client:
        client.create(Task(title="x"))
        owner.kill()
        owner.communicate()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 15, "the engine ends")
    assert not StateFolder(state).engine_json.exists()


def test_a_damaged_journal_is_a_refusal_that_names_the_place(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        for number in range(10):
            client.create(Task(title=str(number)))
    engine.stop()
    (journal,) = state.glob("journal-*.log")
    data = bytearray(journal.read_bytes())
    data[struct.calcsize("64x") + 300] ^= 1
    journal.write_bytes(data)
    with pytest.raises(EngineUnavailable, match=journal.name):
        start_engine(state)


def test_an_engine_stops_when_its_folder_is_replaced(state, start_engine, wait_until):
    engine = start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="x"))
        pid = engine.pid
        state.rename(state.with_name("moved"))
        state.mkdir()
        with pytest.raises(Exception, match=r".+"):
            client.update(task, title="y", timeout_s=1.0)
        wait_until(lambda: engine.failure is not None, 10, "the engine is given up")
        assert not os.path.exists(f"/proc/{pid}")
    assert sorted(path.name for path in state.iterdir()) == []
    for marker in StateFolder(state.with_name("moved")).markers():
        assert marker.pid == pid
    start_engine(state.with_name("moved"))
    with connect(state.with_name("moved")) as client:
        assert client.get(Task, task.id) == task


def test_a_resumed_client_id_goes_on_and_the_older_client_is_told(state, start_engine):
    start_engine(state)
    first = connect(state, name="one", client_id="crawler")
    task = first.create(Task(title="x"))
    with connect(state, name="two", client_id="crawler") as second:
        assert second.update(task, title="y").version == 2
        assert second.update(Task.ref(task.id), title="z").version == 3
        with pytest.raises(Fenced):
            first.update(Task.ref(task.id), title="w")
    first.close()


def test_a_request_id_of_the_users_own_is_applied_once_whoever_sends_it(state, start_engine, wait_until):
    engine = start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="x", id="t"), request_id="import-1")
    before = engine.restarts
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts > before, 20, "a restart")
    with connect(state) as again:
        assert again.create(Task(title="x", id="t"), request_id="import-1") == task
        with pytest.raises(RequestMismatch):
            again.create(Task(title="other", id="t"), request_id="import-1")
        assert again.get(Task, "t").version == 1


def test_updates_conflict_across_a_restart_as_before(state, start_engine, wait_until):
    engine = start_engine(state)
    with connect(state) as client:
        old = client.create(Task(title="x"))
        new = client.update(old, title="y")
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        replies = list(client.submit_many([Update(old, {"title": "lost"}), Update(new, {"title": "won"})]))
        assert isinstance(replies[0].error, VersionConflict)
        assert replies[1].entity.version == 3
        assert client.transition(replies[1].entity, TaskStatus.REJECTED).version == 4


def test_a_stop_in_mid_restart_leaves_no_engine_running(state, start_engine):
    for _ in range(4):
        engine = start_engine(state)
        os.kill(engine.pid, signal.SIGKILL)
        engine.stop()
        with pytest.raises(EngineUnavailable):
            connect(state, limits=Limits(connect_timeout_s=0.05))
    start_engine(state).stop()


def test_a_client_whose_id_another_one_used_meanwhile_is_never_told_the_others_outcome(state, start_engine):
    engine = start_engine(state)
    first = connect(state, name="one", client_id="crawler")
    first.create(Task(title="x", id="x"))
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown):
        first.create(Task(title="mine", id="mine"), timeout_s=0.2)
    os.kill(engine.pid, signal.SIGKILL)
    with connect(state, name="two", client_id="crawler") as second:
        second.create(Task(title="other", id="other"))
        with pytest.raises(Fenced):
            first.create(Task(title="late", id="late"))
        assert second.get(Task, "late") is None
    first.close()


def test_what_a_client_did_not_send_before_another_one_used_its_id_is_never_sent(state, start_engine):
    """Nobody could tell it before; its reader goes on."""
    engine = start_engine(state)
    first = connect(state, name="one", client_id="crawler")
    first.create(Task(title="x", id="x"))
    os.kill(engine.pid, signal.SIGKILL)
    with connect(state, name="two", client_id="crawler") as second:
        second.create(Task(title="other", id="other"))
        for _ in range(2):
            with pytest.raises(Fenced):
                first.create(Task(title="mine", id="mine"))
        second.create(Task(title="late", id="late"))
        assert {task.id for task in first.reader.snapshot().entities(Task)} == {"x", "other", "late"}
    first.close()


def test_what_was_not_sent_when_its_session_was_forgotten_goes_on(state, start_engine, wait_until):
    """Two frames and a part were, the rest found no room in the pipe."""
    engine = start_engine(state, durability="memory")
    with connect(state) as client:
        client.create(Task(title="x"))
        told = []

        def send() -> None:
            large = (Create(Task(title="x", id=f"t{number}", description="d" * 60_000)) for number in range(12))
            told.extend(type(reply.error) for reply in client.submit_many(large, window=12))

        os.kill(engine.pid, signal.SIGSTOP)
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        wait_until(lambda: client._session.in_flight == 12 and client._session.unsent is not None, 20, "a full pipe")
        os.kill(engine.pid, signal.SIGKILL)
        sender.join(30)
        assert set(told[:3]) == {OutcomeUnknown}
        assert set(told[-3:]) == {type(None)}
        assert client.reader.snapshot().counts["Task"] == told.count(type(None))


def test_a_session_that_is_not_remembered_ends_as_unknown_and_goes_on(state, start_engine, wait_until):
    engine = start_engine(state, durability="memory")
    with connect(state) as client:
        client.create(Task(title="x"))
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown):
            client.create(Task(title="y", id="y"), timeout_s=0.2)
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        assert client.create(Task(title="z", id="z")).version == 1
        assert client.get(Task, "y") is None, "a request of a forgotten session was decided again"


def test_a_call_whose_session_the_next_engine_does_not_know_ends_at_once(state, start_engine, monkeypatch, wait_until):
    """Nobody will ever answer it, so its time-out is not waited for."""
    monkeypatch.setenv(VARIABLE, "turn.decided:kill:hit=4")
    engine = start_engine(state, durability="memory")
    with connect(state) as client:
        client.create(Task(title="x"))
        begun = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            for number in range(3):
                client.create(Task(title="y", id=f"y{number}"), timeout_s=60)
        assert time.monotonic() - begun < 30
        assert client.create(Task(title="z")).version == 1, "the session goes on"
    wait_until(lambda: engine.restarts == 1, 20, "its owner counts them, a moment behind the reply")


def test_what_was_sent_to_an_engine_that_does_not_come_back_is_unknown(state, start_engine, monkeypatch, hurry):
    """Raised, as after a time-out: nobody gets it as the value of a reply."""
    monkeypatch.setenv(VARIABLE, "turn.decided:kill:hit=3")
    start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    with connect(state) as client:
        hurry(client, 0.2)
        client.create(Task(title="x"))
        with pytest.raises(OutcomeUnknown):
            client.submit(Create(Task(title="y", id="y")))
        assert isinstance(client.submit(Create(Task(title="never sent"))).error, EngineUnavailable)


def test_a_call_on_its_way_while_another_client_takes_the_id_is_unknown_not_fenced(
    state, start_engine, monkeypatch, impostor
):
    """Fenced would say that nothing was changed."""
    monkeypatch.setenv(VARIABLE, "turn.decided:kill:hit=3")
    start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    with connect(state) as client:
        client.create(Task(title="x"))
        impostor(state, Welcome(ok=False, reason="another client has it", refusal="fenced"))
        with pytest.raises(OutcomeUnknown):
            client.create(Task(title="y"))
        with pytest.raises(Fenced):
            client.create(Task(title="z"))


def test_a_held_snapshot_outlives_its_engine_whole(state, start_engine):
    """Also where its tables and indexes were never looked at before they went."""
    engine = start_engine(state)
    with connect(state) as client:
        for reply in client.submit_many(Create(Task(title=f"t{number}", id=f"t{number}")) for number in range(500)):
            reply.check()
        client.update(Task.ref("t7"), title="seven")
        client.delete(Task.ref("t8"))
    with open_reader(state) as reader:
        held = reader.snapshot()
        engine.stop()
        assert held.stale
        assert held[Task, "t7"].title == "seven"
        assert held.get(Task, "t8") is None
        assert held.get(Task, "nobody") is None
        assert {task.id for task in held.entities(Task)} == {f"t{number}" for number in range(500)} - {"t8"}


def test_the_memory_of_a_dead_engine_goes_with_the_first_look_at_the_next_ones(engine, client, wait_until):
    """At once, not when the garbage collector comes by. (The owner in this process maps the root, to see its pulse.)"""
    prefix = engine.folder.whereabouts().prefix

    def mapped() -> list[str]:
        with open("/proc/self/maps") as maps:
            return [line for line in maps if prefix in line and f"{prefix}-root" not in line]

    client.create(Task(title="x", id="t", project="p"))
    assert client.reader.snapshot().ids(Task, {"project": "p"}) == ["t"]
    assert mapped()
    gc.disable()
    try:
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        assert client.get(Task, "t").title == "x"
        assert mapped() == []
    finally:
        gc.enable()


def test_a_client_that_never_looked_into_a_dead_engines_memory_goes_on(engine, client, wait_until):
    assert client.reader.revision == 0  # of its memory, this maps nothing but the root
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "a restart")
    assert client.create(Task(title="x")).version == 1


def test_a_start_that_cannot_succeed_is_given_up(state, start_engine, wait_until, remove_memory):
    engine = start_engine(state)
    with connect(state) as client:
        for number in range(5):
            client.create(Task(title=str(number)))
    (journal,) = state.glob("journal-*.log")
    with journal.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 8)
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.failure is not None, 20, "the engine is given up")
    with pytest.raises(EngineUnavailable, match=journal.name):
        engine.wait()
    remove_memory(state)
