"""Somebody changes the records of tags without the secret: what has the tag is a miss, and nothing else happens."""

import asyncio
import os
from typing import Any, Callable, Dict, Set

import pytest

from claude_force_cache import MISSING, BytesCodec, open_cache

# From the genuine record, that of another tag, and that of another tenant, to what is put in its place.
PLANTED: Dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "that of another tag": lambda record, other, foreign: other,
    "that of another tenant": lambda record, other, foreign: foreign,
    "nothing": lambda record, other, foreign: b"",
    "truncated": lambda record, other, foreign: record[:-1],
    "extended": lambda record, other, foreign: record + b"\0",
    "twice": lambda record, other, foreign: record + record,
    "noise": lambda record, other, foreign: os.urandom(len(record)),
    "zeros": lambda record, other, foreign: bytes(len(record)),
    "huge": lambda record, other, foreign: b"\xff" * 500_000,
    "a pickle": lambda record, other, foreign: b"cposix\nsystem\n(S'false'\ntR.",
}


def open_one(url: str, namespace: str, **options: Any) -> Any:
    return open_cache(url, namespace=namespace, codec=BytesCodec(), tier_bytes=0, timeout=5, **options)


async def records_of(cache: Any) -> Set[str]:
    return {info.key async for info in cache._backend.scan() if info.key.endswith(".tag")}


@pytest.mark.parametrize("encrypt", [False, True], ids=["sealed", "encrypted"])
def test_what_is_planted_is_a_miss_and_the_next_entry_of_the_tag_is_found(
    shared_url: str, namespace: str, encrypt: bool
) -> None:
    async def main() -> None:
        async with open_one(shared_url, namespace, encrypt=encrypt, tenant="other") as cache:
            await cache.set("key", b"foreign", tags=["tag"])
            (name,) = await records_of(cache)
            foreign = (await cache._backend.get(name)).value
            await cache.clear()
        async with open_one(shared_url, namespace, encrypt=encrypt) as cache:
            await cache.set("another", b"other", tags=["other"])
            (other,) = await records_of(cache)
            await cache.set("key", b"answer", tags=["tag"])
            (mine,) = await records_of(cache) - {other}
            for what, plant in PLANTED.items():
                genuine = [(await cache._backend.get(name)).value for name in (mine, other)]
                await cache._backend.set(mine, plant(*genuine, foreign), ttl=None)
                assert await cache.get("key") is MISSING, what
                assert await cache.get("another") == b"other", what
                for _ in range(2):  # at the latest the second one has a record of its own
                    await cache.set("key", b"answer", tags=["tag"])
                assert await cache.get("key") == b"answer", what
                assert (await cache.verify()).consistent, what
            # Swapped, so that each has one that is genuine.
            first, second = [(await cache._backend.get(name)).value for name in (mine, other)]
            await cache._backend.set(mine, second, ttl=None)
            await cache._backend.set(other, first, ttl=None)
            assert await cache.get("key") is await cache.get("another") is MISSING
            await cache.clear()

    asyncio.run(asyncio.wait_for(main(), 60))
