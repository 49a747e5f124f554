"""Tracking: what is recorded of each execution, who may record it, and what a project says about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from typing_extensions import Literal, Protocol, runtime_checkable

from ._errors import ConfigError, ProjectError
from ._project import Project
from ._validation import check_number, check_whole, kind_of

__all__ = ["MAX_AGE_DAYS", "MAX_RECORDS", "ExecutionRecord", "Outcome", "Tracker", "TrackingSettings"]

MAX_AGE_DAYS = 400.0
"""How many days records are kept by default."""

MAX_RECORDS = 1_000_000
"""How many records are kept by default."""

Outcome = Literal["hit", "miss", "bypass", "failure", "cancelled", "background"]
"""What became of an execution.

``hit`` was answered without a call of its own, ``miss`` by its own call, ``bypass`` by its own call without asking the
cache; ``failure`` has no answer of use, ``cancelled`` was not waited for. ``background`` is no execution: an answer
that was paid for beside one, to take the place of one that grows old, or after the one who asked had left.
"""

_MOST_DAYS = 36_600
_MOST_RECORDS = 1_000_000_000
_KNOWN_KEYS = frozenset({"enabled", "path", "max_age_days", "max_records"})
_logger = logging.getLogger("claude_force_orchestrator")


class ExecutionRecord(NamedTuple):
    """One execution, without anything that was asked or answered. None is what is not known, or does not apply.

    :param ended: when it ended, in seconds since 1970.
    :param agent: the agent, or None if a name was given that no agent can have, or if there is none.
    :param model: the model that was asked, or that answered.
    :param outcome: what became of it.
    :param latency: seconds from the call to the result.
    :param error: the name of its error's class.
    :param input_tokens: prompt tokens that were neither read from nor written to the API's own prompt cache. Those
        of a hit are of the call that it saved, as are its other tokens.
    :param output_tokens: tokens of the answer.
    :param cache_write_tokens: prompt tokens written to the API's prompt cache.
    :param cache_read_tokens: prompt tokens read from it.
    :param cost: USD that its answer cost, 0.0 if it has none or is a hit, None if the model's price is not known.
    :param saved: USD that it saved, 0.0 if it is no hit, None likewise.
    :param backend: the scheme of the cache's URL, if the cache was asked.
    :param key_age: the age in seconds of the entry that answered it.
    :param key: the key that the answer is stored under, a digest that only the owner of the secret can make.
    :param stale: whether the answer was no longer fresh.
    :param streamed: whether the answer was streamed to the caller.
    :param workflow: the name of its workflow.
    :param position: its number in the workflow.
    :param run: what all executions of one run of a workflow have in common.
    :param prompt_cache_saved: by how many USD the API's own prompt cache made its answer cheaper, below 0.0 if it only
        wrote there; 0.0 if it has no answer or is a hit, None if the model's price is not known.
    """

    ended: float
    agent: Optional[str]
    model: str
    outcome: Outcome
    latency: float
    error: Optional[str] = None
    input_tokens: Optional[int] = None
    output_tokens: Optional[int] = None
    cache_write_tokens: Optional[int] = None
    cache_read_tokens: Optional[int] = None
    cost: Optional[float] = None
    saved: Optional[float] = None
    backend: Optional[str] = None
    key_age: Optional[float] = None
    key: Optional[str] = None
    stale: bool = False
    streamed: bool = False
    workflow: Optional[str] = None
    position: Optional[int] = None
    run: Optional[str] = None
    prompt_cache_saved: Optional[float] = None


@runtime_checkable
class Tracker(Protocol):
    """Whoever is told of executions: :class:`SQLiteTracker`, or a class of your own with these two methods.

    What they raise is logged, and costs the record, never an answer.
    """

    def record(self, record: ExecutionRecord) -> bool:
        """Take one record. Called in event loops, and in any thread: it must not block.

        :returns: whether so much waits to be written that whoever recorded it should :meth:`flush` before it goes on.
        """
        ...

    def flush(self) -> None:
        """Write what was taken. May block: it is called in a worker thread, also when an orchestrator is closed."""
        ...


@dataclass(frozen=True)
class TrackingSettings:
    """Where executions are recorded, and for how long: the section ``tracking`` of claude.json.

    :param enabled: whether they are.
    :param path: the file; relative to claude.json, there called ``path``.
    :param max_age_days: how old records may be; older ones are deleted.
    :param max_records: how many are kept; the oldest are deleted.
    """

    enabled: bool
    path: Path
    max_age_days: float = MAX_AGE_DAYS
    max_records: int = MAX_RECORDS

    @classmethod
    def of_project(cls, project: Project, *, enabled: Optional[bool] = None) -> TrackingSettings:
        """Return what a project says.

        :param enabled: goes before what claude.json says.
        :raises ProjectError: if a value there cannot be used.
        """
        section, where = project.tracking, f"{project.path}: tracking"
        unknown = sorted(section.keys() - _KNOWN_KEYS)
        if unknown:
            _logger.warning("%s has keys without meaning, which are ignored: %s", where, ", ".join(unknown))
        for name, kind, words in (("enabled", bool, "true or false"), ("path", str, "text")):
            if section.get(name) is not None and not isinstance(section[name], kind):
                raise ProjectError(f"{where}.{name} must be {words}, not {kind_of(section[name])}")
        try:
            days = section.get("max_age_days", MAX_AGE_DAYS)
            days = check_number(f"{where}.max_age_days", days, above=0, most=_MOST_DAYS)
            most = section.get("max_records", MAX_RECORDS)
            most = check_whole(f"{where}.max_records", most, least=1, most=_MOST_RECORDS)
        except ConfigError as error:
            raise ProjectError(str(error)) from None
        wanted = section.get("enabled", True) if enabled is None else enabled
        return cls(wanted is not False, project.folder / (section.get("path") or "metrics/executions.db"), days, most)
