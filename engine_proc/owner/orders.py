"""What an owner and its engine process say to each other, down two inherited pipes.

The owner sends Orders first, then as often as it likes Register; each of them is answered by one Ready. Only the owner
can write here, which is why models may travel as cloudpickle. The last word of all is the status with which the process
ends (`exits`).
"""

from __future__ import annotations

import os

import msgspec

from solewriter.engine_proc.lock import by_name
from solewriter.shared.config import ANSWER_MAX, Limits
from solewriter.shared.errors import Locked, clean, name_and_message, said_by
from solewriter.shared.folder import StateFolder, legible, new_prefix


class Orders(msgspec.Struct, frozen=True):
    """What the owner tells a new engine process, before anything else."""

    state: str
    durability: str
    limits: Limits
    owner_pid: int  # 0: nobody; the engine stays until it is told to stop
    sys_path: list[bytes]
    models: bytes  # cloudpickle of a list of classes
    exact: bytes = b""  # the same as `state`, which cannot say a name that is no UTF-8
    again: bool = False  # in the place of one that died: the state is there, or was taken away
    prefix: str = msgspec.field(default_factory=new_prefix)  # of its segments: its owner knows what it may leave behind

    @property
    def folder(self) -> StateFolder:
        return StateFolder(os.fsdecode(self.exact) or self.state)


class Register(msgspec.Struct, frozen=True):
    """More models for a running engine, or newer classes of those it knows."""

    models: bytes  # as in Orders
    number: int  # of this word: an answer that came too late is not taken for the next one's
    schema_ids: list[str]  # of these models, as their owner has them


class Ready(msgspec.Struct, frozen=True):
    """What the engine process answers: that it serves, or that the models are known; or why not."""

    ok: bool
    number: int = 0  # of the Register that this answers
    error: str = ""
    message: str = ""
    holder: str = ""  # of the lock, where that is why

    @property
    def words(self) -> str:
        """The error and its message."""
        return name_and_message(self.error, self.message)


def refused(error: BaseException, number: int = 0) -> Ready:
    """Why not."""
    holder = error.holder if isinstance(error, Locked) else ""
    return Ready(
        ok=False,
        number=number,
        error=type(error).__name__,
        message=clean(by_name(said_by(error)), ANSWER_MAX),
        holder=legible(holder),
    )
