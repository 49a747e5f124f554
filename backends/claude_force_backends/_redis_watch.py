"""Waiting until an entry is deleted: one subscribing connection for each event loop, shared by all who wait.

The script that deletes an entry publishes under the name of its data key. Whoever waits subscribes, looks once
whether the entry is still there, and returns with the message. When the connection is lost, everybody returns.
"""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Dict, List, Optional, Set, Union, cast

import anyio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from claude_force_cache import BackendUnavailableError

from ._redis_link import cut
from ._redis_server import Server

__all__ = ["Watch"]


class _Topic:
    """What several wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.subscribed: asyncio.Future[None] = loop.create_future()
        self.waiters: Set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        for future in (self.subscribed, *self.waiters):
            if not future.done():
                future.set_result(None)


class Watch:
    """Listens for deletions on one event loop.

    :param find: returns a server to subscribe at.
    :param timeout: seconds that subscribing may take.
    """

    def __init__(self, find: Callable[[], Awaitable[Server]], timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._find = find
        self._timeout = timeout
        self._topics: Dict[bytes, _Topic] = {}
        self._connection: Optional[AbstractConnection] = None
        self._listener: Optional[asyncio.Future[None]] = None
        self._lock = asyncio.Lock()
        self._refused = False

    async def wait(self, name: str, remaining: Callable[[], Awaitable[float]], timeout: float) -> bool:
        """Return after at most ``timeout`` seconds, sooner when somebody publishes under ``name``.

        :param remaining: returns for how many seconds there is something to wait for.
        :returns: False at once if it is not possible to subscribe.
        """
        if self._refused:
            return False
        channel = name.encode()
        waiter: asyncio.Future[None] = self._loop.create_future()
        try:
            with anyio.move_on_after(timeout):
                with anyio.move_on_after(self._timeout):
                    topic = await self._subscribe(channel, waiter)
                    # Not awaited itself: it belongs to all who wait, and would be cancelled with one of them.
                    await asyncio.wait([topic.subscribed])
                if self._connection is None or waiter not in self._subscribed_to(channel):
                    return False
                await asyncio.wait([waiter], timeout=await remaining())
        except (BackendUnavailableError, RedisError, OSError):
            return False
        finally:
            self._leave(channel, waiter)
        return True

    def abort(self) -> None:
        """Stop listening. Runs on the watch's loop."""
        if self._listener is not None:
            self._listener.cancel()

    async def close(self) -> None:
        """Stop listening, and let the socket close."""
        self.abort()
        if self._listener is not None:
            await asyncio.wait([self._listener])

    async def _subscribe(self, channel: bytes, waiter: asyncio.Future[None]) -> _Topic:
        async with self._lock:
            if self._connection is None:
                self._connection = await self._connect()
                self._listener = asyncio.ensure_future(self._listen(self._connection))
            topic = self._topics.get(channel)
            if topic is None:
                topic = self._topics[channel] = _Topic(self._loop)
                self._write("SUBSCRIBE", channel)
            topic.waiters.add(waiter)
            return topic

    def _subscribed_to(self, channel: bytes) -> Set[asyncio.Future[None]]:
        topic = self._topics.get(channel)
        return topic.waiters if topic is not None and topic.subscribed.done() else set()

    def _leave(self, channel: bytes, waiter: asyncio.Future[None]) -> None:
        topic = self._topics.get(channel)
        if topic is not None:
            topic.waiters.discard(waiter)
            if not topic.waiters:
                del self._topics[channel]
                self._write("UNSUBSCRIBE", channel)

    def _write(self, *command: Union[str, bytes]) -> None:
        # Without waiting, so that nobody can be cancelled half-way; a command is shorter than the buffers.
        if self._connection is not None and self._connection._writer is not None:
            self._connection._writer.writelines(self._connection.pack_command(*command))

    async def _connect(self) -> AbstractConnection:
        connection = (await self._find()).connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # the client's signature has no types
        except BaseException:
            cut(connection)
            raise
        return connection

    async def _listen(self, connection: AbstractConnection) -> None:
        try:
            while True:
                kind, channel, _ = cast("List[bytes]", await connection.read_response())
                topic = self._topics.get(channel)
                if topic is not None and kind == b"message":
                    topic.wake()
                elif topic is not None and kind == b"subscribe" and not topic.subscribed.done():
                    topic.subscribed.set_result(None)
        except ResponseError:
            # The user may not subscribe.
            self._refused = True
        except (RedisError, OSError, ValueError, TypeError, RecursionError):
            pass  # the server is gone or says nonsense; who waits looks by himself, whoever comes next connects anew
        finally:
            cut(connection)
            self._connection = None
            for topic in self._topics.values():
                topic.wake()
