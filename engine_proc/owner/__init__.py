"""What the process that owns an engine does: make it, hear of it, start it again, and tell what became of it."""
