"""`solewriter.errors`: what may be raised."""

from solewriter.shared.errors import *  # noqa: F403 (of a room of ours, and nothing else)
