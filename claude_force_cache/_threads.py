"""Threads: a blocking backend, driven from the event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import (
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Hashable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from ._backend import Backend, Entry, EntryInfo, SyncBackend, Usage
from ._errors import BackendClosedError, BackendUnavailableError

__all__ = ["ThreadedBackend", "Workers"]

T = TypeVar("T")

_SCAN_CHUNK = 256


class _Job(NamedTuple):
    """A call for a thread, and who waits for it in which event loop."""

    function: Callable[..., Any]
    arguments: Tuple[Any, ...]
    answer: asyncio.Future[Any]


class _Queue:
    """Calls for threads that are started as they are needed. It knows nothing of its :class:`Workers`.

    So that workers which nobody holds any more can go, and their threads with them.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[Optional[_Job]] = SimpleQueue()
        # Reentrant: the garbage collector may end it in the middle of anything.
        self._lock = threading.RLock()
        self._unfinished = 0
        self._closed = False
        self.threads: List[threading.Thread] = []
        self.process = os.getpid()
        _queues.add(self)

    def put(self, job: _Job) -> bool:
        """Hand over a call; False if the queue is closed.

        :raises BackendUnavailableError: if there is no thread, and none can be started.
        """
        with self._lock:
            if self._closed:
                return False
            if self._unfinished >= len(self.threads) < self._most:  # none of them is free
                try:
                    self._start_thread()
                except RuntimeError as error:  # the system has no more: those that are there have more to do
                    if not self.threads:
                        raise BackendUnavailableError(f"no thread for the cache: {error}") from error
            self._unfinished += 1
            self._jobs.put(job)
            return True

    def close(self) -> None:
        """Take no more calls, and end the threads after those that were taken. Idempotent."""
        if os.getpid() == self.process:
            with self._lock:
                if not self._closed:
                    self._closed = True
                    for _ in self.threads:
                        self._jobs.put(None)

    def join(self) -> None:
        """Wait until all calls are finished. The queue was closed."""
        if os.getpid() == self.process:
            for thread in self.threads:
                thread.join()

    def _start_thread(self) -> None:
        # A daemon: the program's end would wait for another kind before anybody could tell it to end.
        name = f"claude-force-cache-{self._name}-{len(self.threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self.threads.append(thread)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._perform(job)
            del job  # it may hold a large value, and the next one may be long in coming

    def _perform(self, job: _Job) -> None:
        function, arguments, answer = job
        outcome = None if answer.cancelled() else _call(function, arguments)
        # Before the answer: who gets it and asks again at once needs no other thread.
        with self._lock:
            self._unfinished -= 1
        if outcome is not None:
            try:
                answer.get_loop().call_soon_threadsafe(_settle, answer, *outcome)
            except RuntimeError:
                pass  # the event loop is closed, and the caller with it


def _call(function: Callable[..., Any], arguments: Tuple[Any, ...]) -> Tuple[Any, Optional[BaseException]]:
    # By itself, since an error refers to the frames that it came through: none of them may refer to the error.
    try:
        return function(*arguments), None
    except StopIteration as error:  # a future refuses it, and a coroutine would turn it into this one
        return None, RuntimeError(f"{function!r} raised StopIteration({error})")
    except BaseException as error:  # noqa: BLE001 - it goes to the caller
        return None, error


def _settle(answer: asyncio.Future[Any], result: Any, error: Optional[BaseException]) -> None:
    if answer.done():
        return  # the caller was cancelled
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


_queues: weakref.WeakSet[_Queue] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """Let calls that are running at the end of the program finish: a thread that is stopped inside one may crash.

    To whoever asks later, in a thread that nobody waits for or in another handler, the store is not available.
    """
    queues = list(_queues)
    for queue in queues:
        queue.close()
    for queue in queues:
        queue.join()


class Workers:
    """A bounded pool of threads that any event loop may use. A caller that is cancelled leaves its call running.

    The way into a thread and back is most of what a look-up costs, so it has no more parts than it needs: a
    queue, a thread that waits for it, and one wake-up of the event loop.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._queue = _Queue(threads, name)
        weakref.finalize(self, self._queue.close).atexit = False
        self._closed = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what ``function(*args)`` returns in a thread.

        :raises BackendClosedError: if the pool is closed.
        :raises BackendUnavailableError: if this process was forked from the one that made the pool, or ends, or can
            start no thread.
        """
        if os.getpid() != self._queue.process:
            # Threads stay behind in a fork, and a call that is handed to them would never return.
            raise BackendUnavailableError("the cache was opened before this process was forked: open one in each")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if not self._queue.put(_Job(function, args, answer)):
            if not self._closed:
                raise BackendUnavailableError("the program ends")
            raise BackendClosedError("the cache is closed: open another one")
        return await answer

    def end(self) -> None:
        """Let the calls that are running finish, and end all threads. Blocks."""
        self._closed = True
        self._queue.close()
        self._queue.join()

    async def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Let the calls that were taken finish, call ``last`` in a thread, and end all threads; also if cancelled."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._queue.process:
            return

        def finish() -> None:
            self._queue.join()
            last()

        self._queue.close()
        closer = _Queue(1, "closing")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        closer.put(_Job(finish, (), answer))
        closer.close()
        await asyncio.shield(answer)  # it happens, also if nobody waits for it


class ThreadedBackend(Backend):
    """A :class:`SyncBackend` with the interface of a :class:`Backend`.

    A verb whose caller is cancelled before a thread took it up never happens; after that it runs to its end.
    """

    def __init__(self, backend: SyncBackend) -> None:
        self.capabilities = backend.capabilities
        self._backend = backend
        name = type(backend).__name__
        self._workers = Workers(backend.threads, name)
        self._writers = self._workers if backend.writers is None else Workers(backend.writers, f"{name}-writes")

    async def open(self) -> None:
        await self._workers.run(self._backend.open)
        # Some weaknesses are known only once the store was asked.
        self.capabilities = self._backend.capabilities

    async def close(self) -> None:
        await self._workers.close(self._end)

    def _end(self) -> None:
        if self._writers is not self._workers:
            self._writers.end()
        self._backend.close()

    async def get(self, key: str) -> Optional[Entry]:
        return await self._workers.run(self._backend.get, key)

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return await self._workers.run(self._backend.get_many, keys)

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        return await self._writers.run(partial(self._backend.set, key, value, ttl=ttl))

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return await self._writers.run(self._backend.set_many, items)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        return await self._writers.run(partial(self._backend.add, key, value, ttl=ttl))

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await self._writers.run(partial(self._backend.delete, key, version=version))

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await self._writers.run(partial(self._backend.touch, key, ttl=ttl, version=version))

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
        return await self._writers.run(self._backend.clear)

    async def ping(self) -> None:
        await self._workers.run(self._backend.ping)
