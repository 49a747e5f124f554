"""Backends that threads or processes bring out of step with each other."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import Dict, Iterator, Optional

from claude_force_cache import Capabilities, Entry, EntryTooLargeError, Usage

from .reference import SQLiteBackend
from .registry import caught_by


@caught_by("shared_entries", "shared_limit")
class UsageSeesOwnWritesOnly(SQLiteBackend):
    """``usage`` looks again only after a write of its own, so it does not see what others wrote."""

    changes = -1
    cached = Usage(0, 0)

    def usage(self) -> Usage:
        self.ping()
        assert self.database is not None
        if self.changes != self.database.total_changes:
            self.changes, self.cached = self.database.total_changes, super().usage()
        return self.cached


@caught_by("shared_entries")
class ReadsAreRemembered(SQLiteBackend):
    """What was read once comes from memory until the next write of its own, whatever others do."""

    changes = -1

    def open(self) -> None:
        self.remembered: Dict[str, Entry] = {}
        super().open()

    def get(self, key: str) -> Optional[Entry]:
        self.ping()
        assert self.database is not None
        if self.changes != self.database.total_changes:
            self.remembered.clear()
        entry = super().get(key)
        self.changes = self.database.total_changes
        return entry if entry is None else self.remembered.setdefault(key, entry)


@caught_by("concurrent_adds", "concurrent_connections")
class AddRacesBetweenThreads(SQLiteBackend):
    """An add looks first and stores later, so two threads that meet both win."""

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.transaction():
            taken = self.find(key) is not None
        if taken:
            return super().add(key, value, ttl=ttl)
        time.sleep(0.001)
        self.set(key, value, ttl=ttl)
        return True


@caught_by("concurrent_stores", "concurrent_writes_at_the_limit", "concurrent_event_loops", "concurrent_connections")
class AccountRacesBetweenThreads(SQLiteBackend):
    """A set reads the account and writes it back later, so what other threads did meanwhile is lost."""

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.transaction():
            before = self.held()
        time.sleep(0.001)
        with self.transaction() as now:
            actual = self.held()
            self.remove(key)
            evicted = self.store(key, value, ttl, now)
            account = before + self.held() - actual
            self.run("update accounts set bytes = :serial where namespace = :namespace", serial=account)
        self.refuse(key, value)
        return evicted


class _OneThread(SQLiteBackend):
    """Whatever a process does is done by one thread after the other, on all its connections."""

    process = threading.RLock()

    @contextmanager
    def transaction(self) -> Iterator[float]:
        with self.process, super().transaction() as now:
            yield now


@caught_by("processes_adding", "processes_deleting")
class AddRacesBetweenProcesses(_OneThread, AddRacesBetweenThreads):
    """An add looks first and stores later, alone among the threads of its process, but not among processes."""

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.process:
            return super().add(key, value, ttl=ttl)


@caught_by("processes_storing", "processes_writing_at_the_limit")
class AccountRacesBetweenProcesses(_OneThread, AccountRacesBetweenThreads):
    """A set reads the account and writes it back later, alone among the threads, but not among processes."""

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.process:
            return super().set(key, value, ttl=ttl)


@caught_by("use_from_elsewhere")
class BelongsToItsThread(SQLiteBackend):
    """The connection can be used by the thread alone that opened it."""

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.path), timeout=30, isolation_level=None)


@caught_by("concurrent_connections")
class GivesUpWhenOthersWrite(SQLiteBackend):
    """A verb that meets another process at work fails at once."""

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.path), timeout=0, isolation_level=None, check_same_thread=False)


@caught_by("processes_apart")
class DeclaresThatProcessesAreApart(SQLiteBackend):
    """The capabilities say that each process has entries of its own, and all have the same."""

    capabilities = Capabilities(shared_between_processes=False, shared_between_machines=False)


@caught_by("close_ends_everything")
class LeavesAThread(SQLiteBackend):
    """A thread that was started by ``open`` goes on after ``close``."""

    def open(self) -> None:
        super().open()
        threading.Thread(target=time.sleep, args=[60], name="sweeper", daemon=True).start()


@caught_by("eviction_order_of_all_backends")
class UsesAreCountedApart(SQLiteBackend):
    """Each connection numbers uses for itself, from where the store was when it was opened."""

    def open(self) -> None:
        self.uses = itertools.count(1)
        super().open()
        with self.transaction():
            self.uses = itertools.count(self.number())

    def use(self, key: str) -> None:
        self.run(
            "update entries set used = :serial where namespace = :namespace and key = :key", key, serial=next(self.uses)
        )

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        evicted = super().store(key, value, ttl, now)
        self.use(key)
        return evicted


@caught_by("shared_entries")
class RefusalKeepsTheLock(SQLiteBackend):
    """A refused add leaves its transaction open until the next verb, and nobody else can write."""

    left = False

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.path), timeout=0.2, isolation_level=None, check_same_thread=False)

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        try:
            return super().add(key, value, ttl=ttl)
        except EntryTooLargeError:
            assert self.database is not None
            self.database.execute("begin immediate")
            self.left = True
            raise

    @contextmanager
    def transaction(self) -> Iterator[float]:
        if self.left and self.database is not None:
            self.database.execute("rollback")
            self.left = False
        with super().transaction() as now:
            yield now
