"""Invalidation by tag, on every backend."""

import asyncio
from typing import Any, Awaitable, Callable, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import (
    MISSING,
    BackendUnavailableError,
    BytesCodec,
    Cache,
    EntryInfo,
    InvalidKeyError,
    Usage,
    hookimpl,
    open_cache,
)
from claude_force_cache._tags import new_epoch, pack_epochs, unpack_epochs

SECRET = "a secret of the tests"
SHARED_BACKENDS = ("disk", "redis", "memcached")
"""Memory belongs to one cache."""

tiered = pytest.mark.parametrize("tier", [0, 1_000_000], ids=["no tier", "tier"])


def run(url: str, test: Callable[[Cache[Any]], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with open_cache(url, secrets=SECRET, **options) as cache:
            await cache.clear()
            await test(cache)
            await cache.clear()

    asyncio.run(main())


def constant(value: object, calls: List[object]) -> Callable[[], Awaitable[object]]:
    async def compute() -> object:
        calls.append(value)
        return value

    return compute


@tiered
def test_one_deletion_makes_every_entry_of_a_tag_a_miss(store_url: str, tier: int) -> None:
    async def test(cache: Cache[Any]) -> None:
        for number in range(20):
            await cache.set(["a", number], number, tags=["agent:a", "model:m"])
            await cache.set(["b", number], number, tags=["agent:b", "model:m"])
        await cache.set("untagged", 0)
        assert await cache.invalidate("agent:a") == 1
        assert [await cache.get(["a", number]) for number in range(20)] == [MISSING] * 20
        assert [await cache.get(["b", number]) for number in range(20)] == list(range(20))
        assert await cache.invalidate("agent:a", "model:m", "nobody's") == 1
        assert await cache.get(["b", 1]) is MISSING
        assert await cache.get("untagged") == 0
        await cache.set(["a", 1], "newer", tags=["agent:a", "model:m"])
        assert await cache.get(["a", 1]) == "newer"

    run(store_url, test, tier_bytes=tier)


def test_a_crowd_of_new_entries_shares_the_records_of_tags_that_it_begins(store_url: str) -> None:
    async def test(cache: Cache[Any]) -> None:
        added: List[str] = []
        add = cache._backend.add

        async def counted(key: str, value: bytes, *, ttl: Any) -> bool:
            added.append(key)
            return bool(await add(key, value, ttl=ttl))

        cache._backend.add = counted  # type: ignore[method-assign]

        async def answer(number: int) -> None:
            await cache.fetch(number, constant(number, []), tags=["agent:a", "model:m", "project"])

        await asyncio.gather(*map(answer, range(60)))
        # Not 180. Who looked before one was there, and asks for it after it was made, asks the store once more.
        assert 3 <= len([name for name in added if name.endswith(".tag")]) <= 18
        assert [await cache.get(number) for number in range(60)] == list(range(60))
        await cache.invalidate("project")
        assert [await cache.get(number) for number in range(60)] == [MISSING] * 60

    # A look-up that waits for sixty leases on a slow machine would go on without the store.
    run(store_url, test, timeout=30)


def test_the_number_of_verbs_does_not_depend_on_how_many_entries_have_the_tag() -> None:
    async def test(cache: Cache[Any]) -> None:
        counts = []
        for entries in (1, 200):
            for number in range(entries):
                await cache.set(number, number, tags=["t"])
            deletions: List[str] = []
            delete = cache._backend.delete

            async def counted(key: str, version: Any = None, delete: Any = delete, seen: Any = deletions) -> bool:
                seen.append(key)
                return bool(await delete(key, version=version))

            cache._backend.delete = counted  # type: ignore[method-assign]
            await cache.invalidate("t")
            cache._backend.delete = delete  # type: ignore[method-assign]
            counts.append(len(deletions))
        assert counts == [1, 1]

    run("memory://", test)


def test_fetch_stores_with_tags_and_finds_in_one_bulk_read() -> None:
    async def test(cache: Cache[Any]) -> None:
        calls: List[object] = []
        first = await cache.fetch("key", constant("old", calls), tags=["t", "u"])
        again = await cache.fetch("key", constant("old", calls), tags=["u", "t", "t"])
        assert (first.cached, again.cached, again.value, again.tags) == (False, True, "old", ("t", "u"))
        reads: List[List[str]] = []
        get_many = cache._backend.get_many

        async def counted(keys: Any) -> Any:
            reads.append(list(keys))
            return await get_many(keys)

        cache._backend.get_many = counted  # type: ignore[method-assign]
        await cache.fetch("key", constant("old", calls), tags=["t", "u"])
        assert [len(keys) for keys in reads] == [3]
        await cache.invalidate("u")
        assert (await cache.fetch("key", constant("new", calls), tags=["t", "u"])).value == "new"
        assert calls == ["old", "new"]

    run("memory://", test)


@tiered
def test_a_value_that_was_being_made_while_its_tag_was_invalidated_is_not_kept(tier: int) -> None:
    async def test(cache: Cache[Any]) -> None:
        started, go = asyncio.Event(), asyncio.Event()

        async def compute() -> str:
            started.set()
            await go.wait()
            return "made before"

        for _ in range(2):  # with the tag unknown, and known
            started.clear()
            go.clear()
            asking = asyncio.ensure_future(cache.fetch("key", compute, tags=["t"]))
            await started.wait()
            await cache.invalidate("t")
            go.set()
            assert (await asking).value == "made before"
            assert await cache.get("key") is MISSING

    run("memory://", test, tier_bytes=tier)


def test_a_value_that_was_begun_while_the_store_was_away_is_not_bound_to_what_was_invalidated_since() -> None:
    async def test(cache: Cache[Any]) -> None:
        add = cache._backend.add

        async def away(*arguments: Any, **options: Any) -> bool:
            raise BackendUnavailableError("away")

        async def compute() -> str:
            cache._backend.add = add  # type: ignore[method-assign]  # the store is back
            await cache.invalidate("t")
            return "made before"

        cache._backend.add = away  # type: ignore[method-assign]
        assert (await cache.fetch("key", compute, tags=["t"])).value == "made before"
        assert await cache.get("key") is MISSING
        assert (await cache.fetch("key", constant("made after", []), tags=["t"])).value == "made after"
        assert await cache.get("key") == "made after"

    run("memory://", test)


@pytest.mark.parametrize("store_url", SHARED_BACKENDS, indirect=True)
def test_caches_see_each_others_invalidations(store_url: str) -> None:
    async def main() -> None:
        one, other = (open_cache(store_url, secrets=SECRET, tier_bytes=0) for _ in range(2))
        async with one, other:
            await one.set("key", 1, tags=["t"])
            assert await other.get("key") == 1
            assert await other.invalidate("t") == 1
            assert await one.get("key") is MISSING
            await one.clear()

    asyncio.run(main())


def test_a_lost_record_costs_misses_and_never_serves_what_was_invalidated(store_url: str) -> None:
    async def test(cache: Cache[Any]) -> None:
        await cache.set("key", "old", tags=["t"])
        records = [info.key async for info in cache._backend.scan() if info.key.endswith(".tag")]
        assert len(records) == 1
        await cache._backend.delete(records[0])
        assert await cache.get("key") is MISSING
        await cache.set("other", 1, tags=["t"])
        assert await cache.get("key") is MISSING
        assert await cache.get("other") == 1
        await cache._backend.set(records[0], b"garbage", ttl=None)
        assert await cache.get("other") is MISSING
        await cache.set("other", 2, tags=["t"])
        assert await cache.get("other") == 2

    run(store_url, test, tier_bytes=0)


def test_tags_of_one_tenant_are_not_those_of_another() -> None:
    async def main() -> None:
        async with open_cache("memory://", secrets=SECRET, tenant="a") as one:
            other = open_cache("memory://", secrets=SECRET, tenant="b")
            await other.open()
            other._backend = other._vault._backend = one._backend
            await one.set("key", 1, tags=["t"])
            await other.set("key", 2, tags=["t"])
            await one.invalidate("t")
            assert await one.get("key") is MISSING
            assert await other.get("key") == 2

    asyncio.run(main())


def test_entries_of_a_previous_secret_are_invalidated_too() -> None:
    async def main() -> None:
        async with open_cache("memory://", secrets="the old secret 1") as old:
            rotated = open_cache("memory://", secrets=["the new secret 2", "the old secret 1"])
            await rotated.open()
            rotated._backend = rotated._vault._backend = old._backend
            await old.set("key", 1, tags=["t"])
            assert await rotated.get("key") == 1
            assert await rotated.invalidate("t") == 1
            assert await rotated.get("key") is MISSING
            assert await old.get("key") is MISSING

    asyncio.run(main())


def test_a_scan_tells_tags_and_what_is_invalidated() -> None:
    async def test(cache: Cache[Any]) -> None:
        await cache.set("one", 1, tags=["t"])
        await cache.set("two", 2, tags=["u"])
        await cache.invalidate("t")
        entries = [entry async for entry in cache.scan() if entry.state != "other"]
        seen = sorted((entry.state, entry.value, entry.tags) for entry in entries)
        assert seen == [("invalidated", 1, ("t",)), ("ok", 2, ("u",))]
        report = await cache.verify()
        assert report.consistent
        assert report.entries == 3  # the record of the second tag is an entry like any other

    run("memory://", test)


def test_a_store_that_holds_no_record_still_answers() -> None:
    async def test(cache: Cache[Any]) -> None:
        calls: List[object] = []
        for _ in range(2):
            assert (await cache.fetch("key", constant("value", calls), tags=["t"])).value == "value"
        assert len(calls) == 2
        assert await cache.usage() == Usage(0, 0)
        assert cache.stats().refused == 2

    run("memory://", test, max_bytes=50)


def test_invalidation_is_an_event_and_an_outage_is_an_error() -> None:
    class Listener:
        def __init__(self) -> None:
            self.seen: List[object] = []

        @hookimpl
        def claude_force_cache_invalidate(self, tags: Any) -> None:
            self.seen.append(tags)

    listener = Listener()

    async def test(cache: Cache[Any]) -> None:
        cache.register(listener)
        await cache.invalidate("b", "a")

    run("memory://", test)
    assert listener.seen == [("a", "b")]

    async def main() -> None:
        async with open_cache("redis://127.0.0.1:1", secrets=SECRET) as cache:
            with pytest.raises(BackendUnavailableError):
                await cache.invalidate("a")

    asyncio.run(main())


@pytest.mark.parametrize("tags", ["text", [""], ["x" * 256], [3], ["\ud800"], [str(n) for n in range(33)]])
def test_tags_that_cannot_be_used_are_errors(tags: Any) -> None:
    async def test(cache: Cache[Any]) -> None:
        with pytest.raises(InvalidKeyError, match="tag"):
            await cache.set("key", 1, tags=tags)
        with pytest.raises(InvalidKeyError, match="tag"):
            await cache.fetch("key", constant(1, []), tags=tags)
        with pytest.raises(ValueError, match="at least one tag"):
            await cache.invalidate()
        assert await cache.usage() == Usage(0, 0)

    run("memory://", test)


@given(st.lists(st.text(min_size=1, max_size=60).filter(lambda text: 0 < len(text.encode("utf-8", "ignore")) < 256)))
def test_epochs_are_packed_without_loss(tags: List[str]) -> None:
    epochs = {tag: new_epoch() for tag in tags if not any("\ud800" <= letter <= "\udfff" for letter in tag)}
    assert unpack_epochs(pack_epochs(epochs)) == epochs


def test_records_are_small_and_live_as_long_as_the_store_allows() -> None:
    async def test(cache: Cache[bytes]) -> None:
        await cache.set("key", b"", tags=["t"], ttl=5)
        (record,) = [info async for info in cache._backend.scan() if info.key.endswith(".tag")]
        assert record == EntryInfo(record.key, 64 + 4 + 16, None)

    run("memory://", test, codec=BytesCodec())
