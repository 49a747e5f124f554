"""Streams through the drop-in: replayed as they were, heard by all while they come, stored when they are whole."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Optional

import anthropic
import pytest

from claude_force_cache import BlockingCache, Cache, open_cache
from claude_force_orchestrator import Answer, AnswerCodec, CacheMiddleware, cached
from claude_force_orchestrator._relay import Broadcast

KEY = "sk-ant-test-0123456789"
QUESTION: Dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Why?"}],
}
# By version, and not by what the SDK has: if it lost it, that has to fail.
HAS_MIDDLEWARE = tuple(map(int, anthropic.__version__.split(".")[:2])) >= (0, 108)
WAYS = ["cached", "middleware"] if HAS_MIDDLEWARE else ["cached"]
TEXT = "Because of the weather, and of little else."

Test = Callable[[Any, Cache[Answer]], Awaitable[Any]]


def adopt(way: str, kind: Any, cache: Any, options: Dict[str, Any], **arguments: Any) -> Any:
    arguments = {"api_key": KEY, "max_retries": 0, **arguments}
    if way == "cached":
        return cached(kind(**arguments), cache, **options)
    return kind(middleware=[CacheMiddleware(cache, **options)], **arguments)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(way: str, api: Any) -> Callable[..., Any]:
    """Run ``test(client, cache)`` with an asynchronous client in an event loop of its own."""

    def in_loop(test: Test, **options: Any) -> Any:
        async def main() -> Any:
            cache = open_cache("memory://", codec=AnswerCodec())
            async with cache, adopt(way, anthropic.AsyncAnthropic, cache, options, base_url=api.url) as client:
                return await asyncio.wait_for(test(client, cache), 30)

        return asyncio.run(main())

    return in_loop


@pytest.fixture
def blocking(way: str, api: Any) -> Iterator[Any]:
    """A blocking client with a cache in front of it."""
    cache = BlockingCache(open_cache("memory://", codec=AnswerCodec()))
    with cache, adopt(way, anthropic.Anthropic, cache, {}, base_url=api.url) as client:
        yield client


async def start(client: Any, **arguments: Any) -> Any:
    """Return a stream of raw events that has begun."""
    return await client.messages.create(**QUESTION, stream=True, **arguments)


async def collect(stream: Any, heard: Optional[List[Any]] = None) -> List[Any]:
    heard = [] if heard is None else heard
    async for event in stream:
        heard.append(event)
    return heard


async def take(stream: Any, count: int) -> List[Any]:
    return [await stream.__anext__() for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def text_of(events: List[Any]) -> str:
    return "".join(event.delta.text for event in events if event.type == "content_block_delta")


# Replay


def test_a_stream_is_replayed_as_the_same_events(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [await collect(await start(client)) for _ in range(2)]

    api.says(api.feed(*api.events(TEXT), end=True))
    first, again = run(test)
    assert first == again
    assert [type(event) for event in first] == [type(event) for event in again]
    assert text_of(again) == TEXT
    assert len(api.requests) == 1


def test_a_stream_of_a_blocking_client_is_replayed_as_the_same_events(blocking: Any, api: Any) -> None:
    api.says(api.feed(*api.events(TEXT), end=True))
    first, again = (list(blocking.messages.create(**QUESTION, stream=True)) for _ in range(2))
    assert first == again
    assert text_of(again) == TEXT
    assert len(api.requests) == 1


def test_the_helper_for_streams_gives_the_same_events_and_message(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        found = []
        for _ in range(2):
            async with client.messages.stream(**QUESTION) as stream:
                events = await collect(stream)
                found.append((events, await stream.get_final_message(), stream.response.headers))
        return found

    api.says(api.feed(*api.events(TEXT), end=True))
    (events, message, headers), (same_events, same, again) = run(test)
    assert (same_events, same) == (events, message)
    assert message.content[0].text == TEXT
    assert (headers["x-claude-force-cache"], again["x-claude-force-cache"]) == ("miss", "hit")
    assert (headers["request-id"], again["request-id"]) == ("req_1", "cached_req_1")


def test_the_helper_for_streams_of_a_blocking_client_gives_the_same_text(blocking: Any, api: Any) -> None:
    api.says(api.feed(*api.events(TEXT), end=True))
    for _ in range(2):
        with blocking.messages.stream(**QUESTION) as stream:
            assert "".join(stream.text_stream) == TEXT
    assert len(api.requests) == 1


def test_the_helper_and_raw_events_share_an_entry(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        await collect(await start(client))
        async with client.messages.stream(**QUESTION) as stream:
            return await stream.get_final_text()

    api.says(api.feed(*api.events(TEXT), end=True))
    assert run(test) == TEXT
    assert len(api.requests) == 1


def test_streams_of_beta_messages_are_replayed(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        found = []
        for _ in range(2):
            async with client.beta.messages.stream(**QUESTION, betas=["one-2026-01-01"]) as stream:
                found.append(await stream.get_final_message())
        return found

    api.says(api.feed(*api.events(TEXT), end=True))
    first, again = run(test)
    assert first == again
    assert len(api.requests) == 1


def test_a_raw_response_of_a_stream_is_replayed(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        found = []
        for _ in range(2):
            async with client.messages.with_streaming_response.create(**QUESTION, stream=True) as response:
                found.append([line async for line in response.iter_lines()])
        return found

    api.says(api.feed(*api.events(TEXT), end=True))
    first, again = run(test)
    assert first == again
    assert len(api.requests) == 1


def test_usage_says_that_it_was_a_hit_if_asked_to(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        leader = await start(client)
        follower = await start(client)
        feed.give(*pieces)
        feed.end()
        live = await asyncio.gather(collect(leader), collect(follower))
        return (*live, await collect(await start(client)))

    pieces = api.events(TEXT)
    feed = api.feed()
    api.says(feed)
    leader, follower, replayed = run(test, mark_usage=True)
    assert not hasattr(leader[0].message.usage, "claude_force_cache")
    for events in (follower, replayed):
        assert events[0].message.usage.claude_force_cache == "hit"
        assert events[1:] == leader[1:]


# Committed after message_stop


@pytest.mark.parametrize("kept", range(len("abcdefgh")))
def test_a_stream_that_ends_early_is_passed_on_and_not_stored(run: Any, api: Any, kept: int) -> None:
    async def test(client: Any, cache: Any) -> Any:
        short = await collect(await start(client))
        return short, await collect(await start(client)), await collect(await start(client))

    pieces = api.events("one two")
    assert len(pieces) == len("abcdefgh")
    api.says(api.feed(*pieces[:kept], end=True), api.feed(*pieces, end=True))
    short, whole, again = run(test)
    assert short == whole[: len(short)]
    assert whole == again
    assert text_of(whole) == "one two"
    assert len(api.requests) == 2


def test_a_stream_that_breaks_gives_its_listeners_what_came_and_the_error(run: Any, api: Any) -> None:
    async def listen(stream: Any) -> Any:
        heard: List[Any] = []
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|protocol") as caught:
            await collect(stream, heard)
        return heard, caught.type

    async def test(client: Any, cache: Any) -> Any:
        streams = [await start(client) for _ in range(3)]
        feed.give(*pieces[:4])
        feed.end(breaks=True)
        heard = await asyncio.gather(*map(listen, streams))
        return heard, await collect(await start(client))

    pieces = api.events(TEXT)
    feed = api.feed()
    api.says(feed, api.feed(*pieces, end=True))
    heard, whole = run(test)
    assert all(each == heard[0] for each in heard)
    assert heard[0][0] == whole[: len(heard[0][0])]
    assert len(api.requests) == 2


@pytest.mark.parametrize("place", [4, None], ids=["in the middle", "after message_stop"])
def test_an_error_event_is_passed_on_and_not_stored(run: Any, api: Any, place: Optional[int]) -> None:
    async def test(client: Any, cache: Any) -> None:
        with pytest.raises(anthropic.APIStatusError, match="overloaded"):
            await collect(await start(client))
        await collect(await start(client))

    pieces = api.events(TEXT)
    error = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}\n\n'
    api.says(api.feed(*pieces[:place], error, end=True), api.feed(*pieces, end=True))
    run(test)
    assert len(api.requests) == 2


@pytest.mark.parametrize(("store", "calls"), [(False, 2), (True, 1)])
def test_a_stream_that_asks_for_a_tool_is_stored_only_if_wanted(run: Any, api: Any, store: bool, calls: int) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [await collect(await start(client)) for _ in range(2)]

    block = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    pieces = api.events(content=[block], stop_reason="tool_use")
    api.says(*(api.feed(*pieces, end=True) for _ in range(2)))
    first, again = run(test, store_tool_use=store)
    assert first == again
    assert len(api.requests) == calls


def test_whoever_leaves_after_the_last_event_has_it_stored(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        stream = await start(client)
        async for event in stream:
            if event.type == "message_stop":
                break
        await stream.close()
        await until(lambda: cache.stats().stores == 1)
        await collect(await start(client))

    api.says(api.feed(*api.events(TEXT)))  # its body never ends, only the message does
    run(test)
    assert len(api.requests) == 1


# Heard while it comes


def test_the_first_caller_hears_events_as_they_come(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        stream = await start(client)
        iterator = stream.__aiter__()
        for piece in pieces:
            feed.give(piece)
            if b"ping" not in piece:
                await iterator.__anext__()
        feed.end()
        with pytest.raises(StopAsyncIteration):
            await iterator.__anext__()

    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    run(test)


def test_followers_hear_what_came_before_and_then_what_comes(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        leader = await start(client)
        feed.give(*pieces[:5])
        heard = await take(leader, 4)
        follower = await start(client)
        assert await take(follower, 4) == heard
        feed.give(*pieces[5:])
        feed.end()
        return heard + await collect(leader), heard + await collect(follower)

    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    first, second = run(test)
    assert first == second
    assert text_of(first) == TEXT
    assert len(api.requests) == 1


def test_followers_of_another_client_hear_it_too(way: str, api: Any) -> None:
    async def main() -> Any:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            clients = [adopt(way, anthropic.AsyncAnthropic, cache, {}, base_url=api.url) for _ in range(2)]
            streams = [await start(client) for client in clients]
            feed.give(*pieces[:4])
            begun = [await take(stream, 3) for stream in streams]
            feed.give(*pieces[4:])
            feed.end()
            heard = [each + await collect(stream) for each, stream in zip(begun, streams)]
            for client in clients:
                await client.close()
            return heard

    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    first, second = asyncio.run(main())
    assert first == second
    assert len(api.requests) == 1


def test_followers_of_a_blocking_client_hear_it_as_it_comes(blocking: Any, api: Any) -> None:
    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    leader = blocking.messages.create(**QUESTION, stream=True)
    feed.give(*pieces[:4])
    heard = [next(leader) for _ in range(3)]
    follower = blocking.messages.create(**QUESTION, stream=True)
    assert [next(follower) for _ in range(3)] == heard
    with ThreadPoolExecutor(2) as pool:
        rest = [pool.submit(list, stream) for stream in (leader, follower)]
        feed.give(*pieces[4:])
        feed.end()
        first, second = (each.result() for each in rest)
    assert first == second
    assert len(api.requests) == 1


def test_when_the_first_of_ten_is_cancelled_the_others_hear_the_whole(run: Any, api: Any) -> None:
    async def listen(client: Any) -> Any:
        return await collect(await start(client))

    async def test(client: Any, cache: Any) -> Any:
        tasks = [asyncio.ensure_future(listen(client)) for _ in range(10)]
        await api.arrived()
        feed.give(*pieces[:5])
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        feed.give(*pieces[5:])
        feed.end()
        return await asyncio.gather(*tasks, return_exceptions=True)

    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    first, *others = run(test)
    assert isinstance(first, asyncio.CancelledError)
    assert all(each == others[0] for each in others)
    assert text_of(others[0]) == TEXT
    assert len(api.requests) == 1


def test_when_all_leave_the_call_is_given_up(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        streams = [await start(client) for _ in range(3)]
        feed.give(*pieces[:4])
        for stream in streams:
            await stream.__anext__()
            assert not feed.left.is_set()
            await stream.close()
        await until(feed.left.is_set)
        assert len(await collect(await start(client))) > 4

    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed, api.feed(*pieces, end=True))
    run(test)
    assert len(api.requests) == 2


def test_when_all_are_cancelled_before_it_begins_the_call_is_given_up(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        tasks = [asyncio.ensure_future(start(client)) for _ in range(3)]
        await api.arrived()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        gate.set()
        await collect(await start(client))

    gate = threading.Event()
    api.says(api.feed(gate=gate, end=True), api.feed(*api.events(TEXT), end=True))
    run(test)
    assert len(api.requests) == 2


def test_when_all_of_a_blocking_client_leave_the_call_is_given_up(blocking: Any, api: Any) -> None:
    pieces, feed = api.events(TEXT), api.feed()
    api.says(feed)
    streams = [blocking.messages.create(**QUESTION, stream=True) for _ in range(2)]
    feed.give(*pieces[:4])
    for stream in streams:
        next(stream)
        stream.close()
    asyncio.run(until(feed.left.is_set))


def test_a_stream_of_a_blocking_client_can_be_closed_after_its_cache(way: str, api: Any) -> None:
    api.says(api.feed(*api.events(TEXT), end=True))
    cache = BlockingCache(open_cache("memory://", codec=AnswerCodec()))
    with adopt(way, anthropic.Anthropic, cache, {}, base_url=api.url) as client:
        with cache:
            stream = client.messages.create(**QUESTION, stream=True)
            next(stream)
        stream.response.close()


def test_clients_that_ask_for_another_freshness_share_no_stream(way: str, api: Any, tmp_path: Any) -> None:
    async def main() -> None:
        async with open_cache(f"disk://{tmp_path}/store?tier_bytes=0", codec=AnswerCodec()) as cache:
            patient = adopt(way, anthropic.AsyncAnthropic, cache, {}, base_url=api.url)
            strict = adopt(way, anthropic.AsyncAnthropic, cache, {"max_age": 0.0}, base_url=api.url)
            async with patient, strict:
                await collect(await start(patient))
                old, new = await asyncio.gather(start(patient), start(strict))
                assert text_of(await collect(old)) == TEXT
                assert text_of(await collect(new)) == "New."

    api.says(api.feed(*api.events(TEXT), end=True), api.feed(*api.events("New."), end=True))
    asyncio.run(main())
    assert len(api.requests) == 2


def test_an_error_is_the_first_ones_and_the_others_try_once_more_together(run: Any, api: Any) -> None:
    async def listen(client: Any) -> Any:
        return await collect(await start(client))

    async def test(client: Any, cache: Any) -> Any:
        tasks = [asyncio.ensure_future(listen(client)) for _ in range(10)]
        await api.arrived()
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    gate = threading.Event()
    api.says(api.reply(status=529, gate=gate), api.feed(*api.events(TEXT), end=True))
    first, *others = run(test)
    assert isinstance(first, anthropic.APIStatusError)
    assert all(each == others[0] for each in others)
    assert text_of(others[0]) == TEXT
    assert len(api.requests) == 2


def test_thinking_is_not_streamed_to_another_account(way: str, api: Any) -> None:
    async def main() -> Any:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            keys = ("sk-ant-one", "sk-ant-two", "sk-ant-one")
            clients = [adopt(way, anthropic.AsyncAnthropic, cache, {}, base_url=api.url, api_key=key) for key in keys]
            tasks = [asyncio.ensure_future(start(client)) for client in clients]
            await api.arrived(1)
            feed.end()
            streams = await asyncio.gather(*tasks)
            heard = [await collect(stream) for stream in streams]
            for client in clients:
                await client.close()
            return heard

    thought = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "so"}]
    pieces = api.events(content=thought)
    feed = api.feed(*pieces)
    api.says(feed, api.feed(*pieces, end=True))
    first, other, same = asyncio.run(main())
    assert first == other == same
    assert len(api.requests) == 2


# Bounds


def test_a_stream_above_the_limit_is_heard_by_those_who_listen_and_not_stored(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        streams = [await start(client) for _ in range(3)]
        feed.give(*pieces)
        feed.end()
        heard = await asyncio.gather(*map(collect, streams))
        return heard, await collect(await start(client)), cache.stats().stores

    pieces, feed = api.events("word " * 2000), api.feed()
    api.says(feed, api.feed(*pieces, end=True))
    heard, again, stores = run(test, max_recorded_bytes=20_000)
    assert all(each == again for each in heard)
    assert text_of(again) == "word " * 2000
    assert (stores, len(api.requests)) == (0, 2)


def test_whoever_comes_when_the_limit_is_exceeded_makes_a_call_of_their_own(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        leader = await start(client)
        feed.give(*pieces[:-2])
        heard = await take(leader, len(pieces) - 3)
        late = await collect(await start(client))
        feed.give(*pieces[-2:])
        feed.end()
        return heard + await collect(leader), late

    pieces = api.events("word " * 200)
    feed = api.feed()
    api.says(feed, api.feed(*pieces, end=True))
    first, late = run(test, max_recorded_bytes=1000)
    assert first == late
    assert len(api.requests) == 2


def test_a_store_that_is_gone_costs_no_stream(way: str, api: Any, absent_server: str) -> None:
    async def main() -> Any:
        cache = open_cache(f"redis://{absent_server}?tier_bytes=0", codec=AnswerCodec())
        async with cache, adopt(way, anthropic.AsyncAnthropic, cache, {}, base_url=api.url) as client:
            return [await collect(await start(client)) for _ in range(2)]

    api.says(*(api.feed(*api.events(TEXT), end=True) for _ in range(2)))
    first, again = asyncio.run(main())
    assert first == again
    assert len(api.requests) == 2


def test_the_stand_ins_streams_are_replayed(way: str, stand_in: Any) -> None:
    async def main() -> Any:
        cache = open_cache("memory://", codec=AnswerCodec())
        async with cache, adopt(way, anthropic.AsyncAnthropic, cache, {}, base_url=stand_in.url) as client:
            found = []
            for _ in range(2):
                async with client.messages.stream(**QUESTION) as stream:
                    found.append((await collect(stream), await stream.get_final_message()))
            return found

    first, again = asyncio.run(main())
    assert first == again
    assert len(stand_in.bodies()) == 1


def test_memory_stays_bounded_however_slowly_one_listens() -> None:
    async def main() -> None:
        broadcast = Broadcast([], 1000)
        for listener in ("slow", "fast"):
            broadcast.admit(listener)

        async def produce() -> None:
            for _ in range(100):
                await broadcast.send(b"x" * 100)
            broadcast.end()

        producer = asyncio.ensure_future(produce())
        for _ in range(100):
            assert await broadcast.next("slow") == b"x" * 100
            assert await broadcast.next("fast") == b"x" * 100
            assert len(broadcast.body) <= 1100
        await producer
        assert await broadcast.next("slow") is None

    asyncio.run(main())


def test_whoever_leaves_holds_up_nobody() -> None:
    async def main() -> None:
        broadcast = Broadcast([], 100)
        broadcast.admit("asleep")
        sending = asyncio.ensure_future(broadcast.send(b"x" * 101))
        await asyncio.sleep(0)
        assert not sending.done()
        broadcast.dismiss("asleep")
        await sending

    asyncio.run(main())
