"""A state folder says who serves it, or that nobody does."""

from __future__ import annotations

import pytest

from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.folder import StateFolder


def test_a_folder_that_is_none_has_no_engine(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(EngineUnavailable, match="no engine serves"):
            StateFolder(path).whereabouts()


def test_a_relative_path_in_a_folder_that_was_deleted_says_so(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError, match=r"the current folder was deleted.*'state'"):
        StateFolder("state")
    assert StateFolder(tmp_path).path == tmp_path
