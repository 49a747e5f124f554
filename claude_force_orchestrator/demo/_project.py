"""The example project that the demonstration runs."""

from __future__ import annotations

from pathlib import Path

from .._errors import ProjectError

__all__ = ["example_config"]

_NAME = "stdlib-review"


def example_config() -> Path:
    """Return the path of the example's claude.json: the wheel's copy, or the one in the source tree.

    :raises ProjectError: if neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / _NAME, package.parents[1] / "examples" / _NAME):
        config = folder / ".claude" / "claude.json"
        if config.is_file():
            return config
    raise ProjectError(
        f"the example project {_NAME!r} is not installed: pip install --force-reinstall claude-force-cache"
    )
