"""The tracker that is used by default: executions go through a queue and a thread into a SQLite file."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Callable, Deque, List, Optional, Union

from ._errors import ConfigError
from ._executions import Executions
from ._tracking import MAX_AGE_DAYS, MAX_RECORDS, ExecutionRecord

__all__ = ["SQLiteTracker"]

_GATHER_SECONDS = 0.05
_IDLE_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_BUSY_SECONDS = 2.0
_LAST_SECONDS = 10.0
"""How long what is left is tried at the end, if others hold the file."""

_MOST_PENDING = 10_000
_MOST_PENDING_AFTER_FAILURE = 5_000
_BATCH = 2_000
_PRUNE_EVERY = 10_000

_logger = logging.getLogger("claude_force_orchestrator")
_writers: weakref.WeakSet[_Writer] = weakref.WeakSet()
_of_parents: List[sqlite3.Connection] = []


class SQLiteTracker:
    """Records executions in a SQLite file that several processes may share.

    :meth:`record` only appends to a queue; a thread gathers what comes within a twentieth of a second and writes it in
    one transaction. What is still queued is written by :meth:`close`, and at the end of the process. A file that
    cannot be written is tried again every second, while up to 10,000 records wait for it; what that costs is one line
    in the log, and the oldest records above that. A forked process records only executions of its own.

    :param path: the file. It is made, readable by its owner only, and its folder, if it is missing.
    :param max_age_days: how old records may become.
    :param max_records: how many are kept. Both are enforced when the first record is written and after every 10,000.
    :param clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        max_age_days: float = MAX_AGE_DAYS,
        max_records: int = MAX_RECORDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self._writer = _Writer(self.path, max_age_days, max_records, clock)
        self._finalizer = weakref.finalize(self, self._writer.stop)

    def record(self, record: ExecutionRecord) -> bool:
        """Queue a record. Neither blocks nor fails.

        :returns: whether more than 10,000 records are queued.
        """
        writer = self._writer
        pending = writer.pending
        pending.append(record)
        if not writer.roused:
            writer.rouse()
        return len(pending) > _MOST_PENDING

    def flush(self) -> None:
        """Write what is queued. Blocks while it does. What cannot be written stays queued, and is logged once."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is queued, end the thread and close the file. Blocks while it does, at most some ten seconds.

        What others kept it from writing for so long is lost, and logged. A later record starts everything again.
        """
        self._writer.stop()


class _Writer:
    """What the tracker's thread works on; it does not refer to the tracker, so that one can be collected.

    :ivar roused: whether the thread knows that there is something to write.
    """

    def __init__(self, path: Path, days: float, most: int, clock: Callable[[], float]) -> None:
        self._days = days
        self._most = most
        self._clock = clock
        self._store = Executions(path, busy_seconds=_BUSY_SECONDS, shared=True)
        self.reset()
        _writers.add(self)

    def reset(self) -> None:
        """Begin with nothing: no records, no thread, no locks that somebody may hold."""
        self.pending: Deque[ExecutionRecord] = deque()
        self.roused = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._write_lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._attempts = 0
        self._unpruned = _PRUNE_EVERY
        self._failed = False
        self._busy = False
        self._lost = 0

    def forget_parent(self) -> None:
        """Leave to the parent process what is its own. To close its file here would disturb its locks."""
        file = self._store.abandon()
        if file is not None:
            _of_parents.append(file)
        self.reset()

    def rouse(self) -> None:
        self.roused = True
        self._wake.set()
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._stopping.clear()
                    # A daemon, so that a process may end; the finalizer writes what is left.
                    thread = threading.Thread(target=self._run, name="claude-force-tracking", daemon=True)
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._wake.wait(_IDLE_SECONDS):
                with self._write_lock:
                    self._store.close()
                self._wake.wait()
            self._stopping.wait(_RETRY_SECONDS if self._failed else _GATHER_SECONDS)
            # Taken back before the queue is emptied: what is queued after that rouses it again.
            self._wake.clear()
            self.roused = False
            self.flush()
            if self._failed:
                self._wake.set()

    def flush(self) -> None:
        before = self._attempts
        with self._write_lock:
            # An attempt that others began meanwhile, and have ended, was one for all that wait here.
            if self._attempts == before:
                self._attempts += 1
                self._write()

    def stop(self) -> None:
        with self._start_lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._stopping.set()
                self._wake.set()
                thread.join()
                self._wake.clear()
                self.roused = False
        deadline = time.monotonic() + _LAST_SECONDS
        with self._write_lock:
            while not self._write() and self._busy and time.monotonic() < deadline:
                time.sleep(_GATHER_SECONDS)
            self._lost += len(self.pending)
            self.pending.clear()
            if self._lost:
                _logger.warning("%d executions could not be recorded in %s", self._lost, self._store.path)
                self._lost = 0
            self._store.close()

    def _write(self) -> bool:
        """Write all that is queued, and return whether that went well."""
        while self.pending:
            batch = [self.pending.popleft() for _ in range(min(_BATCH, len(self.pending)))]
            try:
                self._store.add(batch)
            except (ConfigError, OSError, sqlite3.Error) as error:
                self.pending.extendleft(reversed(batch))
                self._fail(error)
                return False
            self._failed = False
            self._unpruned += len(batch)
            if self._unpruned >= _PRUNE_EVERY:
                self._prune()
        return True

    def _prune(self) -> None:
        try:
            self._store.prune(self._clock(), days=self._days, most=self._most)
            self._unpruned = 0
        except (OSError, sqlite3.Error) as error:
            _logger.debug("old executions in %s stay until the next attempt: %s", self._store.path, error)

    def _fail(self, error: Exception) -> None:
        # It may be another file by the next attempt.
        self._store.close()
        # As SQLite says it; that the disk is full is not mended by waiting.
        self._busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
        excess = len(self.pending) - _MOST_PENDING_AFTER_FAILURE
        for _ in range(excess):
            self.pending.popleft()
        self._lost += max(0, excess)
        if not self._failed:
            self._failed = True
            _logger.warning("executions cannot be recorded in %s: %s", self._store.path, error)


def _forget_parents() -> None:
    for writer in tuple(_writers):
        writer.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)
