"""One engine process, seen from its owner: made by exec, heard over two pipes, known by its pidfd.

Started by exec, never by fork: nothing of the owner is re-imported, so it works in notebooks, scripts without a main
guard and daemonic children. The owner's models travel down an inherited pipe.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from operator import itemgetter
from typing import Any, NewType

import cloudpickle
from pydantic import BaseModel

from solewriter.engine_proc.leftovers import remove_unnamed
from solewriter.engine_proc.orders import Line, Orders, Ready, Register
from solewriter.shared.config import POLL_MS_MAX
from solewriter.shared.errors import EngineStartFailed, EngineUnavailable, Locked
from solewriter.shared.fieldtypes import held_types
from solewriter.shared.interpreter import interpreter
from solewriter.shared.models import Entity

STDERR = 2  # the highest of the standard descriptors
_pickling = threading.Lock()  # what is by value, and what a model remembers, is the whole process's


class Child:
    """A process that will serve, once `begin` told it what."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._asked = 0
        self._orders: Orders | None = None
        self._process = self._exec()
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            self.kill()
            self._line.close()
            raise

    def begin(self, orders: Callable[[], Orders]) -> None:
        """Wait until it serves. Raises Locked, EngineStartFailed with its own reason, when it does not come so far, and
        then it has ended; likewise what `orders` raises.

        `orders` is called, and may wait, while the process's interpreter starts, which takes most of the time.
        """
        try:
            self._tell(orders())
        except EngineStartFailed:
            self.close()
            raise
        except BaseException:
            self.kill()
            self.close()
            raise

    def _tell(self, orders: Orders) -> None:
        """Its orders, and wait for its first word. Raises its reason."""
        self._orders = orders
        timeout_s = orders.limits.start_timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            with suppress(BrokenPipeError):  # it died at once: its silence below says so
                self._line.say(orders, timeout_s)
            ready = self._line.hear(Ready, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self.kill()
            raise EngineStartFailed(f"the engine was not ready after start_timeout_s = {timeout_s} s") from None
        if ready is None:
            raise EngineStartFailed(f"the engine process ended with status {self.wait()} before it was ready")
        if ready.ok:
            return
        status = self.wait()
        if ready.error == "Locked":
            raise Locked(ready.message, holder=ready.holder)
        raise EngineStartFailed(f"the engine could not start: {ready.words}", status=status)

    def _exec(self) -> subprocess.Popen[bytes]:
        with ExitStack() as theirs, ExitStack() as ours:
            hears, their_out = _pipe(ours, theirs)
            their_in, says = _pipe(theirs, ours)
            process = subprocess.Popen(
                [*interpreter(), "-m", "solewriter.engine_proc", str(their_in), str(their_out)],
                pass_fds=(their_in, their_out),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's to handle
            )
            ours.pop_all()
        self._line = Line(hears, says)
        return process

    # --- while it serves ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    def register(self, models: Sequence[type[Entity]], timeout_s: float) -> Ready | None:
        """Its answer to more models; None if it died before it answered. Raises EngineUnavailable for no answer."""
        with self._asking:
            self._asked += 1
            deadline = time.monotonic() + timeout_s
            try:
                self._line.say(Register(pickled(models), self._asked), timeout_s)
                while True:
                    answer = self._line.hear(Ready, max(0.0, deadline - time.monotonic()))
                    if answer is None or answer.number == self._asked:
                        return answer
            except BrokenPipeError:
                return None
            except TimeoutError:
                raise EngineUnavailable(
                    f"the engine (pid {self.pid}) did not answer in {timeout_s} s: the models may or may not be known"
                ) from None

    def ends_within(self, timeout_s: float) -> bool:
        """Whether it ended by then."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(min(timeout_s * 1000, POLL_MS_MAX)))

    def wait(self) -> int:
        """Its exit status, once it ended."""
        return self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, and return only when everything that it held is released."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of the pipes and the pidfd of one that has ended, and of what it left in memory, where nobody else
        would find it.
        """
        with self._asking:
            self._line.close()
            os.close(self.pidfd)
        if (orders := self._orders) is not None:
            remove_unnamed(orders.folder, orders.limits.memory_dir, orders.prefix)


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """A pipe's two ends, to be closed by these."""
    reading, writing = map(_beyond_standard, os.pipe())
    reads.callback(os.close, reading)
    writes.callback(os.close, writing)
    return reading, writing


def _beyond_standard(fd: int) -> int:
    """Not under the number of a standard descriptor, which an owner may have closed: what a library prints there would
    be a word to the other side.
    """
    if fd > STDERR:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    finally:
        os.close(fd)


def current_folder() -> str:
    """Empty where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def import_path(home: str) -> list[bytes]:
    """Where the owner looks for modules. What is relative there is so to `home`: by the next start the owner may have
    gone to another folder, or its own may be deleted.
    """
    base = os.fsencode(home)
    paths = [os.path.join(base, os.fsencode(path or "")) for path in sys.path]
    return [path for path in paths if os.path.isabs(path)]


def pickled(models: Sequence[type[Entity]]) -> bytes:
    """The owner's classes for the engine, with those of their fields: by name from modules that it can import, by value
    from all others. Raises TypeError for what cannot be sent.
    """
    types = {held for model in models for held in (model, *held_types(model))}
    names = {base.__module__ for held in types for base in held.__mro__}
    with _pickling:
        known = cloudpickle.list_registry_pickle_by_value()  # what the owner said itself stays
        by_value = [sys.modules[name] for name in names - known if name in sys.modules and not _importable(name)]
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            with _without_surroundings():
                file = BytesIO()
                _Pickler(file).dump(_Behind([*_inside_out(models, set())], list(models)))
            return file.getvalue()
        except OSError:
            raise  # of want of descriptors: it is tried again
        except Exception as error:  # whatever the classes' own say of it
            classes = ", ".join(model.__name__ for model in models)
            raise TypeError(
                f"{classes}, with what their code uses, cannot go to the engine by value: {error}; those of a module "
                "that it can import go by name"
            ) from error
        finally:
            for module in by_value:
                cloudpickle.unregister_pickle_by_value(module)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Sends the names that a script gives to types by value as well: cloudpickle does that for its classes alone."""

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, NewType) and not _is_found_by_name(found):
            return NewType, (found.__name__, found.__supertype__)
        if type(found).__name__ == "TypeAliasType" and not _is_found_by_name(found):
            return type(found), (found.__name__, found.__value__)
        return super().reducer_override(found)


