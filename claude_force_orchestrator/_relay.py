"""Relays: one streamed reply that is under way, for everybody in an event loop who asked for it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Awaitable, Callable, Deque, Dict, Generic, Optional, Set, TypeVar

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
        self._positions: Dict[object, int] = {}
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
        while self.excessive and self._held > self._limit and self._positions:
            await self._changed.wait()

    def end(self, error: Optional[Exception] = None) -> None:
        """End it, with the error that listeners get after the last piece, if there is one."""
        self._ended = True
        self._error = error
        self._notify()

    def admit(self, listener: object) -> None:
        """Let one listen from the beginning. Not above the limit."""
        self._positions[listener] = 0

    def dismiss(self, listener: object) -> None:
        """Wait for this one no longer."""
        self._positions.pop(listener, None)
        self._drop()

    async def next(self, listener: object) -> Optional[bytes]:
        """Return the listener's next piece as soon as it has come, or None at the end.

        :raises Exception: what the broadcast ended with.
        """
        while True:
            position = self._positions[listener]
            if position - self._first < len(self._pieces):
                piece = self._pieces[position - self._first]
                self._positions[listener] = position + 1
                self._drop()
                return piece
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._changed.wait()

    def _drop(self) -> None:
        """Above the limit, drop what every listener has taken."""
        if not self.excessive:
            return
        least = min(self._positions.values(), default=self._first + len(self._pieces))
        while self._first < least:
            self._held -= len(self._pieces.popleft())
            self._first += 1
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Relay(Generic[T]):
    """A piece of work in a task of its own that ends with a result, and may broadcast before.

    When one who joined leaves, nothing changes for the others; when the last one does, the work is cancelled.

    :param work: gets the relay, may :meth:`begin` a broadcast, and returns the result.
    :param forget: called with the relay when nobody else may join.
    """

    def __init__(self, work: Callable[[Relay[T]], Awaitable[T]], forget: Callable[[Relay[T]], None]) -> None:
        self.broadcast: Optional[Broadcast] = None
        self._forget = forget
        self._joined: Set[Listener[T]] = set()
        self._settled = asyncio.Event()
        self.task: asyncio.Future[T] = asyncio.ensure_future(self._run(work))
        self.task.add_done_callback(self._land)

    async def _run(self, work: Callable[[Relay[T]], Awaitable[T]]) -> T:
        return await work(self)

    def _land(self, task: asyncio.Future[T]) -> None:
        self._forget(self)
        self._settled.set()
        if not task.cancelled():
            task.exception()  # whoever joined hears of it, or of how the broadcast ended

    @property
    def open(self) -> bool:
        """Whether another one may join."""
        return self.broadcast is None or not self.broadcast.excessive

    def begin(self, broadcast: Broadcast) -> None:
        """Let everybody who joined, and who joins from here on, listen. Of no effect once there is a result."""
        if not self._settled.is_set():
            self.broadcast = broadcast
            for listener in self._joined:
                broadcast.admit(listener)
            self._settled.set()

    def retire(self) -> None:
        """Let nobody else join."""
        self._forget(self)

    async def join(self) -> Listener[T]:
        """Return as soon as there is a broadcast, or a result without one.

        :raises Exception: what the work raised, if there was no broadcast.
        """
        listener = Listener(self)
        self._joined.add(listener)
        if self.broadcast is not None:
            self.broadcast.admit(listener)
        try:
            await self._settled.wait()
            if self.broadcast is None:
                self.task.result()
        except BaseException:
            self.leave(listener)
            raise
        return listener

    def leave(self, listener: Listener[T]) -> None:
        """Take back a :meth:`join`. Idempotent."""
        if listener not in self._joined:
            return
        self._joined.remove(listener)
        if self.broadcast is not None:
            self.broadcast.dismiss(listener)
        if not self._joined and not self.task.done():
            self._forget(self)
            self.task.cancel()


class Listener(Generic[T]):
    """One who joined a relay: the body that it hears."""

    def __init__(self, relay: Relay[T]) -> None:
        self._relay = relay

    async def next(self) -> Optional[bytes]:
        """Return the next piece, or None when there is no more and the work is done, whatever came of it."""
        broadcast = self._relay.broadcast
        piece = None if broadcast is None else await broadcast.next(self)
        if piece is None:
            await asyncio.wait([self._relay.task])
        return piece

    async def close(self) -> None:
        """Leave."""
        self._relay.leave(self)
