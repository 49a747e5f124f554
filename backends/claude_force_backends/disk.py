"""``disk:///absolute/path``: a cache in a folder, shared by the processes of one machine.

``disk://`` alone means ``$XDG_CACHE_HOME/claude-force-cache``, or ``~/.cache/claude-force-cache``;
``disk:///~/path`` begins at the home directory. Each namespace is one SQLite database in a folder of its own;
a value stands in its row, never in a file.

Durability: an entry that was stored survives the death of the process, also by ``kill -9``; a write is whole
or absent. After a power cut the newest writes may be missing, and the database is sound (write-ahead log,
``synchronous=NORMAL``). A network file system is no place for it: SQLite's locks do not work there.

Recency: a read writes nothing. Its use is kept in memory, bounded, and goes to the database with the next
eviction, at the latest after a few seconds. So within one process the least recently used is exact, and other
processes know of a use with that delay.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Hashable, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from claude_force_cache import (
    BackendClosedError,
    BackendPlugin,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    InvalidURLError,
    Option,
    SyncBackend,
    Usage,
    hookimpl,
    parse_boolean,
    parse_duration,
)

if TYPE_CHECKING:
    from ._disk_store import Store

__all__ = ["DiskBackend", "claude_force_cache_backend"]

_FOLD_SECONDS = 4.0
"""How long a use may wait in memory; below the declared recency, which includes the time to write it."""

_MAX_USES = 4096
"""How many uses may wait in memory."""

_PAGE = 500
"""How many entries a scan reads at a time."""

_CAPABILITIES = Capabilities(
    max_value_bytes=999_000_000,  # SQLite takes rows of up to 1,000,000,000 bytes
    recency=5.0,
    shared_between_machines=False,
)

_OPTIONS = (
    Option(
        "busy_timeout",
        parse_duration,
        5.0,
        "seconds to wait for another process that is writing",
        minimum=0,
        maximum=3600,
    ),
    Option("private", parse_boolean, True, "refuse a folder that other users can change or exchange"),
    Option("network", parse_boolean, False, "take a folder on a network file system, where one machine alone uses it"),
)

_GET = """
SELECT key, value, tag, expire_time IS NULL OR expire_time > ? FROM Cache
WHERE raw = 1 AND key """

_MOST_KEYS = 128
"""How many keys one statement reads."""


def _forms() -> List[Tuple[str, int]]:
    """Return for each number of keys a statement that reads them, and how many it takes beyond that number.

    Few statements, so that a connection keeps all of them prepared.
    """
    forms = [(f"{_GET} = ?", 0)] * 2
    for size in (8, 32, _MOST_KEYS):
        statement = f"{_GET} IN ({', '.join('?' * size)})"
        forms += [(statement, size - count) for count in range(len(forms), size + 1)]
    return forms


_FORMS = _forms()

_HAS = "SELECT 1 FROM Cache WHERE key = ? AND raw = 1"

_INSERT = """
INSERT INTO Cache (key, raw, store_time, expire_time, access_time, tag, size, mode, filename, value)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"""

_REPLACE = """
UPDATE Cache SET store_time = ?3, expire_time = ?4, access_time = ?5, access_count = 0, tag = ?6, size = ?7, mode = ?8,
filename = ?9, value = ?10 WHERE key = ?1 AND raw = ?2"""

_DELETE = """
DELETE FROM Cache
WHERE key = :key AND raw = 1 AND (expire_time IS NULL OR expire_time > :now)
AND (:version IS NULL OR tag IS :version)"""

_TOUCH = """
UPDATE Cache SET expire_time = :expires, access_time = :used
WHERE key = :key AND raw = 1 AND (expire_time IS NULL OR expire_time > :now)
AND (:version IS NULL OR tag IS :version)"""

_SCAN = """
SELECT key, raw, size, expire_time - :now FROM Cache
WHERE key > CAST(:last AS TEXT) AND typeof(key) = 'text' AND raw = 1
AND (expire_time IS NULL OR expire_time > :now)
ORDER BY key LIMIT :page"""

_OLDEST = "SELECT rowid, size FROM Cache WHERE key IS NOT ? ORDER BY access_time, rowid"

_NEWEST_USE = "SELECT access_time FROM Cache WHERE access_time < 9e15 ORDER BY access_time DESC LIMIT 1"

_ACCOUNT = """
SELECT (SELECT value FROM Settings WHERE key = 'count'), (SELECT value FROM Settings WHERE key = 'size')"""


class DiskBackend(SyncBackend):
    """The contract of :class:`~claude_force_cache.SyncBackend` on an SQLite database made by diskcache.

    Every verb is one transaction, and the account changes in it. Rows that somebody else planted are never
    unpickled, and no file that they name is read or deleted: they come back as bytes, which the core finds
    corrupt and discards.

    :param settings: ``max_bytes`` is enforced by this process in its own writes and looks; other processes
        may have another limit. ``clock`` defaults to :func:`time.time`.
    :param store: the database.
    """

    capabilities = _CAPABILITIES
    writers = 1  # SQLite has one at a time

    def __init__(self, settings: BackendSettings, store: Store) -> None:
        self._max_bytes = settings.max_bytes
        self._clock = settings.clock or time.time
        self._store = store
        self._largest = _CAPABILITIES.max_value_bytes or 0
        self._uses_lock = threading.Lock()
        # Keys that were read since the last fold, with the stamp of their last use, oldest first.
        self._uses: Dict[str, int] = {}
        self._last_stamp = 0
        self._timer: Optional[threading.Timer] = None

    def open(self) -> None:
        """Make or check the folder, and bring the namespace within ``max_bytes``.

        :raises ForeignStoreError: if the folder, or something in it, is not ours; nothing was changed.
        :raises BackendUnavailableError: if it cannot be used, for example because it is read-only.
        """
        self._store.open()
        try:
            with self._store.write() as connection:
                newest = connection.execute(_NEWEST_USE).fetchone()
                self._last_stamp = 0 if newest is None else int(newest[0])
                self._purge(connection, self._clock())
                self._evict(connection)
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        """Write down the uses that wait, and close every connection. Idempotent."""
        with self._uses_lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()
        try:
            self._fold_now()
        except (BackendUnavailableError, BackendClosedError):
            pass  # the order of a few reads is not worth an error at the end
        self._store.close()

    def get(self, key: str) -> Optional[Entry]:
        """Return the live entry under ``key``, or None. See :meth:`get_many`."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """Return the live entries among ``keys``. Reads only, unless one is expired, which is then gone for good."""
        rows: Dict[bytes, Tuple[bytes, object, object, int]] = {}
        with self._store.read() as connection:
            now = self._clock()
            for start in range(0, len(keys), _MOST_KEYS):
                portion = list(keys[start : start + _MOST_KEYS])
                statement, beyond = _FORMS[len(portion)]
                for row in connection.execute(statement, (now, *portion, *portion[:1] * beyond)):
                    rows[row[0]] = row
        found = {}
        over = False
        # In the order in which they were asked for, which is the order of their use.
        for key in keys:
            row = rows.get(key.encode())
            if row is not None:
                _, value, version, is_live = row
                if is_live:
                    found[key] = self._entry(value, version)
                else:
                    over = True
        if over:
            self._forget_expired(now)
        self._note_uses(found, now)
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
        with self._store.write() as connection:
            now = self._clock()
            self._purge(connection, now)
            for key, (value, ttl) in items.items():
                error = self._too_large(key, value)
                if error is None:
                    self._write(connection, key, value, ttl, now)
                    evicted += self._evict(connection, keep=key)
                else:
                    connection.execute("DELETE FROM Cache WHERE key = ?", (key,))
                    refused = refused or error
        if refused is not None:
            raise refused
        return evicted

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """Store an entry only if ``key`` is free, atomically for threads and processes.

        :raises EntryTooLargeError: if the key is free and the entry cannot fit.
        """
        with self._store.write() as connection:
            now = self._clock()
            self._purge(connection, now)
            taken = connection.execute(_HAS, (key,)).fetchone() is not None
            error = None if taken else self._too_large(key, value)
            if not taken and error is None:
                self._write(connection, key, value, ttl, now)
                self._evict(connection, keep=key)
        if taken:
            self._note_uses([key], now)
        if error is not None:
            raise error
        return not taken

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """Delete the live entry under ``key`` (of that version only), and return whether it was there."""
        if not _is_version(version):
            return False
        with self._store.write() as connection:
            now = self._clock()
            self._purge(connection, now)
            given = {"key": key, "version": version, "now": now}
            return connection.execute(_DELETE, given).rowcount > 0

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """Give the live entry under ``key`` a new life; its version stays."""
        if not _is_version(version):
            return False
        with self._store.write() as connection:
            now = self._clock()
            self._purge(connection, now)
            given = {
                "key": key,
                "version": version,
                "now": now,
                "expires": None if ttl is None else now + ttl,
                "used": self._stamp(now),
            }
            return connection.execute(_TOUCH, given).rowcount > 0

    def scan(self) -> Iterator[EntryInfo]:
        """Iterate over the live entries in the order of their keys, a page at a time."""
        last = b""
        while True:
            with self._store.read() as connection:
                given = {"last": last, "now": self._clock(), "page": _PAGE}
                rows = connection.execute(_SCAN, given).fetchall()
            for last, raw, size, ttl in rows:
                yield EntryInfo(self._store.disk.get(last, raw), size, ttl)
            if len(rows) < _PAGE:
                return

    def usage(self) -> Usage:
        """Return the account. Reads only, unless something expired or another process has a higher limit."""
        with self._store.read() as connection:
            connection.execute("BEGIN")  # one state for both looks
            usage = _account(connection)
            expired = connection.execute("SELECT 1 FROM Cache WHERE expire_time <= ? LIMIT 1", (self._clock(),))
            stale = expired.fetchone() is not None
            connection.execute("COMMIT")
        if usage is not None and not stale and not self._excess(usage):
            return usage
        with self._store.write() as connection:
            self._purge(connection, self._clock())
            self._evict(connection)
            return _account(connection) or _recount(connection)

    def clear(self) -> int:
        """Delete every entry of the namespace, return how many were live, and give the space back."""
        with self._uses_lock:
            self._uses.clear()
        with self._store.write() as connection:
            self._purge(connection, self._clock())
            count = connection.execute("DELETE FROM Cache").rowcount
            _recount(connection)
        with self._store.read() as connection:
            # One step of it frees one page; only a script is stepped to its end.
            connection.executescript("PRAGMA incremental_vacuum")
        return count

    def ping(self) -> None:
        """Return if the database can be read."""
        with self._store.read() as connection:
            _account(connection)

    def _entry(self, value: object, version: object) -> Entry:
        # A row with no version of ours can be discarded by any. Of one that names a file, nothing is looked at.
        return Entry(self._store.disk.fetch(None, None, value, False), version if isinstance(version, int) else None)

    def _too_large(self, key: str, value: bytes) -> Optional[EntryTooLargeError]:
        size = len(key) + len(value)
        if self._max_bytes is not None and size > self._max_bytes:
            return EntryTooLargeError(size, self._max_bytes)
        if len(value) > self._largest:
            return EntryTooLargeError(size, self._largest + len(key))
        return None

    def _write(self, connection: sqlite3.Connection, key: str, value: bytes, ttl: Optional[float], now: float) -> None:
        name, raw = self._store.disk.put(key)
        size, mode, filename, blob = self._store.disk.store(value, False, key)
        # 63 random bits name the write: no counter to share, and none that starts again.
        version = int.from_bytes(os.urandom(8), "big") >> 1
        expires = None if ttl is None else now + ttl
        row = (name, raw, now, expires, self._stamp(now), version, size, mode, filename, blob)
        # An insertion would first delete what is there, with all its places in the indices.
        if not connection.execute(_REPLACE, row).rowcount:
            connection.execute(_INSERT, row)

    def _purge(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute("DELETE FROM Cache WHERE expire_time <= ?", (now,))

    def _forget_expired(self, now: float) -> None:
        """Delete what was found expired, so that it does not come back when the clock is set back."""
        try:
            with self._store.write() as connection:
                self._purge(connection, now)
        except BackendUnavailableError:
            pass  # the miss is right in any case; another process is writing, or nobody may

    def _excess(self, usage: Usage) -> int:
        return 0 if self._max_bytes is None else max(0, usage.bytes - self._max_bytes)

    def _evict(self, connection: sqlite3.Connection, *, keep: Optional[str] = None) -> int:
        """Delete the least recently used until the limit holds, and return how many.

        Reads the index of uses from its old end, only as far as needed, so that it costs the same however
        many entries there are. Expired entries must be gone already.
        """
        excess = self._excess(_account(connection) or _recount(connection))
        if not excess:
            return 0
        self._fold(connection)
        victims: List[Tuple[int]] = []
        rows = connection.execute(_OLDEST, (keep,))
        for rowid, size in rows:
            victims.append((rowid,))
            excess -= size
            if excess <= 0:
                break
        rows.close()
        connection.executemany("DELETE FROM Cache WHERE rowid = ?", victims)
        return len(victims)

    def _stamp(self, now: float) -> int:
        """Return a time in microseconds that is later than every one before it, for the order of uses."""
        with self._uses_lock:
            return self._next_stamp(now)

    def _next_stamp(self, now: float) -> int:
        self._last_stamp = max(int(now * 1e6), self._last_stamp + 1)
        return self._last_stamp

    def _note_uses(self, keys: Iterable[str], now: float) -> None:
        with self._uses_lock:
            uses = self._uses
            for key in keys:
                uses.pop(key, None)
                uses[key] = self._next_stamp(now)
            if uses and self._timer is None:
                self._start_timer()
            full = len(uses) > _MAX_USES
        if not full:
            return
        try:
            self._fold_now()
        except BackendUnavailableError:
            # The read succeeded; only the oldest uses are forgotten.
            with self._uses_lock:
                for key in list(self._uses)[:-_MAX_USES]:
                    del self._uses[key]

    def _fold_now(self) -> None:
        if self._uses:
            with self._store.write() as connection:
                self._fold(connection)

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Write the uses that wait into the rows."""
        with self._uses_lock:
            uses, self._uses = self._uses, {}
        connection.executemany(
            "UPDATE Cache SET access_time = ?1 WHERE key = ?2 AND raw = 1 AND access_time < ?1",
            [(stamp, key) for key, stamp in uses.items()],
        )

    def _start_timer(self) -> None:
        self._timer = threading.Timer(_FOLD_SECONDS, self._fold_late)
        self._timer.daemon = True
        self._timer.start()

    def _fold_late(self) -> None:
        try:
            self._fold_now()
        except BackendUnavailableError:
            pass  # the uses are still there, and so is the next timer
        with self._uses_lock:
            if self._timer is not None:  # else the backend is closing
                self._timer = None
                if self._uses:
                    self._start_timer()


