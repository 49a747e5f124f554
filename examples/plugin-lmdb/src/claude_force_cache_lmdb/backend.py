"""The backend ``lmdb``: the verbs of the contract, each one transaction of the store."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Dict, Hashable, Iterator, Mapping, Optional, Sequence, Tuple

from claude_force_cache import (
    BackendClosedError,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    InvalidOptionError,
    InvalidURLError,
    SyncBackend,
    Usage,
)

from . import CAPABILITIES, MAP_SIZE, SHARE_OF_MAP
from ._store import FOREVER, Changes, Store, acquire_store, release_store

__all__ = ["LmdbBackend"]

_PAGE = 500
"""How many entries a scan reads at a time."""


class LmdbBackend(SyncBackend):
    """The contract of :class:`~claude_force_cache.SyncBackend` on LMDB: every verb is one transaction.

    :param settings: ``clock`` defaults to :func:`time.time`. Entries have a limit of a quarter of ``map_size``.
    :raises InvalidURLError: if the URL names no absolute path, or a host.
    :raises InvalidOptionError: if ``max_bytes`` is above a quarter of ``map_size``.
    """

    def __init__(self, settings: BackendSettings) -> None:
        self._folder = _folder(settings.url)
        self._namespace = settings.namespace
        self._max_bytes = settings.max_bytes
        self._clock = settings.clock or time.time
        self._map_size: int = settings.options.get("map_size", MAP_SIZE)
        self._sync: bool = settings.options.get("sync", True)
        self._largest = self._map_size // SHARE_OF_MAP - 1
        self._store: Optional[Store] = None
        self.capabilities = replace(CAPABILITIES, max_value_bytes=self._largest)
        if self._max_bytes is not None and self._max_bytes > self._map_size // SHARE_OF_MAP:
            raise InvalidOptionError(
                f"max_bytes is {self._max_bytes} and map_size {self._map_size}: "
                f"raise map_size to at least {self._max_bytes * SHARE_OF_MAP}, it costs nothing until it is used"
            )

    def open(self) -> None:
        """Make or check folder and file, and bring the namespace within ``max_bytes``.

        :raises ForeignStoreError: if the folder is not ours; nothing was changed.
        :raises BackendUnavailableError: if the file cannot be used.
        """
        self._store = acquire_store(self._folder, self._namespace, map_size=self._map_size, sync=self._sync)
        try:
            self.usage()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Write down the uses that wait, and close the file if this process uses it no more. Idempotent."""
        store, self._store = self._store, None
        if store is not None:
            release_store(store)

    def get(self, key: str) -> Optional[Entry]:
        """Return the live entry under ``key``, or None. Reads only, unless it finds an expired one."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """Return the live entries among ``keys``, all as of one moment."""
        found: Dict[str, Entry] = {}
        stale = False
        store = self.store
        with store.read() as txn:
            now = self._clock()
            for key in dict.fromkeys(keys):
                name = key.encode()
                record = store.record(txn, name)
                if record is not None and now < record.expires:
                    # A value that somebody took away comes back empty, which the core finds corrupt and discards.
                    found[key] = Entry(txn.get(name, b"", db=store.values), record.version)
                stale = stale or (record is not None and key not in found)
        store.note_uses(found)
        if stale:
            self._purge()
        return found

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """Store an entry and return how many live ones made room, in one transaction.

        :raises EntryTooLargeError: if it cannot fit; the predecessor is gone, nothing else is.
        """
        return self.set_many({key: (value, ttl)})

    def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        """Store entries, all in one transaction, and return how many live ones made room.

        :raises EntryTooLargeError: if one cannot fit; the others are stored.
        """
        evicted, refused = 0, None
        with self._write() as (changes, now):
            for key, (value, ttl) in items.items():
                changes.remove(key.encode())
                error = self._too_large(key, value)
                if error is None:
                    evicted += self._put(changes, key, value, ttl, now)
                refused = refused or error
        if refused is not None:
            raise refused
        return evicted

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """Store an entry only if ``key`` is free, atomically for threads and processes.

        :raises EntryTooLargeError: if the key is free and the entry cannot fit.
        """
        with self._write() as (changes, now):
            if changes.record(key.encode()) is not None:
                changes.use(key.encode())
                return False
            error = self._too_large(key, value)
            if error is None:
                self._put(changes, key, value, ttl, now)
        if error is not None:
            raise error
        return True

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """Delete the live entry under ``key`` (of that version only), and return whether it was there."""
        with self._write() as (changes, _):
            record = changes.record(key.encode())
            if record is None or version not in {None, record.version}:
                return False
            changes.remove(key.encode())
            return True

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """Give the live entry under ``key`` a new life; its version stays."""
        with self._write() as (changes, now):
            record = changes.record(key.encode())
            if record is None or version not in {None, record.version}:
                return False
            changes.use(key.encode(), expires=_expires(ttl, now))
            return True

    def scan(self) -> Iterator[EntryInfo]:
        """Iterate over the live entries in the order of their keys, a page at a time."""
        last, more = b"", True
        while more:
            store = self.store
            with store.read() as txn:
                now = self._clock()
                page = list(islice(store.records_after(txn, last), _PAGE))
                stale = store.has_expired(txn, now)
            if stale:
                self._purge()
            for last, record in page:
                if now < record.expires:
                    ttl = None if record.expires == FOREVER else record.expires - now
                    yield EntryInfo(last.decode(), record.size, ttl)
            more = len(page) == _PAGE

    def usage(self) -> Usage:
        """Return the account. Reads only, unless something expired or another process has a higher limit."""
        store = self.store
        with store.read() as txn:
            entries, size, _ = store.account(txn)
            stale = store.has_expired(txn, self._clock())
        if stale or (self._max_bytes is not None and size > self._max_bytes):
            with self._write() as (changes, _):
                self._make_room(changes, 0)
            entries, size = changes.entries, changes.bytes
        return Usage(entries, size)

    def clear(self) -> int:
        """Delete every entry of the namespace and return how many were live. The file keeps its size."""
        with self._write() as (changes, _):
            count = changes.entries
            changes.clear()
        return count

    def ping(self) -> None:
        """Return if the file can be read."""
        store = self.store
        with store.read() as txn:
            store.account(txn)

    @property
    def store(self) -> Store:
        """The file. Raises BackendClosedError before ``open`` and after ``close``."""
        if self._store is None:
            raise BackendClosedError("the LMDB cache is not open: use it between open() and close()")
        return self._store

    @contextmanager
    def _write(self) -> Iterator[Tuple[Changes, float]]:
        """Lend a write transaction in which all that is left is live, and the time."""
        with self.store.write() as changes:
            now = self._clock()
            changes.purge(now)
            yield changes, now

    def _purge(self) -> None:
        """Remove what was found expired, for it must not come back when the clock is set back."""
        try:
            with self._write():
                pass
        except BackendUnavailableError:
            pass  # a miss is one also where nothing can be written

    def _put(self, changes: Changes, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        evicted = self._make_room(changes, len(key) + len(value))
        changes.put(key.encode(), value, _expires(ttl, now))
        return evicted

    def _make_room(self, changes: Changes, size: int) -> int:
        return 0 if self._max_bytes is None else changes.evict(self._max_bytes - size)

    def _too_large(self, key: str, value: bytes) -> Optional[EntryTooLargeError]:
        size = len(key) + len(value)
        if self._max_bytes is not None and size > self._max_bytes:
            return EntryTooLargeError(size, self._max_bytes)
        return EntryTooLargeError(size, self._largest + len(key)) if len(value) > self._largest else None


def _expires(ttl: Optional[float], now: float) -> float:
    return FOREVER if ttl is None else now + ttl


def _folder(url: BackendURL) -> Path:
    if url.hosts or url.username is not None or url.password is not None:
        raise InvalidURLError(f"{url} names a host, and LMDB has none: write lmdb:///absolute/path, three slashes")
    if not url.path.startswith("/") or "\0" in url.path:
        raise InvalidURLError("an LMDB cache needs the absolute path of a folder: write lmdb:///absolute/path")
    return Path(os.path.normpath(url.path))
