"""Values past their freshness: for whom they still do, and who makes the next ones."""

import asyncio
from pathlib import Path
from typing import Any, Awaitable, Callable, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import MISSING, Cache, Usage, open_cache

SECRET = "a secret of the tests"
tiered = pytest.mark.parametrize("tier", [0, 1_000_000], ids=["no tier", "tier"])


class ManualClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Makes the values 1, 2, 3..., or fails while there is an error."""

    def __init__(self) -> None:
        self.made = 0
        self.asked = 0
        self.error: Optional[Exception] = None
        self.gate: Optional[asyncio.Event] = None

    async def __call__(self) -> int:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.made += 1
        return self.made


def run(
    test: Callable[[Cache[Any], ManualClock, Source], Awaitable[None]], url: str = "memory://", **options: Any
) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_cache(url, clock=clock, secrets=SECRET, **options) as cache:
            await test(cache, clock, Source())

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")


@tiered
def test_a_reader_bounds_the_age_for_itself(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=100)
        clock.now += 10
        assert (await cache.fetch("key", source, max_age=10.5)).value == 1
        assert (await cache.get_entry("key", max_age=10)) is None
        assert (await cache.fetch("key", source, ttl=100, max_age=10)).value == 2
        entry = await cache.get_entry("key", max_age=1)
        assert entry is not None
        assert (entry.value, entry.age, entry.stale) == (2, 0.0, False)
        assert (await cache.fetch("key", source, ttl=100, max_age=0)).value == 3

    run(test, tier_bytes=tier)


@tiered
def test_a_stale_value_is_served_while_one_call_makes_the_next(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=20)
        clock.now += 10
        assert await cache.get("key") is MISSING  # who does not ask for stale values gets none
        source.gate = asyncio.Event()
        entries = await asyncio.gather(
            *(cache.fetch("key", source, ttl=10, stale_while_revalidate=20) for _ in range(50))
        )
        assert {(entry.value, entry.stale, entry.cached, entry.age) for entry in entries} == {(1, True, True, 10.0)}
        await until(lambda: source.asked == 2)
        source.gate.set()
        await cache._flight.settle()
        entry = await cache.fetch("key", source, ttl=10, stale_while_revalidate=20)
        assert (entry.value, entry.stale, source.made) == (2, False, 2)
        assert cache.stats().stale == 50

    run(test, tier_bytes=tier)


def test_a_value_is_gone_when_its_stale_time_is_over() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=20, stale_if_error=5)
        clock.now += 29.9
        assert (await cache.usage()).entries == 1
        clock.now += 0.1
        assert await cache.usage() == Usage(0, 0)
        source.error = OSError("down")
        with pytest.raises(OSError, match="down"):
            await cache.fetch("key", source, stale_while_revalidate=1000, stale_if_error=1000)

    run(test)


def test_a_failed_refresh_in_the_background_is_nobodys_error_and_is_tried_again() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
        clock.now += 50
        source.error = OSError("down")
        for asked in (2, 3):
            entry = await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
            assert (entry.value, entry.stale) == (1, True)
            await cache._flight.settle()
            assert source.asked == asked
        source.error = None
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
        await cache._flight.settle()
        assert await cache.get("key") == 2

    run(test)


@tiered
def test_a_value_in_use_is_made_anew_before_it_is_late(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=100, refresh_ahead=0.2)
        clock.now += 79.9
        assert (await cache.fetch("key", source, ttl=100, refresh_ahead=0.2)).value == 1
        await cache._flight.settle()
        assert source.asked == 1
        clock.now += 0.1
        assert (await cache.fetch("key", source, ttl=100)).value == 1  # who does not ask for it starts nothing
        source.gate = asyncio.Event()
        entries = await asyncio.gather(*(cache.fetch("key", source, ttl=100, refresh_ahead=0.2) for _ in range(50)))
        assert {(entry.value, entry.stale, entry.cached, entry.age) for entry in entries} == {(1, False, True, 80.0)}
        await until(lambda: source.asked == 2)
        source.gate.set()
        await cache._flight.settle()
        entry = await cache.fetch("key", source, ttl=100, refresh_ahead=0.2)
        assert (entry.value, entry.age, source.asked, cache.stats().stale) == (2, 0.0, 2, 0)

    run(test, tier_bytes=tier)


def test_a_readers_own_bound_is_what_a_value_is_made_anew_ahead_of() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=None)
        clock.now += 50
        await cache.fetch("key", source, ttl=None, refresh_ahead=0.5)  # it is never late
        await cache.fetch("key", source, ttl=None, refresh_ahead=0.5, max_age=101)
        await cache._flight.settle()
        assert source.asked == 1
        assert (await cache.fetch("key", source, ttl=None, refresh_ahead=0.5, max_age=100)).value == 1
        await cache._flight.settle()
        assert (await cache.get("key"), source.asked) == (2, 2)

    run(test)


def test_what_cannot_be_made_anew_ahead_of_time_stays_until_it_is_late() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=100)
        source.error = OSError("down")
        clock.now += 95
        for _ in range(2):
            assert (await cache.fetch("key", source, ttl=100, refresh_ahead=0.1)).value == 1
            await cache._flight.settle()
        clock.now += 5
        with pytest.raises(OSError, match="down"):
            await cache.fetch("key", source, ttl=100, refresh_ahead=0.1)
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match="refresh_ahead"):
                await cache.fetch("key", source, refresh_ahead=share)

    run(test)


def test_of_several_processes_one_makes_a_value_anew(tmp_path: Path) -> None:
    async def main() -> None:
        clock, source = ManualClock(), Source()
        caches = [
            open_cache(f"disk://{tmp_path}/cache", clock=clock, secrets=SECRET, tier_bytes=tier)
            for tier in (0, 0, 1_000)
        ]
        try:
            for cache in caches:
                await cache.fetch("key", source, ttl=100, refresh_ahead=0.2)
            clock.now += 90
            for _ in range(2):  # the second time, all see what one has made
                for cache in caches:
                    assert (await cache.fetch("key", source, ttl=100, refresh_ahead=0.2)).value in {1, 2}
                for cache in caches:
                    await cache._flight.settle()
            assert source.asked == 2
            assert [(await cache.fetch("key", source)).value for cache in caches] == [2, 2, 2]
        finally:
            for cache in caches:
                await cache.close()

    asyncio.run(main())


def test_closing_waits_for_what_is_made_in_the_background() -> None:
    async def main() -> None:
        clock, source = ManualClock(), Source()
        cache = open_cache("memory://", clock=clock, secrets=SECRET)
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
        clock.now += 50
        source.gate = asyncio.Event()
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
        closing = asyncio.ensure_future(cache.close())
        await until(lambda: source.asked == 2)
        assert not closing.done()
        source.gate.set()
        await closing
        assert source.made == 2

    asyncio.run(main())


@tiered
def test_an_old_value_stands_in_for_one_that_cannot_be_made(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_if_error=100)
        clock.now += 50
        source.error = OSError("down")
        entry = await cache.fetch("key", source, ttl=10, stale_if_error=100)
        assert (entry.value, entry.stale, entry.cached, entry.age) == (1, True, True, 50.0)
        with pytest.raises(OSError, match="down"):
            await cache.fetch("key", source, ttl=10, stale_if_error=40)
        with pytest.raises(OSError, match="down"):
            await cache.fetch("key", source, stale_if_error=100, stale_if=lambda error: not isinstance(error, OSError))
        source.error = None
        entry = await cache.fetch("key", source, ttl=10, stale_if_error=100)
        assert (entry.value, entry.stale, entry.cached) == (2, False, False)

    run(test, tier_bytes=tier)


def test_a_refresh_that_fails_falls_back_on_what_is_stored_if_it_may() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=100)
        source.error = OSError("down")
        with pytest.raises(OSError, match="down"):
            await cache.fetch("key", source, refresh=True)
        entry = await cache.fetch("key", source, refresh=True, stale_if_error=5)
        assert (entry.value, entry.stale) == (1, True)

    run(test)


def test_each_caller_of_a_shared_look_up_gets_what_it_asked_for() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_while_revalidate=100)
        clock.now += 50
        source.gate = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, source.gate.set)
        patient, strict, other = await asyncio.gather(
            cache.fetch("key", source, ttl=10, stale_while_revalidate=100),
            cache.fetch("key", source, ttl=10),
            cache.fetch("key", source, ttl=10, max_age=5),
        )
        assert (patient.value, patient.stale) == (1, True)
        assert (strict.value, strict.stale, other.value, other.stale) == (2, False, 2, False)
        assert source.made == 2  # the strict ones shared the call in the background

    run(test)


def test_whoever_shares_a_look_up_is_told_by_its_own_measure_whether_the_value_is_stale(tmp_path: Path) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=100)
        clock.now += 50
        first, second = await asyncio.gather(
            cache.fetch("key", source, ttl=100),
            cache.fetch("key", source, ttl=100, max_age=10, stale_while_revalidate=100),
        )
        assert (first.stale, second.stale) == (False, True)
        assert (first.value, second.value) == (1, 1)

    run(test, f"disk://{tmp_path}/store", tier_bytes=0)


@tiered
def test_a_value_that_one_caller_cannot_use_is_made_anew_for_it(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source)
        assert await cache.get_entry("key", usable_if=lambda value: value != 1) is None
        entry = await cache.fetch("key", source, usable_if=lambda value: value != 1)
        assert (entry.value, entry.cached) == (2, False)
        assert await cache.get("key") == 2

    run(test, tier_bytes=tier)


def test_callers_that_need_different_values_do_not_share_one() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        source.gate = asyncio.Event()
        asking = [
            asyncio.ensure_future(cache.fetch("key", source, usable_if=lambda value, mine=mine: value == mine))
            for mine in (1, 2, 3)
        ]
        await until(lambda: source.asked == 1)
        source.gate.set()
        assert [entry.value for entry in await asyncio.gather(*asking)] == [1, 2, 3]

    run(test)


@pytest.mark.parametrize("name", ["max_age", "stale_while_revalidate", "stale_if_error"])
def test_seconds_below_zero_are_errors(name: str) -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        for seconds in (-1, float("nan")):
            with pytest.raises(ValueError, match=name):
                await cache.fetch("key", source, **{name: seconds})
        assert source.asked == 0

    run(test)


def test_stale_values_are_kept_no_longer_than_the_store_allows(memcached_server: Any) -> None:
    async def main() -> None:
        async with open_cache(memcached_server.url, secrets=SECRET, namespace="freshness") as cache:
            source = Source()
            await cache.fetch("key", source, ttl=3600, stale_if_error=1e12)
            (entry,) = [entry async for entry in cache.scan()]
            (info,) = [info async for info in cache._backend.scan()]
            longest = cache.capabilities.max_ttl
            assert entry.state == "ok"
            assert longest is not None
            assert info.ttl is not None
            assert 3600 < info.ttl <= longest + cache.capabilities.ttl_resolution
            await cache.clear()

    asyncio.run(main())


def test_a_scan_tells_what_is_stale() -> None:
    async def test(cache: Cache[Any], clock: ManualClock, source: Source) -> None:
        await cache.fetch("key", source, ttl=10, stale_if_error=10)
        clock.now += 10
        (entry,) = [entry async for entry in cache.scan()]
        assert (entry.state, entry.value, entry.expires_at) == ("stale", 1, clock.now)

    run(test)


@given(now=st.floats(1e9, 2e9), ttl=st.floats(0.1, 1e6), keep=st.sampled_from([0.0, 0.3, 1000.0]))
def test_a_store_is_told_the_very_life_that_was_asked_for(now: float, ttl: float, keep: float) -> None:
    """A difference of dates is not: it may be a little longer, which stores with coarse clocks round up."""

    async def main() -> None:
        async with open_cache("memory://", clock=lambda: now, secrets=SECRET) as cache:
            told: List[Optional[float]] = []
            original = cache._backend.set

            async def told_set(key: str, value: bytes, *, ttl: Optional[float]) -> int:
                told.append(ttl)
                return await original(key, value, ttl=ttl)

            cache._backend.set = told_set  # type: ignore[method-assign]
            await cache.set("set", 1, ttl=ttl)
            await cache.fetch("fetched", Source(), ttl=ttl, stale_if_error=keep)
            assert told == [ttl, ttl + keep]

    asyncio.run(main())
