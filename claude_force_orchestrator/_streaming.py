"""Work on a stream of items, so many at a time, with results as they come."""

from __future__ import annotations

import asyncio
from typing import (
    Any,
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Optional,
    Set,
    TypeVar,
    Union,
)

__all__ = ["as_completed"]

T = TypeVar("T")
R = TypeVar("R")


async def as_completed(
    items: Union[Iterable[T], AsyncIterable[T]], work: Callable[[int, T], Awaitable[R]], limit: int
) -> AsyncGenerator[R, None]:
    """Iterate over the results of ``work`` for the items, each given with its number, in the order they finish.

    At most ``limit`` items are worked on, and none is read before there is room for it. A slow asynchronous
    source holds up no result. What ``work`` or the source raises ends the iteration; whatever ends it cancels
    what is under way, and waits for it.
    """
    finished: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
    running: Set[asyncio.Future[Any]] = set()

    def start(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        future = asyncio.ensure_future(awaitable)
        running.add(future)
        future.add_done_callback(finished.put_nowait)
        return future

    source = items.__aiter__() if isinstance(items, AsyncIterable) else None
    plain = None if isinstance(items, AsyncIterable) else iter(items)
    reading: Optional[asyncio.Future[Any]] = None
    exhausted = False
    number = 0
    try:
        while True:
            while plain is not None and not exhausted and len(running) < limit:
                try:
                    item = next(plain)
                except StopIteration:
                    exhausted = True
                else:
                    start(work(number, item))
                    number += 1
            if source is not None and not exhausted and reading is None and len(running) < limit:
                reading = start(_next(source))
            if not running:
                return
            future = await finished.get()
            running.discard(future)
            if future is reading:
                reading = None
                try:
                    item = future.result()
                except StopAsyncIteration:
                    exhausted = True
                else:
                    start(work(number, item))
                    number += 1
            else:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _next(source: AsyncIterator[T]) -> T:
    return await source.__anext__()
