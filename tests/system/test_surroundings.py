"""What the machine does to an engine: its folder goes, its rights, descriptors and clock; everybody comes at once."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import msgspec
import psutil
import pytest

from solewriter import (
    Client,
    Create,
    Engine,
    EngineStartFailed,
    EngineUnavailable,
    Limits,
    Obstacle,
    OutcomeUnknown,
    Project,
    Task,
    Update,
    VersionConflict,
    aio,
    connect,
    open_reader,
    why_not_ready,
)
from solewriter.agents.status import status_of
from solewriter.shared.config import KIB, MIB
from solewriter.shared.folder import StateFolder, Whereabouts

SOON_S = 0.2  # as long as an agent waits for another engine

# --- the state folder -------------------------------------------------------------------------------------------------


def emptied(state: Path) -> None:
    for path in state.iterdir():
        path.unlink()


def replaced(state: Path) -> None:
    shutil.rmtree(state)
    state.mkdir(mode=0o700)


TAKEN_AWAY = {"deleted": shutil.rmtree, "emptied": emptied, "replaced": replaced}


@pytest.mark.parametrize("how", TAKEN_AWAY)
@pytest.mark.parametrize("killed", [False, True], ids=["at the next turn", "at the next start"])
def test_an_engine_whose_folder_is_taken_away_ends_and_begins_no_other(
    state, start_engine, wait_until, capfd, hurry, how, killed
):
    """Whether it notices itself, or dies before: an empty state in the place of a full one would be the worst loss."""
    engine = start_engine(state)
    where = engine.folder.whereabouts()
    with connect(state, limits=Limits(request_timeout_s=5)) as client:
        hurry(client, SOON_S)
        task = client.create(Task(title="x", id="t"))
        held = client.reader.snapshot()
        TAKEN_AWAY[how](state)
        if killed:
            os.kill(engine.pid, signal.SIGKILL)
        else:
            with pytest.raises(Exception, match=r"."):
                client.update(task, title="y")
        wait_until(lambda: engine.failure is not None, 20, "the engine is given up")
        assert killed or f"{state} was moved, deleted or replaced" in str(engine.failure)
        assert held["Task", "t"]["title"] == "x", "what is held stays readable"
    assert state.exists() == (how != "deleted")
    assert not state.exists() or not list(state.glob("journal-*")), "another state was begun"
    with pytest.raises(EngineUnavailable):
        connect(state, limits=Limits(connect_timeout_s=SOON_S))
    said = capfd.readouterr().err
    assert ("was deleted or emptied" if killed else "the state folder is gone") in said
    engine.stop()
    assert taken_out(where) == [], "its memory stayed, and nobody knows its name any more"


def taken_out(where: Whereabouts) -> list[str]:
    """The segments of an engine, which are gone now: no folder names them to whoever tidies up behind a test."""
    left = [*Path(where.memory_dir).glob(f"{where.prefix}-*")]
    for path in left:
        path.unlink()
    return [path.name for path in left]


def test_a_killed_engines_memory_goes_when_the_next_one_begins_in_a_folder_that_never_named_it(
    state, start_engine, wait_until, tmp_path
):
    """As of a backup that was put in the place of the folder."""
    engine = start_engine(state)
    engine.stop()
    shutil.copytree(state, tmp_path / "backup", ignore=shutil.ignore_patterns("*.sock"))
    engine.start()
    where = engine.folder.whereabouts()
    shutil.rmtree(state)
    (tmp_path / "backup").rename(state)
    os.kill(where.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "the next one serves")
    assert taken_out(where) == []


def test_an_engine_on_a_copy_of_a_killed_ones_folder_takes_nothing_from_its_readers(
    state, start_engine, wait_until, tmp_path
):
    engine = start_engine(state, limits=Limits(restart_backoff_s=60.0, restart_backoff_max_s=60.0))
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(id="a", title="a"))
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: reader.snapshot().stale, 20, "it is dead")
        shutil.copytree(state, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
        with Engine(tmp_path / "copy") as copied, connect(copied.state) as other:
            assert other.update(Task.ref("a"), title="b").version == 2
        assert reader.get(Task, "a").title == "a"
        with open_reader(state) as late:
            assert late.get(Task, "a").title == "a"


def test_a_copy_of_a_folder_that_is_served_is_served_by_nobody(state, start_engine, tmp_path):
    """Whoever opens it would be shown what the other one's engine does."""
    start_engine(state)
    with connect(state) as client:
        client.create(Task(id="a", title="a"))
        copy = shutil.copytree(state, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
        client.create(Task(id="later", title="later"))
    with pytest.raises(EngineUnavailable, match="no engine"):
        open_reader(copy)
    with open_reader(copy, offline=True) as reader:
        assert reader.get(Task, "a").title == "a"
        assert reader.get(Task, "later") is None


def test_an_engine_whose_folder_is_taken_away_while_it_starts_leaves_no_memory(
    state, wait_until, tmp_path, monkeypatch, is_stopped
):
    """Nobody would ever find it."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv("SOLEWRITER_FAILPOINT", "recover.published:stop")
    engine = Engine(state, limits=Limits(memory_dir=str(memory)))
    with ThreadPoolExecutor(1) as beside:
        starting = beside.submit(engine.start)
        wait_until(lambda: engine._starting is not None and is_stopped(engine._starting.pid), 20, "it has memory")
        assert os.listdir(memory)
        shutil.rmtree(state)
        os.kill(engine._starting.pid, signal.SIGCONT)
        with pytest.raises(EngineStartFailed, match="No such file"):
            starting.result(20)
    assert os.listdir(memory) == []


def test_an_engine_stopped_with_a_file_in_hand_leaves_the_folder_alone_that_took_its_folders_place(
    state, tmp_path, start_engine, wait_until, monkeypatch, is_stopped
):
    """It was about to name its next file, and goes on when another engine has begun there, and has a next file, too."""
    small = Limits(journal_file_bytes=1 * MIB, connect_timeout_s=0.5)
    monkeypatch.setenv("SOLEWRITER_FAILPOINT", "journal.roll:stop:hit=2")
    old = start_engine(state, limits=small)
    monkeypatch.delenv("SOLEWRITER_FAILPOINT")
    pid = old.pid

    def fill(client: Client) -> None:
        client.put(Task(id="t", title="x", description=str(next(numbers)) * 20_000))

    def work() -> None:
        while True:
            fill(client)

    numbers = count(1_000)
    with ThreadPoolExecutor(1) as beside, connect(state, limits=small) as client:
        working = beside.submit(work)
        wait_until(lambda: is_stopped(pid), 30, "a file is about to get its name")
        state.rename(tmp_path / "moved")
        new = start_engine(state, limits=small, durability="power")
        with connect(state) as other:
            wait_until(lambda: fill(other) or (state / "journal.next").exists(), 30, "a next file")
            fill(other)
            files = set(os.listdir(state))
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: old.failure is not None, 20, "the old one ends")
            assert set(os.listdir(state)) == files
            wait_until(lambda: fill(other) or len([*state.glob("journal-*")]) > 2, 30, "two more files")
            revision = other.reader.revision
        with pytest.raises((EngineUnavailable, OutcomeUnknown)):
            working.result(60)
    assert not new.restarts
    new.stop()
    start_engine(state, limits=small)
    with open_reader(state) as reader:
        assert reader.revision == revision
    shutil.rmtree(tmp_path / "moved")


@pytest.mark.parametrize("point", ["turn.decided", "commit.written", "commit.noted"])
def test_an_engine_that_was_stopped_in_a_commit_replies_to_nobody_once_another_one_has_its_place(
    state, tmp_path, start_engine, wait_until, monkeypatch, point, is_stopped, hurry
):
    monkeypatch.setenv("SOLEWRITER_FAILPOINT", f"{point}:stop:hit=4")
    old = start_engine(state)
    monkeypatch.delenv("SOLEWRITER_FAILPOINT")
    pid = old.pid

    def work() -> None:
        for number in range(10):
            client.create(Task(id=f"t{number}", title="x"))
            told.append(number)

    told: list[int] = []
    with ThreadPoolExecutor(1) as beside, connect(state, limits=Limits(request_timeout_s=5)) as client:
        hurry(client, SOON_S)
        working = beside.submit(work)
        wait_until(lambda: is_stopped(pid), 30, point)
        before = len(told)
        state.rename(tmp_path / "moved")
        start_engine(state)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: old.failure is not None, 20, "the old one ends")
        assert isinstance(working.exception(60), OutcomeUnknown)
        assert len(told) == before
    shutil.rmtree(tmp_path / "moved")


def test_a_folder_that_nobody_may_enter_loses_nothing(state, start_engine, wait_until, hurry):
    """Rights do not bind root: its engine goes on. Anybody else's ends with the reason, and finds all of it again."""
    engine = start_engine(state)
    with connect(state, limits=Limits(request_timeout_s=5)) as client:
        hurry(client, SOON_S)
        task = client.create(Task(title="x", id="t"))
        state.chmod(0)
        try:
            task = client.update(task, title="y")
        except EngineUnavailable:
            wait_until(lambda: engine.failure is not None, 20, "the engine is given up")
        finally:
            state.chmod(0o700)
    engine.stop()
    start_engine(state)
    with open_reader(state) as reader:
        assert reader.get(Task, "t") == task


def test_a_memory_folder_with_a_relative_name_is_the_same_for_everybody(state, start_engine, tmp_path, monkeypatch):
    """For readers elsewhere, and for the next engine of an owner that went to another folder."""
    for name in ("memory", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    engine = start_engine(state, limits=Limits(memory_dir="memory"))
    monkeypatch.chdir("elsewhere")
    with connect(state) as client:
        task = client.create(Task(title="x"))
        os.kill(engine.pid, signal.SIGKILL)
        with open_reader(state) as reader:
            assert client.update(task, title="y") == reader.get(Task, task.id)
    engine.stop()
    assert os.listdir(tmp_path / "memory") == []


def test_journal_files_deleted_under_a_running_engine_are_missed_at_the_next_start(state, start_engine):
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
        for path in state.glob("journal-*.log"):
            path.unlink()
        client.create(Task(title="y"))
    engine.stop()
    with pytest.raises(EngineUnavailable, match="no journal file any more"):
        start_engine(state)


def test_a_journal_that_is_gone_without_a_trace_is_missed_by_the_next_engine(
    state, start_engine, wait_until, remove_memory
):
    """It follows one that served from it."""
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    for path in (*state.glob("journal-*.log"), state / "committed"):
        path.unlink()
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.failure is not None or engine.restarts, 20, "the engine is given up")
    remove_memory(state)
    assert "was an engine's a moment ago, and has no journal file any more" in str(engine.failure)


@pytest.mark.parametrize("damage", ["missing", "flipped", "elsewhere", "no text"])
def test_readers_find_the_next_engine_though_the_note_of_the_last_ones_memory_is_damaged(
    state, start_engine, wait_until, damage
):
    """And their own client's writes: nobody else tells them that the memory they look into is a dead engine's."""
    engine = start_engine(state)
    where = engine.folder.whereabouts()
    with connect(state) as client, open_reader(state) as reader:
        task = client.create(Task(title="x", id="t"))
        assert reader.wait_for(1, 5) == client.reader.revision == 1
        marker = engine.folder.marker(where.prefix)
        content = marker.read_bytes()
        marker.unlink()
        if damage == "flipped":  # of the prefix: it names memory that never was
            marker.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        elif damage == "elsewhere":
            marker.write_bytes(content.replace(b'"memory_dir":"/', b'"memory_dir":"o', 1))
        elif damage == "no text":
            marker.write_bytes(content[:-3] + bytes([content[-3] ^ 0x80]) + content[-2:])
        os.kill(engine.pid, signal.SIGKILL)
        assert client.update(task, title="y").version == 2
        assert client.get(Task, "t").title == "y"
        assert reader.wait_for(2, 5) == 2
    assert not list(Path(where.memory_dir).glob(f"{where.prefix}-*")), "its memory stayed"


@pytest.mark.parametrize("write", [True, False], ids=["reclaimed at a write", "in peace"])
def test_an_engine_whose_memory_is_removed_by_others_is_followed_by_one_that_has_some(
    state, start_engine, wait_until, capfd, write
):
    """As systemd does when a user logs out (RemoveIPC), or who takes it for a dead engine's. Whoever reads or waits
    goes on there, not in what nobody will change any more.
    """
    small = {"heap_segment_bytes_first": 64 * KIB, "heap_segment_bytes_max": 64 * KIB}
    engine = start_engine(state, limits=Limits(**small, heartbeat_s=60.0 if write else 0.05, restart_backoff_s=0.005))
    with connect(state) as client, open_reader(state) as reader, open_reader(state) as idle:
        task = client.create(Task(title="x", id="t"))
        assert reader.get(Task, "t") == idle.get(Task, "t") == task
        where = engine.folder.whereabouts()
        for path in Path(where.memory_dir).glob(f"{where.prefix}-*"):
            path.unlink()
        for number in range(200 if write else 0):
            client.submit(Update(Task.ref("t"), {"title": f"{number} {'y' * 2_000}"})).check()
        wait_until(lambda: engine.restarts == 1, 20, "another engine serves")
        task = client.update(Task.ref("t"), title="z")
        with open_reader(state) as newcomer:
            for one in (reader, idle, newcomer):
                one.wait_for(newcomer.revision, 10)
                assert one.get(Task, "t") == client.get(Task, "t") == task
    assert "removed" in capfd.readouterr().err
    engine.stop()
    assert list(Path(where.memory_dir).glob(f"{where.prefix}-*")) == []


def test_what_is_in_memory_alone_is_kept_where_others_remove_the_names_of_that(state, start_engine, wait_until):
    """Another engine would have nothing to go on with. Whoever has mapped it goes on."""
    engine = start_engine(state, durability="memory", limits=Limits(heartbeat_s=0.02))
    with connect(state) as client, open_reader(state) as reader, open_reader(state) as late:
        task = client.create(Task(title="x", id="t"))
        assert reader.get(Task, "t") == task
        root, where = reader.view().root, engine.folder.whereabouts()
        for path in Path(where.memory_dir).glob(f"{where.prefix}-*"):
            path.unlink()
        before = root.heartbeat_us
        wait_until(lambda: root.heartbeat_us > before + 50_000, 20, "it has looked at least twice")
        assert client.update(task, title="y") == reader.get(Task, "t")
        with pytest.raises(EngineUnavailable, match="removed under its engine"):
            late.snapshot()
    assert engine.restarts == 0


def test_a_detached_engine_whose_memory_is_removed_by_others_goes_on_where_nobody_would_start_another(
    state, wait_until, remove_memory
):
    program = """if True:
        import sys
        from solewriter import Engine, Limits
        print(Engine(sys.argv[1], limits=Limits(heartbeat_s=0.02), detach=True).start().pid, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-P", "-c", program, state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        engine = psutil.Process(int(owner.stdout.readline()))
    try:
        wait_until(lambda: engine.ppid() != owner.pid, 20, "nobody looks after it")
        with connect(state) as client, open_reader(state) as reader:
            root, task = reader.view().root, client.create(Task(title="x"))
            remove_memory(state)
            before = root.heartbeat_us
            wait_until(lambda: root.heartbeat_us > before + 50_000, 20, "it has looked at least twice")
            assert client.update(task, title="y").version == 2
    finally:
        engine.kill()
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 20, "its end")


def test_who_reads_what_others_removed_under_an_engine_that_died_goes_on_with_the_next_one(state, start_engine):
    """Nobody can tell it there any more: a client hears it with a reply, who waits looks, and whoever asks whether what
    it sees is stale is told so, and sees the next one's at the next look.
    """
    engine = start_engine(state, limits=Limits(heartbeat_s=60.0, restart_backoff_s=0.005))

    async def story() -> None:
        async with aio.open_reader(state) as waiting:
            for one in (client.reader, reader, looking):
                assert one.get(Task, "t") == task
            assert await waiting.get(Task, "t") == task
            where = engine.folder.whereabouts()
            for path in Path(where.memory_dir).glob(f"{where.prefix}-*"):
                path.unlink()
            os.kill(engine.pid, signal.SIGKILL)
            newest = client.update(task, title="y")
            assert client.get(Task, "t") == newest
            assert reader.wait_for(2, 10) == 2
            assert reader.get(Task, "t") == newest
            assert looking.snapshot().stale
            assert (await waiting.snapshot()).stale
            assert looking.get(Task, "t") == await waiting.get(Task, "t") == newest
            assert not looking.snapshot().stale

    with connect(state) as client, open_reader(state) as reader, open_reader(state) as looking:
        task = client.create(Task(title="x", id="t"))
        asyncio.run(story())


def test_a_refusal_shows_the_newest_also_where_others_removed_what_its_client_had_mapped(state, start_engine):
    """It is the first reply of the next engine to this client."""
    engine = start_engine(state, limits=Limits(heartbeat_s=60.0, restart_backoff_s=0.005))
    with connect(state) as client, connect(state) as other:
        task = client.create(Task(title="x", id="t"))
        where = engine.folder.whereabouts()
        for path in Path(where.memory_dir).glob(f"{where.prefix}-*"):
            path.unlink()
        os.kill(engine.pid, signal.SIGKILL)
        newest = other.update(Task.ref("t"), title="y")
        with pytest.raises(VersionConflict) as lost:
            client.update(task, title="z")
        assert lost.value.current == client.get(Task, "t") == newest


UNUSABLE = {"missing": None, "a file": 0o600, "not to be listed": 0o300}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_memory_folder_that_is_none_or_keeps_its_content_to_itself_is_named_by_the_start(state, tmp_path, how):
    """What cannot be listed would never be given back."""
    folder, mode = tmp_path / "memory", UNUSABLE[how]
    if how == "a file":
        folder.touch()
    elif mode is not None:
        folder.mkdir(mode)
        if os.access(folder, os.R_OK):
            pytest.skip("rights do not bind root")
    with pytest.raises(EngineStartFailed, match=re.escape(f"'{folder}'")):
        Engine(state, limits=Limits(memory_dir=str(folder))).start()
    assert list(state.glob("*.json")) == []


def test_why_a_start_failed_is_told_where_nothing_can_be_tidied_up_behind_it(state, start_engine):
    """For the same reason, say."""
    start_engine(state).stop()
    note = StateFolder(state).marker("solewriter-x")
    note.mkdir()  # which nobody can read
    with pytest.raises(EngineStartFailed, match="directory"):
        Engine(state).start()
    note.rmdir()
    start_engine(state)


NOWHERE = {
    "a NUL": {"memory_dir": "/dev\0/shm"},
    "a relative name": {"memory_dir": "elsewhere"},
    "a folder's name that is too long": {"memory_dir": "/" + "x" * 300},
    "a path that is too long": {"memory_dir": "/x" * 3_000},
    "a file": {"memory_dir": __file__},
    "a link to itself": {"memory_dir": "round"},
    "a prefix that is too long": {"prefix": "solewriter-" + "x" * 240},
}


@pytest.mark.parametrize("damage", NOWHERE)
def test_memory_that_can_be_nowhere_is_told_to_readers_and_keeps_no_engine_from_starting(
    state, start_engine, tmp_path, damage
):
    """Where `engine.json` and the note of that memory name it: by an error of ours, and at once."""
    (tmp_path / "round").symlink_to("round")
    engine = start_engine(state)
    with connect(state) as client:
        task = client.create(Task(title="x"))
    where = engine.folder.whereabouts()
    engine.stop()
    named = {key: str(tmp_path / name) if name == "round" else name for key, name in NOWHERE[damage].items()}
    for path in (engine.folder.engine_json, engine.folder.marker(where.prefix)):
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(where, **named)))

    async def opened():
        await aio.open_reader(state)

    for look in (lambda: open_reader(state), lambda: asyncio.run(opened())):
        with pytest.raises(EngineUnavailable, match=r"cannot be read"):
            look()
    status = status_of(state)
    assert status.engine in ("gone", "stopped")
    engine.start()
    assert engine.folder.markers() == [engine.folder.whereabouts()]
    with open_reader(state) as reader:
        assert reader.get(Task, task.id) == task
    engine.stop()
    assert list(state.glob("*.json")) == []


# --- other users ------------------------------------------------------------------------------------------------------

STRANGER = textwrap.dedent(
    """
    import os, socket, struct, sys
    refused, heard = [], b""
    os.setgroups([]); os.setgid(65534); os.setuid(65534)  # here: it may not be able to read where Python is
    for path in sys.argv[2:]:
        for mode in (os.O_RDONLY, os.O_RDWR):
            try:
                os.close(os.open(path, mode))
                print("opened", path, mode)
            except PermissionError:
                refused.append(path)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(sys.argv[1])
        reading, writing = os.pipe()
        socket.send_fds(connection, [struct.pack("<I", 1) + bytes([0xC1])], [reading, writing])
        heard = connection.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        pass
    print(len(refused), heard)
    """
)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the uid needs root")
def test_another_user_opens_nothing_and_is_hung_up_on_unheard(passable, start_engine, capfd, wait_until):
    """Every file and every segment, by its name; the folders are made passable, and so is the socket."""
    state = passable / "state"
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x"))
    where = engine.folder.whereabouts()
    files = [path for path in state.iterdir() if not path.is_socket()]
    files += Path(where.memory_dir).glob(f"{where.prefix}*")
    state.chmod(0o755)
    (state / "engine.sock").chmod(0o777)
    command = [sys.executable, "-c", STRANGER, str(state / "engine.sock"), *map(str, files)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert len(files) > 8
    assert ran.stdout == f"{2 * len(files)} b''\n"
    said: list[str] = []

    def refused() -> bool:
        said.append(capfd.readouterr().err)
        return "refused a connection from uid 65534" in "".join(said)

    wait_until(refused, 10, "the engine says whom it refused")
    assert "hello" not in "".join(said), "not a byte of it was looked at"


THIEF = textwrap.dedent(
    """
    import os, socket, sys
    os.chdir(sys.argv[1])
    os.unlink("engine.sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("engine.sock")
    os.seteuid(65534)
    listening.listen()
    print("ready", flush=True)
    while True:
        came, _ = listening.accept()
        heard, lanes, *_ = socket.recv_fds(came, 4096, 4)
        print(heard, lanes, flush=True)
    """
)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the uid needs root")
def test_a_socket_that_another_user_listens_to_is_told_nothing(state, start_engine):
    """As may be where others may write into the state folder."""
    start_engine(state)
    thief = subprocess.Popen([sys.executable, "-c", THIEF, state], stdout=subprocess.PIPE, text=True)
    with thief:
        try:
            assert thief.stdout is not None
            assert thief.stdout.readline() == "ready\n"
            with pytest.raises(EngineUnavailable, match="uid 65534"):
                connect(state, limits=Limits(connect_timeout_s=0.1))
            assert thief.stdout.readline() == "b'' []\n"
        finally:
            thief.kill()


# --- descriptors ------------------------------------------------------------------------------------------------------


def test_an_engine_without_descriptors_says_so_and_serves_those_it_has(
    state, start_engine, client_of_a_raw_lane, wait_until, capfd
):
    engine = start_engine(state)
    before = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
    said: list[str] = []

    def seen() -> bool:
        said.append(capfd.readouterr().err)
        return "cannot accept a connection" in "".join(said)

    with connect(state) as client:
        task = client.create(Task(title="x", max_retries=0))
        used = {*map(int, os.listdir(f"/proc/{engine.pid}/fd"))}
        bound = next(number for number in count(6) if number - sum(one < number for one in used) >= 6)  # free below it
        resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, (bound, before[1]))
        with ThreadPoolExecutor(8) as beside:
            coming = [beside.submit(connect, state, name=f"agent {number}") for number in range(8)]
            wait_until(seen, 20, "it runs out of them")
            for step in range(20):
                task = client.update(task, max_retries=step + 1)
            resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, before)
            for one in coming:
                with one.result(30) as agent:
                    agent.create(Task(title="y"))
        assert client.reader.snapshot().counts["Task"] == 9
        assert task.version == 21
    assert "files" in "".join(said)


def test_an_engine_needs_no_more_threads_than_it_has_at_its_start(state, start_engine, wait_until):
    """Who takes all threads that a user may have takes none of these: that bound does not count for root's processes,
    so here they are counted.
    """
    limits = Limits(heap_segment_bytes_first=64 * KIB, checkpoint_after_bytes=128 * KIB)
    engine = start_engine(state, durability="power", limits=limits)

    def threads() -> list[str]:
        return sorted(os.listdir(f"/proc/{engine.pid}/task"))

    at_first = threads()
    with connect(state) as client:
        made = count()

        def more() -> list[Path]:
            client.create(Task(title=f"{next(made)}", description="x" * 16 * KIB))
            return [*state.glob("checkpoint-*[0-9]")]

        wait_until(more, 30, "a checkpoint")
    assert threads() == at_first


def test_agents_that_take_all_descriptors_leave_the_engine_those_that_it_needs(state, start_engine, wait_until, capfd):
    """For the journal's next files, another segment and a checkpoint: what it could not open would be its end."""
    limits = Limits(journal_file_bytes=64 * KIB, checkpoint_after_bytes=256 * KIB, heap_segment_bytes_first=1 * MIB)
    engine = start_engine(state, limits=limits)
    pid, said = engine.pid, list[str]()

    def seen() -> bool:
        said.append(capfd.readouterr().err)
        return "cannot accept a connection" in "".join(said)

    with connect(state) as client, ThreadPoolExecutor(12) as beside:
        task = client.create(Task(title="x"))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        bound = [number for number in range(1000) if number not in used][24]  # so many are free, whatever was closed
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (bound, before[1]))
        coming = [beside.submit(connect, state, name=f"agent {number}") for number in range(12)]
        wait_until(seen, 20, "it runs out of them")
        for step in range(100):
            task = client.update(task, description=f"{step}{'w' * 16_000}")
        assert engine.pid == pid, "".join(said)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for one in coming:
            one.result(30).close()
        wait_until(lambda: [*state.glob("checkpoint-*")], 20, "a checkpoint")
    assert (engine.pid, engine.restarts) == (pid, 0), "".join(said)


WITHOUT_DESCRIPTORS = """
import os, resource, sys
from solewriter import EngineUnavailable, Limits, Task, connect, open_reader

def tries(opened):
    "How often it was told that there are none, each time with one more, until there were enough."
    with opened() as one:
        assert one.get(Task, "t").title == "x"
    before, (_, hard) = os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(100):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + spare, hard))
        try:
            with opened() as one:
                assert one.get(Task, "t").title == "x"
                assert not getattr(one, "reader", one).snapshot().stale or offline
            return spare
        except EngineUnavailable as error:
            assert "this process has no file descriptors left" in str(error), error
            assert "ulimit -n" in str(error), error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert os.listdir("/proc/self/fd") == before, spare

state, offline = sys.argv[1], False
found = [tries(lambda: open_reader(state)), tries(lambda: connect(state, limits=Limits(connect_timeout_s=0)))]
offline = True
print(*found, tries(lambda: open_reader(state, offline=True)))
"""


def test_who_opens_something_without_descriptors_is_told_so_and_leaves_none_open(state, start_engine):
    """A reader, a client, an offline reader, wherever they run out. The same call works when there are some."""
    start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS, state], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert all(int(tries) > 0 for tries in ran.stdout.split()), ran.stdout


