"""Threads for what blocks: bounded, of no event loop, ended with their calls finished."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List

import pytest

from claude_force_cache import BackendClosedError, BackendUnavailableError
from claude_force_cache._threads import Workers

_PATIENCE = 20.0


@contextmanager
def _held() -> Iterator[Callable[[], object]]:
    """Yield a call that does not return before the end of the block."""
    release = threading.Event()
    yield lambda: release.wait(_PATIENCE)
    release.set()


def _threads(name: str) -> List[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"claude-force-cache-{name}-")]


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.001)


def test_no_more_calls_run_at_once_than_there_are_threads() -> None:
    async def main() -> None:
        workers = Workers(3, "bounded")
        running, most, lock = 0, 0, threading.Lock()

        def work(number: int) -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002)
            with lock:
                running -= 1
            return number

        assert await asyncio.gather(*(workers.run(work, number) for number in range(40))) == list(range(40))
        assert most == 3
        await workers.close()
        assert not _threads("bounded")

    asyncio.run(main())


def test_calls_one_after_another_need_one_thread() -> None:
    async def main() -> None:
        workers = Workers(4, "lone")
        for _ in range(50):
            await workers.run(int)
        assert len(_threads("lone")) == 1
        await workers.close()

    asyncio.run(main())


def test_a_call_that_lets_an_iterator_end_does_not_leave_its_caller_waiting() -> None:
    async def main() -> None:
        workers = Workers(1, "ending")
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(workers.run(next, iter(())), _PATIENCE)
        await workers.close()

    asyncio.run(main())


def test_where_no_thread_can_be_started_those_that_are_there_do_all() -> None:
    async def main() -> None:
        with _held() as held:
            workers, other = Workers(4, "few"), Workers(1, "none")
            first = asyncio.ensure_future(workers.run(held))
            await _until(lambda: _threads("few"))
            usual = threading.stack_size(1 << 47)  # more than there are addresses
            try:
                second = asyncio.ensure_future(workers.run(int, "2"))
                await asyncio.sleep(0)
                with pytest.raises(BackendUnavailableError, match="no thread"):
                    await other.run(int, "3")
            finally:
                threading.stack_size(usual)
        await first
        assert await second == 2
        assert await other.run(int, "3") == 3
        await workers.close()
        await other.close()

    asyncio.run(main())


def test_an_error_reaches_the_caller_and_the_thread_goes_on() -> None:
    async def main() -> None:
        workers = Workers(1, "failing")
        with pytest.raises(ValueError, match="invalid literal"):
            await workers.run(int, "x")
        assert await workers.run(int, "1") == 1
        await workers.close()

    asyncio.run(main())


def test_a_call_that_was_cancelled_before_its_turn_never_happens() -> None:
    async def main() -> None:
        workers = Workers(1, "cancelled")
        happened: List[str] = []
        started = threading.Event()
        with _held() as held:

            def first() -> None:
                started.set()
                held()
                happened.append("first")

            running = asyncio.ensure_future(workers.run(first))
            waiting = asyncio.ensure_future(workers.run(happened.append, "second"))
            await _until(started.is_set)
            running.cancel()
            waiting.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)
        await workers.close()
        assert happened == ["first"]

    asyncio.run(main())


def test_close_lets_what_was_taken_finish_and_calls_the_last_thing_last() -> None:
    async def main() -> None:
        workers = Workers(2, "closing")
        happened: List[str] = []
        with _held() as held:
            calls = [
                asyncio.ensure_future(workers.run(lambda name=name: (held(), happened.append(name))))
                for name in ("a", "b", "c")
            ]
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(workers.close(lambda: happened.append("last")))
            await asyncio.sleep(0)
            with pytest.raises(BackendClosedError):
                await workers.run(int)
            assert not closing.done()
        await closing
        await asyncio.gather(*calls)
        assert sorted(happened[:3]) == ["a", "b", "c"]
        assert happened[3:] == ["last"]
        await workers.close()

    asyncio.run(main())


def test_a_close_that_is_cancelled_still_happens() -> None:
    async def main() -> None:
        workers = Workers(1, "unfinished")
        ended = threading.Event()
        with _held() as held:
            call = asyncio.ensure_future(workers.run(held))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(workers.close(ended.set))
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
        await call
        await _until(ended.is_set)

    asyncio.run(main())


def test_a_caller_whose_event_loop_is_gone_is_forgotten() -> None:
    workers = Workers(1, "loops")
    with _held() as held:

        async def leave() -> None:
            call = asyncio.ensure_future(workers.run(held))
            await asyncio.sleep(0)
            call.cancel()

        asyncio.run(leave())

    async def main() -> None:
        assert await workers.run(int) == 0
        await workers.close()

    asyncio.run(main())


def test_threads_end_when_nobody_holds_them_any_more() -> None:
    async def main() -> None:
        workers = Workers(2, "dropped")
        await workers.run(int)
        assert _threads("dropped")
        del workers
        gc.collect()
        await _until(lambda: not _threads("dropped"))

    asyncio.run(main())


def test_the_program_ends_when_its_calls_have_though_nobody_closed() -> None:
    program = """
import asyncio, threading, time
from claude_force_cache._threads import Workers

workers = Workers(2, "left")
started = threading.Event()

async def main():
    call = asyncio.ensure_future(
        workers.run(lambda: (started.set(), time.sleep(0.2), print("finished", flush=True)))
    )
    while not started.is_set():
        await asyncio.sleep(0)
    call.cancel()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [b"finished"]), done.stderr
