"""The example project that the demonstration runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from .._errors import ProjectError

__all__ = ["example_config"]

_NAME = "stdlib-review"


def example_config() -> Path:
    """Return the path of the example's claude.json: the one in the source tree, or the wheel's copy.

    :raises ProjectError: if neither is there.
    """
    config = Path(__file__).resolve().parents[2] / "examples" / _NAME / ".claude" / "claude.json"
    if config.is_file():
        return config
    try:
        installed = files("claude-force-cache") or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name == "claude.json" and _NAME in file.parts:
            config = Path(str(file.locate())).resolve()
            if config.is_file():
                return config
    raise ProjectError(
        f"the example project {_NAME!r} is not installed: pip install --force-reinstall claude-force-cache"
    )
