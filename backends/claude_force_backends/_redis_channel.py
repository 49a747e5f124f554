"""Connections to one Redis server for one event loop: a few of them, shared by any number of callers.

redis-py's own pools, pipelines and cluster client lose a connection, or hand a reply to the wrong caller, when
they are cancelled at certain points, and wait for minutes on a silent server. Here a connection goes back only
after every reply was read; in every other case it is cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import AsyncGenerator, Callable, Deque, List, Optional, Sequence

import anyio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ._redis_link import Command, Link, Reply
from ._redis_scripts import SCRIPTS
from ._redis_server import Server

__all__ = ["Channel"]

_TEXTS = {script.sha: script.text for script in SCRIPTS.values()}


class Channel:
    """Sends commands and returns their replies. Belongs to the event loop that was running when it was made.

    :param server: what to connect to.
    :param size: how many connections there may be; further callers queue in order.
    :param given_up: told when a caller gives up or is cancelled while it waits for the server, with the seconds for
        which the server had said nothing to anybody.
    """

    def __init__(self, server: Server, size: int, given_up: Optional[Callable[[float], None]] = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = server
        self._given_up = given_up
        self._unmade = size
        self._heard = 0.0
        self._idle: List[Link] = []
        # Each waits for a connection, or for None: the permission to make one.
        self._waiting: Deque[asyncio.Future[Optional[Link]]] = deque()
        self._closed = False
        self._end: Optional[AsyncGenerator[None, None]] = None

    async def exchange(
        self, commands: Sequence[Command], end: float, *, repeatable: bool, asking: bool = False
    ) -> List[Reply]:
        """Return the replies to ``commands``. A script that the server does not know yet is sent in full.

        :param end: the time of the event loop at which to give up, with queueing and connecting.
        :param repeatable: whether the commands may be sent again on a new connection if the first one,
            which had been idle, turns out to be closed by the server.
        :param asking: whether the commands are about a slot that is just being moved to the server.
        :raises RedisTimeoutError: if it is too late.
        :raises RedisError: or OSError, if the server does not answer.
        """
        if self._end is None:
            # asyncio.run closes async generators before it closes the loop: the last chance to close sockets.
            self._end = self._closing_with_the_loop()
            await self._end.__anext__()
        replies = await self._exchange(commands, end, repeatable, asking)
        unknown = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, NoScriptError) and commands[index][0] == "EVALSHA"
        ]
        if unknown:
            in_full: List[Command] = [("EVAL", _TEXTS[str(commands[i][1])], *commands[i][2:]) for i in unknown]
            for index, reply in zip(unknown, await self._exchange(in_full, end, repeatable, asking)):
                replies[index] = reply
        return replies

    def cut_idle(self) -> None:
        """Cut the connections that nobody is using."""
        idle, self._idle = self._idle, []
        self._unmade += len(idle)
        for link in idle:
            link.cut()

    def abort(self) -> None:
        """Cut every connection, those in use as soon as they are given back. Runs on the channel's loop."""
        self._closed = True
        self.cut_idle()

    async def close(self) -> None:
        """Cut every connection and let the sockets close."""
        self.abort()
        if self._end is not None:
            await self._end.aclose()

    async def _exchange(self, commands: Sequence[Command], end: float, repeatable: bool, asking: bool) -> List[Reply]:
        if asking:
            commands = [part for command in commands for part in (("ASKING",), command)]
        link = self._take()
        if link is None:
            link = await self._acquire(end)
        began = self.loop.time()
        try:
            replies = None
            if link is not None:
                try:
                    replies = await link.ask(commands, end)
                except RedisConnectionError:
                    # The idle ones have probably met the same fate, a restart or a time-out of the server's.
                    self.cut_idle()
                    if not repeatable:
                        raise
            if replies is None:
                link = None
                link = await self._connect(end)
                replies = await link.ask(commands, end)
            self._heard = self.loop.time()
            return replies[1::2] if asking else replies
        except (asyncio.CancelledError, RedisTimeoutError):
            if self._given_up is not None:
                self._given_up(self.loop.time() - max(began, self._heard))
            raise
        finally:
            self._release(link)

    async def _connect(self, end: float) -> Link:
        with anyio.move_on_after(max(0.0, end - self.loop.time())):
            return await Link.connect(self.server.connection())
        raise RedisTimeoutError("no connection")

    def _take(self) -> Optional[Link]:
        """Return a connection that is idle, if there is one."""
        while self._idle:
            link = self._idle.pop()
            if link.works:
                return link
            self._unmade += 1
        return None

    async def _acquire(self, end: float) -> Optional[Link]:
        """Return a connection as soon as somebody gives one back, or None if one may be made."""
        if self._unmade:
            self._unmade -= 1
            return None
        turn: asyncio.Future[Optional[Link]] = self.loop.create_future()
        self._waiting.append(turn)
        with anyio.move_on_after(max(0.0, end - self.loop.time())):
            try:
                return await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(turn.result())
                raise
        raise RedisTimeoutError("no connection was free")

    def _release(self, link: Optional[Link]) -> None:
        if link is not None and (self._closed or not link.works):
            link.cut()
            link = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(link)
                return
        if link is None:
            self._unmade += 1
        else:
            self._idle.append(link)

    async def _closing_with_the_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.abort()
            # The transports close their sockets in the loop's next turn.
            await asyncio.sleep(0)
