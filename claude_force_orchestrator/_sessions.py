"""Sessions: what agents were asked and what they answered, in a SQLite file that several processes may share.

Everything here blocks. Each call opens the file, does its work in one transaction, and closes it, so there is nothing
to close, and nothing that a fork or another thread could share by mistake.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ._database import Format, open_database, writing

__all__ = ["LONGEST_OUTPUT", "LONGEST_TASK", "Question", "Recollection", "Session", "Sessions", "text_digest"]

LONGEST_TASK = 1_000
"""Characters of a task that are kept."""

LONGEST_OUTPUT = 2_000
"""Characters of an answer that are kept."""

_BUSY_SECONDS = 10.0
_MOST_CHOICES = 100_000
_DAY = 86_400.0
_CUT = "\n[cut]"

# Ids are never given twice: what was chosen cannot come to mean something else.
_SCHEMA = (
    """CREATE TABLE sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        agent TEXT NOT NULL,
        task_digest BLOB NOT NULL,
        output_digest BLOB NOT NULL,
        task TEXT NOT NULL,
        output TEXT NOT NULL,
        ended REAL NOT NULL
    )""",
    "CREATE UNIQUE INDEX sessions_once ON sessions (agent, task_digest, output_digest)",
    "CREATE INDEX sessions_by_agent ON sessions (agent)",
    "CREATE INDEX sessions_by_end ON sessions (ended)",
    """CREATE TABLE choices (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        request BLOB NOT NULL UNIQUE,
        agent TEXT NOT NULL,
        task_digest BLOB NOT NULL,
        sessions TEXT NOT NULL,
        chosen REAL NOT NULL,
        expires REAL
    )""",
    "CREATE INDEX choices_by_task ON choices (agent, task_digest)",
    "CREATE INDEX choices_by_expiry ON choices (expires)",
)
_FORMAT = Format(
    what="the agents' memory",
    remedy="move it away, or name another file in memory.path of claude.json",
    application_id=0x63664D65,
    version=1,
    schema=_SCHEMA,
)


class Session(NamedTuple):
    """One task of an agent and its answer.

    :param id: its number in the file.
    :param agent: the agent.
    :param task: the task, or the beginning of a long one.
    :param output: the answer, likewise.
    :param ended: seconds since 1970.
    """

    id: int
    agent: str
    task: str
    output: str
    ended: float


class Question(NamedTuple):
    """What sessions are recalled for.

    :param agent: the agent.
    :param task: the digest of the task, of which no session is recalled.
    :param request: the digest of everything that the choice of sessions is remembered for.
    :param most: how many sessions at most.
    :param days: how old they may be.
    :param chosen_after: an earlier choice counts if it was made after this, in seconds since 1970.
    :param life: how many seconds a new choice is remembered; None is for ever, and 0 not at all.
    """

    agent: str
    task: bytes
    request: bytes
    most: int
    days: float
    chosen_after: float = float("-inf")
    life: Optional[float] = 0.0


class Recollection(NamedTuple):
    """What a question brings back.

    :param sessions: earlier sessions, the oldest first.
    :param known: whether there is a session of the question's own task.
    """

    sessions: Tuple[Session, ...] = ()
    known: bool = False


class Sessions:
    """The file.

    :param path: where it is. It is made, readable by its owner only, when there is something to write.

    Every method raises :class:`ConfigError` if there is a file of another program or version at the path, and
    ``sqlite3.Error`` or ``OSError`` if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self, question: Question, now: float) -> Recollection:
        """Return the sessions that go with a question: those that were chosen for it before, else the latest ones.

        Of each task only the latest session counts. A choice is remembered in the transaction that makes it, so all
        who ask at once get the same one.
        """
        if question.life == 0.0 and not self.path.exists():
            return Recollection()
        with self._opened() as file:
            found = _recall_chosen(file, question, now)
            if found is None and question.life == 0.0:
                found = _choose(file, question, now)
            if found is None:
                with writing(file):
                    found = _recall_chosen(file, question, now)
                    if found is None:
                        found = _choose(file, question, now)
                        _remember_choice(file, question, found, now)
            known = file.execute(
                "SELECT 1 FROM sessions WHERE agent = ? AND task_digest = ? LIMIT 1", (question.agent, question.task)
            ).fetchone()
            return Recollection(found, known is not None)

    def record(self, agent: str, task: str, output: str, now: float, *, anew: bool, days: float, keep: int) -> None:
        """Record a session, once for the same answer to the same task, and drop what is too old or too much.

        :param anew: whether it is recorded also if there is another answer to the same task.
        :param days: how old sessions may become.
        :param keep: how many of an agent are kept.
        """
        task_digest, output_digest = text_digest(task), text_digest(output)
        with self._opened() as file, writing(file):
            known = file.execute(
                "SELECT 1 FROM sessions WHERE agent = ? AND task_digest = ? AND (output_digest = ? OR ?) LIMIT 1",
                (agent, task_digest, output_digest, not anew),
            ).fetchone()
            if known is None:
                file.execute(
                    "INSERT INTO sessions (agent, task_digest, output_digest, task, output, ended)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (agent, task_digest, output_digest, _cut(task, LONGEST_TASK), _cut(output, LONGEST_OUTPUT), now),
                )
            _prune(file, now, days, keep, (agent,))

    def latest(self, *, agent: Optional[str] = None, limit: int = -1) -> List[Session]:
        """Return sessions, the latest first."""
        if not self.path.exists():
            return []
        with self._opened() as file:
            rows = file.execute(
                "SELECT id, agent, task, output, ended FROM sessions WHERE ? IS NULL OR agent = ?"
                " ORDER BY id DESC LIMIT ?",
                (agent, agent, limit),
            )
            return [Session(*row) for row in rows]

    def get(self, id: int) -> Optional[Session]:  # noqa: A002 - as the field is called
        """Return a session, or None if there is none of this number."""
        if not self.path.exists():
            return None
        with self._opened() as file:
            return next(iter(_by_id(file, [id])), None)

    def forget(self, *, ids: Sequence[int] = (), agent: Optional[str] = None, everything: bool = False) -> int:
        """Delete sessions, and overwrite what the file held of them; return how many there were."""
        if not self.path.exists():
            return 0
        with self._opened() as file, writing(file):
            if everything:
                file.execute("DELETE FROM choices")
                return file.execute("DELETE FROM sessions").rowcount
            if agent is not None:
                file.execute("DELETE FROM choices WHERE agent = ?", (agent,))
                return file.execute("DELETE FROM sessions WHERE agent = ?", (agent,)).rowcount
            count = 0
            for number in ids:
                row = file.execute("SELECT agent, task_digest FROM sessions WHERE id = ?", (number,)).fetchone()
                if row is not None:
                    # What was chosen for this task is kept under the task's digest, which tells who guesses the task.
                    file.execute("DELETE FROM choices WHERE agent = ? AND task_digest = ?", row)
                    count += file.execute("DELETE FROM sessions WHERE id = ?", (number,)).rowcount
            return count

    def prune(self, now: float, *, days: float, keep: int) -> int:
        """Delete what is too old or too much, and return how many sessions that were."""
        if not self.path.exists():
            return 0
        with self._opened() as file, writing(file):
            agents = [agent for (agent,) in file.execute("SELECT DISTINCT agent FROM sessions").fetchall()]
            return _prune(file, now, days, keep, agents)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        file = open_database(self.path, _FORMAT, busy_seconds=_BUSY_SECONDS)
        try:
            # What is forgotten is overwritten, not only unlinked.
            file.execute("PRAGMA secure_delete = ON")
            yield file
        finally:
            file.close()


