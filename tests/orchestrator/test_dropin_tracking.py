"""Tracking of the drop-in: each request is recorded once, when it is known what became of it."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Optional

import anthropic
import pytest

from claude_force_cache import BlockingCache, open_cache
from claude_force_orchestrator import (
    AnswerCodec,
    CacheMiddleware,
    ConfigError,
    ExecutionRecord,
    PriceList,
    SQLiteTracker,
    cached,
)
from claude_force_orchestrator._answer import read_answer
from claude_force_orchestrator._exchange import Question, Response
from claude_force_orchestrator._executions import Executions
from claude_force_orchestrator._metrics import Selection, select
from claude_force_orchestrator._recorder import Recorder
from claude_force_orchestrator._visits import Visit, VisitBook

QUESTION: Dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "A private question?"}],
}
HAS_MIDDLEWARE = tuple(map(int, anthropic.__version__.split(".")[:2])) >= (0, 108)
WAYS = ["cached", "middleware"] if HAS_MIDDLEWARE else ["cached"]
MODES = "x-claude-force-cache"
COST = pytest.approx(0.0002)


class Listener:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.records: List[ExecutionRecord] = []
        self.flushed = 0
        self.crowded = False

    def record(self, record: ExecutionRecord) -> bool:
        self.records.append(record)
        return self.crowded

    def flush(self) -> None:
        self.flushed += 1

    @property
    def outcomes(self) -> List[str]:
        return [record.outcome for record in self.records]

    @property
    def cost(self) -> float:
        return sum(record.cost or 0.0 for record in self.records)


def _adopt(way: str, kind: Any, cache: Any, options: Dict[str, Any], **arguments: Any) -> Any:
    arguments = {"api_key": "sk-ant-test-0123456789", "max_retries": 0, **arguments}
    if way == "cached":
        return cached(kind(**arguments), cache, **options)
    return kind(middleware=[CacheMiddleware(cache, **options)], **arguments)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def tracker() -> Listener:
    return Listener()


@pytest.fixture
def run(way: str, api: Any, tracker: Listener) -> Callable[..., Any]:
    """Run ``test(client)`` in an event loop of its own, tracked."""

    def in_loop(test: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def main() -> Any:
            options.setdefault("tracker", tracker)
            cache = open_cache("memory://", codec=AnswerCodec())
            async with cache, _adopt(way, anthropic.AsyncAnthropic, cache, options, base_url=api.url) as client:
                return await asyncio.wait_for(test(client), 30)

        return asyncio.run(main())

    return in_loop


@pytest.fixture
def blocking(way: str, api: Any, tracker: Listener) -> Iterator[Any]:
    cache = BlockingCache(open_cache("memory://", codec=AnswerCodec()))
    options = {"tracker": tracker}
    with cache, _adopt(way, anthropic.Anthropic, cache, options, base_url=api.url) as client:
        yield client


async def _ask(client: Any, mode: str = "", **arguments: Any) -> Any:
    headers = {MODES: mode} if mode else None
    return await client.messages.create(**{**QUESTION, **arguments}, extra_headers=headers)


async def _hear(client: Any, **arguments: Any) -> None:
    async for _ in await _ask(client, stream=True, **arguments):
        pass


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def test_whole_answers_are_recorded_with_what_they_cost_and_saved(run: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        for mode in ("", "", "no-store", "no-cache"):
            await _ask(client, mode)

    run(test)
    miss, hit, _, refreshed = tracker.records
    assert tracker.outcomes == ["miss", "hit", "bypass", "miss"]
    assert [(record.cost, record.saved) for record in tracker.records] == [
        *((COST, 0.0), (0.0, COST), (COST, 0.0), (COST, 0.0))
    ]
    assert [record.backend for record in tracker.records] == ["memory", "memory", None, "memory"]
    assert all((record.input_tokens, record.output_tokens) == (1000, 200) for record in tracker.records)
    assert all(record.model == "claude-haiku-5-5" and record.agent is None for record in tracker.records)
    assert (miss.streamed, miss.key_age, refreshed.key_age) == (False, None, None)
    assert hit.key is not None
    assert len(hit.key) == 64
    assert hit.key_age is not None
    assert "private" not in repr(tracker.records)


def test_streams_are_recorded_at_their_end(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        stream = await _ask(client, stream=True)
        assert tracker.records == []
        async for _ in stream:
            pass
        await _hear(client)
        await _hear(client, mode="no-store")

    api.says(api.feed(*api.events(), end=True), api.feed(*api.events(), end=True))
    run(test)
    assert tracker.outcomes == ["miss", "hit", "bypass"]
    assert all(record.streamed for record in tracker.records)
    assert [record.cost for record in tracker.records] == [COST, 0.0, COST]
    assert tracker.records[1].saved == COST


def test_who_follows_a_stream_that_is_under_way_has_a_hit(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        streams = [await _ask(client, stream=True) for _ in range(3)]
        feed.give(*api.events())
        feed.end()
        for stream in streams:
            async for _ in stream:
                pass

    feed = api.feed()
    api.says(feed)
    run(test)
    assert sorted(tracker.outcomes) == ["hit", "hit", "miss"]
    assert tracker.cost == COST
    assert sum(record.saved or 0.0 for record in tracker.records) == pytest.approx(0.0004)


def test_who_leaves_a_stream_is_cancelled_and_what_others_heard_is_paid_for_once(
    run: Any, api: Any, tracker: Listener
) -> None:
    async def test(client: Any) -> None:
        first, second = [await _ask(client, stream=True) for _ in range(2)]
        await first.close()
        feed.give(*api.events())
        feed.end()
        async for _ in second:
            pass
        await _until(lambda: len(tracker.records) == 3)

    feed = api.feed(api.events()[0])
    api.says(feed)
    run(test)
    assert sorted(tracker.outcomes) == ["background", "cancelled", "hit"]
    assert tracker.cost == COST


def test_a_stream_that_breaks_off_is_a_failure(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one depends on the SDK's version
            await _hear(client)

    feed = api.feed(*api.events()[:3])
    feed.end(breaks=True)
    api.says(feed)
    run(test)
    assert tracker.outcomes == ["failure"]
    assert tracker.cost == 0.0


def test_refusals_of_the_api_and_of_the_cache_are_failures(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        for mode in ("", "no-store", "only-if-cached", "nonsense"):
            with pytest.raises(anthropic.APIStatusError):
                await _ask(client, mode)

    api.says(429, 500)
    run(test)
    assert tracker.outcomes == ["failure"] * 4
    assert [record.error for record in tracker.records] == ["HTTP 429", "HTTP 500", "HTTP 504", "HTTP 400"]


def test_a_request_that_does_not_arrive_is_a_failure(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        with pytest.raises(anthropic.APIConnectionError):
            await _ask(client)

    api.says(api.reply(drop=True))
    run(test)
    assert tracker.outcomes == ["failure"]
    assert tracker.records[0].error


def test_a_cancelled_request_is_recorded_as_such(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        api.default.gate = threading.Event()
        task = asyncio.ensure_future(_ask(client))
        await api.arrived(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        api.default.gate.set()

    run(test)
    assert tracker.outcomes[0] == "cancelled"


def test_what_is_made_anew_in_the_background_is_recorded_beside_the_hit(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        await _ask(client)
        await asyncio.sleep(0.02)
        await _ask(client)
        await _until(lambda: len(tracker.records) == 3)

    run(test, max_age=0.01, stale_while_revalidate=3600.0)
    assert tracker.outcomes[0] == "miss"
    assert sorted(tracker.outcomes[1:]) == ["background", "hit"]
    assert [record.stale for record in tracker.records if record.outcome == "hit"] == [True]
    assert tracker.cost == pytest.approx(0.0004)


def test_an_answer_too_long_to_be_looked_at_has_an_unknown_cost(run: Any, api: Any, tracker: Listener) -> None:
    async def test(client: Any) -> None:
        await _hear(client, mode="no-store")

    api.says(api.feed(*api.events("word " * 500), end=True))
    run(test, max_recorded_bytes=1000)
    (record,) = tracker.records
    assert (record.outcome, record.cost, record.input_tokens) == ("bypass", None, None)


def test_blocking_clients_are_recorded_too(blocking: Any, api: Any, tracker: Listener) -> None:
    for _ in range(2):
        blocking.messages.create(**QUESTION)
    api.says(api.feed(*api.events(), end=True))
    for _ in range(2):
        list(blocking.messages.create(**QUESTION, stream=True))
    assert tracker.outcomes == ["miss", "hit", "miss", "hit"]
    assert [record.streamed for record in tracker.records] == [False, False, True, True]


def test_a_file_can_be_shared_with_clients_of_both_kinds(way: str, api: Any, tmp_path: Path) -> None:
    path = tmp_path / "executions.db"
    with closing(SQLiteTracker(path)) as shared:
        options = {"tracker": shared}
        cache = BlockingCache(open_cache("memory://", codec=AnswerCodec()))
        with cache, _adopt(way, anthropic.Anthropic, cache, options, base_url=api.url) as client:
            for _ in range(2):
                client.messages.create(**QUESTION)

        async def main() -> None:
            other = open_cache("memory://", codec=AnswerCodec())
            async with other, _adopt(way, anthropic.AsyncAnthropic, other, options, base_url=api.url) as client:
                await _ask(client)

        asyncio.run(main())
    with closing(Executions(path)) as written:
        outcomes = [record["outcome"] for record in select(written, Selection())]
    assert outcomes == ["miss", "hit", "miss"]


def test_whoever_leaves_while_records_are_written_leaves_nothing_open(tracker: Listener) -> None:
    class Body:
        closed = False

        async def next(self) -> Optional[bytes]:
            return None

        async def close(self) -> None:
            self.closed = True

    async def main() -> None:
        flushing = threading.Event()
        tracker.flush = flushing.wait  # type: ignore[method-assign, assignment]  # one that takes its time
        body = Body()
        receiving = asyncio.ensure_future(_visit(tracker).receive(Response(429, [], body)))
        await _until(lambda: bool(tracker.records))
        receiving.cancel()
        flushing.set()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert body.closed

    tracker.crowded = True
    asyncio.run(main())
    assert tracker.outcomes == ["failure"]


def test_whoever_records_much_waits_until_it_is_written(run: Any, tracker: Listener) -> None:
    tracker.crowded = True
    run(_ask)
    assert tracker.flushed == 1


def test_prices_of_ones_own_are_gone_by(run: Any, tracker: Listener) -> None:
    rates = {"input": 1, "output": 2, "cache_write_5m": 0, "cache_write_1h": 0, "cache_read": 0}
    run(_ask, prices=PriceList.parse({"models": {QUESTION["model"]: [rates]}}))
    assert tracker.cost == pytest.approx((1000 * 1 + 200 * 2) / 1e6)


def test_what_is_no_tracker_is_refused(run: Any) -> None:
    with pytest.raises(ConfigError, match="record and flush"):
        run(_ask, tracker=print)


def _visit(tracker: Listener) -> Visit:
    question = Question.read("POST", "http://localhost/v1/messages", [], json.dumps(QUESTION).encode())
    assert question is not None
    return Visit(VisitBook(Recorder(tracker), backend="memory", prices=None, limit=1000), question)


def test_an_answer_that_comes_in_after_its_own_request_has_had_it_is_not_recorded_again(
    api: Any, tracker: Listener
) -> None:
    answer = read_answer(json.dumps(api.message()).encode(), content_type="application/json", created=1.8e9)
    visit = _visit(tracker)
    visit.read(answer, follows=False)
    visit.pay(answer)
    visit.fail("CancelledError")
    assert tracker.outcomes == ["miss"]


def test_an_answer_that_came_in_before_the_hit_was_given_is_recorded_beside_it(api: Any, tracker: Listener) -> None:
    answer = read_answer(json.dumps(api.message()).encode(), content_type="application/json", created=1.8e9)
    visit = _visit(tracker)
    visit.pay(answer)
    visit.end("hit", answer)
    assert tracker.outcomes == ["hit", "background"]
    assert tracker.cost == COST