WITHOUT_LANES = """
import asyncio, sys
from solewriter import EngineUnavailable, Limits, aio, connect

state, limits = sys.argv[1], Limits(connect_timeout_s=0.1)

async def by_asyncio():
    async with aio.connect(state, limits=limits):
        pass

for way in (lambda: connect(state, limits=limits), lambda: asyncio.run(by_asyncio())):
    try:
        way()
    except EngineUnavailable as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="to mount something needs root")
def test_who_can_make_no_lane_is_not_told_that_no_engine_serves(state, start_engine):
    """A queue has semaphores, which the C library keeps in /dev/shm, in whatever folder the engine's memory is."""
    start_engine(state)
    command = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-c", WITHOUT_LANES, state]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"nothing can be mounted here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert len(told) == 2
    assert all(one.startswith("no lane can be made, which takes some bytes of /dev/shm") for one in told), told


LOOKING_BACK_WITHOUT_DESCRIPTORS = """
import asyncio, os, resource, sys
from pathlib import Path
from solewriter import EngineUnavailable, Task, aio, open_reader
from solewriter.agents.verify import verify

def without(look):
    "What a look comes to when there are none, and how it ends when there are."
    (_, hard), taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        look()
    except EngineUnavailable as error:
        assert "this process has no file descriptors left" in str(error), error
    else:
        raise AssertionError("it found some")
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return look()

state = sys.argv[1]
with open_reader(state) as reader, open_reader(state, offline=True) as offline:
    newest = reader.revision
    for one in reader, offline:
        one.get(Task, "t")
        assert without(lambda: one.at(5)).get(Task, "t").version == 5
        assert len(without(lambda: one.diff(5, newest))) == 1
        assert [change.version for change in without(lambda: [*one.history(Task, "t")])] == [*range(newest, 0, -1)]
    assert without(lambda: offline.snapshot().count(Task)) == 1
    watch = reader.watch(Task, since=5)
    assert without(lambda: next(watch)).revision == 6
    assert next(watch).revision == 7
    assert without(lambda: verify(Path(state))).revision == newest

async def story():
    loop = asyncio.get_running_loop()
    async with aio.open_reader(state) as reader:
        await reader.at(newest)
        watch = reader.watch(Task, since=5)
        for look in (lambda: reader.at(5), lambda: reader.diff(5, newest), lambda: anext(watch)):
            await asyncio.to_thread(without, lambda: asyncio.run_coroutine_threadsafe(look(), loop).result(20))

asyncio.run(story())
"""


