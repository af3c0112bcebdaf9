"""A client without a lane asks for one quickly at first, then less often, and gives up at one time for all."""

from __future__ import annotations

import errno

import pytest

from solewriter import EngineUnavailable
from solewriter.agents.reconnecting import Reconnecting
from solewriter.shared.config import RECONNECT_FIRST_S, RECONNECT_MAX_S, Limits
from solewriter.shared.folder import StateFolder


@pytest.fixture
def again(tmp_path):
    return Reconnecting(StateFolder(tmp_path), Limits(connect_timeout_s=10))


def test_the_first_hello_is_said_at_once_and_the_next_ones_less_and_less_hastily(again):
    pauses = [again.next_pause_s() for _ in range(9)]
    assert pauses[:3] == [0, RECONNECT_FIRST_S, 2 * RECONNECT_FIRST_S]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RECONNECT_MAX_S


def test_a_lane_on_which_nothing_was_heard_is_no_reason_to_ask_hastily_again(again):
    for _ in range(5):
        again.next_pause_s()
    again.note_lane()
    assert again.next_pause_s() == RECONNECT_MAX_S
    again.note_lane()
    again.heard = True
    assert [again.next_pause_s(), again.next_pause_s()] == [0, RECONNECT_FIRST_S]


def test_a_lane_is_given_up_at_one_time_for_all_who_miss_it(again):
    assert again.given_up_s(100.0) == 110
    assert again.given_up_s(105.0) == 110
    again.note_lane()
    assert again.given_up_s(107.0) == 117


def test_who_has_time_for_another_hello_goes_on(again):
    again.next_pause_s()
    again.note_failure(ConnectionRefusedError(), 110 - RECONNECT_FIRST_S, 110)
    with pytest.raises(EngineUnavailable, match="start one by `with Engine"):
        again.note_failure(ConnectionRefusedError(), 110 - RECONNECT_FIRST_S / 2, 110)


def test_what_another_hello_cannot_mend_is_told_as_it_is(again):
    final = EngineUnavailable("refused for good", final=True)
    with pytest.raises(EngineUnavailable) as told:
        again.note_failure(final, 0, 110)
    assert told.value is final
    full = OSError(errno.EMFILE, "too many open files")
    again.note_failure(full, 0, 110)  # somebody may close some
    with pytest.raises(EngineUnavailable, match="no file descriptors left"):
        again.note_failure(full, 111, 110)
