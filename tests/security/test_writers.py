"""Somebody writes to a store without the secret: no cache returns what was not stored under its key."""

import asyncio
import os
import struct
from typing import Any, Callable, Dict, List

import pytest
import zstandard

from claude_force_cache import MISSING, BytesCodec, open_cache

KEYS = [f"key {number}" for number in range(4)]
LONG = b"an answer of some length, " * 200


def answer(key: str) -> bytes:
    return key.encode() + LONG


def open_one(url: str, namespace: str, **options: Any) -> Any:
    return open_cache(url, namespace=namespace, codec=BytesCodec(), tier_bytes=0, timeout=5, **options)


def header(of: bytes, **changes: int) -> bytes:
    """Return an entry whose header says something else."""
    layout = struct.Struct(">2sB8sQQQIH12s")
    names = ["form", "coding", "key_id", "created", "expires", "kept", "length", "labels", "nonce"]
    fields: Dict[str, Any] = dict(zip(names, layout.unpack_from(of)))
    fields.update(changes)
    return layout.pack(*fields.values()) + of[layout.size :]


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))

# From the genuine entry, and one of another key, cache or algorithm, to what is put in its place.
FORGERIES: Dict[str, Callable[[bytes, bytes], bytes]] = {
    "another's": lambda entry, other: other,
    "nothing": lambda entry, other: b"",
    "noise": lambda entry, other: os.urandom(len(entry)),
    "truncated": lambda entry, other: entry[:-1],
    "header alone": lambda entry, other: entry[:53],
    "extended": lambda entry, other: entry + b"\0",
    "twice": lambda entry, other: entry + entry,
    "another's payload": lambda entry, other: entry[:53] + other[53:],
    "another's header": lambda entry, other: other[:53] + entry[53:],
    "another's tag": lambda entry, other: entry[:-32] + other[-32:],
    "for ever": lambda entry, other: header(entry, expires=0, kept=0),
    "older": lambda entry, other: header(entry, created=0),
    "an older format": lambda entry, other: b"\xcf\x01" + entry[2:],
    "not compressed": lambda entry, other: header(entry, coding=0),
    "an unknown coding": lambda entry, other: header(entry, coding=255),
    "a stand-in": lambda entry, other: header(entry, coding=2),
    "a stand-in for many parts": lambda entry, other: (
        header(entry, coding=2)[:53] + b"m" * 16 + b"\xff" * 6 + entry[-32:]
    ),
    "a huge length": lambda entry, other: header(entry, length=(1 << 32) - 1),
    "all of it labels": lambda entry, other: header(entry, labels=0xFFFF),
    "a bomb": lambda entry, other: header(entry, coding=1, length=1 << 28)[:53] + BOMB + entry[-32:],
    "a pickle": lambda entry, other: b"cposix\nsystem\n(S'false'\ntR.",
}


@pytest.mark.parametrize("encrypt", [False, True], ids=["sealed", "encrypted"])
def test_what_is_planted_is_a_miss_and_never_an_answer(shared_url: str, namespace: str, encrypt: bool) -> None:
    async def main() -> None:
        others = {
            "another key": {},
            "another tenant": {"tenant": "other"},
            "another secret": {"secrets": ["another secret of the tests"]},
            "another algorithm": {"encrypt": not encrypt},
        }
        foreign: List[bytes] = []
        for options in others.values():
            async with open_one(shared_url, namespace, **{"encrypt": encrypt, **options}) as cache:
                await cache.set("key 0" if options else "another key", b"foreign" + LONG)
                foreign += [entry.value for entry in (await cache._backend.get_many(await names_of(cache))).values()]
                await cache.clear()
        async with open_one(shared_url, f"{namespace}-b", encrypt=encrypt) as cache:
            await cache.set("key 0", b"foreign" + LONG)
            foreign += [entry.value for entry in (await cache._backend.get_many(await names_of(cache))).values()]
            await cache.clear()
        assert len(foreign) == 5
        async with open_one(shared_url, namespace, encrypt=encrypt) as cache:
            name = cache._vault.names(KEYS[0])[0]
            tried = 0
            for what, forge in FORGERIES.items():
                for other in foreign:
                    await cache.set(KEYS[0], answer(KEYS[0]))
                    genuine = await cache._backend.get(name)
                    planted = forge(genuine.value, other)
                    if planted == genuine.value:
                        continue
                    await cache._backend.set(name, planted, ttl=None)
                    assert await cache.get(KEYS[0]) is MISSING, what
                    tried += 1
                    assert await cache._backend.get(name) is None, what
            assert tried > 80
            # Swapped between keys of the same cache.
            for key in KEYS:
                await cache.set(key, answer(key))
            entries = [await cache._backend.get(cache._vault.names(key)[0]) for key in KEYS]
            for key, entry in zip(KEYS, entries[1:] + entries[:1]):
                await cache._backend.set(cache._vault.names(key)[0], entry.value, ttl=None)
            assert [await cache.get(key) for key in KEYS] == [MISSING] * len(KEYS)
            assert (await cache.verify()).consistent
            await cache.clear()

    asyncio.run(asyncio.wait_for(main(), 60))


async def names_of(cache: Any) -> List[str]:
    return [info.key async for info in cache._backend.scan()]
