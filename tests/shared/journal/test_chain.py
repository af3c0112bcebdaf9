"""Who only reads the journal gets every entry that was asked for, in order, or is told that it is gone, or damaged."""

from __future__ import annotations

import os
import threading

import pytest

from solewriter.shared.errors import Compacted, JournalCorrupt
from solewriter.shared.journal import chain
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import (
    check_history,
    first_of,
    journal_files,
    lives_behind,
    oldest_entry,
    open_checkpoint,
    own_checkpoint,
)
from solewriter.shared.journal.checkpoint import CheckpointWriter, Directory, checkpoint_path
from solewriter.shared.journal.entry import CheckpointName, Life, Private, PrivateState
from solewriter.shared.journal.walk import entries_between

STATE = b"0123456789abcdef"


def write(folder, numbers, name=None, state=STATE, private=None):
    """A journal file of these entries, some of which have a private part; behind others, of which none has one."""
    crc = 0
    for number in range(1, numbers[0]):
        _, crc = entries.pack(number, number, 0, crc, [], Private())
    content = entries.file_header(state, numbers[0], crc)
    for number in numbers:
        packed, crc = entries.pack(number, number, 0, crc, [], (private or {}).get(number, Private()))
        content += packed
    path = folder / f"journal-{name or numbers[0]:020d}.log"
    path.write_bytes(content.ljust(4096, b"\0"))
    return path


@pytest.fixture
def journal(tmp_path):
    """Entries 1 to 12 in four files."""
    for first in (1, 4, 7, 10):
        write(tmp_path, range(first, first + 3))
    return tmp_path


def numbers(folder, first, last):
    return [entry.number for entry in entries_between(folder, first, last)]


def test_exactly_the_entries_that_were_asked_for_are_read(journal):
    for first in range(1, 13):
        for last in range(1, 13):
            assert numbers(journal, first, last) == list(range(first, last + 1))


def test_files_before_the_first_entry_that_is_asked_for_are_not_read(journal):
    for path in journal_files(journal)[:2]:
        path.write_bytes(b"damaged")
    assert numbers(journal, 8, 12) == [8, 9, 10, 11, 12]


def test_lives_behind_an_entry_are_looked_for_where_they_can_be(journal, lost_by_the_disk):
    """Or a start whose end a power cut took would be kept by history that the disk does not give back."""
    for path in journal_files(journal)[:2]:
        lost_by_the_disk(path)
    assert list(lives_behind(journal, 6)) == []
    with pytest.raises(OSError, match="Input/output error"):
        list(lives_behind(journal, 5))


def test_what_is_not_there_is_compacted_and_never_left_out(journal):
    with pytest.raises(Compacted, match="ends before entry 13"):
        numbers(journal, 5, 13)
    journal_files(journal)[0].unlink()
    with pytest.raises(Compacted, match="begins with entry 4"):
        numbers(journal, 3, 12)
    assert numbers(journal, 4, 12) == list(range(4, 13))


def test_an_entry_that_is_missing_in_the_middle_is_damage_with_its_place(journal):
    journal_files(journal)[1].unlink()
    before, following = journal_files(journal)[:2]
    with pytest.raises(JournalCorrupt, match=f"entry 4 is not in .*{following.name} begins with a later one") as caught:
        numbers(journal, 1, 12)
    assert caught.value.place == f"{before.name}:{places(before)[-1]}"


def test_a_file_that_was_begun_behind_another_entry_of_the_same_number_is_damage(journal):
    """As one from an older copy of the same state."""
    path = journal_files(journal)[1]
    path.write_bytes(entries.file_header(STATE, 4, 0xBAD) + path.read_bytes()[entries.FILE_HEADER_BYTES :])
    with pytest.raises(JournalCorrupt, match=f"{path.name} does not follow entry 3"):
        numbers(journal, 1, 12)
    with pytest.raises(JournalCorrupt, match="entry 4 does not follow entry 3"):
        numbers(journal, 4, 12)


