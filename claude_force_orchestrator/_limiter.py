"""The concurrency limit: at most so many at once, in whatever event loops and threads they run."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Deque, Optional

__all__ = ["ConcurrencyLimiter", "Waiter"]


class Waiter:
    """A task that waits for something that may come from another thread."""

    __slots__ = ("abandoned", "future", "granted", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.granted = False
        self.abandoned = False

    def wake(self) -> bool:
        """Let it go on, from any thread, and return whether it will: not if its event loop is closed."""
        try:
            if _here() is self.loop:
                self.loop.call_soon(self._resolve)  # without the system calls that wake another thread's loop
            else:
                self.loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:
            return False
        return True

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


def _here() -> Optional[asyncio.AbstractEventLoop]:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class ConcurrencyLimiter:
    """Slots that are given out first come, first served, across event loops and threads.

    asyncio's own semaphore belongs to one event loop, and so cannot hold a limit for an orchestrator that is
    used from several. The lock inside is held for a few instructions, never while waiting.

    :param limit: how many slots there are.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._in_use = 0
        self._waiters: Deque[Waiter] = deque()

    @property
    def limit(self) -> int:
        """How many slots there are. A lower limit takes no slot away: it is reached as slots are given back."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._limit = limit
            self._grant()

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        with self._lock:
            return sum(not waiter.abandoned for waiter in self._waiters)

    @property
    def crowded(self) -> bool:
        """Whether one more would have to wait."""
        return self._in_use >= self._limit

    async def acquire(self) -> None:
        """Take a slot, or wait for one. A caller that is cancelled meanwhile holds none afterwards."""
        with self._lock:
            # Whoever finds a free slot overtakes nobody: while anybody waits, no slot is free.
            if self._in_use < self._limit:
                self._in_use += 1
                return
            waiter = Waiter()
            self._waiters.append(waiter)
        try:
            await waiter.future
        except BaseException:
            # GeneratorExit too: an event loop that is closed with this task pending must not keep the slot.
            with self._lock:
                waiter.abandoned = True
                granted = waiter.granted
            if granted:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, to the one who has waited longest. May be called from any thread."""
        with self._lock:
            self._in_use -= 1
            self._grant()

    def _grant(self) -> None:
        while self._waiters and self._in_use < self._limit:
            waiter = self._waiters.popleft()
            if not waiter.abandoned and waiter.wake():
                waiter.granted = True
                self._in_use += 1
