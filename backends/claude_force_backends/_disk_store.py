"""The SQLite database of a disk cache: diskcache's tables, our rules for what a row may do.

diskcache unpickles what it finds and follows the file name in a row. Neither can happen here: the verbs run
plain SQL through :class:`Store`, and rows become bytes by :class:`BytesDisk` alone. What is taken from
diskcache is its schema, whose triggers keep count and size of all rows in the transaction that changes them,
and its ``Disk``, which says how keys and values stand in a row. Its own verbs are not used: they evict softly,
wait for up to a minute and hide the cause of an error.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple, Union
from urllib.parse import quote

import diskcache

from claude_force_cache import BackendClosedError, BackendUnavailableError, ForeignStoreError

from ._disk_folder import ANOTHER, prepare_folder, unavailable_folder

__all__ = ["BytesDisk", "Store"]

_FORMAT = 1
_REMOVE = "remove its folder, only cached answers are lost"
_RAW = 1
"""diskcache's mode for a value that stands in the row itself."""

_TRUE_SIZE = "length(CAST(NEW.key AS BLOB)) + ifnull(length(CAST(NEW.value AS BLOB)), 0)"
_JUNK = "NEW.raw IS NOT 1 OR typeof(NEW.key) <> 'text' OR NEW.key GLOB '*[^a-z0-9._-]*'"

_CORRECT = f"UPDATE Cache SET size = {_TRUE_SIZE} WHERE rowid = NEW.rowid"  # noqa: S608 - constants only
_DISCARD = "DELETE FROM Cache WHERE rowid = NEW.rowid"

# These hold for every writer of the file, also one that does not know us: INSERT OR REPLACE fires no delete
# trigger, so the predecessor is deleted before; a size that lies is put right; a key that no verb could ever
# name is not kept. Each is a name, an event, a condition and what to do.
_TRIGGERS = (
    ("replace", "BEFORE INSERT", "1", "DELETE FROM Cache WHERE key = NEW.key AND raw = NEW.raw"),
    ("size_insert", "AFTER INSERT", f"NEW.size IS NOT {_TRUE_SIZE}", _CORRECT),
    ("size_update", "AFTER UPDATE OF key, value, size", f"NEW.size IS NOT {_TRUE_SIZE}", _CORRECT),
    ("junk_insert", "AFTER INSERT", _JUNK, _DISCARD),
    ("junk_update", "AFTER UPDATE OF key, raw", _JUNK, _DISCARD),
)


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """How keys and values stand in a row: as text and as bytes, never pickled, never in a file."""

    def __init__(self, directory: str, **_: object) -> None:
        super().__init__(directory)

    def put(self, key: str) -> Tuple[str, bool]:
        """Return the columns ``key`` and ``raw``."""
        return key, True

    def get(self, key: Union[str, bytes], raw: object) -> str:
        """Return the key of a row."""
        return key if isinstance(key, str) else key.decode("ascii", "replace")

    def store(self, value: bytes, read: bool, key: str = "") -> Tuple[int, int, None, bytes]:
        """Return the columns ``size``, ``mode``, ``filename`` and ``value``; the size is that of the contract."""
        return len(key) + len(value), _RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        """Return the bytes of a row, whatever its mode and file name say. What is no blob becomes other bytes."""
        if isinstance(value, bytes):
            return value
        return b"" if value is None else str(value).encode()

    def filename(self, key: object = None, value: object = None) -> Tuple[str, str]:
        """Refuse: no value has a file.

        :raises TypeError: always.
        """
        raise TypeError("a value of a disk cache stands in its row")

    def remove(self, file_path: str) -> None:
        """Do nothing: no value has a file, so what a row names is not ours."""


