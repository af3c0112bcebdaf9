"""What the programs of this room are told: words that make no sense are refused before anything is measured."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import msgspec

from solewriter.engine_proc.process import Durability
from solewriter.shared.config import DURABILITIES


def number(text: str) -> int:
    try:
        found = int(text.replace("_", ""))
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
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


def folder(text: str) -> Path:
    """One that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def durabilities(text: str) -> tuple[Durability, ...]:
    try:
        return msgspec.convert(text.split(","), tuple[Durability, ...])
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r}: each is one of {', '.join(DURABILITIES)}") from None
