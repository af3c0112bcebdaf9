"""What programs are told, by the same words in all of them; what makes no sense is refused before any work is done."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import msgspec

from solewriter.engine_proc.process import Durability
from solewriter.shared.config import DURABILITIES


def parser(
    program: str, docstring: str | None, *, takes: str, quick: str, folder: Path | None = None
) -> argparse.ArgumentParser:
    """What all programs have in common but `solewriter bench`: `--help` says all that there is to know of one."""
    made = argparse.ArgumentParser(
        prog=f"python -m solewriter.bench.{program}",
        description=docstring,
        epilog=f"It takes {takes}; with --quick, {quick}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help=f"a short look: {quick}")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    made.add_argument(
        "--folder",
        type=existing_folder,
        default=folder or Path(tempfile.gettempdir()),
        help="where everything is put, and removed again: what is measured of a disk is that one's; %(default)s",
    )
    return made


def number(text: str) -> int:
    return _whole(text, 1)


def count(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        found = int(text.replace("_", ""))
    except ValueError:
        found = least - 1
    if found < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Separated by commas; each once, ascending."""
    return tuple(sorted({*map(number, text.split(","))}))


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return found


def existing_folder(text: str) -> Path:
    """One that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def durabilities(text: str) -> tuple[Durability, ...]:
    try:
        return msgspec.convert(text.split(","), tuple[Durability, ...])
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r}: each is one of {', '.join(DURABILITIES)}") from None
