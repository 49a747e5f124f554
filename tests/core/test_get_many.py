"""A bulk look-up, held against the same look-ups made one by one."""

import asyncio
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_force_cache import MISSING, BlockingCache, Cache, CacheStats, InvalidKeyError, hookimpl, open_cache

SECRET = "a secret of the tests"

KEYS = st.one_of(st.integers(0, 3), st.booleans(), st.text("ab", max_size=2), st.lists(st.integers(0, 1), max_size=2))


class Listener:
    def __init__(self) -> None:
        self.told: List[Tuple[str, str]] = []

    @hookimpl
    def claude_force_cache_hit(self, key: str) -> None:
        self.told.append(("hit", key))

    @hookimpl
    def claude_force_cache_miss(self, key: str) -> None:
        self.told.append(("miss", key))


class ManualClock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def outcome(
    entries: List[Tuple[Any, Any, float]], keys: List[Any], tier: int, bulk: bool
) -> Tuple[Dict[int, Any], CacheStats, List[Tuple[str, str]]]:
    """Return what look-ups brought, after some entries of a store have expired, or lost their tag."""
    clock, listener = ManualClock(), Listener()
    async with open_cache("memory://", clock=clock, secrets=SECRET, tier_bytes=tier) as cache:
        cache.register(listener)
        for key, value, ttl in entries:
            await cache.set(key, value, ttl=ttl, tags=("gone",) if ttl > 15 else ())
        clock.now += 5
        await cache.invalidate("gone")
        if bulk:
            found: Dict[int, Any] = await cache.get_many(keys)
        else:
            each = [await cache.get(key) for key in keys]
            found = {position: value for position, value in enumerate(each) if value is not MISSING}
        return found, cache.stats(), listener.told


@given(
    st.lists(st.tuples(KEYS, st.lists(st.integers(), max_size=2), st.sampled_from([1.0, 10.0, 20.0])), max_size=8),
    st.lists(KEYS, max_size=8, unique_by=lambda key: (type(key), str(key))),
    st.sampled_from([0, 100_000]),
)
@settings(max_examples=40, deadline=None)
def test_a_bulk_look_up_is_as_many_single_ones(
    entries: List[Tuple[Any, Any, float]], keys: List[Any], tier: int
) -> None:
    assert asyncio.run(outcome(entries, keys, tier, bulk=True)) == asyncio.run(outcome(entries, keys, tier, bulk=False))


def test_more_keys_than_one_bulk_read_has_on_a_shared_store(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_cache(f"disk://{tmp_path}", secrets=SECRET) as cache:
            await asyncio.gather(*(cache.set(number, {"n": number}) for number in range(0, 300, 2)))
            assert await cache.get_many(range(300)) == {number: {"n": number} for number in range(0, 300, 2)}
            assert (cache.stats().hits, cache.stats().misses) == (150, 150)

    asyncio.run(main())


def test_each_position_has_a_value_of_its_own() -> None:
    async def main() -> None:
        async with open_cache("memory://", secrets=SECRET) as cache:
            await cache.set("k", [1])
            found = await cache.get_many(["k", "k"])
            found[0].append(2)
            assert found[1] == [1]

    asyncio.run(main())


def test_a_key_that_cannot_be_encoded_is_said() -> None:
    async def main() -> None:
        async with open_cache("memory://", secrets=SECRET) as cache:
            with pytest.raises(InvalidKeyError):
                await cache.get_many(["fine", object()])

    asyncio.run(main())


def test_the_blocking_twin_looks_up_many() -> None:
    cache: Cache[Any] = open_cache("memory://", secrets=SECRET)
    with BlockingCache(cache) as twin:
        twin.set("a", 1)
        assert twin.get_many(["b", "a"]) == {1: 1}


def test_corrupt_entries_are_misses_that_are_evicted_and_the_others_are_found(store_url: str) -> None:
    async def main() -> None:
        async with open_cache(store_url, secrets=SECRET, tier_bytes=0, timeout=5) as cache:
            await cache.clear()
            for key in ("a", "b", "c"):
                await cache.set(key, key)
            await cache._backend.set(await cache.stored_key("b"), b"planted", ttl=None)
            assert await cache.get_many(["a", "b", "c"]) == {0: "a", 2: "c"}
            assert cache.stats().corrupt == 1
            assert (await cache.usage()).entries == 2
            await cache.clear()

    asyncio.run(main())


def test_entries_of_a_previous_secret_and_of_the_new_one_are_found(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_cache(f"disk://{tmp_path}", secrets="an old secret of the tests") as cache:
            await cache.set("old", 1)
        secrets = [SECRET, "an old secret of the tests"]
        async with open_cache(f"disk://{tmp_path}", secrets=secrets, tier_bytes=0) as cache:
            await cache.set("new", 2)
            assert await cache.get_many(["new", "neither", "old"]) == {0: 2, 2: 1}

    asyncio.run(main())


def test_a_store_that_is_absent_costs_misses_and_what_the_tier_has_is_found() -> None:
    async def main() -> None:
        async with open_cache("redis://127.0.0.1:1", secrets=SECRET, tier_bytes=100_000) as cache:
            await cache.set("here", 1)
            assert await cache.get_many(["gone", "here"]) == {1: 1}
            assert (cache.stats().hits, cache.stats().misses) == (1, 1)
            assert cache.stats().errors > 0

    asyncio.run(main())


def test_entries_looked_up_in_bulk_are_those_looked_up_singly_and_misses_are_not_counted(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with open_cache(f"disk://{tmp_path}", clock=clock, secrets=SECRET, tier_bytes=0) as cache:
            await cache.set("old", 1)
            await cache.set("brief", 2, ttl=5)
            clock.now += 10
            await cache.set("young", 3)
            keys = ["old", "brief", "nothing", "young", "old"]
            for max_age in (None, 10, 20, 0):
                entries = await cache.get_entries(keys, max_age=max_age)
                assert entries == [await cache.get_entry(key, max_age=max_age) for key in keys]
                assert [entry and entry.value for entry in entries][1:3] == [None, None]
            counted = cache.stats()
            assert await cache.get_entries(["nothing", "old"]) == [None, await cache.get_entry("old")]
            assert (cache.stats().hits, cache.stats().misses) == (counted.hits + 2, counted.misses)
            with pytest.raises(ValueError, match="max_age is -1"):
                await cache.get_entries(keys, max_age=-1)

    asyncio.run(main())


def test_the_blocking_twin_looks_up_entries() -> None:
    cache: Cache[Any] = open_cache("memory://", secrets=SECRET)
    with BlockingCache(cache) as twin:
        twin.set("a", 1)
        missing, found = twin.get_entries(["b", "a"])
        assert missing is None
        assert found is not None
        assert found.value == 1
