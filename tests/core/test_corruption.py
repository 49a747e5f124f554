"""Corrupt entries, on every backend: a miss, evicted once by one path, gone from the account, never a newer one."""

import asyncio
import secrets
from typing import Any, Callable, Coroutine, List

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_force_cache import MISSING, BytesCodec, Cache, Usage, hookimpl, open_cache

ANSWER = b"an answer that was paid for, and is long enough to be compressed. " * 12


class Damage:
    """Ways to damage a sealed entry, each drawn by Hypothesis."""

    @staticmethod
    def flip(data: st.DataObject, sealed: bytes, other: bytes) -> bytes:
        position = data.draw(st.integers(0, len(sealed) - 1))
        mask = data.draw(st.integers(1, 255))
        return sealed[:position] + bytes([sealed[position] ^ mask]) + sealed[position + 1 :]

    @staticmethod
    def truncate(data: st.DataObject, sealed: bytes, other: bytes) -> bytes:
        return sealed[: data.draw(st.integers(0, len(sealed) - 1))]

    @staticmethod
    def extend(data: st.DataObject, sealed: bytes, other: bytes) -> bytes:
        return sealed + data.draw(st.binary(min_size=1, max_size=30))

    @staticmethod
    def swap(data: st.DataObject, sealed: bytes, other: bytes) -> bytes:
        return other

    @staticmethod
    def garbage(data: st.DataObject, sealed: bytes, other: bytes) -> bytes:
        return data.draw(st.binary(max_size=200))


damages = st.sampled_from([Damage.flip, Damage.truncate, Damage.extend, Damage.swap, Damage.garbage])


def run(url: str, test: Callable[[Cache[bytes]], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        options.setdefault("namespace", f"test-{secrets.token_hex(8)}")
        async with open_cache(url, codec=BytesCodec(), timeout=20, **options) as cache:
            try:
                await test(cache)
            finally:
                await cache.clear()

    asyncio.run(main())


async def store(cache: Cache[bytes], key: Any, value: bytes) -> str:
    async def compute() -> bytes:
        return value

    return (await cache.fetch(key, compute, refresh=True)).key


class Heard:
    def __init__(self) -> None:
        self.keys: List[str] = []

    @hookimpl
    def claude_force_cache_corrupt(self, key: str) -> None:
        self.keys.append(key)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), damage=damages, encrypt=st.booleans())
def test_any_damage_is_a_miss_evicted_once_and_gone_from_the_account(
    store_url: str, data: st.DataObject, damage: Any, encrypt: bool
) -> None:
    async def test(cache: Cache[bytes]) -> None:
        heard = Heard()
        cache.register(heard)
        name, other_name = await store(cache, "key", ANSWER), await store(cache, "other", ANSWER[::-1])
        sealed, other = await cache._backend.get(name), await cache._backend.get(other_name)
        assert sealed is not None
        assert other is not None
        damaged = damage(data, sealed.value, other.value)
        await cache._backend.set(name, damaged, ttl=100)
        answers = await asyncio.gather(*[cache.get("key") for _ in range(5)])
        assert answers == [MISSING] * 5
        assert cache.stats().corrupt == 1
        assert heard.keys == [name]
        assert await cache.usage() == Usage(1, len(other_name) + len(other.value))
        assert await cache.get("other") == ANSWER[::-1]
        assert await cache.get_or_compute("key", lambda: _value(b"made again")) == b"made again"
        assert (await cache.verify()).consistent

    run(store_url, test, tier_bytes=0, encrypt=encrypt)


async def _value(value: bytes) -> bytes:
    return value


def test_a_newer_good_entry_is_never_taken_for_an_older_corrupt_one(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        name = await store(cache, "key", ANSWER)
        await cache._backend.set(name, b"garbage", ttl=None)
        corrupt = await cache._backend.get(name)
        assert corrupt is not None
        await store(cache, "key", b"newer")
        assert not await cache._vault.discard(name, corrupt, "seen a moment ago")
        assert await cache.get("key") == b"newer"
        assert cache.stats().corrupt == 0

    run(store_url, test, tier_bytes=0)


def test_verify_reports_what_is_corrupt_and_repair_evicts_it(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        names = [await store(cache, number, ANSWER) for number in range(70)]
        for name in names[::10]:
            await cache._backend.set(name, b"garbage", ttl=None)
        report = await cache.verify()
        assert (report.entries, sorted(report.corrupt), report.repaired) == (70, sorted(names[::10]), 0)
        assert report.consistent
        report = await cache.verify(repair=True)
        assert (report.entries, sorted(report.corrupt), report.repaired) == (63, sorted(names[::10]), 7)
        assert report.consistent
        assert (await cache.verify()).corrupt == ()
        assert (await cache.usage()).entries == 63

    run(store_url, test, tier_bytes=0)


def test_an_entry_that_was_given_a_longer_life_behind_the_caches_back_is_still_expired() -> None:
    async def main() -> None:
        now = [1000.0]
        async with open_cache("memory://", codec=BytesCodec(), clock=lambda: now[0]) as cache:
            entry = await cache.fetch("key", lambda: _value(ANSWER), ttl=10)
            stored = await cache._backend.get(entry.key)
            assert stored is not None
            await cache._backend.set(entry.key, stored.value, ttl=None)
            now[0] += 10
            assert await cache.get("key") is MISSING

    asyncio.run(main())
