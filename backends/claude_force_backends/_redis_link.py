"""One connection to a Redis server: commands go out in one write, and replies are told apart as they come.

redis-py makes the connection, with TLS, the login and the database. Then this protocol takes its transport over: a
command through redis-py's streams, with a time-out for each read, costs about twice as much.
"""

from __future__ import annotations

import asyncio
from typing import Callable, List, Optional, Sequence, Tuple, Union

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["Argument", "Command", "Link", "Reply", "cut"]

Argument = Union[str, bytes, int]
Command = Tuple[Argument, ...]
Reply = object
"""What the server said to a command; an error is a ``ResponseError``."""

_STATUS, _ERROR, _NUMBER, _BULK, _LIST = b"+-:$*"
_LONGEST_LINE = 1 << 16
_LONGEST_BULK = 1 << 29
_MOST_ITEMS = 1 << 32
_NO_ITEMS = (b"0", b"-1")
_DEEPEST = 8
"""How deep lists may lie in lists; ours lie two deep."""


class Link(asyncio.Protocol):
    """A connection for one caller at a time. One that was cut or lost is of no more use."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._loop = asyncio.get_running_loop()
        writer = connection._writer
        assert writer is not None  # noqa: S101 - it is connected
        # Kept while the transport is open: it closes with the stream's writer when nobody holds that.
        self._connection: Optional[AbstractConnection] = connection
        self._transport = writer.transport
        self._transport.set_protocol(self)
        self._parse_error: Callable[[str], Reply] = connection._parser.parse_error
        self._waiter: Optional[asyncio.Future[List[Reply]]] = None
        self._expected = 0
        self._replies: List[Reply] = []
        self._end = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None
        # What has come of a reply that is not there yet: its bytes, how many more have to come before it is worth a
        # look, and the lists that it lies in, each with the number of items that it lacks.
        self._chunks: List[bytes] = []
        self._missing = 0
        self._lists: List[Tuple[List[Reply], int]] = []

    @classmethod
    async def connect(cls, connection: AbstractConnection) -> Link:
        """Return the link over a connection that is not connected yet. The caller bounds the time.

        :raises RedisError: or OSError, if that does not work.
        """
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # the client's signature has no types
            return cls(connection)
        except (ValueError, RecursionError) as error:
            cut(connection)
            raise _nonsense(error) from None
        except BaseException:
            cut(connection)
            raise

    @property
    def works(self) -> bool:
        """Whether the connection is there, as far as is known."""
        return self._connection is not None

    async def ask(self, commands: Sequence[Command], end: float) -> List[Reply]:
        """Return the replies to commands. When it is cancelled, the link is cut.

        :param end: the time of the event loop at which to give up.
        :raises RedisTimeoutError: if that comes before the replies.
        :raises RedisError: if the connection is lost, or what comes is not what Redis says.
        """
        if self._connection is None:
            raise RedisConnectionError("the connection was lost")
        waiter: asyncio.Future[List[Reply]] = self._loop.create_future()
        self._waiter = waiter
        self._expected = len(commands)
        self._end = end
        # It lives through many exchanges and looks when it rings: one for each would cost a tenth of the exchange.
        if self._timer is None or end < self._timer.when():
            self._ring_at(end)
        self._transport.write(_packed(commands))
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # the caller may have been cancelled before it could hear of it
            self.cut()
            raise

    def cut(self) -> None:
        """Close without waiting."""
        self._lose(RedisConnectionError("the connection was cut"))

    def data_received(self, data: bytes) -> None:
        """See :meth:`asyncio.Protocol.data_received`."""
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks = []
        try:
            self._read(data)
        except ValueError as error:
            self._lose(_nonsense(error))

    def connection_lost(self, error: Optional[Exception]) -> None:
        """See :meth:`asyncio.Protocol.connection_lost`."""
        self._lose(RedisConnectionError(str(error) if error else "the server closed the connection"))

    def _lose(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        waiter, self._waiter = self._waiter, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if connection is not None:
            cut(connection)
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _ring_at(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(end, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._end:
            self._ring_at(self._end)
        else:
            self._lose(RedisTimeoutError("no answer"))

    def _read(self, data: bytes) -> None:
        """Tell replies apart, as far as they have come.

        :raises ValueError: if it is not what Redis says.
        """
        at = 0
        while at < len(data):
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > _LONGEST_LINE:
                    raise ValueError("a line without an end")
                self._await(data[at:], 1)
                return
            kind, text, after = data[at], data[at + 1 : end], end + 2
            if kind == _BULK and text != b"-1":
                start, after = after, after + _length(text, _LONGEST_BULK) + 2
                if after > len(data):
                    self._await(data[at:], after - len(data))
                    return
                self._put(data[start : after - 2])
            elif kind == _LIST and text not in _NO_ITEMS:
                if len(self._lists) == _DEEPEST:
                    raise ValueError("lists of lists of lists")
                self._lists.append(([], _length(text, _MOST_ITEMS)))
            else:
                self._put(self._simple(kind, text))
            at = after

    def _await(self, part: bytes, missing: int) -> None:
        self._chunks = [part]
        self._missing = missing

    def _simple(self, kind: int, text: bytes) -> Reply:
        if kind == _NUMBER:
            return int(text)
        if kind == _STATUS:
            return text
        if kind == _ERROR:
            return self._parse_error(text.decode("utf-8", "replace"))
        if kind == _LIST and text == b"0":
            return []
        if kind in (_LIST, _BULK):
            return None
        raise ValueError("another protocol")

    def _put(self, reply: Reply) -> None:
        """Put a reply into the list that it belongs to, if it belongs to one."""
        while self._lists:
            if isinstance(reply, Exception):
                raise ValueError("an error in a list")  # only transactions have that
            items, length = self._lists[-1]
            items.append(reply)
            if len(items) < length:
                return
            self._lists.pop()
            reply = items
        self._take(reply)

    def _take(self, reply: Reply) -> None:
        """Take the reply to one command."""
        if self._waiter is None:
            raise ValueError("a reply to nothing")
        if isinstance(reply, RedisConnectionError):  # the server is busy, or full
            self._lose(reply)
            return
        self._replies.append(reply)
        if len(self._replies) == self._expected:
            waiter, self._waiter = self._waiter, None
            replies, self._replies = self._replies, []
            if not waiter.done():
                waiter.set_result(replies)


def _packed(commands: Sequence[Command]) -> bytes:
    parts: List[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument.encode() if isinstance(argument, str) else argument
            if isinstance(data, int):
                data = b"%d" % data
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _length(text: bytes, most: int) -> int:
    length = int(text)
    if not 0 <= length <= most:
        raise ValueError("a length out of bounds")
    return length


def _nonsense(error: Exception) -> InvalidResponse:
    """Return the error for a length that is none, or a line or a list without end."""
    return InvalidResponse(f"it answers what Redis does not: {type(error).__name__}")


def cut(connection: AbstractConnection) -> None:
    """Close without waiting. A connection that was cut connects again when it is used."""
    # The client's own method is a coroutine, which cannot run in a callback of the loop.
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is not None:
        writer.transport.abort()
