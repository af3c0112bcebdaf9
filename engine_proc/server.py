"""The engine process: start an epoch of the state folder, serve it, drain. Started by exec; everything it needs comes
down one pipe.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time

import msgspec
import uvloop

from solewriter.engine_proc.bridge import Bridge
from solewriter.engine_proc.channel import Channel
from solewriter.engine_proc.checkpointing.checkpoints import Checkpoints
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.journal import DiskFull
from solewriter.engine_proc.lock import by_name
from solewriter.engine_proc.owner import exits
from solewriter.engine_proc.owner.notices import say
from solewriter.engine_proc.owner.orders import Orders, Ready, Register, refused
from solewriter.engine_proc.owner.pickled import unpickled
from solewriter.engine_proc.preallocation import FULL
from solewriter.engine_proc.recovery import recovery
from solewriter.engine_proc.start import Epoch, started
from solewriter.engine_proc.tuning import freeze_garbage, limit_data, raise_descriptor_limit
from solewriter.shared import wire
from solewriter.shared.config import FIRST_LOOK_S, US_PER_S
from solewriter.shared.errors import EngineUnavailable, Locked, MemoryFull, SchemaMismatch, SolewriterError
from solewriter.shared.journal.entry import Private
from solewriter.shared.kinds.kind import Kind


def run(orders: Orders, channel: Channel) -> int:
    """The whole life of the process: its parts are made, and they run. Its exit status."""
    os.umask(0o077)
    wire.refuse_extensions()
    raise_descriptor_limit()
    try:
        epoch, listening = started(orders)
    except (SolewriterError, OSError) as error:
        channel.send(refused(error))
        return _status_of(error)
    return served(epoch, listening, channel)


def _status_of(error: SolewriterError | OSError) -> int:
    """With what a process ends that could not start."""
    if isinstance(error, MemoryFull | DiskFull):
        return exits.NO_ROOM
    if isinstance(error, SolewriterError):
        return exits.LOCKED if isinstance(error, Locked) else exits.REFUSED
    return exits.NO_ROOM if error.errno in FULL else exits.IO


def served(epoch: Epoch, listening: socket.socket, channel: Channel) -> int:
    """Serve to the end, the exit status of a clean one. Any other is the end of the process, right here: nothing runs
    any more that might write.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Server(epoch, runner.get_loop()).serve(channel, listening))
        epoch.close()
    except EngineUnavailable as error:
        log(str(error))
        epoch.remove_memory()  # by a folder that is gone nobody would ever find it
        os._exit(exits.NOT_OWNER)  # the folder is not ours any more: touch nothing in it
    except OSError as error:
        if epoch.publisher.gone:
            log(f"its memory was removed by others, and the next start makes it anew: {error}")
            epoch.publisher.desert()
        else:
            log(
                f"a write failed, and a failed write is never retried: {error}. The next start goes on with what is on "
                f"the disk of {epoch.folder.path}; if that fails as well, look at this disk"
            )
        os._exit(exits.IO)  # without a reply
    finally:
        epoch.maker.close()  # whose thread would be waited for, and with it the lock
    return 0


def log(text: str) -> None:
    """For whoever started this process."""
    say(by_name(text), f"solewriter engine {os.getpid()}")


def checkpoints_of(epoch: Epoch) -> Checkpoints | None:
    """None where nothing is durable."""
    if epoch.orders.durability == "memory":
        return None
    return Checkpoints(
        epoch.lock,
        epoch.journal,
        epoch.publisher.prefix,
        epoch.limits,
        make=epoch.maker,
        waiter=epoch.threads.checkpoints,
        describe=lambda name: recovery.private_state(name, epoch.life, epoch.state, epoch.sessions),
        log=log,
        private_bytes=epoch.private_bytes,
    )


