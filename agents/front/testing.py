"""`solewriter.testing`: for the tests of agents; pytest is needed. See `agents/testing/fixtures.py`."""

from solewriter.agents.testing.fixtures import engine_fixture

__all__ = ["engine_fixture"]
