"""The cache above a backend, shown on the one that needs nothing."""

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import (
    MISSING,
    BackendClosedError,
    BlockingCache,
    BytesCodec,
    Cache,
    CacheStats,
    EntryTooLargeError,
    InvalidKeyError,
    InvalidValueError,
    Usage,
    hookimpl,
    open_cache,
)

SECRET = "a secret of the tests"


class ManualClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[..., Coroutine[Any, Any, None]], url: str = "memory://", **options: Any) -> None:
    """Run a test with an open cache and its clock."""

    async def main() -> None:
        clock = ManualClock()
        async with open_cache(url, clock=clock, secrets=SECRET, **options) as cache:
            await test(cache, clock)

    asyncio.run(main())


def counting(values: List[Any], gate: Optional[asyncio.Event] = None) -> Callable[[], Coroutine[Any, Any, Any]]:
    async def compute() -> Any:
        if gate is not None:
            await gate.wait()
        values.append(len(values))
        return values[-1]

    return compute


tiered = pytest.mark.parametrize("tier", [0, 1_000_000], ids=["no tier", "tier"])


@tiered
def test_a_value_is_found_under_the_whole_request_until_it_expires(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock) -> None:
        request = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        assert await cache.get(request) is MISSING
        assert await cache.set(request, {"answer": [1, None]}, ttl=10)
        assert await cache.get(request) == {"answer": [1, None]}
        assert await cache.get({**request, "max_tokens": 5}) is MISSING
        clock.now += 9.5
        assert await cache.get(request) == {"answer": [1, None]}
        clock.now += 0.5
        assert await cache.get(request) is MISSING
        assert await cache.usage() == Usage(0, 0)

    run(test, tier_bytes=tier)


@tiered
def test_none_is_a_value(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock) -> None:
        await cache.set("key", None)
        assert await cache.get("key") is None
        assert not MISSING
        assert repr(MISSING) == "MISSING"

    run(test, tier_bytes=tier)


@tiered
def test_what_callers_do_to_a_value_stays_with_them(tier: int) -> None:
    async def test(cache: Cache[Any], clock: ManualClock) -> None:
        value = {"list": [1]}
        await cache.set("key", value)
        value["list"].append(2)
        first = await cache.get("key")
        first["list"].append(3)
        assert await cache.get("key") == {"list": [1]}

    run(test, tier_bytes=tier)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_bytes_return_as_they_were(value: bytes, encrypt: bool, compress: bool) -> None:
    async def test(cache: Cache[bytes], clock: ManualClock) -> None:
        await cache.set("key", value * 3)
        assert await cache.get("key") == value * 3

    run(test, codec=BytesCodec(), encrypt=encrypt, compress=compress)


def test_a_large_value_is_sealed_and_opened_without_holding_up_the_loop() -> None:
    async def test(cache: Cache[bytes], clock: ManualClock) -> None:
        value = bytes(range(256)) * 20_000
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.ensure_future(tick())
        await cache.set("key", value)
        after_set = ticks
        assert await cache.get("key") == value
        ticker.cancel()
        assert after_set > 1
        assert ticks > after_set + 1

    run(test, codec=BytesCodec(), max_bytes="20MB")


def test_fetch_computes_once_and_tells_age_and_expiry() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        values: List[int] = []
        first = await cache.fetch("key", counting(values), ttl=60)
        clock.now += 7
        second = await cache.fetch("key", counting(values), ttl=60)
        assert (first.value, first.cached, first.age) == (0, False, 0)
        assert (second.value, second.cached, second.age) == (0, True, 7)
        assert second.expires_at == first.expires_at == first.created_at + 60
        assert cache.stats() == CacheStats(hits=1, misses=1, stores=1)
        assert cache.stats().hit_rate == 0.5

    run(test)


@tiered
def test_a_hundred_callers_of_a_cold_key_are_one_computation(tier: int) -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        values: List[int] = []
        gate = asyncio.Event()
        tasks = [asyncio.ensure_future(cache.fetch("key", counting(values, gate))) for _ in range(100)]
        await asyncio.sleep(0)
        gate.set()
        entries = await asyncio.gather(*tasks)
        assert values == [0]
        assert [entry.cached for entry in entries].count(False) == 1
        assert (cache.stats().hits, cache.stats().misses) == (99, 1)

    run(test, tier_bytes=tier)


