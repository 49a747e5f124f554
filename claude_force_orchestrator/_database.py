"""SQLite files of ours: how they are made, told from other people's, and written by several processes."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, NamedTuple, Tuple

from ._errors import ConfigError

__all__ = ["Format", "open_database", "writing"]


class Format(NamedTuple):
    """One kind of file.

    :param what: what it is called in errors, such as ``the agents' memory``.
    :param remedy: what to do about a file that is of another kind.
    :param application_id: the number by which SQLite files of this kind are told.
    :param version: that of the tables.
    :param schema: the statements that make them.
    """

    what: str
    remedy: str
    application_id: int
    version: int
    schema: Tuple[str, ...]


def open_database(path: Path, kind: Format, *, busy_seconds: float, shared: bool = False) -> sqlite3.Connection:
    """Return an open file of one kind, which is made, readable by its owner only, if there is none. Blocks.

    :param busy_seconds: how long a statement waits for other processes.
    :param shared: whether several threads use the connection, one after the other.
    :raises ConfigError: if there is a file of another program or version at the path.
    :raises sqlite3.Error: if the file cannot be used.
    :raises OSError: likewise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # SQLite would make it readable for everybody.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
    file = sqlite3.connect(str(path), timeout=busy_seconds, isolation_level=None, check_same_thread=not shared)
    try:
        _check(file, path, kind)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def writing(file: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one transaction, which is undone if the block fails."""
    # The lock is taken at the beginning: a transaction that reads first and wants to write then may find that another
    # process has written in between, and fail.
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
        file.execute("COMMIT")
    except BaseException:
        # A full disk has undone it already.
        if file.in_transaction:
            file.execute("ROLLBACK")
        raise


def _check(file: sqlite3.Connection, path: Path, kind: Format) -> None:
    """Accept a file of the kind, and make one out of an empty one."""
    try:
        if _stamp(file) == (kind.application_id, kind.version):
            return
        with writing(file):
            application, version = _stamp(file)
            if (application, version) == (kind.application_id, kind.version):
                return
            tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not application and not version and not tables:
                for statement in kind.schema:
                    file.execute(statement)
                file.execute(f"PRAGMA application_id = {kind.application_id}")
                file.execute(f"PRAGMA user_version = {kind.version}")
                return
        found = "of another version" if application == kind.application_id else "of another program"
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        found = "no SQLite file, or damaged"
    raise ConfigError(f"{kind.what} {str(path)!r} is {found}; {kind.remedy}")


def _stamp(file: sqlite3.Connection) -> Tuple[int, int]:
    application, version = (
        int(file.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    return application, version
