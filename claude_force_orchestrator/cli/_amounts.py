"""Shares, money and times as people read them."""

from __future__ import annotations

import math
from typing import Optional

__all__ = ["money_text", "percent_text", "time_text"]

_NOTHING = "-"
_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def percent_text(share: Optional[float]) -> str:
    """Return a share, 0 to 1, in percent."""
    return _NOTHING if share is None else f"{100 * share:.1f} %"


def money_text(amount: float, unknown: int = 0) -> str:
    """Return an amount of USD.

    :param unknown: how many answers of unknown price it does not contain.
    """
    size = abs(amount)
    if 0 < size < 0.01:
        # Two digits that say something, however many zeros stand before them.
        text = f"{size:.{1 - math.floor(math.log10(size))}f}".rstrip("0")
    else:
        text = f"{size:,.{0 if size == 0 or size >= 1000 else 2}f}"
    return f"{'-' if amount < 0 else ''}${text}" + (f" + {unknown:,} unknown" if unknown else "")


def time_text(seconds: Optional[float]) -> str:
    """Return a time in the unit that suits it."""
    if seconds is None:
        return _NOTHING
    unit, length = next((pair for pair in _UNITS if seconds >= 0.9995 * pair[1]), _UNITS[-1])
    value = seconds / length
    return f"{value:,.0f} {unit}" if value >= 99.5 else f"{value:.2g} {unit}"
