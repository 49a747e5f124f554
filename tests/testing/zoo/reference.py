"""Two backends that keep the whole contract, written to be read: one of coroutines, one that blocks.

Both look at every entry in every verb, so there is nothing to get wrong about when an entry expires. Each
rule of the contract has its own small method, so that a mutant can break one and leave the others alone.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import AsyncIterator, Dict, Hashable, Iterator, List, MutableMapping, NamedTuple, Optional

from claude_force_cache import (
    Backend,
    BackendClosedError,
    BackendUnavailableError,
    Capabilities,
    Clock,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    SyncBackend,
    Usage,
)

__all__ = ["DictBackend", "Record", "SQLiteBackend", "Table"]


class Record(NamedTuple):
    """An entry as the dictionary holds it."""

    value: bytes
    expires: Optional[float]
    version: Hashable


class Table:
    """One namespace: its records, least recently used first, and its account, which it keeps itself."""

    def __init__(self) -> None:
        self.records: Dict[str, Record] = {}
        self.bytes = 0
        self.versions = itertools.count(1)
        self.lock = threading.Lock()

    def put(self, key: str, record: Record) -> None:
        self.records[key] = record
        self.bytes += self.size(key, record)

    def remove(self, key: str) -> None:
        self.bytes -= self.size(key, self.records.pop(key))

    def use(self, key: str) -> None:
        self.records[key] = self.records.pop(key)

    def size(self, key: str, record: Record) -> int:
        return len(key) + len(record.value)


Shelf = MutableMapping[str, Table]
"""The store of :class:`DictBackend`: its tables by namespace. Whoever holds it keeps the entries."""


class DictBackend(Backend):
    """A backend of coroutines on a dictionary, which outlives it."""

    capabilities = Capabilities(shared_between_processes=False, shared_between_machines=False)
    table_type = Table

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        self.max_bytes = max_bytes
        self.clock = clock or time.time
        self.table = shelf.setdefault(namespace, self.table_type())
        self.opened = False

    async def open(self) -> None:
        self.opened = True
        with self.turn():
            self.make_room()

    async def close(self) -> None:
        self.opened = False

    async def get(self, key: str) -> Optional[Entry]:
        with self.turn():
            record = self.table.records.get(key)
            if record is None:
                return None
            self.table.use(key)
            return Entry(record.value, record.version)

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.turn() as now:
            return self.store(key, value, ttl, now)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.turn() as now:
            if key in self.table.records:
                self.table.use(key)
                return False
            self.store(key, value, ttl, now)
            return True

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        with self.turn():
            if not self.holds(key, version):
                return False
            self.table.remove(key)
            return True

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        with self.turn() as now:
            if not self.holds(key, version):
                return False
            self.renew(key, self.expiry(ttl, now))
            self.table.use(key)
            return True

    async def scan(self) -> AsyncIterator[EntryInfo]:
        with self.turn() as now:
            infos = self.infos(now)
        for info in infos:
            yield info

    async def usage(self) -> Usage:
        with self.turn():
            return Usage(len(self.table.records), self.table.bytes)

    async def clear(self) -> int:
        with self.turn():
            keys = list(self.table.records)
            for key in keys:
                self.table.remove(key)
            return len(keys)

    async def ping(self) -> None:
        with self.turn():
            pass

    def drop(self, key: str) -> None:
        """Let the store end an entry's life by itself."""
        with self.table.lock:
            if key in self.table.records:
                self.table.remove(key)

    def peek(self, key: str) -> Optional[bytes]:
        """Return the stored bytes, as somebody else who reads the store."""
        with self.table.lock:
            record = self.table.records.get(key)
            return None if record is None else record.value

    def poke(self, key: str, value: bytes) -> None:
        """Replace the stored bytes, as somebody else who writes to the store."""
        with self.table.lock:
            record = self.table.records[key]
            self.table.records[key] = record._replace(value=value)
            self.table.bytes += len(value) - len(record.value)

    @contextmanager
    def locked(self) -> Iterator[float]:
        """Yield the time, alone with the table."""
        if not self.opened:
            raise BackendClosedError("open the backend first")
        with self.table.lock:
            yield self.clock()

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Yield the time, alone with the table, which holds nothing but live entries."""
        with self.locked() as now:
            self.purge(now)
            yield now

    def purge(self, now: float) -> None:
        for key in self.dead(now):
            self.table.remove(key)

    def dead(self, now: float) -> List[str]:
        return [k for k, r in self.table.records.items() if r.expires is not None and r.expires <= now]

    def holds(self, key: str, version: Optional[Hashable]) -> bool:
        record = self.table.records.get(key)
        return record is not None and version in {None, record.version}

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        record = Record(bytes(value), self.expiry(ttl, now), self.new_version(key, value))
        if key in self.table.records:
            self.replace(key)
        self.refuse(key, record)
        return self.admit(key, record)

    def admit(self, key: str, record: Record) -> int:
        self.table.put(key, record)
        return self.make_room()

    def replace(self, key: str) -> None:
        """Take the predecessor of a new entry away."""
        self.table.remove(key)

    def renew(self, key: str, expires: Optional[float]) -> None:
        self.table.records[key] = self.table.records[key]._replace(expires=expires)

    def refuse(self, key: str, record: Record) -> None:
        size = self.table.size(key, record)
        if self.max_bytes is not None and size > self.max_bytes:
            raise EntryTooLargeError(size, self.max_bytes)

    def make_room(self) -> int:
        evicted = 0
        while self.too_full():
            self.table.remove(self.victim())
            evicted += 1
        return evicted

    def too_full(self) -> bool:
        return self.max_bytes is not None and self.table.bytes > self.max_bytes

    def victim(self) -> str:
        return next(iter(self.table.records))

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return None if ttl is None else now + ttl

    def new_version(self, key: str, value: bytes) -> Hashable:
        return next(self.table.versions)

    def infos(self, now: float) -> List[EntryInfo]:
        return [
            EntryInfo(key, self.table.size(key, record), None if record.expires is None else record.expires - now)
            for key, record in self.table.records.items()
        ]


class SQLiteBackend(SyncBackend):
    """A backend that blocks, on a database that threads and processes share; its triggers keep the account.

    ``serial`` in the table of accounts numbers the writes and uses of a namespace. It only ever grows.
    """

    capabilities = Capabilities(shared_between_machines=False)
    schema = """
        create table if not exists entries (
            namespace text, key text, value blob, expires real, version integer, used integer,
            primary key (namespace, key)
        );
        create table if not exists accounts (
            namespace text primary key, entries integer default 0, bytes integer default 0, serial integer default 0
        );
        create trigger if not exists inserted after insert on entries begin
            update accounts set entries = entries + 1, bytes = bytes + length(new.key) + length(new.value)
            where namespace = new.namespace;
        end;
        create trigger if not exists deleted after delete on entries begin
            update accounts set entries = entries - 1, bytes = bytes - length(old.key) - length(old.value)
            where namespace = old.namespace;
        end;
        create trigger if not exists changed after update of value on entries begin
            update accounts set bytes = bytes - length(old.value) + length(new.value)
            where namespace = new.namespace;
        end;
    """

    def __init__(self, path: Path, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        self.path = path
        self.namespace = namespace
        self.max_bytes = max_bytes
        self.clock = clock or time.time
        self.lock = threading.Lock()
        self.database: Optional[sqlite3.Connection] = None

    def open(self) -> None:
        self.database = self.connect()
        self.database.executescript(f"pragma synchronous = off; pragma journal_mode = memory; {self.schema}")
        self.database.execute("insert or ignore into accounts (namespace) values (?)", [self.namespace])
        with self.transaction():
            self.make_room()

    def close(self) -> None:
        with self.lock:
            if self.database is not None:
                self.database.close()
                self.database = None

    def get(self, key: str) -> Optional[Entry]:
        with self.transaction():
            entry = self.find(key)
            if entry is not None:
                self.use(key)
            return entry

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.transaction() as now:
            self.remove(key)
            evicted = self.store(key, value, ttl, now)
        self.refuse(key, value)
        return evicted

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.transaction() as now:
            if self.find(key) is not None:
                self.use(key)
                return False
            self.store(key, value, ttl, now)
        self.refuse(key, value)
        return True

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        with self.transaction():
            if not self.holds(key, version):
                return False
            self.remove(key)
            return True

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        with self.transaction() as now:
            if not self.holds(key, version):
                return False
            expires = None if ttl is None else now + ttl
            self.run("update entries set expires = :expires where namespace = :namespace and key = :key", key, expires)
            self.use(key)
            return True

    def scan(self) -> Iterator[EntryInfo]:
        with self.transaction() as now:
            rows = self.run(
                "select key, length(key) + length(value), expires from entries where namespace = :namespace"
            )
            infos = [EntryInfo(key, size, None if expires is None else expires - now) for key, size, expires in rows]
        return iter(infos)

    def usage(self) -> Usage:
        with self.transaction():
            return Usage(*self.run("select entries, bytes from accounts where namespace = :namespace").fetchone())

    def clear(self) -> int:
        with self.transaction():
            return self.run("delete from entries where namespace = :namespace").rowcount

    def ping(self) -> None:
        with self.transaction():
            pass

    def drop(self, key: str) -> None:
        """Let the store end an entry's life by itself."""
        with self.lock:
            self.remove(key)

    def peek(self, key: str) -> Optional[bytes]:
        """Return the stored bytes, as somebody else who reads the store."""
        with self.lock:
            entry = self.find(key)
            return None if entry is None else entry.value

    def poke(self, key: str, value: bytes) -> None:
        """Replace the stored bytes, as somebody else who writes to the store."""
        with self.lock:
            self.run("update entries set value = :value where namespace = :namespace and key = :key", key, value=value)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.path), timeout=30, isolation_level=None, check_same_thread=False)

    @contextmanager
    def transaction(self) -> Iterator[float]:
        """Yield the time, alone with the database, in which the namespace holds nothing but live entries."""
        with self.lock:
            if self.database is None:
                raise BackendClosedError("open the backend first")
            try:
                with self.database:
                    self.database.execute("begin immediate")
                    now = self.clock()
                    self.run("delete from entries where namespace = :namespace and expires <= :expires", expires=now)
                    yield now
            except sqlite3.Error as error:
                raise BackendUnavailableError(f"the database does not answer: {error}") from error

    def run(
        self, statement: str, key: str = "", expires: Optional[float] = None, value: bytes = b"", serial: int = 0
    ) -> sqlite3.Cursor:
        assert self.database is not None
        values = {"namespace": self.namespace, "key": key, "expires": expires, "value": value, "serial": serial}
        return self.database.execute(statement, values)

    def find(self, key: str) -> Optional[Entry]:
        row = self.run("select value, version from entries where namespace = :namespace and key = :key", key).fetchone()
        return None if row is None else Entry(*row)

    def holds(self, key: str, version: Optional[Hashable]) -> bool:
        entry = self.find(key)
        return entry is not None and version in {None, entry.version}

    def use(self, key: str) -> None:
        number = self.number()
        self.run("update entries set used = :serial where namespace = :namespace and key = :key", key, serial=number)

    def remove(self, key: str) -> None:
        self.run("delete from entries where namespace = :namespace and key = :key", key)

    def number(self) -> int:
        self.run("update accounts set serial = serial + 1 where namespace = :namespace")
        serial: int = self.run("select serial from accounts where namespace = :namespace").fetchone()[0]
        return serial

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        if not self.fits(key, value):
            return 0
        self.run(
            "insert into entries values (:namespace, :key, :value, :expires, :serial, :serial)",
            key,
            None if ttl is None else now + ttl,
            bytes(value),
            self.number(),
        )
        return self.make_room()

    def fits(self, key: str, value: bytes) -> bool:
        return self.max_bytes is None or len(key) + len(value) <= self.max_bytes

    def refuse(self, key: str, value: bytes) -> None:
        """Raise for an entry that does not fit, after the transaction that took its predecessor."""
        if self.max_bytes is not None and not self.fits(key, value):
            raise EntryTooLargeError(len(key) + len(value), self.max_bytes)

    def make_room(self) -> int:
        evicted = 0
        while self.max_bytes is not None and self.held() > self.max_bytes:
            oldest = self.run("select key from entries where namespace = :namespace order by used limit 1").fetchone()
            self.remove(oldest[0])
            evicted += 1
        return evicted

    def held(self) -> int:
        total: int = self.run("select bytes from accounts where namespace = :namespace").fetchone()[0]
        return total
