"""The settings that a command line adds up to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .._settings import Settings

__all__ = ["DEFAULT_CONFIG", "tool_settings"]

DEFAULT_CONFIG = Path(".claude/claude.json")


def tool_settings(config: Optional[Path], cache: Optional[str]) -> Settings:
    """Return the settings for a command that needs no project; one that is there is used.

    :raises ProjectError: if claude.json cannot be used, or ``config`` names none.
    """
    from claude_force_cache import resolve_source

    from .._project import Project
    from .._settings import Settings

    if config is None and not DEFAULT_CONFIG.exists():
        # Without a project there is no folder beside claude.json; the core's own default is this user's cache.
        source, _ = resolve_source(cache, "disk://")
        return Settings.resolve(Project(DEFAULT_CONFIG, {}, {}), cache=source)
    return Settings.resolve(config or DEFAULT_CONFIG, cache=cache)
