"""The LMDB file of one namespace: transactions in which entries, indexes and account change together."""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

import lmdb
from claude_force_cache import AccessDeniedError, BackendUnavailableError, ForeignStoreError

__all__ = ["FOREVER", "Changes", "Record", "Store", "acquire_store", "release_store"]

FOREVER = float("inf")
"""The time of expiry of what does not expire."""

_MARKER = ".claude-force-cache-lmdb-1"
_ACCOUNT = b"account"
_FOLD_SECONDS = 4.0
"""How long a use may wait in memory; below the declared recency, which includes the time to write it."""

_STATE_FORMAT = struct.Struct(">QQQ")
_RECORD_FORMAT = struct.Struct(">QQdQ")
# Big-endian, so that LMDB's order of bytes is the order of the numbers.
_STAMP_FORMAT = struct.Struct(">Q")
_TIME_FORMAT = struct.Struct(">d")

Identity = Tuple[int, int, int]


class Record(NamedTuple):
    """What is known about an entry besides its value."""

    version: int
    used: int
    expires: float
    size: int


class Changes:
    """One write transaction. Every method changes an entry, its indexes and the account at once.

    ``entries`` and ``bytes`` are the account; ``stamp`` counts writes and uses, and never starts again.
    """

    def __init__(self, store: Store, txn: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._txn = txn
        self.entries, self.bytes, self.stamp = store.account(txn)

    def record(self, key: bytes) -> Optional[Record]:
        """Return the record of ``key``, live or expired."""
        return self._store.record(self._txn, key)

    def put(self, key: bytes, value: bytes, expires: float) -> None:
        """Store an entry under a key that is free."""
        self.stamp += 1
        self._txn.put(key, value, db=self._store.values)
        self._index(key, Record(self.stamp, self.stamp, expires, len(key) + len(value)))
        self.entries += 1
        self.bytes += len(key) + len(value)

    def remove(self, key: bytes) -> bool:
        """Remove an entry and return whether it was there."""
        record = self.record(key)
        if record is None:
            return False
        self._unindex(key, record)
        self._txn.delete(key, db=self._store.records)
        self._txn.delete(key, db=self._store.values)
        self.entries -= 1
        self.bytes -= record.size
        return True

    def use(self, key: bytes, *, expires: Optional[float] = None) -> None:
        """Make an entry the most recently used one, with another time of expiry if one is given."""
        record = self.record(key)
        if record is not None:
            self._unindex(key, record)
            self.stamp += 1
            self._index(key, record._replace(used=self.stamp, expires=record.expires if expires is None else expires))

    def purge(self, now: float) -> None:
        """Remove what has expired."""
        while True:
            first = self._store.first(self._txn, self._store.expiry)
            if first is None or _TIME_FORMAT.unpack(first[:8])[0] > now:
                return
            self.remove(first[8:])

    def evict(self, room: int) -> int:
        """Remove the least recently used until at most ``room`` bytes are left, and return how many."""
        count = 0
        while self.bytes > room:
            oldest = self._store.first(self._txn, self._store.recency)
            if oldest is None:
                break
            self.remove(oldest[8:])
            count += 1
        return count

    def clear(self) -> None:
        """Remove every entry. The stamp goes on, or versions would repeat."""
        for database in (self._store.values, self._store.records, self._store.expiry, self._store.recency):
            self._txn.drop(database, delete=False)
        self.entries = self.bytes = 0

    def save(self) -> None:
        """Write the account down."""
        state = _STATE_FORMAT.pack(self.entries, self.bytes, self.stamp)
        self._txn.put(_ACCOUNT, state, db=self._store.state)

    def _index(self, key: bytes, record: Record) -> None:
        self._txn.put(key, _RECORD_FORMAT.pack(*record), db=self._store.records)
        self._txn.put(_STAMP_FORMAT.pack(record.used) + key, b"", db=self._store.recency)
        if record.expires != FOREVER:
            self._txn.put(_TIME_FORMAT.pack(record.expires) + key, b"", db=self._store.expiry)

    def _unindex(self, key: bytes, record: Record) -> None:
        self._txn.delete(_STAMP_FORMAT.pack(record.used) + key, db=self._store.recency)
        self._txn.delete(_TIME_FORMAT.pack(record.expires) + key, db=self._store.expiry)


class Store:
    """One LMDB file, open once in this process, whoever uses it. Not to be carried across a fork."""

    def __init__(self, path: Path, identity: Identity, map_size: int, sync: bool) -> None:
        self._path = path
        self.identity = identity
        self.users = 0
        # Some releases of lmdb raise where another thread of the process writes, instead of waiting.
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._uses: Dict[str, None] = {}
        self._timer: Optional[threading.Timer] = None
        with self._translated():
            self.environment = lmdb.open(
                str(path), subdir=False, mode=0o600, map_size=map_size, sync=sync, max_dbs=5, max_readers=1024
            )
            try:
                # Slots of readers that were killed would keep pages from being used again.
                self.environment.reader_check()
                self.values, self.records, self.expiry, self.recency, self.state = (
                    self.environment.open_db(name) for name in (b"values", b"records", b"expiry", b"recency", b"state")
                )
            except BaseException:
                self.environment.close()
                raise

    def close(self) -> None:
        """Write down the uses that wait, and close the file."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()
        self._fold()
        self.environment.close()

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Lend a snapshot. Readers wait for nobody."""
        with self._translated(), self.environment.begin() as txn:
            yield txn

    @contextmanager
    def write(self) -> Iterator[Changes]:
        """Lend the only write transaction of all processes; it is committed at the end, or nothing happened."""
        with self._writing, self._translated(), self.environment.begin(write=True) as txn:
            changes = Changes(self, txn)
            with self._lock:
                uses, self._uses = self._uses, {}
            for key in uses:
                changes.use(key.encode())
            yield changes
            changes.save()

    def account(self, txn: lmdb.Transaction[bytes]) -> Tuple[int, int, int]:
        """Return the number of entries, the sum of their sizes in bytes, and the last stamp."""
        state = txn.get(_ACCOUNT, db=self.state)
        # A stamp that begins anywhere is no version of a file that was here before.
        return _STATE_FORMAT.unpack(state) if state else (0, 0, int.from_bytes(os.urandom(7), "big"))

    def record(self, txn: lmdb.Transaction[bytes], key: bytes) -> Optional[Record]:
        """Return the record of ``key``, live or expired."""
        packed = txn.get(key, db=self.records)
        return None if packed is None else Record(*_RECORD_FORMAT.unpack(packed))

    def records_after(self, txn: lmdb.Transaction[bytes], key: bytes) -> Iterator[Tuple[bytes, Record]]:
        """Iterate over the records of the keys above ``key``, in the order of their keys."""
        with txn.cursor(db=self.records) as cursor:
            if cursor.set_range(key + b"\0"):
                for found, packed in cursor:
                    yield found, Record(*_RECORD_FORMAT.unpack(packed))

    def first(self, txn: lmdb.Transaction[bytes], index: lmdb._Database) -> Optional[bytes]:
        """Return the first key of an index, or None."""
        with txn.cursor(db=index) as cursor:
            return cursor.key() if cursor.first() else None

    def has_expired(self, txn: lmdb.Transaction[bytes], now: float) -> bool:
        """Return whether an entry waits to be purged."""
        first = self.first(txn, self.expiry)
        return first is not None and bool(_TIME_FORMAT.unpack(first[:8])[0] <= now)

    def note_uses(self, keys: Iterable[str]) -> None:
        """Remember that ``keys`` were read; the next write of this process, or a timer, writes it down."""
        with self._lock:
            for key in keys:
                self._uses.pop(key, None)
                self._uses[key] = None
            if self._uses and self._timer is None:
                self._start_timer()

    def _start_timer(self) -> None:
        self._timer = threading.Timer(_FOLD_SECONDS, self._fold_late)
        self._timer.daemon = True
        self._timer.start()

    def _fold_late(self) -> None:
        self._fold()
        with self._lock:
            if self._timer is not None:  # else the store is closing
                self._timer = None
                if self._uses:
                    self._start_timer()

    def _fold(self) -> None:
        try:
            if self._uses:
                with self.write():
                    pass
        except BackendUnavailableError:
            pass  # only the order of eviction suffers

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise _unavailable(error, self._path) from error


_open_stores: Dict[Identity, Store] = {}
_open_stores_guard = threading.Lock()


def acquire_store(folder: Path, namespace: str, *, map_size: int, sync: bool) -> Store:
    """Return the store of a namespace, which is opened or made if this process has not done so already.

    LMDB forbids to open a file twice in one process. Where it is open, its ``map_size`` and ``sync`` stay.

    :raises ForeignStoreError: if ``folder`` is no folder, or not empty and not ours; nothing was touched.
    :raises BackendUnavailableError: if the file cannot be opened.
    """
    # Names differ by case where some file systems do not; the prefix keeps "." and ".." harmless.
    name = "ns-" + re.sub("[A-Z]", lambda match: "^" + match.group().lower(), namespace) + ".mdb"
    path = folder / name
    try:
        _claim(folder)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        status = path.stat()
    except OSError as error:
        raise _unavailable(error, path) from error
    # A file may be replaced under its name, and a forked process must open its own.
    identity = (os.getpid(), status.st_dev, status.st_ino)
    with _open_stores_guard:
        store = _open_stores.get(identity)
        if store is None:
            store = _open_stores[identity] = Store(path, identity, map_size, sync)
        store.users += 1
        return store


def release_store(store: Store) -> None:
    """Close ``store`` if nobody else in this process uses it."""
    with _open_stores_guard:
        store.users -= 1
        if not store.users:
            del _open_stores[store.identity]
            store.close()


def _claim(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise ForeignStoreError(f"{folder} is not a folder: choose another, lmdb:///absolute/path") from None
    names = {path.name for path in folder.iterdir()}
    if names and _MARKER not in names:
        raise ForeignStoreError(
            f"folder {folder} is not empty and not a cache of this plugin, so nothing in it was touched: "
            "choose another, lmdb:///absolute/path"
        )
    (folder / _MARKER).touch(mode=0o600)


def _unavailable(error: Exception, path: Path) -> BackendUnavailableError:
    """Return the error of the contract for what LMDB or the system said."""
    code = getattr(error, "errno", None)
    if isinstance(error, lmdb.ReadonlyError) or code in {errno.EACCES, errno.EPERM}:
        return AccessDeniedError(f"no permission for {path}: give this user access, or choose another folder")
    for kind, cause, remedy in (
        (lmdb.MapFullError, "is full", "raise map_size, or lower max_bytes"),
        (lmdb.MapResizedError, "outgrew this process", "give every process the same map_size"),
        (lmdb.ReadersFullError, "has too many readers", "start fewer processes on it"),
        (lmdb.DiskError, "is on a full disk", "free space, or lower max_bytes"),
        (lmdb.LockError, "cannot be locked", "choose a folder on a local file system"),
        (_DAMAGED, "is damaged or not of this LMDB", "remove it, only cached answers are lost"),
    ):
        if isinstance(error, kind):
            return BackendUnavailableError(f"the LMDB file {path} {cause}: {remedy}")
    return BackendUnavailableError(f"the LMDB file {path} cannot be used ({error}): check its disk and folder")


_DAMAGED = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.IncompatibleError,
)
