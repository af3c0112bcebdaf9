"""Poisoned pickles against the decoder: refused one by one, and nothing was imported, called, opened or changed."""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys

import pytest

from solewriter.shared import wire, wirecheck
from solewriter.shared.config import FRAME_REQUESTS_MAX, Limits
from solewriter.shared.errors import BadRequest

LIMITS = Limits()

WATCHED = """
import copyreg, gc, json, os, pickle, resource, sys
from solewriter.shared import wire, wirecheck, wireform
from solewriter.shared.config import Limits, MIB
from solewriter.shared.errors import BadRequest, InvalidMutation, RequestTooLarge

events, watching = [], False
def watch(event, args):
    if event == "sys.excepthook" and "deallocated bytearray" in repr(args):
        return  # the interpreter's own complaint where memory for a BYTEARRAY8 is refused
    if watching:
        events.append([name, event, repr(args)[:80]])
sys.addaudithook(watch)

def classes():
    return {one: {key: id(value) for key, value in vars(one).items()} for one in gc.get_objects() if type(one) is type}

copyreg.add_extension("os", "system", 1)
pickle.loads(bytes([128, 2, 0x82, 1]) + b".")  # from now on EXT opcodes get it without asking find_class
assert copyreg._extension_cache
corpus = {name: bytes.fromhex(body) for name, body in json.load(sys.stdin).items()}
limits, out = Limits(), {}
resource.setrlimit(resource.RLIMIT_DATA, (256 * MIB, 256 * MIB))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
modules, before = set(sys.modules), classes()
for name, body in corpus.items():
    watching = True
    try:
        for request in wire.unpack_frame(body):
            wirecheck.check_request(request, limits.frame_nodes_max, limits)
        out[name] = "accepted"
    except (BadRequest, InvalidMutation, RequestTooLarge) as error:
        out[name] = type(error).__name__
    except BaseException as error:
        out[name] = repr(error)
    watching = False
    pickle.loads(bytes([128, 2, 0x82, 1]) + b".")  # warm again
after = classes()
changed = [str(one) for one in before if before[one] != after.get(one)]
print(json.dumps([out, events, sorted(set(sys.modules) - modules), changed]))
"""


def test_poison_is_refused_and_nothing_imported_called_opened_or_changed(poison, tmp_path, monkeypatch):
    """Within a quarter of a gigabyte and a minute of processor time, or the process dies. Extensions are registered,
    and in the cache that goes round `find_class`.
    """
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # what measures would be seen, too
    corpus = poison["corpus"]()
    ran = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED],
        input=json.dumps({name: body.hex() for name, body in corpus.items()}),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    verdicts, events, modules, changed = json.loads(ran.stdout)
    refusals = ("BadRequest", "InvalidMutation", "RequestTooLarge")
    wrong = {name: verdict for name, verdict in verdicts.items() if verdict not in refusals}
    assert wrong == {}
    assert (events, modules, changed) == ([], [], [])
    assert list(tmp_path.iterdir()) == []
    assert len(verdicts) == len(corpus) > 800


def test_the_corpus_has_every_opcode_that_there_is(poison):
    names = {name.split()[0] for name in poison["corpus"]()}
    assert {opcode.name for opcode in pickletools.opcodes} <= names


EXTENDED = """
import copyreg, pickle
from solewriter.shared import wire
copyreg.add_extension("os", "getcwd", 1)
pickle.loads(bytes([128, 2, 0x82, 1]) + b".")
try:
    print(wire.unpack_frame(bytes([128, 5]) + b"]" + bytes([0x82, 1]) + b")Ra."))
except wire.BadRequest as error:
    print("refused:", error)
assert pickle.loads(bytes([128, 2, 0x82, 1]) + b".") is __import__("os").getcwd, "others may go on with theirs"
"""


def test_an_extension_that_somebody_unpickled_before_is_refused_like_any_name():
    ran = subprocess.run([sys.executable, "-P", "-c", EXTENDED], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("refused: the frame names os.getcwd")


@pytest.mark.parametrize("body", [b"]r\xff\xff\x0f\x00.", b"]p1048575\n.", b"]r\xff\xff\xff\x7f."])
def test_a_place_far_out_in_the_memo_is_told_from_other_damage(body):
    """Nine bytes that cost megabytes: whoever reads a lane has to know, because there may be thousands of them."""
    with pytest.raises(BadRequest) as refusal:
        wire.unpack_frame(b"\x80\x05" + body)
    assert refusal.value.details == {"bomb": True}


def test_a_frame_as_large_as_they_come_is_no_bomb():
    """Every text of it has its place in the memo."""
    fields = {f"field {number}": f"text {number}" for number in range(20_000)}
    requests = [([(3, "Task", "t", None, fields, "", None)], [], None, None)]
    assert wire.unpack_frame(wire.pack_frame(requests, LIMITS)[4:]) == requests


def test_what_is_named_many_times_is_counted_as_often(poison):
    """A mutation or a guard takes two bytes to name again, and as long to decide as the first time."""
    for body in poison["greedy"]().values():
        requests = wire.unpack_frame(body)
        assert len(requests) == FRAME_REQUESTS_MAX
        budget, taken = LIMITS.frame_nodes_max, 0
        with pytest.raises(BadRequest, match="frame_nodes_max"):
            for request in requests:
                budget = wirecheck.check_request(request, budget, LIMITS)
                taken += 1
        assert 0 < taken <= 20


@pytest.mark.parametrize(
    "make",
    [
        lambda value: value,
        lambda value: [value] * 9,
        lambda value: {"a": value, "b": {"c": value}},
        lambda value: ([value], [], None, {"x": (value, value)}),
    ],
    ids=["one", "list", "dict", "request"],
)
def test_the_parts_of_anything_are_counted_to_a_bound(poison, make):
    assert wirecheck.count_parts(make("x"), 1_000) < 20
    for value in (poison["folded"](25, 2), poison["folded"](3, 1_000), [[]] * 10_000, "x" * 100_000):
        assert wirecheck.count_parts(make(value), 1_000) == 1_000
    ring: list[object] = []
    ring.append(ring)
    assert wirecheck.count_parts(make(ring), 1_000) == 1_000
