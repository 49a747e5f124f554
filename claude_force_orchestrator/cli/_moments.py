"""Moments as people type them: a day, a day and a time, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from ._failure import CommandError

__all__ = ["parse_moment", "when_text"]

_AGO = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(min|h|d|w)")
_UNITS = {"min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_moment(option: str, text: str, now: float, *, end: bool = False) -> float:
    """Return a moment in seconds since 1970. What names no zone is UTC, as everything that is printed.

    :param option: the option, for the message.
    :param end: whether a day means its end.
    :raises CommandError: if the text is no moment.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - float(ago.group(1)) * _UNITS[ago.group(2)]
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        if end and _DAY.fullmatch(text):
            moment += timedelta(days=1)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise CommandError(
            f"{option} {text!r:.60} is no moment: give a day (2026-11-24), a time (2026-11-24T08:30), or how long ago "
            "(30min, 12h, 7d, 4w)"
        ) from None


def when_text(moment: float, pattern: str = "%Y-%m-%d %H:%M") -> str:
    """Return a moment in UTC for people."""
    # Not fromtimestamp, which knows no moment before 1970 on some systems.
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=moment)).strftime(pattern)
