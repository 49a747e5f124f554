"""What is said of a cache that fails: once aloud, then only to those who debug."""

from __future__ import annotations

import logging

from claude_force_cache import CacheError

__all__ = ["CacheFailures"]

_logger = logging.getLogger("claude_force_orchestrator")


class CacheFailures:
    """Logs failures of one cache, the first as a warning. Safe for threads.

    :param what: what is answered without it, such as ``tasks``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = False

    def log(self, error: Exception) -> None:
        """Log one failure, with its traceback if it is a defect and no error of the cache's own."""
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        defect = None if isinstance(error, CacheError) else error
        message = "the cache failed, %s are answered without it: %s"
        _logger.log(level, message, self._what, error or repr(error), exc_info=defect)
