"""Values that are longer than a store's longest entry: whole or a miss, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import secrets
import time
from collections import Counter
from typing import Any, Callable, Coroutine, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from claude_force_backends.memory import MemoryBackend
from claude_force_cache import (
    MISSING,
    BackendSettings,
    BackendURL,
    BytesCodec,
    Cache,
    Clock,
    EntryTooLargeError,
    Usage,
    open_cache,
)
from claude_force_cache._chunks import Limits, Manifest, cut, entry_of
from claude_force_cache._sealing import CorruptEntryError

LONGEST = 2000
"""What an entry's value may be long at most, in bytes, where these tests say so."""

TWO: Sequence[Mapping[str, Any]] = [{}, {}]

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(length: int, seed: int = 0) -> bytes:
    """Return bytes that do not get shorter when they are compressed."""
    return random.Random(f"{length} {seed}").getrandbits(8 * length + 1).to_bytes(length + 1, "big")[1:]


def run(
    url: str,
    test: Callable[..., Coroutine[Any, Any, None]],
    *,
    given: Sequence[Mapping[str, Any]] = ({},),
    longest: Optional[int] = LONGEST,
    clock: Optional[Clock] = None,
    **options: Any,
) -> None:
    """Run a test with a cache for each of ``given``, all on one store that says that it takes short values only."""

    async def main() -> None:
        namespace = f"test-{secrets.token_hex(8)}"
        source: Any = url
        if url == "memory://" and len(given) > 1:
            source = MemoryBackend(BackendSettings(BackendURL("memory"), namespace, None, time.time, {}))
        everything = dict(options, codec=BytesCodec(), namespace=namespace, timeout=20, tier_bytes=0, clock=clock)
        caches = [open_cache(source, **dict(everything, **own)) for own in given]
        for cache in caches:
            await cache.open()
            if longest is not None:
                cache._backend.capabilities = dataclasses.replace(cache.capabilities, max_value_bytes=longest)
        try:
            await test(*caches)
        finally:
            await caches[0].clear()
            for cache in caches:
                await cache.close()

    asyncio.run(main())


async def lying(cache: Cache[bytes]) -> Dict[str, bytes]:
    """Return all that lies in the store, after checking that the account says the same, and that all is in order."""
    names = [info.key async for info in cache._backend.scan()]
    found = {name: entry.value for name, entry in (await cache._backend.get_many(names)).items()}
    assert await cache.usage() == Usage(len(found), sum(map(len, found)) + sum(map(len, found.values())))
    report = await cache.verify()
    assert report.consistent
    assert (report.corrupt, report.remains) == ((), ())
    return found


def parts_of(lying: Dict[str, bytes]) -> List[str]:
    return sorted((name for name in lying if entry_of(name)), key=lambda name: int(name.rpartition(".")[2]))


@few
@given(
    length=st.integers(0, 20 * LONGEST),
    noisy=st.booleans(),
    encrypt=st.booleans(),
    tags=st.sampled_from([(), ("a", "b")]),
)
def test_a_value_of_any_length_comes_back(
    store_url: str, length: int, noisy: bool, encrypt: bool, tags: Tuple[str, ...]
) -> None:
    async def test(cache: Cache[bytes]) -> None:
        value = noise(length) if noisy else bytes(length)
        await cache.set("key", value, tags=tags)
        assert await cache.get("key") == value
        found = await lying(cache)
        assert max(map(len, found.values())) <= LONGEST
        name = await cache.stored_key("key")
        (entry,) = [entry async for entry in cache.scan() if entry.state != "other"]
        mine = {key: value for key, value in found.items() if key.startswith(name)}
        assert (entry.key, entry.state, entry.value, entry.tags) == (name, "ok", value, tags)
        assert entry.size == sum(map(len, mine)) + sum(map(len, mine.values()))
        if noisy and length > LONGEST:
            assert 2 < len(mine) <= 3 + length // LONGEST
        elif length < LONGEST - 200:
            assert len(mine) == 1
        again = await cache.get_stored(name)
        assert again is not None
        assert again.size == entry.size
        if tags:
            await cache.invalidate("b")
            assert await cache.get("key") is MISSING
        assert await cache.delete("key")
        assert not parts_of(await lying(cache))

    run(store_url, test, encrypt=encrypt)


