"""Secrets that are exchanged while processes run: one has the new secret first already, another one not yet."""

import asyncio
import subprocess
import sys
from typing import Any, List

from claude_force_cache import MISSING, open_cache

OLD, NEW = "the old secret of the tests", "the new secret of the tests"
KEYS = 60

PROGRAM = """
import asyncio, sys
from claude_force_cache import open_cache

async def main(url, namespace, *secrets):
    async with open_cache(url, namespace=namespace, secrets=secrets, tier_bytes=0, timeout=5) as cache:
        async def compute(key):
            return key
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(3):
            await asyncio.gather(*(cache.set(key, key) for key in range(60)))
            asked = [cache.get_or_compute(key, lambda key=key: compute(key)) for key in range(60)]
            assert await asyncio.gather(*asked) == list(range(60))
        assert cache.stats().corrupt == 0, cache.stats()

asyncio.run(main(*sys.argv[1:]))
"""


async def _missing(url: str, namespace: str, secrets: List[str]) -> List[int]:
    async with open_cache(url, namespace=namespace, secrets=secrets, tier_bytes=0) as cache:
        return [key for key in range(KEYS) if await cache.get(key) is MISSING]


def test_caches_that_list_two_secrets_the_other_way_round_lose_nothing_of_each_other(
    shared_url: str, namespace: str
) -> None:
    async def main() -> None:
        options: Any = {"namespace": namespace, "tier_bytes": 0, "timeout": 5}
        async with open_cache(shared_url, secrets=[OLD, NEW], **options) as behind, open_cache(
            shared_url, secrets=[NEW, OLD], **options
        ) as ahead:
            for _ in range(3):
                await asyncio.gather(*(cache.set(key, key) for key in range(KEYS) for cache in (behind, ahead)))
                for cache in (behind, ahead):
                    assert [key for key in range(KEYS) if await cache.get(key) is MISSING] == []
            assert (await ahead.verify()).consistent
            await ahead.clear()

    asyncio.run(main())


def test_processes_that_rotate_one_after_the_other_lose_nothing(shared_url: str, namespace: str) -> None:
    orders = [[OLD, NEW], [NEW, OLD]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, shared_url, namespace, *order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for order in orders
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said.decode()
        for order in orders:
            assert asyncio.run(_missing(shared_url, namespace, order)) == []
    finally:
        for process in processes:
            process.kill()
            process.wait()


KILLED_PROGRAM = """
import asyncio, itertools, sys
from claude_force_cache import open_cache

async def main(url, namespace, start, *secrets):
    async with open_cache(url, namespace=namespace, secrets=secrets, tier_bytes=0, timeout=5) as cache:
        for key in itertools.count(int(start)):
            if await cache.set(key, key):
                print(key, flush=True)
            # What the others stored, and made under the other secret, is found and may be written anew.
            await cache.get_or_compute(key - 3, lambda: asyncio.sleep(0, key - 3))

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_that_are_killed_while_they_rotate_lose_nothing_that_was_stored(
    shared_url: str, namespace: str
) -> None:
    started: List[Any] = []

    def start(number: int, *secrets: str) -> Any:
        command = [sys.executable, "-W", "ignore", "-c", KILLED_PROGRAM, shared_url, namespace, str(number), *secrets]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    def kill_after(process: Any, stores: int) -> List[int]:
        """Kill it when it has said so many times that something is stored; return all that it said so of."""
        said = [process.stdout.readline() for _ in range(stores)]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
        return [int(line) for line in said if line.endswith("\n")]

    async def found(secrets: List[str], keys: List[int]) -> None:
        async with open_cache(
            shared_url, namespace=namespace, secrets=secrets, tier_bytes=0, timeout=5, lease="1s"
        ) as cache:
            assert [key for key in keys if await cache.get(key) != key] == []
            assert cache.stats().corrupt == 0
            report = await cache.verify()
            assert report.consistent, report
            assert report.corrupt == report.foreign == ()

    try:
        # The same keys, so that each overwrites what the other one has under its own secret.
        behind, ahead = start(0, OLD, NEW), start(0, OLD, NEW)
        stored = kill_after(ahead, 20)
        ahead = start(5, NEW, OLD)
        stored += kill_after(ahead, 20) + kill_after(behind, 20)
        behind = start(10, NEW, OLD)
        stored += kill_after(behind, 20)
        for secrets in ([OLD, NEW], [NEW, OLD]):
            asyncio.run(found(secrets, stored))
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()
