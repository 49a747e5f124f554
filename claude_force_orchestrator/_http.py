"""The SDK's HTTP library, which is httpx or, from SDK 1.0 on, httpx2: replies of it, and replies for it."""

from __future__ import annotations

import asyncio
import math
import socket
from functools import lru_cache
from importlib import import_module
from typing import Any, AsyncIterator, Callable, Dict, Iterator, Optional, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from claude_force_cache import BackendClosedError, BlockingCache

from ._answer import Answer
from ._exchange import Response, without_encoding

__all__ = ["ThreadedSend", "from_library", "library_of", "to_library"]

T = TypeVar("T")


def library_of(http_client: Any) -> Any:
    """Return the module of the library that a client or a response of it belongs to."""
    kinds = (kind for kind in type(http_client).__mro__ if kind.__name__ in {"AsyncClient", "Client", "Response"})
    return import_module(next(kinds).__module__.partition(".")[0])


def from_library(response: Any) -> Response:
    """Return a reply of the library's asynchronous half, read already or not."""
    return Response(response.status_code, without_encoding(response.headers.multi_items()), _AsyncBody(response))


class _AsyncBody:
    def __init__(self, response: Any) -> None:
        self._response = response
        self._pieces = response.aiter_bytes()

    async def next(self) -> Optional[bytes]:
        try:
            piece: bytes = await self._pieces.__anext__()
        except StopAsyncIteration:
            return None
        return piece

    async def close(self) -> None:
        await self._response.aclose()


class ThreadedSend:
    """Sends a request through the library's blocking half, in worker threads.

    :param send: sends it, and returns the reply. Each call of it, and each read of the reply, has a thread of its
        own: those who wait for them are threads themselves, so there is no use in a limit.
    """

    def __init__(self, send: Callable[[], Any]) -> None:
        self._send = send

    async def __call__(self) -> Response:
        """Return the reply."""
        limiter = CapacityLimiter(math.inf)
        response = await anyio.to_thread.run_sync(self._send, limiter=limiter)
        headers = without_encoding(response.headers.multi_items())
        return Response(response.status_code, headers, _ThreadedBody(response, limiter))


class _ThreadedBody:
    def __init__(self, response: Any, limiter: CapacityLimiter) -> None:
        self._response = response
        self._limiter = limiter
        self._pieces: Iterator[bytes] = response.iter_bytes()
        self._read: Optional[asyncio.Future[Optional[bytes]]] = None

    async def next(self) -> Optional[bytes]:
        self._read = asyncio.ensure_future(anyio.to_thread.run_sync(next, self._pieces, None, limiter=self._limiter))
        return await asyncio.shield(self._read)

    async def close(self) -> None:
        # A thread cannot be cancelled, and a reply is not to be closed while one reads it.
        if self._read is not None and not self._read.done():
            _wake(self._response)
            await asyncio.wait([self._read])
        if self._read is not None and not self._read.cancelled():
            self._read.exception()
        await anyio.to_thread.run_sync(self._response.close, limiter=self._limiter)


def _wake(response: Any) -> None:
    """End the read that a thread waits in, where the connection carries nothing but this reply."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None and response.http_version < "HTTP/2" else None
    if isinstance(connection, socket.socket):
        try:
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already


def to_library(library: Any, response: Response, cache: Optional[BlockingCache[Answer]] = None, **options: Any) -> Any:
    """Return the library's own reply.

    :param cache: what the body belongs to, for the library's blocking half.
    :param options: further arguments of the library's ``Response``.
    """
    kinds = _streams(library)
    stream = kinds["async"](response.body) if cache is None else kinds["blocking"](response.body, cache)
    return library.Response(response.status, headers=response.headers, stream=stream, **options)


@lru_cache(maxsize=None)
def _streams(library: Any) -> Dict[str, Any]:
    """Return the kinds of bodies that the library takes, which have to be subclasses of its own."""
    return {
        "async": type("AsyncStream", (_AsyncStream, library.AsyncByteStream), {}),
        "blocking": type("BlockingStream", (_BlockingStream, library.SyncByteStream), {}),
    }


class _AsyncStream:
    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            piece = await self._body.next()
            if piece is None:
                return
            yield piece

    async def aclose(self) -> None:
        await self._body.close()


class _BlockingStream:
    def __init__(self, body: Any, cache: BlockingCache[Answer]) -> None:
        self._body = body
        self._cache = cache

    def __iter__(self) -> Iterator[bytes]:
        while True:
            piece = self._cache.run(self._body.next)
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        try:
            self._cache.run(self._body.close)
        except BackendClosedError:
            pass  # the cache waited for the end of the body before it closed
