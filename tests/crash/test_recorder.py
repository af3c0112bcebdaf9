"""The recorder sees everything that an engine does to its files: the images would be worth nothing otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from powercut.disk import disk_after
from powercut.recorder import Recorder
from powercut.story import Play, played
from powercut.traced import by_file, seen_by_recorder, traced


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_recorder_sees_what_strace_sees_of_a_real_engine(tmp_path: Path) -> None:
    state, memory = tmp_path / "state", tmp_path / "memory"
    memory.mkdir()
    log, by_strace = traced(state, memory, tmp_path)
    recorded, straced = by_file(list(seen_by_recorder(log))), by_file(by_strace)
    assert recorded.keys() == straced.keys()
    for seen in (recorded, straced):  # it is synced by a thread beside writes to it, and which of the two ends first,
        seen["committed"].sort(key=lambda one: one.kind == "sync")  # each observer says by itself
    for name, order in straced.items():
        assert recorded[name] == order, name
    assert len(by_strace) > 100
    assert {one.kind for one in by_strace} >= {"create", "write", "sync", "sync-folder", "rename", "unlink"}
    left = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    assert disk_after(log).now() == left


CHILD = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b"by a child")
os.fsync(fd)
"""


def test_what_a_child_does_is_part_of_the_story(tmp_path: Path) -> None:
    def script(play: Play) -> None:
        play.start("ann")
        subprocess.run([sys.executable, "-c", CHILD, play.state / "made.tmp"], check=True, timeout=60)
        os.rename(play.state / "made.tmp", play.state / "made")

    story = played(tmp_path / "story", "power", script)
    kinds = [operation.kind for operation in story.log if operation.kind not in ("mark", "close")]
    assert kinds[-5:] == ["create", "write", "begin", "sync", "rename"]
    assert disk_after(story.log).now()["made"] == b"by a child"


def test_a_file_that_is_written_by_other_means_is_an_error(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        with pytest.raises(AssertionError, match="behind the recorder's back"):
            (tmp_path / "file").write_bytes(b"unseen")
        with pytest.raises(AssertionError, match="does not know it"):
            os.link(tmp_path / "file", tmp_path / "other")
    assert recorder.log == []


def test_what_was_there_before_the_recording_is_durable(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"content")
    with Recorder(tmp_path) as recorder:
        (tmp_path / "old").unlink()
        fd = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"a")
        os.write(fd, b"bc")
        os.ftruncate(fd, 2)
        os.close(fd)
    disk = disk_after(recorder.log)
    assert disk.now() == {"new": b"ab"}
    kinds = [operation.kind for operation in recorder.log]
    assert kinds[-6:] == ["unlink", "create", "write", "write", "truncate", "close"]
    assert kinds[:6] == ["create", "write", "begin", "sync", "begin", "sync-folder"]
