"""A check that cannot fail proves nothing: every bug that is seeded somewhere in these tests, and who catches it.

The table is data, so that the docs can cite it (`python tests/test_negative_controls.py` prints it) and a bug or a test
that is renamed or removed is noticed here. The variants are in the tests only; nothing in the product knows of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent

STORES = "engine_proc/test_every_store.py::test_a_publish_whose_stores_are_in_another_order_is_seen"
RECLAIM = "engine_proc/test_every_store.py::test_a_reclaim_that_loses_something_is_seen"
MACHINE = "engine_proc/test_session_machine.py::test_a_seeded_bug_is_found"
CLAIMS = "system/test_claim_machine.py::test_a_seeded_bug_is_found"
SCENES = "system/test_claims.py::test_a_seeded_bug_of_claims_is_seen"
SNAPSHOTS = "system/test_snapshot_machine.py::test_a_seeded_bug_is_found"
READERS = "system/test_tearing.py::test_a_seeded_bug_of_a_reader_is_seen"
CAMPAIGN = "heavy/test_campaign_controls.py::test_a_campaign_catches_an_engine_with_a_seeded_bug"
HASTY = "agents/test_campaign.py::test_an_engine_that_acks_before_it_commits_is_caught"
SYNCS = "crash/test_negative.py::test_a_journal_that_syncs_too_little_loses_what_was_acked"
IMAGES = "crash/test_negative_checkpoints.py::test_a_checkpoint_or_a_trim_with_a_seeded_bug_is_caught"


class Caught(NamedTuple):
    """A variant, the test that runs it, and what sees it there."""

    variant: str
    test: str
    by: str


NAMED: dict[str, list[Caught]] = {  # those that the list of faults asks for
    "ack before commit": [
        Caught("acked_before_committed", HASTY, "campaign: lost"),
        Caught(
            "early",
            "crash/test_negative.py::test_an_engine_that_replies_before_it_commits_loses_what_was_acked",
            "crash images: lost",
        ),
    ],
    "no fsync": [
        Caught("no_sync", SYNCS, "crash images: lost"),
        Caught("no_folder_sync", SYNCS, "crash images: lost"),
        Caught("no_sync_of_the_rewritten_tail", SYNCS, "crash images: lost"),
    ],
    "retry after a failed fsync": [
        Caught(
            "stubborn",
            "crash/test_negative.py::test_a_sync_that_is_tried_again_after_it_failed_loses_what_was_acked",
            "crash images around a failed sync: lost",
        )
    ],
    "no crc": [
        Caught(
            "crc32",
            "crash/test_negative.py::test_a_journal_without_checksums_takes_flipped_bits_for_the_truth",
            "bit flips: a wrong state",
        )
    ],
    "no duplicate check": [
        Caught("no_duplicate_check", MACHINE, "session machine: journaled again"),
        Caught("no_duplicate_check", CAMPAIGN, "campaign: applied twice"),
    ],
    "duplicate check after the version check": [
        Caught("duplicate_check_behind_the_version_check", MACHINE, "session machine: refused, and not journaled"),
        Caught(
            "duplicate_check_behind_the_version_check",
            CAMPAIGN,
            "campaign: refused but applied, refusals not journaled",
        ),
    ],
    "publish after the reply": [
        Caught("published_after_the_reply", CAMPAIGN, "campaign: an acked revision was not seen"),
    ],
    "a reader that ignores the root ring": [
        Caught("a_root_of_which_half_was_filled_again", READERS, "ledger under stress: counts of another revision"),
        Caught("filled_in_the_place_of_the_newest", STORES, "looks between any two stores (the writer's side)"),
    ],
    "refusals not journaled": [
        Caught("refusals_not_journaled", MACHINE, "session machine: another number is consumed after a restart"),
        Caught("refusals_not_journaled", CAMPAIGN, "campaign: refusal not journaled"),
    ],
    "overlay not dropped after a failed commit": [
        Caught("an_overlay_kept_after_a_failed_commit", MACHINE, "session machine: a revision that never was"),
        Caught("a_failed_commit_remembered", MACHINE, "session machine: known, and not journaled"),
        Caught("a_failed_commit_acknowledged", MACHINE, "session machine: acked what never was"),
        Caught("overlay_kept_after_a_failed_commit", CAMPAIGN, "campaign: revision gap"),
    ],
    "shared queue for two agents": [
        Caught(
            "shared",
            "system/test_seeded_bugs.py::test_a_queue_for_two_agents_is_torn_when_one_of_them_dies",
            "an agent killed in mid-frame: the other one's request is lost",
        )
    ],
    "`Queue.get()` in the loop": [
        Caught(
            "queue_get_in_the_loop",
            "system/test_seeded_bugs.py::test_an_agent_stopped_in_mid_frame_shows_a_loop_that_waits_for_it",
            "an agent stopped in mid-frame: nobody else is served",
        )
    ],
    "no `posix_fallocate`": [
        Caught(
            "memory_not_reserved",
            "system/test_seeded_bugs.py::test_a_full_memory_kills_an_engine_that_reserves_nothing",
            "a full memory file system: SIGBUS",
        )
    ],
    "a segment unlinked before its survivors are published": [
        Caught("unlinked_before_the_survivors_are_published", RECLAIM, "looks between any two stores"),
        Caught("a_segment_that_leaves_half_way", RECLAIM, "looks between any two stores"),
    ],
    "a broken chain answered with `None`": [
        Caught("a_broken_chain_answered_with_nothing", SNAPSHOTS, "held snapshots against a dict: a key is not found"),
    ],
}

MORE: dict[str, list[Caught]] = {  # those of rooms that came later
    "a checkpoint not verified before trimming": [
        Caught("damaged_and_not_verified", IMAGES, "the next start refuses"),
    ],
    "trim before the private state is journaled": [
        Caught("trimmed_before_the_private_state_is_journaled", IMAGES, "crash images: refused, a file is missing"),
    ],
    "a checkpoint not fsynced": [Caught("checkpoint_not_synced", IMAGES, "crash images: refused, damaged")],
    "folders never fsynced": [Caught("folder_never_synced", IMAGES, "crash images: lost")],
    "private state that forgets outcomes": [
        Caught("outcomes_forgotten", IMAGES, "crash images: an outcome is not remembered"),
        Caught("outcomes_forgotten_behind_a_checkpoint", MACHINE, "session machine: told that it is forgotten"),
        Caught("outcomes_forgotten_by_a_checkpoint", CAMPAIGN, "campaign: applied twice"),
    ],
    "private state that forgets versions of forgotten keys": [
        Caught(
            "versions_of_forgotten_keys_not_kept",
            "system/test_seeded_bugs.py::"
            "test_a_key_that_comes_back_behind_a_checkpoint_shows_whether_its_versions_are_kept",
            "a key that comes back begins with version 1",
        )
    ],
    "a start that trusts an unnamed checkpoint": [
        Caught("unnamed_checkpoint_trusted", IMAGES, "crash images: an outcome is not remembered"),
        Caught("unnamed_checkpoint_trusted", CAMPAIGN, "campaign: applied twice"),
    ],
    "a journal file used again before its old name is gone": [
        Caught("used_file_taken_before_its_old_name_is_gone", IMAGES, "crash images: refused, damaged"),
    ],
    "a journal file named before its header is written": [
        Caught(
            "_begin",
            "crash/test_negative.py::test_a_header_that_is_written_behind_the_name_is_missed",
            "crash images: refused, header",
        )
    ],
    "a reclaim that ignores pins": [
        Caught("used_again", "system/test_pins.py::test_a_reclaim_that_ignores_pins_is_seen", "a held snapshot"),
    ],
    "all sessions in one queue, in order of arrival": [
        Caught(
            "in_order_of_arrival",
            "system/test_overload.py::test_a_quiet_agents_request_does_not_wait_for_the_queue_of_a_flood",
            "a flood: hundreds of others are decided before a quiet agent's request",
        ),
        Caught(
            "in_order_of_arrival",
            "system/test_overload.py::test_greedy_agents_get_equal_shares_however_much_each_of_them_sends",
            "greedy agents: shares as large as windows",
        ),
    ],
    "a claim that protects nothing": [
        Caught("claims_are_not_fenced", CAMPAIGN, "campaign: handed in under an old claim, or under none"),
        Caught("no_token_needed", CLAIMS, "claim machine: another agent's task is handed in"),
        Caught("old_tokens_are_good", SCENES, "who lost a task to its lease hands it in"),
    ],
    "claims that outlive their agents, or do not outlive the engine": [
        Caught("nobody_dies", CLAIMS, "claim machine: the loss is waited for in vain"),
        Caught(
            "leases_are_not_journaled", CLAIMS, "claim machine: a dead agent keeps its task, or a living one loses it"
        ),
    ],
    "a readiness that is not so": [
        Caught("dependencies_do_not_count", CLAIMS, "claim machine: claimed too early"),
        Caught("nothing_is_cancelled_with_another", CLAIMS, "claim machine: what is stored"),
        Caught("the_youngest_first", CLAIMS, "claim machine: the order"),
        Caught("attempts_without_end", SCENES, "a task is claimed when no attempt is left"),
    ],
    "what an agent was told is not what happened": [
        Caught("LIES", "agents/test_checker.py::test_a_lie_is_found", "history checker, each condition"),
    ],
}


def controls() -> Iterator[tuple[str, Caught]]:
    for bug, caught in chain(NAMED.items(), MORE.items()):
        for one in caught:
            yield bug, one


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse((TESTS / name).read_text())


def names_in(tree: ast.Module) -> set[str]:
    """Of functions, variables, arguments, and of attributes that are given as texts."""
    found = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.Name(id=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Constant(value=str(text)):
                found.add(text)
    return found


@pytest.mark.parametrize(("bug", "caught"), [*controls()], ids=lambda one: getattr(one, "variant", None))
def test_a_seeded_bug_has_its_variant_and_a_test_that_catches_it(bug, caught):
    name, _, test = caught.test.partition("::")
    tests = {node.name for node in parsed(name).body if isinstance(node, ast.FunctionDef)}
    assert test in tests, f"{bug}: {caught.test} is not there"
    assert caught.variant in names_in(parsed(name)), f"{bug}: {caught.variant} is not in {name}"


def test_every_list_of_seeded_bugs_is_in_the_table():
    """What the large machines run with a bug is either here or one of the reader's and the watch's own."""
    listed = {one.variant for _, one in controls()}
    for name, where in {
        "heavy/test_campaign_controls.py": "CONTROLS",
        "crash/test_negative_checkpoints.py": "BUGS",
        "engine_proc/test_every_store.py": "RECLAIMS",
    }.items():
        (table,) = (
            node.value
            for node in parsed(name).body
            if isinstance(node, ast.Assign | ast.AnnAssign) and where in ast.unparse(node).partition("=")[0]
        )
        assert table is not None
        functions = {node.name for node in parsed(name).body if isinstance(node, ast.FunctionDef)}
        variants = {node.id for node in ast.walk(table) if isinstance(node, ast.Name)} & functions
        assert variants, f"{where} of {name} is empty"
        assert variants <= listed, f"{name}: {variants - listed} is in no row"


def markdown() -> Iterator[str]:
    yield "| seeded bug | variant | caught by | test |"
    yield "|---|---|---|---|"
    for bug, (variant, test, by) in controls():
        yield f"| {bug} | `{variant}` | {by} | `tests/{test}` |"


if __name__ == "__main__":
    print("\n".join(markdown()))
