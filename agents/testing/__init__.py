"""For test suites: what agents were told, compared with what an engine's state folder holds. See `check`."""

from solewriter.agents.testing.accounts import Violation
from solewriter.agents.testing.checker import Verdict, check
from solewriter.agents.testing.evidence import Evidence
from solewriter.agents.testing.history import History, read_history
from solewriter.agents.testing.lines import Gathered, Look, gather

__all__ = ["Evidence", "Look", "Gathered", "gather", "History", "read_history", "Verdict", "Violation", "check"]
