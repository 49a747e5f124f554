"""Leases: one call for all processes, each of which is a cache object here. Real ones are in tests/reliability."""

import asyncio
import os
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Awaitable, Callable, List, Tuple

import pytest

from claude_force_cache import BytesCodec, Cache, EntryInfo, hookimpl, open_cache
from claude_force_cache._lease import Lease

SECRET = "a secret of the tests"
KEY = ["agent", "task"]
SECONDS = 30.0


@pytest.fixture(params=["disk", "redis", "memcached"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"disk://{tmp_path}/cache"
    server: Any = request.getfixturevalue(f"{request.param}_server")
    return str(server.url)


@pytest.fixture
def disk_url(tmp_path: Path) -> str:
    return f"disk://{tmp_path}/cache"


def together(url: str, count: int, test: Callable[..., Awaitable[None]], namespace: str, **options: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            caches = [
                await stack.enter_async_context(
                    open_cache(url, secrets=SECRET, namespace=namespace, tier_bytes=0, **{"timeout": "5s", **options})
                )
                for _ in range(count)
            ]
            await asyncio.wait_for(test(*caches), SECONDS)
            await caches[0].clear()

    asyncio.run(main())


class Counter:
    """Makes values, each with its number."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.calls = 0
        self.seconds = seconds

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await asyncio.sleep(self.seconds)
        return number


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def lease_of(cache: Cache[Any]) -> str:
    return await cache.stored_key(KEY) + ".lease"


async def infos(cache: Cache[Any]) -> List[EntryInfo]:
    return [info async for info in cache._backend.scan()]


def test_many_caches_that_ask_at_once_make_the_value_once_and_leave_no_lease(shared_url: str, namespace: str) -> None:
    counter = Counter()

    async def test(*caches: Cache[Any]) -> None:
        answers = await asyncio.gather(*(cache.fetch(KEY, counter) for cache in caches for _ in range(5)))
        assert {answer.value for answer in answers} == {1}
        assert counter.calls == 1
        assert sum(cache.stats().lease_waits for cache in caches) == len(caches) - 1
        assert sum(not answer.cached for answer in answers) == 1
        assert [info.key for info in await infos(caches[0])] == [await caches[0].stored_key(KEY)]

    together(shared_url, 6, test, namespace)


def test_a_failure_is_its_own_and_the_next_in_turn_tries(disk_url: str, namespace: str) -> None:
    calls: List[int] = []

    async def compute() -> str:
        calls.append(1)
        await asyncio.sleep(0.1)
        if len(calls) == 1:
            raise OSError("the first call fails")
        return "answer"

    async def test(*caches: Cache[Any]) -> None:
        answers = await asyncio.gather(
            *(cache.get_or_compute(KEY, compute) for cache in caches), return_exceptions=True
        )
        assert sorted(map(str, answers)) == ["answer", "answer", "answer", "the first call fails"]
        assert len(calls) == 2

    together(disk_url, 4, test, namespace)


def test_where_nothing_comes_to_be_stored_nobody_waits_for_more_than_two(disk_url: str, namespace: str) -> None:
    calls: List[int] = []

    async def test(*caches: Cache[Any]) -> None:
        all_at_once = asyncio.Event()

        async def compute() -> int:
            calls.append(1)
            number = len(calls)
            waits = {1: 5, 2: 9}.get(number, 0)  # all others wait for the first one, and again for the second

            async def awaited() -> bool:
                return sum(cache.stats().lease_waits for cache in caches) >= waits

            await until(awaited)
            if number == len(caches):
                all_at_once.set()
            if number > 2:  # these would wait for each other without end if they were made one after the other
                await all_at_once.wait()
            return number

        answers = await asyncio.gather(
            *(cache.get_or_compute(KEY, compute, store_if=lambda _: False) for cache in caches)
        )
        assert sorted(answers) == [1, 2, 3, 4, 5, 6]

    together(disk_url, 6, test, namespace)


def test_a_holder_that_dies_holds_the_others_up_until_its_lease_is_over(shared_url: str, namespace: str) -> None:
    counter = Counter()

    async def test(*caches: Cache[Any]) -> None:
        leases = caches[0]._leases
        assert leases is not None
        lease = await leases.take(await caches[0].stored_key(KEY))
        assert isinstance(lease, Lease)  # and is never heard of again
        answers = await asyncio.gather(*(cache.get_or_compute(KEY, counter) for cache in caches[1:]))
        assert answers == [1, 1]

    together(shared_url, 3, test, namespace, lease="1s")


def test_a_clock_that_is_set_back_does_not_prolong_the_lease_of_a_dead_holder(disk_url: str, namespace: str) -> None:
    offset = [0.0]

    async def test(holder: Cache[int], other: Cache[int]) -> None:
        assert holder._leases is not None
        assert isinstance(await holder._leases.take(await holder.stored_key(KEY)), Lease)
        offset[0] = -3600.0
        began = time.monotonic()
        assert await other.get_or_compute(KEY, Counter(0.0)) == 1
        assert time.monotonic() - began >= 0.9, "the holder may have been alive, and was not waited for"
        assert [info.key for info in await infos(other)] == [await other.stored_key(KEY)]

    together(disk_url, 2, test, namespace, lease=1, clock=lambda: time.time() + offset[0])


def test_a_lease_is_renewed_while_its_call_runs(shared_url: str, namespace: str) -> None:
    counter = Counter(3.5)

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        assert await asyncio.gather(first.get_or_compute(KEY, counter), second.get_or_compute(KEY, counter)) == [1, 1]

    together(shared_url, 2, test, namespace, lease="1s")


def test_a_lease_that_the_store_lost_is_taken_again(disk_url: str, namespace: str) -> None:
    counter = Counter(1.5)

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        name = await lease_of(first)
        call = asyncio.ensure_future(first.get_or_compute(KEY, counter))

        async def held() -> bool:
            return await first._backend.get(name) is not None

        await until(held)
        await first._backend.delete(name)
        await until(held)
        assert await second.get_or_compute(KEY, counter) == await call == 1

    together(disk_url, 2, test, namespace, lease="1s")


def test_a_lease_is_given_back_only_by_its_owner(disk_url: str, namespace: str) -> None:
    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        stored = await first.stored_key(KEY)
        assert first._leases is not None
        assert second._leases is not None
        lost = await first._leases.take(stored)
        assert isinstance(lost, Lease)
        await first._backend.delete(lost.name)
        held = await second._leases.take(stored)
        assert isinstance(held, Lease)
        lost.keep()
        await lost.end()
        await lost.release()
        entry = await first._backend.get(held.name)
        assert entry is not None
        assert entry.value.startswith(held.token)
        await held.release()
        assert await first._backend.get(held.name) is None

    together(disk_url, 2, test, namespace)


def planted(kind: str, genuine: bytes) -> bytes:
    if kind == "replayed":
        return genuine
    if kind == "prolonged":
        return genuine[:16] + b"\xff" * 8 + genuine[24:]
    return {"empty": b"", "short": genuine[:30], "random": os.urandom(len(genuine)), "huge": b"\xff" * 500_000}[kind]


@pytest.mark.parametrize("kind", ["empty", "short", "random", "huge", "prolonged", "replayed", "of another key"])
def test_a_record_that_somebody_planted_keeps_nobody_waiting(shared_url: str, namespace: str, kind: str) -> None:
    counter = Counter(0.0)
    life = 1.0 if kind == "replayed" else 6.0

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        stored = await first.stored_key("another" if kind == "of another key" else KEY)
        assert first._leases is not None
        lease = await first._leases.take(stored)
        assert isinstance(lease, Lease)
        entry = await first._backend.get(lease.name)
        assert entry is not None
        await lease.release()
        if kind == "replayed":
            await asyncio.sleep(life)
        data = entry.value if kind == "of another key" else planted(kind, entry.value)
        await first._backend.set(await lease_of(first), data, ttl=None)
        assert await second.get_or_compute(KEY, counter) == 1
        assert second.stats().lease_waits == 0
        assert await first._backend.get(await lease_of(first)) is None

    together(shared_url, 2, test, namespace, lease=life)


def test_a_cancelled_caller_leaves_no_lease(shared_url: str, namespace: str) -> None:
    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        for pause in [0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05]:
            call = asyncio.ensure_future(first.get_or_compute([*KEY, pause], Counter(5.0)))
            await asyncio.sleep(pause)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

            async def gone() -> bool:
                return not await infos(second)

            await until(gone)

    together(shared_url, 2, test, namespace, lease="10m")


def test_closing_right_after_a_cancellation_leaves_no_lease(shared_url: str, namespace: str) -> None:
    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        caller = asyncio.ensure_future(second.get_or_compute(KEY, Counter(SECONDS)))
        lease = await lease_of(first)

        async def is_held() -> bool:
            return lease in [info.key for info in await infos(first)]

        await until(is_held)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await second.close()
        assert not await is_held()

    together(shared_url, 2, test, namespace)


def test_a_lease_that_is_taken_after_its_caller_was_cancelled_is_given_back(disk_url: str, namespace: str) -> None:
    async def test(cache: Cache[Any], other: Cache[Any]) -> None:
        store: Any = cache._backend
        add, asked, may_go, done = store._backend.add, threading.Event(), threading.Event(), threading.Event()

        def slow(*arguments: Any, **options: Any) -> bool:
            asked.set()
            assert may_go.wait(SECONDS)
            added = bool(add(*arguments, **options))
            done.set()
            return added

        store._backend.add = slow
        call = asyncio.ensure_future(cache.get_or_compute(KEY, Counter(5.0)))

        async def is_asked() -> bool:
            return asked.is_set()

        await until(is_asked)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(20):  # whoever looks now finds nothing
            assert await other._backend.get(await lease_of(other)) is None
        may_go.set()

        async def is_done() -> bool:
            return done.is_set()

        await until(is_done)
        await cache._flight.settle()

        async def gone() -> bool:
            return not await infos(other)

        await until(gone)

    together(disk_url, 2, test, namespace, lease="10m")


def test_without_leases_each_makes_its_own(disk_url: str, namespace: str) -> None:
    counter = Counter()

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        await asyncio.gather(first.get_or_compute(KEY, counter), second.get_or_compute(KEY, counter))
        assert counter.calls == 2

    together(disk_url, 2, test, namespace, lease="0")


def test_a_stale_value_is_made_anew_by_one(disk_url: str, namespace: str) -> None:
    now = [time.time()]
    counter = Counter(0.3)

    async def test(*caches: Cache[Any]) -> None:
        await caches[0].fetch(KEY, counter, ttl=10, stale_while_revalidate=60)
        now[0] += 20
        for _ in range(2):
            answers = await asyncio.gather(
                *(cache.fetch(KEY, counter, ttl=10, stale_while_revalidate=60) for cache in caches)
            )
            assert {answer.value for answer in answers} == {1}
            assert all(answer.stale for answer in answers)

        async def renewed() -> bool:
            entry = await caches[0].get_entry(KEY)
            return entry is not None and entry.value == 2

        await until(renewed)
        for cache in caches:
            await cache._flight.settle()
        assert counter.calls == 2

    together(disk_url, 4, test, namespace, clock=lambda: now[0])


def test_an_outage_ends_the_waiting(start_server: Callable[..., Any], namespace: str) -> None:
    server = start_server("redis")
    gate = asyncio.Event

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        done = gate()

        async def slow() -> str:
            await done.wait()
            return "slow"

        async def own() -> str:
            return "own"

        call = asyncio.ensure_future(first.get_or_compute(KEY, slow))

        async def held() -> bool:
            return await first._backend.get(await lease_of(first)) is not None

        await until(held)
        waiting = asyncio.ensure_future(second.get_or_compute(KEY, own))

        async def waits() -> bool:
            return second.stats().lease_waits == 1

        await until(waits)
        server.stop()
        assert await waiting == "own"
        done.set()
        assert await call == "slow"
        server.start()

        async def back() -> bool:
            await first.get("probe")
            return first._guard.outage is None

        await until(back)

    together(server.url, 2, test, namespace, timeout="250ms")


class Listener:
    def __init__(self) -> None:
        self.heard: List[Tuple[str, bool, bool]] = []

    @hookimpl
    def claude_force_cache_lease(self, key: str, waited: float, found: bool) -> None:
        self.heard.append((key, waited > 0, found))


def test_a_listener_hears_who_waited_and_whether_it_was_worth_it(disk_url: str, namespace: str) -> None:
    listener = Listener()

    async def test(first: Cache[Any], second: Cache[Any]) -> None:
        second.register(listener)
        counter = Counter(0.5)
        call = asyncio.ensure_future(first.get_or_compute(KEY, counter))

        async def held() -> bool:
            return await first._backend.get(await lease_of(first)) is not None

        await until(held)
        await second.get_or_compute(KEY, counter)
        await call
        assert listener.heard == [(await first.stored_key(KEY), True, True)]

    together(disk_url, 2, test, namespace)


def test_a_store_that_is_too_small_for_a_lease_is_used_without(disk_url: str, namespace: str) -> None:
    async def compute() -> bytes:
        return b""

    async def test(cache: Cache[Any]) -> None:
        assert await cache.get_or_compute(KEY, compute) == b""
        assert cache.stats().refused == 1

    together(disk_url, 1, test, namespace, codec=BytesCodec(), max_bytes=100)
