"""`python -m solewriter`: the command line, where its script is not on the path."""

from __future__ import annotations

from solewriter.agents.cli.main import app

app(prog_name="solewriter")
