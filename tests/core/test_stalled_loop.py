"""The budget of a call is the store's time, not that of an event loop that stands still."""

from __future__ import annotations

import asyncio
import time
from typing import List, Optional

import pytest

from claude_force_cache import BackendUnavailableError
from claude_force_cache._guard import Guard


def make_guard(changes: List[Optional[BackendUnavailableError]]) -> Guard:
    async def probe() -> None:
        raise BackendUnavailableError("still away")

    return Guard("the store", probe, changes.append)


def test_an_answer_that_came_while_the_loop_stood_still_counts() -> None:
    changes: List[Optional[BackendUnavailableError]] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Two round trips, as a login and a command are."""
        answer = b""
        for word in (b"a", b"b"):
            writer.write(word)
            answer += await reader.readexactly(1)
        return answer

    async def scenario() -> List[bytes]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while word := await reader.read(1):
                writer.write(word)
            writer.close()

        guard = make_guard(changes)
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            streams = [await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(5)]
            calls = [asyncio.ensure_future(guard.call(lambda s=s: converse(*s), 0.05)) for s in streams]
            await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251 - the stall is what is tested
            answers = list(await asyncio.gather(*calls))
            for _, writer in streams:
                writer.close()
                await writer.wait_closed()
        return answers

    assert asyncio.run(scenario()) == [b"ab"] * 5
    assert changes == []


def test_a_silent_store_is_given_up_also_in_a_loop_that_stands_still_all_the_time() -> None:
    changes: List[Optional[BackendUnavailableError]] = []

    async def scenario() -> float:
        guard = make_guard(changes)
        started = time.monotonic()
        call = asyncio.ensure_future(guard.call(asyncio.Event().wait, 0.1))
        while not call.done():
            time.sleep(0.03)  # noqa: ASYNC251 - the stall is what is tested
            await asyncio.sleep(0)
        with pytest.raises(BackendUnavailableError, match="did not answer within"):
            await call
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    async def scenario() -> None:
        guard = make_guard([])
        call = asyncio.ensure_future(guard.call(asyncio.Event().wait, 60))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert guard.outage is None

    asyncio.run(scenario())
