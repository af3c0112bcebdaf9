"""What system tests share: a real engine in its own process, and the proof that no test leaves anything behind.

Nothing here pretends to be anything: `engine` is a process, `client` a lane, `reader` a mapping. After every test the
processes that it started are gone, and so is the memory of every state folder below its `tmp_path`; what is not is
removed, and the test fails. `wait_until` is the only place that may sleep: tests wait for conditions, not for time.
"""

from __future__ import annotations

import array
import gc
import importlib.util
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol, TypeVar

import hypothesis
import msgspec
import pytest

from solewriter import Client, Engine, Entity, Limits, Reader, connect, open_reader
from solewriter.agents.session import AgentSession
from solewriter.shared import handshake, wire, wireform
from solewriter.shared.config import DEFAULT_LIMITS, KIB, MIB, WIRE_VERSION
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.lane import Lane
from solewriter.shared.registry import Registry

T = TypeVar("T")
REGISTRY = Registry()
POLL_S = 0.005
PATIENCE_S = 30.0  # so long, at least, is waited for what must happen: a machine may be busy, and nobody pays for it
RUN_MARK = "SOLEWRITER_TEST_RUN"  # in the environment of everything that a test starts by exec, orphans included
LASTING = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # the library keeps these until exit

# The first example pays for imports and page faults, and the machine is shared: a time per example proves nothing.
hypothesis.settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("suite")


# A shell that runs the suite in its background lets it ignore Ctrl-C, and so would everything that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- hostile bytes ---------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins, so that nobody waits for it at the end; the rest in its order."""
    items.sort(key=lambda item: "heavy" not in item.path.parts)


@pytest.fixture(scope="session")
def poison() -> dict[str, Any]:
    """What `tests/fixtures/poison.py` has: `corpus()`, `greedy()`, `TRACE` and more."""
    return runpy.run_path(str(Path(__file__).parent / "fixtures" / "poison.py"))


# --- waiting ---------------------------------------------------------------------------------------------------------


class WaitUntil(Protocol):
    def __call__(self, condition: Callable[[], T], timeout_s: float, what: str) -> T: ...


