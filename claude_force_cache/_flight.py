"""Single flight: callers that ask for the same thing at the same time share one piece of work."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Awaitable, Callable, Dict, Generic, List, MutableMapping, Set, Tuple, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["Flight", "SingleFlight"]

T = TypeVar("T")

_aboard: ContextVar[Tuple[object, ...]] = ContextVar("claude_force_cache_flights", default=())
"""The flights whose work the running task is a part of."""


class _WorkCancelledError(Exception):
    """Raised to waiters when the work was cancelled by something else than their leaving."""


class Flight(Generic[T]):
    """One piece of work in a task of its own, and those who wait for it.

    When a waiter is cancelled the others still get the result; when the last one is, so is the work, unless
    it has called :meth:`commit`.
    """

    def __init__(self, key: str, flights: Dict[str, Flight[T]], work: Callable[[Flight[T]], Awaitable[T]]) -> None:
        self.key = key
        self._flights = flights
        self._waiters: List[asyncio.Future[T]] = []
        self._committed = False
        self.task = asyncio.ensure_future(self._run(work))
        self.task.add_done_callback(self._land)
        flights[key] = self

    async def _run(self, work: Callable[[Flight[T]], Awaitable[T]]) -> T:
        _aboard.set((*_aboard.get(), self))  # the task's own context
        return await work(self)

    def commit(self) -> None:
        """Say that from here on the work is worth finishing even if nobody waits for it."""
        self._committed = True

    def depart(self) -> int:
        """Let nobody else join, and return how many wait."""
        self._leave()
        return len(self._waiters)

    async def join(self) -> T:
        """Return the result of the work.

        :raises Exception: what the work raised.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # this caller may have been cancelled before it could hear of it
            if not self._waiters and not self._committed:
                self._leave()
                self.task.cancel()

    def _leave(self) -> None:
        if self._flights.get(self.key) is self:
            del self._flights[self.key]

    def _land(self, task: asyncio.Future[T]) -> None:
        self._leave()
        error = _WorkCancelledError() if task.cancelled() else task.exception()
        for waiter in self._waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(task.result())
            else:
                waiter.set_exception(error)


class SingleFlight(Generic[T]):
    """The flights of one cache, for every event loop separately."""

    def __init__(self) -> None:
        self._loops: MutableMapping[asyncio.AbstractEventLoop, Dict[str, Flight[T]]] = WeakKeyDictionary()
        # Also of flights that nobody can join any more: what was cancelled may still be giving back its lease.
        self._tasks: MutableMapping[asyncio.AbstractEventLoop, Set[asyncio.Future[T]]] = WeakKeyDictionary()

    async def run(self, key: str, work: Callable[[Flight[T]], Awaitable[T]]) -> Tuple[T, bool]:
        """Return the result of ``work`` for ``key``, and whether this caller's own ``work`` made it.

        Whoever comes first starts the work, the others wait. An error goes to the one who started it; each of
        the others tries once more, again all together, and gets the error only if that fails too.

        :raises Exception: what the work raised.
        :raises RuntimeError: if the caller is itself a part of that work.
        """
        flights = self._loops.setdefault(asyncio.get_running_loop(), {})
        retried = False
        while True:
            flight = flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._launch(key, flights, work)
            elif flight in _aboard.get():
                raise RuntimeError("a computation asks for the answer that it computes, and would wait for itself")
            try:
                return await flight.join(), leads
            except _WorkCancelledError:
                if leads or retried:
                    raise asyncio.CancelledError from None
            except Exception:
                if leads or retried:
                    raise
            retried = True

    def start(self, key: str, work: Callable[[Flight[T]], Awaitable[T]]) -> None:
        """Begin ``work`` for ``key`` without waiting for it, unless it is under way. It is done to its end."""
        flights = self._loops.setdefault(asyncio.get_running_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = self._launch(key, flights, work)
        flight.commit()

    async def settle(self) -> None:
        """Wait until the work that is under way in this event loop is done, also what was cancelled."""
        tasks = tuple(self._tasks.get(asyncio.get_running_loop(), ()))
        if tasks:
            await asyncio.wait(tasks)

    def _launch(self, key: str, flights: Dict[str, Flight[T]], work: Callable[[Flight[T]], Awaitable[T]]) -> Flight[T]:
        flight = Flight(key, flights, work)
        tasks = self._tasks.setdefault(asyncio.get_running_loop(), set())
        tasks.add(flight.task)
        flight.task.add_done_callback(tasks.discard)
        return flight
