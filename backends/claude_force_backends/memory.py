"""``memory://``: a cache inside the process, for tests, single runs and the fastest hits. Gone at ``close``.

Every verb but ``scan``, ``usage`` and ``clear`` takes constant time, apart from the logarithm that a heap
costs for entries that expire. A plain lock, held for microseconds and never across an ``await``, makes the
backend safe for several threads and event loops at once; nothing ever waits for input or output.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from typing import AsyncIterator, Dict, Final, Hashable, List, Optional, Sequence, Tuple

from claude_force_cache import (
    Backend,
    BackendClosedError,
    BackendPlugin,
    BackendSettings,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    InvalidURLError,
    Usage,
    hookimpl,
)

__all__ = ["MemoryBackend", "claude_force_cache_backend"]

_CAPABILITIES = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)

_PURGES_PER_WRITE = 16
"""Expired entries that one write clears away; more than one, so that they cannot pile up."""

_SLACK = 64
"""Outdated dues that there may be, beyond one for each entry, before the heap is swept."""

_SWEPT_PER_WRITE = 4
"""Dues that one write looks at while the heap is swept: more than it adds, and not so many that others wait."""

_Due = Tuple[float, str]
"""When an entry expires, and its key. It is outdated when the record has another one, be it an equal one."""


_Record = Tuple[bytes, int, Optional[_Due], int]
"""Value, version, due and size. A plain tuple: the garbage collector forgets those, and need not look at each entry."""

_VALUE: Final = 0
_VERSION: Final = 1
_DUE: Final = 2
_SIZE: Final = 3


class MemoryBackend(Backend):
    """The contract of :class:`~claude_force_cache.Backend` in the memory of one process.

    Least recently used is exact. Each verb reads the clock once. An entry that was found expired is gone for
    good, also when the clock steps back.

    :param settings: ``max_bytes`` bounds the sum of the entries; ``clock`` defaults to :func:`time.time`.
    """

    capabilities = _CAPABILITIES

    def __init__(self, settings: BackendSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._clock = settings.clock or time.time
        self._lock = threading.Lock()
        self._opened = False
        # Least recently used first. A plain dict would search past all its deleted slots for the first one.
        self._records: OrderedDict[str, _Record] = OrderedDict()
        # Two heaps: while there are many outdated ones, what is not moves from the second to the first.
        self._dues: List[_Due] = []
        self._unswept: List[_Due] = []
        self._bytes = 0
        self._versions = itertools.count(1)

    async def open(self) -> None:
        """Get ready for use; a new backend is empty."""
        self._opened = True

    async def close(self) -> None:
        """Forget every entry. Idempotent."""
        with self._lock:
            self._opened = False
            self._forget_all()

    async def get(self, key: str) -> Optional[Entry]:
        """Return the live entry under ``key``, or None; constant time."""
        with self._lock:
            record = self._find(key, self._now())
            return None if record is None else Entry(record[_VALUE], record[_VERSION])

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """Return the live entries among ``keys``, all as of one moment."""
        found: Dict[str, Entry] = {}
        with self._lock:
            now = self._now()
            for key in keys:
                record = self._find(key, now)
                if record is not None:
                    found[key] = Entry(record[_VALUE], record[_VERSION])
        return found

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """Store an entry and return how many live ones made room.

        :raises EntryTooLargeError: if it is above ``max_bytes``; the predecessor is gone, nothing else is.
        """
        with self._lock:
            return self._store(key, value, ttl, self._now())

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """Store an entry only if ``key`` is free, atomically for threads and event loops.

        :raises EntryTooLargeError: if the key is free and the entry is above ``max_bytes``.
        """
        with self._lock:
            now = self._now()
            if self._find(key, now) is not None:
                return False
            self._store(key, value, ttl, now)
            return True

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """Delete the live entry under ``key`` (of that version only), and return whether it was there."""
        with self._lock:
            record = self._live(key, self._now())
            if record is None or version not in {None, record[_VERSION]}:
                return False
            self._remove(key)
            return True

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """Give the live entry under ``key`` a new life; its version stays."""
        with self._lock:
            now = self._now()
            record = self._live(key, now)
            if record is None or version not in {None, record[_VERSION]}:
                return False
            value, own_version, _, size = record
            self._records[key] = (value, own_version, self._schedule(key, ttl, now), size)
            self._records.move_to_end(key)
            return True

    async def scan(self) -> AsyncIterator[EntryInfo]:
        """Iterate over the live entries; an entry that goes while the scan runs is left out."""
        with self._lock:
            self._now()
            keys = list(self._records)
        for key in keys:
            with self._lock:
                now = self._now()
                record = self._live(key, now)
            if record is not None:
                _, _, due, size = record
                yield EntryInfo(key, size, None if due is None else due[0] - now)

    async def usage(self) -> Usage:
        """Return the account; what expired since the last look is cleared away first."""
        with self._lock:
            self._purge(self._now())
            return Usage(len(self._records), self._bytes)

    async def clear(self) -> int:
        """Delete every entry and return how many were live."""
        with self._lock:
            self._purge(self._now())
            count = len(self._records)
            self._forget_all()
            return count

    async def ping(self) -> None:
        """Return; memory always answers.

        :raises BackendClosedError: before ``open`` and after ``close``.
        """
        self._now()

    def _now(self) -> float:
        if not self._opened:
            raise BackendClosedError("the memory cache is not open: use it between open() and close()")
        return self._clock()

    def _live(self, key: str, now: float) -> Optional[_Record]:
        record = self._records.get(key)
        if record is None:
            return None
        due = record[_DUE]
        if due is None or now < due[0]:
            return record
        self._remove(key)
        return None

    def _find(self, key: str, now: float) -> Optional[_Record]:
        record = self._live(key, now)
        if record is not None:
            self._records.move_to_end(key)
        return record

    def _store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        if key in self._records:
            self._remove(key)
        size = len(key) + len(value)
        if self._max_bytes is not None and size > self._max_bytes:
            raise EntryTooLargeError(size, self._max_bytes)
        evicted = 0
        if self._overdue(now) is not None:
            self._purge(now, at_most=_PURGES_PER_WRITE)
        if self._max_bytes is not None:
            while self._bytes + size > self._max_bytes:
                if self._overdue(now) is not None and self._purge(now, at_most=1):
                    continue
                self._bytes -= self._records.popitem(last=False)[1][_SIZE]
                evicted += 1
        # bytes() costs nothing for bytes and keeps a caller's bytearray from changing underneath.
        self._records[key] = (bytes(value), next(self._versions), self._schedule(key, ttl, now), size)
        self._bytes += size
        return evicted

    def _schedule(self, key: str, ttl: Optional[float], now: float) -> Optional[_Due]:
        """Return when an entry stored ``now`` expires, and remember to look at it then."""
        if ttl is None:
            return None
        if self._unswept:
            self._sweep()
        elif len(self._dues) > 2 * len(self._records) + _SLACK:
            self._unswept, self._dues = self._dues, []
        due = (now + ttl, key)
        heapq.heappush(self._dues, due)
        return due

    def _sweep(self) -> None:
        for _ in range(min(_SWEPT_PER_WRITE, len(self._unswept))):
            due = self._unswept.pop()  # the last one: what remains is a heap
            if self._holds(due):
                heapq.heappush(self._dues, due)

    def _holds(self, due: _Due) -> bool:
        record = self._records.get(due[1])
        return record is not None and record[_DUE] is due

    def _overdue(self, now: float) -> Optional[List[_Due]]:
        """Return the heap that has something to look at, or None."""
        if self._dues and self._dues[0][0] <= now:
            return self._dues
        return self._unswept if self._unswept and self._unswept[0][0] <= now else None

    def _purge(self, now: float, *, at_most: Optional[int] = None) -> int:
        """Remove expired entries, and return how many."""
        removed = 0
        while removed != at_most:
            heap = self._overdue(now)
            if heap is None:
                break
            due = heapq.heappop(heap)
            if self._holds(due):
                self._remove(due[1])
                removed += 1
        return removed

    def _remove(self, key: str) -> None:
        self._bytes -= self._records.pop(key)[_SIZE]

    def _forget_all(self) -> None:
        self._records.clear()
        self._dues.clear()
        self._unswept.clear()
        self._bytes = 0


def _create(settings: BackendSettings) -> MemoryBackend:
    url = settings.url
    if url.hosts or url.path.strip("/") or url.username or url.password:
        raise InvalidURLError(f"{url} names a place, and memory has none: write memory://")
    return MemoryBackend(settings)


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    """Describe the backend ``memory``."""
    return BackendPlugin(
        create=_create,
        url="memory://",
        summary="inside the process: the fastest, gone when it ends",
        capabilities=_CAPABILITIES,
        api_version=1,
    )
