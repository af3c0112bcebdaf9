"""The engine's side: one process that owns all state. Never imports the agents' side."""
