"""The backend contract: what a store must do to hold a cache.

A backend stores bytes under short names. Everything that must be the same on every store (keys, sealing,
freshness, statistics, outages) is done above it, by the core.

Rules that hold for every verb:

Keys
    Text of 1 to 128 characters out of ``a-z 0-9 . _ -``. The core encodes keys; a backend need not check them.
Values
    ``bytes`` of any content, also empty. A value that comes back is equal to what was stored and is not
    an alias of anything mutable.
Size
    The size of an entry is ``len(key) + len(value)`` as handed to the backend: no header, prefix or
    overhead of the store counts.
Life
    An entry stored at time *t* with ``ttl`` is live while ``now < t + ttl``, and at ``t + ttl`` it is gone
    for every verb: not returned, not counted, not scanned. ``ttl=None`` lives for ever. The core never
    passes a ``ttl`` that is not above zero.
Limit
    With ``max_bytes``, :meth:`Backend.usage` is within it whenever a verb returns, also directly after
    ``open``. Expired entries go first, then live ones, least recently used first; never more than needed.
    ``get``, ``get_many``, ``set``, ``set_many``, ``add`` and ``touch`` count as a use of the entries that
    they find or write; ``scan`` and ``usage`` do not.
Refusal
    An entry that cannot fit even alone is refused with :class:`~claude_force_cache.EntryTooLargeError`.
    Its predecessor is deleted, for it is out of date; no other entry is touched.
Namespace
    A backend sees, counts, evicts and clears the entries of its own namespace and nothing else in the store.
Errors
    Faults of the store become :class:`~claude_force_cache.BackendUnavailableError` (or its subclass for
    refused credentials), in one place per backend. No verb retries for longer than its own time-out.
Cancellation
    A verb that is cancelled has either happened whole or not at all; account and connection stay sound.

What a store cannot do is written down in its :class:`~claude_force_cache.Capabilities`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import (
    AsyncIterator,
    Callable,
    Dict,
    Hashable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ._capabilities import Capabilities
from ._errors import EntryTooLargeError

__all__ = ["Backend", "Clock", "Entry", "EntryInfo", "SyncBackend", "Usage"]

_POLL_SECONDS = 0.015

Clock = Callable[[], float]
"""A function that returns the time in seconds since the epoch; ``time.time`` is one."""


class Entry(NamedTuple):
    """What a backend returns for a live key.

    :param value: the stored bytes.
    :param version: opaque and hashable; equal only for the same write of the same key. It never repeats for
        a key, also not after a delete, so it can be handed to ``delete`` and ``touch`` as a condition.
    """

    value: bytes
    version: Hashable


class EntryInfo(NamedTuple):
    """What ``scan`` tells about a live entry.

    :param key: the key, as it was handed to the backend.
    :param size: ``len(key) + len(value)`` in bytes.
    :param ttl: the remaining life in seconds, or None for an entry that does not expire.
    """

    key: str
    size: int
    ttl: Optional[float]


class Usage(NamedTuple):
    """The account of a namespace: its live entries and the sum of their sizes in bytes."""

    entries: int
    bytes: int


class Backend(ABC):
    """A store that is driven by coroutines. The rules in the module's docstring hold for every verb.

    An implementer's duties, in this order:

    1. Take ``namespace``, ``max_bytes`` and ``clock`` from :class:`~claude_force_cache.BackendSettings`.
       With a ``clock``, all time is read from it; with None, from the store.
    2. Set :attr:`capabilities` to what the store cannot do; the default promises everything.
    3. Implement the abstract verbs. Override the others where the store has something better.
    4. Translate every error of the client library.
    5. Work in more than one event loop, one after the other and at the same time.
    """

    capabilities: Capabilities = Capabilities()

    async def open(self) -> None:
        """Get ready for use, and bring a namespace that is above ``max_bytes`` back within it.

        Called once, before any other verb. Must leave nothing open when it raises.

        :raises ForeignStoreError: if the store holds something else; nothing in it was changed.
        :raises BackendUnavailableError: if the store cannot be reached; the core calls again later.
        """
        return

    async def close(self) -> None:
        """Release connections, files and threads. Entries stay where the store is persistent.

        Idempotent; does not raise for a store that is gone. A closed backend is not opened again, and its
        verbs raise :class:`~claude_force_cache.BackendClosedError`.
        """
        return

    @abstractmethod
    async def get(self, key: str) -> Optional[Entry]:
        """Return the live entry under ``key``, or None for a miss. An expired entry is a miss.

        Atomic: value and version belong to one write. Counts as a use.

        :raises BackendUnavailableError: if the store does not answer.
        """

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """Return the live entries among ``keys``; what is missing or expired is absent from the result.

        Each entry is read atomically, the whole is not a snapshot. Repeated keys are allowed. Counts as a
        use of what was found. Stores with a bulk read should override this: one round trip for all.

        :raises BackendUnavailableError: if the store does not answer, also for a part of the keys. A store of
            several servers may leave out the keys of one that does not answer, while others do.
        """
        found = {}
        for key in dict.fromkeys(keys):
            entry = await self.get(key)
            if entry is not None:
                found[key] = entry
        return found

    @abstractmethod
    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """Store ``value`` under ``key`` for ``ttl`` seconds (None: for ever), and make room for it.

        Replaces a predecessor with its life and version. Atomic: readers see the old entry or the new one,
        and the account changes with the entry. Within ``max_bytes`` when it returns.

        :returns: how many other live entries were evicted to make room.
        :raises EntryTooLargeError: if the entry cannot fit; the predecessor is gone, nothing else is.
        :raises BackendUnavailableError: if the store does not answer; the entry may or may not be stored.
        """

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        """Store several entries, each a pair of value and ``ttl``, as by :meth:`set`.

        Each entry is stored atomically, the whole is not. Stores with a bulk write should override this.

        :returns: how many other live entries were evicted to make room.
        :raises EntryTooLargeError: if an entry cannot fit; the others are stored, then the first is reported.
        :raises BackendUnavailableError: if the store does not answer; some entries may be stored.
        """
        evicted, refused = 0, None
        for key, (value, ttl) in items.items():
            try:
                evicted += await self.set(key, value, ttl=ttl)
            except EntryTooLargeError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return evicted

    @abstractmethod
    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """Store ``value`` only if ``key`` has no live entry; an expired entry does not count as one.

        Atomic across threads and processes: of any number of concurrent calls at most one returns True.

        :returns: True if this call stored the entry; False if there is one already, which stays as it is.
        :raises EntryTooLargeError: if the key is free and the entry cannot fit.
        :raises BackendUnavailableError: if the store does not answer; the entry may or may not be stored.
        """

    @abstractmethod
    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """Delete the live entry under ``key``; with ``version``, only if it is still the one that was read.

        Atomic: a newer entry that arrives meanwhile is never taken.

        :returns: True if this call deleted a live entry; False for a miss, an expired entry, another version.
        :raises BackendUnavailableError: if the store does not answer; the entry may or may not be gone.
        """

    @abstractmethod
    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """Give the live entry under ``key`` a life of ``ttl`` seconds from now (None: for ever).

        With ``version``, only if the entry is still the one that was read. The value stays; the version may
        change, so read again before using one. An expired entry is not revived. Atomic, counts as a use.

        :returns: True if a live entry was touched; False for a miss, an expired entry, another version.
        :raises BackendUnavailableError: if the store does not answer.
        """

    @abstractmethod
    def scan(self) -> AsyncIterator[EntryInfo]:
        """Iterate over the live entries of the namespace, in no particular order.

        An entry that lives through the whole scan is yielded exactly once; one that comes or goes meanwhile,
        at most once. Does not count as a use. Bounded memory is preferred, not required.

        :raises BackendUnavailableError: if the store does not answer.
        """

    @abstractmethod
    async def usage(self) -> Usage:
        """Return the account: exactly what :meth:`scan` would yield, counted and summed.

        Expired entries are not counted, whoever wrote them. Never negative, never above ``max_bytes``.

        :raises BackendUnavailableError: if the store does not answer.
        """

    @abstractmethod
    async def clear(self) -> int:
        """Delete every entry of the namespace, and nothing else in the store.

        Entries written while it runs may stay; the account is exact in any case.

        :returns: how many live entries were deleted.
        :raises BackendUnavailableError: if the store does not answer; some entries may be gone.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return if the store answers.

        :raises BackendUnavailableError: if it does not, with the reason.
        """

    async def wait(self, key: str, *, timeout: float) -> None:
        """Return soon after the entry under ``key`` is deleted or has expired, at the latest after ``timeout`` seconds.

        The core waits so for another process that is making an answer. It looks by itself when this returns,
        so it may return at any time and without a reason, and a deletion that goes unnoticed costs only time.
        Override it where the store can tell of deletions, and look whether the entry is still there after the
        store was asked to tell; this one returns after at most 15 milliseconds, and asks the store nothing.
        May be cancelled at any time. A store that does not answer is no error here.
        """
        await asyncio.sleep(min(timeout, _POLL_SECONDS))


class SyncBackend(ABC):
    """The same contract for a store whose library blocks. The core calls it in worker threads of its own.

    Every verb is as in :class:`Backend`, without ``async``. Verbs are called from up to :attr:`threads`
    threads at once, so the implementation is thread-safe; ``scan``'s iterator is advanced by one thread at a
    time, but not always by the same one. A caller that is cancelled does not interrupt a verb: it runs to
    its end in its thread.
    """

    capabilities: Capabilities = Capabilities()

    threads: int = 4
    """How many threads may be inside this backend at once."""

    writers: Optional[int] = None
    """How many threads of their own ``set``, ``add``, ``delete``, ``touch`` and ``clear`` get, for a store on which a
    write may wait for another one; then no read waits behind them. None: they share those of all verbs."""

    def open(self) -> None:
        """See :meth:`Backend.open`."""
        return

    def close(self) -> None:
        """See :meth:`Backend.close`. No other verb is running when it is called."""
        return

    @abstractmethod
    def get(self, key: str) -> Optional[Entry]:
        """See :meth:`Backend.get`."""

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """See :meth:`Backend.get_many`."""
        found = {}
        for key in dict.fromkeys(keys):
            entry = self.get(key)
            if entry is not None:
                found[key] = entry
        return found

    @abstractmethod
    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """See :meth:`Backend.set`."""

    def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        """See :meth:`Backend.set_many`."""
        evicted, refused = 0, None
        for key, (value, ttl) in items.items():
            try:
                evicted += self.set(key, value, ttl=ttl)
            except EntryTooLargeError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return evicted

    @abstractmethod
    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """See :meth:`Backend.add`."""

    @abstractmethod
    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.delete`."""

    @abstractmethod
    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.touch`."""

    @abstractmethod
    def scan(self) -> Iterator[EntryInfo]:
        """See :meth:`Backend.scan`."""

    @abstractmethod
    def usage(self) -> Usage:
        """See :meth:`Backend.usage`."""

    @abstractmethod
    def clear(self) -> int:
        """See :meth:`Backend.clear`."""

    @abstractmethod
    def ping(self) -> None:
        """See :meth:`Backend.ping`."""
