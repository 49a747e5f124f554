"""The cases: each module enters its own into the list when it is imported."""

from __future__ import annotations

from . import batches, executions, flights, growth, imports, limits, opening, peers, stalls

__all__ = ["batches", "executions", "flights", "growth", "imports", "limits", "opening", "peers", "stalls"]
