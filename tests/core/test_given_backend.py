"""A cache on a backend that was made beforehand, which is how a backend's author and the kit get one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from claude_force_cache import (
    MISSING,
    Backend,
    BackendClosedError,
    BackendSettings,
    BackendURL,
    InvalidOptionError,
    SyncBackend,
    load_backend,
    open_cache,
)
from claude_force_cache.testing import ManualClock

SECRET = "a secret for tests, long enough"


def test_reads_and_writes_through_it_and_opens_and_closes_it() -> None:
    backend = load_backend("memory").create(BackendSettings(BackendURL("memory")))
    assert isinstance(backend, Backend)

    async def work() -> None:
        cache = open_cache(backend, secrets=SECRET, ttl="1h")
        async with cache:
            await cache.set("question", "answer")
            assert await cache.get("question") == "answer"
            assert (await backend.usage()).entries == 1
            assert (cache.name, cache.settings.ttl, cache.settings.max_bytes) == ("MemoryBackend", 3600, None)
        with pytest.raises(BackendClosedError):
            await backend.get("key")

    asyncio.run(work())


def test_drives_one_that_blocks_in_threads(tmp_path: Path) -> None:
    clock = ManualClock()
    settings = BackendSettings(BackendURL("disk", path=str(tmp_path / "cache")), clock=clock)
    backend = load_backend("disk").create(settings)
    assert isinstance(backend, SyncBackend)

    async def work() -> None:
        async with open_cache(backend, secrets=SECRET, clock=clock, tier_bytes=0) as cache:
            await cache.set("question", "answer", ttl=10)
            clock.advance(9)
            assert await cache.get("question") == "answer"
            clock.advance(1)
            assert await cache.get("question") is MISSING

    asyncio.run(work())


def test_has_no_limit_of_its_own() -> None:
    backend = load_backend("memory").create(BackendSettings(BackendURL("memory")))
    with pytest.raises(InvalidOptionError, match="a cache on a MemoryBackend has no option 'max_bytes'; it knows: "):
        open_cache(backend, max_bytes="1MB")
