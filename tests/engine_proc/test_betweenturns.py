"""Checkpoints between turns: what waits for the disk, and who does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from solewriter import Limits
from solewriter.engine_proc.filejournal import FileJournal, _sync_then_close
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS, KIB, WIRE_VERSION
from solewriter.shared.handshake import Hello
from solewriter.shared.mutations import Op
from solewriter.shared.wire import Status


class SlowDisk(Executor):
    """Does at once what a commit waits for, and keeps what is done beside the turns until it is told to `go_on`."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, work: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, work, args))
        if work is not _sync_then_close:
            self.go_on()
        return future

    def go_on(self) -> None:
        future, work, args = self.waiting.pop()
        try:
            future.set_result(work(*args))
        except OSError as error:
            future.set_exception(error)


class Scene:
    """An engine that makes checkpoints often, at a disk that is slow, and one agent."""

    def __init__(self, folder: Path, parts: SimpleNamespace, durability: str) -> None:
        (folder / "memory").mkdir()
        self.state, self.reached = folder / "state", parts.steps.reached
        limits = Limits(memory_dir=str(folder / "memory"), spin_s=0, checkpoint_after_bytes=4 * KIB)
        self.engine = parts.LocalEngine(self.state, limits, durability, set())
        self.disk = SlowDisk()
        journal = self.engine.server.journal
        assert isinstance(journal, FileJournal)
        journal._syncer = self.disk  # type: ignore[assignment]
        hello = Hello(
            wire=WIRE_VERSION, client_id="a", name="a", pid=os.getpid(), first=0, instance="1", resends=False
        )  # fmt: skip
        self.call = parts.Call(self.state, hello)
        self.turn()
        assert self.call.welcome().ok
        self.created = 0

    def turn(self) -> None:
        self.engine.read()
        self.engine.turn()

    def creates(self) -> bool:
        """Whether it was applied, in a turn."""
        self.created += 1
        fields = {"title": "x", "description": "x" * 3_000}
        mutation = Op.CREATE.value, "Task", f"t{self.created}", None, fields, "", None
        self.call.write(wire.pack_frame([([mutation], [], None, None)], DEFAULT_LIMITS))
        self.turn()
        return [one.status for one in self.call.replies()] == [Status.APPLIED]

    def end(self) -> None:
        while self.disk.waiting:
            self.disk.go_on()
        self.engine.stop(self.call.fds)
        self.call.close()


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path, local: SimpleNamespace) -> Iterator[Scene]:
    made = Scene(tmp_path, local, getattr(request, "param", "process"))
    yield made
    made.end()


def test_turns_go_on_while_what_a_checkpoint_needs_on_disk_is_brought_there(scene):
    while not scene.disk.waiting:
        assert scene.creates()
    assert "checkpoint.renamed" in scene.reached
    assert all(scene.creates() for _ in range(3))
    assert "checkpoint.journaled" not in scene.reached, "what was before is not there"
    scene.disk.go_on()
    assert scene.creates()
    assert scene.creates()
    assert "checkpoint.journaled" in scene.reached
    assert "trim.begin" not in scene.reached, "a start that finds nothing behind the new one begins with the one before"
    scene.disk.go_on()
    assert scene.creates()
    assert "trim.done" in scene.reached


@pytest.mark.parametrize("scene", ["power"], indirect=True)
def test_for_power_all_of_that_is_there_already(scene):
    while "trim.done" not in scene.reached:
        assert scene.creates()
        assert not scene.disk.waiting


@pytest.mark.parametrize("step", ["before it is journaled", "behind that"])
def test_a_disk_that_fails_meanwhile_ends_the_engine(scene, monkeypatch, step):
    while not scene.disk.waiting:
        assert scene.creates()
    if step == "behind that":
        scene.disk.go_on()
        scene.turn()
        scene.turn()
    monkeypatch.setattr(os, "fdatasync", failing)
    scene.disk.go_on()
    monkeypatch.undo()
    with pytest.raises(OSError, match="the disk"):
        scene.turn()


def failing(fd: int) -> None:
    raise OSError(errno.EIO, "the disk")


def test_without_descriptors_it_is_done_at_once(scene, monkeypatch):
    true, refused = os.open, []

    def full(path: Any, *rest: Any) -> int:
        if isinstance(path, Path) and path.match("journal-*.log"):
            refused.append(path)
            raise OSError(errno.EMFILE, "too many open files")
        return true(path, *rest)

    monkeypatch.setattr(os, "open", full)
    while "trim.done" not in scene.reached:
        assert scene.creates()
        assert not scene.disk.waiting
    assert refused