def test_a_value_that_is_not_worth_storing_is_returned_and_computed_again() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        values: List[int] = []
        for _ in range(2):
            entry = await cache.fetch("key", counting(values), store_if=lambda value: False)
            assert entry.expires_at is None
        assert values == [0, 1]
        assert await cache.usage() == Usage(0, 0)

    run(test)


def test_refresh_computes_without_looking_and_replaces() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        values: List[int] = []
        await cache.fetch("key", counting(values))
        assert (await cache.fetch("key", counting(values), refresh=True)).value == 1
        assert await cache.get("key") == 1

    run(test)


def test_an_error_is_raised_and_not_remembered() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        async def fail() -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await cache.get_or_compute("key", fail)
        assert await cache.get_or_compute("key", counting([])) == 0

    run(test)


def test_a_computed_value_that_does_not_fit_is_returned_and_nothing_else_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(cache: Cache[bytes], clock: ManualClock) -> None:
        await cache.set("other", b"stays")

        async def compute() -> bytes:
            return bytes(range(256)) * 8

        assert len(await cache.get_or_compute("key", compute)) == 2048
        with pytest.raises(EntryTooLargeError):
            await cache.set("key", bytes(range(256)) * 8)
        assert await cache.get("other") == b"stays"
        assert cache.stats().refused == 2

    run(test, codec=BytesCodec(), max_bytes=1000, compress=False)
    assert "did not take an answer" in caplog.text


def test_a_value_that_cannot_be_encoded_is_returned_too() -> None:
    async def test(cache: Cache[Any], clock: ManualClock) -> None:
        async def compute() -> Any:
            return {1, 2}

        assert await cache.get_or_compute("key", compute) == {1, 2}
        for unfit in [object(), float("nan"), "\ud800"]:
            with pytest.raises(InvalidValueError):
                await cache.set("key", unfit)

    run(test)


def test_a_paid_answer_is_stored_though_its_only_caller_was_cancelled_meanwhile() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        caller: asyncio.Task[Any]

        async def compute() -> int:
            caller.cancel()
            return 42

        caller = asyncio.ensure_future(cache.fetch("key", compute))
        with pytest.raises(asyncio.CancelledError):
            await caller
        await cache._flight.settle()
        # The cancellation reached the caller before the work could go on, or after: either nothing was
        # computed to the end, or it was stored.
        assert await cache.get("key") in (42, MISSING)

    run(test)


def test_the_names_of_short_keys_that_are_remembered_are_bounded_too() -> None:
    async def main() -> None:
        async with open_cache("memory://") as cache:
            most = 0
            for number in range(40_000):
                cache._vault.names(str(number))
                most = max(most, len(cache._vault._names))
            assert 10_000 < most < (8 << 20) / 256

    asyncio.run(main())


def test_bad_keys_and_lives_are_refused() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        with pytest.raises(InvalidKeyError):
            await cache.get("\ud800")
        for ttl in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="ttl"):
                await cache.set("key", 1, ttl=ttl)
        with pytest.raises(ValueError, match="ttl"):
            await cache.fetch("key", counting([]), ttl=0)

    run(test)


def test_none_lives_for_ever_and_jitter_only_shortens() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        await cache.set("for ever", 1, ttl=None)
        lives = []
        for number in range(200):
            entry = await cache.fetch(number, counting([]), ttl=100)
            assert entry.expires_at is not None
            lives.append(entry.expires_at - entry.created_at)
        assert 50 <= min(lives) < 60
        assert 90 < max(lives) <= 100
        clock.now += 1e9
        assert await cache.get("for ever") == 1

    run(test, ttl_jitter=0.5)


def test_delete_and_clear_reach_the_tier() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        for key in ("a", "b"):
            await cache.set(key, 1)
        assert await cache.delete("a")
        assert not await cache.delete("a")
        assert await cache.get("a") is MISSING
        assert await cache.clear() == 1
        assert await cache.get("b") is MISSING

    run(test, tier_bytes=1_000_000)


