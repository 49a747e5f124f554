"""The cases: each module enters its own into the list when it is imported."""

from __future__ import annotations

from . import executions, limits, lookups, opening, peers, stalls

__all__ = ["executions", "limits", "lookups", "opening", "peers", "stalls"]