FAULTS: Dict[str, Callable[[bytes, bytes, bytes], Optional[bytes]]] = {
    "removed": lambda part, older, other: None,
    "emptied": lambda part, older, other: b"",
    "truncated": lambda part, older, other: part[:-1],
    "extended": lambda part, older, other: part + b"x",
    "changed": lambda part, older, other: part[:-1] + bytes([part[-1] ^ 1]),
    "of an older value": lambda part, older, other: older,
    "of another key": lambda part, older, other: other,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("encrypt", [False, True], ids=["sealed", "encrypted"])
def test_any_part_that_is_not_the_one_is_a_miss_and_takes_the_entry_with_it(
    store_url: str, fault: str, encrypt: bool
) -> None:
    async def test(cache: Cache[bytes]) -> None:
        value = noise(3 * LONGEST)
        await cache.set("other", noise(3 * LONGEST, 1))
        other = await lying(cache)
        await cache.set("key", noise(3 * LONGEST, 2))
        older = {name: data for name, data in (await lying(cache)).items() if name not in other}
        for position in range(4):
            await cache.set("key", value)
            found = {name: data for name, data in (await lying(cache)).items() if name not in other}
            part = parts_of(found)[position]
            planted = FAULTS[fault](found[part], older[parts_of(older)[position]], other[parts_of(other)[position]])
            if planted is None:
                await cache._backend.delete(part)
            else:
                await cache._backend.set(part, planted, ttl=100)
            assert await cache.get("key") is MISSING
            assert await cache.get("other") == noise(3 * LONGEST, 1)
            # Damage is counted; a part that is gone is not: stores make room.
            assert cache.stats().corrupt == (0 if fault == "removed" else position + 1)
            assert await lying(cache) == other

    run(store_url, test, encrypt=encrypt)


def test_parts_are_worth_nothing_in_another_order_or_under_a_manifest_that_is_not_theirs(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        async def plant(planted: Dict[str, bytes], *, comes: object = MISSING) -> None:
            await cache.clear()
            await cache._backend.set_many({name: (data, 100) for name, data in planted.items()})
            assert await cache.get("key") == comes

        name, other = await cache.stored_key("key"), await cache.stored_key("other")
        await cache.set("other", noise(3 * LONGEST, 1))
        theirs = await lying(cache)
        await cache.clear()
        await cache.set("key", noise(3 * LONGEST, 2))
        older = await lying(cache)
        await cache.set("key", noise(3 * LONGEST))
        ours = await lying(cache)
        first, second, *_ = parts_of(ours)
        await plant({**ours, first: ours[second], second: ours[first]})
        await plant({**ours, name: theirs[other]})
        await plant({**theirs, name: theirs[other]})
        await plant({**ours, name: older[name]})
        await plant({key.replace(other, name): data for key, data in theirs.items()})
        # All parts of an older value, under the names that the newer one's have.
        await plant({**ours, **{new: older[old] for new, old in zip(parts_of(ours), parts_of(older))}})
        # One after the other they make up a value that was sealed; under its own name it is one.
        whole = b"".join(ours[part] for part in parts_of(ours))
        await plant({name: whole}, comes=noise(3 * LONGEST))
        await plant({other: whole})
        await plant(ours, comes=noise(3 * LONGEST))
        # A manifest is no value, and no part.
        await plant({**ours, **dict.fromkeys(parts_of(ours), ours[name])})

    run(store_url, test)


@few
@given(data=st.data(), encrypt=st.booleans())
def test_a_damaged_manifest_is_a_miss_and_reads_nothing_that_it_asks_for(data: st.DataObject, encrypt: bool) -> None:
    async def test(cache: Cache[bytes]) -> None:
        await cache.set("key", noise(3 * LONGEST))
        found = await lying(cache)
        name = await cache.stored_key("key")
        manifest = found[name]
        position = data.draw(st.integers(0, len(manifest) - 1))
        damaged = bytearray(manifest)
        damaged[position] ^= data.draw(st.integers(1, 255))
        await cache._backend.set(name, bytes(damaged), ttl=None)
        assert await cache.get("key") is MISSING
        assert cache.stats().corrupt == 1
        report = await cache.verify(repair=True)
        assert sorted(report.remains) == sorted(parts_of(found))
        assert await lying(cache) == {}

    run("memory://", test, encrypt=encrypt)


@pytest.mark.parametrize("data", [b"", bytes(22), bytes(16) + b"\xff" * 6, bytes(16) + b"\0\0\0\1\0\2", bytes(23)])
def test_a_manifest_that_says_what_cannot_be_is_none(data: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        Manifest.unpack(data)


operations = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "fetch", "refresh", "get", "delete"]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from([0, 100, LONGEST, 3 * LONGEST, 7 * LONGEST]),
    ),
    min_size=3,
    max_size=12,
)


