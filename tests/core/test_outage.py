"""A store that is gone: slower answers, never failed ones, and one log line."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest

from claude_force_cache import (
    MISSING,
    BackendUnavailableError,
    Cache,
    hookimpl,
    open_cache,
)


class Heard:
    def __init__(self) -> None:
        self.events: List[str] = []

    @hookimpl
    def claude_force_cache_outage(self, error: BackendUnavailableError) -> None:
        self.events.append("outage")

    @hookimpl
    def claude_force_cache_recovery(self) -> None:
        self.events.append("recovery")


async def answer(cache: Cache[Any], key: Any, calls: List[Any]) -> Any:
    async def compute() -> str:
        calls.append(key)
        return f"answer {key}"

    return await cache.get_or_compute(key, compute)


async def until_stored(cache: Cache[Any]) -> None:
    for attempt in range(2000):
        if await cache.set(f"attempt {attempt}", attempt):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the store was not used again within 20 seconds")


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_server_that_dies_and_comes_back_costs_no_answer(
    kind: str, start_server: Callable[..., Any], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(kind)

    async def main() -> None:
        async with open_cache(server.url, namespace=namespace, tier_bytes=0) as cache:
            heard = Heard()
            cache.register(heard)
            calls: List[Any] = []
            assert await answer(cache, "before", calls) == "answer before"
            assert await answer(cache, "before", calls) == "answer before"
            assert calls == ["before"]

            server.stop()
            for number in range(50):
                assert await answer(cache, number, calls) == f"answer {number}"
            assert len(calls) == 51
            assert cache.stats().errors > 0
            with pytest.raises(BackendUnavailableError):
                await cache.usage()
            assert heard.events == ["outage"]

            server.start()
            await until_stored(cache)
            assert heard.events == ["outage", "recovery"]
            assert await answer(cache, "after", calls) == "answer after"
            assert await answer(cache, "after", calls) == "answer after"
            assert calls.count("after") == 1

    asyncio.run(main())
    ours = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(ours) == 2, [record.getMessage() for record in ours]


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_a_cache_whose_server_is_not_there_opens_answers_and_closes(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with open_cache(f"{scheme}://127.0.0.1:1") as cache:
            calls: List[Any] = []
            for _ in range(2):
                assert await answer(cache, "key", calls) == "answer key"
            assert calls == ["key"], "the in-process tier keeps what the store does not take"
            assert await cache.get("other") is MISSING
            with pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1:1"):
                await cache.ping()

    asyncio.run(main())
    assert len(caplog.records) == 1


def test_a_server_that_accepts_and_stays_silent_costs_the_budget_a_few_times_and_then_nothing() -> None:
    async def main() -> None:
        async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(1000):
                    pass
            finally:
                writer.close()

        silent = await asyncio.start_server(silence, "127.0.0.1", 0)
        host, port = silent.sockets[0].getsockname()
        async with open_cache(f"redis://{host}:{port}", timeout=0.05) as cache:
            calls: List[Any] = []
            await asyncio.gather(*[answer(cache, number, calls) for number in range(200)])
            assert len(calls) == 200
        silent.close()
        await silent.wait_closed()

    asyncio.run(main())


def test_a_disk_folder_that_vanishes_costs_no_answer(tmp_path: Any) -> None:
    import shutil

    async def main() -> None:
        async with open_cache(f"disk://{tmp_path}/cache", tier_bytes=0) as cache:
            calls: List[Any] = []
            await answer(cache, "before", calls)
            shutil.rmtree(str(tmp_path / "cache"))
            for number in range(10):
                assert await answer(cache, number, calls) == f"answer {number}"

    asyncio.run(main())


def test_a_cache_that_was_opened_before_a_fork_is_an_outage_in_the_child(store_url: str, tmp_path: Path) -> None:
    program = """
import asyncio, os, sys, time
from claude_force_cache import MISSING, open_cache

async def opening(cache):
    await cache.set("key", "x" * 200_000)
    await cache.get("key")

async def working(cache):
    began = time.monotonic()
    for n in range(5):
        async def compute():
            return n
        assert await cache.get_or_compute(["key", n], compute) == n
        assert await cache.get(["large", n]) is MISSING
        await cache.set(["large", n], "x" * 200_000)
    await cache.close()
    assert time.monotonic() - began < 4

cache = open_cache(sys.argv[1], namespace=sys.argv[2], tier_bytes=0)
asyncio.run(opening(cache))
child = os.fork()
if not child:
    code = 1
    try:
        asyncio.run(working(cache))
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(cache.get("key"))
asyncio.run(cache.clear())
asyncio.run(cache.close())
"""
    arguments = [sys.executable, "-c", program, store_url, f"fork-{tmp_path.name}"]
    done = subprocess.run(arguments, timeout=60, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


def test_answers_of_an_outage_outlast_the_life_of_the_tier_as_long_as_it_lasts(
    start_server: Callable[..., Any], namespace: str
) -> None:
    server = start_server("redis")
    now = 1_800_000_000.0

    async def main() -> None:
        nonlocal now
        async with open_cache(server.url, namespace=namespace, tier_ttl=60, clock=lambda: now) as cache:
            calls: List[Any] = []
            await answer(cache, "before", calls)
            server.stop()
            for number in range(20):
                await answer(cache, number, calls)
            now += 3600
            for number in range(20):
                await answer(cache, number, calls)
            assert calls == ["before", *range(20)]
            await answer(cache, "before", calls)
            assert calls.count("before") == 2, "others may have changed it"

            server.start()
            await until_stored(cache)
            now += 59
            await answer(cache, 0, calls)
            assert calls.count(0) == 1
            now += 2
            await answer(cache, 0, calls)
            assert calls.count(0) == 2, "from here on the store has it"
            now += 120
            await answer(cache, 0, calls)
            assert calls.count(0) == 2

    asyncio.run(main())
