"""Connections to one Redis server for one event loop: a few of them, shared by any number of callers.

redis-py's own pools and pipelines lose a connection, or hand a reply to the wrong caller, when they are
cancelled at certain points, and wait for minutes on a silent server. Here a connection goes back only after
every reply was read; in every other case it is cut. One deadline holds for the whole exchange. This is also
the one place where the client's errors become ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, AsyncGenerator, Deque, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import anyio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from claude_force_cache import (
    AccessDeniedError,
    BackendUnavailableError,
    BackendURL,
    CacheError,
    ForeignStoreError,
    InvalidURLError,
)

from ._redis_scripts import SCRIPTS

__all__ = ["Argument", "Channel", "Command", "Reply", "Server"]

Argument = Union[str, bytes, int]
Command = Tuple[Argument, ...]
Reply = object

_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM")
_DENIED_IN_SCRIPT = "The user executing the script can't"
_TEXTS = {script.sha: script.text for script in SCRIPTS.values()}


class Server:
    """Where a server is and how to connect to it. Its text is its address, without a login.

    :raises InvalidURLError: if ``url`` names several servers, or a database that is not a number.
    """

    def __init__(self, url: BackendURL, options: Mapping[str, Any]) -> None:
        if len(url.hosts) > 1:
            raise InvalidURLError(f"{url} names {len(url.hosts)} servers; a redis URL names one")
        database = url.path.strip("/") or "0"
        if not (database.isascii() and database.isdigit()):
            raise InvalidURLError(f"{url} names a database that is not a number; expected redis://host/0")
        self._type: Any = Connection
        self._arguments: Dict[str, Any] = {
            "db": int(database),
            "username": url.username,
            "password": url.password,
            "socket_timeout": None,
            # The channel's deadline holds for the connecting too; this bounds only its clean-up.
            "socket_connect_timeout": options["socket_timeout"],
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if options["socket_path"] is not None:
            self._type = UnixDomainSocketConnection
            self._address = str(options["socket_path"])
            self._arguments["path"] = self._address
            return
        host, port = url.hosts[0] if url.hosts else ("localhost", None)
        self._arguments.update(host=host, port=port or 6379)
        self._address = f"[{host}]:{port or 6379}" if ":" in host else f"{host}:{port or 6379}"
        if options["tls"]:
            self._type = SSLConnection
            self._arguments.update(
                ssl_ca_certs=options["tls_ca_file"],
                ssl_certfile=options["tls_cert_file"],
                ssl_keyfile=options["tls_key_file"],
                ssl_check_hostname=True,
            )

    def __str__(self) -> str:
        return self._address

    def connection(self) -> AbstractConnection:
        """Return a connection that is not connected yet."""
        connection: AbstractConnection = self._type(**self._arguments)
        return connection

    def channel(self, size: int, timeout: float) -> Channel:
        """Return a channel for the running event loop."""
        return Channel(self, size, timeout)


class Channel:
    """Sends commands and returns their replies. Belongs to the event loop that was running when it was made.

    :param server: what to connect to.
    :param size: how many connections there may be; further callers queue in order.
    :param timeout: seconds for one exchange, with queueing and connecting.
    """

    def __init__(self, server: Server, size: int, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._server = server
        self._timeout = timeout
        self._unmade = size
        self._idle: List[AbstractConnection] = []
        self._waiting: Deque[asyncio.Future[AbstractConnection]] = deque()
        self._closed = False
        self._end: Optional[AsyncGenerator[None, None]] = None

    async def run(self, commands: Sequence[Command], *, repeatable: bool) -> List[Reply]:
        """Return the replies to ``commands``. A script that the server does not know yet is sent in full.

        :param repeatable: whether the commands may be sent again on a new connection if the first one,
            which had been idle, turns out to be closed by the server.
        :raises BackendUnavailableError: if the server cannot be reached, does not answer before the deadline,
            or answers one of the commands with an error.
        :raises ForeignStoreError: if one of our keys holds something that we would not put there.
        """
        if self._end is None:
            # asyncio.run closes async generators before it closes the loop: the last chance to close sockets.
            self._end = self._closing_with_the_loop()
            await self._end.__anext__()
        try:
            # Before Python 3.12, asyncio.wait_for forgets a cancellation that comes together with the reply.
            with anyio.move_on_after(self._timeout):
                return await self._run(commands, repeatable)
        except (RedisError, OSError) as error:
            raise _translated(error, self._server) from error
        raise BackendUnavailableError(
            f"Redis at {self._server} did not answer within {self._timeout:g} s: "
            "check the server and the network, or raise socket_timeout"
        )

    async def _run(self, commands: Sequence[Command], repeatable: bool) -> List[Reply]:
        replies = await self._exchange(commands, repeatable)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            in_full: List[Command] = [("EVAL", _TEXTS[str(commands[i][1])], *commands[i][2:]) for i in unknown]
            for index, reply in zip(unknown, await self._exchange(in_full, repeatable)):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return replies

    def abort(self) -> None:
        """Cut every connection, those in use as soon as they are given back. Runs on the channel's loop."""
        self._closed = True
        self._cut_idle()

    async def close(self) -> None:
        """Cut every connection and let the sockets close."""
        self.abort()
        if self._end is not None:
            await self._end.aclose()

    async def _exchange(self, commands: Sequence[Command], repeatable: bool) -> List[Reply]:
        connection = await self._acquire()
        try:
            reused = connection.is_connected
            try:
                return await self._send(connection, commands)
            except RedisConnectionError:
                # The idle ones have probably met the same fate, a restart or a time-out of the server's.
                self._cut_idle()
                if not (reused and repeatable):
                    raise
                return await self._send(connection, commands)
        except BaseException:
            _cut(connection)
            raise
        finally:
            self._release(connection)

    async def _send(self, connection: AbstractConnection, commands: Sequence[Command]) -> List[Reply]:
        if not connection.is_connected:
            await connection.connect()  # type: ignore[no-untyped-call]  # the client's signature has no types
        writer = connection._writer
        assert writer is not None  # noqa: S101 - it is connected
        transport = writer.transport
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies: List[Reply] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
        except BaseException:
            # The client has disconnected by now, but politely: its transport would wait until everything that
            # was written is sent, on a silent server for ever.
            transport.abort()
            raise
        return replies

    async def _acquire(self) -> AbstractConnection:
        if self._idle:
            return self._idle.pop()
        if self._unmade:
            connection = self._server.connection()
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
            _cut(connection)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle.append(connection)

    def _cut_idle(self) -> None:
        for connection in self._idle:
            _cut(connection)

    async def _closing_with_the_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.abort()
            # The transports close their sockets in the loop's next turn.
            await asyncio.sleep(0)


def _cut(connection: AbstractConnection) -> None:
    """Close without waiting. A connection that was cut connects again when it is used."""
    # The client's own method is a coroutine, which cannot run in a callback of the loop.
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is not None:
        writer.transport.abort()


def _translated(error: Exception, server: Server) -> CacheError:
    reason = " ".join(str(error).split()) or type(error).__name__
    denied = isinstance(error, (AuthenticationError, NoPermissionError)) or reason.startswith(_DENIED)
    if denied or _DENIED_IN_SCRIPT in reason:
        return AccessDeniedError(
            f"Redis at {server} refuses access ({reason}): check the user's name, password and permissions"
        )
    if "WRONGTYPE" in reason:
        return ForeignStoreError(
            f"Redis at {server} holds foreign data under the names of this cache: choose another namespace"
        )
    return BackendUnavailableError(
        f"Redis at {server} is not available ({reason}): check that it runs, has memory left and takes writes"
    )
