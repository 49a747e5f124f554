"""The recorder: what stands between executions and their tracker, so that none costs an answer."""

from __future__ import annotations

import logging
from typing import Optional

import anyio.to_thread

from ._errors import ConfigError
from ._tracker import SQLiteTracker
from ._tracking import ExecutionRecord, Tracker, TrackingSettings

__all__ = ["Recorder"]

_logger = logging.getLogger("claude_force_orchestrator")


class Recorder:
    """Gives records to a tracker: the one that was given, else one of its own.

    :raises ConfigError: if what was given is no tracker.
    """

    def __init__(self, settings: TrackingSettings, given: Optional[Tracker]) -> None:
        if given is not None and not isinstance(given, Tracker):
            raise ConfigError(f"a {type(given).__name__} is no tracker: it needs the methods record and flush")
        self._own: Optional[SQLiteTracker] = None
        self._tracker: Optional[Tracker] = None
        if settings.enabled:
            if given is None:
                self._own = SQLiteTracker(
                    settings.path, max_age_days=settings.max_age_days, max_records=settings.max_records
                )
            self._tracker = given or self._own
        self._told = False

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to record for."""
        return self._tracker is not None

    def record(self, record: ExecutionRecord) -> bool:
        """Give a record away. Neither blocks nor fails, and returns whether to :meth:`flush` before there are more."""
        if self._tracker is None:
            return False
        try:
            return self._tracker.record(record)
        except Exception as defect:  # noqa: BLE001 - logged; it costs the record, never an answer
            self._log(defect)
            return False

    async def flush(self) -> None:
        """Let what was recorded be written, in a thread."""
        if self._tracker is not None:
            try:
                await anyio.to_thread.run_sync(self._tracker.flush)
            except Exception as defect:  # noqa: BLE001 - likewise
                self._log(defect)

    async def close(self) -> None:
        """Let what was recorded be written, and close the tracker if it is the recorder's own. Idempotent."""
        if self._own is not None:
            await anyio.to_thread.run_sync(self._own.close)
        else:
            await self.flush()

    def _log(self, defect: Exception) -> None:
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        _logger.log(level, "the tracker failed, executions are not recorded: %r", defect, exc_info=defect)