def _is_found_by_name(named: Any) -> bool:
    module = named.__module__ or "__main__"
    if module == "__main__" or not _importable(module):
        return False
    return getattr(sys.modules.get(module), named.__name__, None) is named


class _Behind:
    """Reads as `models`; what they are made of is read before."""

    def __init__(self, inside: list[type], models: list[type[Entity]]) -> None:
        self._both = inside, models

    def __reduce__(self) -> tuple[itemgetter[int], tuple[object]]:
        return itemgetter(1), (self._both,)


def _inside_out(types: Iterable[type], met: set[type]) -> Iterator[type]:
    """The models among these, and those that they are made of: bases and parts before what has them. A part may share
    its schema with what holds it: met for the first time in the middle of that, by an annotation that is a text, it
    would be read with a schema that is still empty.
    """
    for one in types:
        if one not in met and issubclass(one, BaseModel):
            met.add(one)
            yield from _inside_out((*one.__mro__[1:], *held_types(one)), met)
            yield one


def _forked() -> None:
    global _pickling
    _pickling = threading.Lock()  # whoever held it is not here


os.register_at_fork(after_in_child=_forked)


@contextmanager
def _without_surroundings() -> Iterator[None]:
    """A model that is defined in a function remembers that function's variables, an Engine among them perhaps: pydantic
    needs them to resolve names in its annotations, which was done when the model was checked.
    """
    attribute = "__pydantic_parent_namespace__"
    remembered = {
        model: model.__dict__[attribute]
        for model in _all_models(BaseModel)
        if model.__dict__.get(attribute) is not None
    }
    for model in remembered:
        setattr(model, attribute, None)
    try:
        yield
    finally:
        for model, names in remembered.items():
            setattr(model, attribute, names)


def _all_models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _all_models(model)


def _importable(name: str) -> bool:
    """Whether another process with the same path would find the package of this module. `__main__` is by value
    anyway.
    """
    top = name.partition(".")[0]
    if top == "__main__":
        return True
    try:  # not importlib.util.find_spec: that answers for whatever is loaded, from wherever
        return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)
    except (ImportError, ValueError):
        return False
