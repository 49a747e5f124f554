"""Coalescing: reads that meet in one turn of the event loop travel to the store together, and so do stores.

The first one of a turn goes at once, so whoever is alone waits for nobody. Those who come in the same turn go
with the next one, in a single bulk verb: one round trip, or one thread, serves them all.
"""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Dict, Generic, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar

from ._backend import Backend, Entry
from ._errors import CacheError, EntryTooLargeError, PartlyUnavailableError

__all__ = ["Coalescing"]

Q = TypeVar("Q")
A = TypeVar("A")

_MOST_CALLERS = 128
"""How many travel together at most: a bulk verb has the budget of a single one."""

_WOKEN_TOGETHER = 16
"""How many get their answer in one turn of the event loop: each has an entry to open, and others wait for that."""

_MOST_BYTES = 1 << 20
"""Values longer than this are stored alone, since others would wait for them."""

_Item = Tuple[str, bytes, Optional[float]]


class _Turns(Generic[Q, A]):
    """Gathers the questions that are asked in one turn of an event loop, for each loop separately."""

    def __init__(self, answer: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._answer = answer
        self._gathered: Dict[asyncio.AbstractEventLoop, List[Tuple[Q, asyncio.Future[A]]]] = {}
        self._tasks: Set[asyncio.Future[None]] = set()

    def begin(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether the caller is the first one of this turn, and so goes alone."""
        if loop in self._gathered:
            return False
        self._gathered[loop] = []
        loop.call_soon(self._send, loop)
        return True

    def ask(self, loop: asyncio.AbstractEventLoop, question: Q) -> asyncio.Future[A]:
        """Return the answer to come. To cancel it harms nobody else."""
        waiter: asyncio.Future[A] = loop.create_future()
        self._gathered[loop].append((question, waiter))
        return waiter

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        gathered = self._gathered.pop(loop)
        for start in range(0, len(gathered), _MOST_CALLERS):
            task = loop.create_task(self._serve(gathered[start : start + _MOST_CALLERS]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, asked: Sequence[Tuple[Q, asyncio.Future[A]]]) -> None:
        asked = [(question, waiter) for question, waiter in asked if not waiter.done()]
        try:
            answers = await self._answer([question for question, _ in asked]) if asked else []
            for number, ((_, waiter), answer) in enumerate(zip(asked, answers), 1):
                if not waiter.done():
                    waiter.set_result(answer)
                if number % _WOKEN_TOGETHER == 0:
                    await asyncio.sleep(0)
        except (PartlyUnavailableError, EntryTooLargeError):
            # It concerns some of them; each one's own question tells which.
            await asyncio.gather(*(self._serve_one(question, waiter) for question, waiter in asked))
        except Exception as error:  # noqa: BLE001 - goes to those who wait
            for _, waiter in asked:
                if not waiter.done():
                    waiter.set_exception(_copy(error))
        except BaseException:
            for _, waiter in asked:
                waiter.cancel()
            raise

    async def _serve_one(self, question: Q, waiter: asyncio.Future[A]) -> None:
        try:
            (answer,) = await self._answer([question])
        except Exception as error:  # noqa: BLE001 - goes to those who wait
            if not waiter.done():
                waiter.set_exception(error)
        else:
            if not waiter.done():
                waiter.set_result(answer)


def _copy(error: Exception) -> Exception:
    """Return an error for one of several callers. One that all of them raise would grow with each."""
    return type(error)(*error.args) if isinstance(error, CacheError) else error


class Coalescing:
    """Reads and stores of a backend, gathered.

    :param read: calls a verb within the budget of a look-up.
    :param write: calls a verb within the budget of a store.
    """

    def __init__(
        self,
        backend: Backend,
        read: Callable[[Callable[[], Awaitable[Mapping[str, Entry]]]], Awaitable[Mapping[str, Entry]]],
        write: Callable[[Callable[[], Awaitable[int]]], Awaitable[int]],
    ) -> None:
        self._backend = backend
        self._read = read
        self._write = write
        self._reads: _Turns[Sequence[str], Mapping[str, Entry]] = _Turns(self._read_all)
        self._stores: _Turns[_Item, int] = _Turns(self._store_all)

    def get_many(self, keys: Sequence[str]) -> Awaitable[Mapping[str, Entry]]:
        """Return the live entries among ``keys``, and maybe others. See :meth:`Backend.get_many`.

        :raises BackendUnavailableError: if the store is not available.
        """
        loop = asyncio.get_running_loop()
        if self._reads.begin(loop):
            return self._read(lambda: self._backend.get_many(keys))
        return self._reads.ask(loop, keys)

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """Store an entry. See :meth:`Backend.set`.

        :returns: how many other entries had to go, those of all who travelled together counted once.
        :raises EntryTooLargeError: if it does not fit; the predecessor is gone.
        :raises BackendUnavailableError: if the store is not available.
        """
        loop = asyncio.get_running_loop()
        if len(value) > _MOST_BYTES or self._stores.begin(loop):
            return await self._write(lambda: self._backend.set(key, value, ttl=ttl))
        return await self._stores.ask(loop, (key, value, ttl))

    async def _read_all(self, asked: Sequence[Sequence[str]]) -> Sequence[Mapping[str, Entry]]:
        keys = list(dict.fromkeys(key for keys in asked for key in keys))
        found = await self._read(lambda: self._backend.get_many(keys))
        return [found] * len(asked)

    async def _store_all(self, asked: Sequence[_Item]) -> Sequence[int]:
        items = {key: (value, ttl) for key, value, ttl in asked}  # of two for one key the later one
        evicted = await self._write(lambda: self._backend.set_many(items))
        return [evicted] + [0] * (len(asked) - 1)
