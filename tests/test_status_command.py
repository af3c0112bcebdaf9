"""`solewriter status`: what people read and scripts compare, from a real command beside a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import msgspec
import pytest

from solewriter import Create, Task, connect
from solewriter.agents.cli.describing import status_lines
from solewriter.agents.status import EngineStatus, status_of

SOLEWRITER = str(Path(sysconfig.get_path("scripts"), "solewriter"))
ANSWER_S = 60
FINE, DEGRADED, NOT_THERE = 0, 1, 2


def asked(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`solewriter status` and what it says."""
    command = [SOLEWRITER, "status", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, cwd=folder, check=False)


def test_it_answers_beside_an_engine_in_any_condition(state, start_engine, limits, wait_until):
    def answer() -> tuple[int, str]:
        said = asked(state)
        assert said.stderr == ""
        return said.returncode, said.stdout.splitlines()[1].removeprefix("engine").strip()

    assert answer() == (NOT_THERE, f"absent: there is no folder {state}")
    limits = msgspec.structs.replace(limits, heartbeat_s=0.2)
    engine = start_engine(state, limits=limits)
    assert answer() == (FINE, "alive")
    os.kill(engine.pid, signal.SIGSTOP)
    wait_until(lambda: status_of(state).engine == "stale", 20, "an engine that is stale")
    assert answer() == (DEGRADED, "stale: its process is stopped by a signal (T): SIGCONT lets it go on")
    os.kill(engine.pid, signal.SIGCONT)
    engine.stop()
    assert answer() == (NOT_THERE, "stopped: no engine runs; the next one goes on with what is journaled")


def test_asking_changes_nothing_in_the_folder(state, start_engine):
    start_engine(state)
    (state / "memory-half-written.json").touch()  # an engine that starts removes it: then it owns the folder

    def listed() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in [state, *state.iterdir()]}

    before = listed()
    assert asked(state).returncode == FINE
    assert listed() == before


AS_NOBODY = textwrap.dedent(
    """
    import os, sys
    from solewriter.agents.cli import main
    try:
        main.app(["status", "nowhere"])
    except SystemExit:
        pass  # all is imported: nobody else may be able to read where this is installed
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    os.stat(sys.argv[1])  # it comes as far as there
    main.app(["status", sys.argv[1]])
    """
)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_another_user_is_told_to_ask_as_the_engines(passable, start_engine, mode):
    if os.geteuid() != 0:
        pytest.skip("changing the uid needs root")
    state = passable / "state"
    start_engine(state)
    state.chmod(mode)
    said = subprocess.run(
        [sys.executable, "-P", "-c", AS_NOBODY, str(state)],
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        check=False,
    )
    assert (said.returncode, said.stderr) == (NOT_THERE, "")
    assert f"absent: user 65534 may not read {state}" in said.stdout


def test_json_says_the_same_as_the_lines(state, start_engine, limits, wait_until):
    engine = start_engine(state, limits=msgspec.structs.replace(limits, heartbeat_s=0.2))
    with connect(state) as client:
        for reply in client.submit_many(Create(Task(title="x")) for _ in range(1_234)):
            reply.check()
        wait_until(lambda: status_of(state).sessions_connected, 10, "a heartbeat that counts the client")
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: status_of(state).engine == "stale", 20, "an engine that changes no more")
            found, lines, status = asked(state, "--json"), asked(state), status_of(state)
        finally:
            os.kill(engine.pid, signal.SIGCONT)
    assert (found.returncode, lines.returncode) == (DEGRADED, DEGRADED)
    said = json.loads(found.stdout)
    later = msgspec.json.decode(msgspec.json.encode(status))
    assert all(0 < said.pop(name) < later.pop(name) for name in ("uptime_s", "heartbeat_age_s"))
    assert said == later
    facts = dict(line.split(maxsplit=1) for line in lines.stdout.splitlines())
    assert facts["folder"] == said["folder"]
    assert facts["engine"] == f"stale: {said['detail']}"
    assert facts["process"].startswith(f"pid {said['pid']}, epoch {said['epoch']}, up ")
    assert facts["durability"] == said["durability"]
    assert facts["revision"] == f"1,234, journal entry {said['journal_entry']:,}, history {said['history_id']}"
    assert facts["entities"].split() == ["Task", "1,234"]
    assert facts["Project"] == "0"
    assert facts["sessions"] == "1 remembered, 1 connected"
    mib = said["memory_bytes"] / 2**20
    assert facts["memory"] == f"{mib:.1f} MiB in {said['memory_segments']} segments in {said['memory_dir']}"
    assert (facts["journal"], said["journal_files"], said["journal_bytes"]) == ("1.0 MiB in 1 file", 1, 2**20)


def test_lines_are_aligned_and_no_name_can_colour_them():
    status = EngineStatus(
        folder="/a/\x1b[2Jb\udcff",
        engine="alive",
        revision=1,
        history_id="ff",
        entities={"[red]Task": 12_345, "Doc\x1b[31m\n": 6},
    )
    assert status_lines(status).splitlines() == [
        r"folder    /a/\x1b[2Jb\udcff",
        "engine    alive",
        "revision  1, history ff",
        "entities  [red]Task      12,345",
        r"          Doc\x1b[31m\n       6",
    ]


def test_who_asks_in_a_folder_that_was_deleted_is_told_so_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = asked()
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == "solewriter: [Errno 2] the current folder was deleted, to which this is relative: '.'\n"


def test_the_folder_is_the_one_called_state_or_the_current_one(state, start_engine):
    start_engine(state)
    for folder in (state.parent, state):
        said = asked("--json", folder=folder)
        assert (said.returncode, json.loads(said.stdout)["folder"]) == (FINE, str(state))
    (state.parent / "elsewhere").mkdir()
    assert asked(folder=state.parent / "elsewhere").returncode == NOT_THERE