def places(path):
    """The offsets of a file's entries, and the one behind the last."""
    found = [entries.FILE_HEADER_BYTES]
    while (one := entries.unpack(path.read_bytes(), found[-1])) is not None:
        found.append(one[2])
    return found


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("bad", range(1, 13))
def test_whatever_is_asked_for_and_damaged_is_named_and_what_is_not_asked_for_is_no_matter(journal, bad):
    """In any file, the current one included, and at its beginning, middle and end."""
    path = journal_files(journal)[(bad - 1) // 3]
    at = places(path)[(bad - 1) % 3]
    damage(path, at + 20)
    for first in range(1, 13):
        for last in range(first, 13):
            if not first <= bad <= last:
                assert numbers(journal, first, last) == list(range(first, last + 1))
            elif bad < 12:
                with pytest.raises(JournalCorrupt) as caught:
                    numbers(journal, first, last)
                assert caught.value.place == f"{path.name}:{at}"
            else:
                with pytest.raises(Compacted, match="ends before entry 12"):
                    numbers(journal, first, last)


def test_a_journal_that_was_cut_is_compacted_behind_the_cut(journal):
    """There is nothing whole behind it, whatever the file held before it was written again."""
    write(journal, [10], name=10)
    path = journal_files(journal)[-1]
    older = write(journal, [2, 3], name=20)
    path.write_bytes(path.read_bytes()[: places(path)[-1]] + older.read_bytes()[entries.FILE_HEADER_BYTES :])
    older.unlink()
    assert numbers(journal, 5, 10) == list(range(5, 11))
    for first in (5, 10, 11, 12):
        with pytest.raises(Compacted, match="ends before entry 12"):
            numbers(journal, first, 12)


def test_a_file_that_goes_while_the_one_before_it_is_read_is_compacted(journal):
    reading = entries_between(journal, 1, 12)
    assert next(reading).number == 1
    gone = journal_files(journal)[1]
    gone.unlink()
    with pytest.raises(Compacted, match=f"{gone.name} was trimmed"):
        list(reading)


def test_a_content_does_not_count_if_its_file_lost_its_name_meanwhile(journal):
    """A trimmed file is written again under another name: what was read of it may be of later entries."""
    path = journal_files(journal)[0]
    content, aside = path.read_bytes(), journal / "aside"
    path.unlink()
    os.mkfifo(path)

    def swapped_in_mid_read() -> None:
        with path.open("wb") as pipe:  # opens when it is opened for reading
            path.rename(aside)
            pipe.write(content)

    thread = threading.Thread(target=swapped_in_mid_read)
    thread.start()
    try:
        with pytest.raises(Compacted, match=f"{path.name} was trimmed"):
            numbers(journal, 1, 12)
    finally:
        thread.join()
    path.write_bytes(content)
    assert numbers(journal, 1, 12) == list(range(1, 13))


@pytest.mark.parametrize("name", ["journal-.log", "journal-x1.log", "journal-1.5.log"])
def test_a_file_with_a_name_that_no_journal_file_has_is_named(journal, name):
    (journal / name).write_bytes(b"")
    with pytest.raises(JournalCorrupt, match=name):
        first_of(journal / name)


def test_a_first_entry_that_is_torn_or_of_another_file_is_none(journal):
    path = journal_files(journal)[0]
    assert chain.first_entry_of(path).number == 1
    write(journal, range(5, 7), name=1)
    assert chain.first_entry_of(path) is None
    path.write_bytes(path.read_bytes()[:70])
    assert chain.first_entry_of(path) is None


def test_looking_back_begins_with_the_oldest_checkpoint_from_which_all_entries_are_there(journal):
    assert oldest_entry(journal) == 0
    for entry in (2, 5, 8):
        checkpoint_path(journal, entry).write_bytes(b"")
    journal_files(journal)[0].unlink()
    assert oldest_entry(journal) == 5, "behind entry 2 entry 3 is missing"
    journal_files(journal)[0].unlink()
    assert oldest_entry(journal) == 8
    checkpoint_path(journal, 8).unlink()
    with pytest.raises(Compacted, match="begins with entry 7"):
        oldest_entry(journal)
    for path in journal_files(journal):
        path.unlink()
    with pytest.raises(Compacted, match="nothing is journaled"):
        oldest_entry(journal)


def test_a_checkpoint_that_was_trimmed_meanwhile_is_compacted(journal):
    with pytest.raises(Compacted, match="behind entry 5 was trimmed"):
        open_checkpoint(journal, 5)


def test_what_is_another_states_is_no_history_of_this_one(journal):
    """It may have come from a backup of another folder, with the same names."""
    write(journal, range(4, 7), state=bytes(16))
    for wanted in (1, 4, 6):
        with pytest.raises(JournalCorrupt, match=r"journal-0*4\.log belongs to another state"):
            numbers(journal, wanted, 12)
    assert numbers(journal, 7, 12) == list(range(7, 13)), "nobody asked for it"
    for entry, state in ((3, STATE), (9, bytes(16))):
        writer = CheckpointWriter(checkpoint_path(journal, entry), state)
        writer.finish(entry, Directory(entry, 0, [], [], [], 0, 0, [], bytes(16)))
        writer.close()
    with own_checkpoint(journal, 3) as found:
        assert found.entry == 3
    with pytest.raises(JournalCorrupt, match=r"checkpoint-0*9 and the journal are of different states"):
        own_checkpoint(journal, 9)


def test_a_history_is_one_that_any_entry_tells_of_and_nobody_elses(journal):
    """That of a folder which another state's is in the place of is another one."""

    def life(history):
        return Life(1, history * 16, "process", "", drained=False)

    check_history(journal, b"a" * 16)  # nothing tells of any
    whole = PrivateState(CheckpointName(6, 0), life(b"b"), [], [], False, 0, [])
    write(journal, range(1, 4), private={1: Private(life=life(b"a")), 3: Private(life=life(b"b"))})
    write(journal, range(7, 10), private={7: Private(whole=whole), 9: Private(life=life(b"c"))})
    for known in (b"a", b"b", b"c"):
        check_history(journal, known * 16)
    check_history(journal, b"")  # who reads does not know its own
    for known, last in ((b"a", 2), (b"b", 3), (b"b", 8), (b"c", 9), (b"c", 99)):
        check_history(journal, known * 16, last)
    for known, last in ((b"a", 3), (b"a", 8), (b"b", 9)):
        with pytest.raises(Compacted, match="of another history behind that"):
            check_history(journal, known * 16, last)
    with pytest.raises(Compacted, match="of another history"):
        check_history(journal, b"d" * 16)
    for path in journal_files(journal):
        path.unlink()
    check_history(journal, b"d" * 16)
