"""What a benchmark is told and cannot do is refused in words, before it starts anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solewriter.bench import claims, overload, recovery, snapshot, throughput
from solewriter.bench.load import program

PROGRAMS = {
    "throughput": throughput.main, "snapshot": snapshot.main, "recovery": recovery.main, "overload": overload.main,
    "claims": claims.main, "load": program.main,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        *[(name, ("--folder", "/nowhere"), "there is no folder '/nowhere'") for name in PROGRAMS],
        *[
            (name, ("--seconds", text), f"{text!r} is no time in seconds")
            for name in ("throughput", "snapshot", "recovery", "overload", "load")
            for text in ("0", "-1", "nan", "inf", "soon")
        ],
        *[("overload", ("--soak", text), f"{text!r} is no time in seconds") for text in ("0", "nan")],
        *[
            (name, (option, text), "is no whole number of 1 or more")
            for name, option in (
                ("throughput", "--agents"), ("throughput", "--tasks"), ("snapshot", "--sizes"), ("recovery", "--sizes"),
                ("recovery", "--kills"), ("claims", "--sizes"), ("claims", "--claims"), ("load", "--agents"),
                ("load", "--runs"),
            )
            for text in ("0", "many", "")
        ],
        *[(name, ("--durability", "disk"), "'disk': each is one of ") for name in ("throughput", "recovery", "load")],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(
    name: str,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main: Callable[[], int] = PROGRAMS[name]
    monkeypatch.setattr(sys, "argv", ["it", *words])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert "invalid" not in told


@pytest.mark.heavy
def test_pictures_for_which_there_is_no_room_are_said_behind_the_tables(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "pictures" / "throughput-by-agents.svg").mkdir(parents=True)  # what cannot be written
    asked = ("--workloads", "create", "--peers", "SQLite", "--durability", "process", "--agents", "1,2", "--runs", "1")
    command = [sys.executable, "-P", "-m", "solewriter.bench.load", *asked, "--seconds", "0.05"]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path), "--plot", str(tmp_path / "pictures")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "every state was verified" in ended.stdout
    (last,) = ended.stderr.splitlines()[-1:]
    assert last.startswith("solewriter bench: this cannot be drawn: ")
    assert "Traceback" not in ended.stderr
