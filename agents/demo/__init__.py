"""The demo: a real CPU-bound job over real files."""