@few
@given(operations=operations)
def test_whatever_is_overwritten_or_deleted_leaves_nothing_behind(
    store_url: str, operations: List[Tuple[str, int, int, int]]
) -> None:
    """Two caches on the same store, so that one does not know what the other has stored."""

    async def test(*caches: Cache[bytes]) -> None:
        model: Dict[int, bytes] = {}
        for number, (verb, which, key, length) in enumerate(operations):
            cache, value = caches[which], noise(length, number)

            async def compute(value: bytes = value) -> bytes:
                return value

            if verb == "set":
                await cache.set(key, value)
                model[key] = value
            elif verb == "delete":
                assert await cache.delete(key) == (model.pop(key, None) is not None)
            elif verb == "get":
                assert await cache.get(key) == model.get(key, MISSING)
            else:
                entry = await cache.fetch(key, compute, refresh=verb == "refresh")
                if verb == "refresh" or key not in model:
                    model[key] = value
                assert entry.value == model[key]
            expected = {await cache.stored_key(key) for key in model}
            found = await lying(cache)
            assert {name for name in found if not entry_of(name)} == expected
            assert {entry_of(name) or name for name in found} == expected

    run(store_url, test, given=TWO)


def test_a_reader_has_the_old_value_or_the_new_one_while_it_is_overwritten(store_url: str) -> None:
    async def test(cache: Cache[bytes], reader: Cache[bytes]) -> None:
        values = [noise(3 * LONGEST, seed) for seed in range(20)]
        await cache.set("key", values[0])
        done = False

        async def read() -> int:
            last = reads = 0
            while not done:
                found = await reader.get("key")
                assert found in values[last:], "older than before, a mixture, or nothing"
                last = values.index(found)
                reads += 1
                await asyncio.sleep(0)
            return reads

        reading = asyncio.ensure_future(read())
        for value in values:
            await cache.set("key", value)
            await asyncio.sleep(0)
        done = True
        assert await reading > 1
        assert reader.stats().corrupt == 0
        assert await cache.get("key") == values[-1]
        assert len(await lying(cache)) == 5

    run(store_url, test, given=TWO)


def test_of_several_writers_one_wins_and_its_value_is_whole(store_url: str) -> None:
    async def test(*caches: Cache[bytes]) -> None:
        for turn in range(5):
            values = [noise((2 + which) * LONGEST, turn) for which in range(3)]
            await asyncio.gather(*[cache.set("key", value) for cache, value in zip(caches, values)])
            assert await caches[0].get("key") in values
        # Who did not see the other's manifest left its parts to be found.
        report = await caches[0].verify(repair=True)
        assert report.consistent
        assert await caches[0].get("key") in values
        found = await lying(caches[0])
        assert {entry_of(name) or name for name in found} == {await caches[0].stored_key("key")}

    run(store_url, test, given=[{}] * 3)


def test_a_long_value_that_was_stored_while_another_was_made_goes_with_its_parts(store_url: str) -> None:
    async def test(cache: Cache[bytes], other: Cache[bytes]) -> None:
        async def compute() -> bytes:
            await other.set("key", noise(5 * LONGEST))
            return noise(3 * LONGEST)

        assert await cache.get_or_compute("key", compute) == noise(3 * LONGEST)
        assert await other.get("key") == noise(3 * LONGEST)
        assert len(await lying(cache)) == 1 + 4

    run(store_url, test, given=TWO)


