"""`solewriter.aio`: the verbs as coroutines. See `agents/aio`."""

from solewriter.agents.aio import AioClient, AioReader, AioTransaction, connect, open_reader

__all__ = ["AioClient", "AioReader", "AioTransaction", "connect", "open_reader"]
