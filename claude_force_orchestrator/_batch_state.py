"""What is under way at the API for batches, in a SQLite file of one job's own: it outlives the process.

Everything here blocks, and is meant for one thread at a time.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ._database import Format, open_database, writing
from ._errors import ConfigError

__all__ = ["BatchState", "Job", "Outstanding", "Waiting"]

_BUSY_SECONDS = 1.0

_SCHEMA = (
    """CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT,
        requests INTEGER NOT NULL,
        begun REAL NOT NULL
    )""",
    """CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        agent TEXT NOT NULL,
        task TEXT NOT NULL,
        options TEXT NOT NULL,
        size INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        batch INTEGER
    ) WITHOUT ROWID""",
    "CREATE INDEX requests_by_batch ON requests (batch)",
    "CREATE TABLE lines (number INTEGER PRIMARY KEY, request TEXT NOT NULL)",
    "CREATE INDEX lines_by_request ON lines (request)",
)
_FORMAT = Format(
    what="the file of batches under way",
    remedy="move it away",
    application_id=0x63664261,
    version=1,
    schema=_SCHEMA,
)


class Job(NamedTuple):
    """One request.

    :param id: its ``custom_id``.
    :param agent: the agent.
    :param task: the task.
    :param options: what it is asked with besides, as JSON.
    :param size: how many bytes it takes to send.
    """

    id: str
    agent: str
    task: str
    options: str
    size: int


class Waiting(NamedTuple):
    """A request whose result has come, or not.

    :param job: the request.
    :param attempts: how often it was sent and not answered before.
    :param numbers: the tasks that wait for it.
    """

    job: Job
    attempts: int
    numbers: Tuple[int, ...]


class Outstanding(NamedTuple):
    """A batch.

    :param number: its number in the file.
    :param id: the API's, or None if it is not known whether it was created.
    :param requests: how many there were in it.
    :param begun: when it was to be created, in seconds since 1970.
    """

    number: int
    id: Optional[str]
    requests: int
    begun: float


class BatchState:
    """The file, locked for this process while it is open.

    :param path: where it is. It is made, readable by its owner only, and :meth:`close` deletes it when nothing is under
        way any more.
    :raises ConfigError: if there is a file of another program or version, or another process is at work on it.
    :raises sqlite3.Error: if the file cannot be used; so do all methods.
    :raises OSError: likewise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_database(path, _FORMAT, busy_seconds=_BUSY_SECONDS, shared=True)
            try:
                self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
                with writing(self._file):
                    # What was not sent is read again; and which task asks for what may have changed.
                    self._file.execute("DELETE FROM lines")
                    self._file.execute("DELETE FROM requests WHERE batch IS NULL")
            except BaseException:
                self._file.close()
                raise
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be used ({error}): if another process works on these batches, wait for it"
            ) from error

    def close(self) -> None:
        """Close the file, and delete it if it says nothing any more."""
        over = not self._file.execute("SELECT EXISTS (SELECT 1 FROM batches)").fetchone()[0]
        self._file.close()
        if over:
            self.path.unlink()

    def add(self, tasks: Iterable[Tuple[int, Job]]) -> None:
        """Note which request each task waits for. Requests that are there already stay as they are."""
        with writing(self._file):
            for number, job in tasks:
                self._file.execute(
                    "INSERT OR IGNORE INTO requests (id, agent, task, options, size) VALUES (?, ?, ?, ?, ?)", job
                )
                self._file.execute("INSERT OR REPLACE INTO lines VALUES (?, ?)", (number, job.id))

    def take(self, *, most: int, most_bytes: int, now: float, whole: bool) -> Optional[Tuple[int, List[Job]]]:
        """Put requests that were not sent into a new batch, and return its number and them.

        :param most: how many requests a batch may have.
        :param most_bytes: how many bytes they may take.
        :param now: seconds since 1970.
        :param whole: make no batch that has room for more.
        :returns: None if there are no requests, or not enough.
        """
        taken: List[Job] = []
        size, full = 0, False
        with writing(self._file):
            for row in self._file.execute(
                "SELECT id, agent, task, options, size FROM requests WHERE batch IS NULL LIMIT ?", (most,)
            ):
                job = Job(*row)
                size += job.size
                if taken and size > most_bytes:
                    full = True
                    break
                taken.append(job)
            if not taken or (whole and not full and len(taken) < most):
                return None
            self._file.execute("INSERT INTO batches (requests, begun) VALUES (?, ?)", (len(taken), now))
            batch = int(self._file.execute("SELECT last_insert_rowid()").fetchone()[0])
            self._file.executemany("UPDATE requests SET batch = ? WHERE id = ?", [(batch, job.id) for job in taken])
        return batch, taken

    def put_back(self, number: int, identifiers: Sequence[str]) -> None:
        """Take requests out of a batch that was not sent yet; a batch without any is forgotten."""
        with writing(self._file):
            self._file.executemany("UPDATE requests SET batch = NULL WHERE id = ?", [(each,) for each in identifiers])
            self._file.execute(
                "UPDATE batches SET requests = requests - ? WHERE number = ?", (len(identifiers), number)
            )
            self._file.execute("DELETE FROM batches WHERE number = ? AND requests = 0", (number,))

    def name(self, number: int, identifier: str) -> None:
        """Note what the API calls a batch."""
        self._file.execute("UPDATE batches SET id = ? WHERE number = ?", (identifier, number))

    def batches(self) -> List[Outstanding]:
        """Return the batches that are under way, the oldest first."""
        rows = self._file.execute("SELECT number, id, requests, begun FROM batches ORDER BY number")
        return [Outstanding(*row) for row in rows.fetchall()]

    def find(self, identifiers: Sequence[str]) -> Dict[str, Waiting]:
        """Return those of some requests that wait for a result."""
        return {found.job.id: found for found in map(self._waiting, identifiers) if found is not None}

    def of_batch(self, number: Optional[int], most: int) -> List[Waiting]:
        """Return some of the requests of a batch that still wait for a result; with None, of those in none."""
        rows = self._file.execute("SELECT id FROM requests WHERE batch IS ? LIMIT ?", (number, most)).fetchall()
        return list(self.find([row[0] for row in rows]).values())

    def done(self, identifiers: Iterable[str]) -> None:
        """Forget requests, and which tasks wait for them."""
        with writing(self._file):
            for identifier in identifiers:
                self._file.execute("DELETE FROM requests WHERE id = ?", (identifier,))
                self._file.execute("DELETE FROM lines WHERE request = ?", (identifier,))

    def again(self, identifiers: Iterable[str]) -> None:
        """Let requests be part of another batch."""
        with writing(self._file):
            for identifier in identifiers:
                self._file.execute(
                    "UPDATE requests SET batch = NULL, attempts = attempts + 1 WHERE id = ?", (identifier,)
                )

    def give_back(self, number: int) -> None:
        """Forget a batch; its requests were not sent."""
        with writing(self._file):
            self._file.execute("UPDATE requests SET batch = NULL WHERE batch = ?", (number,))
            self._file.execute("DELETE FROM batches WHERE number = ?", (number,))

    def _waiting(self, identifier: str) -> Optional[Waiting]:
        row = self._file.execute(
            "SELECT id, agent, task, options, size, attempts FROM requests WHERE id = ?", (identifier,)
        ).fetchone()
        if row is None:
            return None
        lines = self._file.execute("SELECT number FROM lines WHERE request = ? ORDER BY number", (identifier,))
        return Waiting(Job(*row[:5]), row[5], tuple(number for (number,) in lines.fetchall()))
