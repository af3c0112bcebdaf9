"""The engine and its rivals under load: the same requests, the same agents, the same windows, in one run."""
