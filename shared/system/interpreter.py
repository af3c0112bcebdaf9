"""How a process of ours starts another one: by this interpreter, with the options that matter there."""

from __future__ import annotations

import sys


def interpreter() -> list[str]:
    """The first words of such a command. Never with the current folder on the path (`-P`, which holds where `-E` makes
    the environment's word for it void); where this process does not listen to the environment, that one does not.
    """
    flags = ["-P"]
    if sys.flags.isolated:
        flags.append("-I")
    elif sys.flags.ignore_environment:
        flags.append("-E")
    if sys.flags.no_user_site and not sys.flags.isolated:
        flags.append("-s")
    options = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    return [sys.executable, *flags, *options]
