"""Connections to one Redis server for one event loop: a few of them, shared by any number of callers.

redis-py's own pools, pipelines and cluster client lose a connection, or hand a reply to the wrong caller, when
they are cancelled at certain points, and wait for minutes on a silent server. Here a connection goes back only
after every reply was read; in every other case it is cut. Deadlines are the caller's, by cancellation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import AsyncGenerator, Callable, Deque, List, Optional, Sequence, Tuple, Union

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from ._redis_scripts import SCRIPTS
from ._redis_server import Server

__all__ = ["Argument", "Channel", "Command", "Reply", "cut"]

Argument = Union[str, bytes, int]
Command = Tuple[Argument, ...]
Reply = object
"""What the server said to a command; an error is a ``ResponseError``."""

_TEXTS = {script.sha: script.text for script in SCRIPTS.values()}


class Channel:
    """Sends commands and returns their replies. Belongs to the event loop that was running when it was made.

    :param server: what to connect to.
    :param size: how many connections there may be; further callers queue in order.
    :param given_up: told when a caller is cancelled while it waits for the server, with the seconds for which the
        server had said nothing to anybody.
    """

    def __init__(self, server: Server, size: int, given_up: Optional[Callable[[float], None]] = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = server
        self._given_up = given_up
        self._unmade = size
        self._heard = 0.0
        self._idle: List[AbstractConnection] = []
        self._waiting: Deque[asyncio.Future[AbstractConnection]] = deque()
        self._closed = False
        self._end: Optional[AsyncGenerator[None, None]] = None

    async def exchange(self, commands: Sequence[Command], *, repeatable: bool, asking: bool = False) -> List[Reply]:
        """Return the replies to ``commands``. A script that the server does not know yet is sent in full.

        :param repeatable: whether the commands may be sent again on a new connection if the first one,
            which had been idle, turns out to be closed by the server.
        :param asking: whether the commands are about a slot that is just being moved to the server.
        :raises RedisError: or OSError, if the server does not answer.
        """
        if self._end is None:
            # asyncio.run closes async generators before it closes the loop: the last chance to close sockets.
            self._end = self._closing_with_the_loop()
            await self._end.__anext__()
        replies = await self._exchange(commands, repeatable, asking)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            in_full: List[Command] = [("EVAL", _TEXTS[str(commands[i][1])], *commands[i][2:]) for i in unknown]
            for index, reply in zip(unknown, await self._exchange(in_full, repeatable, asking)):
                replies[index] = reply
        return replies

    def cut_idle(self) -> None:
        """Cut the connections that nobody is using. They connect anew when they are used."""
        for connection in self._idle:
            cut(connection)

    def abort(self) -> None:
        """Cut every connection, those in use as soon as they are given back. Runs on the channel's loop."""
        self._closed = True
        self.cut_idle()

    async def close(self) -> None:
        """Cut every connection and let the sockets close."""
        self.abort()
        if self._end is not None:
            await self._end.aclose()

    async def _exchange(self, commands: Sequence[Command], repeatable: bool, asking: bool) -> List[Reply]:
        connection = await self._acquire()
        began = self.loop.time()
        try:
            reused = connection.is_connected
            try:
                replies = await self._send(connection, commands, asking)
            except RedisConnectionError:
                # The idle ones have probably met the same fate, a restart or a time-out of the server's.
                self.cut_idle()
                if not (reused and repeatable):
                    raise
                replies = await self._send(connection, commands, asking)
            self._heard = self.loop.time()
            return replies
        except BaseException as error:
            cut(connection)
            if self._given_up is not None and isinstance(error, asyncio.CancelledError):
                self._given_up(self.loop.time() - max(began, self._heard))
            raise
        finally:
            self._release(connection)

    async def _send(self, connection: AbstractConnection, commands: Sequence[Command], asking: bool) -> List[Reply]:
        if not connection.is_connected:
            try:
                await connection.connect()  # type: ignore[no-untyped-call]  # the client's signature has no types
            except (ValueError, RecursionError) as error:
                raise _nonsense(error) from None
        writer = connection._writer
        assert writer is not None  # noqa: S101 - it is connected
        transport = writer.transport
        if asking:
            commands = [part for command in commands for part in (("ASKING",), command)]
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies: List[Reply] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
                except (ValueError, RecursionError) as error:
                    raise _nonsense(error) from None
        except BaseException:
            # The client has disconnected by now, but politely: its transport would wait until everything that
            # was written is sent, on a silent server for ever.
            transport.abort()
            raise
        return replies[1::2] if asking else replies

    async def _acquire(self) -> AbstractConnection:
        if self._idle:
            return self._idle.pop()
        if self._unmade:
            connection = self.server.connection()
            self._unmade -= 1
            return connection
        turn: asyncio.Future[AbstractConnection] = self.loop.create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _release(self, connection: AbstractConnection) -> None:
        if self._closed:
            cut(connection)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle.append(connection)

    async def _closing_with_the_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.abort()
            # The transports close their sockets in the loop's next turn.
            await asyncio.sleep(0)


def _nonsense(error: Exception) -> InvalidResponse:
    """Return the error for what the client says of a length that is none, or of a line or a list without end."""
    return InvalidResponse(f"it answers what Redis does not: {type(error).__name__}")


def cut(connection: AbstractConnection) -> None:
    """Close without waiting. A connection that was cut connects again when it is used."""
    # The client's own method is a coroutine, which cannot run in a callback of the loop.
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is not None:
        writer.transport.abort()
