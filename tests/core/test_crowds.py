"""Many callers at once, callers that leave, several event loops, and programs that end without closing."""

import asyncio
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest

from claude_force_cache import MISSING, Cache, open_cache

SECRET = "a secret of the tests"
KEYS = 50


@pytest.fixture(params=["disk", "redis", "memcached"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"disk://{tmp_path}/cache"
    server: Any = request.getfixturevalue(f"{request.param}_server")
    # On a busy machine the last of a thousand waits for long.
    return f"{server.url}?socket_timeout=30s"


def opened(url: str, namespace: str, **options: Any) -> Cache[Any]:
    return open_cache(url, secrets=SECRET, namespace=namespace, **{"tier_bytes": 0, "timeout": 30, **options})


def value_of(number: int) -> str:
    return f"the answer to {number} " * (1 + number % 40)


def test_no_answer_goes_to_the_wrong_caller_though_thousands_leave(shared_url: str, namespace: str) -> None:
    rng = random.Random(11)
    counts = dict.fromkeys(["right", "wrong", "left"], 0)

    async def work(cache: Cache[Any]) -> None:
        for number in range(KEYS):
            await cache.set(number, value_of(number))

        async def ask(number: int) -> None:
            try:
                if number % 3 == 0:
                    await cache.set(number, value_of(number))
                    return
                found = await cache.get(number)
                if number % 3 == 1:
                    found = (await cache.get_many([number, number - 1]))[0]
            except asyncio.CancelledError:
                counts["left"] += 1
                raise
            counts["right" if found == value_of(number) else "wrong"] += 1

        while counts["left"] < 2500:
            tasks = [asyncio.ensure_future(ask(rng.randrange(KEYS))) for _ in range(100)]
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.01)
            for task in rng.sample(tasks, 60):
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        for number in range(KEYS):
            assert await cache.get(number) == value_of(number)

    async def main() -> None:
        async with opened(shared_url, namespace) as cache:
            await work(cache)
            assert cache.stats().errors == 0
            await cache.clear()

    asyncio.run(main())
    assert counts["wrong"] == 0
    assert counts["right"] > 500


def test_a_thousand_callers_at_once_are_all_served(shared_url: str, namespace: str) -> None:
    url = shared_url + ("" if shared_url.startswith("disk") else "&pool_size=2")

    async def main() -> None:
        async with opened(url, namespace) as cache:
            assert all(await asyncio.gather(*(cache.set(number, value_of(number)) for number in range(1000))))
            assert await asyncio.gather(*(cache.get(number) for number in range(1000))) == [
                value_of(number) for number in range(1000)
            ]
            mixed = [
                cache.get(number) if number % 2 else cache.delete(number) if number % 4 else cache.set(number, "new")
                for number in range(1000)
            ]
            for number, outcome in enumerate(await asyncio.gather(*mixed)):
                assert outcome == (value_of(number) if number % 2 else True)

            calls: List[int] = []

            async def make(number: int) -> str:
                calls.append(number)
                return value_of(number)

            cold = [cache.get_or_compute(["cold", n], lambda n=n: make(n)) for n in range(200) for _ in range(5)]
            assert await asyncio.gather(*cold) == [value_of(n) for n in range(200) for _ in range(5)]
            assert sorted(calls) == list(range(200))
            assert cache.stats().errors == 0
            await cache.clear()

    asyncio.run(main())


def test_one_cache_serves_two_event_loops_in_two_threads_at_once(shared_url: str, namespace: str) -> None:
    cache = opened(shared_url, namespace)
    failures: List[BaseException] = []
    calls: List[int] = []

    async def work(mine: int) -> None:
        async def ask(number: int) -> None:
            async def make() -> str:
                calls.append(number)
                return value_of(number)

            assert await cache.get_or_compute(number, make) == value_of(number)
            await cache.set([mine, number], value_of(number))
            assert await cache.get([mine, number]) == value_of(number)

        for start in range(0, 80, 40):
            await asyncio.gather(*(ask(number) for number in range(start, start + 40)))

    def run(mine: int) -> None:
        try:
            asyncio.run(work(mine))
        except BaseException as error:  # noqa: BLE001 - the thread that asserts is another one
            failures.append(error)

    for _ in range(2):  # and then in two more loops
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
    assert sorted(set(calls)) == list(range(80))
    assert cache.stats().errors == 0
    asyncio.run(cache.clear())
    asyncio.run(cache.close())


_PROLOGUE = """
import asyncio, sys, threading, time

def leave():
    assert asyncio.run(cache.get(1)) is MISSING
    asyncio.run(cache.close())

if sys.argv[3] == "it is used after its own handler":
    import atexit
    atexit.register(leave)

from claude_force_cache import MISSING, BlockingCache, open_cache

cache = open_cache(sys.argv[1], namespace=sys.argv[2], secrets="a secret of the tests", tier_bytes=0, timeout=30)

async def use(number):
    await cache.set(number, "x" * 1000)
    return await cache.get(number)
"""

_ENDINGS = {
    "nothing is closed": "assert asyncio.run(use(1)) == 'x' * 1000",
    "in the middle of a call": """
async def leave():
    async def make():
        print("making", flush=True)
        sys.exit(0)
    await cache.get_or_compute("cold", make)
asyncio.run(leave())
""",
    "a daemon thread goes on": """
def go_on():
    async def main():
        while True:
            await use(2)
            working.set()
    asyncio.run(main())
working = threading.Event()
threading.Thread(target=go_on, daemon=True).start()
assert working.wait(30)
""",
    "a blocking cache is left open": """
blocking = BlockingCache(cache).__enter__()
blocking.set(3, "three")
assert blocking.get(3) == "three"
""",
    "it is used in a handler of the end": """
import atexit
assert asyncio.run(use(1)) == "x" * 1000
def leave():
    assert asyncio.run(cache.get(1)) == "x" * 1000
    asyncio.run(cache.close())
atexit.register(leave)
""",
    "it is used after its own handler": "assert asyncio.run(use(2)) == 'x' * 1000",
}

# The oldest Python has warnings of libraries about its age.
_STRICT = ("-W", "error::ResourceWarning", "-W", "error::RuntimeWarning")


@pytest.mark.parametrize("ending", _ENDINGS)
def test_a_program_may_end_without_closing_its_cache(
    shared_url: str, namespace: str, ending: str, tmp_path: Path
) -> None:
    program = _PROLOGUE + _ENDINGS[ending]
    arguments = [sys.executable, *_STRICT, "-c", program, shared_url, namespace, ending]
    done = subprocess.run(
        arguments, timeout=60, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(tmp_path)
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert "Fatal" not in said
    assert "Traceback" not in said, said

    async def after() -> None:
        async with opened(shared_url, namespace) as cache:
            assert await cache.set("after", "works")
            assert (await cache.verify()).consistent
            assert await cache.get("nothing") is MISSING
            await cache.clear()

    asyncio.run(after())


def test_a_fork_harms_no_connection_of_the_parent(shared_url: str, namespace: str) -> None:
    program = """
import asyncio, os, sys
from claude_force_cache import open_cache

cache = open_cache(sys.argv[1], namespace=sys.argv[2], secrets="a secret of the tests", tier_bytes=0, timeout=5)

async def right(numbers):
    for number in numbers:
        assert await cache.get(number) == f"value {number}", number

async def child(numbers):
    # Either it works or it is a miss; what it gets is its own.
    for number in numbers:
        async def compute():
            return f"value {number}"
        assert await cache.get_or_compute(number, compute) == f"value {number}"

async def main():
    for number in range(20):
        await cache.set(number, f"value {number}")
    children = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            # Not by the parent's loop: it shares the parent's selector, and would read the parent's replies.
            forked(range(20))
        children.append(pid)
    for _ in range(20):
        await right(range(20))
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    await right(range(20))
    assert cache.stats().errors == 0
    await cache.clear()
    await cache.close()

def forked(numbers):
    code = 1
    try:
        asyncio.run(child(numbers))
        code = 0
    finally:
        os._exit(code)

asyncio.run(main())
"""
    arguments = [sys.executable, "-W", "ignore", "-c", program, shared_url, namespace]
    done = subprocess.run(arguments, timeout=120, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()
