"""The blocking twin of the cache, for programs without an event loop."""

from __future__ import annotations

import atexit
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import (
    Awaitable,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

import anyio
from anyio import to_thread
from anyio.from_thread import BlockingPortal

from ._backend import Usage
from ._cache import _DEFAULT, TTL, Cache
from ._errors import BackendClosedError
from ._keys import KeyPart
from ._results import CacheEntry, CacheStats, Missing, StoredEntry, VerifyReport

__all__ = ["BlockingCache"]

V = TypeVar("V")
T = TypeVar("T")


@contextmanager
def _event_loop() -> Iterator[BlockingPortal]:
    """Run an event loop in a thread, as anyio's ``start_blocking_portal`` does, but in a daemon.

    A program that ends without having closed the cache would wait for another kind for ever.
    """
    started: Future[BlockingPortal] = Future()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    thread = threading.Thread(target=anyio.run, args=(serve,), name="claude-force-cache-loop", daemon=True)
    thread.start()
    portal = started.result()
    try:
        yield portal
    finally:
        portal.start_task_soon(portal.stop)
        thread.join()


class BlockingCache(Generic[V]):
    """A :class:`Cache` whose verbs block, on an event loop in a thread of its own. Safe for threads.

    ``with BlockingCache(open_cache(...)) as cache:`` opens and closes it. Each verb returns and raises what
    the verb of the same name of :class:`Cache` does, and :class:`BackendClosedError` outside of ``with``. The end of
    the program closes one that was left open.
    """

    def __init__(self, cache: Cache[V]) -> None:
        self._cache = cache
        self._stack = ExitStack()
        self._portal: Optional[BlockingPortal] = None

    def __enter__(self) -> BlockingCache[V]:
        with ExitStack() as stack:
            portal = stack.enter_context(_event_loop())
            stack.enter_context(portal.wrap_async_context_manager(self._cache))
            self._stack = stack.pop_all()
        self._portal = portal
        atexit.register(self._stack.close)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._portal = None
        atexit.unregister(self._stack.close)
        self._stack.close()

    @property
    def cache(self) -> Cache[V]:
        """The cache itself. Its verbs belong to the event loop of this twin, see :meth:`run`."""
        return self._cache

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what ``work`` returns, awaited in the event loop that the cache runs in.

        :raises BackendClosedError: outside of ``with``.
        :raises Exception: what ``work`` raises.
        """
        return self._loop.call(work)

    def get(self, key: KeyPart) -> Union[V, Missing]:
        """See :meth:`Cache.get`."""
        return self._loop.call(self._cache.get, key)

    def get_many(self, keys: Sequence[KeyPart]) -> Dict[int, V]:
        """See :meth:`Cache.get_many`."""
        return self._loop.call(self._cache.get_many, keys)

    def get_entries(self, keys: Sequence[KeyPart], *, max_age: Optional[float] = None) -> List[Optional[CacheEntry[V]]]:
        """See :meth:`Cache.get_entries`."""
        return self._loop.call(lambda: self._cache.get_entries(keys, max_age=max_age))

    def get_entry(
        self,
        key: KeyPart,
        *,
        max_age: Optional[float] = None,
        usable_if: Optional[Callable[[V], bool]] = None,
    ) -> Optional[CacheEntry[V]]:
        """See :meth:`Cache.get_entry`."""
        return self._loop.call(lambda: self._cache.get_entry(key, max_age=max_age, usable_if=usable_if))

    def set(self, key: KeyPart, value: V, *, ttl: TTL = _DEFAULT, tags: Iterable[str] = ()) -> bool:
        """See :meth:`Cache.set`."""
        return self._loop.call(lambda: self._cache.set(key, value, ttl=ttl, tags=tags))

    def get_or_compute(
        self,
        key: KeyPart,
        compute: Callable[[], V],
        *,
        ttl: TTL = _DEFAULT,
        store_if: Optional[Callable[[V], bool]] = None,
    ) -> V:
        """See :meth:`Cache.get_or_compute`; ``compute`` runs in a worker thread and may block."""
        return self.fetch(key, compute, ttl=ttl, store_if=store_if).value

    def fetch(
        self,
        key: KeyPart,
        compute: Callable[[], V],
        *,
        ttl: TTL = _DEFAULT,
        max_age: Optional[float] = None,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        stale_if: Optional[Callable[[Exception], bool]] = None,
        tags: Iterable[str] = (),
        store_if: Optional[Callable[[V], bool]] = None,
        usable_if: Optional[Callable[[V], bool]] = None,
        refresh: bool = False,
        refresh_ahead: float = 0.0,
    ) -> CacheEntry[V]:
        """See :meth:`Cache.fetch`; ``compute`` runs in a worker thread and may block."""

        async def in_thread() -> V:
            return await to_thread.run_sync(compute)

        return self._loop.call(
            lambda: self._cache.fetch(
                key,
                in_thread,
                ttl=ttl,
                max_age=max_age,
                stale_while_revalidate=stale_while_revalidate,
                stale_if_error=stale_if_error,
                stale_if=stale_if,
                tags=tags,
                store_if=store_if,
                usable_if=usable_if,
                refresh=refresh,
                refresh_ahead=refresh_ahead,
            )
        )

    def invalidate(self, *tags: str) -> int:
        """See :meth:`Cache.invalidate`."""
        return self._loop.call(lambda: self._cache.invalidate(*tags))

    def stored_key(self, key: KeyPart) -> str:
        """See :meth:`Cache.stored_key`."""
        return self._loop.call(self._cache.stored_key, key)

    def delete(self, key: KeyPart) -> bool:
        """See :meth:`Cache.delete`."""
        return self._loop.call(self._cache.delete, key)

    def delete_stored(self, key: str) -> bool:
        """See :meth:`Cache.delete_stored`."""
        return self._loop.call(self._cache.delete_stored, key)

    def get_stored(self, key: str) -> Optional[StoredEntry[V]]:
        """See :meth:`Cache.get_stored`."""
        return self._loop.call(self._cache.get_stored, key)

    def clear(self) -> int:
        """See :meth:`Cache.clear`."""
        return self._loop.call(self._cache.clear)

    def usage(self) -> Usage:
        """See :meth:`Cache.usage`."""
        return self._loop.call(self._cache.usage)

    def stats(self) -> CacheStats:
        """See :meth:`Cache.stats`."""
        return self._cache.stats()

    def scan(self) -> Iterator[StoredEntry[V]]:
        """See :meth:`Cache.scan`."""
        iterator = self._cache.scan()
        while True:
            try:
                yield self._loop.call(iterator.__anext__)
            except StopAsyncIteration:
                return

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """See :meth:`Cache.verify`."""
        return self._loop.call(lambda: self._cache.verify(repair=repair))

    def ping(self) -> None:
        """See :meth:`Cache.ping`."""
        self._loop.call(self._cache.ping)

    @property
    def _loop(self) -> BlockingPortal:
        if self._portal is None:
            raise BackendClosedError("the cache is not open: use it inside of 'with'")
        return self._portal