def poll(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`. AssertionError, saying `what` did not happen, after `timeout_s`, or what is
    waited for everything.
    """
    timeout_s = max(timeout_s, PATIENCE_S)
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what} (last seen: {value!r})")
        time.sleep(POLL_S)
    return value


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """`wait_until(condition, timeout_s, what)`: the condition's first true value."""
    return poll


# --- bugs and traces, and the compiled build --------------------------------------------------------------------------


def compiled(*places: Any) -> list[str]:
    """Which of these modules, or of the modules of these classes and functions, are machine code here."""
    modules = {place if isinstance(place, ModuleType) else sys.modules[place.__module__] for place in places}
    return sorted(module.__name__ for module in modules if not str(module.__file__).endswith(".py"))


@pytest.fixture(scope="session")
def interpreted() -> Callable[..., None]:
    """`interpreted(*places)`: skips where one of them is compiled, for tests that follow it line by line, or put a bug
    into it: machine code has no lines, and calls what it was compiled with, whatever stands in its place.
    """

    def check(*places: Any) -> None:
        if found := compiled(*places):
            pytest.skip(f"needs the interpreter: {', '.join(found)} is compiled here")

    return check


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, interpreted: Callable[..., None]) -> Callable[[Any, str, Any], None]:
    """`plant(place, name, bug)`: the bug in place of a class's or module's function; it is given the true one first."""

    def put(place: Any, name: str, bug: Callable[..., Any]) -> None:
        interpreted(place)
        true = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given: bug(true, *given))

    return put


# --- in the middle of something --------------------------------------------------------------------------------------


@contextmanager
def interrupted(number: int, deed: Callable[[], object], *modules: ModuleType) -> Iterator[list[str]]:
    files, reached = {module.__file__ for module in modules}, list[str]()
    left = number

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                reached.append(f"{frame.f_code.co_name}, line {frame.f_lineno}")
                deed()

    before, collected = sys.getprofile(), gc.isenabled()
    gc.disable()  # a collection would run the ends of what others left, and the deed could be done in one of those
    sys.setprofile(profile)
    try:
        yield reached
    finally:
        sys.setprofile(before)
        if collected:
            gc.enable()


@pytest.fixture(scope="session")
def at_step() -> Callable[..., AbstractContextManager[list[str]]]:
    """`with at_step(number, deed, *modules) as reached`: the deed is done at the number-th place where Python may run
    the handler of a signal, as it does behind calls and where functions begin, in these modules and this thread.
    `reached` says where that was, if it came so far. What the deed raises is raised there.
    """
    return interrupted


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """`elsewhere(deed)`: the deed is begun in another thread, which has ended or waits for something when it is given
    back: while a test has this, the interpreter lets no thread run before another one waits.
    """
    begun, interval = list[threading.Thread](), sys.getswitchinterval()

    def begin(deed: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=deed)
        begun.append(thread)
        thread.start()
        return thread

    sys.setswitchinterval(1000.0)
    try:
        yield begin
    finally:
        sys.setswitchinterval(interval)
        for thread in begun:
            thread.join()


@pytest.fixture
def ctrl_c_when(wait_until: WaitUntil) -> Callable[[Callable[[], object], str], AbstractContextManager[None]]:
    """`with ctrl_c_when(condition, what)`: a KeyboardInterrupt in this thread, as soon as the condition holds."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def waiting(condition: Callable[[], object], what: str) -> Iterator[None]:
        def strike() -> None:
            wait_until(condition, 30, what)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # type: ignore[arg-type]  # it runs

        previous = signal.signal(signal.SIGALRM, interrupt)
        striking = threading.Thread(target=strike)
        striking.start()
        try:
            yield
        finally:
            striking.join()
            signal.signal(signal.SIGALRM, previous)

    return waiting


# --- a real engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def limits() -> Limits:
    """Small enough that segments, journal files and caches roll over within a test; restarts without a pause."""
    small = {"heap_segment_bytes_first": 256 * KIB, "heap_segment_bytes_max": 1 * MIB, "journal_file_bytes": 1 * MIB}
    return Limits(**small, restart_backoff_s=0.005, restart_backoff_max_s=0.05)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def start_engine(limits: Limits) -> Iterator[Callable[..., Engine]]:
    """`start_engine(state, **options)`: a started Engine, "process" durable unless told; stopped after the test."""
    started: list[Engine] = []

    def start(state: str | os.PathLike[str], **options: Any) -> Engine:
        engine = Engine(state, **{"durability": "process", "limits": limits, **options})
        started.append(engine)  # before it starts: one that is ready too late must be stopped too
        return engine.start()

    yield start
    for engine in reversed(started):
        engine.stop()


@pytest.fixture(scope="session")
def seeded() -> Callable[[Callable[[], None]], type[Entity]]:
    """`seeded(deed)`: a model whose engine runs this function first; `Engine(models=[...])` (tests/seeded.py)."""
    spec = importlib.util.spec_from_file_location("seeded", Path(__file__).with_name("seeded.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[[Callable[[], None]], type[Entity]] = module.seeded
    return made


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that serves `state`, or the one that a test shares with its module's others. A clean stop afterwards
    leaves nothing in memory, and no engine.json.
    """
    if "shared_engine" in request.fixturenames:
        yield request.getfixturevalue("shared_engine")
        return
    engine = request.getfixturevalue("start_engine")(request.getfixturevalue("state"))
    yield engine
    own = [*engine.folder.markers(), *([engine.folder.whereabouts()] if engine.folder.engine_json.exists() else [])]
    engine.stop()
    assert [path for one in own for path in segments(one)] == [], "a stopped engine left memory behind"
    assert not engine.folder.engine_json.exists(), "a stopped engine is still announced"


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory, limits: Limits) -> Iterator[Engine]:
    """One engine for all tests of a module that harm neither it nor each other: each of them has keys of its own, and
    counts revisions from those that it finds. Such a test says so by `usefixtures("shared_engine")`.
    """
    state = tmp_path_factory.mktemp("shared") / "state"
    with Engine(state, durability="process", limits=limits) as engine:
        yield engine
        pid = engine.pid
        assert engine.restarts == 0, "a test has killed what it shares"
    assert not Path(f"/proc/{pid}").exists()
    shutil.rmtree(state.parent)


@pytest.fixture
def client(engine: Engine, limits: Limits) -> Iterator[Client]:
    """An agent of `engine`."""
    with connect(engine.state, name="tester", limits=limits) as client:
        yield client


@pytest.fixture
def reader(engine: Engine, limits: Limits) -> Iterator[Reader]:
    """A reader of `engine`."""
    with open_reader(engine.state, limits=limits) as reader:
        yield reader


@pytest.fixture(scope="session")
def hurry() -> Callable[[Any, float], None]:
    """`hurry(client, connect_timeout_s)`: from now on a client, of asyncio or not, has so little patience with an
    engine that does not answer. Its first connection may take longer, on a busy machine.
    """

    def hurried(client: Any, connect_timeout_s: float) -> None:
        exchange = client._exchange
        exchange._limits = msgspec.structs.replace(exchange._limits, connect_timeout_s=connect_timeout_s)
        exchange._again.connect_timeout_s = connect_timeout_s

    return hurried


@pytest.fixture
def files_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """`with files_at_most(size)`: the kernel lets no file grow beyond this, and cuts a write short there: not the
    test's own log either, so it ends with the block.
    """

    @contextmanager
    def bounded(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return bounded


@pytest.fixture
def lost_by_the_disk() -> Callable[[Path], None]:
    """`lost_by_the_disk(path)`: from now on whoever reads this file is told of an input/output error."""

    def lose(path: Path) -> None:
        path.unlink()
        path.symlink_to("/proc/self/mem")  # at whose beginning nothing is mapped

    return lose


@pytest.fixture
def is_stopped() -> Callable[[int], bool]:
    """`is_stopped(pid)`: whether a process stands still, by SIGSTOP say."""
    return lambda pid: Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder through which other users may go. It is none of pytest's, which another run closes when it begins."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def remove_memory() -> Callable[[str | os.PathLike[str]], None]:
    """`remove_memory(state)`: for a test whose engine was killed and never followed by another one."""
    return lambda state: forget(StateFolder(state).markers())


# --- nothing stays ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def run_mark() -> Iterator[str]:
    """Marks everything that this run starts by exec. None of it looks for plug-ins of pydantic in each distribution
    that is installed, which is a tenth of an engine's start, and hundreds start here.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_MARK, str(os.getpid()))
        patch.setenv("PYDANTIC_DISABLE_PLUGINS", "__all__")
        yield f"{RUN_MARK}={os.getpid()}"


@pytest.fixture(autouse=True)
def nothing_stays(run_mark: str, tmp_path: Path) -> Iterator[None]:
    """Every process that the test started has ended and was waited for; every segment of its state folders is gone."""
    before = processes()
    yield
    deadline = time.monotonic() + PATIENCE_S  # an engine whose owner was killed drains before it ends
    while (left := ours(processes() - before, run_mark)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    folders = {path.parent for path in tmp_path.rglob("memory-solewriter-*.json")}
    own = [one for folder in folders for one in StateFolder(folder).markers()]
    memory = [path.name for one in own for path in segments(one)]
    forget(own)
    assert not left, f"processes outlived the test: {left}"
    assert not memory, f"memory outlived the test: {memory}"


def processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def ours(pids: set[int], mark: str) -> dict[int, str]:
    """Those that this run started, with their commands."""
    return {pid: name for pid in pids if (name := name_of_ours(pid, mark))}


def name_of_ours(pid: int, mark: str) -> str:
    """The command of a process that this run started, "" of any other: a child, or one that carries the mark."""
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "cmdline").read_bytes()
        state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        marked = state != b"Z" and mark.encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""  # it ended meanwhile, or is another user's
    if any(name in command for name in LASTING) or not (marked or int(parent) == os.getpid()):
        return ""
    return command.replace(b"\0", b" ").decode(errors="replace").strip() or f"(a zombie, state {state.decode()})"


def segments(whereabouts: Whereabouts) -> list[Path]:
    """The files in the memory file system that belong to one engine's life."""
    return sorted(Path(whereabouts.memory_dir).glob(f"{whereabouts.prefix}*"))


def forget(lives: list[Whereabouts]) -> None:
    for whereabouts in lives:
        for path in segments(whereabouts):
            path.unlink(missing_ok=True)


# --- a lane by hand --------------------------------------------------------------------------------------------------


class RawLane:
    """An agent's lane without a client: what is written is what the engine reads, whole frames or not."""

    def __init__(
        self,
        state: str | os.PathLike[str],
        client_id: str | None = None,
        *,
        resends: bool = False,
        instance: str = "",
        between: Callable[[], object] = lambda: None,  # called when the hello was sent and not answered
        wire_version: int = WIRE_VERSION,
        first: int = 0,  # the number of its first frame, where that is for the agent to say
    ) -> None:
        self.session = AgentSession(DEFAULT_LIMITS, "raw", client_id)
        self.lane = Lane()
        with StateFolder(state).connected_socket(PATIENCE_S) as connection:
            hello = self.session.hello(os.getpid())
            hello.instance = instance or client_id or "raw"
            hello.resends = resends  # True: as a client says that lost its lane, and begins with frame 0 again
            hello.wire = wire_version
            hello.first = first
            connection.sendmsg(
                [handshake.pack_words(hello)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.lane.theirs))],
            )
            self.lane.hand_over()
            between()
            header = connection.recv(handshake.WORDS_HEADER_BYTES, socket.MSG_WAITALL)
            self.welcome = handshake.unpack_welcome(connection.recv(handshake.words_length(header), socket.MSG_WAITALL))
        os.set_blocking(self.lane.requests, True)
        os.set_blocking(self.lane.replies, True)
        self._received = bytearray()
        self._replies: list[Any] = []

    def frame(self, mutations: list[Any], request_id: str | None = None, deadline_us: int | None = None) -> bytes:
        """A frame of one request."""
        plain = [wireform.plain_mutation(mutation, REGISTRY) for mutation in mutations]
        return wire.pack_frame([(plain, [], request_id, deadline_us)], DEFAULT_LIMITS)

    def write(self, data: bytes) -> None:
        os.write(self.lane.requests, data)

    def reply(self, timeout_s: float = PATIENCE_S) -> Any:
        """The next reply: (sequence, status, revision, detail). None when the engine closed the lane."""
        while not self._replies:
            waiting = select.poll()
            waiting.register(self.lane.replies, select.POLLIN)
            assert waiting.poll(timeout_s * 1000), "no reply came"
            data = os.read(self.lane.replies, 65536)
            if not data:
                return None
            self._received += data
            self._replies += wire.unpack_replies(self._received)
        return self._replies.pop(0)

    def die(self) -> None:
        """Close the lane without a word, as the kernel does for a killed process."""
        self.lane.close()


@pytest.fixture
def impostor() -> Iterator[Callable[..., list[handshake.Hello]]]:
    """`impostor(state, *welcomes)`: from now on these are the answers to who says hello at this state folder, one each,
    with nobody behind them. What was said, so far.
    """
    started: list[tuple[threading.Thread, socket.socket]] = []

    def answer(listening: socket.socket, welcomes: Sequence[handshake.Welcome], heard: list[handshake.Hello]) -> None:
        for welcome in welcomes:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # the test is over
            with connection:
                words, fds, _, _ = socket.recv_fds(connection, 65536, 2)
                for fd in fds:
                    os.close(fd)
                heard.append(handshake.unpack_hello(words[handshake.WORDS_HEADER_BYTES :]))
                connection.sendall(handshake.pack_words(welcome))

    def start(state: str | os.PathLike[str], *welcomes: handshake.Welcome) -> list[handshake.Hello]:
        heard: list[handshake.Hello] = []
        listening = StateFolder(state).bound_socket()
        listening.listen()
        thread = threading.Thread(target=answer, args=(listening, welcomes, heard), daemon=True)
        started.append((thread, listening))
        thread.start()
        return heard

    yield start
    for thread, listening in started:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.fixture
def client_of_a_raw_lane() -> Iterator[Callable[..., RawLane]]:
    """`client_of_a_raw_lane(state)`: a lane that the test writes by hand."""
    made: list[RawLane] = []

    def connect_raw(state: str | os.PathLike[str], **options: Any) -> RawLane:
        made.append(RawLane(state, **options))
        return made[-1]

    yield connect_raw
    for raw in made:
        raw.die()
