"""Small files of a state folder are the old ones or the new ones, never a part of one."""

from __future__ import annotations

import errno
import os

import pytest

from solewriter.shared.system.files import files_named, lasting_file, replace_file


def test_files_of_a_folder_that_cannot_be_looked_into_are_not_taken_for_none(tmp_path):
    """As a search by a pattern takes them: a journal would be none, and what is to be seen in it would be gone."""
    for name in ("log-2", "log-10", "other"):
        (tmp_path / name).touch()
    assert files_named(tmp_path, "log-*") == [tmp_path / "log-10", tmp_path / "log-2"]
    assert files_named(tmp_path / "missing", "*") == files_named(tmp_path / "other", "*") == []
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        files_named(tmp_path / "round", "*")


def test_a_small_file_is_replaced_by_one_that_only_its_owner_reads(tmp_path):
    path = tmp_path / "engine.json"
    replace_file(path, b"old")
    replace_file(path, b"new one")
    assert path.read_bytes() == b"new one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("size", [0, 1, 6], ids=["no byte", "one byte", "all but one"])
def test_what_is_written_in_part_is_an_error_and_the_old_file_stays(tmp_path, size, files_at_most):
    path = tmp_path / "committed"
    replace_file(path, b"old")
    with pytest.raises(OSError, match=r"no room for committed|too large") as failure, files_at_most(size):
        replace_file(path, b"new one")
    assert failure.value.errno == (errno.ENOSPC if size else errno.EFBIG)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("link", ["a symlink", "a dangling symlink", "a hard link"])
def test_a_small_file_is_not_written_through_a_link_that_stands_in_its_way(tmp_path, link):
    """As others may put there who may write to the folder."""
    other, path = tmp_path / "other", tmp_path / "engine.json"
    other.write_bytes(b"somebody's")
    fresh = tmp_path / "engine.json.tmp"
    fresh.hardlink_to(other) if link == "a hard link" else fresh.symlink_to(other)
    if link == "a dangling symlink":
        other.unlink()
    replace_file(path, b"new")
    assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
    assert not other.exists() if link == "a dangling symlink" else other.read_bytes() == b"somebody's"


def test_a_file_that_stays_what_it_is_is_no_link(tmp_path):
    other, path = tmp_path / "other", tmp_path / "lock"
    path.symlink_to(other)
    for made in (True, False):
        with pytest.raises(OSError, match="symbolic links") as failure:
            lasting_file(path, made=made)
        assert failure.value.filename == str(path)
    assert not other.exists()
