"""Memory: earlier sessions of an agent that go with its next task."""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, FrozenSet, List, Optional, Tuple

import anyio.to_thread

from claude_force_cache import digest

from ._context import MAX_CONTEXT_CHARACTERS, Context
from ._errors import ConfigError, ProjectError
from ._project import Project
from ._request import Request
from ._result import AgentResult
from ._sessions import Question, Recollection, Session, Sessions, text_digest
from ._suspicion import examine
from ._validation import check_number, check_whole, is_agent_name, kind_of

__all__ = ["Memory", "MemorySettings", "Recalled"]

_MOST_SESSIONS = 20
_MOST_DAYS = 36_600
_MOST_KEPT = 1_000_000
_KNOWN_KEYS = frozenset({"enabled", "path", "sessions", "max_age_days", "max_sessions", "exclude_agents"})
_logger = logging.getLogger("claude_force_orchestrator")


@dataclass(frozen=True)
class MemorySettings:
    """What agents remember: the section ``memory`` of claude.json.

    :param enabled: whether there is any memory.
    :param path: the file; relative to claude.json, there called ``path``.
    :param sessions: how many earlier sessions go with a task.
    :param max_age_days: how old they may be; older ones are deleted.
    :param max_sessions: how many of each agent are kept.
    :param exclude_agents: agents that have no memory.
    """

    enabled: bool
    path: Path
    sessions: int = 3
    max_age_days: float = 90.0
    max_sessions: int = 1000
    exclude_agents: FrozenSet[str] = frozenset()

    @classmethod
    def of_project(cls, project: Project, *, enabled: Optional[bool] = None) -> MemorySettings:
        """Return what a project says.

        :param enabled: goes before what claude.json says.
        :raises ProjectError: if a value there cannot be used.
        """
        section, where = project.memory, f"{project.path}: memory"
        unknown = sorted(section.keys() - _KNOWN_KEYS)
        if unknown:
            _logger.warning("%s has keys without meaning, which are ignored: %s", where, ", ".join(unknown))
        for name, kind, words in (
            ("enabled", bool, "true or false"),
            ("path", str, "text"),
            ("exclude_agents", list, "a list of agents"),
        ):
            if section.get(name) is not None and not isinstance(section[name], kind):
                raise ProjectError(f"{where}.{name} must be {words}, not {kind_of(section[name])}")
        excluded: List[Any] = section.get("exclude_agents") or []
        for agent in excluded:
            if not isinstance(agent, str) or not is_agent_name(agent):
                raise ProjectError(f"{where}.exclude_agents must list agents by name, which {agent!r:.80} is not")
        try:
            days = check_number(f"{where}.max_age_days", section.get("max_age_days", 90.0), above=0, most=_MOST_DAYS)
            counts = [
                check_whole(f"{where}.{name}", section.get(name, default), least=1, most=most)
                for name, default, most in (("sessions", 3, _MOST_SESSIONS), ("max_sessions", 1000, _MOST_KEPT))
            ]
        except ConfigError as error:
            raise ProjectError(str(error)) from None
        wanted = section.get("enabled") if enabled is None else enabled
        path = project.folder / (section.get("path") or "sessions.db")
        return cls(bool(wanted), path, counts[0], days, counts[1], frozenset(excluded))


@dataclass(frozen=True)
class Recalled:
    """What an execution was given out of memory.

    :param context: a piece for each session, the oldest first.
    :param known: whether there is a session of this task.
    """

    context: Tuple[Context, ...] = ()
    known: bool = False


class Memory:
    """Brings back earlier sessions, and records new ones, in threads.

    A file that cannot be used for the time being costs the memory, never an answer, and one line in the log.

    :param settings: what is remembered, where.
    :param clock: the time in seconds since 1970.
    """

    def __init__(self, settings: MemorySettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._sessions = Sessions(settings.path)
        self._failed = False

    def serves(self, agent_name: str) -> bool:
        """Whether the agent has a memory."""
        return self._settings.enabled and agent_name not in self._settings.exclude_agents

    async def recall(
        self, request: Request, *, life: Optional[float], max_age: Optional[float] = None, anew: bool = False
    ) -> Recalled:
        """Return earlier sessions for a request that has none yet, never one of the same task.

        What was chosen for the same request before is chosen again, so that the request stays the same whatever was
        recorded in between.

        :param life: for how many seconds a new choice is remembered; None is for ever, 0 not at all.
        :param max_age: a choice of this age in seconds is made again.
        :param anew: choose again.
        :raises ConfigError: if the file is none of ours.
        """
        settings, template, now = self._settings, request.template, self._clock()
        agent = template.agent_name
        own = [[item.kind, item.source, item.text] for item in request.context]
        limits = [settings.sessions, settings.max_age_days]
        whole = digest(["memory", agent, template.digest, request.task, own, limits])
        question = Question(
            agent,
            text_digest(request.task),
            bytes(whole),
            settings.sessions,
            settings.max_age_days,
            now if anew else float("-inf") if max_age is None else now - max_age,
            life,
        )
        try:
            # A file that is locked must hold up no deadline; what the thread still does then is harmless.
            found = await anyio.to_thread.run_sync(self._sessions.recall, question, now, abandon_on_cancel=True)
        except (OSError, sqlite3.Error) as error:
            self._report("read", error)
            return Recalled()
        return _recalled(found, MAX_CONTEXT_CHARACTERS - sum(len(item.text) for item in request.context))

    async def record(self, recalled: Recalled, task: str, result: AgentResult) -> None:
        """Record an answer.

        Recorded is what an agent said, once: the answer of a call, and one out of the cache if there is no session of
        the task yet. Failures, answers that were cut short and whatever looks suspicious are not recorded: they would
        go with every later task.
        """
        metadata = result.metadata
        if not result.success or metadata.truncated or metadata.suspicions or (metadata.cached and recalled.known):
            return
        if await examine(task, (Context("memory", result.output),)):
            return
        settings = self._settings

        def record() -> None:
            self._sessions.record(
                result.agent_name,
                task,
                result.output,
                self._clock(),
                anew=not metadata.cached,
                days=settings.max_age_days,
                keep=settings.max_sessions,
            )

        try:
            await anyio.to_thread.run_sync(record)
            self._failed = False
        except (ConfigError, OSError, sqlite3.Error) as error:
            self._report("written", error)

    def _report(self, what: str, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            _logger.warning("the agents' memory %s cannot be %s: %s", self._settings.path, what, error)


def _recalled(found: Recollection, room: int) -> Recalled:
    pieces: List[Context] = []
    for session in reversed(found.sessions):
        piece = _piece(session)
        room -= len(piece.text)
        if room < 0:
            break  # the caller's own context leaves no room for it
        pieces.append(piece)
    return Recalled(tuple(reversed(pieces)), found.known)


def _piece(session: Session) -> Context:
    # The day in UTC: the text must be the same in every process.
    day = time.strftime("%Y-%m-%d", time.gmtime(session.ended))
    return Context("memory", f"Task:\n{session.task}\n\nAnswer:\n{session.output}", f"session of {day}")
