"""The drop-in as a middleware of the SDK, which has them from 0.108 on."""

from __future__ import annotations

import logging
import time
from copy import copy
from datetime import timedelta
from typing import Any, Optional, Union

import anthropic
from typing_extensions import Unpack

from claude_force_cache import BlockingCache, Cache

from ._answer import Answer
from ._dropin import BlockingDropIn, DropIn, DropInOptions
from ._errors import ConfigError
from ._exchange import CONTROL_HEADER, Question, Response
from ._http import from_library, library_of, to_library

__all__ = ["CacheMiddleware"]

_logger = logging.getLogger("claude_force_orchestrator")
_Middleware: Any = getattr(anthropic, "Middleware", None)
_Base: Any = _Middleware or object


class CacheMiddleware(_Base):  # type: ignore[misc]  # older SDKs have no such class, so that there is no type for it
    """Answers a client's repeats from a cache: ``AsyncAnthropic(middleware=[CacheMiddleware(cache)])``.

    It answers requests for messages, whole and streamed; all else passes. Types and values are those that the API's
    own reply has. A hit says so in its headers (``x-claude-force-cache``, ``age``), and its request id begins with
    ``cached_``. A request can say ``extra_headers={"x-claude-force-cache": MODE}``, which is not sent on: ``no-cache``
    does not look up, but stores the new answer; ``no-store`` leaves the cache out; ``only-if-cached`` never asks the
    API, and is answered with status 504 if there is nothing.

    Put it last, behind middleware that alters requests: what it sees is what it looks up.

    :param cache: ``open_cache(..., codec=AnswerCodec())`` for an asynchronous client, ``BlockingCache`` of that for a
        blocking one. It stays its owner's to close.
    :param ttl: the seconds that a new answer is fresh, by default the cache's own.
    :param max_age: an answer of this age in seconds is no longer fresh.
    :param stale_while_revalidate: for so many seconds after its freshness an answer is still given at once, marked as
        stale, while a new one is asked for in the background.
    :param stale_if_error: for so many seconds after its freshness an answer is given, marked as stale, if the API
        cannot be reached, or answers with 408, 409, 429 or 5xx.
    :param tags: what new answers can be invalidated by, see :meth:`Cache.invalidate`.
    :param store_tool_use: whether answers that ask for a tool are stored, too.
    :param mark_usage: whether the ``usage`` of a hit has a field ``claude_force_cache`` besides, with the value
        ``"hit"``. The message is then no longer equal to the one that was recorded.
    :param max_recorded_bytes: an answer above this is passed on, but not stored.
    :param tracker: who records each request, retries of the client included, which stays its owner's to close. By
        default nobody does.
    :param prices: what the records go by, for prices of your own; by default what the package knows.
    :raises ConfigError: if the SDK is older than 0.108, or an option cannot be used.
    """

    def __init__(self, cache: Union[Cache[Answer], BlockingCache[Answer]], **options: Unpack[DropInOptions]) -> None:
        if _Middleware is None:
            raise ConfigError(
                f"anthropic {anthropic.__version__} has no middleware, which came with 0.108: "
                "use cached(client, cache), which does the same"
            )
        self._async = None if isinstance(cache, BlockingCache) else DropIn(cache, **options)
        self._blocking = BlockingDropIn(cache, **options) if isinstance(cache, BlockingCache) else None
        self._warned = False

    async def handle_async(self, request: Any, call_next: Any) -> Any:
        """Return the response to a request of an asynchronous client.

        :raises ConfigError: if the cache is one for a blocking client.
        """
        if self._async is None:
            raise ConfigError("an asynchronous client takes the Cache itself, not a BlockingCache")
        client = self._client(call_next)
        if client is None:
            return await call_next(request)
        exchange = _Exchange(client, request, await client._prepare_options(copy(request.options)))
        if exchange.question is None:
            return await call_next(request)

        async def send() -> Response:
            return from_library(_raw(await call_next(exchange.passed)))

        raw = exchange.answer(await self._async.respond(exchange.question, send))
        if not exchange.streamed:
            await raw.aread()
        return anthropic.AsyncAPIResponse(raw=raw, **exchange.wrapping)

    def handle(self, request: Any, call_next: Any) -> Any:
        """Return the response to a request of a blocking client.

        :raises ConfigError: if the cache is not one for a blocking client.
        """
        if self._blocking is None:
            raise ConfigError("a blocking client takes a BlockingCache: with BlockingCache(cache) as cache: ...")
        client = self._client(call_next)
        if client is None:
            return call_next(request)
        exchange = _Exchange(client, request, client._prepare_options(copy(request.options)))
        if exchange.question is None:
            return call_next(request)
        response = self._blocking.respond(exchange.question, lambda: _raw(call_next(exchange.passed)))
        if response is None:
            return call_next(exchange.passed)
        raw = exchange.answer(response, self._blocking.cache)
        if not exchange.streamed:
            raw.read()
        return anthropic.APIResponse(raw=raw, **exchange.wrapping)

    def _client(self, call_next: Any) -> Any:
        """Return the client that a chain of middleware belongs to, or None if it cannot be found.

        A request says neither its base URL nor its credentials nor the client's own headers, without which there
        is no telling what it asks whom. The chain is made of functions that hold the next one, and the last one
        holds the client.
        """
        link = call_next
        while True:
            code, cells = getattr(link, "__code__", None), getattr(link, "__closure__", None)
            held = dict(zip(code.co_freevars, cells)) if code is not None and cells else {}
            client = held["self"].cell_contents if "self" in held else None
            if hasattr(client, "_build_request") and hasattr(client, "_prepare_options"):
                return client
            if "call_next" not in held:
                break
            link = held["call_next"].cell_contents
        if not self._warned:
            self._warned = True
            _logger.warning(
                "anthropic %s does not let middleware find its client, so nothing is cached: use cached(client, cache)",
                anthropic.__version__,
            )
        return None


class _Exchange:
    """One request of a client, and how the response to it is made.

    :ivar question: what it asks, or None if it does not ask for a message.
    :ivar passed: the request as it is sent on.
    :ivar streamed: whether the caller reads the body of the response.
    :ivar wrapping: the arguments of the SDK's response besides the HTTP library's.
    """

    def __init__(self, client: Any, request: Any, options: Any) -> None:
        self._started = time.perf_counter()
        self._built = built = client._build_request(options, retries_taken=request.retries_taken)
        self._library = library_of(client._client)
        self.question = Question.read(built.method, str(built.url), built.headers.multi_items(), built.content)
        self.passed = request
        if CONTROL_HEADER in built.headers:
            kept = {name: value for name, value in request.headers.items() if name.lower() != CONTROL_HEADER}
            self.passed = request.copy(headers=kept)
        self.streamed = request.stream or built.headers.get("x-stainless-raw-response") == "stream"
        self.wrapping = {
            "client": client,
            "cast_to": request.cast_to,
            "stream": request.stream,
            "stream_cls": request.stream_cls,
            "options": options,
            "retries_taken": request.retries_taken,
        }

    def answer(self, response: Response, cache: Optional[BlockingCache[Answer]] = None) -> Any:
        raw = to_library(self._library, response, cache, request=self._built)
        raw.elapsed = timedelta(seconds=time.perf_counter() - self._started)
        return raw


def _raw(response: Any) -> Any:
    raw = getattr(response, "http_response", None)
    if raw is None:
        raise ConfigError("a middleware behind CacheMiddleware returns no response: put CacheMiddleware last")
    return raw
