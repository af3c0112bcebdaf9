"""asyncio for agents and readers: `from solewriter import aio`. The verbs of `Client` and `Reader`, as coroutines.

async with aio.connect(state, name="me") as client:
    task = await client.create(Task(title="first"))
    async with client.transaction() as tx:
        tx.update(task, priority="high")

A shell over the same session, answers and memory; the lane is an `AioExchange`. A cancelled call raises CancelledError,
caused by OutcomeUnknown with the id of its request if that was sent: the request stays on its way, the client goes on,
and `outcome` tells how it ended. On asyncio's own loop and on uvloop.
"""

from solewriter.agents.aio.client import AioClient, connect
from solewriter.agents.aio.reader import AioReader, open_reader
from solewriter.agents.aio.transaction import AioTransaction

__all__ = ["AioClient", "AioReader", "AioTransaction", "connect", "open_reader"]
