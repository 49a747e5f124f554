"""Text that would be a command, a script or a path, if anybody took it for one: it is data, or it is refused."""

import asyncio
import re
from typing import Any, List

import pytest
import redis

from claude_force_cache import CacheError, InvalidOptionError, open_cache

TEXTS = [
    "a\r\nFLUSHALL\r\n",
    "a\r\nflush_all\r\nset x 0 0 1\r\ny",
    "'] redis.call('FLUSHALL') --",
    "return redis.call('SET', KEYS[1], 'x')",
    "{other}:sizes",
    "cfc:{other:0}:account",
    "../../../etc/passwd",
    "x\0y",
    "*",
    "key " * 200,
    "'; DROP TABLE Cache; --",
    "\N{SNOWMAN}\u202e",
    "$(touch x)`touch y`",
]


async def names_of(cache: Any) -> List[str]:
    return [info.key async for info in cache._backend.scan()]


def test_keys_tags_and_tenants_of_any_text_are_only_data(shared_url: str, namespace: str) -> None:
    async def compute(text: str) -> str:
        return text

    async def main() -> None:
        async with open_cache(shared_url, namespace=f"{namespace}-b", tier_bytes=0, timeout=5) as neighbour:
            await neighbour.set("kept", "kept")
            for text in TEXTS:
                with pytest.raises(InvalidOptionError, match="tenant"):
                    open_cache(shared_url, tenant=f"{text}\r\n")
                tenant = "".join(filter(str.isprintable, text))[:256]
                async with open_cache(shared_url, namespace=namespace, tenant=tenant, tier_bytes=0, timeout=5) as cache:
                    for key in (text, [text, {text: text}]):
                        tags = [text[:200]]
                        assert (await cache.fetch(key, lambda text=text: compute(text), tags=tags)).value == text
                        assert await cache.get(key) == text
                        assert await cache.delete(key)
                    await cache.set("key", text, tags=[text[:200]])
                    assert await cache.invalidate(text[:200]) == 1
                    assert all(re.fullmatch(r"[0-9a-f]{64}[a-z0-9.]*", name) for name in await names_of(cache))
                    await cache.clear()
            assert await neighbour.get("kept") == "kept"
            assert (await neighbour.verify()).entries == 1
            await neighbour.clear()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("text", TEXTS)
def test_namespaces_of_any_text_are_refused_before_anything_is_asked(shared_url: str, text: str) -> None:
    with pytest.raises(CacheError, match="namespace"):
        open_cache(shared_url, namespace=text)


def test_what_scripts_are_given_is_never_a_part_of_them(redis_server: Any, namespace: str) -> None:
    async def main() -> None:
        async with open_cache(redis_server.url, namespace=namespace, tier_bytes=0, timeout=5) as cache:
            for text in TEXTS:
                value = text.encode()
                # Past the cache, as a store sees it: values, versions and lives are the caller's.
                await cache._backend.set("name", value, ttl=None)
                entry = await cache._backend.get("name")
                assert entry.value == value
                assert not await cache._backend.delete("name", version=value)
                assert not await cache._backend.touch("name", ttl=1.0, version=value)
                assert await cache._backend.delete("name", version=entry.version)
            assert (await cache.usage()).entries == 0

    with redis.Redis.from_url(redis_server.url) as client:
        client.set(f"outside-{namespace}", "kept")
        asyncio.run(asyncio.wait_for(main(), 60))
        assert client.get(f"outside-{namespace}") == b"kept"
        client.delete(f"outside-{namespace}")
