"""The engine process: own the state folder, recover, serve, drain. Started by exec; everything it needs comes down
one pipe.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time

import cloudpickle
import msgspec

from solewriter.engine_proc.adoption import check_fit
from solewriter.engine_proc.ahead import FULL, with_room
from solewriter.engine_proc.bridge import Bridge
from solewriter.engine_proc.checkpoints import Checkpoints, remove_unfinished
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.filejournal import FileJournal
from solewriter.engine_proc.journal import DiskFull, Journal, NoJournal
from solewriter.engine_proc.lock import Lock, by_name, make_folder
from solewriter.engine_proc.maker import Maker
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.owner import exits
from solewriter.engine_proc.owner.notices import say
from solewriter.engine_proc.owner.orders import Line, Orders, Ready, Register, refused
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.recovery import leftovers, quarantine, recovery
from solewriter.engine_proc.recovery.recovery import Recovery
from solewriter.engine_proc.recovery.replay import check_empty, last_noted
from solewriter.engine_proc.sessions import ENGINE, Sessions
from solewriter.engine_proc.state import State
from solewriter.engine_proc.tuning import freeze_garbage, limit_data, raise_descriptor_limit, thread_beside
from solewriter.shared import failpoint, wire
from solewriter.shared import life as lives
from solewriter.shared.chain import journal_files, state_id_of
from solewriter.shared.config import BACKLOG, FIRST_LOOK_S, MEMORY_VERSION, US_PER_S
from solewriter.shared.entry import Life, Private
from solewriter.shared.errors import EngineUnavailable, Locked, MemoryFull, SolewriterError
from solewriter.shared.folder import Whereabouts
from solewriter.shared.kind import Kind
from solewriter.shared.processes import start_time_of
from solewriter.shared.registry import Registry


class Server:
    """One epoch of one state folder."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.limits = orders.limits
        self.folder = orders.folder
        self.supervisor = os.getppid()
        if not orders.again:
            make_folder(self.folder.path)
        self.lock = Lock(self.folder, again=orders.again)
        self.beside, self.waiter = thread_beside("ahead"), thread_beside("checkpoint")
        self.growing = thread_beside("memory")  # by itself: a turn may wait for it, and not for zeros on disk
        self.maker = Maker(self.lock.folder_fd)
        sys.path += [path for path in map(os.fsdecode, orders.sys_path) if path not in sys.path]
        self.registry = Registry(cloudpickle.loads(orders.models))
        self.time_budget = TimeBudget(self.limits.decide_timeout_s)
        self._own: Whereabouts | None = None  # once there may be memory of this epoch

    # --- recovery ----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Everything that must be true before the first hello."""
        with os.scandir(self.limits.memory_dir):
            pass  # what cannot be listed would never be given back
        self.journal = self._open_journal()
        own = self._make_memory()
        self._begin_life(self._put_back(own))
        self._show(own)
        leftovers.remove_old_memory(self.folder, own.prefix)
        failpoint.reach("recover.done")

    def _make_memory(self) -> Whereabouts:
        """What is published into, empty; noted before there is any of it."""
        own = self._own = Whereabouts(
            MEMORY_VERSION,
            os.getpid(),
            start_time_of(os.getpid()),
            time.time_ns() // 1_000_000,
            self.limits.memory_dir,
            self.orders.prefix,
            os.fsencode(self.folder.path),
        )
        with_room(self.lock.folder, lambda: leftovers.note_memory(self.folder, own))
        self.publisher = Publisher(
            own.prefix,
            self.limits,
            self.growing,
            epoch=own.epoch,
            pid=own.pid,
            start_time=own.start_time,
            durability=self.orders.durability,
        )
        return own

    def _put_back(self, own: Whereabouts) -> Life:
        """The state and the sessions as the journal has them; the life that begins now."""
        self.state = State(self.registry, self.publisher, self.limits, self.time_budget)
        self.sessions = Sessions(self.limits)
        recovered = Recovery(self.lock.folder, self.journal, self.state, self.sessions, self.publisher, self.limits)
        checkpoint, before = recovered.run(), recovered.life
        remove_unfinished(self.lock.folder, checkpoint.entry if checkpoint is not None else 0)
        self.private_bytes = recovered.private_bytes
        life = Life(own.epoch, recovery.history_of(before), self.orders.durability, lives.boot_id(), drained=False)
        leases = self.state.coordination.leases.all()
        return quarantine.judged(life, before, quarantine.last_words(self.folder), self.sessions, leases)

    def _show(self, own: Whereabouts) -> None:
        """What was recovered is published, and readers are told where."""
        state, publisher = self.state, self.publisher
        publisher.root.remember(self.life.history)
        publisher.describe([kind.name for kind in state.kinds], state.schemas)
        publisher.reserve({}, {})
        publisher.publish([], state.revision, self.journal.tail.number, state.counts())
        state.forget(publisher.reclaim(0, state.revision, self.journal.tail.number, state.counts))
        failpoint.reach("recover.published")
        with_room(self.lock.folder, lambda: self.folder.announce(own))
        failpoint.reach("recover.announced")

    def _open_journal(self) -> Journal:
        files, memory = journal_files(self.folder.path), self.orders.durability == "memory"
        if not files:
            check_empty(self.folder.path, last_noted(self.folder.path), ran=self.orders.again and not memory)
        if memory:
            if files:
                raise EngineUnavailable(
                    f"{self.folder.path} holds a durable state, and durability='memory' would not write to it: "
                    "use 'process' or 'power', or another folder"
                )
            return NoJournal()
        # Of the newest one, which every start reads: older ones may be history, and damaged.
        state_id = state_id_of(files[-1]) if files else os.urandom(16)
        return FileJournal(
            self.lock.folder, state_id, self.limits, self.beside, power=self.orders.durability == "power"
        )

    def _begin_life(self, life: Life) -> None:
        """The first entry of this epoch; kinds that are new come with it."""
        check_fit(self.state, self.publisher, self.registry)
        new = self.state.new_kinds(self.registry)
        self.state.add_kinds(new.kinds, new.schemas)
        self.journal.append(
            self.state.revision,
            time.time_ns() // 1000,
            [],
            Private(kinds=new.kinds, schemas=new.schemas, life=life),
        )
        asyncio.run(self.journal.commit(durable=True))
        self.life = life
        for session, sequence in life.quarantined:
            self.sessions.quarantine(session, sequence, self.state.revision)
            if session == ENGINE:
                self.state.coordination.leases.deadly.add(sequence)

    # --- serving -----------------------------------------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """Agents may come from now on, and wait here until `serve` lets them in: who finds nobody looks again, later
        and later, and would still sleep when this engine is ready.
        """
        listening = self.folder.bound_socket()
        listening.listen(BACKLOG)
        return listening

    async def serve(self, line: Line, listening: socket.socket) -> None:
        """Take requests until told to stop; then finish what was accepted."""
        loop = asyncio.get_running_loop()
        bridge = Bridge(loop, self.limits, self.life.epoch, self.log)
        writer = SingleWriter(
            self.state, self.sessions, self.journal, self.publisher, bridge, self.limits, self.lock.check,
            self.checkpoints(),
        )  # fmt: skip
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        self._watch_owner(loop, stopping)
        self._listen_to_owner(loop, line, writer, stopping)
        bridge.listen(listening, writer.gone)
        freeze_garbage()
        self.state.coordination.making.keeps = True
        self.publisher.heap.takes_all = False
        turns = asyncio.create_task(writer.run())
        writer.between.look_later(FIRST_LOOK_S)
        self._beat(bridge)  # whoever finds this memory later knows that it served
        beats = asyncio.create_task(self._go_on_beating(bridge, writer))
        try:
            line.say(Ready(ok=True))
        except BrokenPipeError:
            pass  # the owner died meanwhile: where that is the end, it is seen below
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait((turns, beats, waiting), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            await self._drain(bridge, writer, turns)
        self.time_budget.end()
        beats.cancel()
        waiting.cancel()
        for task in (turns, beats):
            if task.done() and not task.cancelled():
                task.result()  # a failed turn or heartbeat is the end of the process, with its reason
        self.maker.close()
        self.waiter.shutdown()
        await self._end_life()
        writer.tending.close()
        bridge.close()

    def checkpoints(self) -> Checkpoints | None:
        """None where nothing is durable."""
        if self.orders.durability == "memory":
            return None
        return Checkpoints(
            self.lock,
            self.journal,
            self.publisher.prefix,
            self.limits,
            make=self.maker,
            waiter=self.waiter,
            describe=lambda name: recovery.private_state(name, self.life, self.state, self.sessions),
            log=self.log,
            private_bytes=self.private_bytes,
        )

    async def _drain(self, bridge: Bridge, writer: SingleWriter, turns: asyncio.Task[None]) -> None:
        """Finish what was accepted, within its time; tell the rest that it was not."""
        bridge.drain()
        _, unfinished = await asyncio.wait((turns,), timeout=self.limits.drain_timeout_s)
        if unfinished:
            self.log("drain_timeout_s is over: what was not applied yet is not applied any more")
            writer.stop()
        await turns  # a failed turn is the end of the process, before anything is said in its name
        bridge.read_rest()
        writer.refuse_rest()

    def _watch_owner(self, loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
        if not self.orders.owner_pid:
            return
        try:
            pidfd = os.pidfd_open(self.orders.owner_pid)
        except ProcessLookupError:
            stopping.set()
            return

        def owner_died() -> None:
            loop.remove_reader(pidfd)
            stopping.set()

        loop.add_reader(pidfd, owner_died)

    def _listen_to_owner(
        self, loop: asyncio.AbstractEventLoop, line: Line, writer: SingleWriter, stopping: asyncio.Event
    ) -> None:
        """More models may come at any time."""

        def heard() -> None:
            if not line.read():
                loop.remove_reader(line.hears)
                if self.orders.owner_pid:  # it is gone, or another program by now, in the same process
                    stopping.set()
            for words in line.messages(Register):
                task = loop.create_task(self._register(words, line, writer))
                asking.add(task)
                task.add_done_callback(asking.discard)

        asking: set[asyncio.Task[None]] = set()
        loop.add_reader(line.hears, heard)

    async def _register(self, words: Register, line: Line, writer: SingleWriter) -> None:
        try:
            await writer.between.register([Kind(model) for model in cloudpickle.loads(words.models)])
            answer = Ready(ok=True, number=words.number)
        except (Exception, SystemExit) as error:  # of the user's module, say, while it was imported
            answer = refused(error, words.number)
        try:
            line.say(answer)
        except BrokenPipeError:
            pass  # the owner is gone

    async def _go_on_beating(self, bridge: Bridge, writer: SingleWriter) -> None:
        while True:
            await asyncio.sleep(self.limits.heartbeat_s)
            self._beat(bridge)
            writer.tending.set_alarm()  # the time of day may have been set, or gone on while the machine slept

    def _beat(self, bridge: Bridge) -> None:
        period_us = int(self.limits.heartbeat_s * US_PER_S)
        self.publisher.root.beat(len(self.sessions), len(list(bridge.connected())), period_us)
        self.publisher.let_go()
        self._check_memory()
        limit_data(self.limits.engine_headroom_bytes)

    def _check_memory(self) -> None:
        """Raises FileNotFoundError where others have removed it, and the next engine makes it anew. Not where nobody
        would start one, or it would have nothing to make it of: who has this memory mapped is served on.
        """
        followed = os.getppid() == self.supervisor and self.orders.durability != "memory"
        if followed and (gone := self.publisher.gone):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), gone)

    async def _end_life(self) -> None:
        self.lock.check()
        drained = msgspec.structs.replace(self.life, drained=True)
        self.journal.append(self.state.revision, time.time_ns() // 1000, [], Private(life=drained))
        try:
            await self.journal.commit(durable=True)
        except DiskFull as error:  # nothing is lost by it: the next start takes this end for a kill
            self.log(f"the clean end could not be noted: {error}")

    def log(self, text: str) -> None:
        """For whoever started this process."""
        say(by_name(text), f"solewriter engine {os.getpid()}")

    def abandon(self) -> None:
        """After a start that failed: no memory of this epoch stays, also where the folder is gone that says so."""
        self.time_budget.end()
        self.growing.shutdown(cancel_futures=True)
        if self._own is not None:
            leftovers.give_back(self.folder, self._own)

    def close(self) -> None:
        """After a clean end: nothing of this epoch stays in memory."""
        self.journal.close()
        self.folder.engine_json.unlink(missing_ok=True)
        self.growing.shutdown()  # or what it is making would stay
        self.publisher.remove()
        self.folder.marker(self.publisher.prefix).unlink(missing_ok=True)
        self.beside.shutdown()


def run(orders: Orders, line: Line) -> int:
    """The whole life of the process; its exit status."""
    import uvloop

    os.umask(0o077)
    wire.refuse_extensions()
    raise_descriptor_limit()
    server = None
    try:
        server = Server(orders)
        server.time_budget.install()
        listening = server.listen()
        server.recover()
    except SolewriterError as error:
        if server is not None:
            server.abandon()
            if isinstance(error, MemoryFull):  # a dead engine's memory makes room for the next attempt
                leftovers.remove_old_memory(server.folder, "", but_roots=True)
                error = MemoryFull(f"{error}{leftovers.still_mapped(server.folder)}")
        line.say(refused(error))
        if isinstance(error, MemoryFull | DiskFull):
            return exits.NO_ROOM
        return exits.LOCKED if isinstance(error, Locked) else exits.REFUSED
    except OSError as error:
        if server is not None:
            server.abandon()
        line.say(refused(error))
        return exits.NO_ROOM if error.errno in FULL else exits.IO
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(line, listening))
        server.close()
    except EngineUnavailable as error:
        server.log(str(error))
        server.growing.shutdown(cancel_futures=True)  # or what it is making would stay
        server.publisher.remove()  # by a folder that is gone nobody would ever find it
        os._exit(exits.NOT_OWNER)  # the folder is not ours any more: touch nothing in it
    except OSError as error:
        if server.publisher.gone:
            server.log(f"its memory was removed by others, and the next start makes it anew: {error}")
            server.publisher.desert()
        else:
            server.log(
                f"a write failed, and a failed write is never retried: {error}. The next start goes on with what is on "
                f"the disk of {server.folder.path}; if that fails as well, look at this disk"
            )
        os._exit(exits.IO)  # without a reply, and without running anything that might write
    finally:
        server.maker.close()  # whose thread would be waited for, and with it the lock
    return 0
