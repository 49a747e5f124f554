"""Coalescing: what meets in one turn of the event loop travels together, and is told apart again."""

import asyncio
import threading
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import (
    BackendUnavailableError,
    Entry,
    EntryTooLargeError,
    PartlyUnavailableError,
    open_cache,
)
from claude_force_cache._coalescing import Coalescing

SECRET = "a secret of the tests"
T = TypeVar("T")


class Shelf:
    """The two bulk verbs and the two single ones, counted; ``gate`` holds them up."""

    def __init__(self) -> None:
        self.entries: Dict[str, Entry] = {}
        self.calls: List[Tuple[str, int]] = []
        self.fails: Optional[Exception] = None
        self.lost: Sequence[str] = ()
        self.limit = 100
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, key: str) -> Optional[Entry]:
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        self.calls.append(("get", len(keys)))
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        if any(key in self.lost for key in keys):
            raise PartlyUnavailableError("one server is down")
        return {key: self.entries[key] for key in keys if key in self.entries}

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        return await self.set_many({key: (value, ttl)})

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        self.calls.append(("set", len(items)))
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        refused = None
        for key, (value, _) in items.items():
            if len(value) > self.limit:
                refused = EntryTooLargeError(len(value), self.limit)
            else:
                self.entries[key] = Entry(value, len(self.calls))
        if refused is not None:
            raise refused
        return len(items)


async def call(verb: Callable[[], Awaitable[T]]) -> T:
    return await verb()


def gathered(shelf: Shelf) -> Coalescing:
    return Coalescing(shelf, read=call, write=call)  # type: ignore[arg-type]  # the four verbs are all it needs


def test_reads_of_one_turn_go_in_two_journeys_and_each_gets_its_own() -> None:
    async def main() -> None:
        shelf = Shelf()
        shelf.entries = {f"k{number}": Entry(b"%d" % number, 1) for number in range(0, 100, 2)}
        coalescing = gathered(shelf)
        answers = await asyncio.gather(*(coalescing.get_many([f"k{number}"]) for number in range(100)))
        for number, answer in enumerate(answers):
            entry = answer.get(f"k{number}")
            assert (entry and entry.value) == (b"%d" % number if number % 2 == 0 else None)
        assert shelf.calls == [("get", 1), ("get", 99)]

    asyncio.run(main())


def test_a_lone_reader_is_served_by_a_verb_of_its_own_at_once() -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        shelf.gate.clear()
        reading = coalescing.get_many(["a"])
        reading.send(None)
        assert shelf.calls == [("get", 1)]  # in the very first step of the coroutine
        reading.close()
        shelf.gate.set()
        await asyncio.sleep(0)
        for _ in range(5):
            await coalescing.get_many(["a"])
        assert shelf.calls == [("get", 1)] * 6

    asyncio.run(main())


def test_more_than_a_journey_takes_go_in_several() -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        await asyncio.gather(*(coalescing.get_many([str(number)]) for number in range(300)))
        assert [size for _, size in shelf.calls] == [1, 128, 128, 43]

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["get", "set"])
def test_a_caller_that_is_cancelled_harms_no_other(verb: str) -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        shelf.gate.clear()

        def one(number: int) -> "asyncio.Future[Any]":
            key = str(number)
            work = coalescing.get_many([key]) if verb == "get" else coalescing.set(key, b"x", ttl=None)
            return asyncio.ensure_future(work)

        tasks = [one(number) for number in range(10)]
        tasks[3].cancel()  # before it was sent
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[5].cancel()  # on its way
        shelf.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)]
        assert cancelled == [0, 3, 5]
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if verb == "set":
            assert set(shelf.entries) >= {"1", "2", "4", "6", "7", "8", "9"}

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["get", "set"])
def test_an_outage_is_everybodys_but_each_has_an_error_of_its_own(verb: str) -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        shelf.fails = BackendUnavailableError("gone")
        outcomes = await asyncio.gather(
            *(
                coalescing.get_many([key]) if verb == "get" else coalescing.set(key, b"", ttl=None)
                for key in map(str, range(5))
            ),
            return_exceptions=True,
        )
        assert [str(outcome) for outcome in outcomes] == ["gone"] * 5
        assert len({id(outcome) for outcome in outcomes[1:]}) == 4

    asyncio.run(main())


def test_a_server_that_is_down_costs_only_those_who_asked_for_what_it_has() -> None:
    async def main() -> None:
        shelf = Shelf()
        shelf.entries = {str(number): Entry(b"x", 1) for number in range(10)}
        shelf.lost = ["4", "7"]
        coalescing = gathered(shelf)
        outcomes = await asyncio.gather(
            *(coalescing.get_many([str(number)]) for number in range(10)), return_exceptions=True
        )
        failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, PartlyUnavailableError)]
        assert failed == [4, 7]

    asyncio.run(main())


def test_an_entry_that_is_refused_is_the_matter_of_who_stores_it() -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        outcomes = await asyncio.gather(
            *(coalescing.set(str(number), b"x" * (200 if number == 3 else 5), ttl=None) for number in range(6)),
            return_exceptions=True,
        )
        assert [isinstance(outcome, EntryTooLargeError) for outcome in outcomes] == [number == 3 for number in range(6)]
        assert set(shelf.entries) == {"0", "1", "2", "4", "5"}

    asyncio.run(main())


def test_two_event_loops_do_not_mix() -> None:
    shelf_calls: List[int] = []

    class Threaded(Shelf):
        def __init__(self) -> None:
            self.calls = []  # no gate, which would belong to one loop

        async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
            shelf_calls.append(threading.get_ident())
            await asyncio.sleep(0)
            return {key: Entry(key.encode(), 1) for key in keys}

    coalescing = gathered(Threaded())
    wrong: List[str] = []

    async def main() -> None:
        for _ in range(50):
            answers = await asyncio.gather(*(coalescing.get_many([str(number)]) for number in range(20)))
            wrong.extend(str(n) for n, answer in enumerate(answers) if answer[str(n)].value != str(n).encode())

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(shelf_calls) == 300


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_whatever_meets_each_reads_what_was_stored_before(steps: Sequence[Tuple[bool, int, int]]) -> None:
    async def main() -> None:
        shelf = Shelf()
        coalescing = gathered(shelf)
        stored: Dict[str, List[Optional[bytes]]] = {str(key): [None] for key in range(6)}

        async def step(number: int, stores: bool, key: str, pause: int) -> None:
            for _ in range(pause):
                await asyncio.sleep(0)
            if stores:
                stored[key].append(b"%d" % number)
                await coalescing.set(key, b"%d" % number, ttl=None)
                assert key in shelf.entries
            else:
                entry = (await coalescing.get_many([key])).get(key)
                assert (entry and entry.value) in stored[key]

        await asyncio.gather(*(step(n, stores, str(key), pause) for n, (stores, key, pause) in enumerate(steps)))

    asyncio.run(main())


def test_a_cache_reads_and_stores_together(store_url: str, namespace: str) -> None:
    async def main() -> None:
        async with open_cache(store_url, secrets=SECRET, namespace=namespace, tier_bytes=0) as cache:
            await asyncio.gather(*(cache.set(number, number, tags=["t", f"t{number % 3}"]) for number in range(60)))
            assert await asyncio.gather(*(cache.get(number) for number in range(60))) == list(range(60))
            assert (await cache.verify()).consistent
            await cache.invalidate("t1")
            found = await asyncio.gather(*(cache.get(number) for number in range(60)))
            assert [value == number for number, value in enumerate(found)] == [number % 3 != 1 for number in range(60)]
            await cache.clear()

    asyncio.run(main())
