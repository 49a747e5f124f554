"""What the tests of attacks share: real stores by name, and raw hands on what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SECRET = "a secret of the tests"


@pytest.fixture(params=["disk", "redis", "memcached"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a real store that processes share; tests add a namespace of their own."""
    if request.param == "disk":
        return f"disk://{tmp_path}/cache"
    server: Any = request.getfixturevalue(f"{request.param}_server")
    return str(server.url)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own settings and folders out of the tests."""
    monkeypatch.setenv("CLAUDE_CACHE_SECRET", SECRET)
    for name in ("CLAUDE_CACHE_URL", "CLAUDE_CACHE_PREVIOUS_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