def test_who_looks_back_without_descriptors_is_told_so(state, start_engine):
    """Beyond what memory holds, in the journal: a reader, an offline one, a watch, which goes on then, and `verify`."""
    start_engine(state, limits=Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB))
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        for reply in client.submit_many(Update(Task.ref("t"), {"title": f"{n}" * 99}) for n in range(2_000)):
            reply.check()
    ran = subprocess.run(
        [sys.executable, "-c", LOOKING_BACK_WITHOUT_DESCRIPTORS, state],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


AGENTS = 256


def test_a_quarter_of_a_thousand_agents_come_at_once(state, start_engine, client_of_a_raw_lane):
    """All of them are served, and told what is theirs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8 * AGENTS:
        pytest.skip(f"{hard} descriptors are not enough for {AGENTS} agents in one process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * AGENTS, hard))
    try:
        engine = start_engine(state)
        with ThreadPoolExecutor(32) as beside:
            agents = list(beside.map(lambda n: client_of_a_raw_lane(state, client_id=f"agent {n}"), range(AGENTS)))
            for number, raw in enumerate(agents):
                raw.write(raw.frame([Create(Task(title="x", id=f"t{number}"))]))
            told = list(beside.map(lambda raw: raw.reply(30), agents))
        assert {reply.status for reply in told} == {0}
        assert sorted(reply.revision for reply in told) == list(range(1, AGENTS + 1))
        assert [reply.detail[0][3] for reply in told] == [f"t{number}" for number in range(AGENTS)]
        with connect(state) as client:
            assert client.update(Task.ref("t0"), title="y").version == 2
        assert not engine.hung
    finally:
        for raw in agents:
            raw.die()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the clock --------------------------------------------------------------------------------------------------------

CLOCK = """
import os, time
from solewriter import Entity

class Timed(Entity):
    size: int = 0

if os.getpid() != {tester}:  # the engine, which imports this for its model: its clock is off by what the file says
    real = time.time_ns

    def jumping():
        try:
            with open({jump!r}) as jump:
                return real() + int(jump.read())
        except (OSError, ValueError):
            return real()

    time.time_ns = jumping
"""
DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A model whose engine has another clock, and what sets that so many nanoseconds off."""
    jump = tmp_path / "jump"
    (tmp_path / "timed_models.py").write_text(CLOCK.format(tester=os.getpid(), jump=str(jump)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timed_models", raising=False)
    import timed_models  # type: ignore[import-not-found]  # written just above

    def set_to(offset_ns: int) -> None:
        jump.with_suffix(".new").write_text(str(offset_ns))
        jump.with_suffix(".new").rename(jump)

    return timed_models.Timed, set_to


def test_a_clock_that_jumps_changes_no_order_and_no_version(state, start_engine, wait_until, clock):
    """A day on, a day back, and back by years over a kill of the engine and over a stop."""
    timed, set_to = clock
    engine = start_engine(state, models=[timed], durability="power")
    times = []
    with connect(state) as client, open_reader(state) as reader:
        task = client.create(Task(title="x", id="t", max_retries=0))
        for step, offset_ns in enumerate((0, DAY_NS, -DAY_NS, 0, -1_000 * DAY_NS, 1_000 * DAY_NS), 1):
            set_to(offset_ns)
            revision = reader.revision
            task = client.update(task, max_retries=step)
            assert (task.version, reader.wait_for(revision + 1)) == (step + 1, revision + 1)
            times.append(task.updated_at)
            if offset_ns == -1_000 * DAY_NS:
                restarts = engine.restarts
                os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda restarts=restarts: engine.restarts > restarts, 20, "a restart in the past")
        assert times[1] - times[0] > timedelta(hours=23), "the clock did jump"
        assert times[0] - times[2] > timedelta(hours=23)
        changes = list(reader.watch(since=0, timeout_s=0))
        assert [change.revision for change in changes] == [1, 2, 3, 4, 5, 6, 7]
        assert [change.new.version for change in changes if change.kind == "Task"] == [1, 2, 3, 4, 5, 6, 7]
        assert reader.at(3)[Task, "t"].max_retries == 2
        history = reader.snapshot().history_id
    set_to(-2_000 * DAY_NS)
    engine.stop()
    engine.start()
    with connect(state) as client, open_reader(state) as reader:
        assert reader.snapshot().history_id == history
        assert not reader.snapshot().stale
        assert client.update(Task.ref("t"), title="y").version == 8
        assert not engine.hung
    assert [marker.prefix for marker in StateFolder(state).markers()] == [StateFolder(state).whereabouts().prefix]


def test_who_waits_for_a_time_has_the_task_when_the_clock_is_set_on_to_it(state, start_engine, wait_until, clock):
    """As behind a machine's sleep: nothing else happens that would make the engine look."""
    timed, set_to = clock
    start_engine(state, models=[timed], limits=Limits(heartbeat_s=0.05))
    with connect(state) as client, ThreadPoolExecutor(1) as pool:
        client.create(Task(id="t", title="x", not_before=datetime.now(UTC) + timedelta(hours=1)))
        claimed = pool.submit(client.claim, Task, timeout_s=15)
        wait_until(lambda: client._session.in_flight, 10, "the claim is on its way")
        client.put(Project(id="p", name="so that it waits in the engine"))
        set_to(DAY_NS)
        assert claimed.result(10).id == "t"
        assert client.get(Task, "t").updated_at - datetime.now(UTC) > timedelta(hours=23)


def test_a_time_that_is_to_come_once_more_is_waited_for_once_more(state, start_engine, clock):
    timed, set_to = clock
    start_engine(state, models=[timed])
    with connect(state) as client:
        for id in "ab":
            client.create(Task(id=id, title="x", project=id, not_before=datetime.now(UTC) + timedelta(hours=1)))
        set_to(DAY_NS)
        assert client.claim(Task, where={"project": "b"}).id == "b"
        set_to(0)
        assert client.claim(Task) is None
        with client.reader.snapshot() as snap:
            assert [reason.obstacle for reason in why_not_ready(snap, snap[Task, "a"])] == [Obstacle.NOT_YET]
        set_to(DAY_NS)
        assert client.claim(Task).id == "a"


def test_so_are_several_times_where_the_clock_is_set_back_step_by_step(state, start_engine, clock):
    timed, set_to = clock
    start_engine(state, models=[timed])
    with connect(state) as client:
        for hours in (1, 3):
            not_before = datetime.now(UTC) + timedelta(hours=hours)
            client.create(Task(id=f"t{hours}", title="x", project=f"p{hours}", not_before=not_before))
        set_to(DAY_NS)
        assert client.claim(Task, where={"project": "none"}) is None
        set_to(DAY_NS // 12)
        assert client.claim(Task, where={"project": "p3"}) is None
        set_to(0)
        assert client.claim(Task) is None
        set_to(DAY_NS // 12)
        assert client.claim(Task).id == "t1"