class Server:
    """Lets agents in, and has the turns of one epoch taken until the end."""

    def __init__(self, epoch: Epoch, loop: asyncio.AbstractEventLoop) -> None:
        self.epoch = epoch
        self.limits = epoch.limits
        self.state = epoch.state
        self.sessions = epoch.sessions
        self.journal = epoch.journal
        self.publisher = epoch.publisher
        self.bridge = Bridge(loop, self.limits, epoch.life.epoch, log)
        self.writer = SingleWriter(
            self.state, self.sessions, self.journal, self.publisher, self.bridge, self.limits, epoch.lock.check,
            checkpoints_of(epoch),
        )  # fmt: skip
        self._loop = loop
        self._stopping = asyncio.Event()
        self._registering: set[asyncio.Task[None]] = set()

    async def serve(self, channel: Channel, listening: socket.socket) -> None:
        """Take requests until told to stop; then finish what was accepted."""
        self._heed_signals()
        self._heed_owner(channel)
        self.bridge.listen(listening, self.writer.gone)
        self._settle()
        turns = asyncio.create_task(self.writer.run())
        self.writer.between.look_later(FIRST_LOOK_S)
        self._beat()  # whoever finds this memory later knows that it served
        beats = asyncio.create_task(self._go_on_beating())
        try:
            channel.send(Ready(ok=True))
        except BrokenPipeError:
            pass  # the owner died meanwhile: where that is the end, it is seen below
        waiting = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((turns, beats, waiting), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            await self._drain(turns)
        self.state.time_budget.end()
        beats.cancel()
        waiting.cancel()
        for task in (turns, beats):
            if task.done() and not task.cancelled():
                task.result()  # a failed turn or heartbeat is the end of the process, with its reason
        self.epoch.maker.close()
        self.epoch.threads.checkpoints.shutdown()
        await self.end_life()
        self.writer.tending.close()
        self.bridge.close()

    def _settle(self) -> None:
        """What only a start may do is over: to make garbage that is none, and to take all of the memory."""
        freeze_garbage()
        self.state.coordination.making.freezes = True
        self.publisher.heap.takes_all = False

    # --- who may end it ----------------------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)

    def _heed_owner(self, channel: Channel) -> None:
        """Its death is the end, where it is not detached; and more models may come at any time."""
        owner = self.epoch.orders.owner_pid
        if owner:
            try:
                pidfd = os.pidfd_open(owner)
            except ProcessLookupError:
                self._stopping.set()
            else:
                self._loop.add_reader(pidfd, self._owner_died, pidfd)
        self._loop.add_reader(channel.read_fd, self._read_owner, channel)

    def _owner_died(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._stopping.set()

    def _read_owner(self, channel: Channel) -> None:
        if not channel.read():
            self._loop.remove_reader(channel.read_fd)
            if self.epoch.orders.owner_pid:  # it is gone, or another program by now, in the same process
                self._stopping.set()
        for order in channel.messages(Register):
            task = self._loop.create_task(self._register(order, channel))
            self._registering.add(task)
            task.add_done_callback(self._registering.discard)

    async def _register(self, order: Register, channel: Channel) -> None:
        try:
            await self.writer.between.register(_as_meant(order))
            answer = Ready(ok=True, number=order.number)
        except (Exception, SystemExit) as error:  # of the user's module, say, while it was imported
            answer = refused(error, order.number)
        try:
            channel.send(answer)
        except BrokenPipeError:
            pass  # the owner is gone

    # --- meanwhile ---------------------------------------------------------------------------------------------------

    async def _go_on_beating(self) -> None:
        while True:
            await asyncio.sleep(self.limits.heartbeat_s)
            self._beat()
            self.writer.tending.set_alarm()  # the time of day may have been set, or gone on while the machine slept

    def _beat(self) -> None:
        period_us = int(self.limits.heartbeat_s * US_PER_S)
        self.publisher.root.beat(len(self.sessions), len(list(self.bridge.connected())), period_us)
        self.publisher.let_go()
        self._check_memory()
        limit_data(self.limits.engine_headroom_bytes)

    def _check_memory(self) -> None:
        """Raises FileNotFoundError where others have removed it, and the next engine makes it anew. Not where nobody
        would start one, or it would have nothing to make it of: who has this memory mapped is served on.
        """
        followed = os.getppid() == self.epoch.supervisor and self.epoch.orders.durability != "memory"
        if followed and (gone := self.publisher.gone):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), gone)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _drain(self, turns: asyncio.Task[None]) -> None:
        """Finish what was accepted, within its time; tell the rest that it was not."""
        self.bridge.drain()
        _, unfinished = await asyncio.wait((turns,), timeout=self.limits.drain_timeout_s)
        if unfinished:
            log("drain_timeout_s is over: what was not applied yet is not applied any more")
            self.writer.stop()
        await turns  # a failed turn is the end of the process, before anything is said in its name
        self.bridge.read_rest()
        self.writer.refuse_rest()

    async def end_life(self) -> None:
        """Its last entry: the next start knows that it was drained."""
        self.epoch.lock.check()
        drained = msgspec.structs.replace(self.epoch.life, drained=True)
        self.journal.append(self.state.revision, time.time_ns() // 1000, [], Private(life=drained))
        try:
            await self.journal.commit(durable=True)
        except DiskFull as error:  # nothing is lost by it: the next start takes this end for a kill
            log(f"the clean end could not be noted: {error}")


def _as_meant(order: Register) -> list[Kind]:
    """The kinds that an owner registers. Raises SchemaMismatch where its module has another class under a name here."""
    kinds = [Kind(model) for model in unpickled(order.models)]
    for kind, schema_id in zip(kinds, order.schema_ids, strict=True):
        if kind.schema_id != schema_id:
            module = kind.model.__module__
            problem = f"its process has imported {module} as that file was by then, which has another class {kind.name}"
            raise SchemaMismatch(f"{problem}: reload {module} here, or start another engine", kind=kind.name)
    return kinds
