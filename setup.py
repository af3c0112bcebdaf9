"""The optional compiled build: SOLEWRITER_COMPILED=1 pip install --no-build-isolation ... (see docs/compiled.md).

Everything about the distribution is in pyproject.toml. Without the variable nothing is compiled.
"""

import os

from setuptools import setup

# The rooms that every mutation passes through, on either side. Not among them: what must have frames (overtime.py),
# what is patched or replaced while it runs, what runs seldom.
HOT = (
    "shared/columns.py",
    "shared/record.py",
    "shared/registry.py",
    "shared/wireform.py",
    "shared/memory/heap.py",
    "shared/memory/table.py",
    "shared/memory/index.py",
    "shared/memory/root.py",
    "shared/memory/revlog.py",
    "engine_proc/decide/__init__.py",
    "engine_proc/decide/content.py",
    "engine_proc/decide/draft.py",
    "engine_proc/decide/guards.py",
    "engine_proc/decide/lifecycle.py",
    "engine_proc/engine.py",
    "engine_proc/kinds.py",
    "engine_proc/publisher.py",
    "engine_proc/reclaim.py",
    "engine_proc/sessions.py",
    "engine_proc/state.py",
    "engine_proc/turn.py",
    "engine_proc/writing.py",
)


def extensions():
    if os.environ.get("SOLEWRITER_COMPILED", "") in ("", "0"):
        return []
    from mypyc.build import mypycify  # of mypy, which only this build needs

    return mypycify([f".links/solewriter/{path}" for path in HOT], opt_level="3", debug_level="0")


setup(ext_modules=extensions())