def test_the_tier_does_not_outlive_its_staleness_bound() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        entry = await cache.fetch("key", counting([]))
        await cache._backend.delete(entry.key)
        clock.now += 4.9
        assert await cache.get("key") == 0
        clock.now += 0.1
        assert await cache.get("key") is MISSING
        assert cache.stats().tier_hits == 1

    run(test, tier_bytes=1_000_000, tier_ttl=5)


def test_entries_of_a_previous_secret_are_read_and_others_are_misses_that_stay() -> None:
    async def main() -> None:
        async with open_cache("memory://", secrets="the old secret 1") as old:
            await old.set("key", "kept")
            await old.set("other", "kept too")
            shared = old._backend
            rotated = open_cache("memory://", secrets=["the new secret 2", "the old secret 1"])
            rotated._backend = rotated._vault._backend = shared
            async with rotated:
                assert await rotated.get("key") == "kept"
                await rotated.set("key", "newer")
                assert await rotated.get("key") == "newer"
                stranger = open_cache("memory://", secrets="another secret 3")
                stranger._backend = stranger._vault._backend = shared
                await stranger.open()
                assert await stranger.get("key") is MISSING
                report = await stranger.verify(repair=True)
                assert (report.entries, len(report.foreign), report.repaired) == (2, 2, 0)
                assert report.consistent
                assert await rotated.get("key") == "newer"
                assert await rotated.delete("key")
                assert await rotated.delete("other")
                assert await shared.usage() == Usage(0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("option", [{"tenant": "other"}, {"encrypt": True}])
def test_tenants_and_algorithms_do_not_see_each_others_entries(option: Dict[str, Any]) -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        other = open_cache("memory://", secrets=SECRET, clock=clock, **option)
        other._backend = other._vault._backend = cache._backend
        await other.open()
        await cache.set("key", 1)
        assert await other.get("key") is MISSING
        await other.set("key", 2)
        assert await cache.get("key") == 1
        assert (await cache.usage()).entries == 2

    run(test)


def test_a_namespace_is_part_of_the_key() -> None:
    async def main() -> None:
        names = set()
        for namespace in ("a", "b"):
            async with open_cache("memory://", secrets=SECRET, namespace=namespace) as cache:
                names.add((await cache.fetch("key", counting([]))).key)
        assert len(names) == 2

    asyncio.run(main())


def test_scan_and_get_stored_open_what_is_there() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        keys = {(await cache.fetch(number, counting([number]), ttl=50)).key: number for number in range(150)}
        await cache._backend.add("lease.x", b"token", ttl=5)
        stored = {entry.key: entry async for entry in cache.scan()}
        assert stored.pop("lease.x").state == "other"
        assert set(stored) == set(keys)
        for entry in stored.values():
            assert (entry.state, entry.value, entry.expires_at) == ("ok", 1, clock.now + 50)
        one = next(iter(stored.values()))
        assert await cache.get_stored(one.key) == one
        assert await cache.get_stored("0" * 64) is None
        assert sum(entry.size for entry in stored.values()) + len("lease.xtoken") == (await cache.usage()).bytes

    run(test)


class Listener:
    def __init__(self) -> None:
        self.seen: List[Any] = []

    @hookimpl
    def claude_force_cache_hit(self, key: str, age: float, tier: bool) -> None:
        self.seen.append(("hit", age, tier))

    @hookimpl
    def claude_force_cache_miss(self, key: str) -> None:
        self.seen.append("miss")

    @hookimpl
    def claude_force_cache_store(self, size: int) -> None:
        self.seen.append("store")

    @hookimpl
    def claude_force_cache_evict(self, count: int) -> None:
        self.seen.append(("evict", count))


def test_events_tell_listeners_what_happens_and_stop_when_they_leave() -> None:
    async def test(cache: Cache[bytes], clock: ManualClock) -> None:
        listener = Listener()
        cache.register(listener)
        await cache.get("a")
        await cache.set("a", b"x" * 400)
        clock.now += 3
        await cache.get("a")
        await cache.set("b", b"x" * 400)
        assert listener.seen == ["miss", "store", ("hit", 3.0, False), "store", ("evict", 1)]
        cache.unregister(listener)
        await cache.get("a")
        assert len(listener.seen) == 5
        assert cache.stats().evictions == 1
        with pytest.raises(ValueError, match="not registered"):
            cache.unregister(listener)

    run(test, codec=BytesCodec(), max_bytes=1000, compress=False)


def test_a_listener_that_fails_or_does_not_fit_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        @hookimpl
        def claude_force_cache_miss(self) -> None:
            raise ZeroDivisionError

    class Unfit:
        @hookimpl
        def claude_force_cache_miss(self, no_such_argument: int) -> None: ...

    async def test(cache: Cache[int], clock: ManualClock) -> None:
        cache.register(Failing())
        with pytest.raises(ValueError, match="does not fit"):
            cache.register(Unfit())
        assert await cache.get("key") is MISSING

    run(test)
    assert "a listener of cache memory:// failed on miss" in caplog.text


def test_after_close_every_verb_says_so() -> None:
    async def main() -> None:
        cache = open_cache("memory://")
        await cache.set("key", 1)
        await cache.close()
        await cache.close()
        for verb in (cache.get, cache.delete):
            with pytest.raises(BackendClosedError, match="open another one"):
                await verb("key")
        with pytest.raises(BackendClosedError):
            await cache.usage()

    asyncio.run(main())


def test_a_cache_serves_one_event_loop_after_another() -> None:
    cache = open_cache("memory://?tier_bytes=1MB")
    assert asyncio.run(cache.fetch("key", counting([]))).cached is False
    assert asyncio.run(cache.fetch("key", counting([]))).cached is True
    asyncio.run(cache.close())


def test_the_blocking_twin_does_the_same() -> None:
    cache = BlockingCache(open_cache("memory://"))
    with pytest.raises(BackendClosedError, match="inside of 'with'"):
        cache.get("key")
    with cache:
        assert cache.get("key") is MISSING
        assert cache.get_entry("key") is None
        assert cache.set("key", [1], ttl=5)
        assert cache.get("key") == [1]
        assert cache.get_or_compute("other", lambda: 7) == 7
        assert cache.fetch("other", lambda: 8).cached
        assert cache.usage().entries == 2
        keys = [stored.key for stored in cache.scan()]
        assert cache.get_stored(keys[0]) is not None
        assert cache.delete_stored(keys[0])
        assert cache.verify().consistent
        assert cache.delete("key") or cache.delete("other")
        assert cache.clear() == 0
        cache.ping()
        assert cache.stats().stores == 2
    with pytest.raises(BackendClosedError):
        cache.get("key")


def test_nothing_that_is_printed_or_logged_has_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(cache: Cache[int], clock: ManualClock) -> None:
        await cache.set("key", 1)
        name = (await cache.fetch("key", counting([]))).key
        await cache._backend.set(name, b"garbage", ttl=None)
        await cache.get("key")
        shown = repr(cache) + json.dumps(dict(cache.options)) + str(cache.stats()) + repr(cache._secrets) + caplog.text
        assert "corrupt" in shown
        assert SECRET not in shown

    run(test)


def test_what_a_previous_secret_had_does_not_return_once_it_is_replaced() -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_cache("memory://", secrets="the old secret 1", clock=clock, max_bytes=2000) as old:
            rotated = open_cache("memory://", secrets=["the new secret 2", "the old secret 1"], clock=clock)
            rotated._backend = rotated._vault._backend = old._backend
            await rotated.open()
            for key in ("expires", "too large"):
                await old.set(key, "outdated", ttl=None)
            await rotated.set("expires", "newer", ttl=10)
            clock.now += 10
            assert await rotated.get("expires") is MISSING
            with pytest.raises(EntryTooLargeError):
                await rotated.set("too large", list(range(5000)))
            assert await rotated.get("too large") is MISSING
            assert await old.usage() == Usage(0, 0)

    asyncio.run(main())


def test_the_tier_serves_what_a_previous_secret_sealed(tmp_path: Path) -> None:
    async def main() -> None:
        url = f"disk://{tmp_path}/cache"
        async with open_cache(url, secrets="the old secret 1") as old:
            await old.set("key", "kept")
        async with open_cache(url, secrets=["the new secret 2", "the old secret 1"]) as rotated:
            assert [await rotated.get("key") for _ in range(3)] == ["kept"] * 3
            assert rotated.stats().tier_hits == 2
            await rotated.set("key", "newer")
            assert await rotated.get("key") == "newer"
            assert await rotated.delete("key")
            assert await rotated.get("key") is MISSING

    asyncio.run(main())


@pytest.mark.parametrize("deletes", [False, True], ids=["set", "delete"])
def test_a_read_that_was_under_way_does_not_bring_an_older_value_back_into_the_tier(
    tmp_path: Path, deletes: bool
) -> None:
    async def main() -> None:
        url = f"disk://{tmp_path}/cache"
        async with open_cache(url, secrets=SECRET) as writer, open_cache(url, secrets=SECRET) as cache:
            for turn in range(60):
                await writer.set(["key", turn], "old")
                reading = asyncio.ensure_future(cache.get(["key", turn]))
                for _ in range(turn % 3):
                    await asyncio.sleep(0)
                if deletes:
                    await cache.delete(["key", turn])
                else:
                    await cache.set(["key", turn], "new")
                await reading
                assert await cache.get(["key", turn]) == (MISSING if deletes else "new")

    asyncio.run(main())


def test_callers_that_share_a_computation_do_not_share_a_value_that_can_be_changed() -> None:
    async def test(cache: Cache[Any], clock: ManualClock) -> None:
        gate = asyncio.Event()

        async def compute() -> Dict[str, List[int]]:
            await gate.wait()
            return {"list": [1]}

        callers = [asyncio.ensure_future(cache.get_or_compute("key", compute)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        values = await asyncio.gather(*callers)
        for value in values:
            value["list"].append(2)
        assert values == [{"list": [1, 2]}] * 3

    run(test)


def test_a_computation_that_asks_for_its_own_answer_fails_and_the_cache_closes() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        async def direct() -> int:
            return await cache.get_or_compute("direct", direct)

        async def there() -> int:
            return await cache.get_or_compute("back", back)

        async def back() -> int:
            return await asyncio.ensure_future(cache.get_or_compute("there", there))

        for key, compute in (("direct", direct), ("there", there)):
            with pytest.raises(RuntimeError, match="would wait for itself"):
                await asyncio.wait_for(cache.get_or_compute(key, compute), 10)

    run(test)


def test_a_life_longer_than_any_calendar_is_taken() -> None:
    async def test(cache: Cache[int], clock: ManualClock) -> None:
        for ttl in (100 * 365 * 86400.0, 1e12, 1e17, 1e308):
            entry = await cache.fetch(["key", ttl], counting([]), ttl=ttl)
            assert await cache.get(["key", ttl]) == entry.value == 0

    run(test)


def test_a_caller_that_is_cancelled_while_the_cache_opens_is_the_only_one(tmp_path: Path) -> None:
    async def main() -> None:
        for cancelled in range(3):
            cache = open_cache(f"disk://{tmp_path}/cache-{cancelled}", secrets=SECRET)
            callers = [asyncio.ensure_future(cache.open()) for _ in range(3)]
            await asyncio.sleep(0)
            callers[cancelled].cancel()
            results = await asyncio.gather(*callers, return_exceptions=True)
            for index, result in enumerate(results):
                assert isinstance(result, asyncio.CancelledError) if index == cancelled else result is None
            assert await cache.set("key", "value")
            await cache.close()

    asyncio.run(main())


def test_a_close_that_is_cancelled_leaves_nothing_open_and_loses_no_answer(tmp_path: Path) -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        cache = open_cache(f"disk://{tmp_path}/cache", secrets=SECRET)
        await cache.open()
        gate = asyncio.Event()
        answer = asyncio.ensure_future(cache.get_or_compute("key", counting([], gate)))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(cache.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        gate.set()
        assert await answer == 0
        left = set(threading.enumerate()) - before
        ours = [thread for thread in left if thread.name.startswith("claude-force-cache")]
        for thread in ours:  # one that has just brought the last answer is on its way out
            thread.join(10)
        assert not [thread for thread in ours if thread.is_alive()]

    asyncio.run(main())
