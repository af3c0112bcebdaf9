"""What the engine keeps so that tasks can be claimed: graphs, what is ready, leases, and those who wait."""

from __future__ import annotations

from solewriter.engine_proc.coordination.coordination import Coordination

__all__ = ["Coordination"]
