"""Whether exactly this process is there is known, or asking fails; it is never guessed."""

from __future__ import annotations

import os
import resource

import pytest

from solewriter.shared.system.processes import pidfd_of, start_time_of


def test_whether_a_process_runs_is_not_guessed_where_the_last_descriptor_was_needed_to_ask():
    """It would be taken for dead, and what is its work for anybody's."""
    own = os.getpid(), start_time_of(os.getpid())
    os.close(pidfd_of(*own))
    free = os.dup(0)  # the first number that is
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError, match="open files"):
            pidfd_of(*own)
        os.close(os.dup(0))  # which that one left
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pidfd_of(own[0], own[1] + 1) == -1, "another process has this number now"
    assert pidfd_of(-1, 0) == -1
