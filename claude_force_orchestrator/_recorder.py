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
    """Gives records to a tracker.

    :param tracker: the tracker, or None to record nothing.
    :param own: whether the recorder closes it.
    :raises ConfigError: if it is no tracker.
    """

    def __init__(self, tracker: Optional[Tracker], *, own: bool = False) -> None:
        if tracker is not None and not isinstance(tracker, Tracker):
            raise ConfigError(f"a {type(tracker).__name__} is no tracker: it needs the methods record and flush")
        self._tracker = tracker
        self._own = tracker if own and isinstance(tracker, SQLiteTracker) else None
        self._told = False

    @classmethod
    def of(cls, settings: TrackingSettings, given: Optional[Tracker]) -> Recorder:
        """Return a recorder for the tracker that was given, else for one of its own, as the settings say.

        :raises ConfigError: if what was given is no tracker.
        """
        if given is not None or not settings.enabled:
            recorder = cls(given)
            return recorder if settings.enabled else cls(None)
        days, most = settings.max_age_days, settings.max_records
        return cls(SQLiteTracker(settings.path, max_age_days=days, max_records=most), own=True)

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