def _account(connection: sqlite3.Connection) -> Optional[Usage]:
    """Return what the triggers counted, or None if somebody spoilt it."""
    row = connection.execute(_ACCOUNT).fetchone()
    return Usage(*row) if all(isinstance(number, int) and number >= 0 for number in row) else None


def _recount(connection: sqlite3.Connection) -> Usage:
    """Count the rows, correct the account, and return it."""
    usage = Usage(*connection.execute("SELECT COUNT(*), ifnull(SUM(size), 0) FROM Cache").fetchone())
    connection.executemany(
        "INSERT OR REPLACE INTO Settings VALUES (?, ?)", [("count", usage.entries), ("size", usage.bytes)]
    )
    return usage


def _is_version(version: Optional[Hashable]) -> bool:
    """Whether ``version`` can be one of ours; SQLite would not take others as a parameter."""
    return version is None or (isinstance(version, int) and 0 <= version < 2**63)


def _folder(url: BackendURL) -> Path:
    if url.hosts or url.username is not None or url.password is not None:
        raise InvalidURLError(
            f"{url} names a host, and disk has none: write disk:///absolute/path with three slashes, or disk://"
        )
    if "\0" in url.path:
        raise InvalidURLError("the path of a disk cache contains a null character: remove it")
    try:
        if not url.path:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            return (base if base.is_absolute() else Path.home() / ".cache") / "claude-force-cache"
        if url.path == "/~" or url.path.startswith("/~/"):
            return Path.home() / url.path[3:]
    except RuntimeError:
        raise InvalidURLError("this user has no home directory: write disk:///absolute/path") from None
    if not url.path.startswith("/"):
        raise InvalidURLError(f"the path {url.path!r} of a disk cache is not absolute: write disk:///absolute/path")
    return Path(os.path.normpath(url.path))


def _create(settings: BackendSettings) -> DiskBackend:
    from ._disk_store import Store  # diskcache is imported only for those who chose it

    options = settings.options
    store = Store(
        _folder(settings.url),
        settings.namespace,
        options.get("busy_timeout", 5.0),
        private=options.get("private", True),
        network=options.get("network", False),
    )
    return DiskBackend(settings, store)


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    """Describe the backend ``disk``."""
    return BackendPlugin(
        create=_create,
        url="disk:///absolute/path (disk:///~/path from home, disk:// for the user's cache folder)",
        summary="a folder on this machine: kept between runs, shared by its processes",
        capabilities=_CAPABILITIES,
        options=_OPTIONS,
        client="diskcache",
        install="pip install 'claude-force-cache[disk]'",
        api_version=1,
    )
