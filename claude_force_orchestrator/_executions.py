"""Executions: the records of them, in a SQLite file that several processes write to. Everything here blocks."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple

from ._database import Format, open_database, writing
from ._tracking import ExecutionRecord

__all__ = ["COLUMNS", "Executions"]

COLUMNS = ExecutionRecord._fields
"""The columns of the table ``executions``, each as in :class:`ExecutionRecord`."""

_DAY = 86_400.0
_LONGEST_LABEL = 256
_LARGEST = 2**63

_FORMAT = Format(
    what="the record of executions",
    remedy="move it away, or name another file in tracking.path of claude.json",
    application_id=0x63665478,
    version=2,
    schema=(
        """CREATE TABLE executions (
            id INTEGER PRIMARY KEY,
            ended REAL NOT NULL,
            agent TEXT,
            model TEXT NOT NULL,
            outcome TEXT NOT NULL,
            latency REAL NOT NULL,
            error TEXT,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cache_write_tokens INTEGER,
            cache_read_tokens INTEGER,
            cost REAL,
            saved REAL,
            backend TEXT,
            key_age REAL,
            key TEXT,
            stale INTEGER NOT NULL,
            streamed INTEGER NOT NULL,
            workflow TEXT,
            position INTEGER,
            run TEXT,
            prompt_cache_saved REAL,
            imported BLOB
        )""",
        "CREATE INDEX executions_by_end ON executions (ended)",
        "CREATE UNIQUE INDEX executions_imported_once ON executions (imported) WHERE imported IS NOT NULL",
    ),
)
_NAMES = (*COLUMNS, "imported")
_INSERT = f"INSERT OR IGNORE INTO executions ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"  # noqa: S608 - names of ours


class Executions:
    """The file, opened when it is first needed, and again after :meth:`close`.

    Every method raises :class:`ConfigError` if there is a file of another program or version at the path, and
    ``sqlite3.Error`` or ``OSError`` if the file cannot be used; nothing has been written then.

    :param path: where it is. It is made, readable by its owner only, when there is something to write.
    :param busy_seconds: how long a transaction waits for other processes.
    :param shared: whether several threads use this object, one after the other.
    """

    def __init__(self, path: Path, *, busy_seconds: float = 10.0, shared: bool = False) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._shared = shared
        self._file: Optional[sqlite3.Connection] = None

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    @property
    def file(self) -> sqlite3.Connection:
        """The open file. Whoever only reads asks :attr:`exists` first, since it is made if there is none."""
        if self._file is None:
            file = open_database(self.path, _FORMAT, busy_seconds=self._busy_seconds, shared=self._shared)
            try:
                # Readers and the writer do not wait for each other, and a commit does not wait for the disk: a crash
                # of the machine may cost the last records, one of the process none that were committed.
                file.execute("PRAGMA journal_mode = WAL").fetchall()
                file.execute("PRAGMA synchronous = NORMAL")
            except BaseException:
                file.close()
                raise
            self._file = file
        return self._file

    def add(self, records: Iterable[ExecutionRecord]) -> None:
        """Add records, all of them or none."""
        with writing(self.file):
            self.file.executemany(_INSERT, [(*_row(record), None) for record in records])

    def add_imported(self, records: Sequence[Tuple[bytes, ExecutionRecord]]) -> int:
        """Add records that come from elsewhere, all or none, and return how many were not there yet.

        :param records: each with the digest by which it is known again.
        """
        with writing(self.file):
            return self.file.executemany(_INSERT, [(*_row(record), digest) for digest, record in records]).rowcount

    def prune(self, now: float, *, days: float, most: int) -> int:
        """Delete what is older than ``days``, and the oldest above ``most``; return how many records that were."""
        with writing(self.file):
            count = self.file.execute("DELETE FROM executions WHERE ended <= ?", (now - days * _DAY,)).rowcount
            return (
                count
                + self.file.execute(
                    "DELETE FROM executions WHERE id IN"
                    " (SELECT id FROM executions ORDER BY ended DESC, id DESC LIMIT -1 OFFSET ?)",
                    (most,),
                ).rowcount
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def abandon(self) -> Optional[sqlite3.Connection]:
        """Return the open file, if there is one, for a forked process to keep unused: it is its parent's."""
        file, self._file = self._file, None
        return file


def _row(record: ExecutionRecord) -> List[object]:
    """Return what is stored. What a caller gave, or an API said, may be what SQLite cannot store."""
    row: List[object] = []
    for value in record:
        if isinstance(value, str):
            row.append(value[:_LONGEST_LABEL].encode("utf-8", "replace").decode("utf-8"))
        elif isinstance(value, int):
            row.append(int(value) if -_LARGEST <= value < _LARGEST else None)
        else:
            row.append(value if isinstance(value, float) else None)
    return row
