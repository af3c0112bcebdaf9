"""The optional compiled build: `SOLEWRITER_COMPILED=1 pip install .`, see docs/compiled.md.

Everything about the distribution is in pyproject.toml. Without the variable nothing is compiled, and never in place:
machine code beside the sources would be imported instead of what is edited.
"""

import os
import sys
import tomllib
from pathlib import Path

from setuptools import setup

# The rooms that every mutation passes through, on either side. Not among them: what must have frames (overtime.py),
# what is decoded by its annotations, which compiled classes do not keep (columns.py, schema.py, entry.py), what is
# tested at every place where Ctrl-C may come (exchange.py), and what runs seldom.
HOT = (
    "shared/kinds/blocklayout.py",
    "shared/kinds/kind.py",
    "shared/record.py",
    "shared/registry.py",
    "shared/wirecheck.py",
    "shared/wireform.py",
    "shared/memory/heap.py",
    "shared/memory/table.py",
    "shared/memory/index.py",
    "shared/memory/root.py",
    "shared/memory/revlog.py",
    "agents/answers.py",
    "agents/pending.py",
    "agents/session.py",
    "engine_proc/outcomes.py",
    "engine_proc/bridge.py",
    "engine_proc/coordination/board.py",
    "engine_proc/coordination/coordination.py",
    "engine_proc/coordination/entities.py",
    "engine_proc/coordination/graph.py",
    "engine_proc/coordination/leases.py",
    "engine_proc/coordination/projects.py",
    "engine_proc/coordination/ready.py",
    "engine_proc/coordination/tally.py",
    "engine_proc/coordination/waiting.py",
    "engine_proc/decide/__init__.py",
    "engine_proc/decide/claims.py",
    "engine_proc/decide/content.py",
    "engine_proc/decide/dependencies.py",
    "engine_proc/decide/draft.py",
    "engine_proc/decide/fencing.py",
    "engine_proc/decide/fields.py",
    "engine_proc/decide/guards.py",
    "engine_proc/decide/lifecycle.py",
    "engine_proc/engine.py",
    "engine_proc/express.py",
    "engine_proc/fairness.py",
    "engine_proc/intake.py",
    "engine_proc/kinds.py",
    "engine_proc/migration.py",
    "engine_proc/parking.py",
    "engine_proc/publisher.py",
    "engine_proc/reclaim.py",
    "engine_proc/recovery/unread.py",
    "engine_proc/session.py",
    "engine_proc/sessions.py",
    "engine_proc/state.py",
    "engine_proc/tables.py",
    "engine_proc/tending.py",
    "engine_proc/turn.py",
    "engine_proc/writing.py",
)


COMPILED = os.environ.get("SOLEWRITER_COMPILED", "") not in ("", "0")
ASKED_ABOUT = not {"egg_info", "dist_info"}.isdisjoint(sys.argv)  # a front end asks what a build needs, or is called
IN_PLACE = not {"editable_wheel", "develop"}.isdisjoint(sys.argv)


def needed():
    """What must be there to build: mypy, and what the sources import, whose types it looks at."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return ["mypy>=1.18", "types-psutil", *project["dependencies"]]


def extensions():
    from mypyc.build import mypycify

    return mypycify([f".links/solewriter/{path}" for path in HOT], opt_level="3", debug_level="0")


setup(
    setup_requires=needed() if COMPILED else [],
    ext_modules=extensions() if COMPILED and not (ASKED_ABOUT or IN_PLACE) else [],
)