def test_what_a_writer_that_died_left_is_found_and_removed(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        await cache.set("kept", noise(3 * LONGEST))
        kept = await lying(cache)
        await cache.set("key", noise(3 * LONGEST))
        name = await cache.stored_key("key")
        await cache._backend.delete(name)  # it had not come so far
        assert await cache.get("key") is MISSING
        report = await cache.verify()
        assert report.consistent
        assert [entry_of(part) for part in report.remains] == [name] * 4
        report = await cache.verify(repair=True)
        assert (report.consistent, len(report.remains), report.repaired) == (True, 4, 0)
        assert await lying(cache) == kept

    run(store_url, test)


def test_verify_finds_an_entry_that_lost_a_part() -> None:
    async def test(cache: Cache[bytes]) -> None:
        await cache.set("key", noise(3 * LONGEST))
        name = await cache.stored_key("key")
        await cache._backend.delete(parts_of(await lying(cache))[1])
        stored = await cache.get_stored(name)
        assert stored is not None
        assert (stored.state, stored.value) == ("incomplete", None)
        report = await cache.verify()
        assert (report.consistent, report.corrupt, report.remains) == (True, (), (name,))
        assert (await cache.verify(repair=True)).consistent
        assert await lying(cache) == {}
        assert cache.stats().corrupt == 0

    run("memory://", test)


def test_entries_of_another_secret_keep_their_parts(store_url: str) -> None:
    async def test(cache: Cache[bytes], stranger: Cache[bytes]) -> None:
        await cache.set("key", noise(3 * LONGEST))
        ours = await lying(cache)
        report = await stranger.verify(repair=True)
        assert (len(report.foreign), report.remains, report.consistent) == (1, (), True)
        assert await lying(cache) == ours

    run(store_url, test, given=[{}, {"secrets": "another secret of the tests"}])


def test_a_value_under_an_older_secret_goes_with_its_parts_when_the_key_is_stored_anew(store_url: str) -> None:
    async def test(older: Cache[bytes], both: Cache[bytes]) -> None:
        for looked in (True, False):
            await older.set("key", noise(3 * LONGEST))
            if looked:
                assert await both.get("key") == noise(3 * LONGEST)
            await both.set("key", noise(2 * LONGEST))
            assert await both.get("key") == noise(2 * LONGEST)
            assert len(await lying(both)) == 1 + 3
            await both.delete("key")
            assert await lying(both) == {}

    run(store_url, test, given=[{"secrets": "the older of two"}, {"secrets": ["the newer of two", "the older of two"]}])


def test_parts_end_with_their_entry() -> None:
    now = [1000.0]

    async def test(cache: Cache[bytes]) -> None:
        await cache.set("key", noise(3 * LONGEST), ttl=10)
        now[0] += 9.9
        assert await cache.get("key") == noise(3 * LONGEST)
        now[0] += 0.1
        assert await cache.get("key") is MISSING
        assert await lying(cache) == {}

    run("memory://", test, clock=lambda: now[0])


def test_a_value_above_the_whole_limit_is_refused_before_anything_is_written(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        await cache.set("other", noise(3 * LONGEST))
        other = await lying(cache)
        await cache.set("key", noise(3 * LONGEST))
        with pytest.raises(EntryTooLargeError) as caught:
            await cache.set("key", noise(30 * LONGEST))
        assert caught.value.size > caught.value.limit == 20 * LONGEST
        assert await cache.get("key") is MISSING
        assert await lying(cache) == other
        assert cache.stats().evictions == 0
        assert cache.stats().refused == 1

    run(store_url, test, max_bytes=20 * LONGEST)


def test_a_full_cache_has_the_newest_values_and_what_lost_a_part_is_a_miss(store_url: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        for key in range(12):
            await cache.set(key, noise(3 * LONGEST, key))
            assert (await cache.usage()).bytes <= 10 * LONGEST
            assert await cache.get(key) == noise(3 * LONGEST, key)
        assert [await cache.get(key) for key in range(9)] == [MISSING] * 9
        assert await cache.get(11) == noise(3 * LONGEST, 11)
        assert cache.stats().corrupt == 0
        assert (await cache.verify(repair=True)).consistent
        await lying(cache)

    run(store_url, test, max_bytes=10 * LONGEST)


def test_a_limit_that_is_divided_takes_values_above_a_share(redis_server: Any) -> None:
    async def test(cache: Cache[bytes]) -> None:
        assert cache.capabilities.partitions == 16
        for seed in range(3):
            value = noise(900_000, seed)
            assert await cache.set("key", value)
            assert await cache.get("key") == value
            assert (await cache.usage()).bytes <= 4_000_000
        with pytest.raises(EntryTooLargeError) as caught:
            await cache.set("key", noise(2_000_000))
        assert caught.value.limit == 2_000_000
        assert await lying(cache) == {}

    run(f"{redis_server.url}?partitions=16", test, longest=None, max_bytes=4_000_000)


def test_an_answer_of_five_megabytes_on_a_memcached_as_it_is(memcached_server: Any) -> None:
    async def test(cache: Cache[bytes], other: Cache[bytes]) -> None:
        value = os.urandom(5_000_000)
        assert cache.capabilities.max_value_bytes is not None
        assert cache.capabilities.max_value_bytes < 1024 * 1024
        assert await cache.set("key", value, tags=["t"])
        assert await other.get("key") == value
        assert len(await lying(cache)) == 1 + 5 + 1
        await other.set("key", b"short")
        assert len(await lying(cache)) == 1 + 1

    run(memcached_server.url, test, given=TWO, longest=None, encrypt=True)


class Counting(MemoryBackend):
    """Counts the verbs that it is asked for."""

    calls: Counter[str]

    async def get(self, key: str) -> Any:
        self.calls["get"] += 1
        return await super().get(key)

    async def get_many(self, keys: Any) -> Any:
        self.calls["get_many"] += 1
        return await super().get_many(keys)

    async def set(self, key: str, value: bytes, *, ttl: Any) -> int:
        self.calls["set"] += 1
        return await super().set(key, value, ttl=ttl)

    async def delete(self, key: str, *, version: Any = None) -> bool:
        self.calls["delete"] += 1
        return await super().delete(key, version=version)


def test_values_that_fit_cost_what_they_cost_without_a_limit() -> None:
    async def calls(longest: Optional[int]) -> Counter[str]:
        backend = Counting(BackendSettings(BackendURL("memory"), "default", None, None, {}))
        backend.capabilities = dataclasses.replace(backend.capabilities, max_value_bytes=longest)
        backend.calls = Counter()

        async def compute() -> bytes:
            return b"short"

        async with open_cache(backend, codec=BytesCodec(), tier_bytes=0) as cache:
            for key in (1, 2, 1, 2):
                assert await cache.get_or_compute(key, compute) == b"short"
        return backend.calls

    assert asyncio.run(calls(LONGEST)) == asyncio.run(calls(None))


lengths = st.integers(1, 3_000_000)


@given(
    length=lengths, value=st.one_of(st.none(), lengths), limit=st.one_of(st.none(), lengths), shares=st.integers(1, 64)
)
def test_a_cut_fits_or_is_refused(length: int, value: Optional[int], limit: Optional[int], shares: int) -> None:
    name, sealed = "ab" * 32, bytes(length)
    capabilities = dataclasses.replace(MemoryBackend.capabilities, max_value_bytes=value, partitions=shares)
    limits = Limits.of(capabilities, limit)
    if limits.fits(name, sealed):
        return
    room = (limits.part or 0) * 4096
    if length > room or length + 400 > (limits.total or length + 400):
        with pytest.raises(EntryTooLargeError):
            cut(name, sealed, limits)
        return
    try:
        manifest, parts = cut(name, sealed, limits)
    except EntryTooLargeError as refused:
        assume(refused.size <= refused.limit)  # the names of the parts make the difference
        raise
    assert b"".join(parts.values()) == sealed
    assert list(parts) == manifest.names(name)
    assert Manifest.unpack(manifest.pack()) == manifest
    assert manifest.size(name) == sum(map(len, parts)) + length
    assert all(entry_of(part) == name for part in parts)
    assert value is None or max(map(len, parts.values())) <= value
    if limit is not None:
        assert max(len(part) + len(data) for part, data in parts.items()) <= limit // shares
        assert manifest.size(name) < limit
