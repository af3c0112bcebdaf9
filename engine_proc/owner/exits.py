"""The statuses with which an engine's process ends: its last word to its owner, who goes by it.

A model's code can end it with any other one.
"""

from __future__ import annotations

FAILED = 1  # by what is no error that it knows: our own bug, say
LOCKED = 3  # another engine owns the folder
REFUSED = 4  # a start met what only people can mend: damage, a class that does not fit
IO = 5  # a read, write or sync failed, and the same process never tries that again
NOT_OWNER = 6  # the folder was moved, deleted or replaced under it
NO_ROOM = 7  # a start found no room on disk or in memory: later there may be some
NEVER_RESTART = (LOCKED, REFUSED, NOT_OWNER)
