"""Threads: a blocking backend, driven from the event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import (
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
)

from ._backend import Backend, Entry, EntryInfo, SyncBackend, Usage
from ._errors import BackendClosedError, BackendUnavailableError

__all__ = ["ThreadedBackend", "Workers"]

T = TypeVar("T")

_SCAN_CHUNK = 256


class Workers:
    """A bounded pool of threads that any event loop may use. A caller that is cancelled leaves its call running."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"claude-force-cache-{name}")
        self._process = os.getpid()
        self._running: Set[Future[Any]] = set()
        self._closed = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what ``function(*args)`` returns in a thread.

        :raises BackendClosedError: if the pool is closed.
        :raises BackendUnavailableError: if this process was forked from the one that made the pool.
        """
        if self._closed:
            raise BackendClosedError("the cache is closed: open another one")
        if os.getpid() != self._process:
            # Threads stay behind in a fork, and a call that is handed to them would never return.
            raise BackendUnavailableError("the cache was opened before this process was forked: open one in each")
        future = self._pool.submit(function, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    async def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Let the calls that are running finish, call ``last`` in one of the threads, and end all threads."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._process:
            return

        def finish() -> None:
            wait(list(self._running))
            try:
                self._pool.submit(last).result()
            finally:
                self._pool.shutdown()

        closer = ThreadPoolExecutor(1)
        try:
            await asyncio.wrap_future(closer.submit(finish))
        finally:
            closer.shutdown(wait=False)


class ThreadedBackend(Backend):
    """A :class:`SyncBackend` with the interface of a :class:`Backend`.

    A verb whose caller is cancelled before a thread took it up never happens; after that it runs to its end.
    """

    def __init__(self, backend: SyncBackend) -> None:
        self.capabilities = backend.capabilities
        self._backend = backend
        self._workers = Workers(backend.threads, type(backend).__name__)

    async def open(self) -> None:
        await self._workers.run(self._backend.open)
        # Some weaknesses are known only once the store was asked.
        self.capabilities = self._backend.capabilities

    async def close(self) -> None:
        await self._workers.close(self._backend.close)

    async def get(self, key: str) -> Optional[Entry]:
        return await self._workers.run(self._backend.get, key)

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return await self._workers.run(self._backend.get_many, keys)

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        return await self._workers.run(partial(self._backend.set, key, value, ttl=ttl))

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return await self._workers.run(self._backend.set_many, items)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        return await self._workers.run(partial(self._backend.add, key, value, ttl=ttl))

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await self._workers.run(partial(self._backend.delete, key, version=version))

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await self._workers.run(partial(self._backend.touch, key, ttl=ttl, version=version))

    async def scan(self) -> AsyncIterator[EntryInfo]:
        iterator = await self._workers.run(lambda: iter(self._backend.scan()))

        def take() -> List[EntryInfo]:
            return list(islice(iterator, _SCAN_CHUNK))

        while True:
            chunk = await self._workers.run(take)
            if not chunk:
                return
            for info in chunk:
                yield info

    async def usage(self) -> Usage:
        return await self._workers.run(self._backend.usage)

    async def clear(self) -> int:
        return await self._workers.run(self._backend.clear)

    async def ping(self) -> None:
        await self._workers.run(self._backend.ping)
