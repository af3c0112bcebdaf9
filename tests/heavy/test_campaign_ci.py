"""A campaign of the size that every change has to survive: as the README's words promise, counted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from solewriter.agents.testing.plan import ENGINES

ACKS, KILLS, MINUTES = 100_000, 300, 18  # it takes five on two processors of its own, and ten on one
FAILPOINTS = 0.5  # of all; each has its turn, and not every life comes by its own

pytestmark = pytest.mark.heavy


@pytest.mark.timeout(MINUTES * 60 + 300)
def test_a_hundred_thousand_acks_and_three_hundred_kills_of_each_lose_and_repeat_nothing(tmp_path):
    options = ["--minutes", MINUTES, "--seed", 2026, "--acks", ACKS, "--kills", KILLS, "--folder", tmp_path]
    command = [sys.executable, "-P", "-m", "solewriter.agents.testing.campaign", "--json", *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    said = json.loads(done.stdout)
    assert (said["lost"], said["duplicated"], said["violations"]) == (0, 0, 0), said["first_violations"]
    assert done.returncode == 0
    assert said["acked"] >= ACKS
    assert min(said["kills"][role] for role in ("engine", "agent", "reader")) >= KILLS, said["kills"]
    assert len(said["failpoints_hit"]) >= len(ENGINES) * FAILPOINTS, said["failpoints_hit"]
    assert [*tmp_path.iterdir()] == [], "the folder of a clean campaign stays"
