import asyncio
import logging
import time
from typing import Callable, List, Optional

import pytest

from claude_force_cache import AccessDeniedError, BackendUnavailableError, PartlyUnavailableError
from claude_force_cache._guard import Guard


class Store:
    """A store that can be switched off, and counts how often it is asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.error: Optional[BackendUnavailableError] = None
        self.asked = 0
        self.probed = 0
        self.changes: List[Optional[str]] = []
        self.guard = Guard("store://", self.probe, self.changed, 5.0, clock)

    def changed(self, error: Optional[BackendUnavailableError]) -> None:
        self.changes.append(error and str(error))

    async def verb(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "value"

    async def probe(self) -> None:
        self.probed += 1
        if self.error is not None:
            raise self.error

    async def call(self) -> str:
        return await self.guard.call(self.verb, 5.0)

    async def write(self) -> str:
        return await self.guard.call(self.verb, 5.0, writes=True)


async def until_back(store: Store) -> None:
    for _ in range(1000):
        try:
            await store.call()
        except BackendUnavailableError:
            await asyncio.sleep(0.01)
        else:
            return
    pytest.fail("the store was not used again within 10 seconds")


def test_the_third_failure_in_a_row_opens_the_breaker_and_then_nothing_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        store = Store()
        store.error = AccessDeniedError("wrong password")
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                await store.call()
        store.error = None
        assert await store.call() == "value"
        store.error = AccessDeniedError("wrong password")
        for _ in range(100):
            with pytest.raises(AccessDeniedError, match="wrong password"):
                await store.call()
        assert store.asked == 2 + 1 + 3
        assert store.changes == ["wrong password"]
        await store.guard.close()

    asyncio.run(main())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_calls_that_fail_together_are_one_failure() -> None:
    async def main() -> None:
        store = Store()

        async def slow() -> None:
            await asyncio.Event().wait()

        for burst in range(3):
            assert store.guard.outage is None, burst
            results = await asyncio.gather(*[store.guard.call(slow, 0.01) for _ in range(100)], return_exceptions=True)
            assert all(isinstance(result, BackendUnavailableError) for result in results)
        assert store.guard.outage is not None
        await store.guard.close()

    asyncio.run(main())


def test_a_probe_in_the_background_finds_out_that_the_store_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Store()
        store.error = BackendUnavailableError("gone")
        store.guard.failed(store.error, certain=True)
        with pytest.raises(BackendUnavailableError):
            await store.call()
        assert store.guard.outage is not None
        store.error = None
        await until_back(store)
        assert store.probed == 2, "once to connect, once in time"
        assert store.guard.outage is None
        assert store.changes == ["gone", None]
        await store.guard.close()

    asyncio.run(main())
    assert len(caplog.records) == 2


def test_probes_that_fail_are_at_most_one_a_second() -> None:
    async def main() -> None:
        store = Store()
        store.error = BackendUnavailableError("gone")
        loop = asyncio.get_running_loop()
        start = loop.time()
        store.guard.failed(store.error, certain=True)
        while store.probed < 2:
            with pytest.raises(BackendUnavailableError):
                await store.call()
            await asyncio.sleep(0)
            assert loop.time() - start < 10
        assert store.asked == 0
        assert store.probed <= loop.time() - start
        await store.guard.close()

    asyncio.run(main())


def test_a_call_that_takes_longer_than_the_budget_is_cancelled_and_counts_as_a_failure() -> None:
    async def main() -> None:
        store = Store()
        cancelled = []

        async def never() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        for _ in range(3):
            with pytest.raises(BackendUnavailableError, match=r"store:// did not answer within 0\.01 seconds"):
                await store.guard.call(never, 0.01)
        assert len(cancelled) == 3
        assert store.guard.outage is not None
        await store.guard.close()

    asyncio.run(main())


def test_other_errors_are_no_outage() -> None:
    async def main() -> None:
        store = Store()

        async def bug() -> None:
            raise ZeroDivisionError

        for _ in range(10):
            with pytest.raises(ZeroDivisionError):
                await store.guard.call(bug, 5.0)
        assert store.guard.outage is None

    asyncio.run(main())


def test_closing_ends_a_probe_that_is_under_way() -> None:
    async def main() -> None:
        probing = asyncio.Event()

        async def probe() -> None:
            probing.set()
            await asyncio.Event().wait()

        guard = Guard("store://", probe, lambda error: None, 5.0)
        guard.failed(BackendUnavailableError("gone"), certain=True)
        for _ in range(300):
            with pytest.raises(BackendUnavailableError):
                await guard.call(probe, 5.0)
            if probing.is_set():
                break
            await asyncio.sleep(0.01)
        await asyncio.wait_for(guard.close(), 5)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_store_that_takes_no_writes_is_still_read_and_seldom_written(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Store()
        for _ in range(50):
            store.error = BackendUnavailableError("read-only")
            with pytest.raises(BackendUnavailableError, match="read-only"):
                await store.write()
            store.error = None
            assert await store.call() == "value"
        assert store.asked == 3 + 50
        assert store.guard.outage is None
        assert str(store.guard.refusal) == "read-only"
        assert store.changes == ["read-only"]
        await store.guard.close()

    asyncio.run(main())
    assert len(caplog.records) == 1


def test_one_write_a_second_tries_again_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]

    async def main() -> None:
        store = Store(lambda: now[0])
        store.error = BackendUnavailableError("full")
        for _ in range(3):
            with pytest.raises(BackendUnavailableError):
                await store.write()
        for second in range(1, 100):
            now[0] = 1000.0 + second
            outcomes = await asyncio.gather(*[store.write() for _ in range(5)], return_exceptions=True)
            assert all(isinstance(outcome, BackendUnavailableError) for outcome in outcomes)
            await asyncio.sleep(0)
            assert store.asked == 3 + second
        store.error = None
        now[0] += 1
        with pytest.raises(BackendUnavailableError, match="full"):
            await store.write()  # whose caller does not wait for what comes of it
        await asyncio.sleep(0)
        assert store.guard.refusal is None
        assert await store.write() == "value"
        assert store.changes == ["full", None]
        await store.guard.close()

    asyncio.run(main())
    assert len(caplog.records) == 2


def test_a_write_that_hangs_holds_up_nobody_once_writes_are_given_up() -> None:
    async def main() -> None:
        store = Store()
        store.guard.failed(BackendUnavailableError("locked"), certain=True, writes=True)

        async def hang() -> None:
            await asyncio.sleep(3600)

        store.guard._next_probe = 0.0  # the second is over
        with pytest.raises(BackendUnavailableError, match="locked"):
            await asyncio.wait_for(store.guard.call(hang, 3600.0, writes=True), 10)
        assert await store.call() == "value"
        await asyncio.wait_for(store.guard.close(), 10)

    asyncio.run(main())


def test_a_record_that_does_not_count_shows_nothing_and_tries_nothing() -> None:
    now = [1000.0]

    async def main() -> None:
        store = Store(lambda: now[0])

        async def record() -> str:
            return await store.guard.call(store.verb, 5.0, writes=True, counts=False)

        for _ in range(10):
            store.error = BackendUnavailableError("gone")
            with pytest.raises(BackendUnavailableError):
                await record()
        assert store.guard.refusal is None
        for _ in range(3):
            store.error = None
            assert await record() == "value", "a store that is full may take it"
            store.error = BackendUnavailableError("full")
            with pytest.raises(BackendUnavailableError):
                await store.write()
        assert str(store.guard.refusal) == "full"
        store.error = None
        now[0] += 10
        asked = store.asked
        with pytest.raises(BackendUnavailableError, match="full"):
            await record()
        await asyncio.sleep(0)
        assert store.asked == asked
        await store.guard.close()

    asyncio.run(main())


def test_a_store_that_is_back_is_written_at_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]

    async def main() -> None:
        store = Store(lambda: now[0])
        store.error = BackendUnavailableError("gone")
        for second in range(5):
            now[0] = 1000.0 + second
            with pytest.raises(BackendUnavailableError):
                await store.write()
            await asyncio.sleep(0)
        assert store.guard.refusal is not None
        for _ in range(3):
            with pytest.raises(BackendUnavailableError):
                await store.call()
        store.error = None
        now[0] += 1.0
        with pytest.raises(BackendUnavailableError):
            await store.call()  # begins the probe
        for _ in range(10):
            await asyncio.sleep(0)
        assert store.guard.outage is None
        assert await store.write() == "value"
        assert store.guard.refusal is None
        await store.guard.close()

    asyncio.run(main())
    assert len(caplog.records) == 3


def test_a_part_of_a_store_that_is_gone_is_not_an_outage_of_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Store()
        for writes in (False, True):
            store.error = PartlyUnavailableError("one of three servers")
            for _ in range(10):
                with pytest.raises(PartlyUnavailableError):
                    await store.guard.call(store.verb, 5.0, writes=writes)
        store.error = BackendUnavailableError("gone")
        with pytest.raises(BackendUnavailableError):
            await store.call()
        assert store.guard.outage is None
        assert store.guard.refusal is None
        assert store.asked == 21
        await store.guard.close()

    asyncio.run(main())
    assert not caplog.records


def test_a_store_that_is_too_slow_is_not_back(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        delay = 0.2
        probed = 0

        async def probe() -> None:
            nonlocal probed
            probed += 1
            await asyncio.sleep(delay)

        async def verb() -> str:
            return "value"

        now = 0.0
        changes: List[Optional[BackendUnavailableError]] = []
        guard = Guard("store://", probe, changes.append, 0.05, lambda: now)
        guard.failed(BackendUnavailableError("slow"), certain=True)
        for attempt in range(1, 4):
            now += 1.0
            with pytest.raises(BackendUnavailableError):
                await guard.call(verb, 5.0)
            await asyncio.gather(*guard._probes)
            assert probed == 2 * attempt, "once to connect, once in time"
        assert len(changes) == 1
        delay = 0.0
        now += 1.0
        with pytest.raises(BackendUnavailableError):
            await guard.call(verb, 5.0)
        await asyncio.gather(*guard._probes)
        assert await guard.call(verb, 5.0) == "value"
        assert changes[1:] == [None]

    asyncio.run(main())
    assert len(caplog.records) == 2
