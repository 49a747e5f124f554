"""What the tests of the core share: one cache URL for each first-party backend, on its real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest

SECRET = "a secret of the tests"

BACKENDS = ("memory", "disk", "redis", "memcached")


@pytest.fixture(params=BACKENDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a real store; tests add a namespace of their own."""
    name: str = request.param
    if name == "memory":
        yield "memory://"
    elif name == "disk":
        yield f"disk://{tmp_path}/cache"
    else:
        server: Any = request.getfixturevalue(f"{name}_server")
        yield server.url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own settings and folders out of the tests."""
    monkeypatch.setenv("CLAUDE_CACHE_SECRET", SECRET)
    for name in ("CLAUDE_CACHE_URL", "CLAUDE_CACHE_PREVIOUS_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
