"""Checkpoints: when one is due, the process beside the engine that makes it, and what may go when it is there."""
