"""Whoever reads the journal beside an engine sees what was committed, whatever happens to the files meanwhile."""

from __future__ import annotations

import os
import threading

import pytest

from solewriter.shared.errors import Compacted
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.entry import Private
from solewriter.shared.journal.walk import entries_between

STATE = b"0123456789abcdef"


def journal_file(folder, first, count, crc=0, size=2_000_000):
    """One file of so many entries; the crc of the last one."""
    data = entries.file_header(STATE, first, crc)
    for number in range(first, first + count):
        packed, crc = entries.pack(number, number, 0, crc, [], Private(fenced_ids=["x" * 5_000]))
        data += packed
    (folder / f"journal-{first:020d}.log").write_bytes(data.ljust(size, b"\0"))
    return crc


def numbers(folder, first, last):
    return [one.number for one in entries_between(folder, first, last)]


def test_a_file_that_a_start_writes_anew_is_read_again(tmp_path):
    """Nothing is gone: it has the same entries, on other pages."""
    journal_file(tmp_path, 1, 50)
    path = tmp_path / f"journal-{1:020d}.log"
    content, done = path.read_bytes(), threading.Event()

    def write_anew():
        while not done.wait(0.005):
            (tmp_path / "journal.next").write_bytes(content)
            os.rename(tmp_path / "journal.next", path)

    writer = threading.Thread(target=write_anew)
    writer.start()
    try:
        for _ in range(300):
            assert numbers(tmp_path, 1, 50) == list(range(1, 51))
    finally:
        done.set()
        writer.join()


def test_a_file_that_is_trimmed_between_two_entries_is_gone_and_nothing_else_is_told(tmp_path):
    crc = journal_file(tmp_path, 1, 10)
    journal_file(tmp_path, 11, 10, crc)
    found = entries_between(tmp_path, 1, 20)
    assert [next(found).number for _ in range(10)] == list(range(1, 11))
    second = tmp_path / f"journal-{11:020d}.log"
    second.rename(tmp_path / f"spare-{11:020d}.log")
    with pytest.raises(Compacted, match="trimmed meanwhile"):
        next(found)
    with pytest.raises(Compacted, match="ends before entry 20"):
        numbers(tmp_path, 1, 20)