class _Schema(diskcache.Cache):  # type: ignore[misc]  # diskcache ships no types
    """diskcache's constructor makes its tables, on a connection and in a transaction that are ours.

    The pin ``diskcache<6`` covers the two private properties. It expands variables in a folder's name and
    creates what is missing, therefore the name of a folder that always exists; no file is opened by it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        super().__init__(
            os.sep,
            disk=BytesDisk,
            eviction_policy="none",
            cull_limit=0,
            statistics=0,
            tag_index=0,
            size_limit=2**62,
            **{f"sqlite_{name}": value for name, value in _PRAGMAS.items()},
        )

    @property
    def _con(self) -> sqlite3.Connection:
        return self._connection

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        return self._connection.execute

    def close(self) -> None:
        """Leave the connection to its owner."""


# No memory mapping: a fault of the disk would kill the process instead of raising an error.
_PRAGMAS = {"auto_vacuum": 2, "cache_size": 2048, "journal_mode": "wal", "mmap_size": 0, "synchronous": 1}


class Store:
    """One namespace's database: a pool of connections, transactions, and errors of the contract.

    A folder that is removed while it is open is made anew, empty, by the next verb. Not to be carried across
    a fork.

    :param root: the cache folder, absolute.
    :param namespace: the namespace; its database has a folder of its own below ``root``.
    :param busy_timeout: how long to wait for another writer, in seconds.
    :param private: refuse a folder that other users can change.
    :param network: take a folder on a network file system, too.
    """

    def __init__(
        self, root: Path, namespace: str, busy_timeout: float, *, private: bool = True, network: bool = False
    ) -> None:
        self._root = root
        self._private = private
        self._network = network
        self._namespace = namespace
        self._busy_timeout = busy_timeout
        self.disk = BytesDisk(str(root))
        self._path: Optional[Path] = None
        self._file = ""  # the same, for the look at it before each verb
        # In one process writers queue here: SQLite's own waiting polls, at growing intervals.
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._idle: List[sqlite3.Connection] = []
        self._identity: Optional[Tuple[int, int]] = None
        self._opened = False

    def open(self) -> None:
        """Make or check folder, file and tables.

        :raises ForeignStoreError: if any of them is not ours.
        :raises BackendUnavailableError: if they cannot be used.
        """
        try:
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise self._translated(error) from error
        self._opened = True

    def close(self) -> None:
        """Close every connection. Idempotent. No transaction may be running."""
        with self._guard:
            self._opened = False
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection on which each statement sees one committed state."""
        if not self._opened:
            raise BackendClosedError("the disk cache is not open: use it between open() and close()")
        try:
            identity, connection = self._take()
            try:
                yield connection
            except BaseException:
                # Closing rolls back, and a connection that failed is not worth keeping.
                connection.close()
                raise
            self._give(identity, connection)
        except (OSError, sqlite3.Error) as error:
            raise self._translated(error) from error

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside the only write transaction; it is committed at the end, or rolled back."""
        if not self._writing.acquire(timeout=self._busy_timeout):
            raise self._locked()
        try:
            with self.read() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writing.release()

    def _take(self) -> Tuple[Tuple[int, int], sqlite3.Connection]:
        identity = self._identify()
        with self._guard:
            outdated = [] if identity == self._identity else self._idle
            if identity != self._identity:
                self._idle, self._identity = [], identity
            connection = self._idle.pop() if self._idle else None
        for old in outdated:
            old.close()
        return identity, connection or self._connect()

    def _give(self, identity: Tuple[int, int], connection: sqlite3.Connection) -> None:
        with self._guard:
            if self._opened and identity == self._identity:
                self._idle.append(connection)
                return
        connection.close()

    def _identify(self) -> Tuple[int, int]:
        """Return which file is in place now. SQLite would go on in one that was removed, where nobody looks.

        One that took its place is looked at as at the beginning.
        """
        found = None
        if self._file:
            try:
                status = os.lstat(self._file)
                found = status.st_dev, status.st_ino
            except FileNotFoundError:
                pass
        if found is None or self._identity not in {None, found}:
            try:
                status = os.lstat(self._prepare())
            except ForeignStoreError as error:
                raise BackendUnavailableError(str(error)) from error
            found = status.st_dev, status.st_ino
        return found

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file://{quote(str(self._path))}?mode=rw",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for name in ("cache_size", "mmap_size", "synchronous"):
                connection.execute(f"PRAGMA {name} = {_PRAGMAS[name]}").close()
        except BaseException:
            connection.close()
            raise
        # Text that is not UTF-8 would raise. Only a key is text, and it is ASCII.
        connection.text_factory = bytes
        return connection

    def _prepare(self) -> Path:
        path = self._path = prepare_folder(
            self._root, self._namespace, "cache.db", private=self._private, network=self._network
        )
        self._file = str(path)
        connection = self._connect()
        try:
            if _pragma(connection, "user_version") != _FORMAT:
                connection.text_factory = str
                self._create_tables(connection)
        finally:
            connection.close()
        return path

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        self._require_ours_or_empty(connection)  # the next two would change the file already
        connection.execute(f"PRAGMA auto_vacuum = {_PRAGMAS['auto_vacuum']}").close()
        self._switch_to_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        self._require_ours_or_empty(connection)
        if _pragma(connection, "user_version") == _FORMAT:
            return  # another process was first
        _Schema(connection)
        connection.execute("CREATE INDEX Cache_access_time ON Cache (access_time)")
        for name, event, condition, action in _TRIGGERS:
            connection.execute(f"CREATE TRIGGER Cache_{name} {event} ON Cache WHEN {condition} BEGIN {action}; END")
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")

    def _require_ours_or_empty(self, connection: sqlite3.Connection) -> None:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        # In this order: another process that makes the tables just now commits them with the version.
        version = _pragma(connection, "user_version")
        if version not in {0, _FORMAT} or (version == 0 and tables):
            raise ForeignStoreError(
                f"{self._path} is a database that this version of the package did not make: remove it, or {ANOTHER}"
            )

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        # SQLite does not wait by itself when two processes do this at the same time.
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = wal").fetchall()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def _translated(self, error: Exception) -> BackendUnavailableError:
        if isinstance(error, OSError):
            return unavailable_folder(error, self._root)
        text = str(error)
        if "locked" in text or "busy" in text:
            return self._locked()
        folder = f"cache folder {self._root}"
        if "readonly" in text or "unable to open" in text:
            try:
                self._require_writable()
            except OSError as refusal:
                return unavailable_folder(refusal, self._root)
        for sign, cause, remedy in (
            ("full", f"the disk of {folder} is full", "free space, or lower max_bytes"),
            ("malformed", f"the database {self._path} is damaged", _REMOVE),
            ("not a database", f"the database {self._path} is damaged", _REMOVE),
        ):
            if sign in text:
                return BackendUnavailableError(f"{cause}: {remedy}")
        return BackendUnavailableError(f"the database {self._path} fails ({text}): check its disk, or {ANOTHER}")

    def _require_writable(self) -> None:
        """Find out what the system has against writing, for SQLite does not tell."""
        if self._path is not None:
            os.close(os.open(self._path, os.O_RDWR))
            if not os.access(self._path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _locked(self) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"cache folder {self._root} was locked for more than {self._busy_timeout:g} s: "
            "look for a process that holds it, or raise busy_timeout"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
