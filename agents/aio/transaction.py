"""A transaction of asyncio's client: gathered as any other, awaited when its `async with` ends."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from solewriter.agents.transaction import AnyTransaction

if TYPE_CHECKING:
    from solewriter.agents.aio.client import AioClient


class AioTransaction(AnyTransaction):
    """All of it at one revision, or nothing. Bad input raises at its verb, a refusal when the `async with` ends."""

    def __init__(
        self, client: AioClient, reason: str, request_id: str | None, timeout_s: float | None, deadline_s: float | None
    ) -> None:
        super().__init__(client.check_mutation, reason, request_id, timeout_s, deadline_s)
        self._client = client

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end(error):
            reply = await self._client.submit(
                *self._mutations,
                guards=self._guards,
                request_id=self._request_id,
                timeout_s=self._timeout_s,
                deadline_s=self._deadline_s,
            )
            self._reply = reply.check()