def text_digest(text: str) -> bytes:
    """Return the digest by which texts are told apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _recall_chosen(file: sqlite3.Connection, question: Question, now: float) -> Optional[Tuple[Session, ...]]:
    """Return the sessions that were chosen before, or None if they are not there any more or are too old."""
    row = file.execute(
        "SELECT sessions FROM choices WHERE request = ? AND chosen > ? AND (expires IS NULL OR expires > ?)",
        (question.request, question.chosen_after, now),
    ).fetchone()
    if row is None:
        return None
    ids = json.loads(row[0])
    found = _by_id(file, ids)
    fresh = all(session.ended > now - question.days * _DAY for session in found)
    return tuple(found) if len(found) == len(ids) and fresh else None


def _by_id(file: sqlite3.Connection, ids: Sequence[int]) -> List[Session]:
    marks = ", ".join("?" * len(ids))
    rows = file.execute(
        f"SELECT id, agent, task, output, ended FROM sessions WHERE id IN ({marks}) ORDER BY id",  # noqa: S608 - marks only
        ids,
    )
    return [Session(*row) for row in rows]


def _choose(file: sqlite3.Connection, question: Question, now: float) -> Tuple[Session, ...]:
    rows = file.execute(
        "SELECT max(id) FROM sessions WHERE agent = ? AND task_digest <> ? AND ended > ?"
        " GROUP BY task_digest ORDER BY max(id) DESC LIMIT ?",
        (question.agent, question.task, now - question.days * _DAY, question.most),
    )
    return tuple(_by_id(file, [number for (number,) in rows]))


def _remember_choice(file: sqlite3.Connection, question: Question, chosen: Sequence[Session], now: float) -> None:
    ids = json.dumps([session.id for session in chosen])
    expires = None if question.life is None else now + question.life
    file.execute("DELETE FROM choices WHERE expires <= ?", (now,))
    file.execute(
        "INSERT OR REPLACE INTO choices (request, agent, task_digest, sessions, chosen, expires)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (question.request, question.agent, question.task, ids, now, expires),
    )
    file.execute("DELETE FROM choices WHERE id <= (SELECT max(id) FROM choices) - ?", (_MOST_CHOICES,))


def _prune(file: sqlite3.Connection, now: float, days: float, keep: int, agents: Sequence[Any]) -> int:
    count = file.execute("DELETE FROM sessions WHERE ended <= ?", (now - days * _DAY,)).rowcount
    for agent in agents:
        count += file.execute(
            "DELETE FROM sessions WHERE agent = ? AND id <="
            " (SELECT id FROM sessions WHERE agent = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (agent, agent, keep),
        ).rowcount
    file.execute("DELETE FROM choices WHERE expires <= ?", (now,))
    return count


def _cut(text: str, length: int) -> str:
    # An answer may hold half a surrogate pair, which a prompt cannot.
    text = text if len(text) <= length else text[:length] + _CUT
    return text.encode("utf-8", "replace").decode("utf-8")
