"""Relays: one streamed reply that is under way, for everybody in an event loop who asked for it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Awaitable, Callable, Deque, Generic, Optional, Set, TypeVar, Union

from ._exchange import Headers

__all__ = ["Broadcast", "Listener", "Relay"]

T = TypeVar("T")


class Broadcast:
    """A body that comes piece by piece, for any number of listeners, each from the beginning.

    Above ``limit`` bytes it is no longer kept: nobody else may listen, and the next piece is awaited only when
    those who do have taken the earlier ones, so that memory stays bounded.

    :param headers: the headers of the reply.
    :param limit: in bytes.
    :ivar excessive: whether the limit was exceeded.
    """

    def __init__(self, headers: Headers, limit: int) -> None:
        self.headers = headers
        self.excessive = False
        self._limit = limit
        self._pieces: Deque[bytes] = deque()
        self._first = 0  # the number of the first piece that is kept
        self._held = 0
        self._ended = False
        self._error: Optional[Exception] = None
        self._listeners: Set[Listener] = set()
        self._changed = asyncio.Event()

    @property
    def body(self) -> bytes:
        """Everything so far; of use only unless :attr:`excessive`."""
        return b"".join(self._pieces)

    async def send(self, piece: bytes) -> None:
        """Add a piece. Waits for slow listeners, but only above the limit."""
        self._pieces.append(piece)
        self._held += len(piece)
        self.excessive = self.excessive or self._held > self._limit
        self._notify()
        while self.excessive and self._held > self._limit and self._listeners:
            self._drop()
            if self._held > self._limit:
                await self._changed.wait()

    def end(self, error: Optional[Exception] = None) -> None:
        """End it, with the error that listeners get after the last piece, if there is one."""
        self._ended = True
        self._error = error
        self._notify()

    def listen(self) -> Listener:
        """Return a listener at the beginning. Not above the limit."""
        listener = Listener(self)
        self._listeners.add(listener)
        return listener

    async def _piece(self, listener: Listener) -> Optional[bytes]:
        while True:
            at = listener.position - self._first
            if at < len(self._pieces):
                listener.position += 1
                if self.excessive:
                    piece = self._pieces[at]
                    self._drop()
                    self._notify()
                    return piece
                return self._pieces[at]
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._changed.wait()

    def _forget(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        if self.excessive:
            self._notify()

    def _drop(self) -> None:
        """Drop what every listener has taken."""
        least = min((listener.position for listener in self._listeners), default=0)
        while self._first < least:
            self._held -= len(self._pieces.popleft())
            self._first += 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Listener:
    """One who listens to a broadcast."""

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self.position = 0

    async def next(self) -> Optional[bytes]:
        """Return the next piece as soon as it has come, or None at the end.

        :raises Exception: what the broadcast ended with.
        """
        return await self._broadcast._piece(self)

    def close(self) -> None:
        """Listen no longer."""
        self._broadcast._forget(self)


class Relay(Generic[T]):
    """A piece of work in a task of its own that ends with a result, and may broadcast before.

    When one who joined leaves, nothing changes for the others; when the last one does, the work is cancelled.

    :param work: gets the relay, may :meth:`begin` a broadcast, and returns the result.
    :param forget: called with the relay when nobody else may join.
    """

    def __init__(self, work: Callable[[Relay[T]], Awaitable[T]], forget: Callable[[Relay[T]], None]) -> None:
        self._forget = forget
        self._joined = 0
        self._broadcast: Optional[Broadcast] = None
        self._settled = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(work))
        self._task.add_done_callback(self._land)

    async def _run(self, work: Callable[[Relay[T]], Awaitable[T]]) -> T:
        return await work(self)

    def _land(self, task: asyncio.Future[T]) -> None:
        self._forget(self)
        self._settled.set()
        if not task.cancelled():
            task.exception()  # whoever joined has heard of it, or listened to the broadcast instead

    @property
    def open(self) -> bool:
        """Whether another one may join."""
        return self._broadcast is None or not self._broadcast.excessive

    def begin(self, broadcast: Broadcast) -> None:
        """Let everybody who joined, and who joins from here on, listen. Of no effect once they have the result."""
        if not self._settled.is_set():
            self._broadcast = broadcast
            self._settled.set()

    async def join(self) -> Union[Broadcast, T]:
        """Return the broadcast as soon as it begins, or the result where there was none. Ends with :meth:`leave`.

        :raises Exception: what the work raised before there was a broadcast. One who gets it has left.
        """
        self._joined += 1
        try:
            await self._settled.wait()
            return self._task.result() if self._broadcast is None else self._broadcast
        except BaseException:
            self.leave()
            raise

    async def finish(self) -> None:
        """Return when the work is done, whatever came of it."""
        await asyncio.wait([self._task])

    def leave(self) -> None:
        """Take back one :meth:`join`."""
        self._joined -= 1
        if not self._joined and not self._task.done():
            self._forget(self)
            self._task.cancel()
