"""Tracking: one JSON line for each execution, written by a thread."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import weakref
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Deque, Dict, NamedTuple, Optional

from ._result import AgentResult

__all__ = ["Record", "Tracker"]

_GATHER_SECONDS = 0.05
_MOST_PENDING = 10_000
_logger = logging.getLogger("claude_force_orchestrator")


class Record(NamedTuple):
    """One execution, to be recorded.

    :param ended: seconds since 1970.
    :param task: the task as given.
    :param result: what became of it.
    :param error_type: the name of its error's class, or None.
    """

    ended: float
    task: object
    result: AgentResult
    error_type: Optional[str]

    def line(self) -> str:
        """Return the record as a line of JSON, without the line's end."""
        metadata = self.result.metadata
        task = self.task if isinstance(self.task, str) else repr(self.task)
        fields: Dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(self.ended, timezone.utc).isoformat(),
            "agent_name": self.result.agent_name,
            "task_hash": hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:16],
            "success": self.result.success,
            "execution_time_ms": round(metadata.execution_time_ms, 3),
            "model": metadata.model,
            "input_tokens": metadata.input_tokens,
            "output_tokens": metadata.output_tokens,
            "total_tokens": metadata.tokens_used,
            "estimated_cost": metadata.estimated_cost,
            "error_type": self.error_type,
            "workflow_name": metadata.workflow_name,
            "workflow_position": metadata.workflow_position,
            "cached": metadata.cached,
            "saved_cost": metadata.saved_cost,
        }
        return json.dumps(fields, default=str)


class Tracker:
    """Appends executions to a file of JSON lines that several processes may share.

    :meth:`record` only appends to a queue; a thread gathers what comes within a twentieth of a second and
    appends it with one write of whole lines. What is still queued is written by :meth:`close`, and at the
    end of the process. A file that cannot be written costs its records and one line in the log, nothing else.

    :param path: the file. Its folder is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _Writer(path)
        self._finalizer = weakref.finalize(self, self._writer.stop)

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be written that the caller should :meth:`flush` before it records more."""
        return len(self._writer.pending) > _MOST_PENDING

    def record(self, record: Record) -> None:
        """Queue a record. Neither blocks nor fails."""
        self._writer.add(record)

    def flush(self) -> None:
        """Write what is queued. Blocks while it does."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is queued and end the thread. Blocks while it does. A later record starts another."""
        self._writer.stop()


class _Writer:
    """What the tracker's thread works on; it does not refer to the tracker, so that one can be collected."""

    def __init__(self, path: Path) -> None:
        self.pending: Deque[Record] = deque()
        self._path = path
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._write_lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._torn = False
        self._failed = False

    def add(self, record: Record) -> None:
        self.pending.append(record)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._stopping.clear()
                # A daemon, so that a process may end; the finalizer writes what is left.
                self._thread = threading.Thread(target=self._run, name="claude-force-tracking", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._stopping.wait(_GATHER_SECONDS)
            # Cleared before the queue is emptied: what is added after that sets it again.
            self._wake.clear()
            self.flush()

    def stop(self) -> None:
        with self._start_lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._stopping.set()
                self._wake.set()
                thread.join()
                self._wake.clear()
        self.flush()

    def flush(self) -> None:
        with self._write_lock:
            records = []
            while self.pending:
                records.append(self.pending.popleft())
            if records:
                self._append("".join([f"{record.line()}\n" for record in records]).encode("utf-8"))

    def _append(self, data: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # O_APPEND and one write: lines of several processes do not mix.
            file = os.open(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                data = b"\n" + data if self._torn else data
                written = os.write(file, data)
                self._torn = written < len(data)
                if self._torn:
                    raise OSError(f"only {written} of {len(data)} bytes were written")
            finally:
                os.close(file)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                _logger.warning("executions cannot be recorded in %s: %s", self._path, error)
