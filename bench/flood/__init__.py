"""What `overload` puts an engine under, that is slow on purpose: agents that ask for more than it can decide."""
