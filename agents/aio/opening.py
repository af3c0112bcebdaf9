"""What opens something of asyncio's: to be awaited, or used in an `async with`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from solewriter.shared.errors import SolewriterError


class Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Opening(Generic[C]):
    """`await` it for what it opens, or use it in an `async with`, which closes it again: one at a time."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, C]]) -> None:
        self._begin = begin
        self._in_use = False
        self._opened: C | None = None

    def __await__(self) -> Generator[Any, None, C]:
        return self._begin().__await__()

    async def __aenter__(self) -> C:
        """Raises SolewriterError in the middle of another `async with`: the one that ends would close what the other
        one has.
        """
        if self._in_use:
            raise SolewriterError(
                "this is what another `async with` has opened: call aio.connect() or aio.open_reader() for each of them"
            )
        self._in_use = True
        try:
            self._opened = await self._begin()
        except BaseException:
            self._in_use = False
            raise
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened, self._in_use = self._opened, None, False
        if opened is not None:
            await opened.close()
