"""The load under which `overload` puts an engine that is slow on purpose: agents that ask for more."""
