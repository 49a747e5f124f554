"""Work on a stream of items, a bounded number at a time, looked up in bulk before it begins."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
)

__all__ = ["BREATH", "BULK", "stream"]

T = TypeVar("T")
F = TypeVar("F")
R = TypeVar("R")

BULK = 128
"""How many items are looked up together at most."""

BREATH = 16
"""How many items are prepared for a look-up, or worked on if they were found, before others have their turn."""

_BEGUN = 4
"""How many items that were not found are begun before others have their turn."""

_LOOK_UPS = 2
"""How many bulks are looked up and begun at the same time."""

Numbered = Tuple[int, R]


async def stream(
    items: Union[Iterable[T], AsyncIterable[T]],
    look_up: Callable[[Sequence[T]], Awaitable[Sequence[Optional[F]]]],
    work: Callable[[T, Optional[F]], Awaitable[R]],
    limit: int,
    *,
    in_order: bool = False,
) -> AsyncGenerator[Numbered[R], None]:
    """Iterate over the results of ``work`` for the items, each with the number of its item, from 0.

    At most ``limit`` items have been read and not yet given out as results, those included that wait for an earlier
    one. A slow asynchronous source holds up no result. What the source, ``look_up`` or ``work`` raises ends the
    iteration; whatever ends it cancels what is under way, and waits for it.

    :param look_up: returns for each of up to :data:`BULK` items what is known of it, or None.
    :param work: returns the result for an item and what was found for it. What was found is worked on one after the
        other, all else at the same time.
    :param in_order: give results out in the order of the items, not as they come.
    """
    streaming = _Stream(look_up, work, limit)
    plain: Optional[Iterator[T]] = None
    early: Dict[int, R] = {}
    try:
        if isinstance(items, AsyncIterable):
            streaming.read_ahead(items)
        else:
            plain = iter(items)
        while True:
            if plain is not None and streaming.read(plain):
                plain = None
            streaming.take()
            if not streaming.running:
                return
            for number, result in streaming.end(await streaming.finished.get()):
                if not in_order:
                    streaming.given += 1
                    yield number, result
                    continue
                early[number] = result
                while streaming.given in early:
                    following = streaming.given
                    streaming.given += 1
                    yield following, early.pop(following)
    finally:
        await streaming.cancel()


class _Stream(Generic[T, F, R]):
    """The items that were read and not yet given out."""

    def __init__(
        self,
        look_up: Callable[[Sequence[T]], Awaitable[Sequence[Optional[F]]]],
        work: Callable[[T, Optional[F]], Awaitable[R]],
        limit: int,
    ) -> None:
        self._look_up = look_up
        self._work = work
        self._limit = limit
        self._full = False
        self._gathered: Deque[T] = deque()
        self._read = 0
        self._taken = 0
        self._room = asyncio.Event()
        self._looking = asyncio.Semaphore(_LOOK_UPS)
        self._waiting = 0  # bulks that are still to be cut
        self.given = 0
        self.running: Set[asyncio.Future[List[Numbered[R]]]] = set()
        self.finished: asyncio.Queue[Optional[asyncio.Future[List[Numbered[R]]]]] = asyncio.Queue()

    def _has_room(self) -> bool:
        """Return whether to read on. Once it was full, there has to be room for several, so that they go together."""
        room = self._limit - (self._read - self.given)
        self._full = room < (max(1, self._limit // 4) if self._full else 1)
        return not self._full

    def _gather(self, item: T) -> None:
        self._gathered.append(item)
        self._read += 1

    def read(self, items: Iterator[T]) -> bool:
        """Read as many items as there is room for, and return whether there are no more."""
        while self._has_room():
            try:
                self._gather(next(items))
            except StopIteration:
                return True
        return False

    def read_ahead(self, items: AsyncIterable[T]) -> None:
        """Begin to read items as they come, as far as there is room for them."""

        async def read() -> List[Numbered[R]]:
            async for item in items:
                self._gather(item)
                if len(self._gathered) == 1:
                    self.finished.put_nowait(None)
                while not self._has_room():
                    self._room.clear()
                    await self._room.wait()
            return []

        self._start(read())

    def take(self) -> None:
        """Begin the work on what was read."""
        while len(self._gathered) > self._waiting * BULK:
            self._waiting += 1
            self._start(self._begin())

    def end(self, future: Optional[asyncio.Future[List[Numbered[R]]]]) -> Iterator[Numbered[R]]:
        """Iterate over the results of something that has ended."""
        if future is not None:
            self.running.discard(future)
            for numbered in future.result():
                yield numbered
                if self._full and self._has_room():
                    self._room.set()

    async def cancel(self) -> None:
        """Cancel what is under way, and wait for it."""
        # What is being begun may start more while it is waited for.
        while self.running:
            running = tuple(self.running)
            for future in running:
                future.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self.running.difference_update(running)

    def _start(self, awaitable: Awaitable[List[Numbered[R]]]) -> None:
        future = asyncio.ensure_future(awaitable)
        self.running.add(future)
        future.add_done_callback(self.finished.put_nowait)

    async def _begin(self) -> List[Numbered[R]]:
        async with self._looking:
            # What has come while this waited for its turn goes along.
            self._waiting -= 1
            bulk = [self._gathered.popleft() for _ in range(min(BULK, len(self._gathered)))]
            first = self._taken
            self._taken += len(bulk)
            found = await self._look_up(bulk)
            known: List[Tuple[int, T, F]] = []
            for number, (item, known_of) in enumerate(zip(bulk, found), first):
                if known_of is not None:
                    known.append((number, item, known_of))
                    continue
                self._start(self._one(number, item))
                if (number - first - len(known)) % _BEGUN == _BEGUN - 1:
                    await asyncio.sleep(0)
        results = []
        for count, (number, item, known_of) in enumerate(known, 1):
            results.append((number, await self._work(item, known_of)))
            if count % BREATH == 0:
                await asyncio.sleep(0)
        return results

    async def _one(self, number: int, item: T) -> List[Numbered[R]]:
        return [(number, await self._work(item, None))]
